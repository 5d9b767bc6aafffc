//! Several statements in one round trip: `EXECUTE hapax_1('7', '2'); EXECUTE hapax_1('9', '1')`, of statements that were
//! prepared before under names of their own, and so are planned once.
//!
//! Parameters are literals there, without a type: the server reads each with the input function of the type that the
//! prepared statement reports for it, as it does with one that crosses the wire as text. Whatever else needs a cast, or a
//! statement that is not known yet, goes by itself.

use std::fmt::Write;

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, Executor, raw_sql};

use super::super::database::{DbError, Dialect, Statement};
use super::super::together::{Together, quote};
use super::super::value::{Executed, Param, Value};
use super::connection::{Session, oid_of};
use super::decode::oid;
use super::encode::{encode, is_number, text_form};
use super::error::db_error;
use super::plan::{Name, Wire};

impl Together for Session {
    fn write(&mut self, statement: &Statement<'_>, text: &mut String) -> Option<()> {
        let plan = self.plans.get(statement.sql)?;
        let name = plan.name.number()?;
        if plan.parameters.len() != statement.params.len() {
            return None;
        }
        write!(text, "EXECUTE hapax_{name}").ok()?;
        for (index, (param, to)) in statement.params.iter().zip(&plan.parameters).enumerate() {
            text.push_str(if index == 0 { "(" } else { ", " });
            write_literal(text, index + 1, param, oid_of(to))?;
        }
        text.push_str(if statement.params.is_empty() { ";\n" } else { ");\n" });
        Some(())
    }

    async fn alone(&mut self, statement: &Statement<'_>) -> Result<Executed, DbError> {
        let executed = self.execute(statement.sql, statement.params).await?;
        self.name(statement.sql).await?;
        Ok(executed)
    }

    async fn send(&mut self, text: String, executed: &mut Vec<Executed>) -> Result<(), DbError> {
        let mut answers = self.connection.fetch_many(raw_sql(AssertSqlSafe(text)));
        let outcome = loop {
            match answers.try_next().await {
                Ok(Some(Either::Left(done))) => {
                    executed.push(Executed { rows_affected: done.rows_affected(), last_insert_id: None });
                }
                Ok(Some(Either::Right(_))) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(db_error(&error)),
            }
        };
        drop(answers);
        self.after(outcome, true).await
    }
}

impl Session {
    /// Prepares a known statement under a name that text can call it by.
    async fn name(&mut self, sql: &str) -> Result<(), DbError> {
        match self.plans.get_mut(sql) {
            // Where the server does not take it there is no second attempt.
            Some(plan) if plan.name == Name::NotYet => plan.name = Name::Never,
            _ => return Ok(()),
        }
        let mut text = String::new();
        for name in self.nameless.drain(..) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "DEALLOCATE hapax_{name};");
        }
        let name = self.next_name;
        self.next_name += 1;
        let _ = write!(text, "PREPARE hapax_{name} AS {sql}");
        self.simple(text).await?;
        if let Some(plan) = self.plans.get_mut(sql) {
            plan.name = Name::Is(name);
        }
        Ok(())
    }
}

/// Writes the parameter with this number (from 1) as a literal for the type with this oid. None where only the binary
/// protocol says what is wrong with it, or what it means.
fn write_literal(text: &mut String, number: usize, param: &Param, to: u32) -> Option<()> {
    let Param::One(value) = param else { return None };
    match encode(number, param, to).ok()?.wire {
        Wire::Null => {
            text.push_str("NULL");
            return Some(());
        }
        // As text, the one would be rounded once more, and the other cut where it is too long.
        Wire::Native if matches!(to, oid::FLOAT4 | oid::NAME) => return None,
        Wire::Native => {}
        Wire::Text if has_input_function_only(to) => {}
        _ => return None,
    }
    let form = match value {
        Value::Boolean(flag) if is_number(to) => i64::from(*flag).to_string().into_bytes().into(),
        _ => text_form(value),
    };
    let form = std::str::from_utf8(&form).ok()?;
    quote(Dialect::Postgres, text, form)
}

/// Types of which a cast from text is the type's input function, and nothing else.
fn has_input_function_only(to: u32) -> bool {
    matches!(to, oid::NUMERIC | oid::DATE | oid::TIME | oid::TIMESTAMP | oid::TIMESTAMPTZ | oid::UUID)
}
