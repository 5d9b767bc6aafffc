//! Guests: handler components, from file to verdict.
//!
//! A [`Module`](module::Module) is a compiled component that passed its link check; a [`ModuleSlot`](swap::ModuleSlot)
//! holds a consumer's current one; an [`Instance`](instance::Instance) is one live copy of it, kept by a
//! [`LaneGuest`](lane::LaneGuest) and reused; a [`Call`] is one attempt, and [`Finished`] what it came to.

pub mod ahead;
mod bindings;
pub mod cache;
pub mod compile;
mod convert;
pub mod engine;
pub mod error;
#[cfg(test)]
mod fuzz;
pub mod grants;
mod host;
mod ids;
pub mod inspect;
pub mod instance;
pub mod lane;
mod lent;
pub mod module;
mod output;
mod patience;
pub mod sql_guard;
mod state;
pub mod swap;
#[cfg(test)]
mod testing;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Outgoing;
use crate::ledger::database::{Connection, DbError};
use crate::message::{Message, MessageId};

use ahead::{Ahead, Refuted};
use module::CONTRACT;

/// The first 8 bytes of a module's SHA-256 name it in the inbox; people see them in hex.
pub type ModuleDigest = [u8; 32];

/// What a guest is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Handle the message.
    Handle,
    /// Undo what a message that will never be handled has caused elsewhere.
    Compensate(Death),
}

/// Why a message will never be handled, as `death` of the contract has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Death {
    /// `exhausted`, `permanent`, `contention`, …
    pub reason: String,
    /// Failed attempts so far.
    pub attempts: u32,
    /// The handler's last word; none when none spoke.
    pub failure: Option<Failure>,
}

/// What the handler advises about a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// As the retry policy says.
    ByPolicy,
    /// After this long.
    After(Duration),
    /// Never: permanent.
    Never,
}

/// How an attempt failed, in words for operators.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What to do about it.
    pub advice: Advice,
    /// Groups failures; `trap`, `timeout`, `sql-…` where the host speaks for the handler.
    pub code: Option<String>,
    /// One line.
    pub message: String,
    /// Stack trace or guest stderr, cut at 16 KiB.
    pub detail: Option<String>,
}

/// One attempt.
#[derive(Debug, Clone)]
pub struct Call {
    /// Handle or compensate.
    pub phase: Phase,
    /// The message id under the consumer's rule.
    pub id: MessageId,
    /// What the producer sent.
    pub message: Arc<Message>,
    /// 1 on the first attempt.
    pub attempt: u32,
    /// How many there may be.
    pub max_attempts: u32,
    /// How often the message was redriven: part of every outbox id.
    pub generation: u32,
    /// Compensations that took effect so far: part of every idempotency key.
    pub compensations: u32,
    /// Wall-clock limit of the attempt.
    pub time_limit: Duration,
}

/// What an attempt came to.
pub struct Finished {
    /// The guest's word, or the host's in its place.
    pub verdict: Verdict,
    /// What it asked to publish; ids and delivery mode are set. Empty unless the verdict is `Ok`.
    pub outbox: Vec<Outgoing>,
    /// The lane's connection, unless it went down with the attempt (time-out, trap inside a statement).
    pub connection: Option<Box<dyn Connection>>,
    /// What runs ahead of the database on that connection.
    pub ahead: Ahead,
    /// The guest changed rows or tried to, or a statement failed: a failed attempt without that leaves nothing to roll
    /// back.
    pub touched_sql: bool,
    /// The instance, if it may be used again: not after a trap or a time-out, and not when it has served long enough.
    pub instance: Option<instance::Instance>,
    /// The module that ran.
    pub module: ModuleDigest,
    /// Time inside the call.
    pub elapsed: Duration,
    /// Of it, time in the guest's code and at its boundary: without what the host did for its statements. Zero for a call
    /// that was stopped.
    pub in_guest: Duration,
}

/// The verdict on an attempt.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Handled.
    Ok,
    /// The handler said so, trapped, ran out of time or memory, or returned ok after a statement of its own failed.
    Failed(Failure),
    /// A statement met a deadlock, a serialization failure or a lock time-out: run again alone, uncounted.
    Contention(DbError),
    /// The database failed: uncounted.
    Infrastructure(DbError),
    /// A statement that this attempt or one before it had run ahead of was answered differently: uncounted, and all that
    /// came after that statement is to be made again.
    Refuted(Refuted),
}
