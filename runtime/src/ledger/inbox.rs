//! The inbox: one row for each (consumer, message id) that SQL owns.

use std::collections::HashMap;

use super::database::{Connection, DbError};
use super::parked::ParkedId;
use super::statements::Args;
use super::{Ledger, Reader, STATEMENT_ROWS, all_moved, execute, moved_elsewhere, query};
use crate::message::{BodyDigest, MessageId};

/// What the inbox says about an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its effects are committed.
    Completed,
    /// A parked row carries it on.
    Parked,
    /// It is a dead letter, or was one that is now discarded.
    Dead,
}

impl Status {
    fn code(self) -> i64 {
        match self {
            Self::Completed => 1,
            Self::Parked => 2,
            Self::Dead => 3,
        }
    }

    fn from_code(code: i64) -> Result<Self, DbError> {
        match code {
            1 => Ok(Self::Completed),
            2 => Ok(Self::Parked),
            3 => Ok(Self::Dead),
            other => Err(DbError::infrastructure(format!(
                "hapax_inbox holds status {other}, which this version does not know: was it written by a newer one?"
            ))),
        }
    }
}

/// A claim to an id: the row that is inserted unless one exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The id claimed.
    pub id: MessageId,
    /// What the row will say: completed for a message about to be handled, parked for one put off.
    pub status: Status,
    /// The parked row that carries it on, for [`Status::Parked`].
    pub parked_id: Option<ParkedId>,
    /// The body's digest; none for ids imported from elsewhere.
    pub digest: Option<BodyDigest>,
    /// Which module is about to handle it.
    pub module: Option<[u8; 8]>,
}

/// What a claim found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The id was free, and is ours if the transaction commits.
    New,
    /// The id was there already.
    Existing(InboxRow),
}

/// A row that was there already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// What it says.
    pub status: Status,
    /// The body it was written for; none where it was imported.
    pub digest: Option<BodyDigest>,
    /// The parked row that counts for the id.
    pub parked_id: Option<ParkedId>,
}

impl InboxRow {
    /// True if a message with this body is the one the row was written for.
    pub fn is_same_message(&self, digest: BodyDigest) -> bool {
        self.digest.is_none_or(|own| own == digest)
    }
}

/// A change of an existing row, under guard of what it said before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxMove {
    /// The id.
    pub id: MessageId,
    /// Status and parked row before.
    pub from: (Status, Option<ParkedId>),
    /// Status and parked row after.
    pub to: (Status, Option<ParkedId>),
    /// Which module brought it there; none leaves what is recorded.
    pub module: Option<[u8; 8]>,
}

