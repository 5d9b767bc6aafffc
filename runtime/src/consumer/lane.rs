//! A lane: one sequential worker with one transaction at a time. It alternates between its two sources, the broker's
//! deliveries and SQL's parked rows, and settles what its pipeline has committed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::gate::Gate;
use super::health::{Health, Mood, Probe};
use super::taken::Taken;
use crate::ledger::database::{DbError, DbErrorKind};
use crate::ledger::parked::{ParkedRow, RunToken, Take, Which};
use crate::pipeline::member::{Link, Member, Origin};
use crate::pipeline::shared::Shared;
use crate::pipeline::{Fault, Interrupted, Pipeline, Report};
use crate::sabotage::{self, Breach, Step};

/// How soon a delivery whose lock somebody else holds is looked at again; see
/// [`Locking::tries`](crate::pipeline::shared::Locking::tries).
pub const LOCK_WAIT: Duration = Duration::from_millis(50);

/// What is due later than this is left to the clock, and so is what is parked while this many alarms are set.
const FAR: Duration = Duration::from_secs(600);
const MAX_ALARMS: usize = 10_000;

/// How often a lane that blocking retry holds up looks whether it still is.
const BLOCKED_LOOK: Duration = Duration::from_secs(1);

/// How often a lane whose parked rows are never all done looks for suspects among them all the same.
const SUSPECT_LOOK: Duration = Duration::from_secs(1);

/// How long a lane waits for a suspect to end before it looks whether there are deliveries to run meanwhile.
const QUARANTINE_WAIT: Duration = Duration::from_millis(100);

/// What the lanes of a consumer have in common, besides [`Shared`].
pub(super) struct Common {
    pub(super) shared: Arc<Shared>,
    pub(super) gate: Gate,
    pub(super) health: Health,
    /// Read by lanes that take and run parked rows, written by the one that takes and runs a suspect: it must be alone
    /// in the host, so that its next crash is not counted against others too. One for all consumers.
    pub(super) suspects: Arc<RwLock<()>>,
    /// Members in one transaction.
    pub(super) batch: usize,
    /// True while too much is parked or unpublished for deliveries to begin.
    pub(super) pressure: watch::Receiver<bool>,
    /// The runs of parked rows that lanes are at.
    pub(super) taken: Taken,
}

impl Common {
    fn keeps_order(&self) -> bool {
        self.shared.retry.keeps_order()
    }
}

/// One lane.
pub(super) struct Lane {
    common: Arc<Common>,
    pipeline: Pipeline,
    slots: RangeInclusive<u16>,
    deliveries: mpsc::UnboundedReceiver<Member>,
    due: watch::Receiver<Option<Instant>>,
    /// Its own: a copy has seen no more than what it is copied from, and would wake at once, always.
    pressure: watch::Receiver<bool>,
    /// Deliveries at the front of the lane.
    buffered: VecDeque<Member>,
    /// Deliveries whose lock somebody else held, and when to look again.
    waiting: Vec<(Instant, Member)>,
    /// Parked members that an infrastructure failure interrupted; still ours.
    held: Vec<Member>,
    /// The run that they belong to.
    run: Option<RunToken>,
    /// When something parked is, or may be, due: what this lane parked itself, and what the clock says.
    alarms: BinaryHeap<Reverse<Instant>>,
    /// Blocking retry: something that came earlier may be pending.
    blocked: bool,
    /// Blocking retry: the subscription of the last delivery.
    subscription: Weak<Link>,
    parked_turn: bool,
    looked_for_suspects: Instant,
}

/// How much was due when a lane looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Nothing,
    /// What was due has been run.
    All,
    /// As much as may share a transaction has been run; more may be due.
    Part,
}

/// What keeps suspects apart from everything else that is parked.
enum Quarantine {
    Shared { _guard: OwnedRwLockReadGuard<()> },
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

impl Lane {
    pub(super) fn new(
        common: Arc<Common>,
        slots: RangeInclusive<u16>,
        deliveries: mpsc::UnboundedReceiver<Member>,
        due: watch::Receiver<Option<Instant>>,
    ) -> Self {
        Self {
            pipeline: Pipeline::new(common.shared.clone()),
            blocked: common.keeps_order(),
            subscription: Weak::new(),
            pressure: common.pressure.clone(),
            common,
            slots,
            deliveries,
            due,
            buffered: VecDeque::new(),
            waiting: Vec::new(),
            held: Vec::new(),
            run: None,
            alarms: BinaryHeap::from([Reverse(Instant::now())]),
            parked_turn: true,
            looked_for_suspects: Instant::now(),
        }
    }

