//! Several statements in one trip to SQLite's thread.
//!
//! Statements of the same text that follow each other are sent as that text, so many times, with all their parameters. So
//! that SQLite prepares few of such texts, and knows them afterwards, there are only those of 1, 2, 4, 8, … copies.

use std::sync::{Arc, Mutex, PoisonError};

use futures::TryStreamExt;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{AssertSqlSafe, Either, Executor};

use super::super::database::{DbError, Statement};
use super::super::scan::{Scanned, Verb};
use super::super::value::{Executed, Param};
use super::connection::{Plan, SqliteLedgerConnection, executed};
use super::error::db_error;
use super::values;

/// The most copies in one text.
const MAX_COPIES: usize = 64;

/// A statement whose parameters are bound in the order of its text, so that copies of it can follow each other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Copyable {
    text: String,
    /// For each position that the text binds, the index into the parameters.
    order: Vec<usize>,
}

impl Copyable {
    /// None if the text binds by anything else than `?1`, `?2`, ….
    pub(super) fn new(sql: &str, scanned: &Scanned<'_>) -> Option<Self> {
        let (mut text, mut order, mut copied) = (String::with_capacity(sql.len() + 1), Vec::new(), 0);
        for (start, end) in scanned.numbered_parameters()? {
            let number: usize = sql[start + 1..end].parse().ok()?;
            text.push_str(&sql[copied..=start]);
            order.push(number.checked_sub(1)?);
            copied = end;
        }
        text.push_str(&sql[copied..scanned.end()]);
        text.push(';');
        Some(Self { text, order })
    }
}

/// The largest power of two that is no larger than this, and no more than [`MAX_COPIES`].
fn copies(alike: usize) -> usize {
    1 << alike.clamp(1, MAX_COPIES).ilog2()
}

impl SqliteLedgerConnection {
    /// Runs statements in order. `done` gets what each has changed.
    pub(super) async fn run_together(
        &mut self,
        statements: &[Statement<'_>],
        done: &mut Vec<Executed>,
    ) -> Result<(), DbError> {
        let mut rest = statements;
        while let Some(first) = rest.first() {
            let alike = rest.iter().take_while(|statement| statement.sql == first.sql).count();
            let (these, others) = rest.split_at(copies(alike));
            rest = others;
            let plan = self.plan(first.sql, first.params.len()).await?;
            match arguments(&plan, these) {
                Some((text, arguments)) if these.len() > 1 => {
                    let (verb, found) = (plan.verb, Arc::new(Mutex::new(Vec::with_capacity(these.len()))));
                    let answers = Arc::clone(&found);
                    let result = self
                        .work(these.len(), |connection| Box::pin(run(connection, text, arguments, verb, answers)))
                        .await;
                    done.append(&mut found.lock().unwrap_or_else(PoisonError::into_inner));
                    result?;
                }
                _ => {
                    for statement in these {
                        done.push(self.run_execute(statement.sql, statement.params).await?);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The text of all, and their parameters in the order in which it binds them.
fn arguments(plan: &Plan, statements: &[Statement<'_>]) -> Option<(String, SqliteArguments)> {
    let copyable = plan.copyable.as_deref()?;
    let mut params: Vec<&Param> = Vec::with_capacity(statements.len() * copyable.order.len());
    for statement in statements.iter() {
        if statement.params.len() != plan.parameters {
            return None;
        }
        for &index in &copyable.order {
            params.push(statement.params.get(index)?);
        }
    }
    Some((copyable.text.repeat(statements.len()), values::arguments(params).ok()?))
}

async fn run(
    connection: &mut SqliteConnection,
    text: String,
    arguments: SqliteArguments,
    verb: Verb,
    found: Arc<Mutex<Vec<Executed>>>,
) -> Result<(), DbError> {
    let mut answers = connection.fetch_many(sqlx::query_with(AssertSqlSafe(text), arguments));
    while let Some(answer) = answers.try_next().await.map_err(|error| db_error(&error))? {
        if let Either::Left(done) = answer {
            found.lock().unwrap_or_else(PoisonError::into_inner).push(executed(&done, verb));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::scan::{Rules, scan};
    use super::*;

    fn copyable(sql: &str) -> Option<Copyable> {
        Copyable::new(sql, &scan(sql, Rules::Sqlite))
    }

    #[test]
    fn numbered_parameters_become_parameters_in_order() {
        let made = copyable("UPDATE t SET a = a - ?2 WHERE b = ?1 AND c = '?3' AND a >= ?2");
        let text = "UPDATE t SET a = a - ? WHERE b = ? AND c = '?3' AND a >= ?;".to_owned();
        assert_eq!(made, Some(Copyable { text, order: vec![1, 0, 1] }));
        assert_eq!(copyable("DELETE FROM t ;  "), Some(Copyable { text: "DELETE FROM t;".into(), order: vec![] }));
        for sql in
            ["DELETE FROM t WHERE a = ?", "DELETE FROM t WHERE a = :a", "DELETE FROM t WHERE a = @a", "SELECT $a"]
        {
            assert_eq!(copyable(sql), None, "{sql}");
        }
    }

    #[test]
    fn copies_come_in_powers_of_two() {
        assert_eq!([1, 2, 3, 7, 8, 64, 1000].map(copies), [1, 2, 2, 4, 8, 64, 64]);
    }
}
