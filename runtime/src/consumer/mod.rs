//! A consumer: one queue, one module, one scope of message ids.
//!
//! Its supervisor subscribes, hands deliveries to lanes by partition, and subscribes anew when a subscription ends. Its
//! clock tells lanes when parked rows are due. Its healer waits for infrastructure to come back. Its upkeep rescues rows
//! whose host was lost, forgets what is old enough, and measures.

mod gate;
mod health;
mod lane;
mod taken;
mod upkeep;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use tokio::sync::{RwLock, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, Declare, Delivery, QueueSpec, Subscription};
use crate::identity::{lane_of, slots_of};
use crate::ledger::database::DbErrorKind;
use crate::lock;
use crate::pipeline::Fault;
use crate::pipeline::member::{Link, Member};
use crate::pipeline::shared::Shared;
use crate::telemetry::metrics;
use crate::telemetry::readiness::Component;
use crate::telemetry::waits::retry_forever;

use gate::Gate;
use health::Health;
pub use health::MassFailure;
pub use lane::LOCK_WAIT;
use lane::{Common, Lane};
use taken::Taken;

/// How long lanes hold on to their deliveries while infrastructure is away, before they go back to the broker: long
/// enough for a restart of a server, well under the broker's own limit of 30 minutes.
const HOLD: Duration = Duration::from_secs(10);

/// How often the clock asks SQL what is due; what a lane parks itself it knows without asking.
const CLOCK: Duration = Duration::from_secs(1);

/// How often infrastructure that is away is probed; and for one that answers probes and fails everything else, how long
/// it is left alone at most. Less than [`HOLD`]: each time deliveries go back counts at a queue with a delivery limit.
const PROBE_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));

/// Infrastructure that fails again this soon was not really back.
const RELAPSE: Duration = Duration::from_secs(10);

/// How long giving back what was not finished may take when the host stops.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// What a consumer is made of.
pub struct Settings {
    /// What its lanes share.
    pub shared: Arc<Shared>,
    /// Where its deliveries come from.
    pub broker: Arc<dyn Broker>,
    /// Its queue.
    pub spec: QueueSpec,
    /// How many lanes; at least 1.
    pub lanes: u16,
    /// Members in one transaction; at least 1.
    pub batch: usize,
    /// When nearly everything fails.
    pub mass_failure: Option<MassFailure>,
    /// One for the host: a suspect runs with no other parked row beside it.
    pub suspects: Arc<RwLock<()>>,
    /// What its upkeep keeps to.
    pub upkeep: upkeep::Policy,
}

pub use upkeep::Policy as UpkeepPolicy;

/// The hand by which the supervisor reaches a lane.
struct LaneHandle {
    deliveries: mpsc::UnboundedSender<Member>,
    due: watch::Sender<Option<Instant>>,
}

/// A running consumer's parts.
struct Consumer {
    common: Arc<Common>,
    broker: Arc<dyn Broker>,
    spec: QueueSpec,
    lanes: Vec<LaneHandle>,
    readiness: Component,
    link: Option<Arc<Link>>,
}

/// What `/readyz` says of a consumer.
pub struct Signs {
    /// Whether deliveries are taken.
    pub deliveries: Component,
    /// Whether the servers that an attempt needs are there: database, lock.
    pub infrastructure: Component,
}

/// Why deliveries stopped.
enum Stop {
    /// The host is shutting down.
    Shutdown,
    /// The subscription ended by itself.
    Ended(BrokerError),
    /// Nothing came for a while, and nothing is in hand.
    Quiet,
    /// Infrastructure has been away for longer than [`HOLD`].
    Paused,
    /// Too much is parked or unpublished.
    Pressure,
}

/// Runs a consumer until `stop`, then lets its lanes finish what they have begun, for at most `drain`. What they have
/// not finished by then is given back, uncounted.
///
/// # Panics
/// When one of its tasks did: a consumer without it would stand still and look alive.
pub async fn run(settings: Settings, signs: Signs, stop: CancellationToken, drain: Duration) {
    let Settings { shared, broker, spec, lanes: count, batch, mass_failure, suspects, upkeep } = settings;
    let (pressure, under_pressure) = watch::channel(false);
    let common = Arc::new(Common {
        shared: shared.clone(),
        gate: Gate::default(),
        health: Health::new(mass_failure),
        suspects,
        batch,
        pressure: under_pressure,
        taken: Taken::default(),
    });
    let Signs { deliveries, infrastructure } = signs;
    let (lanes, mut tasks) = start_lanes(&common, count, &stop);
    let mut helpers = JoinSet::new();
    helpers.spawn(heal(common.clone(), infrastructure));
    helpers.spawn(clock(common.clone(), lanes.iter().map(|lane| lane.due.clone()).collect()));
    helpers.spawn(upkeep::live(common.clone(), upkeep.rescue.after));
    helpers.spawn(upkeep::look_after(common.clone(), upkeep, pressure));
    helpers.spawn(upkeep::forget(common.clone(), upkeep.retention));

    let mut consumer = Consumer { common, broker, spec, lanes, readiness: deliveries, link: None };
    tokio::select! {
        () = consumer.supervise(&stop) => {}
        () = panicked(&mut helpers) => {}
        () = panicked(&mut tasks) => {}
    }

    let finished = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, finished).await.is_err() {
        tracing::warn!(consumer = %shared.name, "not everything was finished within {drain:?}; the rest is given back");
    }
    // A lane that is aborted takes its connection with it, and the server rolls back.
    tasks.shutdown().await;
    consumer.end(&shared).await;
    helpers.shutdown().await;
}

