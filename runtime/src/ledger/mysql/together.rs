//! Several statements in one round trip: their texts, with parameters written into them as literals.
//!
//! Where a text ends is decided here, so this relies on the session's pinned `sql_mode` and character set: a backslash
//! escapes, double quotes hold text, and bytes above 127 are never part of a quote. What this program cannot read beyond
//! doubt goes by itself, as a prepared statement.

use std::fmt::Write;

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, Executor, raw_sql};

use super::super::database::{DbError, Dialect, Statement};
use super::super::together::{Together, quote};
use super::super::value::Executed;
use super::connection::Session;
use super::encode::{Argument, encode};
use super::error::db_error;

impl Together for Session {
    fn write(&mut self, statement: &Statement<'_>, text: &mut String) -> Option<()> {
        let plan = self.plans.get(statement.sql)?;
        let places = plan.places.as_deref()?;
        if places.len() != statement.params.len() {
            return None;
        }
        let mut copied = 0;
        for (index, (param, &place)) in statement.params.iter().zip(places).enumerate() {
            text.push_str(&statement.sql[copied..place]);
            // So that no literal grows together with what stands before it.
            text.push(' ');
            write_literal(text, &encode(index + 1, param, &self.backend.decimal).ok()?)?;
            text.push(' ');
            copied = place + 1;
        }
        text.push_str(&statement.sql[copied..]);
        text.push_str(";\n");
        Some(())
    }

    async fn alone(&mut self, statement: &Statement<'_>) -> Result<Executed, DbError> {
        self.execute(statement.sql, statement.params).await
    }

    async fn send(&mut self, text: String, executed: &mut Vec<Executed>) -> Result<(), DbError> {
        let mut answers = self.connection.fetch_many(raw_sql(AssertSqlSafe(text)));
        while let Some(answer) = answers.try_next().await.map_err(|error| db_error(&error))? {
            if let Either::Left(done) = answer {
                let last_insert_id = Some(done.last_insert_id()).filter(|id| *id != 0);
                executed.push(Executed { rows_affected: done.rows_affected(), last_insert_id });
            }
        }
        Ok(())
    }
}

/// Where the placeholders stand, in bytes; none if the text holds anything that could be read in two ways: a comment, or
/// something that does not end.
pub(super) fn placeholders(sql: &str) -> Option<Vec<usize>> {
    let mut places = Vec::new();
    let mut bytes = sql.bytes().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'?' => places.push(at),
            b'\'' | b'"' | b'`' => loop {
                match bytes.next()?.1 {
                    // Names have no escapes.
                    b'\\' if byte != b'`' => drop(bytes.next()?),
                    end if end == byte && bytes.next_if(|(_, next)| *next == byte).is_none() => break,
                    _ => {}
                }
            },
            b'#' | b';' | b'\\' => return None,
            b'-' | b'/'
                if bytes.peek().is_some_and(|(_, next)| matches!((byte, next), (b'-', b'-') | (b'/', b'*'))) =>
            {
                return None;
            }
            _ => {}
        }
    }
    Some(places)
}

/// Writes a parameter as a literal of the type that it is bound as.
fn write_literal(text: &mut String, argument: &Argument<'_>) -> Option<()> {
    match argument {
        Argument::Null => text.push_str("NULL"),
        // Read as a positive number first, which is too large.
        Argument::Int(i64::MIN) => return None,
        Argument::Int(int) => write!(text, "{int}").ok()?,
        Argument::Unsigned(int) => write!(text, "{int}").ok()?,
        // With an exponent it is a double, not a decimal.
        Argument::Float(float) => write!(text, "{float:e}").ok()?,
        Argument::Text(form) => quote(Dialect::MySql, text, form)?,
        Argument::Blob(bytes) => {
            text.push_str("_binary x'");
            for byte in *bytes {
                write!(text, "{byte:02x}").ok()?;
            }
            text.push('\'');
        }
        Argument::Decimal(digits, _) => {
            text.push_str(digits);
            if !digits.contains('.') {
                text.push('.');
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_found_outside_of_text_and_names() {
        let places = |sql| placeholders(sql);
        assert_eq!(places("a = ? AND b=?"), Some(vec![4, 12]));
        assert_eq!(places(r#"'?' "?" `?` 'a''?' 'a\'?' "\"?" ?"#), Some(vec![32]));
        assert_eq!(places(r"`a\` = ?"), Some(vec![7]), "a backslash in a name is one of it");
        assert_eq!(places("a - ? / ?"), Some(vec![4, 8]));
        for unclear in ["? -- ", "?--1", "/* */ ?", "# ?", "'open ?", "`open ?", r"'a\", "a; ?", r"\?"] {
            assert_eq!(places(unclear), None, "{unclear}");
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_quoted_is_one_literal(form in "[\\PC'\"`\\\\?\0]{0,30}") {
            let mut text = String::new();
            quote(Dialect::MySql, &mut text, &form);
            assert_eq!(placeholders(&format!("{text} ?")), Some(vec![text.len() + 1]));
        }
    }
}
