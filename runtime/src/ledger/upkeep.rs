//! What hosts do besides messages: rescue rows whose runner was lost, forget what is old enough, elect one of them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::database::{Connection, DbError};
use super::inbox::{Claim, Claimed, InboxMove, Status};
use super::outbox::OutboxRow;
use super::parked::{Incarnation, ParkedId, ParkedMove, ParkedRow, Phase, RunToken, millis, read_row};
use super::statements::Args;
use super::{Ledger, Reader, STATEMENT_ROWS, execute, own_transaction, query};
use crate::message::MessageId;
use crate::sabotage::{self, Step};

/// What a rescue did with a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Rescued {
    /// It will be run again, alone, as a suspect.
    Retried(ParkedRow),
    /// It has cost too many hosts.
    Dead(ParkedRow),
}

/// How rows are rescued.
#[derive(Debug, Clone, Copy)]
pub struct RescuePolicy {
    /// Rows taken longer ago than this and locked by nobody have lost their runner.
    pub after: Duration,
    /// Crashes past this make a dead letter.
    pub max_crashes: u32,
    /// How soon a rescued row is due.
    pub delay: Duration,
}

/// At most this many rows are rescued in one transaction.
const RESCUE_LIMIT: i64 = 100;

/// How much of the inbox retention looks at in one transaction.
pub const RETENTION_PAGE: usize = 2000;

impl Ledger {
    /// Puts rows back whose runner was lost: those of other hosts than `host` that give no sign of life any more, see
    /// [`Self::sign_of_life`]. `copy` makes the dead-letter copy of a row that died, where the consumer wants one.
    pub async fn rescue(
        &self,
        consumer: &str,
        host: Incarnation,
        policy: RescuePolicy,
        copy: impl Fn(&ParkedRow) -> Option<OutboxRow>,
    ) -> Result<Vec<Rescued>, DbError> {
        own_transaction!(self, |connection| {
            let (first, past) = signs_of_life(consumer);
            let args = Args::new().one("first", first).one("past", past);
            let mut alive = vec![Some(host.0.to_vec())];
            for row in query(connection, &self.statements.lease_holders, args).await?.rows {
                alive.push(Some(Reader::new(row).blob()?));
            }
            let args = Args::new()
                .one("consumer", consumer)
                .one("age", millis(policy.after))
                .one("limit", RESCUE_LIMIT)
                .blobs("alive", alive);
            let found = query(connection, &self.statements.orphans, args).await?;
            let mut rescued = Vec::new();
            for row in found.rows {
                let row = read_row(row)?;
                let Some(token) = row.run_token else { continue };
                if row.crashes < policy.max_crashes || !self.bury(connection, &row, token).await? {
                    let delay = policy.delay;
                    self.move_parked(connection, &[ParkedMove::rescued(&row, token, delay)]).await?;
                    rescued.push(Rescued::Retried(row));
                    continue;
                }
                if let Some(copy) = copy(&row) {
                    self.add_to_outbox(connection, consumer, &[copy], Duration::ZERO).await?;
                }
                rescued.push(Rescued::Dead(row));
            }
            if !rescued.is_empty() {
                sabotage::at(Step::Rescuing);
            }
            Ok(rescued)
        })
    }

    /// running → dead, reason crashed, without guest code. A stored delivery has no inbox row yet: if its id turns out
    /// to be somebody else's, it cannot die under it, and goes on (to be recognised as a duplicate) instead. A row that
    /// the inbox does not name, since somebody has edited it, dies all the same: it must not keep others from rescue.
    async fn bury(&self, connection: &mut dyn Connection, row: &ParkedRow, token: RunToken) -> Result<bool, DbError> {
        let Some(id) = row.message_id.clone() else { return Ok(false) };
        if row.phase == Phase::Deliver {
            let claim = Claim {
                id,
                status: Status::Dead,
                parked_id: Some(row.id),
                digest: Some(row.digest),
                module: row.module,
            };
            if self.claim(connection, &row.consumer, &[claim]).await? != [Claimed::New] {
                return Ok(false);
            }
        } else if self.is_owner(connection, row).await? {
            let (from, to) = ((Status::Parked, Some(row.id)), (Status::Dead, Some(row.id)));
            self.move_inbox(connection, &row.consumer, &[InboxMove { id, from, to, module: None }]).await?;
        }
        self.move_parked(connection, &[ParkedMove::crashed(row, token)]).await?;
        Ok(true)
    }

