//! A lane: one sequential worker with one transaction at a time. It alternates between its two sources, the broker's
//! deliveries and SQL's parked rows, and settles what its pipeline has committed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, Health, Mood};
use crate::ledger::database::DbError;
use crate::ledger::parked::{ParkedRow, RunToken, Take, Which};
use crate::pipeline::member::{Link, Member, Origin};
use crate::pipeline::shared::Shared;
use crate::pipeline::{Fault, Interrupted, Pipeline, Report};
use crate::retry::RetryMode;

/// How soon a delivery whose lock somebody else holds is looked at again; see
/// [`Locking::tries`](crate::pipeline::shared::Locking::tries).
pub const LOCK_WAIT: Duration = Duration::from_millis(50);

/// What is due later than this is left to the clock, and so is what is parked while this many alarms are set.
const FAR: Duration = Duration::from_secs(600);
const MAX_ALARMS: usize = 10_000;

/// How often a lane that blocking retry holds up looks whether it still is.
const BLOCKED_LOOK: Duration = Duration::from_secs(1);

/// Back-off between probes of a handler that keeps failing.
const PROBE_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What the lanes of a consumer have in common, besides [`Shared`].
pub(super) struct Common {
    pub(super) shared: Arc<Shared>,
    pub(super) gate: Gate,
    pub(super) health: Health,
    /// Read by lanes that run parked rows, written by the one that runs a suspect: it must be alone in the host, so
    /// that one crash is never counted against two messages. One for all consumers.
    pub(super) suspects: Arc<RwLock<()>>,
    /// Members in one transaction.
    pub(super) batch: usize,
    /// Deliveries are not begun while too much is parked or unpublished.
    pub(super) pressure: watch::Receiver<bool>,
}

