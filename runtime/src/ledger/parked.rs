//! Messages that SQL holds itself: waiting for a retry, deferred, running, dead.
//!
//! A row changes state through one constructor for each transition ([`NewParked`] for those that make a row,
//! [`ParkedMove`] for those of a running row), and only under the token of the run that owns it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::database::{Connection, DbError};
use super::statements::Args;
use super::value::{ResultSet, Value};
use super::{Ledger, Reader, STATEMENT_ROWS, all_moved, execute, own_transaction, query};
use crate::guest::{Advice, Failure};
use crate::message::{BodyDigest, Message, MessageId, Properties};
use crate::outcome::Reason;

/// Bodies larger than this are stored in chunks of this size: one INSERT of 16 MiB gets MariaDB's connection reset.
pub const CHUNK_BYTES: usize = 1 << 20;

/// At most about this many bytes of bodies travel in one statement, far below any server's packet limit.
const STATEMENT_BYTES: usize = 4 << 20;

/// Rows whose bodies have more than this together are not taken at once, for a lane holds them all in memory.
const TAKE_BYTES: u64 = 64 << 20;

/// A parked row's key: a UUIDv7, or for rows that must exist once, derived from what they stand for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParkedId(pub [u8; 16]);

impl ParkedId {
    /// A new one; later ones sort after earlier ones.
    pub fn new() -> Self {
        Self(*Uuid::now_v7().as_bytes())
    }

    /// Always the same one for the same parts.
    pub fn derived(parts: &[&[u8]]) -> Self {
        Self(*derived_uuid(parts).as_bytes())
    }
}

impl Default for ParkedId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ParkedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_bytes(self.0).fmt(f)
    }
}

impl fmt::Debug for ParkedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A UUIDv8 (RFC 9562) from the SHA-256 of the parts, each preceded by its length so that no two lists collide.
pub fn derived_uuid(parts: &[&[u8]]) -> Uuid {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let full = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&full[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Names the host process that runs a row, so that it can tell its own from others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Incarnation(pub [u8; 16]);

impl Incarnation {
    /// One for each start of a host.
    pub fn new() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }
}

impl Default for Incarnation {
    fn default() -> Self {
        Self::new()
    }
}

/// Proof that a running row is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RunToken(pub [u8; 16]);

macro_rules! coded {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// As it is stored.
            pub fn code(self) -> i64 {
                match self { $(Self::$variant => $code,)* }
            }

            /// As people read it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            fn from_code(code: i64) -> Result<Self, DbError> {
                match code {
                    $($code => Ok(Self::$variant),)*
                    other => Err(DbError::infrastructure(format!(
                        "hapax_parked holds {} {other}, which this version does not know: was it written by a newer one?",
                        stringify!($name),
                    ))),
                }
            }
        }
    };
}

coded! {
    /// Where a parked row stands.
    State {
        /// Waiting to be run again.
        Retry = 1, "retry";
        /// Taken by a host.
        Running = 2, "running";
        /// A stored delivery, waiting to go through the claim.
        Deferred = 3, "deferred";
        /// A dead letter.
        Dead = 4, "dead";
        /// A dead letter that an operator has given up.
        Discarded = 5, "discarded";
    }
}

coded! {
    /// What running a row means.
    Phase {
        /// Its handler is called.
        Handle = 1, "handle";
        /// Its compensation is called.
        Compensate = 2, "compensate";
        /// It goes through the claim like a delivery.
        Deliver = 3, "deliver";
    }
}

/// A parked row as it stands in the table.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedRow {
    /// Its key.
    pub id: ParkedId,
    /// The consumer it belongs to.
    pub consumer: String,
    /// The message id; none for messages without a valid one.
    pub message_id: Option<MessageId>,
    /// Where it stands.
    pub state: State,
    /// What running it means.
    pub phase: Phase,
    /// How often it was redriven.
    pub generation: u32,
    /// When it is due, in milliseconds since the Unix epoch by the server's clock.
    pub due_at: Option<i64>,
    /// Its partition.
    pub slot: u16,
    /// Failed attempts in this phase and generation.
    pub attempts: u32,
    /// Failed attempts of the handler, once its compensation has taken over.
    pub handler_attempts: u32,
    /// Hosts that were lost while they ran it, since its last orderly end.
    pub crashes: u32,
    /// Compensations that took effect.
    pub compensations: u32,
    /// The run that owns it.
    pub run_token: Option<RunToken>,
    /// The host of that run.
    pub incarnation: Option<Incarnation>,
    /// When that run took it, in milliseconds since the Unix epoch.
    pub taken_at: Option<i64>,
    /// Why it is dead, or about to be compensated.
    pub reason: Option<String>,
    /// The code of the last failure.
    pub code: Option<String>,
    /// The message of the last failure, its detail after the first line.
    pub error: Option<String>,
    /// The module that failed last.
    pub module: Option<[u8; 8]>,
    /// The body's digest.
    pub digest: BodyDigest,
    /// What the producer sent. The body is empty where a list leaves it out.
    pub message: Arc<Message>,
    /// The body's length.
    pub body_bytes: u64,
    /// Milliseconds since the Unix epoch.
    pub created_at: i64,
    /// Milliseconds since the Unix epoch.
    pub updated_at: i64,
}

