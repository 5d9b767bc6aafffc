//! Several statements in one round trip, as text.
//!
//! The drivers send one prepared statement at a time and wait for its answer. Text may hold several statements, each
//! answered by itself; the server stops at the first that fails. How a statement becomes text, and which ones do not,
//! differs between databases.

use std::time::Duration;

use super::database::{DbError, Dialect, Statement};
use super::value::Executed;

/// About how many bytes of text go in one round trip; MySQL takes 16 MiB by default.
const TRIP_BYTES: usize = 256 * 1024;

/// The time that so many statements have together.
pub(crate) fn times(limit: Duration, statements: usize) -> Duration {
    limit.saturating_mul(u32::try_from(statements).unwrap_or(u32::MAX).max(1))
}

/// A session that sends several statements as text.
pub(super) trait Together {
    /// Writes a statement with its parameters, and a semicolon. None: it goes by itself; what was written is dropped.
    fn write(&mut self, statement: &Statement<'_>, text: &mut String) -> Option<()>;

    /// Runs a statement by itself, so that it can be written from now on if that is possible.
    async fn alone(&mut self, statement: &Statement<'_>) -> Result<Executed, DbError>;

    /// Sends text, and adds an answer for each statement that ran.
    async fn send(&mut self, text: String, executed: &mut Vec<Executed>) -> Result<(), DbError>;
}

/// Runs statements in order, as many in a round trip as can go together. `executed` gets what each has changed.
pub(super) async fn execute_all(
    session: &mut impl Together,
    statements: &[Statement<'_>],
    executed: &mut Vec<Executed>,
) -> Result<(), DbError> {
    let (mut text, mut count) = (String::new(), 0);
    for statement in statements {
        let before = text.len();
        if session.write(statement, &mut text).is_some() {
            count += 1;
            if text.len() >= TRIP_BYTES {
                send(session, std::mem::take(&mut text), std::mem::take(&mut count), executed).await?;
            }
            continue;
        }
        text.truncate(before);
        send(session, std::mem::take(&mut text), std::mem::take(&mut count), executed).await?;
        executed.push(session.alone(statement).await?);
    }
    send(session, text, count, executed).await
}

async fn send(
    session: &mut impl Together,
    text: String,
    count: usize,
    executed: &mut Vec<Executed>,
) -> Result<(), DbError> {
    if count == 0 {
        return Ok(());
    }
    let expected = executed.len() + count;
    session.send(text, executed).await?;
    if executed.len() == expected {
        return Ok(());
    }
    Err(DbError::infrastructure(format!("{} statements were answered out of {expected}", executed.len())))
}

/// Writes text as a literal that nothing in it ends early. None for text with a NUL where a database has no such text.
///
/// Postgres: it means the same whatever `standard_conforming_strings` says. MySQL: a backslash escapes, as the session's
/// pinned `sql_mode` has it.
pub(crate) fn quote(dialect: Dialect, into: &mut String, text: &str) -> Option<()> {
    let (open, backslash) = match dialect {
        Dialect::Postgres if text.contains('\\') => ("E'", r"\\"),
        Dialect::Postgres | Dialect::Sqlite => ("'", r"\"),
        Dialect::MySql => ("'", r"\\"),
    };
    into.push_str(open);
    for c in text.chars() {
        match c {
            '\'' => into.push_str("''"),
            '\\' => into.push_str(backslash),
            '\0' if dialect == Dialect::MySql => into.push_str(r"\0"),
            '\0' => return None,
            other => into.push(other),
        }
    }
    into.push('\'');
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_its_literal_early() {
        let quoted = |dialect, text: &str| {
            let mut into = String::new();
            quote(dialect, &mut into, text).map(|()| into)
        };
        for (text, postgres, mysql) in [
            ("it's", Some("'it''s'"), "'it''s'"),
            (r"\' OR 1", Some(r"E'\\'' OR 1'"), r"'\\'' OR 1'"),
            ("\0é", None, "'\\0é'"),
        ] {
            assert_eq!(quoted(Dialect::Postgres, text).as_deref(), postgres);
            assert_eq!(quoted(Dialect::MySql, text).as_deref(), Some(mysql));
        }
    }
}
