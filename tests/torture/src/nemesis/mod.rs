//! The nemesis: does what the seed says to hosts and servers, and sees to it that it hurts.

pub(crate) mod fault;
mod hosts;
mod modules;
mod servers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::fleet::Host;
use crate::producer::Progress;
use crate::run::Task;
use crate::stage::{ORDERED, Stage};
use fault::Fault;
use modules::Modules;

/// How long a host may take until it consumes, on a slow machine and whatever happens to it.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(60);

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Felt {
    /// It took effect, and somebody noticed.
    Yes,
    /// Nobody noticed: it does not count.
    No,
}

impl From<bool> for Felt {
    fn from(felt: bool) -> Self {
        if felt { Self::Yes } else { Self::No }
    }
}

/// What was done.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Faults that took effect while work was in flight, by kind.
    pub(crate) felt: BTreeMap<String, u64>,
    /// Those that did not.
    pub(crate) missed: BTreeMap<String, u64>,
    /// How long after a server accepted connections again messages flowed, by kind.
    pub(crate) recoveries: BTreeMap<String, Vec<Duration>>,
}

/// The hosts, their servers, and what is done to them.
pub(crate) struct Nemesis {
    pub(crate) stage: Stage,
    pub(crate) hosts: Vec<Host>,
    pub(crate) modules: Modules,
    pub(crate) tally: Tally,
    random: StdRng,
    task: Task,
    /// How far the producer is.
    progress: Arc<Progress>,
}

impl Nemesis {
    pub(crate) fn new(stage: Stage, hosts: Vec<Host>, task: Task, progress: Arc<Progress>) -> Result<Self> {
        let modules = Modules::new(&stage.module)?;
        let random = StdRng::seed_from_u64(task.seed);
        Ok(Self { stage, hosts, modules, tally: Tally::default(), random, task, progress })
    }

    /// Strikes until the time is over.
    ///
    /// # Errors
    /// When something happens that was not done on purpose: a host ends by itself, a server does not come back.
    pub(crate) async fn rage(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            let fault = Fault::draw(&mut self.random, self.task.database, self.task.broker);
            let rest = self.random.random_range(if self.task.soak { 4000..20_000 } else { 100..1500 });
            let rest = Duration::from_millis(rest);
            self.strike(fault).await.with_context(|| format!("while this was done: {}", fault.kind()))?;
            tokio::time::sleep(rest).await;
        }
        Ok(())
    }

    async fn strike(&mut self, fault: Fault) -> Result<()> {
        let is_busy = self.progress.is_busy();
        tracing::info!("{}", fault.kind());
        let felt = match fault {
            Fault::Kill { host } => self.kill(host).await?,
            Fault::Trapped { host, trap, frozen } => self.trap(host, trap, frozen).await?,
            Fault::Frozen { host, time } => self.freeze(host, time).await?,
            Fault::Stopped { host } => self.stop(host).await?,
            Fault::BrokerKilled { twice } => self.kill_broker(twice).await?,
            Fault::BrokerCloses => self.close_connections().await?,
            Fault::BrokerAlarm { time } => self.raise_alarm(time).await?,
            Fault::ExchangeDeleted { time } => self.delete_exchange(time).await?,
            Fault::QueueDeleted { which, time } => self.delete_queue(which, time).await?,
            Fault::CopiesMovedBack => self.move_copies_back().await?,
            Fault::DatabaseKilled => self.kill_database().await?,
            Fault::SessionsEnded => self.end_sessions().await?,
            Fault::RowsLocked { time } => self.lock_rows(time).await?,
            Fault::DatabaseFrozen { time } => self.freeze_database(time).await?,
            Fault::LocksKilled => self.kill_locks().await?,
            Fault::LocksFlushed => self.flush_locks().await?,
            Fault::LocksFrozen { time } => self.freeze_locks(time).await?,
            Fault::LocksFull { time } => self.fill_locks(time).await?,
            Fault::LocksReadOnly { time } => self.seal_locks(time).await?,
            Fault::Network { host, target, weather, time } => self.spoil_network(host, target, weather, time).await?,
            Fault::Swaps { times } => self.swap(times).await?,
            Fault::Redriven => self.redrive().await?,
        };
        let tally = if felt == Felt::Yes && is_busy { &mut self.tally.felt } else { &mut self.tally.missed };
        *tally.entry(fault.kind()).or_default() += 1;
        self.see_that_all_run()
    }

    /// Every host runs: one that has ended by itself is a finding.
    fn see_that_all_run(&mut self) -> Result<()> {
        for host in &mut self.hosts {
            anyhow::ensure!(host.is_running(), "{} ended by itself\n{}", host.name(), host.log_tail());
        }
        Ok(())
    }

    /// In a soak the first is spared, so that it can be seen what it uses.
    fn host(&mut self, number: usize) -> &mut Host {
        let spared = usize::from(self.task.soak && self.hosts.len() > 1);
        let count = self.hosts.len() - spared;
        &mut self.hosts[spared + number % count]
    }

    /// How long it takes until something is handled, measured from now.
    async fn flows_again(&mut self, what: &str) -> Result<()> {
        let count = async |stage: &Stage| stage.reader.number("COUNT(*)", "FROM effects").await;
        let began = Instant::now();
        let before =
            hapax_tests::wait_for(START_LIMIT, "the database to answer", async || count(&self.stage).await).await?;
        hapax_tests::wait_for(START_LIMIT, format!("messages to be handled again after this: {what}"), async || {
            let now = count(&self.stage).await?;
            anyhow::ensure!(now > before || !self.progress.is_busy(), "{now} effects, as before");
            Ok(())
        })
        .await?;
        self.tally.recoveries.entry(what.to_owned()).or_default().push(began.elapsed());
        Ok(())
    }

    /// Mends everything.
    ///
    /// # Errors
    /// When a host cannot be started again.
    pub(crate) async fn heal(&mut self) -> Result<()> {
        self.modules.put_good()?;
        for host in &mut self.hosts {
            for wire in [&host.wires.broker, &host.wires.lock, &host.wires.database].into_iter().flatten() {
                wire.set(crate::wire::Weather::Fair);
            }
            host.start(None)?;
            // It may have been frozen when something else went wrong.
            host.thaw()?;
        }
        self.retry_outbox().await
    }

    /// What was refused is published again.
    async fn retry_outbox(&self) -> Result<()> {
        for consumer in ORDERED {
            self.hosts[0].command(&["outbox", "retry", consumer], None, START_LIMIT).await?;
        }
        Ok(())
    }
}