impl ParkedRow {
    /// The last failure, put together again.
    pub fn failure(&self) -> Option<Failure> {
        let error = self.error.as_ref()?;
        let (message, detail) = match error.split_once('\n') {
            Some((message, detail)) => (message.to_owned(), Some(detail.to_owned())),
            None => (error.clone(), None),
        };
        Some(Failure { advice: Advice::ByPolicy, code: self.code.clone(), message, detail })
    }
}

/// A failure in the form in which a row keeps it: code, and message with its detail.
fn stored(failure: Option<&Failure>) -> (Option<String>, Option<String>) {
    let Some(failure) = failure else { return (None, None) };
    let message = failure.message.replace('\n', " ");
    let text = match &failure.detail {
        Some(detail) => format!("{message}\n{detail}"),
        None => message,
    };
    (failure.code.as_deref().map(without_nul), Some(without_nul(&text)))
}

/// Postgres cannot store NUL in text.
fn without_nul(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// A row to insert.
#[derive(Debug, Clone, PartialEq)]
pub struct NewParked {
    /// Its key.
    pub id: ParkedId,
    message_id: Option<MessageId>,
    state: State,
    phase: Phase,
    delay: Option<Duration>,
    slot: u16,
    attempts: u32,
    handler_attempts: u32,
    reason: Option<String>,
    code: Option<String>,
    error: Option<String>,
    module: Option<[u8; 8]>,
    digest: BodyDigest,
    message: Arc<Message>,
}

/// The message that a new row carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    /// The key of its row, if it comes to have one: made when the message arrived, so that rows sort in that order and
    /// a transaction that is run again makes the same one.
    pub row_id: ParkedId,
    /// Its id, where it has a valid one.
    pub id: Option<MessageId>,
    /// Its partition.
    pub slot: u16,
    /// The body's digest.
    pub digest: BodyDigest,
    /// What the producer sent.
    pub message: Arc<Message>,
    /// The module that ran it, if any did.
    pub module: Option<[u8; 8]>,
}

impl NewParked {
    fn of(carried: Carried, state: State, phase: Phase, delay: Option<Duration>) -> Self {
        Self {
            id: carried.row_id,
            message_id: carried.id,
            state,
            phase,
            delay,
            slot: carried.slot,
            attempts: 0,
            handler_attempts: 0,
            reason: None,
            code: None,
            error: None,
            module: carried.module,
            digest: carried.digest,
            message: carried.message,
        }
    }

    /// absent → retry: handled again after `delay`. The caller writes the inbox row that points here.
    pub fn retry(carried: Carried, attempts: u32, delay: Duration, failure: Option<&Failure>) -> Self {
        let (code, error) = stored(failure);
        Self { attempts, code, error, ..Self::of(carried, State::Retry, Phase::Handle, Some(delay)) }
    }

    /// absent → retry in phase compensate, due now.
    pub fn compensate(carried: Carried, reason: Reason, handler_attempts: u32, failure: &Failure) -> Self {
        let (code, error) = stored(Some(failure));
        let reason = Some(reason.as_str().to_owned());
        let row = Self::of(carried, State::Retry, Phase::Compensate, Some(Duration::ZERO));
        Self { handler_attempts, reason, code, error, ..row }
    }

    /// absent → dead.
    pub fn dead(carried: Carried, reason: Reason, attempts: u32, failure: Option<&Failure>) -> Self {
        let (code, error) = stored(failure);
        let reason = Some(reason.as_str().to_owned());
        Self { attempts, reason, code, error, ..Self::of(carried, State::Dead, Phase::Handle, None) }
    }