impl Ledger {
    /// Claims ids in one statement, sorted by id so that no two batches wait for each other in a circle. The ids must
    /// be distinct. Answers come in the order of `claims`. (More than [`STATEMENT_ROWS`] take several statements.)
    ///
    /// A claim held by an open transaction is waited for, up to the session's lock time-out ([`Contention`] then).
    ///
    /// [`Contention`]: super::database::DbErrorKind::Contention
    pub async fn claim(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        claims: &[Claim],
    ) -> Result<Vec<Claimed>, DbError> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let mut sorted: Vec<&Claim> = claims.iter().collect();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let mut existing = HashMap::new();
        for part in sorted.chunks(STATEMENT_ROWS) {
            existing.extend(if self.features.insert_returning {
                self.claim_returning(connection, consumer, part).await?
            } else {
                self.claim_after_look(connection, consumer, part).await?
            });
        }
        Ok(claims
            .iter()
            .map(|claim| existing.remove(claim.id.as_bytes()).map_or(Claimed::New, Claimed::Existing))
            .collect())
    }

    /// One statement, and a second one only if some rows were there already.
    async fn claim_returning(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        sorted: &[&Claim],
    ) -> Result<HashMap<Vec<u8>, InboxRow>, DbError> {
        let inserted = query(connection, &self.statements.claim, claim_args(consumer, sorted)).await?;
        if inserted.rows.len() == sorted.len() {
            return Ok(HashMap::new());
        }
        let mut new = std::collections::HashSet::with_capacity(inserted.rows.len());
        for row in inserted.rows {
            new.insert(Reader::new(row).blob()?);
        }
        let rest: Vec<&MessageId> =
            sorted.iter().map(|claim| &claim.id).filter(|id| !new.contains(id.as_bytes())).collect();
        let existing = self.existing(connection, consumer, &rest).await?;
        if existing.len() < rest.len() {
            // It was there when we inserted and gone when we looked: its transaction rolled back, or retention came.
            return Err(moved_elsewhere("an inbox row"));
        }
        Ok(existing)
    }

    /// MySQL 8 cannot say which rows went in: look first, and insert only what is not there.
    async fn claim_after_look(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        sorted: &[&Claim],
    ) -> Result<HashMap<Vec<u8>, InboxRow>, DbError> {
        let ids: Vec<&MessageId> = sorted.iter().map(|claim| &claim.id).collect();
        let existing = self.existing(connection, consumer, &ids).await?;
        let absent: Vec<&Claim> =
            sorted.iter().copied().filter(|claim| !existing.contains_key(claim.id.as_bytes())).collect();
        if absent.is_empty() {
            return Ok(existing);
        }
        let statement = &self.statements.claim_silently;
        let inserted = execute(connection, statement, claim_args(consumer, &absent)).await?;
        if inserted.rows_affected < absent.len() as u64 {
            return Err(moved_elsewhere("an inbox row"));
        }
        Ok(existing)
    }

    /// The rows of some ids, by id.
    pub async fn existing(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        ids: &[&MessageId],
    ) -> Result<HashMap<Vec<u8>, InboxRow>, DbError> {
        let mut rows = HashMap::with_capacity(ids.len());
        for ids in ids.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("consumer", consumer)
                .blobs("message_id", ids.iter().map(|id| Some(id.as_bytes().into())));
            let found = query(connection, &self.statements.inbox_existing, args).await?;
            for row in found.rows {
                let mut row = Reader::new(row);
                let id = row.blob()?;
                let status = Status::from_code(row.int()?)?;
                let digest = row.maybe_array()?.map(BodyDigest);
                let parked_id = row.maybe_array()?.map(ParkedId);
                rows.insert(id, InboxRow { status, digest, parked_id });
            }
        }
        Ok(rows)
    }

    /// Takes claims of this transaction back: what was not reached must not be recorded as done.
    pub async fn unclaim(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        ids: &[&MessageId],
    ) -> Result<(), DbError> {
        for ids in ids.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("consumer", consumer)
                .blobs("message_id", ids.iter().map(|id| Some(id.as_bytes().into())));
            let deleted = execute(connection, &self.statements.unclaim, args).await?;
            all_moved(deleted, ids.len(), "an inbox row")?;
        }
        Ok(())
    }

    /// Moves rows from one status to another; each must still say what `from` says.
    pub async fn move_inbox(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        moves: &[InboxMove],
    ) -> Result<(), DbError> {
        let mut sorted: Vec<&InboxMove> = moves.iter().collect();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let blob = |id: Option<ParkedId>| id.map(|id| id.0.to_vec());
        for moves in sorted.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("consumer", consumer)
                .blobs("message_id", moves.iter().map(|row| Some(row.id.as_bytes().to_vec())))
                .ints("was", moves.iter().map(|row| Some(row.from.0.code())))
                .blobs("was_parked", moves.iter().map(|row| blob(row.from.1)))
                .ints("status", moves.iter().map(|row| Some(row.to.0.code())))
                .blobs("parked_id", moves.iter().map(|row| blob(row.to.1)))
                .blobs("module", moves.iter().map(|row| row.module.map(|module| module.to_vec())));
            let moved = execute(connection, &self.statements.inbox_move, args).await?;
            all_moved(moved, moves.len(), "an inbox row")?;
        }
        Ok(())
    }
}

fn claim_args(consumer: &str, claims: &[&Claim]) -> Args {
    Args::new()
        .one("consumer", consumer)
        .blobs("message_id", claims.iter().map(|claim| Some(claim.id.as_bytes().to_vec())))
        .ints("status", claims.iter().map(|claim| Some(claim.status.code())))
        .blobs("parked_id", claims.iter().map(|claim| claim.parked_id.map(|id| id.0.to_vec())))
        .blobs("body_digest", claims.iter().map(|claim| claim.digest.map(|digest| digest.0.to_vec())))
        .blobs("module", claims.iter().map(|claim| claim.module.map(|module| module.to_vec())))
}
