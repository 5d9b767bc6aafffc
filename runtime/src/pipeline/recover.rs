//! How a batch goes on after its transaction did not commit.

use std::collections::VecDeque;

use super::member::{Member, Plan};
use super::pass::{Pass, Undo};
use super::shared::Shared;
use super::{Pipeline, failure_of, gather, lost_connection};
use crate::guest::ahead::Refuted;
use crate::ledger::database::{DbError, DbErrorKind};
use crate::outcome::{Disposition, Outcome, decide};
use crate::retry::RetryMode;
use crate::sabotage::{self, Breach};
use crate::telemetry::metrics;

/// Host-level contention (deadlock, lock time-out in the claim) that a member meets alone before it is deferred.
const MAX_HOST_CONTENTIONS: u32 = 2;

/// Host-level contention that a message meets alone before its lane pauses: not even deferring it goes through.
const MAX_HOST_CONTENTIONS_IN_ALL: u32 = 2 * MAX_HOST_CONTENTIONS + 1;

/// Infrastructure failures of whole batches, the server answering probes, before their members go on one by one.
const MAX_SHARED_FAULTS: u32 = 2;

/// By how much savepoints move together after a failure that undid a whole transaction.
const CLOSER: usize = 8;

/// Why a transaction did not commit.
pub(super) enum Trouble {
    /// A member failed after it had touched SQL, and there is no savepoint: roll back, and run the others without it.
    /// `verdict`: what it came to, where that counts because nothing had run before it.
    Undo { index: usize, verdict: Option<Outcome> },
    /// A member took the transaction down with it: time-out inside a statement. `verdict` as above.
    Lost { index: usize, verdict: Option<Outcome> },
    /// A member's own statement lost against somebody else's.
    Contended { index: usize, message: String },
    /// A statement of the host's lost against somebody else's, or nobody knows whose fault a failed COMMIT was.
    HostContended(DbError),
    /// The database failed, under this member if one is named.
    Infrastructure { index: Option<usize>, error: DbError },
}

impl From<DbError> for Trouble {
    fn from(error: DbError) -> Self {
        match error.kind {
            DbErrorKind::Contention => Self::HostContended(error),
            _ => Self::Infrastructure { index: None, error },
        }
    }
}

/// Members that share one transaction.
pub(super) struct Batch {
    pub(super) members: Vec<Member>,
    /// Attempts between savepoints; see [`spacing`](super::pass::spacing).
    pub(super) spacing: usize,
    /// Host-level contention met so far by a batch of one.
    contentions: u32,
}

impl Batch {
    pub(super) fn new(members: Vec<Member>, spacing: usize) -> Self {
        Self { members, spacing, contentions: 0 }
    }
}

impl Pipeline {
    /// Has the database answer whatever handlers have run ahead of. False: one of them was told something else, and the
    /// pass has gone back to before it.
    pub(super) async fn catch_up(&mut self, pass: &mut Pass) -> Result<bool, Trouble> {
        let Some(connection) = &mut self.connection else { return Err(lost_connection().into()) };
        match self.guest.ahead().catch_up(connection.as_mut()).await {
            Ok(()) => Ok(true),
            Err(refuted) => self.refuted(refuted, pass).await.map(|()| false),
        }
    }

    /// Puts a savepoint before the attempt that was made last, if nothing of it has reached the database yet. False as in
    /// [`catch_up`](Self::catch_up).
    pub(super) async fn part(&mut self, pass: &mut Pass) -> Result<bool, Trouble> {
        let Some(own) = self.guest.ahead().part() else { return Ok(true) };
        if !self.set_savepoint(pass).await? {
            return Ok(false);
        }
        self.guest.ahead().rejoin(own);
        Ok(true)
    }

    /// Sets the savepoint after everything that waits. False as in [`catch_up`](Self::catch_up).
    pub(super) async fn set_savepoint(&mut self, pass: &mut Pass) -> Result<bool, Trouble> {
        if !self.catch_up(pass).await? {
            return Ok(false);
        }
        self.connection()?.savepoint().await?;
        pass.savepoint_set();
        Ok(true)
    }

