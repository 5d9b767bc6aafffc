//! What the lanes of a consumer share.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::member::{Member, Origin, Plan, Rules};
use super::recent::Recent;
use super::records::{DeadLetterTarget, Scene};
use crate::guest::grants::ConsumerContext;
use crate::guest::module::Module;
use crate::guest::swap::ModuleSlot;
use crate::guest::{Call, Death, Failure, Phase as CallPhase};
use crate::ledger::Ledger;
use crate::ledger::parked::{Incarnation, Phase};
use crate::lock::lease::{Guard, Leases};
use crate::lock::{Acquired, Lock, LockError, key};
use crate::message::MessageId;
use crate::outcome::{Disposition, Outcome, Reason, Situation};
use crate::relay::Relay;
use crate::retry::RetryPolicy;
use crate::sabotage::{self, Breach};
use crate::telemetry::metrics::{Compensation, ConsumerMetrics};

/// How a consumer locks.
pub struct Locking {
    /// The lock server.
    pub lock: Arc<dyn Lock>,
    /// Renews what is held.
    pub leases: Arc<Leases>,
    /// Stop consuming while the lock server is away, instead of going on on SQL alone.
    pub pause_without: bool,
    /// How often a lock held by somebody else is asked for again, each time the lane comes around, before its message
    /// is deferred.
    pub tries: u32,
}

/// What the lanes of a consumer share.
pub struct Shared {
    /// The consumer's name.
    pub name: String,
    /// Where its messages are remembered.
    pub ledger: Arc<Ledger>,
    /// What it has seen completed lately.
    pub recent: Recent,
    /// How message ids are locked.
    pub locking: Locking,
    /// Its module, newest version.
    pub modules: Arc<ModuleSlot>,
    /// What its module may do.
    pub context: Arc<ConsumerContext>,
    /// How identity is read out of a message.
    pub rules: Rules,
    /// When it tries again.
    pub retry: RetryPolicy,
    /// Wall-clock limit of an attempt.
    pub time_limit: Duration,
    /// No member starts later than this after its batch began.
    pub batch_max_time: Duration,
    /// Handlers may go on with the answers that their statements always have, before the database has given them.
    pub run_ahead: bool,
    /// Where copies of dead letters go.
    pub dead_letter: Option<DeadLetterTarget>,
    /// How long outbox rows are left to this host's relay.
    pub outbox_grace: Duration,
    /// Publishes what commits.
    pub relay: Relay,
    /// This host.
    pub incarnation: Incarnation,
    /// What it counts.
    pub metrics: ConsumerMetrics,
}

/// The members of a batch once their ids are locked.
pub(super) type Locked = (Vec<Member>, Option<Guard>);

impl Shared {
    /// Locks the ids of a batch in one trip. Members whose lock somebody else holds go to `waiting` a few times, and
    /// are deferred then. Without a lock server SQL alone decides, or the consumer pauses.
    pub(super) async fn lock(
        &self,
        members: Vec<Member>,
        waiting: &mut Vec<Member>,
    ) -> Result<Locked, (Vec<Member>, LockError)> {
        let mut wanted: Vec<(usize, String)> = Vec::with_capacity(members.len());
        let mut seen = std::collections::HashSet::with_capacity(members.len());
        for (index, member) in members.iter().enumerate() {
            if let Some(id) = member.carried.id.as_ref().filter(|_| self.needs_lock(member))
                && seen.insert(id)
            {
                wanted.push((index, key(&self.name, id)));
            }
        }
        if wanted.is_empty() {
            return Ok((members, None));
        }
        let keys: Vec<String> = wanted.iter().map(|(_, key)| key.clone()).collect();
        let answers = match self.locking.lock.acquire(&keys, self.locking.leases.lease()).await {
            Ok(answers) => answers,
            Err(error) if self.locking.pause_without => return Err((members, error)),
            Err(_) => return Ok((members, None)),
        };
        let mut held = Vec::with_capacity(answers.len());
        let mut refused = std::collections::HashSet::new();
        for ((index, _), answer) in wanted.iter().zip(answers) {
            match answer {
                Acquired::Yes(lock) => held.push(lock),
                Acquired::No { .. } => refused.extend(members[*index].carried.id.clone()),
            }
        }
        let guard = (!held.is_empty()).then(|| self.locking.leases.hold(held));
        // Who must keep the order neither waits aside nor is deferred: the claim waits for the holder's transaction.
        if self.retry.keeps_order() {
            refused.clear();
        }
        let mut ready = Vec::with_capacity(members.len());
        for mut member in members {
            if self.needs_lock(&member) && member.carried.id.as_ref().is_some_and(|id| refused.contains(id)) {
                member.lock_tries += 1;
                if member.lock_tries < self.locking.tries && matches!(member.origin, Origin::Delivery { .. }) {
                    waiting.push(member);
                    continue;
                }
                let acknowledged = sabotage::broken(Breach::AcknowledgeHeld);
                member.plan = Plan::Record(if acknowledged { Outcome::Duplicate } else { Outcome::Held });
            }
            ready.push(member);
        }
        Ok((ready, guard))
    }