    /// A dead letter of its own, which no inbox row points to. With a `once` key the same one is stored once.
    pub fn dead_apart(carried: Carried, reason: Reason, error: &str, once: Option<ParkedId>) -> Self {
        let mut row = Self::of(carried, State::Dead, Phase::Handle, None);
        row.reason = Some(reason.as_str().to_owned());
        row.error = Some(without_nul(error));
        row.id = once.unwrap_or(row.id);
        row
    }

    /// unknown → deferred: a stored delivery.
    pub fn deferred(carried: Carried, delay: Duration) -> Self {
        Self::of(carried, State::Deferred, Phase::Deliver, Some(delay))
    }

    /// The body's length in bytes.
    fn body_len(&self) -> usize {
        self.message.body.len()
    }
}

/// A transition of a running row, under its run's token. Any of them is an orderly end: crashes become 0, except for
/// the two of a rescue.
#[derive(Debug, Clone, PartialEq)]
pub struct ParkedMove {
    /// The row.
    pub id: ParkedId,
    token: RunToken,
    state: State,
    phase: Phase,
    generation: u32,
    delay: Option<Duration>,
    attempts: u32,
    handler_attempts: u32,
    crashes: u32,
    compensations: u32,
    reason: Option<String>,
    code: Option<String>,
    error: Option<String>,
    module: Option<[u8; 8]>,
}

impl ParkedMove {
    fn of(row: &ParkedRow, token: RunToken, state: State, delay: Option<Duration>) -> Self {
        Self {
            id: row.id,
            token,
            state,
            phase: row.phase,
            generation: row.generation,
            delay,
            attempts: row.attempts,
            handler_attempts: row.handler_attempts,
            crashes: 0,
            compensations: row.compensations,
            reason: row.reason.clone(),
            code: row.code.clone(),
            error: row.error.clone(),
            module: None,
        }
    }

    fn failed(mut self, failure: Option<&Failure>, module: Option<[u8; 8]>) -> Self {
        if failure.is_some() {
            (self.code, self.error) = stored(failure);
            self.module = module;
        }
        self
    }

    /// running → retry, in the phase it is in (a deferred row that was claimed becomes a handled one).
    pub fn retry(
        row: &ParkedRow,
        token: RunToken,
        attempts: u32,
        delay: Duration,
        failure: Option<&Failure>,
        module: Option<[u8; 8]>,
    ) -> Self {
        let phase = if row.phase == Phase::Deliver { Phase::Handle } else { row.phase };
        Self { phase, attempts, ..Self::of(row, token, State::Retry, Some(delay)) }.failed(failure, module)
    }

    /// running → deferred again, uncounted.
    pub fn defer(row: &ParkedRow, token: RunToken, delay: Duration) -> Self {
        Self::of(row, token, State::Deferred, Some(delay))
    }

    /// running → retry in phase compensate, due now, with attempts of its own.
    pub fn compensate(
        row: &ParkedRow,
        token: RunToken,
        reason: Reason,
        handler_attempts: u32,
        failure: &Failure,
        module: Option<[u8; 8]>,
    ) -> Self {
        let moved = Self::of(row, token, State::Retry, Some(Duration::ZERO)).failed(Some(failure), module);
        let reason = Some(reason.as_str().to_owned());
        Self { phase: Phase::Compensate, attempts: 0, handler_attempts, reason, ..moved }
    }

    /// running → dead.
    pub fn dead(
        row: &ParkedRow,
        token: RunToken,
        reason: Reason,
        attempts: u32,
        failure: Option<&Failure>,
        module: Option<[u8; 8]>,
    ) -> Self {
        let moved = Self::of(row, token, State::Dead, None).failed(failure, module);
        Self { attempts, reason: Some(reason.as_str().to_owned()), ..moved }
    }

    /// running in phase compensate → dead, the compensation having taken effect. It keeps the reason it had.
    pub fn compensated(row: &ParkedRow, token: RunToken) -> Self {
        Self { compensations: row.compensations + 1, ..Self::of(row, token, State::Dead, None) }
    }

    /// running → where it was, its runner being lost.
    pub fn rescued(row: &ParkedRow, token: RunToken, delay: Duration) -> Self {
        let state = if row.phase == Phase::Deliver { State::Deferred } else { State::Retry };
        Self { crashes: row.crashes + 1, ..Self::of(row, token, state, Some(delay)) }
    }