/// Passes the first panic of a task on. Tasks that end otherwise end because the host stops.
async fn panicked(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    std::future::pending().await
}

fn start_lanes(common: &Arc<Common>, count: u16, stop: &CancellationToken) -> (Vec<LaneHandle>, JoinSet<()>) {
    let mut tasks = JoinSet::new();
    let handles = (0..count)
        .map(|lane| {
            #[expect(clippy::disallowed_methods, reason = "bounded by the prefetch: nothing else is sent through it")]
            let (deliveries, received) = mpsc::unbounded_channel();
            let (due, due_seen) = watch::channel(None);
            let slots = slots_of(lane, count);
            let slots = slots.start..=slots.end - 1;
            let lane = Lane::new(common.clone(), slots, received, due_seen);
            tasks.spawn(lane.run(stop.clone()));
            LaneHandle { deliveries, due }
        })
        .collect();
    (handles, tasks)
}

impl Consumer {
    fn name(&self) -> &str {
        &self.common.shared.name
    }

    /// Subscribes, dispatches, and subscribes anew, until the host stops.
    async fn supervise(&mut self, stop: &CancellationToken) {
        let mut quiet = false;
        loop {
            if self.wait_until_able(stop).await.is_none() {
                return;
            }
            let Some(subscription) = self.subscribe(quiet, stop).await else { return };
            self.readiness.up();
            let ended = self.dispatch(subscription, stop).await;
            quiet = matches!(ended, Stop::Quiet);
            match ended {
                Stop::Shutdown => return,
                Stop::Ended(error) => {
                    metrics::broker_failed();
                    self.readiness.waiting(&error);
                    tracing::warn!(consumer = self.name(), "{error}; subscribing again");
                    // A broker that ends subscriptions at once must not be asked in a tight loop.
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Stop::Quiet => self.close_link().await,
                Stop::Paused => {
                    self.readiness.waiting("paused while a server is away; its deliveries are back in the queue");
                    self.close_link().await;
                }
                Stop::Pressure => {
                    self.readiness.waiting("too much is parked or unpublished; its deliveries are back in the queue");
                    self.close_link().await;
                }
            }
        }
    }

    /// Subscribes; tries until it works. `quiet`: anew, and nobody needs to hear of it.
    async fn subscribe(&self, quiet: bool, stop: &CancellationToken) -> Option<Subscription> {
        let what = format!("queue {:?}", self.spec.queue);
        let (broker, spec) = (self.broker.clone(), self.spec.clone());
        // A queue that was there until now is not declared anew, unless it turns out to be gone.
        let mut instead = quiet.then_some(Declare::None);
        let subscribe = move || {
            let declare = instead.take().unwrap_or(spec.declare);
            let (broker, spec) = (broker.clone(), QueueSpec { declare, ..spec.clone() });
            async move { broker.subscribe(&spec).await.map_err(|error| error.advised()) }
        };
        let subscription = retry_forever(&what, &self.readiness, stop, subscribe).boxed().await?;
        if quiet {
            tracing::debug!(consumer = self.name(), queue = %self.spec.queue, "nothing came for a while: subscribed anew");
        } else {
            tracing::info!(consumer = self.name(), queue = %self.spec.queue, "consuming");
        }
        Some(subscription)
    }

    /// Waits while infrastructure is away or too much is parked.
    async fn wait_until_able(&self, stop: &CancellationToken) -> Option<()> {
        let mut pressure = self.common.pressure.clone();
        let able = async {
            self.common.gate.opened().await;
            // The sender lives as long as the upkeep task, which lives as long as we do.
            let _ = pressure.wait_for(|pressed| !pressed).await;
        };
        stop.run_until_cancelled(able).await
    }

    /// Hands deliveries to lanes until something ends it.
    async fn dispatch(&mut self, subscription: Subscription, stop: &CancellationToken) -> Stop {
        let Subscription { mut deliveries, settler } = subscription;
        let link = Link::new(settler);
        self.link = Some(link.clone());
        let common = self.common.clone();
        let mut pressure = common.pressure.clone();
        let paused = async {
            loop {
                let closed = common.gate.shut().await;
                let left = HOLD.saturating_sub(closed.since.elapsed());
                if tokio::time::timeout(left, common.gate.opened()).await.is_err() {
                    return;
                }
            }
        };
        tokio::pin!(paused);
        let pressed = async {
            if pressure.wait_for(|pressed| *pressed).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::pin!(pressed);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Stop::Shutdown,
                received = deliveries.recv() => match received {
                    Some(Ok(delivery)) => self.hand_over(delivery, &link),
                    Some(Err(BrokerError::Quiet { .. })) => return Stop::Quiet,
                    Some(Err(error)) => {
                        link.ended();
                        return Stop::Ended(error);
                    }
                    None => {
                        link.ended();
                        let reason = "the connection was lost".to_owned();
                        return Stop::Ended(BrokerError::Ended { queue: self.spec.queue.clone(), reason });
                    }
                },
                () = &mut paused => return Stop::Paused,
                () = &mut pressed => return Stop::Pressure,
            }
        }
    }

