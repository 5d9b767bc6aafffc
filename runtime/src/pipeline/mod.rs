//! The path of a batch.
//!
//! ```text
//! identify ─▶ lock ─▶ begin ─▶ own rows ─▶ claim ─▶ handle … ─▶ record ─▶ commit ─▶ report
//! ```
//!
//! [`Pipeline::run`] takes members from a lane and returns when every one of them is settled in SQL, given back, or the
//! infrastructure has failed. `Pipeline::transact` is the path itself; read it from top to bottom. Only here outcomes
//! are made; [`decide`] turns them into dispositions; the consumer settles.

mod claims;
mod gather;
pub mod member;
mod pass;
pub mod recent;
pub mod records;
mod recover;
pub mod shared;
mod sizing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::Outgoing;
use crate::guest::lane::LaneGuest;
use crate::guest::{Advice, Failure, Finished, Verdict};
use crate::ledger::database::{Connection, DbError};
use crate::ledger::dead::Redriven;
use crate::ledger::parked::ParkedId;
use crate::message::MessageId;
use crate::outcome::{Disposition, Outcome, Reason, decide};
use crate::sabotage::{self, Breach, Step};

use claims::Claims;
use member::{Link, Member, Origin, Plan};
use pass::{Pass, Settled, Undo};
use records::Records;
use recover::{Batch, Trouble};
use shared::Shared;
use sizing::{CROWDED_LOCK_WAIT, Sizing};

/// What the consumer has to do once SQL has committed.
#[derive(Default)]
pub struct Report {
    /// Deliveries that SQL owns now.
    pub acknowledge: Vec<(Arc<Link>, u64)>,
    /// Members that were not reached, or whose lock somebody else holds; they go back to the front of the lane.
    pub returned: Vec<Member>,
    /// How long until each of what was parked is due.
    pub delays: Vec<Duration>,
    /// How many attempts succeeded, and how many failed in a way that may pass.
    pub verdicts: Verdicts,
}

/// Verdicts of a run, for the consumer's judgement of mass failure.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Verdicts {
    /// Handled, or refused for good: whatever the handler depends on answers.
    pub answered: u32,
    /// Failed, and may succeed later.
    pub transient: u32,
}

/// The infrastructure failed: these members are as they were; nothing of them is committed, or nobody knows.
pub struct Interrupted {
    /// Members that are not settled.
    pub members: Vec<Member>,
    /// What was done before.
    pub report: Report,
    /// What failed.
    pub fault: Fault,
}

