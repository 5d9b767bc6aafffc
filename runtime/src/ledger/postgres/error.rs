//! What Postgres answers instead, and whose fault it is.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use super::super::database::{DbError, DbErrorKind};
use super::super::gate::driver_error;

/// Code of `query_canceled`: the statement time limit, or somebody else.
const QUERY_CANCELED: &str = "57014";

/// Code of `feature_not_supported`, which is also what a cached plan answers whose result type has changed.
const FEATURE_NOT_SUPPORTED: &str = "0A000";

/// Every class of codes that the server has for itself: appendix A of its manual. A code of any other class was made up by
/// a trigger or a function, `RAISE … USING ERRCODE = 'STOCK'`.
const CLASSES: &[&str] = &[
    "00", "01", "02", "03", "08", "09", "0A", "0B", "0F", "0L", "0P", "0Z", "10", "20", "21", "22", "23", "24", "25",
    "26", "27", "28", "2B", "2D", "2F", "34", "38", "39", "3B", "3D", "3F", "40", "42", "44", "53", "54", "55", "57",
    "58", "72", "F0", "HV", "P0", "XX",
];

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
        // "FOR UPDATE is not allowed with DISTINCT"; what a statement that was known before means by it is told by
        // `outdates_statements`. 55000: currval before nextval, a view that cannot be changed.
        FEATURE_NOT_SUPPORTED | "55000" => DbErrorKind::Invalid,
        _ => match code.get(..2) {
            Some("23") => DbErrorKind::Constraint,
            // 20: no branch of a trigger's CASE; 21: a sub-select with several rows, a row changed twice by one ON
            // CONFLICT; 54: too complex, too many columns or arguments.
            Some("20" | "21" | "22" | "42" | "44" | "54") => DbErrorKind::Invalid,
            Some(class) if is_made_up(code, class) => DbErrorKind::Invalid,
            _ => DbErrorKind::Infrastructure,
        },
    }
}

fn is_made_up(code: &str, class: &str) -> bool {
    let is_code = code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
    is_code && !CLASSES.contains(&class)
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
            ("0A000", DbErrorKind::Invalid),
            ("54001", DbErrorKind::Invalid),
            ("54011", DbErrorKind::Invalid),
            ("55000", DbErrorKind::Invalid),
            ("55006", DbErrorKind::Infrastructure),
            ("20000", DbErrorKind::Invalid),
            ("STOCK", DbErrorKind::Invalid),
            ("T0001", DbErrorKind::Invalid),
            ("99001", DbErrorKind::Invalid),
            ("HV000", DbErrorKind::Infrastructure),
            ("F0001", DbErrorKind::Infrastructure),
            ("stock", DbErrorKind::Infrastructure),
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
