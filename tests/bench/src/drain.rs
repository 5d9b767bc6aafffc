//! One drain: a full queue, a program that empties it, the time that took, and a look whether every effect is there once.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::fleet::Fleet;
use crate::programs::Programs;
use crate::progress::{Cpu, LOOK, Progress, STUCK, Span};
use crate::stage::{Database, Effects, Stage};
use crate::told::Told;
use crate::variant::Variant;
use crate::worker::QUEUE;
use crate::workload::orders;

/// Where Hapax keeps what it has not done with.
const UNFINISHED: [&str; 2] = ["hapax_parked", "hapax_outbox"];

/// What one drain took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// Messages of the drain.
    pub(crate) messages: u64,
    /// Messages a second, from the first effect seen to the last.
    pub(crate) rate: f64,
    /// The time between, in seconds.
    pub(crate) seconds: f64,
    /// CPU time a message, in microseconds, of the client, the broker, the database and Redis.
    pub(crate) cpu: Cpu,
    /// Peak resident memory of the client's processes, in bytes.
    pub(crate) memory: u64,
    /// From the start of the process to the first effect seen, in milliseconds.
    pub(crate) start_millis: f64,
    /// Deadlocks that Postgres found.
    pub(crate) deadlocks: Option<u64>,
}

/// Fills a queue and drains it.
///
/// # Errors
/// When the program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn drain(stage: &Stage, variant: &Variant, messages: u64, programs: &Programs) -> Result<Figures> {
    let (orders, unique) = orders(variant.shape, messages);
    let place = stage.place(variant.database, variant.quorum).await?;
    if variant.shape.told {
        Told::declare(&place).await?;
    }
    place.fill(QUEUE, &orders).await?;
    let mut progress = Progress::of(variant, &place).await?;
    let goal = if variant.database == Database::None { messages } else { unique };

    let started = Instant::now();
    let mut fleet = Fleet::start(variant, &place, programs)?;
    let span = Span::measure(stage, variant.database, &mut fleet, &mut progress, 0, goal).await?;
    // A duplicate costs work too: what counts is how fast the queue empties.
    let share = span.orders as f64 / goal as f64 * messages as f64;
    let memory = fleet.peak_memory()?;
    let deadlocks = finish(&mut fleet, &mut progress, variant, unique, unique).await?;
    Ok(Figures {
        messages,
        rate: span.rate(share),
        seconds: span.took.as_secs_f64(),
        cpu: span.cpu(share),
        memory,
        start_millis: span.first.duration_since(started).as_secs_f64() * 1e3,
        deadlocks,
    })
}

/// Ends it, and makes sure that there were exactly so many effects and that exactly so many messages are remembered.
/// Returns how many deadlocks Postgres has found.
///
/// # Errors
/// When it does not end in good order, or has not done exactly what it should.
pub(crate) async fn finish(
    fleet: &mut Fleet,
    progress: &mut Progress,
    variant: &Variant,
    effects: u64,
    remembered: u64,
) -> Result<Option<u64>> {
    if let (true, Some(found)) = (variant.is_hapax(), progress.effects()) {
        settle(fleet, found).await?;
    }
    fleet.stop().await?;
    if let Some(found) = progress.effects() {
        check(found, variant, effects, remembered).await.with_context(|| variant.name.clone())?;
    }
    if let Progress::Told(_, told) = progress {
        told.check(effects).await?;
    }
    match (variant.database, progress.effects()) {
        (Database::Postgres, Some(found)) => found.deadlocks().await.map(Some),
        _ => Ok(None),
    }
}

/// Waits until Hapax holds nothing back any more: duplicates may come after the last effect.
pub(crate) async fn settle(fleet: &Fleet, effects: &mut Effects) -> Result<()> {
    let began = Instant::now();
    for table in UNFINISHED {
        while effects.rows(table).await? > 0 {
            ensure!(began.elapsed() < STUCK, "messages stay in {table}\n{}", fleet.log_tail());
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// Every order exactly once, and nothing left over.
async fn check(found: &mut Effects, variant: &Variant, effects: u64, remembered: u64) -> Result<()> {
    let count = found.count().await?;
    ensure!(count == effects, "{effects} orders, {count} effects");
    let rows = if variant.is_hapax() {
        for table in UNFINISHED {
            let rows = found.rows(table).await?;
            ensure!(rows == 0, "{rows} messages are in {table}");
        }
        found.rows("hapax_inbox WHERE status = 1").await?
    } else {
        found.rows("message_flow").await?
    };
    ensure!(rows == remembered, "{remembered} messages to remember, {rows} remembered");
    Ok(())
}