/// One lane.
pub(super) struct Lane {
    common: Arc<Common>,
    pipeline: Pipeline,
    slots: RangeInclusive<u16>,
    deliveries: mpsc::UnboundedReceiver<Member>,
    due: watch::Receiver<Option<Instant>>,
    /// Deliveries at the front of the lane.
    buffered: VecDeque<Member>,
    /// Deliveries whose lock somebody else held, and when to look again.
    waiting: Vec<(Instant, Member)>,
    /// Parked members that an infrastructure failure interrupted; still ours.
    held: Vec<Member>,
    /// The run token of what this lane took last, to give back what it will not finish.
    taken: Arc<Mutex<Option<RunToken>>>,
    /// When something parked is, or may be, due: what this lane parked itself, and what the clock says.
    alarms: BinaryHeap<Reverse<Instant>>,
    /// Blocking retry: something that came earlier may be pending.
    blocked: bool,
    parked_turn: bool,
    probe_delay: Duration,
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
        taken: Arc<Mutex<Option<RunToken>>>,
    ) -> Self {
        Self {
            pipeline: Pipeline::new(common.shared.clone()),
            blocked: common.shared.retry.mode == RetryMode::Blocking,
            common,
            slots,
            deliveries,
            due,
            buffered: VecDeque::new(),
            waiting: Vec::new(),
            held: Vec::new(),
            taken,
            alarms: BinaryHeap::from([Reverse(Instant::now())]),
            parked_turn: true,
            probe_delay: PROBE_EVERY.0,
        }
    }

    /// Runs until `stop`; a batch that has begun is finished first.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            if self.common.gate.closed().is_some() {
                tokio::select! { () = self.common.gate.opened() => {}, () = stop.cancelled() => break }
            }
            self.fill();
            self.parked_turn = !self.parked_turn;
            let turn = if !self.held.is_empty() {
                self.run_held().await
            } else if self.is_due() && (self.parked_turn || !self.may_deliver()) {
                self.run_parked().await
            } else if self.may_deliver() {
                self.run_deliveries().await
            } else {
                self.wait(&stop).await;
                Ok(())
            };
            if let Err(error) = turn {
                self.pipeline.drop_connection();
                self.common.gate.close(Fault::Database(error));
            }
        }
    }

    /// Takes what is buffered already, without waiting for more: a quiet queue has batches of one.
    fn fill(&mut self) {
        let now = Instant::now();
        let ripe = self.waiting.iter().position(|(at, _)| *at <= now);
        if let Some(ripe) = ripe {
            self.buffered.push_front(self.waiting.swap_remove(ripe).1);
        }
        while self.buffered.len() < self.common.batch {
            match self.deliveries.try_recv() {
                Ok(member) => self.buffered.push_back(member),
                Err(_) => break,
            }
        }
        self.buffered.retain(|member| !member.is_stale());
        if let Ok(true) = self.due.has_changed() {
            let due = *self.due.borrow_and_update();
            self.alarms.extend(due.map(Reverse));
        }
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
        !self.buffered.is_empty() && !self.blocked && !*self.common.pressure.borrow()
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
        let mut pressure = self.common.pressure.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            changed = self.due.changed() => match changed {
                Ok(()) => self.due.mark_changed(),
                Err(_) => stop.cancelled().await,
            },
            // More deliveries are no use to a lane that may not run those it has.
            Some(member) = self.deliveries.recv(), if room => self.buffered.push_back(member),
            () = timer => {}
            _ = pressure.changed() => {}
        }
    }

    /// A turn of deliveries.
    async fn run_deliveries(&mut self) -> Result<(), DbError> {
        let probing = self.common.health.probing();
        let size = if probing { 1 } else { self.common.batch };
        let members: Vec<Member> = self.buffered.drain(..size.min(self.buffered.len())).collect();
        self.process(members, probing).await;
        Ok(())
    }

    /// A turn of parked rows: takes what is due and runs it.
    async fn run_parked(&mut self) -> Result<(), DbError> {
        let now = Instant::now();
        while self.alarms.peek().is_some_and(|Reverse(at)| *at <= now) {
            self.alarms.pop();
        }
        let common = self.common.clone();
        let in_order = self.common.shared.retry.mode == RetryMode::Blocking;
        if in_order {
            let _alone = quarantine(&common, true).await;
            return self.take_and_run(Which::Oldest).await.map(drop);
        }
        let ran = {
            let _among_others = quarantine(&common, false).await;
            self.take_and_run(Which::Innocent).await?
        };
        if !ran {
            let _alone = quarantine(&common, true).await;
            self.take_and_run(Which::Suspect).await?;
        }
        Ok(())
    }

    async fn take_and_run(&mut self, which: Which) -> Result<bool, DbError> {
        let probing = self.common.health.probing();
        let shared = self.common.shared.clone();
        let limit = if probing { 1 } else { self.common.batch };
        let take =
            Take { consumer: &shared.name, slots: self.slots.clone(), limit, incarnation: shared.incarnation, which };
        let connection = self.pipeline.lane_connection().await?;
        let (token, rows) = match shared.ledger.take_due(connection, &take).await {
            Ok(taken) => taken,
            // Somebody else was faster; the clock comes round again.
            Err(error) if error.kind == crate::ledger::database::DbErrorKind::Contention => return Ok(false),
            Err(error) => return Err(error),
        };
        if rows.is_empty() {
            if which == Which::Oldest {
                let connection = self.pipeline.lane_connection().await?;
                connection.begin().await?;
                self.blocked = shared.ledger.slots_blocked(connection, &shared.name, self.slots.clone()).await?;
                connection.rollback().await?;
                if self.blocked {
                    // What is in the way may be another host's: nobody tells us when it is done.
                    self.look_within(BLOCKED_LOOK);
                }
            }
            return Ok(false);
        }
        // More may be due. Suspects come singly, whatever the limit: after a crash there can be a whole batch of them,
        // and waiting for the clock between each two would hold them up for a minute.
        if rows.len() == limit || which != Which::Innocent {
            self.alarm(Duration::ZERO);
        }
        self.remember(Some(token));
        self.process(self.members(rows, token), probing).await;
        if self.held.is_empty() {
            self.remember(None);
        }
        Ok(true)
    }

    fn members(&self, rows: Vec<ParkedRow>, token: RunToken) -> Vec<Member> {
        rows.into_iter().map(|row| Member::parked(row, token, &self.common.shared.rules)).collect()
    }

    /// Parked members that were interrupted go first: they are still ours, unless somebody has rescued them.
    async fn run_held(&mut self) -> Result<(), DbError> {
        let members = std::mem::take(&mut self.held);
        let suspect = members.iter().any(|member| member.alone);
        let _guard = quarantine(&self.common.clone(), suspect).await;
        self.process(members, self.common.health.probing()).await;
        if self.held.is_empty() {
            self.remember(None);
        }
        Ok(())
    }

    fn remember(&self, token: Option<RunToken>) {
        *self.taken.lock().unwrap_or_else(|poison| poison.into_inner()) = token;
    }

    /// Runs members, settles what has committed, and keeps the rest.
    async fn process(&mut self, members: Vec<Member>, probing: bool) {
        let common = self.common.clone();
        let _probe = match probing {
            true => Some(common.health.probe.lock().await),
            false => None,
        };
        let in_flight = common.shared.metrics.in_flight(members.len());
        match self.pipeline.run(members, probing).await {
            Ok(report) => self.settle(report),
            Err(interrupted) => {
                let Interrupted { members, report, fault } = *interrupted;
                self.settle(report);
                self.put_back(members);
                common.gate.close(fault);
            }
        }
        drop(in_flight);
        if probing && common.health.probing() {
            tokio::time::sleep(self.probe_delay).await;
            self.probe_delay = (self.probe_delay * 2).min(PROBE_EVERY.1);
        } else {
            self.probe_delay = PROBE_EVERY.0;
        }
    }

    /// The only place where deliveries are acknowledged.
    fn settle(&mut self, report: Report) {
        let mut tags: HashMap<*const Link, (Arc<Link>, Vec<u64>)> = HashMap::new();
        for (link, tag) in report.acknowledge {
            tags.entry(Arc::as_ptr(&link)).or_insert_with(|| (link, Vec::new())).1.push(tag);
        }
        for (link, tags) in tags.into_values() {
            link.acknowledge(tags);
        }
        for delay in report.delays {
            self.alarm(delay);
            self.blocked = self.common.shared.retry.mode == RetryMode::Blocking;
        }
        if self.blocked {
            // Whatever has just been settled may have been the last that was in the way.
            self.look_within(Duration::ZERO);
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

async fn quarantine(common: &Common, alone: bool) -> Quarantine {
    let suspects = common.suspects.clone();
    match alone {
        true => Quarantine::Alone { _guard: suspects.write_owned().await },
        false => Quarantine::Shared { _guard: suspects.read_owned().await },
    }
}
