//! What a consumer does besides messages.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::lane::Common;
use crate::ledger::database::{Connection, DbError, DbErrorKind};
use crate::ledger::parked::{ParkedRow, State};
use crate::ledger::upkeep::{RescuePolicy, Rescued, retention_lease};
use crate::outcome::Reason;
use crate::pipeline::records::dead_letter_copy;
use crate::pipeline::shared::Shared;
use crate::telemetry::waits::News;

/// How often rows are looked for whose host was lost.
const RESCUE_EVERY: Duration = Duration::from_secs(1);

/// How often parked rows are counted. There may be millions of dead letters: counting those takes at most one part of so
/// many of the time.
const COUNT_EVERY: Duration = Duration::from_secs(5);
const COUNT_SHARE: u32 = 20;

/// How often one host looks for what is old enough to forget, and how long it rests between pages so that consumers
/// hardly feel it: with 20 ms some 20,000 rows/s go, of ids without order (`make bench`).
const FORGET_EVERY: Duration = Duration::from_secs(600);
const FORGET_REST: Duration = Duration::from_millis(20);

/// How long the right to forget lasts without renewal, and so how soon another host that found it taken asks again.
const FORGET_LEASE: Duration = Duration::from_secs(60);

/// How long ago a host must have ended for its last sign of life to be deleted.
const FORGET_HOSTS: Duration = Duration::from_secs(3600);

/// How long deliveries are held while the consumer probes, before they go back to the queue for as long as that, and for
/// twice as long each time after: well under the broker's own limit of 30 minutes, and seldom, for each time counts at a
/// queue with a delivery limit.
const PROBING_HOLD: Duration = Duration::from_secs(300);

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

/// Says that this host lives, while its lanes are at parked rows: until they let go of them nobody else takes them for
/// lost. Silent otherwise, so that an idle host writes nothing. Says it through pauses and while the host stops, too.
pub(super) async fn live(common: Arc<Common>, lasting: Duration) {
    let shared = &common.shared;
    if !shared.ledger.features().concurrent_writers {
        // One process a file: there is nobody to tell.
        return;
    }
    let mut ticks = tokio::time::interval((lasting / 3).min(RESCUE_EVERY));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        ticks.tick().await;
        if common.taken.is_empty() {
            continue;
        }
        if let Err(error) = say_alive(shared, &mut connection, lasting).await {
            connection = None;
            tracing::debug!(consumer = %shared.name, "sign of life: {error}");
        }
    }
}

/// Opens the connection if need be.
async fn say_alive(
    shared: &Shared,
    connection: &mut Option<Box<dyn Connection>>,
    lasting: Duration,
) -> Result<(), DbError> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(shared.ledger.connect_own().await?),
    };
    shared.ledger.sign_of_life(connection.as_mut(), &shared.name, shared.incarnation, lasting).await
}