    /// Runs until `stop`; a batch that has begun is finished first.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while let Some(probe) = stop.run_until_cancelled(able(&self.common)).await {
            self.fill();
            self.parked_turn = !self.parked_turn;
            let probing = probe.is_some();
            let turn = if !self.held.is_empty() {
                self.run_held(probing).await
            } else if self.is_due() && (self.parked_turn || !self.may_deliver()) {
                self.run_parked(probing).await
            } else if self.may_deliver() {
                self.run_deliveries(probing).await;
                Ok(())
            } else {
                drop(probe);
                self.wait(&stop).await;
                Ok(())
            };
            if let Err(error) = turn {
                self.pipeline.drop_connection();
                // The alarm that brought it here is gone, and what it was for may still be there.
                self.look_within(BLOCKED_LOOK);
                self.common.gate.close(Fault::Database(error));
            }
        }
    }

    /// Takes what is buffered already, without waiting for more: a quiet queue has batches of one.
    fn fill(&mut self) {
        let now = Instant::now();
        // All at once: those whose locks were somebody else's for the same moment share the next transaction again.
        for (_, member) in self.waiting.extract_if(.., |(at, _)| *at <= now) {
            self.buffered.push_front(member);
        }
        while self.buffered.len() < self.common.batch {
            match self.deliveries.try_recv() {
                Ok(member) => self.receive(member),
                Err(_) => break,
            }
        }
        self.buffered.retain(|member| !member.is_stale());
        if let Ok(true) = self.due.has_changed() {
            let due = *self.due.borrow_and_update();
            self.alarms.extend(due.map(Reverse));
        }
    }

    /// Puts a delivery behind the others.
    fn receive(&mut self, member: Member) {
        if self.common.keeps_order()
            && let Origin::Delivery { link, .. } = &member.origin
            && self.subscription.as_ptr() != Arc::as_ptr(link)
        {
            self.subscription = Arc::downgrade(link);
            // Another host may have had the queue until now, and have parked what came before this.
            self.blocked = true;
            self.look_within(Duration::ZERO);
        }
        self.buffered.push_back(member);
    }

    fn is_due(&self) -> bool {
        self.alarms.peek().is_some_and(|Reverse(at)| *at <= Instant::now())
    }

    /// Sets an alarm; past a limit the clock will do.
    fn alarm(&mut self, delay: Duration) {
        if self.alarms.len() < MAX_ALARMS && delay < FAR {
            self.alarms.push(Reverse(Instant::now() + delay));
        }
    }

    /// Sets an alarm unless one goes off as soon.
    fn look_within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        if self.alarms.peek().is_none_or(|Reverse(next)| *next > at) {
            self.alarms.push(Reverse(at));
        }
    }

    fn may_deliver(&self) -> bool {
        !self.buffered.is_empty() && !self.blocked && !*self.pressure.borrow()
    }

    /// Waits for something to do.
    async fn wait(&mut self, stop: &CancellationToken) {
        let ripe = self.waiting.iter().map(|(at, _)| *at).min();
        let due = self.alarms.peek().map(|Reverse(at)| *at);
        let until = [due, ripe].into_iter().flatten().min();
        let timer = async {
            match until {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let room = self.buffered.len() < self.common.batch;
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            changed = self.due.changed() => match changed {
                Ok(()) => self.due.mark_changed(),
                Err(_) => stop.cancelled().await,
            },
            // More deliveries are no use to a lane that may not run those it has.
            Some(member) = self.deliveries.recv(), if room => self.receive(member),
            () = timer => {}
            changed = self.pressure.changed() => if changed.is_err() {
                stop.cancelled().await;
            },
        }
    }

    /// A turn of deliveries.
    async fn run_deliveries(&mut self, probing: bool) {
        let size = self.size(probing).min(self.buffered.len());
        let members: Vec<Member> = self.buffered.drain(..size).collect();
        sabotage::at(Step::Received);
        if sabotage::broken(Breach::AcknowledgeFirst) {
            self.settle(Report { acknowledge: members.iter().filter_map(Member::tag).collect(), ..Report::default() });
        }
        self.process(members, probing).await;
    }

    /// How many members a transaction may have.
    fn size(&self, probing: bool) -> usize {
        if probing { 1 } else { self.common.batch }
    }

    /// A turn of parked rows: takes what is due and runs it.
    async fn run_parked(&mut self, probing: bool) -> Result<(), DbError> {
        let now = Instant::now();
        while self.alarms.peek().is_some_and(|Reverse(at)| *at <= now) {
            self.alarms.pop();
        }
        let Some(among_others) = among_others(&self.common).await else {
            self.look_within(QUARANTINE_WAIT);
            if self.may_deliver() {
                self.run_deliveries(probing).await;
            }
            return Ok(());
        };
        let mut due = self.run_due(Which::Innocent, probing).await?;
        drop(among_others);
        if !self.held.is_empty() {
            // They go first.
            return Ok(());
        }
        if due != Due::Part || self.looked_for_suspects.elapsed() >= SUSPECT_LOOK {
            self.looked_for_suspects = Instant::now();
            due = due.max(self.run_suspect(probing).await?);
        }
        if self.common.keeps_order() {
            self.stand_in_line(due).await?;
        }
        Ok(())
    }

    /// Takes a suspect and runs it, with nothing else that is parked beside it.
    async fn run_suspect(&mut self, probing: bool) -> Result<Due, DbError> {
        let common = self.common.clone();
        let suspect = self.take(&common, Which::Suspect, 1);
        let is_due = common.shared.ledger.is_due(self.pipeline.lane_connection().await?, &suspect).await;
        if self.unless_busy(is_due)? != Some(true) {
            return Ok(Due::Nothing);
        }
        let _alone = common.suspects.clone().write_owned().await;
        if !common.taken.is_empty() {
            // Some lane holds rows that an infrastructure failure interrupted: they would share the crash.
            self.look_within(QUARANTINE_WAIT);
            return Ok(Due::Nothing);
        }
        self.run_due(Which::Suspect, probing).await
    }

    /// Blocking retry: if nothing that came earlier is left, deliveries may go on.
    async fn stand_in_line(&mut self, due: Due) -> Result<(), DbError> {
        if due == Due::Nothing {
            let common = self.common.clone();
            let connection = self.pipeline.lane_connection().await?;
            connection.begin().await?;
            let slots = self.slots.clone();
            let blocked = common.shared.ledger.slots_blocked(connection, &common.shared.name, slots).await?;
            connection.rollback().await?;
            self.blocked = blocked;
        }
        if self.blocked {
            // It may be what another host has parked: nobody tells this lane when that is out of its way.
            self.look_within(BLOCKED_LOOK);
        }
        Ok(())
    }

    /// Takes due rows and runs them.
    async fn run_due(&mut self, which: Which, probing: bool) -> Result<Due, DbError> {
        let common = self.common.clone();
        let (shared, limit) = (&common.shared, self.size(probing));
        let take = self.take(&common, which, limit);
        let connection = self.pipeline.lane_connection().await?;
        let taken = shared.ledger.take_due(connection, &take).await;
        let Some((run, rows)) = self.unless_busy(taken)? else { return Ok(Due::Nothing) };
        if rows.is_empty() {
            return Ok(Due::Nothing);
        }
        // More may be due. Suspects come singly, whatever the limit: after a crash there can be a whole batch of them,
        // and waiting for the clock between each two would hold them up for a minute. In order, what comes next was in
        // nobody's way yet.
        let is_part = rows.len() == limit || which == Which::Suspect || common.keeps_order();
        let due = if is_part { Due::Part } else { Due::All };
        if due == Due::Part {
            self.alarm(Duration::ZERO);
        }
        sabotage::at(Step::Taken);
        common.taken.hold(run);
        self.run = Some(run);
        let members = self.members(rows, run);
        self.process(members, probing).await;
        self.let_go();
        Ok(due)
    }

    /// None if somebody else was faster.
    fn unless_busy<T>(&mut self, done: Result<T, DbError>) -> Result<Option<T>, DbError> {
        match done {
            Err(error) if error.kind == DbErrorKind::Contention => {
                self.look_within(BLOCKED_LOOK);
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    fn take<'a>(&self, common: &'a Common, which: Which, limit: usize) -> Take<'a> {
        let Shared { name: consumer, incarnation, .. } = &*common.shared;
        let (slots, in_order) = (self.slots.clone(), common.keeps_order());
        Take { consumer, slots, limit, incarnation: *incarnation, which, in_order }
    }

    fn members(&self, rows: Vec<ParkedRow>, token: RunToken) -> Vec<Member> {
        rows.into_iter().map(|row| Member::parked(row, token, &self.common.shared.rules)).collect()
    }

    /// Parked members that were interrupted go first: they are still ours, unless somebody has rescued them.
    async fn run_held(&mut self, probing: bool) -> Result<(), DbError> {
        let members = std::mem::take(&mut self.held);
        let _quarantine = quarantine(&self.common.clone(), &members).await;
        self.process(members, probing).await;
        self.let_go();
        Ok(())
    }

    /// Nothing of the run is left here, unless an infrastructure failure interrupted it.
    fn let_go(&mut self) {
        if self.held.is_empty()
            && let Some(run) = self.run.take()
        {
            self.common.taken.let_go(run);
        }
    }

    /// Runs members, settles what has committed, and keeps the rest.
    async fn process(&mut self, members: Vec<Member>, probing: bool) {
        let common = self.common.clone();
        let _in_flight = common.shared.metrics.in_flight(members.len());
        match self.pipeline.run(members, probing).await {
            Ok(report) => self.settle(report),
            Err(interrupted) => {
                let Interrupted { members, report, fault } = *interrupted;
                // What was returned came before what was interrupted, and goes to the front after it.
                self.put_back(members);
                self.settle(report);
                // Whether the interrupted transaction committed, and what it parked, only SQL knows.
                self.blocked = common.keeps_order();
                common.gate.close(fault);
            }
        }
        if self.blocked {
            // Whatever has just been settled may have been the last that was in the way.
            self.look_within(Duration::ZERO);
        }
    }

    /// The only place where deliveries are acknowledged.
    fn settle(&mut self, report: Report) {
        let mut tags: HashMap<*const Link, (Arc<Link>, Vec<u64>)> = HashMap::new();
        for (link, tag) in report.acknowledge {
            tags.entry(Arc::as_ptr(&link)).or_insert_with(|| (link, Vec::new())).1.push(tag);
        }
        for (link, tags) in tags.into_values() {
            sabotage::at(Step::Acknowledging);
            link.acknowledge(tags);
        }
        for delay in report.delays {
            self.alarm(delay);
            self.blocked = self.common.keeps_order();
        }
        let again = Instant::now() + LOCK_WAIT;
        for member in report.returned.into_iter().rev() {
            if member.lock_tries > 0 {
                self.waiting.push((again, member));
            } else {
                self.buffered.push_front(member);
            }
        }
        match self.common.health.note(report.verdicts) {
            Mood::Worse => tracing::warn!(
                consumer = %self.common.shared.name,
                "nearly every attempt fails: probing with single messages, uncounted, until one succeeds"
            ),
            Mood::Better => tracing::info!(consumer = %self.common.shared.name, "a message succeeded: probing ends"),
            Mood::Same => {}
        }
    }

    fn put_back(&mut self, members: Vec<Member>) {
        for member in members.into_iter().rev() {
            match member.origin {
                Origin::Delivery { .. } => self.buffered.push_front(member),
                Origin::Parked { .. } => self.held.insert(0, member),
            }
        }
    }
}

/// Waits until infrastructure is there, and while nearly every attempt fails, for this lane's turn to probe.
async fn able(common: &Common) -> Option<Probe> {
    loop {
        common.gate.opened().await;
        let probe = common.health.probe().await;
        if common.gate.closed().is_none() {
            return probe;
        }
    }
}

/// The right to run parked rows while others do. None while a suspect runs, or is about to.
async fn among_others(common: &Common) -> Option<OwnedRwLockReadGuard<()>> {
    tokio::time::timeout(QUARANTINE_WAIT, common.suspects.clone().read_owned()).await.ok()
}

/// The right to run these rows: alone, if there is a suspect among them.
async fn quarantine(common: &Common, members: &[Member]) -> Quarantine {
    let suspects = common.suspects.clone();
    match members.iter().any(Member::is_suspect) {
        true => Quarantine::Alone { _guard: suspects.write_owned().await },
        false => Quarantine::Shared { _guard: suspects.read_owned().await },
    }
}