    /// Says for `lasting` that this host lives and runs rows of that consumer: nobody takes them for lost, however long
    /// they run and whatever became of their connection. In a transaction of its own on the caller's connection: it must
    /// not wait for what else the ledger does.
    pub async fn sign_of_life(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        host: Incarnation,
        lasting: Duration,
    ) -> Result<(), DbError> {
        connection.begin().await?;
        self.take_lease(connection, &sign_of_life(consumer, host), host, lasting).await?;
        connection.commit().await
    }

    /// This host has nothing to do with that consumer any more: neither its sign of life nor the end of its right to
    /// forget need be waited for.
    pub async fn end_leases(&self, consumer: &str, host: Incarnation) -> Result<(), DbError> {
        own_transaction!(self, |connection| {
            for name in [sign_of_life(consumer, host), retention_lease(consumer)] {
                let args = Args::new().one("name", name).one("holder", host.0.as_slice());
                execute(connection, &self.statements.lease_end, args).await?;
            }
            Ok(())
        })
    }

    /// Runs of this host, older than `age`, of which nobody here knows: their COMMIT lost its answer. `known` are the
    /// runs that lanes are at.
    pub async fn strays(
        &self,
        consumer: &str,
        host: Incarnation,
        age: Duration,
        known: impl Fn(RunToken) -> bool,
    ) -> Result<Vec<RunToken>, DbError> {
        let args = Args::new().one("consumer", consumer).one("incarnation", host.0.as_slice()).one("age", millis(age));
        let mut strays = Vec::new();
        for row in self.own_query(&self.statements.strays, args).await?.rows {
            let token = RunToken(Reader::new(row).array()?);
            if !known(token) {
                strays.push(token);
            }
        }
        Ok(strays)
    }

    /// True if some host runs a parked row of that consumer, or ran it when it was lost.
    pub async fn is_anything_running(&self, consumer: &str) -> Result<bool, DbError> {
        let args = Args::new().one("consumer", consumer);
        Ok(!self.own_query(&self.statements.running, args).await?.rows.is_empty())
    }

    /// Forgets the signs of life of hosts that ended more than `age` ago.
    pub async fn forget_hosts(&self, consumer: &str, age: Duration) -> Result<(), DbError> {
        own_transaction!(self, |connection| {
            let (first, past) = signs_of_life(consumer);
            let args = Args::new().one("first", first).one("past", past).one("age", millis(age));
            execute(connection, &self.statements.lease_forget, args).await.map(drop)
        })
    }

    /// Forgets completed ids older than `age`, one page in key order. Returns the key to go on after, or none at the
    /// end, and how many rows went.
    pub async fn forget_completed(
        &self,
        consumer: &str,
        age: Duration,
        after: Option<Vec<u8>>,
    ) -> Result<(Option<Vec<u8>>, u64), DbError> {
        own_transaction!(self, |connection| {
            let args = Args::new()
                .one("consumer", consumer)
                .one("age", millis(age))
                .one("after", after.unwrap_or_default())
                .one("limit", RETENTION_PAGE as i64);
            let found = query(connection, &self.statements.retention_page, args).await?;
            let full = found.rows.len() == RETENTION_PAGE;
            let mut last = None;
            let mut old = Vec::new();
            for row in found.rows {
                let mut row = Reader::new(row);
                let (id, status, is_old) = (row.blob()?, row.int()?, row.int()?);
                if status == 1 && is_old == 1 {
                    old.push(Some(id.clone()));
                }
                last = Some(id);
            }
            let mut gone = 0;
            if !old.is_empty() {
                let args = Args::new().one("consumer", consumer).one("age", millis(age)).blobs("message_id", old);
                gone = execute(connection, &self.statements.retention_delete, args).await?.rows_affected;
                sabotage::at(Step::Forgetting);
            }
            Ok((last.filter(|_| full), gone))
        })
    }