/// Rescues what was lost, and measures. Errors of the database are left to the lanes to notice: here they only mean
/// "later".
pub(super) async fn look_after(common: Arc<Common>, policy: Policy, pressure: watch::Sender<bool>) {
    let mut ticks = tokio::time::interval(RESCUE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut next_count = Instant::now();
    let mut next_count_of_dead = Instant::now();
    // Since when the database has answered without a break. After an outage hosts come back one after the other, and
    // who is first must not take the others for lost.
    let mut steady: Option<Instant> = None;
    let mut news = News::default();
    loop {
        ticks.tick().await;
        if common.gate.closed().is_some() {
            steady = None;
            common.gate.opened().await;
        }
        let since = *steady.get_or_insert_with(Instant::now);
        let looked_after = async {
            // Mostly nothing is: one question a second, and not three.
            if common.shared.ledger.is_anything_running(&common.shared.name).await? {
                take_back_strays(&common, policy.rescue).await?;
                if since.elapsed() >= policy.rescue.after {
                    rescue(&common, policy.rescue).await?;
                }
            }
            if Instant::now() >= next_count {
                next_count = Instant::now() + COUNT_EVERY;
                measure(&common, &policy, &pressure).await?;
            }
            if Instant::now() >= next_count_of_dead {
                let began = Instant::now();
                let counted = count_parked(&common.shared, State::Dead..=State::Discarded).await;
                next_count_of_dead = Instant::now() + COUNT_EVERY.max(began.elapsed() * COUNT_SHARE);
                counted?;
            }
            Ok::<(), DbError>(())
        };
        let Err(error) = looked_after.await else { continue };
        // Then the database is there.
        let what = if matches!(error.kind, DbErrorKind::Contention | DbErrorKind::TimedOut) {
            "is late"
        } else {
            steady = None;
            "fails, so the messages of lost hosts may wait"
        };
        // Lanes may never meet what the database has answered here.
        if !error.connection_lost && news.is_worth_telling(&error.to_string(), Instant::now()) {
            tracing::warn!(consumer = %common.shared.name, "upkeep {what}, and metrics may be old: {error}");
        } else {
            tracing::debug!(consumer = %common.shared.name, "upkeep: {error}");
        }
    }
}

/// Gives back what this host has taken without knowing it: the COMMIT of the taking lost its answer. Not a crash.
async fn take_back_strays(common: &Common, policy: RescuePolicy) -> Result<(), DbError> {
    let shared = &common.shared;
    let (ledger, host) = (&shared.ledger, shared.incarnation);
    let strays = ledger.strays(&shared.name, host, policy.after, |run| common.taken.holds(run)).await?;
    for run in strays {
        ledger.give_back(&shared.name, host, run, Duration::ZERO).await?;
        tracing::info!(consumer = %shared.name, "gave back parked messages that had been taken without an answer");
    }
    Ok(())
}

/// Puts rows back whose host was lost.
async fn rescue(common: &Common, policy: RescuePolicy) -> Result<(), DbError> {
    let shared = &common.shared;
    let copy = |row: &ParkedRow| {
        let target = shared.dead_letter.as_ref()?;
        let reason = (Reason::Crashed.as_str(), None);
        Some(dead_letter_copy(&row.message, row.message_id.clone(), row.id, row.generation, reason, target))
    };
    for rescued in shared.ledger.rescue(&shared.name, shared.incarnation, policy, copy).await? {
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

/// Counts parked rows in these states, for people. Returns how many there are.
async fn count_parked(shared: &Shared, states: RangeInclusive<State>) -> Result<u64, DbError> {
    let counts = shared.ledger.parked_counts(&shared.name, states.clone()).await?;
    for state in State::ALL.iter().filter(|state| states.contains(state)) {
        let count = counts.iter().find(|(known, _)| known == state).map_or(0, |(_, rows)| *rows);
        shared.metrics.parked_rows(state.as_str(), count);
    }
    Ok(counts.iter().map(|(_, rows)| rows).sum())
}

/// Counts what waits, for people and for back-pressure.
async fn measure(common: &Common, policy: &Policy, pressure: &watch::Sender<bool>) -> Result<(), DbError> {
    let shared = &common.shared;
    let parked = count_parked(shared, State::Retry..=State::Deferred).await?;
    let (unpublished, oldest) = shared.ledger.outbox_stats(&shared.name).await?;
    shared.metrics.outbox_waiting(unpublished, oldest);
    let reason = Pressure { parked, unpublished, probing: common.health.probing_for() }.reason(policy);
    let pressed = reason.is_some();
    let changed = pressure.send_if_modified(|before| std::mem::replace(before, pressed) != pressed);
    match (changed, reason) {
        (true, Some(reason)) => {
            shared.metrics.paused("pressure");
            tracing::warn!(consumer = %shared.name, parked, unpublished, "no deliveries are taken until {reason}");
        }
        (true, None) => {
            shared.metrics.resumed("pressure");
            tracing::info!(consumer = %shared.name, parked, unpublished, "deliveries are taken again");
        }
        (false, _) => {}
    }
    Ok(())
}

/// What may be too much for further deliveries.
struct Pressure {
    parked: u64,
    unpublished: u64,
    probing: Option<Duration>,
}

impl Pressure {
    /// What must happen before deliveries are taken again; none if they may be.
    fn reason(&self, policy: &Policy) -> Option<String> {
        let (parked_max, outbox_max) = (policy.parked_max, policy.outbox_max);
        if self.parked > parked_max {
            Some(format!("less is parked (parked.max = {parked_max})"))
        } else if self.unpublished > outbox_max {
            Some(format!("less is unpublished (outbox.max = {outbox_max})"))
        } else if self.parked > 0 && self.probing.is_some_and(gives_back) {
            // What is parked is enough to probe with for a while. But perhaps all of it fails for reasons of its own, or
            // is due much later: then only deliveries can tell.
            Some("an attempt succeeds: nearly all of them fail".to_owned())
        } else {
            None
        }
    }
}

/// True while deliveries are back in the queue, for a consumer that has probed so long.
fn gives_back(probing: Duration) -> bool {
    let (mut left, mut away) = (probing, PROBING_HOLD);
    while left >= PROBING_HOLD + away {
        left -= PROBING_HOLD + away;
        away *= 2;
    }
    left >= PROBING_HOLD
}

/// Forgets what is old enough, now and then, if this host is the one to do it.
pub(super) async fn forget(common: Arc<Common>, retention: Duration) {
    let mut ticks = tokio::time::interval_at(Instant::now() + RESCUE_EVERY, FORGET_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        common.gate.opened().await;
        match forget_once(&common, retention).await {
            Ok(true) => {}
            // Perhaps it was taken by a host that is gone.
            Ok(false) => ticks.reset_after(FORGET_LEASE),
            Err(error) => tracing::debug!(consumer = %common.shared.name, "retention: {error}"),
        }
    }
}

/// Goes through the inbox page by page. False if another host does.
async fn forget_once(common: &Common, retention: Duration) -> Result<bool, DbError> {
    let shared = &common.shared;
    let lease = retention_lease(&shared.name);
    let mut after = None;
    let mut gone = 0;
    loop {
        if !shared.ledger.lease(&lease, shared.incarnation, FORGET_LEASE).await? {
            return Ok(false);
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
    shared.ledger.forget_hosts(&shared.name, FORGET_HOSTS).await?;
    if gone > 0 || discarded > 0 {
        tracing::info!(consumer = %shared.name, completed = gone, discarded, "forgot messages older than the retention");
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_probes_for_long_gives_deliveries_back_and_takes_them_again_more_and_more_seldom() {
        let minutes = |range: std::ops::Range<u64>| range.map(|minute| gives_back(Duration::from_secs(60 * minute)));
        assert!(minutes(0..5).all(|away| !away));
        assert!(minutes(5..10).all(|away| away));
        assert!(minutes(10..15).all(|away| !away));
        assert!(minutes(15..25).all(|away| away));
        assert!(minutes(25..30).all(|away| !away));
        let two_days: Vec<bool> = minutes(0..2880).collect();
        let times = two_days.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        // RabbitMQ 4 allows 20 by default.
        assert!(times < 20, "{times} times in two days");
    }
}