    /// running → dead, its runners having been lost too often.
    pub fn crashed(row: &ParkedRow, token: RunToken) -> Self {
        let crashes = row.crashes + 1;
        let error = format!("the host was lost {crashes} times while it ran this message");
        let reason = Some(Reason::Crashed.as_str().to_owned());
        Self { crashes, reason, error: Some(error), ..Self::of(row, token, State::Dead, None) }
    }
}

/// Which due rows to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Those that never cost a host, first due first.
    Innocent,
    /// One that did.
    Suspect,
    /// The oldest ones, up to the first that is not due, a suspect alone: for blocking retry.
    Oldest,
}

/// What to take, for one lane.
#[derive(Debug, Clone)]
pub struct Take<'a> {
    /// The consumer.
    pub consumer: &'a str,
    /// The lane's slots.
    pub slots: RangeInclusive<u16>,
    /// At most this many rows.
    pub limit: usize,
    /// Who takes them.
    pub incarnation: Incarnation,
    /// Which rows, in which order.
    pub which: Which,
}

impl Ledger {
    /// Inserts rows in the lane's transaction. One whose key exists stays as it is.
    pub async fn park(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        rows: &[NewParked],
    ) -> Result<(), DbError> {
        for part in statements(rows, |row| row.body_len().min(CHUNK_BYTES)) {
            execute(connection, &self.statements.park, park_args(consumer, part)).await?;
        }
        for row in rows.iter().filter(|row| row.body_len() > CHUNK_BYTES) {
            for (ordinal, chunk) in row.message.body.chunks(CHUNK_BYTES).enumerate() {
                let args = Args::new()
                    .one("parked_id", row.id.0.as_slice())
                    .one("ordinal", i64::try_from(ordinal).unwrap_or(i64::MAX))
                    .one("bytes", chunk);
                execute(connection, &self.statements.park_chunk, args).await?;
            }
        }
        Ok(())
    }

    /// Takes due rows in a committed transaction of its own, on the lane's connection. They are then ours until we
    /// move them, give them back, or somebody rescues them.
    pub async fn take_due(
        &self,
        connection: &mut dyn Connection,
        take: &Take<'_>,
    ) -> Result<(RunToken, Vec<ParkedRow>), DbError> {
        let token = RunToken(*Uuid::new_v4().as_bytes());
        connection.begin().await?;
        let taken = self.take_in_transaction(connection, take, token).await;
        match taken {
            Ok(rows) if rows.is_empty() => connection.rollback().await.map(|()| (token, rows)),
            Ok(rows) => connection.commit().await.map(|()| (token, rows)),
            Err(error) => {
                if !error.connection_lost {
                    connection.rollback().await?;
                }
                Err(error)
            }
        }
    }