    /// Forgets discarded dead letters older than `age`: their parked rows, bodies and inbox rows. Returns how many.
    pub async fn forget_discarded(&self, consumer: &str, age: Duration) -> Result<usize, DbError> {
        own_transaction!(self, |connection| {
            let args =
                Args::new().one("consumer", consumer).one("age", millis(age)).one("limit", RETENTION_PAGE as i64);
            let found = query(connection, &self.statements.retention_discarded, args).await?;
            let mut ids = Vec::new();
            let mut owned = Vec::new();
            for row in found.rows {
                let mut row = Reader::new(row);
                let id = ParkedId(row.array()?);
                if let Some(message_id) = row.maybe_blob()? {
                    owned.push((message_id, id));
                }
                ids.push(id);
            }
            if ids.is_empty() {
                return Ok(0);
            }
            self.delete_chunks(connection, &ids).await?;
            for ids in ids.chunks(STATEMENT_ROWS) {
                let args = Args::new().blobs("row_id", ids.iter().map(|id| Some(id.0.to_vec())));
                execute(connection, &self.statements.retention_discarded_delete, args).await?;
            }
            for owned in owned.chunks(STATEMENT_ROWS) {
                let args = Args::new()
                    .one("consumer", consumer)
                    .blobs("message_id", owned.iter().map(|(message_id, _)| Some(message_id.clone())))
                    .blobs("row_id", owned.iter().map(|(_, id)| Some(id.0.to_vec())));
                execute(connection, &self.statements.retention_discarded_inbox, args).await?;
            }
            Ok(ids.len())
        })
    }

    /// Takes or renews a lease; true while it is ours.
    pub async fn lease(&self, name: &str, holder: Incarnation, lease: Duration) -> Result<bool, DbError> {
        own_transaction!(self, |connection| self.take_lease(connection, name, holder, lease).await)
    }

    async fn take_lease(
        &self,
        connection: &mut dyn Connection,
        name: &str,
        holder: Incarnation,
        lease: Duration,
    ) -> Result<bool, DbError> {
        let take = Args::new().one("name", name).one("holder", holder.0.as_slice()).one("lease", millis(lease));
        // The row is made only where there is none: an INSERT that finds one locks it for readers on InnoDB, and two
        // hosts that both do would then wait for each other in the UPDATE.
        if execute(connection, &self.statements.lease_take, take.clone()).await?.rows_affected == 1 {
            return Ok(true);
        }
        let seed = Args::new().one("name", name);
        if execute(connection, &self.statements.lease_seed, seed).await?.rows_affected == 0 {
            return Ok(false);
        }
        Ok(execute(connection, &self.statements.lease_take, take).await?.rows_affected == 1)
    }

    /// Records ids as completed without a body, so that messages another system has handled are duplicates here.
    /// Returns how many were new. What went in before an error stays; the same call again does the rest.
    pub async fn import_ids(&self, consumer: &str, ids: &[MessageId]) -> Result<usize, DbError> {
        let distinct: BTreeSet<&MessageId> = ids.iter().collect();
        let claims: Vec<Claim> = distinct
            .into_iter()
            .map(|id| Claim { id: id.clone(), status: Status::Completed, parked_id: None, digest: None, module: None })
            .collect();
        let mut new = 0;
        // A transaction for each statement, so that consumers at work do not wait long.
        for claims in claims.chunks(STATEMENT_ROWS) {
            let claimed = own_transaction!(self, |connection| self.claim(connection, consumer, claims).await)?;
            new += claimed.iter().filter(|claimed| **claimed == Claimed::New).count();
        }
        Ok(new)
    }
}

/// The name of the right to forget what is old.
pub fn retention_lease(consumer: &str) -> String {
    format!("retention:{consumer}")
}

/// The name of the lease by which a host says that it lives. It fits the column: a consumer's name has at most 64 bytes.
fn sign_of_life(consumer: &str, host: Incarnation) -> String {
    let short: String = host.0[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("run:{consumer}:{short}")
}

/// The first of those names, and what is past the last: `;` comes after `:`.
fn signs_of_life(consumer: &str) -> (String, String) {
    (format!("run:{consumer}:"), format!("run:{consumer};"))
}