    fn hand_over(&self, delivery: Delivery, link: &Arc<Link>) {
        self.common.shared.metrics.received(1);
        let member = Member::identify(delivery, link, &self.common.shared.rules);
        let count = u16::try_from(self.lanes.len()).unwrap_or(u16::MAX);
        let lane = usize::from(lane_of(member.carried.slot, count));
        // A lane ends only when the host stops; its deliveries go back to the queue then.
        let _ = self.lanes[lane].deliveries.send(member);
    }

    async fn close_link(&mut self) {
        if let Some(link) = self.link.take() {
            link.close().await;
        }
    }

    /// Gives back what was taken and not finished, and what was delivered and not settled.
    async fn end(&mut self, shared: &Shared) {
        let (ledger, name, host) = (&shared.ledger, &shared.name, shared.incarnation);
        let unfinished = self.common.taken.take_all();
        let give_back = async {
            for &run in &unfinished {
                ledger.give_back(name, host, run, Duration::ZERO).await?;
            }
            ledger.end_leases(name, host).await
        };
        match tokio::time::timeout(GIVE_BACK, give_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if !unfinished.is_empty() => {
                tracing::warn!(consumer = %name, "could not give parked messages back: {error}; they are rescued later");
            }
            Err(_) if !unfinished.is_empty() => {
                tracing::warn!(consumer = %name, "could not give parked messages back in time; they are rescued later");
            }
            // Leases end by themselves.
            Ok(Err(_)) | Err(_) => {}
        }
        self.close_link().await;
        tracing::info!(consumer = %name, "stopped");
    }
}

/// Waits for infrastructure to come back whenever it has gone away.
async fn heal(common: Arc<Common>, readiness: Component) {
    let shared = &common.shared;
    readiness.up();
    let mut opened: Option<Instant> = None;
    let mut pause = PROBE_EVERY.0;
    loop {
        let closed = common.gate.shut().await;
        let (kind, waited_for) = match &closed.fault {
            Fault::Database(_) => ("database", "the database"),
            Fault::Lock(_) => ("lock", "the lock server"),
        };
        tracing::warn!(consumer = %shared.name, "pausing: {}", closed.fault);
        readiness.waiting(&closed.fault);
        shared.metrics.paused(kind);
        if opened.is_some_and(|opened| opened.elapsed() < RELAPSE) {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PROBE_EVERY.1);
        } else {
            pause = PROBE_EVERY.0;
        }
        while !answers(shared, &closed.fault).await {
            tokio::time::sleep(PROBE_EVERY.0).await;
        }
        shared.metrics.resumed(kind);
        tracing::info!(consumer = %shared.name, paused = ?closed.since.elapsed(), "{waited_for} is back");
        readiness.up();
        opened = Some(Instant::now());
        common.gate.open();
    }
}

/// Whether what failed works again: not only answers, but does what an attempt needs of it.
async fn answers(shared: &Shared, fault: &Fault) -> bool {
    match fault {
        Fault::Database(_) => shared.ledger.probe().await.is_ok(),
        Fault::Lock(_) => lock::probe(shared.locking.lock.as_ref(), shared.locking.leases.lease()).await.is_ok(),
    }
}

/// Tells lanes when rows parked by somebody else, or before this host started, are due.
async fn clock(common: Arc<Common>, lanes: Vec<watch::Sender<Option<Instant>>>) {
    let shared = &common.shared;
    let count = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
    let mut ticks = tokio::time::interval(CLOCK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        common.gate.opened().await;
        let slots = match shared.ledger.due_slots(&shared.name, CLOCK).await {
            Ok(slots) => slots,
            // Others keep it busy; it is not away.
            Err(error) if error.kind == DbErrorKind::Contention => continue,
            Err(error) => {
                common.gate.close(Fault::Database(error));
                continue;
            }
        };
        let now = Instant::now();
        let mut soonest: Vec<Option<Instant>> = vec![None; lanes.len()];
        for (slot, wait) in slots {
            let lane = &mut soonest[usize::from(lane_of(slot, count))];
            *lane = Some(lane.map_or(now + wait, |at| at.min(now + wait)));
        }
        for (lane, at) in lanes.iter().zip(soonest).filter(|(_, at)| at.is_some()) {
            lane.send_replace(at);
        }
    }
}