    /// The id that a member will claim.
    pub(super) fn claimed_id(member: &Member) -> Option<&MessageId> {
        member.carried.id.as_ref().filter(|_| member.claims())
    }

    /// True for a delivery whose message this process has seen committed under the same id and with the same body.
    pub(super) fn has_just_completed(&self, member: &Member) -> bool {
        Self::claimed_id(member).is_some_and(|id| self.recent.knows(id, member.carried.digest))
    }

    /// Rows that the inbox points to are locked in SQL, and what is parked first runs later. A lock that has stood in a
    /// stored delivery's way for two leases is ignored: SQL decides.
    fn needs_lock(&self, member: &Member) -> bool {
        // A redelivered message is parked without a look at its lock, so that nobody can take it for handled.
        if member.plan == Plan::ParkFirst && sabotage::broken(Breach::AcknowledgeHeld) {
            return true;
        }
        if member.plan != Plan::Run || !member.claims() {
            return false;
        }
        match &member.origin {
            Origin::Delivery { .. } => true,
            Origin::Parked { row, .. } => age(row.created_at) < self.locking.leases.lease() * 2,
        }
    }

    /// The call that an attempt makes; none for a message without an id.
    pub(super) fn call(&self, member: &Member) -> Option<Call> {
        let (generation, compensations) = match &member.origin {
            Origin::Parked { row, .. } => (row.generation, row.compensations),
            Origin::Delivery { .. } => (0, 0),
        };
        let phase = match member.origin.owned_row() {
            Some((row, _)) if row.phase == Phase::Compensate => CallPhase::Compensate(Death {
                reason: row.reason.clone().unwrap_or_default(),
                attempts: row.handler_attempts,
                failure: row.failure(),
            }),
            _ => CallPhase::Handle,
        };
        Some(Call {
            phase,
            id: member.carried.id.clone()?,
            message: member.carried.message.clone(),
            attempt: member.attempts() + 1,
            max_attempts: self.retry.max_attempts,
            generation,
            compensations,
            time_limit: self.time_limit,
        })
    }

    pub(super) fn situation(&self, member: &Member, can_compensate: bool, probing: bool) -> Situation {
        Situation {
            compensating: member.plan == Plan::Compensate,
            can_compensate,
            attempts: member.attempts(),
            contentions: member.contentions,
            lone_faults: member.lone_faults,
            probing,
            random: rand::random(),
        }
    }

