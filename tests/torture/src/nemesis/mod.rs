//! The nemesis: does what the seed says to hosts and servers, and sees to it that it hurts.
//!
//! It has two arms, which strike at the same time: one at the hosts, one at their servers and the network.

pub(crate) mod fault;
mod hosts;
mod modules;
mod servers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use hapax_tests::wait_until;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::fleet::Host;
use crate::producer::Progress;
use crate::run::{MIGRATIONS_KILLED, Task};
use crate::soak::CALM;
use crate::stage::{ORDERED, Stage};
use fault::{Deck, Fault, WHILE_MIGRATING};
use hosts::HostsArm;
use modules::Modules;
use servers::ServersArm;

/// How long a host may take until it consumes, on a slow machine and whatever happens to it: its broker may have been
/// killed twice, and take half a minute each time to come back.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(180);

/// Nothing is done to anybody for so long: RabbitMQ 3.10, killed within a second of the declaration of a quorum queue,
/// never found a leader for it again.
const GRACE: Duration = Duration::from_secs(3);

/// How long one fault may take, with all that its victims need to get up again: longer than a server may take to start,
/// which has more to say then.
const STRIKE_LIMIT: Duration = Duration::from_secs(240);

/// The longest rest of an arm between two faults; in a soak there are few.
const REST: Duration = Duration::from_millis(600);
const SOAK_REST: Duration = Duration::from_secs(40);

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

/// What was done, by kind.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Faults that took effect while work was in flight.
    pub(crate) felt: BTreeMap<String, u64>,
    /// Those that did not.
    pub(crate) missed: BTreeMap<String, u64>,
}

impl Tally {
    fn count(&mut self, kind: String, felt: bool) {
        let counts = if felt { &mut self.felt } else { &mut self.missed };
        *counts.entry(kind).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        for (ours, theirs) in [(&mut self.felt, &other.felt), (&mut self.missed, &other.missed)] {
            for (kind, times) in theirs {
                *ours.entry(kind.clone()).or_default() += times;
            }
        }
    }
}

/// One of the two arms.
trait Arm {
    type Fault: Fault;

    /// Does it. An error is a finding: something happened that was not done on purpose.
    async fn strike(&mut self, fault: Self::Fault) -> Result<Felt>;
}

/// The hosts, their servers, and what is done to them.
pub(crate) struct Nemesis {
    pub(crate) stage: Stage,
    pub(crate) hosts: Vec<Host>,
    modules: Modules,
    pub(crate) tally: Tally,
    pub(crate) task: Task,
    /// How far the producer is.
    progress: Arc<Progress>,
}

impl Nemesis {
    pub(crate) fn new(stage: Stage, hosts: Vec<Host>, task: Task, progress: Arc<Progress>) -> Result<Self> {
        let modules = Modules::new(&stage.module)?;
        let tally = Tally { felt: BTreeMap::from([(WHILE_MIGRATING.kind(), MIGRATIONS_KILLED)]), ..Tally::default() };
        Ok(Self { stage, hosts, modules, tally, task, progress })
    }

    /// Strikes until the time is over.
    ///
    /// # Errors
    /// When something happens that was not done on purpose: a host ends by itself, a server does not come back.
    pub(crate) async fn rage(&mut self, until: Instant) -> Result<()> {
        wait_until(START_LIMIT, "work to do harm to", async || self.progress.is_busy()).await?;
        tokio::time::sleep(if self.task.soak { CALM } else { GRACE }).await;
        let setting = self.stage.setting;
        // In a soak the first is spared, so that it can be seen what it uses.
        let spared = usize::from(self.task.soak && self.hosts.len() > 1);
        let wires = self.hosts[spared..].iter().map(|host| host.wires.clone()).collect();
        let commands = self.hosts[0].commands();
        let mut hosts =
            HostsArm { hosts: &mut self.hosts, spared, modules: &mut self.modules, reader: self.stage.reader.clone() };
        let mut servers = ServersArm {
            stage: &mut self.stage,
            wires,
            commands,
            seed: self.task.seed,
            progress: self.progress.clone(),
            broker_killed: None,
        };
        let rest = if self.task.soak { SOAK_REST } else { REST };
        let (only, is_broken) = (&self.task.only, self.task.breach.is_some());
        let of_hosts = Deck::new(StdRng::seed_from_u64(self.task.seed), setting, only, is_broken);
        let of_servers = Deck::new(StdRng::seed_from_u64(!self.task.seed), setting, only, is_broken);
        let (one, other) = tokio::join!(
            rage(&mut hosts, of_hosts, rest, until, &self.progress),
            rage(&mut servers, of_servers, rest, until, &self.progress),
        );
        self.tally.add(&one.0);
        self.tally.add(&other.0);
        let led = async {
            while servers.broker_killed.is_some() {
                servers.see_to_leader().await?;
            }
            Ok(())
        };
        let led = tokio::time::timeout(STRIKE_LIMIT, led).await;
        let led = led.unwrap_or_else(|_| Err(anyhow!("RabbitMQ finds no leader within {STRIKE_LIMIT:?}")));
        let raged = match (one.1, other.1) {
            // The one may be the other's fault.
            (Err(one), Err(other)) => Err(anyhow!("{one:#}\nand {other:#}")),
            (one, other) => one.and(other),
        };
        raged.and(led)
    }

    /// Mends everything.
    ///
    /// # Errors
    /// When a host cannot be started again.
    pub(crate) async fn heal(&mut self) -> Result<()> {
        self.modules.put_good()?;
        for host in &mut self.hosts {
            host.wires.all().for_each(|wire| wire.set(crate::wire::Weather::Fair));
            host.start(None)?;
            // It may have been frozen when something else went wrong.
            host.thaw()?;
        }
        retry_outbox(&self.hosts[0].commands()).await
    }
}

/// Strikes with one arm until the time is over, or something is found.
async fn rage<A: Arm>(
    arm: &mut A,
    mut deck: Deck<A::Fault>,
    rest: Duration,
    until: Instant,
    progress: &Progress,
) -> (Tally, Result<()>) {
    let mut tally = Tally::default();
    while Instant::now() < until
        && let Some((fault, rest)) = deck.draw(rest)
    {
        let is_busy = progress.is_busy();
        tracing::info!("{}", fault.kind());
        let struck = tokio::time::timeout(STRIKE_LIMIT, arm.strike(fault)).await;
        match struck.unwrap_or_else(|_| Err(anyhow!("it has not ended after {STRIKE_LIMIT:?}"))) {
            Ok(felt) => tally.count(fault.kind(), felt == Felt::Yes && is_busy),
            Err(error) => return (tally, Err(error.context(format!("while this was done: {}", fault.kind())))),
        }
        tokio::time::sleep(rest).await;
    }
    (tally, Ok(()))
}

/// What was refused is published again.
async fn retry_outbox(commands: &crate::fleet::Commands) -> Result<()> {
    for consumer in ORDERED {
        let retried = commands.run(&["outbox", "retry", consumer], None, START_LIMIT).await;
        retried.with_context(|| format!("retrying the outbox of {consumer}"))?;
    }
    Ok(())
}
