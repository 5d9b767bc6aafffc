//! A connection that remembers the statements that went through it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use crate::ledger::database::{Connection, DbError, KillSwitch};
use crate::ledger::value::{Executed, Param, ResultSet, RowLimits};

/// More statements than this are counted and not kept.
const KEPT: usize = 1_000;

/// A statement that was sent.
#[derive(Debug, Clone)]
pub(super) struct Statement {
    /// Its text, as the guard wrote it.
    pub(super) sql: String,
    /// Its parameters.
    pub(super) params: Vec<Param>,
    /// What came of it.
    pub(super) answer: Answer,
    /// How long the database took.
    pub(super) elapsed: Duration,
}

/// What came of a statement.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// Rows changed.
    Changed(u64),
    /// Rows read.
    Read(usize),
    /// An error.
    Failed(DbError),
}

/// The statements of one attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Statement>>>);

impl Log {
    /// What was recorded until now.
    pub(super) fn take(&self) -> Vec<Statement> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, sql: &str, params: &[Param], started: Instant, answer: Answer) {
        let mut statements = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if statements.len() < KEPT {
            let (sql, params) = (sql.to_owned(), params.to_vec());
            statements.push(Statement { sql, params, answer, elapsed: started.elapsed() });
        }
    }
}

/// A connection around another one.
pub(super) struct Recording {
    inner: Box<dyn Connection>,
    log: Log,
}

impl Recording {
    /// Records what the new connection is asked to run.
    pub(super) fn around(inner: Box<dyn Connection>) -> (Self, Log) {
        let log = Log::default();
        (Self { inner, log: log.clone() }, log)
    }
}

#[async_trait]
impl Connection for Recording {
    async fn begin(&mut self) -> Result<(), DbError> {
        self.inner.begin().await
    }

    async fn commit(&mut self) -> Result<(), DbError> {
        self.inner.commit().await
    }

    async fn rollback(&mut self) -> Result<(), DbError> {
        self.inner.rollback().await
    }

    async fn savepoint(&mut self) -> Result<(), DbError> {
        self.inner.savepoint().await
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.inner.rollback_to_savepoint().await
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        let started = Instant::now();
        let result = self.inner.execute(sql, params).await;
        let answer = match &result {
            Ok(executed) => Answer::Changed(executed.rows_affected),
            Err(error) => Answer::Failed(error.clone()),
        };
        self.log.add(sql, params, started, answer);
        result
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        let started = Instant::now();
        let result = self.inner.query(sql, params, limits).await;
        let answer = match &result {
            Ok(found) => Answer::Read(found.rows.len()),
            Err(error) => Answer::Failed(error.clone()),
        };
        self.log.add(sql, params, started, answer);
        result
    }

    async fn ping(&mut self) -> Result<(), DbError> {
        self.inner.ping().await
    }

    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        self.inner.kill_switch()
    }

    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError> {
        self.inner.set_timeouts(lock, statement).await
    }
}