    pub(super) fn scene(&self, module: &Module) -> Scene<'_> {
        Scene {
            consumer: &self.name,
            module: module.inbox_digest(),
            dead_letter: self.dead_letter.as_ref(),
            grace: self.outbox_grace,
        }
    }

    /// Counts and logs what has been committed of a member.
    pub(super) fn tell(&self, member: &Member, outcome: &Outcome, disposition: &Disposition, module: &Module) {
        if is_first_after_redrive(member, outcome, disposition) {
            self.metrics.redriven(1);
        }
        match outcome {
            Outcome::Completed => {
                self.metrics.completed(1);
                self.tell_done(member, "handled", module);
            }
            Outcome::Duplicate => self.metrics.duplicates(1),
            Outcome::Compensated => {
                self.metrics.compensated(Compensation::Done);
                self.tell_done(member, "compensated", module);
            }
            Outcome::Failed(failure) => {
                self.metrics.attempt_failed(kind_of(failure));
                self.tell_failure(member, failure, disposition, module);
            }
            _ => {}
        }
        match disposition {
            Disposition::Retry { .. } | Disposition::Compensate(..) => self.metrics.parked(1),
            Disposition::Defer(_) => self.metrics.deferred(1),
            Disposition::Dead(reason, _) => self.metrics.dead(reason.as_str()),
            Disposition::DeadCompensated => {
                let reason = member.origin.owned_row().and_then(|(row, _)| row.reason.as_deref());
                if let Some(known) = Reason::ALL.into_iter().find(|known| Some(known.as_str()) == reason) {
                    self.metrics.dead(known.as_str());
                }
            }
            Disposition::DeadApart(reason, error) => {
                self.metrics.dead(reason.as_str());
                tracing::warn!(consumer = %self.name, message_id = member.name(), "dead letter ({reason}): {error}");
            }
            _ => {}
        }
        if matches!(disposition, Disposition::Dead(Reason::CompensationFailed, _)) {
            self.metrics.compensated(Compensation::Failed);
        }
    }

    /// An attempt that took effect.
    fn tell_done(&self, member: &Member, what: &str, module: &Module) {
        let attempt = member.attempts() + 1;
        tracing::debug!(
            consumer = %self.name, message_id = member.name(), attempt, module = %module.short_digest(), "{what}"
        );
    }

    /// A failed attempt in words for operators.
    fn tell_failure(&self, member: &Member, failure: &Failure, disposition: &Disposition, module: &Module) {
        let fate = match disposition {
            Disposition::Retry { delay, .. } => {
                format!("failed, again in {}", humantime::format_duration(Duration::from_millis(millis(*delay))))
            }
            Disposition::Compensate(reason, _) => format!("failed for good ({reason}), compensating"),
            Disposition::Dead(reason, _) => format!("failed for good, dead letter ({reason})"),
            _ => "failed".to_owned(),
        };
        let attempt = member.attempts() + 1;
        let code = failure.code.as_deref().unwrap_or("-");
        tracing::warn!(
            consumer = %self.name, message_id = member.name(), attempt, code, module = %module.short_digest(),
            "attempt {fate}: {}", failure.message
        );
        if let Some(detail) = &failure.detail {
            tracing::debug!(consumer = %self.name, message_id = member.name(), "{detail}");
        }
    }
}

/// True for the first attempt that counts of a dead letter that was redriven, whoever redrove it.
fn is_first_after_redrive(member: &Member, outcome: &Outcome, disposition: &Disposition) -> bool {
    let Origin::Parked { row, .. } = &member.origin else { return false };
    let handled = member.plan != Plan::Compensate && matches!(outcome, Outcome::Completed | Outcome::Failed(_));
    let is_uncounted = matches!(disposition, Disposition::Retry { attempts: 0, .. });
    handled && row.generation > 0 && row.attempts == 0 && !is_uncounted
}

fn millis(delay: Duration) -> u64 {
    u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)
}

/// The label under which a failed attempt is counted.
fn kind_of(failure: &Failure) -> &'static str {
    match (failure.code.as_deref(), failure.advice) {
        (Some("trap"), _) => "trap",
        (Some("timeout"), _) => "timeout",
        (_, crate::guest::Advice::Never) => "permanent",
        _ => "transient",
    }
}

/// How long ago a time of the server's clock was, by ours: only how soon something is tried depends on it.
fn age(created_at: i64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_millis(created_at.max(0).unsigned_abs()))
}
