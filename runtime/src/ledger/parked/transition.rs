//! The transitions of a parked row, one constructor for each, and the parameters that write them.

use std::sync::Arc;
use std::time::Duration;

use super::store::millis;
use super::{CHUNK_BYTES, ParkedId, ParkedRow, Phase, RunToken, State, properties_json};
use crate::guest::Failure;
use crate::ledger::statements::Args;
use crate::message::{BodyDigest, Message, MessageId};
use crate::outcome::Reason;

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
    pub(super) message: Arc<Message>,
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
    pub(super) fn body_len(&self) -> usize {
        self.message.body.len()
    }
}

/// A transition of a running row, under its run's token. Any of them is an orderly end: crashes become 0, except for
/// the two of a rescue, and for one that was not run.
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

    /// running → where it was, uncounted: it has not been run.
    pub fn put_off(row: &ParkedRow, token: RunToken, delay: Duration) -> Self {
        Self { crashes: row.crashes, ..Self::of(row, token, row.phase.waiting(), Some(delay)) }
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

    /// A stored delivery, running → dead, without an inbox row that points to it.
    pub fn dead_apart(row: &ParkedRow, token: RunToken, reason: Reason, error: &str) -> Self {
        let reason = Some(reason.as_str().to_owned());
        let error = Some(without_nul(error));
        Self { reason, code: None, error, ..Self::of(row, token, State::Dead, None) }
    }

    /// running in phase compensate → dead, the compensation having taken effect. It keeps the reason it had.
    pub fn compensated(row: &ParkedRow, token: RunToken) -> Self {
        Self { compensations: row.compensations + 1, ..Self::of(row, token, State::Dead, None) }
    }

    /// running → where it was, its runner being lost.
    pub fn rescued(row: &ParkedRow, token: RunToken, delay: Duration) -> Self {
        Self { crashes: row.crashes + 1, ..Self::of(row, token, row.phase.waiting(), Some(delay)) }
    }

    /// running → dead, its runners having been lost too often.
    pub fn crashed(row: &ParkedRow, token: RunToken) -> Self {
        let crashes = row.crashes + 1;
        let error = format!("the host was lost {crashes} times while it ran this message");
        let reason = Some(Reason::Crashed.as_str().to_owned());
        Self { crashes, reason, error: Some(error), ..Self::of(row, token, State::Dead, None) }
    }
}

pub(super) fn move_args(moves: &[ParkedMove]) -> Args {
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

pub(super) fn park_args(consumer: &str, rows: &[NewParked]) -> Args {
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
