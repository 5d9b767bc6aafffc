//! What Postgres answers instead, and whose fault it is.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::super::database::{DbError, DbErrorKind};
use super::super::gate::driver_error;

/// Code of `query_canceled`: the statement time limit, or somebody else.
const QUERY_CANCELED: &str = "57014";

/// Code of `feature_not_supported`, which is also what a cached plan answers whose result type has changed.
const FEATURE_NOT_SUPPORTED: &str = "0A000";

/// What a statement answers that was prepared before a column's type changed: its parameters keep the types that they
/// once had. Codes: datatype mismatch, undefined or ambiguous function or operator, no such cast, indeterminate type.
const CHANGED_TYPES: [&str; 5] = ["42804", "42883", "42725", "42846", "42P18"];

/// An error as the seam has it. A cancelled statement is infrastructure until its time is known:
/// [`timed_out`].
pub(super) fn db_error(error: &sqlx::Error) -> DbError {
    let sqlx::Error::Database(answer) = error else { return driver_error(error) };
    let Some(answer) = answer.try_downcast_ref::<PgDatabaseError>() else { return driver_error(error) };
    let message = match answer.detail() {
        Some(detail) => format!("{} ({detail})", answer.message()),
        None => answer.message().to_owned(),
    };
    DbError {
        kind: kind(answer.code()),
        code: Some(answer.code().to_owned()),
        constraint: answer.constraint().map(str::to_owned),
        message,
        connection_lost: matches!(answer.severity(), PgSeverity::Fatal | PgSeverity::Panic),
    }
}

/// By SQLSTATE. An allow-list: what is not in it is infrastructure.
fn kind(code: &str) -> DbErrorKind {
    match code {
        "40001" | "40P01" | "55P03" => DbErrorKind::Contention,
        // RAISE EXCEPTION and its relatives.
        "P0001" | "P0002" | "P0003" | "P0004" => DbErrorKind::Invalid,
        _ => match code.get(..2) {
            Some("23") => DbErrorKind::Constraint,
            // 21: a sub-select with several rows; a row changed twice by one ON CONFLICT.
            Some("21" | "22" | "42" | "44") => DbErrorKind::Invalid,
            _ => DbErrorKind::Infrastructure,
        },
    }
}

/// A cancelled statement that had used up its time ran into its limit; another one was cancelled by somebody else.
pub(super) fn timed_out(error: DbError, used_up: bool) -> DbError {
    if used_up && error.code.as_deref() == Some(QUERY_CANCELED) {
        return DbError { kind: DbErrorKind::TimedOut, ..error };
    }
    error
}

/// Tells whether a statement that was prepared in an earlier call may be out of date; then this is nobody's fault. Told
/// wrongly, it costs one more attempt: the statement is prepared anew, and what is wrong with it is said then.
pub(super) fn outdates_statements(error: &DbError) -> bool {
    error.code.as_deref().is_some_and(|code| code == FEATURE_NOT_SUPPORTED || CHANGED_TYPES.contains(&code))
}

/// What planning does not support ("FOR UPDATE is not allowed with DISTINCT") is the statement's fault.
pub(super) fn while_planning(error: DbError) -> DbError {
    if error.code.as_deref() == Some(FEATURE_NOT_SUPPORTED) {
        return DbError { kind: DbErrorKind::Invalid, ..error };
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_the_handlers_fault() {
        for (code, expected) in [
            ("23505", DbErrorKind::Constraint),
            ("22P02", DbErrorKind::Invalid),
            ("42P01", DbErrorKind::Invalid),
            ("44000", DbErrorKind::Invalid),
            ("P0001", DbErrorKind::Invalid),
            ("40P01", DbErrorKind::Contention),
            ("55P03", DbErrorKind::Contention),
            ("57014", DbErrorKind::Infrastructure),
            ("57P01", DbErrorKind::Infrastructure),
            ("53100", DbErrorKind::Infrastructure),
            ("25006", DbErrorKind::Infrastructure),
            ("0A000", DbErrorKind::Infrastructure),
            ("25P02", DbErrorKind::Infrastructure),
            ("08006", DbErrorKind::Infrastructure),
            ("XX000", DbErrorKind::Infrastructure),
            ("", DbErrorKind::Infrastructure),
            ("é", DbErrorKind::Infrastructure),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