    /// Undoes everything since the savepoint, for the failure of this member. `verdict`: see [`Trouble::Lost`].
    pub(super) async fn back_to_savepoint(&mut self, index: usize, verdict: Option<Outcome>) -> Result<(), Trouble> {
        match self.connection()?.rollback_to_savepoint().await {
            Ok(()) => {}
            // Its statement has cost the whole transaction: SQLite undoes all of it where it stops a write.
            Err(error) if error.is_handlers_fault() => return Err(Trouble::Lost { index, verdict }),
            Err(error) => return Err(error.into()),
        }
        // What the instance remembers never happened.
        self.guest.discard();
        Ok(())
    }

    /// Goes back to before an attempt that was told another answer than the database's: it is made again, apart and not
    /// running ahead, and so is everything after it.
    pub(super) async fn refuted(&mut self, refuted: Refuted, pass: &mut Pass) -> Result<(), Trouble> {
        let Refuted { place: index, error } = refuted;
        match error {
            Some(error) if error.kind == DbErrorKind::Contention => {
                return Err(Trouble::Contended { index, message: error.to_string() });
            }
            Some(error) if error.kind == DbErrorKind::TimedOut && error.connection_lost => {
                return Err(Trouble::Lost { index, verdict: None });
            }
            Some(error) if !error.is_handlers_fault() => {
                return Err(Trouble::Infrastructure { index: Some(index), error });
            }
            Some(_) | None => {}
        }
        self.weigh(true);
        self.shared.metrics.attempt_refuted();
        if pass.failed() == Undo::All {
            return Err(Trouble::Undo { index, verdict: None });
        }
        self.back_to_savepoint(index, None).await?;
        pass.go_back(index);
        Ok(())
    }

    /// Rolls back, and decides how the members of a batch go on. Returns the error if they cannot now.
    pub(super) async fn recover(
        &mut self,
        trouble: Trouble,
        mut batch: Batch,
        work: &mut VecDeque<Batch>,
    ) -> Option<DbError> {
        // Instances that ran in a rolled-back transaction remember things that never happened.
        self.guest.discard();
        self.roll_back().await;
        match trouble {
            // Nothing ran before it in that transaction, so its verdict stands; else it must be run again. One that
            // fails is seldom alone.
            Trouble::Undo { index, verdict } => {
                let member = &mut batch.members[index];
                member.failed_among_others = verdict.is_none();
                member.judged = verdict;
                batch.spacing = (batch.spacing.min(batch.members.len()) / CLOSER).max(1);
                work.push_front(batch);
            }
            // The statement may have been slow, or the whole server: then it is nobody's attempt.
            Trouble::Lost { index, .. } if self.shared.ledger.probe().await.is_err() => {
                self.drop_connection();
                metrics::database_failed();
                let error = format!("no answer to a statement of message {:?}", batch.members[index].name());
                work.push_front(batch);
                return Some(DbError::infrastructure(error));
            }
            Trouble::Lost { index, verdict } => {
                batch.members[index].judged = verdict;
                push_around(work, batch, index);
            }
            Trouble::Contended { index, message } => {
                // Among others it has waited for a moment only.
                if batch.members.len() == 1 {
                    self.blame_contention(&mut batch.members[index], message);
                }
                self.sizing.contended(batch.members.len());
                match self.shared.retry.mode {
                    RetryMode::Blocking => push_around(work, batch, index),
                    // Whoever is in its way may take a while: that holds up nobody else.
                    RetryMode::Delayed => push_last(work, batch, index, self.sizing.limit()),
                }
            }
            Trouble::HostContended(error) if batch.contentions >= MAX_HOST_CONTENTIONS_IN_ALL => {
                work.push_front(batch);
                return Some(error);
            }
            Trouble::HostContended(_) => push_halves(work, batch),
            Trouble::Infrastructure { index, error } => {
                // Where BEGIN failed there is nothing to roll back, and so no second sign that the connection is dead.
                self.drop_connection();
                metrics::database_failed();
                if sabotage::broken(Breach::InfrastructureCounted) {
                    let failed = |member: &mut Member| member.judged = Some(Outcome::Failed(failure_of(&error)));
                    batch.members.iter_mut().for_each(failed);
                }
                let shared = self.shared.clone();
                blame(&shared, self.can_compensate(), &mut batch, index, &error).await;
                work.push_front(batch);
                return Some(error);
            }
        }
        None
    }

