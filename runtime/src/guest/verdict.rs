//! What an attempt came to. Pure: how the guest ended, and what the database said meanwhile, give the verdict.

use std::time::Duration;

use wasmtime::{Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use super::convert::{MAX_DETAIL, MAX_MESSAGE, cut};
use super::host::denied::NotGranted;
use super::host::sql::SqlFailure;
use super::{Advice, Failure, Verdict};
use crate::ledger::database::{DbError, DbErrorKind};

/// How the guest's function ended.
#[derive(Debug)]
pub(crate) enum Ending {
    /// It returned.
    Returned(Result<(), Failure>),
    /// It trapped, or the host stopped it; in words.
    Stopped(Failure),
    /// The host stopped it while a statement of it waited for locks of other transactions; in words.
    Waiting(String),
}

/// Judges an attempt by its ending, its first SQL error, and the ping that failed beside it.
///
/// What the database did to the attempt outranks what the guest made of it: a guest that swallows a deadlock, or
/// panics because of one, has still met a deadlock.
pub(crate) fn judge(ending: Ending, sql: Option<SqlFailure>, ping: Option<DbError>) -> Verdict {
    let sql_error = sql.as_ref().map(|failure| failure.message().to_owned());
    match sql {
        Some(SqlFailure::Refuted(refuted)) => return Verdict::Refuted(refuted),
        Some(SqlFailure::Database(error)) if error.kind == DbErrorKind::Contention => {
            return Verdict::Contention(error);
        }
        Some(SqlFailure::Database(error)) if error.kind == DbErrorKind::Infrastructure => {
            return Verdict::Infrastructure(error);
        }
        _ => {}
    }
    if let Some(error) = ping {
        return Verdict::Infrastructure(error);
    }
    match (ending, sql_error) {
        (Ending::Returned(Ok(())), None) => Verdict::Ok,
        (Ending::Returned(Ok(())), Some(error)) => Verdict::Failed(ignored(&error)),
        (Ending::Returned(Err(failure)) | Ending::Stopped(failure), _) => Verdict::Failed(failure),
        (Ending::Waiting(message), _) => {
            let message = format!("{message} that waited for locks of other transactions");
            let error = DbError { connection_lost: true, ..DbError::infrastructure(message) };
            Verdict::Contention(DbError { kind: DbErrorKind::Contention, ..error })
        }
    }
}

fn ignored(error: &str) -> Failure {
    host_failure("sql-error-ignored", format!("the handler returned ok although a statement had failed: {error}"), None)
}

/// A failure in the host's words, transient.
pub(crate) fn host_failure(code: &str, message: String, detail: Option<String>) -> Failure {
    Failure {
        advice: Advice::ByPolicy,
        code: Some(code.to_owned()),
        message: cut(message, MAX_MESSAGE),
        detail: detail.filter(|detail| !detail.is_empty()).map(|detail| cut(detail, MAX_DETAIL)),
    }
}

/// The failure of an attempt that ran out of time.
pub(crate) fn timed_out(limit: Duration, in_statement: bool, stderr: String) -> Failure {
    let place = if in_statement { "inside a SQL statement" } else { "in the handler's own code" };
    let message = format!("the attempt was stopped after its time limit of {limit:?}, {place}");
    host_failure("timeout", message, Some(stderr))
}

/// The failure of an instance that ran out of time before it was there.
pub(crate) fn still_starting(limit: Duration, stderr: String) -> Failure {
    host_failure("timeout", format!("it was still starting after {limit:?}"), Some(stderr))
}

/// What the host knows about a store when its guest traps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryState {
    /// A growth was refused during the call.
    pub(crate) refused: bool,
    /// The limit in bytes.
    pub(crate) limit: u64,
}

/// The failure of an attempt that trapped.
pub(crate) fn trapped(error: &wasmtime::Error, memory: MemoryState, stderr: String) -> Failure {
    let mut detail = stderr;
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        // Standard error says more than the frames, which get the room that is left.
        if !detail.is_empty() {
            detail.push_str("\n\n");
        }
        detail.push_str(&backtrace.to_string());
    }
    host_failure("trap", trap_in_words(error, memory), Some(detail))
}

