//! What a consumer does besides messages.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::lane::Common;
use crate::ledger::database::DbError;
use crate::ledger::parked::{ParkedRow, State};
use crate::ledger::upkeep::{RescuePolicy, Rescued};
use crate::outcome::Reason;
use crate::pipeline::records::dead_letter_copy;

/// How often rows are looked for whose host was lost.
const RESCUE_EVERY: Duration = Duration::from_secs(1);

/// How often parked rows are counted.
const COUNT_EVERY: Duration = Duration::from_secs(5);

/// How often one host looks for what is old enough to forget, and how long it rests between pages so that consumers do
/// not feel it.
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_REST: Duration = Duration::from_millis(50);

/// What upkeep keeps to.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// When rows are rescued, and when they are given up.
    pub rescue: RescuePolicy,
    /// How long completed and discarded messages are remembered.
    pub retention: Duration,
    /// Above this many waiting parked rows no deliveries are taken.
    pub parked_max: u64,
    /// Above this many unpublished outbox rows no deliveries are taken.
    pub outbox_max: u64,
}

/// Runs until it is dropped. Errors of the database are left to the lanes to notice: here they only mean "later".
pub(super) async fn run(common: Arc<Common>, policy: Policy, pressure: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(RESCUE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_count = Instant::now();
    let mut next_forget = Instant::now() + RESCUE_EVERY;
    loop {
        ticks.tick().await;
        common.gate.opened().await;
        if let Err(error) = rescue(&common, policy.rescue).await {
            tracing::debug!(consumer = %common.shared.name, "rescue: {error}");
        }
        if Instant::now() >= next_count {
            next_count = Instant::now() + COUNT_EVERY;
            if let Err(error) = measure(&common, &policy, &pressure).await {
                tracing::debug!(consumer = %common.shared.name, "counting parked rows: {error}");
            }
        }
        if Instant::now() >= next_forget {
            next_forget = Instant::now() + FORGET_EVERY;
            if let Err(error) = forget(&common, policy.retention).await {
                tracing::debug!(consumer = %common.shared.name, "retention: {error}");
            }
        }
    }
}

/// Puts rows back whose host was lost.
async fn rescue(common: &Common, policy: RescuePolicy) -> Result<(), DbError> {
    let shared = &common.shared;
    let copy = |row: &ParkedRow| {
        let target = shared.dead_letter.as_ref()?;
        let reason = (Reason::Crashed.as_str(), None);
        Some(dead_letter_copy(&row.message, row.message_id.clone(), row.id, row.generation, reason, target))
    };
    for rescued in shared.ledger.rescue(&shared.name, policy, copy).await? {
        shared.metrics.crashed(1);
        let (row, fate) = match &rescued {
            Rescued::Retried(row) => (row, "it runs again, alone"),
            Rescued::Dead(row) => {
                shared.metrics.dead(Reason::Crashed.as_str());
                (row, "it is a dead letter now (crashed)")
            }
        };
        let message_id = row.message_id.as_ref().map_or("(no id)", |id| id.as_str());
        tracing::warn!(
            consumer = %shared.name, message_id, crashes = row.crashes + 1, "the host that ran this message was lost; {fate}"
        );
    }
    Ok(())
}

/// Counts what waits, for people and for back-pressure.
async fn measure(common: &Common, policy: &Policy, pressure: &watch::Sender<bool>) -> Result<(), DbError> {
    let shared = &common.shared;
    let counts = shared.ledger.parked_counts(&shared.name).await?;
    let count = |state| counts.iter().find(|(known, _)| *known == state).map_or(0, |(_, rows)| *rows);
    for state in [State::Retry, State::Running, State::Deferred, State::Dead, State::Discarded] {
        shared.metrics.parked_rows(state.as_str(), count(state));
    }
    let parked = count(State::Retry) + count(State::Running) + count(State::Deferred);
    let (unpublished, oldest) = shared.ledger.outbox_stats(&shared.name).await?;
    shared.metrics.outbox_waiting(unpublished, oldest);
    let pressed = parked > policy.parked_max || unpublished > policy.outbox_max;
    let changed = pressure.send_if_modified(|before| std::mem::replace(before, pressed) != pressed);
    match (changed, pressed) {
        (true, true) => {
            shared.metrics.paused("pressure");
            tracing::warn!(
                consumer = %shared.name, parked, unpublished,
                "no deliveries are taken until less is parked (parked.max = {}) and unpublished (outbox.max = {})",
                policy.parked_max, policy.outbox_max
            );
        }
        (true, false) => {
            shared.metrics.resumed("pressure");
            tracing::info!(consumer = %shared.name, parked, unpublished, "deliveries are taken again");
        }
        (false, _) => {}
    }
    Ok(())
}

/// Forgets what is old enough, page by page, if this host is the one to do it.
async fn forget(common: &Common, retention: Duration) -> Result<(), DbError> {
    let shared = &common.shared;
    let lease = format!("retention:{}", shared.name);
    let mut after = None;
    let mut gone = 0;
    loop {
        if !shared.ledger.lease(&lease, shared.incarnation, Duration::from_secs(60)).await? {
            return Ok(());
        }
        let (last, forgotten) = shared.ledger.forget_completed(&shared.name, retention, after).await?;
        gone += forgotten;
        match last {
            Some(last) => after = Some(last),
            None => break,
        }
        tokio::time::sleep(FORGET_REST).await;
    }
    let discarded = shared.ledger.forget_discarded(&shared.name, retention).await?;
    if gone > 0 || discarded > 0 {
        tracing::info!(consumer = %shared.name, completed = gone, discarded, "forgot messages older than the retention");
    }
    Ok(())
}