    async fn take_in_transaction(
        &self,
        connection: &mut dyn Connection,
        take: &Take<'_>,
        token: RunToken,
    ) -> Result<Vec<ParkedRow>, DbError> {
        let args = Args::new()
            .one("consumer", take.consumer)
            .one("first_slot", i64::from(*take.slots.start()))
            .one("last_slot", i64::from(*take.slots.end()));
        let limit = i64::try_from(take.limit).unwrap_or(i64::MAX);
        let mut rows = match take.which {
            Which::Suspect => read_rows(query(connection, &self.statements.due_suspect, args).await?)?,
            Which::Innocent => read_rows(query(connection, &self.statements.due, args.one("limit", limit)).await?)?,
            Which::Oldest => {
                let pending = query(connection, &self.statements.due_in_order, args.one("limit", limit)).await?;
                let is_due = |row: &Vec<Value>| row.last() == Some(&Value::Int(1));
                let due = pending.rows.into_iter().take_while(is_due).collect();
                up_to_a_suspect(read_rows(ResultSet { columns: pending.columns, rows: due })?)
            }
        };
        rows.truncate(fitting(&rows));
        for rows in rows.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .one("incarnation", take.incarnation.0.as_slice())
                .blobs("row_id", rows.iter().map(|row| Some(row.id.0.to_vec())));
            let taken = execute(connection, &self.statements.take, args).await?;
            all_moved(taken, rows.len(), "a parked row")?;
        }
        for row in &mut rows {
            self.load_body(connection, row).await?;
        }
        Ok(rows)
    }

    /// Reads a body that is kept in chunks.
    pub(super) async fn load_body(&self, connection: &mut dyn Connection, row: &mut ParkedRow) -> Result<(), DbError> {
        if row.body_bytes as usize <= CHUNK_BYTES {
            return Ok(());
        }
        let body = self.chunks(connection, row.id, row.body_bytes).await?;
        let mut message = (*row.message).clone();
        message.body = body;
        row.message = Arc::new(message);
        Ok(())
    }

    pub(super) async fn chunks(
        &self,
        connection: &mut dyn Connection,
        id: ParkedId,
        bytes: u64,
    ) -> Result<Bytes, DbError> {
        let args = Args::new().one("parked_id", id.0.as_slice());
        let found = query(connection, &self.statements.chunks, args).await?;
        let mut body = BytesMut::with_capacity(bytes as usize);
        for row in found.rows {
            body.extend_from_slice(&Reader::new(row).blob()?);
        }
        if body.len() as u64 != bytes {
            return Err(DbError::infrastructure(format!(
                "the body of parked row {id} has {} of its {bytes} bytes in hapax_parked_chunks",
                body.len()
            )));
        }
        Ok(body.freeze())
    }

    /// Locks what was taken, to the end of the lane's transaction. Returns the keys that are still ours.
    pub async fn lock_running(
        &self,
        connection: &mut dyn Connection,
        token: RunToken,
        ids: &[ParkedId],
    ) -> Result<Vec<ParkedId>, DbError> {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        let mut ours = Vec::with_capacity(ids.len());
        for ids in sorted.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .blobs("row_id", ids.iter().map(|id| Some(id.0.to_vec())));
            for row in query(connection, &self.statements.lock_running, args).await?.rows {
                ours.push(ParkedId(Reader::new(row).array()?));
            }
        }
        Ok(ours)
    }

    /// Writes transitions of running rows.
    pub async fn move_parked(&self, connection: &mut dyn Connection, moves: &[ParkedMove]) -> Result<(), DbError> {
        for moves in moves.chunks(STATEMENT_ROWS) {
            let moved = execute(connection, &self.statements.parked_move, move_args(moves)).await?;
            all_moved(moved, moves.len(), "a parked row")?;
        }
        Ok(())
    }

    /// Deletes running rows that are done with, and their chunks.
    pub async fn delete_parked(
        &self,
        connection: &mut dyn Connection,
        token: RunToken,
        rows: &[&ParkedRow],
    ) -> Result<(), DbError> {
        for rows in rows.chunks(STATEMENT_ROWS) {
            let args = Args::new()
                .one("run_token", token.0.as_slice())
                .blobs("row_id", rows.iter().map(|row| Some(row.id.0.to_vec())));
            let deleted = execute(connection, &self.statements.parked_delete, args).await?;
            all_moved(deleted, rows.len(), "a parked row")?;
        }
        let large: Vec<ParkedId> =
            rows.iter().filter(|row| row.body_bytes as usize > CHUNK_BYTES).map(|row| row.id).collect();
        self.delete_chunks(connection, &large).await
    }

    pub(super) async fn delete_chunks(&self, connection: &mut dyn Connection, ids: &[ParkedId]) -> Result<(), DbError> {
        for ids in ids.chunks(STATEMENT_ROWS) {
            let args = Args::new().blobs("parked_id", ids.iter().map(|id| Some(id.0.to_vec())));
            execute(connection, &self.statements.chunks_delete, args).await?;
        }
        Ok(())
    }

    /// Gives back what a run of this host took and will not finish, uncounted, due again after `delay`.
    pub async fn give_back(
        &self,
        consumer: &str,
        incarnation: Incarnation,
        token: RunToken,
        delay: Duration,
    ) -> Result<(), DbError> {
        own_transaction!(self, |connection| {
            let args = Args::new()
                .one("consumer", consumer)
                .one("incarnation", incarnation.0.as_slice())
                .one("run_token", token.0.as_slice());
            let mut ids = Vec::new();
            for row in query(connection, &self.statements.taken, args).await?.rows {
                ids.push(Some(Reader::new(row).blob()?));
            }
            for ids in ids.chunks(STATEMENT_ROWS) {
                let args = Args::new()
                    .one("run_token", token.0.as_slice())
                    .one("delay", millis(delay))
                    .blobs("row_id", ids.iter().cloned());
                // Fewer, where some have been rescued in the meantime.
                execute(connection, &self.statements.give_back, args).await?;
            }
            Ok(())
        })
    }

    /// Which slots have something due within `horizon`, and in how long.
    pub async fn due_slots(&self, consumer: &str, horizon: Duration) -> Result<Vec<(u16, Duration)>, DbError> {
        let args = Args::new().one("consumer", consumer).one("horizon", millis(horizon));
        let found = own_transaction!(self, |connection| query(connection, &self.statements.due_slots, args).await)?;
        found
            .rows
            .into_iter()
            .map(|row| {
                let mut row = Reader::new(row);
                let slot = row.number()?;
                let wait = row.int()?;
                Ok((slot, Duration::from_millis(wait.max(0).unsigned_abs())))
            })
            .collect()
    }

    /// True if anything that came earlier is still to be run for these slots.
    pub async fn slots_blocked(
        &self,
        connection: &mut dyn Connection,
        consumer: &str,
        slots: RangeInclusive<u16>,
    ) -> Result<bool, DbError> {
        let args = Args::new()
            .one("consumer", consumer)
            .one("first_slot", i64::from(*slots.start()))
            .one("last_slot", i64::from(*slots.end()));
        let found = query(connection, &self.statements.slots_blocked, args).await?;
        Ok(!found.rows.is_empty())
    }

    /// How many rows stand in each state.
    pub async fn parked_counts(&self, consumer: &str) -> Result<Vec<(State, u64)>, DbError> {
        let args = Args::new().one("consumer", consumer);
        let found = own_transaction!(self, |connection| query(connection, &self.statements.parked_counts, args).await)?;
        found
            .rows
            .into_iter()
            .map(|row| {
                let mut row = Reader::new(row);
                Ok((State::from_code(row.int()?)?, row.number()?))
            })
            .collect()
    }
}