    /// A member's statements lost against somebody else's once more, while it had all the time that it may have.
    fn blame_contention(&self, member: &mut Member, message: String) {
        member.contentions += 1;
        let outcome = Outcome::Contended(message);
        let situation = self.shared.situation(member, self.can_compensate(), false);
        if decide(&outcome, &situation, &self.shared.retry) != Disposition::Again {
            member.judged = Some(outcome);
        }
    }

    async fn roll_back(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.rollback().await.is_err()
        {
            self.connection = None;
        }
    }
}

/// The infrastructure failed under a batch while the server answers: something in the batch may be the cause. Its
/// members go on alone, and one under which it keeps happening, alone, is to blame.
async fn blame(shared: &Shared, can_compensate: bool, batch: &mut Batch, index: Option<usize>, error: &DbError) {
    if shared.ledger.probe().await.is_err() {
        return;
    }
    let lone = batch.members.len() == 1;
    for (place, member) in batch.members.iter_mut().enumerate() {
        if index.is_some_and(|index| index != place) {
            continue;
        }
        member.faults += 1;
        member.alone |= index.is_some() || member.faults >= MAX_SHARED_FAULTS;
        if lone {
            member.lone_faults += 1;
            let outcome = Outcome::LoneFault(error.to_string());
            let situation = shared.situation(member, can_compensate, false);
            if decide(&outcome, &situation, &shared.retry) != Disposition::GiveBack {
                member.judged = Some(outcome);
            }
        }
    }
}

/// The members before `index`, that one alone, and those after it, each in a transaction of its own.
fn push_around(work: &mut VecDeque<Batch>, batch: Batch, index: usize) {
    let order = gather::in_order(&batch.members);
    let at = order.iter().position(|&place| place == index).unwrap_or(0);
    let (before, rest) = order.split_at(at);
    let (alone, after) = rest.split_at(1.min(rest.len()));
    push_parts(work, batch, [before, alone, after]);
}

/// The members around `index` before everything else, at most `limit` together, and that one alone after everything
/// else.
fn push_last(work: &mut VecDeque<Batch>, mut batch: Batch, index: usize, limit: usize) {
    let alone = Batch::new(vec![batch.members.remove(index)], batch.spacing);
    let around = gather::split_lone(batch.members, limit).map(|members| Batch::new(members, batch.spacing));
    for batch in around.collect::<Vec<_>>().into_iter().rev() {
        work.push_front(batch);
    }
    work.push_back(alone);
}

/// The host's own statements lost against somebody else's: in halves, then single, then deferred.
fn push_halves(work: &mut VecDeque<Batch>, mut batch: Batch) {
    if batch.members.len() > 1 {
        let order = gather::in_order(&batch.members);
        let (first, second) = order.split_at(order.len() / 2);
        return push_parts(work, batch, [first, second]);
    }
    batch.contentions += 1;
    if batch.contentions > MAX_HOST_CONTENTIONS {
        for member in &mut batch.members {
            match &member.plan {
                // A stored delivery would forget that it is a dead letter's copy: it tries on.
                Plan::Reopen(..) | Plan::Record(_) => {}
                Plan::Run | Plan::Compensate | Plan::ParkFirst => member.plan = Plan::Record(Outcome::Held),
            }
        }
    }
    work.push_front(batch);
}

/// Parts of a batch, each in a transaction of its own, in order, before everything else.
fn push_parts<const N: usize>(work: &mut VecDeque<Batch>, batch: Batch, parts: [&[usize]; N]) {
    let mut members: Vec<Option<Member>> = batch.members.into_iter().map(Some).collect();
    for part in parts.into_iter().rev() {
        let part: Vec<Member> = part.iter().filter_map(|&place| members[place].take()).collect();
        if !part.is_empty() {
            work.push_front(Batch::new(part, batch.spacing));
        }
    }
}