fn trap_in_words(error: &wasmtime::Error, memory: MemoryState) -> String {
    if let Some(I32Exit(status)) = error.downcast_ref::<I32Exit>() {
        return format!("the handler called exit({status}) instead of returning");
    }
    if let Some(refused) = error.downcast_ref::<NotGranted>() {
        return refused.to_string();
    }
    // An allocator that gets no more memory aborts, which is an `unreachable` like any other.
    if memory.refused {
        return format!("memory limit of {} reached", size(memory.limit));
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::UnreachableCodeReached) => "wasm `unreachable` executed (a panic or abort?)".to_owned(),
        Some(Trap::StackOverflow) => "stack overflow".to_owned(),
        Some(Trap::MemoryOutOfBounds) => {
            "memory access out of bounds (a stack overflow, or a bug in unsafe code?)".to_owned()
        }
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// Bytes in the largest unit that keeps them whole.
pub(crate) fn size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::ahead::Refuted;
    use crate::guest::bindings::sql::ErrorKind;

    fn database(kind: DbErrorKind) -> DbError {
        DbError { kind, ..DbError::infrastructure("x") }
    }

    fn sql(cause: Option<DbError>) -> Option<SqlFailure> {
        let refused = SqlFailure::Refused { kind: ErrorKind::Denied, code: None, message: "no grant".into() };
        Some(cause.map_or(refused, SqlFailure::Database))
    }

    fn failed(code: &str) -> Failure {
        host_failure(code, "m".into(), None)
    }

    #[test]
    fn a_verdict_follows_from_how_the_guest_and_its_sql_ended() {
        let ok = || Ending::Returned(Ok(()));
        let err = || Ending::Returned(Err(failed("mine")));
        let trap = || Ending::Stopped(failed("trap"));
        let waiting = || Ending::Waiting("stopped".to_owned());
        let contention = || sql(Some(database(DbErrorKind::Contention)));
        let infrastructure = || sql(Some(database(DbErrorKind::Infrastructure)));
        let constraint = || sql(Some(database(DbErrorKind::Constraint)));
        let refuted = || Some(SqlFailure::Refuted(Refuted { place: 0, error: None }));
        let ping = || Some(database(DbErrorKind::Infrastructure));
        let word = |verdict: Verdict| match verdict {
            Verdict::Ok => "ok".to_owned(),
            Verdict::Failed(failure) => failure.code.unwrap(),
            Verdict::Contention(_) => "contention".to_owned(),
            Verdict::Infrastructure(_) => "infrastructure".to_owned(),
            Verdict::Refuted(_) => "refuted".to_owned(),
        };
        for (ending, sql, ping, expected) in [
            (ok(), None, None, "ok"),
            (err(), None, None, "mine"),
            (trap(), None, None, "trap"),
            (ok(), constraint(), None, "sql-error-ignored"),
            (ok(), sql(None), None, "sql-error-ignored"),
            (err(), constraint(), None, "mine"),
            (trap(), constraint(), None, "trap"),
            (ok(), contention(), None, "contention"),
            (err(), contention(), None, "contention"),
            (trap(), contention(), ping(), "contention"),
            (waiting(), None, None, "contention"),
            (waiting(), None, ping(), "infrastructure"),
            (ok(), refuted(), None, "refuted"),
            (err(), refuted(), ping(), "refuted"),
            (trap(), refuted(), None, "refuted"),
            (ok(), infrastructure(), None, "infrastructure"),
            (trap(), infrastructure(), None, "infrastructure"),
            (ok(), None, ping(), "infrastructure"),
            (err(), constraint(), ping(), "infrastructure"),
        ] {
            assert_eq!(word(judge(ending, sql, ping)), expected);
        }
    }

    #[test]
    fn traps_are_told_in_words() {
        let memory = |refused| MemoryState { refused, limit: 64 << 20 };
        let unreachable = wasmtime::Error::from(Trap::UnreachableCodeReached);
        assert_eq!(trapped(&unreachable, memory(true), String::new()).message, "memory limit of 64 MiB reached");
        let failure = trapped(&unreachable, memory(false), "panicked at x".into());
        assert_eq!(failure.message, "wasm `unreachable` executed (a panic or abort?)");
        assert_eq!(failure.detail.as_deref(), Some("panicked at x"));
        let exit = wasmtime::Error::from(I32Exit(3)).context("somewhere");
        assert_eq!(
            trapped(&exit, memory(false), String::new()).message,
            "the handler called exit(3) instead of returning"
        );
    }

    #[test]
    fn sizes_are_written_in_the_largest_whole_unit() {
        assert_eq!(size(64 << 20), "64 MiB");
        assert_eq!(size(1 << 30), "1 GiB");
        assert_eq!(size(1500), "1500 bytes");
    }
}