/// A suspect is taken alone: those taken with it would share its crash.
fn up_to_a_suspect(mut rows: Vec<ParkedRow>) -> Vec<ParkedRow> {
    if let Some(at) = rows.iter().position(|row| row.crashes > 0) {
        rows.truncate(at.max(1));
    }
    rows
}

/// How many of the rows may be taken together: as many as have bodies of [`TAKE_BYTES`], and at least one.
fn fitting(rows: &[ParkedRow]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take_while(|row| {
        bytes += row.body_bytes;
        bytes <= TAKE_BYTES
    });
    fits.count().max(1).min(rows.len())
}

/// Cuts rows up so that each part makes one statement of bearable size.
pub(super) fn statements<T>(rows: &[T], bytes_of: impl Fn(&T) -> usize) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(STATEMENT_ROWS).take_while(|row| {
            bytes += bytes_of(row);
            bytes <= STATEMENT_BYTES
        });
        let (now, later) = rest.split_at(fits.count().max(1).min(rest.len()));
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Milliseconds, as SQL takes them; what does not fit is as good as never.
pub(super) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4).min(i64::MAX / 4)
}

fn move_args(moves: &[ParkedMove]) -> Args {
    Args::new()
        .blobs("row_id", moves.iter().map(|row| Some(row.id.0.to_vec())))
        .blobs("run_token", moves.iter().map(|row| Some(row.token.0.to_vec())))
        .ints("state", moves.iter().map(|row| Some(row.state.code())))
        .ints("phase", moves.iter().map(|row| Some(row.phase.code())))
        .ints("generation", moves.iter().map(|row| Some(row.generation.into())))
        .ints("delay", moves.iter().map(|row| row.delay.map(millis)))
        .ints("attempts", moves.iter().map(|row| Some(row.attempts.into())))
        .ints("handler_attempts", moves.iter().map(|row| Some(row.handler_attempts.into())))
        .ints("crashes", moves.iter().map(|row| Some(row.crashes.into())))
        .ints("compensations", moves.iter().map(|row| Some(row.compensations.into())))
        .texts("reason", moves.iter().map(|row| row.reason.clone()))
        .texts("code", moves.iter().map(|row| row.code.clone()))
        .texts("error", moves.iter().map(|row| row.error.clone()))
        .blobs("module", moves.iter().map(|row| row.module.map(|module| module.to_vec())))
}

