//! How far a program is, and what it took to get there.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::fleet::{Fleet, counter_file};
use crate::stage::{Database, Effects, Place, Stage};
use crate::told::Told;
use crate::variant::Variant;
use hapax_tests::usage::cpu_micros;

/// How often it is looked how far a program is.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// A program that gets no further for this long is stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(60);

/// Where it shows how far a program is.
pub(crate) enum Progress {
    /// In what the handlers have done.
    Effects(Box<Effects>),
    /// In that, and in the messages that they have sent.
    Told(Box<Effects>, Box<Told>),
    /// In a file, for a program that does nothing else.
    Counter(PathBuf),
}

impl Progress {
    /// That of a variant on a place.
    ///
    /// # Errors
    /// When the database or the broker does not let it in.
    pub(crate) async fn of(variant: &Variant, place: &Place) -> Result<Self> {
        Ok(match variant.database {
            Database::None => Self::Counter(counter_file(place)),
            _ if variant.shape.told => Self::Told(Box::new(place.effects().await?), Box::new(Told::of(place).await?)),
            _ => Self::Effects(Box::new(place.effects().await?)),
        })
    }

    /// What has been committed, where there is a database.
    pub(crate) fn effects(&mut self) -> Option<&mut Effects> {
        match self {
            Self::Effects(effects) | Self::Told(effects, _) => Some(effects),
            Self::Counter(_) => None,
        }
    }

    /// How many orders are done with.
    ///
    /// # Errors
    /// When nobody says.
    pub(crate) async fn look(&mut self) -> Result<u64> {
        match self {
            Self::Effects(effects) => effects.count().await,
            Self::Told(effects, told) => Ok(effects.count().await?.min(told.count().await?)),
            Self::Counter(file) => {
                let text = std::fs::read_to_string(file).unwrap_or_else(|_| "0".to_owned());
                text.parse().with_context(|| format!("{text:?} is no count"))
            }
        }
    }

    /// Waits until that much is done. Returns when it was seen, and how much was.
    ///
    /// # Errors
    /// When the program ends or is stuck.
    pub(crate) async fn wait(&mut self, fleet: &mut Fleet, goal: u64) -> Result<(Instant, u64)> {
        let mut best = (Instant::now(), 0);
        loop {
            let done = self.look().await?;
            if done > best.1 {
                best = (Instant::now(), done);
            }
            if done >= goal {
                return Ok(best);
            }
            fleet.check_running()?;
            if best.0.elapsed() > STUCK {
                bail!("it is stuck at {done} of {goal}\n{}", fleet.log_tail());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// The part of a drain that is measured: from the first order seen done to the last.
pub(crate) struct Span {
    /// When the first was seen.
    pub(crate) first: Instant,
    /// How many orders were done between.
    pub(crate) orders: u64,
    pub(crate) took: Duration,
    spent: Spent,
}

/// CPU time, in microseconds.
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

impl Span {
    /// Waits for the first order past `from`, and until `to` are done.
    ///
    /// # Errors
    /// When the program ends or is stuck.
    pub(crate) async fn measure(
        stage: &Stage,
        database: Database,
        fleet: &mut Fleet,
        progress: &mut Progress,
        from: u64,
        to: u64,
    ) -> Result<Self> {
        let (first, done) = progress.wait(fleet, from + 1).await?;
        let before = spent(stage, database, fleet)?;
        let (last, all) = progress.wait(fleet, to).await?;
        let after = spent(stage, database, fleet)?;
        // One look saw it all: so few orders are not worth a figure, and a rate must still be one.
        let took = last.duration_since(first).max(Duration::from_millis(1));
        Ok(Self { first, orders: (all - done).max(1), took, spent: after - before })
    }

    /// Messages a second, if it was about that many messages.
    pub(crate) fn rate(&self, messages: f64) -> f64 {
        messages / self.took.as_secs_f64()
    }

    /// CPU time of each of that many messages, in microseconds.
    pub(crate) fn cpu(&self, messages: f64) -> Cpu {
        let a_message = |micros: u64| micros as f64 / messages;
        Cpu {
            client: a_message(self.spent.client),
            broker: a_message(self.spent.broker),
            database: a_message(self.spent.database),
            redis: a_message(self.spent.redis),
        }
    }
}

/// CPU time of all processes, in microseconds.
struct Spent {
    client: u64,
    broker: u64,
    database: u64,
    redis: u64,
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            client: self.client - before.client,
            broker: self.broker - before.broker,
            database: self.database - before.database,
            redis: self.redis - before.redis,
        }
    }
}

fn spent(stage: &Stage, database: Database, fleet: &Fleet) -> Result<Spent> {
    let database = match stage.database_pid(database)? {
        Some(pid) => cpu_micros(pid)?,
        None => 0,
    };
    let (broker, redis) = (cpu_micros(stage.rabbit.pid()?)?, cpu_micros(stage.redis.pid()?)?);
    Ok(Spent { client: fleet.cpu_micros()?, broker, database, redis })
}