/// Which part of the infrastructure failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// The database.
    #[error("database: {0}")]
    Database(#[from] DbError),
    /// The lock server, where the config says to pause without it.
    #[error("{0}")]
    Lock(#[from] crate::lock::LockError),
}

/// A committed transaction.
struct Done {
    settled: Vec<Settled>,
    records: Records,
    /// Blocking retry: what came after a failed member must wait.
    stopped: bool,
}

/// An attempt that was made.
struct Attempted {
    outcome: Outcome,
    outbox: Vec<Outgoing>,
    /// Its work was undone by the savepoint before it.
    undone: bool,
}

impl From<Outcome> for Attempted {
    /// Nothing was done to find it out.
    fn from(outcome: Outcome) -> Self {
        Self { outcome, outbox: Vec::new(), undone: false }
    }
}

/// One lane's pipeline: its database connection and its guest instance.
pub struct Pipeline {
    shared: Arc<Shared>,
    guest: LaneGuest,
    connection: Option<Box<dyn Connection>>,
    /// Share of recent attempts that took others with them when they failed, 0 to 1: the larger, the closer together
    /// savepoints are.
    failing: f64,
    /// Share of recent messages that were duplicates to the inbox, 0 to 1.
    repeating: f64,
    sizing: Sizing,
}

/// Share of duplicates from which on the inbox is asked about all that comes, before anything is locked: one round trip
/// more for the others, and all but that one saved for the duplicates.
const MOSTLY_REPEATS: f64 = 0.5;

impl Pipeline {
    /// A pipeline that connects when it is first used.
    pub fn new(shared: Arc<Shared>) -> Self {
        let guest = LaneGuest::new(shared.modules.clone(), shared.context.clone());
        Self { shared, guest, connection: None, failing: 0.0, repeating: 0.0, sizing: Sizing::new() }
    }

    /// Runs members until each is settled, given back, or the infrastructure fails. They may be split into several
    /// transactions on the way.
    pub async fn run(&mut self, members: Vec<Member>, probing: bool) -> Result<Report, Box<Interrupted>> {
        let mut report = Report::default();
        let members = self.shed(members, &mut report, |shared, member| shared.has_just_completed(member));
        let members = self.shed_known(members, &mut report).await;
        let (members, locks) = match self.shared.lock(members, &mut report.returned).await {
            Ok(locked) => locked,
            Err((members, error)) => {
                return Err(Box::new(Interrupted { members, report, fault: Fault::Lock(error) }));
            }
        };
        sabotage::at(Step::Locked);
        let locked_by_others = report.returned.len();
        let spacing = pass::spacing(self.failing, self.shared.run_ahead);
        let mut work: VecDeque<Batch> =
            gather::split_lone(members, self.sizing.limit()).map(|members| Batch::new(members, spacing)).collect();
        while let Some(mut batch) = work.pop_front() {
            batch.members.retain(|member| !member.is_stale());
            if batch.members.is_empty() {
                continue;
            }
            match self.transact(&batch, probing).await {
                Ok(mut done) => {
                    self.sizing.committed(batch.members.len());
                    let outbox = std::mem::take(&mut done.records.outbox);
                    let must_wait = self.absorb(batch, done, &mut report);
                    self.shared.relay.publish(outbox).await;
                    if must_wait {
                        hold_back(&mut work, &mut report.returned);
                    }
                }
                Err(trouble) => {
                    if let Some(error) = self.recover(trouble, batch, &mut work).await {
                        let members = work.drain(..).flat_map(|batch| batch.members).collect();
                        return Err(Box::new(Interrupted { members, report, fault: Fault::Database(error) }));
                    }
                }
            }
        }
        // What there was no time for comes again at once, and must not find the locks of this very run in its way.
        if let Some(locks) = locks.filter(|_| report.returned.len() > locked_by_others) {
            locks.release_now().await;
        }
        Ok(report)
    }

    /// Where most of what came lately were duplicates: asks the inbox before anything is locked or begun, and settles
    /// those that it knows. A failure says nothing here; who goes on meets it again.
    async fn shed_known(&mut self, members: Vec<Member>, report: &mut Report) -> Vec<Member> {
        if self.repeating < MOSTLY_REPEATS {
            return members;
        }
        let shared = self.shared.clone();
        let ids: Vec<&MessageId> = members.iter().filter_map(Shared::claimed_id).collect();
        let found = match self.lane_connection().await {
            Ok(connection) => shared.ledger.existing(connection, &shared.name, &ids).await,
            Err(error) => Err(error),
        };
        let Ok(found) = found else {
            self.drop_connection();
            return members;
        };
        let before = report.acknowledge.len();
        let rest = self.shed(members, report, |_, member| {
            let row = Shared::claimed_id(member).and_then(|id| found.get(id.as_bytes()));
            row.is_some_and(|row| row.is_same_message(member.carried.digest))
        });
        for _ in before..report.acknowledge.len() {
            self.notice(true);
        }
        rest
    }

    /// Settles deliveries of messages that SQL is known to own; returns the others.
    fn shed(
        &self,
        members: Vec<Member>,
        report: &mut Report,
        is_owned: impl Fn(&Shared, &Member) -> bool,
    ) -> Vec<Member> {
        let (shared, module) = (&self.shared, self.guest.pinned());
        let mut rest = Vec::with_capacity(members.len());
        for member in members {
            match &member.origin {
                Origin::Delivery { link, tag } if is_owned(shared, &member) => {
                    let outcome = Outcome::Duplicate;
                    let disposition = decide(&outcome, &shared.situation(&member, false, false), &shared.retry);
                    shared.tell(&member, &outcome, &disposition, module);
                    report.acknowledge.push((link.clone(), *tag));
                }
                _ => rest.push(member),
            }
        }
        rest
    }

    /// The path: one transaction, from BEGIN to COMMIT.
    async fn transact(&mut self, batch: &Batch, probing: bool) -> Result<Done, Trouble> {
        let shared = self.shared.clone();
        let module = self.guest.pin();
        let scene = shared.scene(&module);
        let members = &batch.members;

        self.begin(members.len() > 1).await?;
        sabotage::at(Step::Begun);
        let owned = claims::own_rows(&shared.ledger, self.connection()?, members).await?;
        let mut claims = claims::claim(&shared.ledger, self.connection()?, &scene, members, &owned).await?;
        sabotage::at(Step::Claimed);

        let order = gather::in_order(members);
        let mut pass = Pass::new(members.len(), batch.spacing);
        loop {
            let Some(&index) = order.get(pass.at) else {
                // Whoever has run ahead may have to come back.
                match self.catch_up(&mut pass).await? {
                    true => break,
                    false => continue,
                }
            };
            let member = &members[index];
            if owned.lost(member) {
                // Somebody else is at it, and what comes after it must wait for them where the order counts.
                pass.stopped |= shared.retry.keeps_order();
                pass.skip();
                continue;
            }
            let attempted = match known(&shared, self.connection()?, member, &claims).await? {
                Some(outcome) => Attempted::from(outcome),
                None if pass.must_stop(shared.batch_max_time, probing) => Attempted::from(Outcome::NotReached),
                None => match self.attempt(batch, index, &mut pass).await? {
                    Some(attempted) => attempted,
                    // It failed after others, which run again without it.
                    None => continue,
                },
            };
            let Attempted { outcome, outbox, undone } = attempted;
            let situation = shared.situation(member, module.has_compensation, probing);
            let disposition = decide(&outcome, &situation, &shared.retry);
            claims.follow(member, &disposition);
            pass.settle(Settled { index, outcome, disposition, outbox }, undone, &shared.retry);
        }

        let mut records = Records::default();
        for Settled { index, outcome, disposition, outbox } in &mut pass.settled {
            let member = &members[*index];
            records.publish(member, std::mem::take(outbox), &scene);
            records.note(member, outcome, disposition, claims.is_leader(member), &scene);
        }
        records.write(&shared.ledger, self.connection()?, &scene).await?;
        sabotage::at(Step::Committing);
        self.commit(&pass).await?;
        sabotage::at(Step::Committed);
        Ok(Done { settled: pass.settled, records, stopped: pass.stopped })
    }

    /// Begins on the lane's connection, opening one if need be. `crowded`: what cannot have a lock soon is not waited for.
    async fn begin(&mut self, crowded: bool) -> Result<(), DbError> {
        self.guest.ahead().forget();
        let connection = self.lane_connection().await?;
        if crowded { connection.begin_impatient(CROWDED_LOCK_WAIT).await } else { connection.begin().await }
    }

    /// The lane's connection, inside a transaction.
    fn connection(&mut self) -> Result<&mut dyn Connection, DbError> {
        match &mut self.connection {
            Some(connection) => Ok(connection.as_mut()),
            None => Err(lost_connection()),
        }
    }

    /// The lane's connection for work between batches, opened if need be.
    pub async fn lane_connection(&mut self) -> Result<&mut dyn Connection, DbError> {
        if self.connection.is_none() {
            self.connection = Some(self.shared.ledger.connect().await?);
        }
        self.connection()
    }

    fn can_compensate(&self) -> bool {
        self.guest.pinned().has_compensation
    }

    /// Drops the lane's connection: it is not to be trusted after an error between batches.
    pub fn drop_connection(&mut self) {
        self.connection = None;
    }

    /// Calls the guest for one member. Its connection is back in the lane afterwards, unless it went down. None: it
    /// failed, and the pass has gone back to the last savepoint.
    async fn attempt(&mut self, batch: &Batch, index: usize, pass: &mut Pass) -> Result<Option<Attempted>, Trouble> {
        let member = &batch.members[index];
        let Some(call) = self.shared.call(member) else {
            let error = "there is no message id to run it under".to_owned();
            return Ok(Some(Outcome::Unidentified(Reason::NoId, error).into()));
        };
        if pass.wants_savepoint(index, member.failed_among_others) && !self.set_savepoint(pass).await? {
            return Ok(None);
        }
        let first = pass.begins(index);
        // One that is alone has nobody to share a round trip with, and one that has failed is to hear the truth.
        let ahead =
            self.shared.run_ahead && batch.members.len() > 1 && !pass.is_apart(index, member.failed_among_others);
        self.guest.ahead().begin(index, ahead);
        let Some(connection) = self.connection.take() else { return Err(lost_connection().into()) };
        let Finished { verdict, outbox, connection, touched_sql, elapsed, .. } =
            self.guest.call(call, connection).await;
        self.connection = connection;
        if member.plan == Plan::Compensate && sabotage::broken(Breach::CompensationApart) {
            self.connection()?.commit().await?;
            self.connection()?.begin().await?;
        }
        self.shared.metrics.handler_took(elapsed);
        sabotage::at(if member.plan == Plan::Compensate { Step::Compensated } else { Step::Handled });
        let outcome = match verdict {
            Verdict::Ok if member.plan == Plan::Compensate => Outcome::Compensated,
            Verdict::Ok => Outcome::Completed,
            Verdict::Failed(failure) => Outcome::Failed(failure),
            Verdict::Contention(error) => return Err(Trouble::Contended { index, message: error.to_string() }),
            Verdict::Infrastructure(error) => return Err(Trouble::Infrastructure { index: Some(index), error }),
            Verdict::Refuted(refuted) => return self.refuted(refuted, pass).await.map(|()| None),
        };
        if self.connection.is_none() {
            return Err(Trouble::Lost { index, verdict: (first && !ahead).then_some(outcome) });
        }
        if matches!(outcome, Outcome::Failed(_)) && touched_sql {
            return self.undo(index, outcome, first, pass).await;
        }
        Ok(Some(Attempted { outcome, outbox, undone: false }))
    }

    /// Undoes an attempt that has failed, with everything since the last savepoint. None as for [`Self::attempt`].
    async fn undo(
        &mut self,
        index: usize,
        outcome: Outcome,
        first: bool,
        pass: &mut Pass,
    ) -> Result<Option<Attempted>, Trouble> {
        // It may have failed for what it was told before the database had spoken.
        if !self.part(pass).await? || !self.catch_up(pass).await? {
            return Ok(None);
        }
        let undo = pass.failed();
        self.weigh(undo != Undo::Own);
        let kept = undo != Undo::Own && sabotage::broken(Breach::VerdictKept);
        if undo == Undo::All || kept {
            let counts = first || kept;
            return Err(Trouble::Undo { index, verdict: counts.then_some(outcome) });
        }
        self.back_to_savepoint(index, first.then(|| outcome.clone())).await?;
        if undo == Undo::Group {
            pass.go_back(index);
            return Ok(None);
        }
        Ok(Some(Attempted { outcome, outbox: Vec::new(), undone: true }))
    }

    /// COMMIT. An error that is a handler's fault is a deferred constraint, checked at last: whose, only a transaction
    /// with one attempt can tell.
    async fn commit(&mut self, pass: &Pass) -> Result<(), Trouble> {
        let started = Instant::now();
        match sabotage::midway(Step::CommitSent, self.connection()?.commit()).await {
            Ok(()) => {
                self.shared.metrics.committed(pass.executed, started.elapsed());
                Ok(())
            }
            Err(error) if error.connection_lost && sabotage::broken(Breach::AmbiguousTrusted) => Ok(()),
            Err(error) if error.is_handlers_fault() && pass.executed == 1 => {
                let verdict = Some(Outcome::Failed(failure_of(&error)));
                Err(Trouble::Undo { index: pass.last, verdict })
            }
            Err(error) if error.is_handlers_fault() => Err(Trouble::HostContended(error)),
            Err(error) => Err(error.into()),
        }
    }

    /// After COMMIT: what the consumer acknowledges, and what goes back to the lane. True if later batches must wait.
    fn absorb(&mut self, batch: Batch, done: Done, report: &mut Report) -> bool {
        let mut settled: HashMap<usize, Settled> =
            done.settled.into_iter().map(|settled| (settled.index, settled)).collect();
        let module = Arc::clone(self.guest.pinned());
        report.delays.extend(done.records.delays);
        for (index, member) in batch.members.into_iter().enumerate() {
            let Some(Settled { outcome, disposition, .. }) = settled.remove(&index) else { continue };
            self.shared.tell(&member, &outcome, &disposition, &module);
            self.count(&outcome, &disposition, &mut report.verdicts);
            if let (Outcome::Completed, Some(id)) = (&outcome, &member.carried.id) {
                self.shared.recent.completed(id.clone(), member.carried.digest);
            }
            match (&member.origin, &disposition) {
                (Origin::Delivery { .. }, Disposition::GiveBack) => report.returned.push(member),
                _ => report.acknowledge.extend(member.tag()),
            }
        }
        done.stopped
    }

    fn count(&mut self, outcome: &Outcome, disposition: &Disposition, verdicts: &mut Verdicts) {
        self.notice(*outcome == Outcome::Duplicate);
        if !matches!(outcome, Outcome::Completed | Outcome::Compensated | Outcome::Failed(_)) {
            return;
        }
        if matches!(disposition, Disposition::Retry { .. }) {
            verdicts.transient += 1;
        } else {
            verdicts.answered += 1;
        }
        self.weigh(false);
    }

    /// Counts a message into the share of duplicates.
    fn notice(&mut self, duplicate: bool) {
        average(&mut self.repeating, duplicate);
    }

    /// Counts an attempt into the share of those that took others with them.
    fn weigh(&mut self, took_others: bool) {
        average(&mut self.failing, took_others);
    }
}

/// Counts one more into a share, in which the last 200 or so weigh most.
fn average(share: &mut f64, is_one: bool) {
    *share += (f64::from(u8::from(is_one)) - *share) / 200.0;
}

fn lost_connection() -> DbError {
    DbError::infrastructure("the lane's connection went down in the middle of a transaction")
}

/// Blocking retry: what comes after a message that must be waited for goes back to where it came from. What was taken
/// from SQL is given back there, or its lane would wait for rows that it holds itself.
fn hold_back(work: &mut VecDeque<Batch>, returned: &mut Vec<Member>) {
    let mut taken = Vec::new();
    for mut member in work.drain(..).flat_map(|batch| batch.members) {
        match member.origin {
            Origin::Delivery { .. } => returned.push(member),
            Origin::Parked { .. } => {
                member.plan = Plan::Record(Outcome::NotReached);
                taken.push(member);
            }
        }
    }
    if !taken.is_empty() {
        work.push_back(Batch::new(taken, usize::MAX));
    }
}

/// The outcome of a member that does not have to be run: a duplicate, a returning copy, found out already.
async fn known(
    shared: &Shared,
    connection: &mut dyn Connection,
    member: &Member,
    claims: &Claims,
) -> Result<Option<Outcome>, DbError> {
    if member.claims()
        && let Some(outcome) = claims.outcome(member)
    {
        return Ok(Some(outcome));
    }
    Ok(match &member.plan {
        Plan::Record(outcome) => Some(outcome.clone()),
        Plan::Reopen(dead, generation) => Some(reopen(shared, connection, member, *dead, *generation).await?),
        Plan::ParkFirst => Some(Outcome::Redelivered),
        Plan::Run | Plan::Compensate => member.judged.clone(),
    })
}

/// A dead letter's copy came back: it reopens that dead letter, once.
async fn reopen(
    shared: &Shared,
    connection: &mut dyn Connection,
    member: &Member,
    dead: ParkedId,
    generation: u32,
) -> Result<Outcome, DbError> {
    let ledger = &shared.ledger;
    let found = ledger.parked_in(connection, dead).await?.filter(|row| row.consumer == shared.name);
    let Some(mut row) = found else {
        let error = format!("it is a copy of dead letter {dead}, which is gone");
        return Ok(Outcome::Unidentified(Reason::StaleCopy, error));
    };
    row.generation = generation;
    let target = member.carried.id.clone().map(|id| (id, member.carried.slot));
    match ledger.redrive_in(connection, &row, Duration::ZERO, false, target).await? {
        Redriven::AlreadyCompensated => tracing::warn!(
            consumer = %shared.name, dead = %dead,
            "a copy of this dead letter came back, but its compensation has taken effect: \
             `hapax dead redrive --force` reopens it all the same"
        ),
        // SQL has it already: another dead letter for each time that somebody tries would help nobody.
        Redriven::NoId => tracing::warn!(
            consumer = %shared.name, dead = %dead,
            "a copy of this dead letter came back, but today's rules find no message id in it: it stays as it is"
        ),
        Redriven::Yes | Redriven::Already | Redriven::Gone => {}
    }
    Ok(Outcome::Duplicate)
}

/// A statement's failure in the form in which a handler's is kept.
fn failure_of(error: &DbError) -> Failure {
    let code = error.code.as_deref().map_or_else(|| "sql".to_owned(), |code| format!("sql-{code}"));
    Failure { advice: Advice::ByPolicy, code: Some(code), message: error.message.clone(), detail: None }
}
