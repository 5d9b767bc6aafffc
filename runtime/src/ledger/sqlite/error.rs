//! What SQLite answers instead, and whose fault it is.

use super::super::database::{DbError, DbErrorKind};
use super::super::gate::{driver_error, invalid};

/// Primary result codes: `sqlite3.h`.
const ERROR: u32 = 1;
const BUSY: u32 = 5;
const LOCKED: u32 = 6;
const INTERRUPT: u32 = 9;
const TOOBIG: u32 = 18;
const CONSTRAINT: u32 = 19;
const MISMATCH: u32 = 20;
const RANGE: u32 = 25;

/// An error as the seam has it. Its code is SQLite's extended result code. An interrupted statement is infrastructure
/// until its time is known.
pub(super) fn db_error(error: &sqlx::Error) -> DbError {
    match error {
        sqlx::Error::Database(answer) => {
            let code: u32 = answer.code().and_then(|code| code.parse().ok()).unwrap_or_default();
            DbError {
                kind: kind(code),
                code: Some(code.to_string()),
                constraint: constraint(code, answer.message()).map(str::to_owned),
                message: answer.message().to_owned(),
                connection_lost: false,
            }
        }
        // No wire, so no broken conversation: sqlx does not like the statement's placeholders.
        sqlx::Error::Protocol(why) => invalid(why.clone()),
        other => driver_error(other),
    }
}

/// By primary result code. An allow-list: what is not in it is infrastructure.
fn kind(code: u32) -> DbErrorKind {
    match code & 0xFF {
        CONSTRAINT => DbErrorKind::Constraint,
        // Syntax, unknown tables and columns, and whatever functions complain about.
        ERROR | MISMATCH | TOOBIG | RANGE => DbErrorKind::Invalid,
        BUSY | LOCKED => DbErrorKind::Contention,
        _ => DbErrorKind::Infrastructure,
    }
}

/// True where a statement was stopped from outside.
pub(super) fn is_interrupt(error: &DbError) -> bool {
    error.code.as_deref().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xFF == INTERRUPT)
}

/// The name of a CHECK constraint; unique ones are told by their columns, in the message.
fn constraint(code: u32, message: &str) -> Option<&str> {
    (code & 0xFF == CONSTRAINT).then(|| message.strip_prefix("CHECK constraint failed: ")).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_the_handlers_fault() {
        for (code, expected) in [
            (2067, DbErrorKind::Constraint),
            (1, DbErrorKind::Invalid),
            (20, DbErrorKind::Invalid),
            (5, DbErrorKind::Contention),
            (517, DbErrorKind::Contention),
            (8, DbErrorKind::Infrastructure),
            (13, DbErrorKind::Infrastructure),
            (778, DbErrorKind::Infrastructure),
            (0, DbErrorKind::Infrastructure),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }
}
