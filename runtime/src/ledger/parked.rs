//! Messages that SQL holds itself: waiting for a retry, deferred, running, dead.
//!
//! A row changes state through one constructor for each transition ([`NewParked`] for those that make a row,
//! [`ParkedMove`] for those of a running row), and only under the token of the run that owns it.

mod store;
mod transition;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use super::Reader;
use super::database::DbError;
use super::value::{ResultSet, Value};
use crate::guest::{Advice, Failure};
use crate::message::{BodyDigest, Message, MessageId, Properties};

pub use store::{Take, Which};
pub(super) use store::{millis, statements};
pub use transition::{Carried, NewParked, ParkedMove};

/// Bodies larger than this are stored in chunks of this size: one INSERT of 16 MiB gets MariaDB's connection reset.
pub const CHUNK_BYTES: usize = 1 << 20;

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
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them, as they are numbered.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

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

impl Phase {
    /// Where a row of this phase waits.
    fn waiting(self) -> State {
        if self == Self::Deliver { State::Deferred } else { State::Retry }
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
