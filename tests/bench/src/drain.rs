//! One drain: a full queue, a program that empties it, the time that took, and a look whether every effect is there once.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hapax_tests::proc::Process;
use serde::Serialize;

use crate::stage::{Database, Effects, Place, Stage};
use crate::usage::{cpu_micros, peak_memory};
use crate::variant::{Program, Variant, counter_file};
use crate::workload::{Order, orders};

/// How often it is looked how far a program is.
const LOOK: Duration = Duration::from_millis(20);

/// A program that gets no further for this long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// What one drain took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    /// Messages a second, from the first effect seen to the last.
    pub(crate) rate: f64,
    /// CPU time a message, in microseconds, of the client, the broker, the database and Redis.
    pub(crate) cpu: Cpu,
    /// Peak resident memory of the client's processes, in bytes.
    pub(crate) memory: u64,
    /// From the start of the process to the first effect seen, in milliseconds.
    pub(crate) start_millis: f64,
}

/// CPU time in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Cpu {
    pub(crate) client: f64,
    pub(crate) broker: f64,
    pub(crate) database: f64,
    pub(crate) redis: f64,
}

impl Cpu {
    /// Of all processes together.
    pub(crate) fn total(&self) -> f64 {
        self.client + self.broker + self.database + self.redis
    }
}

/// Fills a queue and drains it.
///
/// # Errors
/// When the program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn drain(stage: &Stage, variant: &Variant, messages: u64, module: &Path) -> Result<Figures> {
    let (orders, unique) = orders(variant.shape, messages);
    let place = stage.place(variant.database, variant.quorum).await?;
    place.fill(&orders).await?;
    let mut progress = Progress::of(variant, &place).await?;
    let goal = progress.goal(&orders, unique);

    let started = Instant::now();
    let mut process = variant.start(&place, module)?;
    let (first, done) = wait(&mut process, &mut progress, 1).await?;
    let start_millis = first.duration_since(started).as_secs_f64() * 1e3;
    let before = spent(stage, variant.database, &process)?;
    let (last, all) = wait(&mut process, &mut progress, goal).await?;
    let after = spent(stage, variant.database, &process)?;
    let memory = peak_memory(process.pid())?;

    let rest = (all - done).max(1) as f64;
    // A duplicate costs work too: what counts is how fast the queue empties.
    let rate = rest * messages as f64 / goal as f64 / last.duration_since(first).as_secs_f64();
    let a_message = |micros: u64| micros as f64 / (rest * messages as f64 / goal as f64);
    let cpu = Cpu {
        client: a_message(after.client - before.client),
        broker: a_message(after.broker - before.broker),
        database: a_message(after.database - before.database),
        redis: a_message(after.redis - before.redis),
    };
    settle(&mut process, &mut progress, variant).await?;
    stop(&mut process, variant).await?;
    check(&mut progress, variant, unique).await?;
    Ok(Figures { rate, cpu, memory, start_millis })
}

/// How far a program is.
enum Progress {
    Effects(Box<Effects>),
    Counter(std::path::PathBuf),
}

impl Progress {
    async fn of(variant: &Variant, place: &Place) -> Result<Self> {
        Ok(match variant.database {
            Database::None => Self::Counter(counter_file(place)),
            _ => Self::Effects(Box::new(place.effects().await?)),
        })
    }

    /// How far it is when everything is done.
    fn goal(&self, orders: &[Order], unique: u64) -> u64 {
        match self {
            Self::Effects(_) => unique,
            Self::Counter(_) => orders.len() as u64,
        }
    }

    async fn look(&mut self) -> Result<u64> {
        match self {
            Self::Effects(effects) => effects.count().await,
            Self::Counter(file) => {
                let text = std::fs::read_to_string(file).unwrap_or_else(|_| "0".to_owned());
                text.parse().with_context(|| format!("{text:?} is no count"))
            }
        }
    }
}

/// Waits until that much is done. Returns when it was seen, and how much was.
async fn wait(process: &mut Process, progress: &mut Progress, goal: u64) -> Result<(Instant, u64)> {
    let mut best = (Instant::now(), 0);
    loop {
        let done = progress.look().await?;
        if done > best.1 {
            best = (Instant::now(), done);
        }
        if done >= goal {
            return Ok(best);
        }
        if let Some(status) = process.try_wait()? {
            bail!("{} ended ({status})\n{}", process.name(), process.log_tail());
        }
        if best.0.elapsed() > STUCK {
            bail!("{} is stuck at {done} of {goal}\n{}", process.name(), process.log_tail());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// CPU time so far, in microseconds.
struct Spent {
    client: u64,
    broker: u64,
    database: u64,
    redis: u64,
}

fn spent(stage: &Stage, database: Database, process: &Process) -> Result<Spent> {
    let database = match stage.database_pid(database)? {
        Some(pid) => cpu_micros(pid)?,
        None => 0,
    };
    Ok(Spent {
        client: cpu_micros(process.pid())?,
        broker: cpu_micros(stage.rabbit.pid()?)?,
        database,
        redis: cpu_micros(stage.redis.pid()?)?,
    })
}

/// Waits until Hapax holds nothing back any more: duplicates may come after the last effect.
async fn settle(process: &mut Process, progress: &mut Progress, variant: &Variant) -> Result<()> {
    let (Program::Hapax { .. }, Progress::Effects(effects)) = (&variant.program, progress) else { return Ok(()) };
    let began = Instant::now();
    while effects.rows("hapax_parked").await? > 0 {
        ensure!(began.elapsed() < STUCK, "messages stay parked\n{}", process.log_tail());
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Hapax stops in good order; the others are killed, as nobody has taught them better.
async fn stop(process: &mut Process, variant: &Variant) -> Result<()> {
    match variant.program {
        Program::Hapax { .. } => {
            let status = process.terminate(STUCK).await?;
            ensure!(
                status.success(),
                "{} did not stop in good order: {status}\n{}",
                process.name(),
                process.log_tail()
            );
        }
        Program::Bare { .. } | Program::Classic { .. } => process.kill9().await?,
    }
    Ok(())
}

/// Every order exactly once.
async fn check(progress: &mut Progress, variant: &Variant, unique: u64) -> Result<()> {
    let Progress::Effects(effects) = progress else { return Ok(()) };
    let found = effects.count().await?;
    ensure!(found == unique, "{}: {unique} orders, {found} effects", variant.name);
    let remembered = match variant.program {
        Program::Hapax { .. } => {
            let parked = effects.rows("hapax_parked").await?;
            ensure!(parked == 0, "{}: {parked} messages are parked", variant.name);
            effects.rows("hapax_inbox WHERE status = 1").await?
        }
        Program::Classic { .. } | Program::Bare { .. } => effects.rows("message_flow").await?,
    };
    ensure!(remembered == unique, "{}: {unique} orders, {remembered} remembered", variant.name);
    Ok(())
}