fn park_args(consumer: &str, rows: &[NewParked]) -> Args {
    let zeros = || rows.iter().map(|_| Some(0));
    Args::new()
        .one("consumer", consumer)
        .blobs("id", rows.iter().map(|row| Some(row.id.0.to_vec())))
        .blobs("message_id", rows.iter().map(|row| row.message_id.as_ref().map(|id| id.as_bytes().to_vec())))
        .ints("state", rows.iter().map(|row| Some(row.state.code())))
        .ints("phase", rows.iter().map(|row| Some(row.phase.code())))
        .ints("generation", zeros())
        .ints("delay", rows.iter().map(|row| row.delay.map(millis)))
        .ints("slot", rows.iter().map(|row| Some(row.slot.into())))
        .ints("attempts", rows.iter().map(|row| Some(row.attempts.into())))
        .ints("handler_attempts", rows.iter().map(|row| Some(row.handler_attempts.into())))
        .ints("crashes", zeros())
        .ints("compensations", zeros())
        .texts("reason", rows.iter().map(|row| row.reason.clone()))
        .texts("code", rows.iter().map(|row| row.code.clone()))
        .texts("error", rows.iter().map(|row| row.error.clone()))
        .blobs("module", rows.iter().map(|row| row.module.map(|module| module.to_vec())))
        .blobs("body_digest", rows.iter().map(|row| Some(row.digest.0.to_vec())))
        .texts("exchange", rows.iter().map(|row| Some(without_nul(&row.message.exchange))))
        .texts("routing_key", rows.iter().map(|row| Some(without_nul(&row.message.routing_key))))
        .texts("properties", rows.iter().map(|row| Some(properties_json(&row.message.properties))))
        .blobs("body", rows.iter().map(|row| (row.body_len() <= CHUNK_BYTES).then(|| row.message.body.to_vec())))
        .ints("body_bytes", rows.iter().map(|row| i64::try_from(row.body_len()).ok()))
}

/// Properties as they are stored. JSON escapes NUL, so any text may be in them.
pub(super) fn properties_json(properties: &Properties) -> String {
    serde_json::to_string(properties).unwrap_or_else(|_| "{}".to_owned())
}

pub(super) fn parse_properties(json: &str) -> Result<Properties, DbError> {
    serde_json::from_str(json).map_err(|error| {
        DbError::infrastructure(format!("a hapax_* table holds properties that do not parse: {error}"))
    })
}

fn read_rows(found: ResultSet) -> Result<Vec<ParkedRow>, DbError> {
    found.rows.into_iter().map(read_row).collect()
}

/// Reads a row in the column order of the SQL files.
pub(super) fn read_row(row: Vec<Value>) -> Result<ParkedRow, DbError> {
    let mut row = Reader::new(row);
    let id = ParkedId(row.array()?);
    let consumer = row.text()?;
    let message_id = match row.maybe_blob()? {
        Some(bytes) => Some(MessageId::from_bytes(&bytes).map_err(|bad| {
            DbError::infrastructure(format!("parked row {id} holds a message id that cannot be one: {bad}"))
        })?),
        None => None,
    };
    let state = State::from_code(row.int()?)?;
    let phase = Phase::from_code(row.int()?)?;
    let generation = row.number()?;
    let due_at = row.maybe_int()?;
    let slot = row.number()?;
    let (attempts, handler_attempts) = (row.number()?, row.number()?);
    let (crashes, compensations) = (row.number()?, row.number()?);
    let run_token = row.maybe_array()?.map(RunToken);
    let incarnation = row.maybe_array()?.map(Incarnation);
    let taken_at = row.maybe_int()?;
    let (reason, code, error) = (row.maybe_text()?, row.maybe_text()?, row.maybe_text()?);
    let module = row.maybe_array()?;
    let digest = BodyDigest(row.array()?);
    let (exchange, routing_key) = (row.text()?, row.text()?);
    let properties = parse_properties(&row.text()?)?;
    let body = Bytes::from(row.maybe_blob()?.unwrap_or_default());
    let body_bytes = row.number()?;
    let (created_at, updated_at) = (row.int()?, row.int()?);
    Ok(ParkedRow {
        id,
        consumer,
        message_id,
        state,
        phase,
        generation,
        due_at,
        slot,
        attempts,
        handler_attempts,
        crashes,
        compensations,
        run_token,
        incarnation,
        taken_at,
        reason,
        code,
        error,
        module,
        digest,
        message: Arc::new(Message { exchange, routing_key, properties, body }),
        body_bytes,
        created_at,
        updated_at,
    })
}
