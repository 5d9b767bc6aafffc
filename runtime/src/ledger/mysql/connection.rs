//! One connection of MariaDB or MySQL.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use lru::LruCache;
use sqlx::mysql::{MySqlArguments, MySqlConnection};
use sqlx::{AssertSqlSafe, Column, Connection as _, Either, Executor, Row, SqlSafeStr, Statement, raw_sql};

use super::super::database::{Connection, DbError, DbErrorKind, KillSwitch, SessionSettings, Statement as OneOf};
use super::super::gate::{
    ANSWER_GRACE, Gate, Rows, driver_error, kill_in_background, seconds, watched, within, wrong_count,
};
use super::super::together;
use super::super::value::{Executed, Param, ResultSet, RowLimits};
use super::encode::encode;
use super::error::{db_error, ends_transaction, outdates_statements};
use super::together::placeholders;
use super::{Backend, Flavor, MySqlKill, STATEMENTS, decode, timeouts};

/// How much later than MySQL itself this program stops a statement.
const SERVER_GRACE: Duration = Duration::from_millis(250);

/// A connection, its transaction, and the statements that it knows.
///
/// MySQL has no limit for idle transactions, only one for idle connections. So there `wait_timeout` is short inside a
/// transaction and as it was outside of one; both are set in the round trip that begins or ends the transaction.
///
/// A statement outside of a transaction is committed at once, by a second round trip, since `autocommit` is off.
pub(super) struct MySqlLedgerConnection {
    session: Session,
    gate: Gate,
    statement_limit: Duration,
    idle: Duration,
    kill: Arc<MySqlKill>,
}

impl MySqlLedgerConnection {
    pub(super) fn new(
        connection: MySqlConnection,
        settings: SessionSettings,
        backend: Backend,
        kill: Arc<MySqlKill>,
    ) -> Self {
        let plans = LruCache::new(NonZeroUsize::new(STATEMENTS).unwrap_or(NonZeroUsize::MIN));
        Self {
            session: Session { connection, plans, backend },
            gate: Gate::default(),
            statement_limit: settings.statement_timeout,
            idle: settings.idle_in_transaction,
            kill,
        }
    }

    /// Sends text in one round trip, without preparing it.
    async fn simple(&mut self, sql: String) -> Result<(), DbError> {
        let kill: Arc<dyn KillSwitch> = self.kill.clone();
        let limit = self.statement_limit + ANSWER_GRACE;
        within(limit, DbErrorKind::Infrastructure, &kill, self.session.simple(sql)).await
    }

    /// How long to wait for so many statements. MySQL limits only SELECT: there the limit of other statements is kept
    /// here.
    fn patience(&self, statements: usize) -> Patience {
        let limit = self.statement_limit;
        let (each, in_vain) = match self.session.backend.flavor {
            Flavor::MariaDb => (limit + ANSWER_GRACE, DbErrorKind::Infrastructure),
            Flavor::MySql => (limit + SERVER_GRACE, DbErrorKind::TimedOut),
        };
        Patience { limit, all: together::times(each, statements), in_vain }
    }

    /// After a statement.
    async fn ran<T>(&mut self, result: Result<T, DbError>) -> Result<T, DbError> {
        let alone = !self.gate.in_transaction();
        let result = match result {
            Ok(done) if alone => self.simple("COMMIT".to_owned()).await.map(|()| done),
            Err(error) if alone && !error.connection_lost => self.simple("ROLLBACK".to_owned()).await.and(Err(error)),
            other => other,
        };
        let rollback_on_timeout = self.session.backend.rollback_on_timeout;
        let gone = result.as_ref().is_err_and(|error| ends_transaction(error, rollback_on_timeout));
        let result = self.gate.leave(result);
        if gone {
            self.gate.transaction_gone();
        }
        result
    }

    /// The text that ends a transaction.
    fn ending(&self, verb: &str) -> String {
        let backend = &self.session.backend;
        match backend.flavor {
            Flavor::MariaDb => verb.to_owned(),
            Flavor::MySql => format!("{verb}; SET SESSION wait_timeout = {}", backend.wait_timeout),
        }
    }
}

/// How long to wait for an answer.
struct Patience {
    /// What the server lets one statement take.
    limit: Duration,
    all: Duration,
    /// What it means if there is none.
    in_vain: DbErrorKind,
}

impl Patience {
    /// Waits for statements, which may wait for locks of others meanwhile.
    async fn watched<T>(
        self,
        kill: &Arc<MySqlKill>,
        answer: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        let switch: Arc<dyn KillSwitch> = kill.clone();
        watched(self.limit, kill.as_ref(), within(self.all, self.in_vain, &switch, answer)).await
    }
}

#[async_trait]
impl Connection for MySqlLedgerConnection {
    async fn begin(&mut self) -> Result<(), DbError> {
        self.gate.begin()?;
        let sql = match self.session.backend.flavor {
            Flavor::MariaDb => "START TRANSACTION".to_owned(),
            Flavor::MySql => format!("SET SESSION wait_timeout = {}; START TRANSACTION", seconds(self.idle)),
        };
        let result = self.simple(sql).await;
        self.gate.begun(result)
    }

    async fn commit(&mut self) -> Result<(), DbError> {
        self.gate.commit()?;
        let result = self.simple(self.ending("COMMIT")).await;
        let result = self.gate.committed(result);
        if result.is_ok() {
            self.gate.ended();
        }
        result
    }

    async fn rollback(&mut self) -> Result<(), DbError> {
        if !self.gate.rollback()? {
            return Ok(());
        }
        let result = self.simple(self.ending("ROLLBACK")).await;
        let result = self.gate.leave(result);
        if result.is_ok() {
            self.gate.ended();
        }
        result
    }

    async fn savepoint(&mut self) -> Result<(), DbError> {
        // One of the same name replaces the other.
        self.gate.savepoint()?;
        let result = self.simple("SAVEPOINT hapax".to_owned()).await;
        self.gate.savepoint_set(result)
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.gate.rollback_to_savepoint()?;
        let result = self.simple("ROLLBACK TO SAVEPOINT hapax".to_owned()).await;
        self.gate.rolled_back_to_savepoint(result)
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        self.gate.statement()?;
        let patience = self.patience(1);
        let result = patience.watched(&self.kill, self.session.execute(sql, params)).await;
        self.ran(result).await
    }

    async fn execute_all(&mut self, statements: &[OneOf<'_>], executed: &mut Vec<Executed>) -> Result<(), DbError> {
        self.gate.statement()?;
        let patience = self.patience(statements.len());
        let running = together::execute_all(&mut self.session, statements, executed);
        let result = patience.watched(&self.kill, running).await;
        self.ran(result).await
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        self.gate.statement()?;
        let patience = self.patience(1);
        let result = patience.watched(&self.kill, self.session.query(sql, params, limits)).await;
        self.ran(result).await
    }

    async fn ping(&mut self) -> Result<(), DbError> {
        self.gate.enter()?;
        let kill: Arc<dyn KillSwitch> = self.kill.clone();
        let answer = async { self.session.connection.ping().await.map_err(|error| db_error(&error)) };
        let result = within(self.statement_limit + ANSWER_GRACE, DbErrorKind::Infrastructure, &kill, answer).await;
        self.gate.leave(result)
    }

    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        self.kill.clone()
    }

    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError> {
        self.gate.statement()?;
        self.statement_limit = statement;
        let result = self.simple(timeouts(self.session.backend.flavor, lock, statement)).await;
        self.gate.leave(result)
    }
}

impl Drop for MySqlLedgerConnection {
    fn drop(&mut self) {
        if self.gate.is_abandoned() {
            kill_in_background(self.kill.clone());
        } else {
            self.kill.closed.store(true, Ordering::Release);
        }
    }
}

/// What is known of a statement once it was prepared.
pub(super) struct Plan {
    sql: Arc<str>,
    parameters: usize,
    columns: Vec<String>,
    /// Where parameters can be written into the text; none: nowhere.
    pub(super) places: Option<Vec<usize>>,
}

/// The wire, and what is known about the statements sent over it.
pub(super) struct Session {
    pub(super) connection: MySqlConnection,
    pub(super) plans: LruCache<Arc<str>, Plan>,
    pub(super) backend: Backend,
}

impl Session {
    async fn simple(&mut self, sql: String) -> Result<(), DbError> {
        let sent = self.connection.execute(raw_sql(AssertSqlSafe(sql))).await;
        sent.map(drop).map_err(|error| db_error(&error))
    }

    pub(super) async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        let (sql, arguments, _) = self.prepare(sql, params).await?;
        let mut executed = Executed::default();
        let mut answers = self.connection.fetch_many(sqlx::query_with(AssertSqlSafe(sql), arguments));
        let outcome = loop {
            match answers.try_next().await {
                Ok(Some(Either::Left(done))) => {
                    executed.rows_affected += done.rows_affected();
                    executed.last_insert_id = Some(done.last_insert_id()).filter(|id| *id != 0);
                }
                Ok(Some(Either::Right(_))) => {}
                Ok(None) => break Ok(executed),
                Err(error) => break Err(db_error(&error)),
            }
        };
        drop(answers);
        self.after(outcome).await
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        let (sql, arguments, columns) = self.prepare(sql, params).await?;
        let mut rows = Rows::new(limits);
        let mut first = true;
        let mut answers = self.connection.fetch_many(sqlx::query_with(AssertSqlSafe(sql), arguments));
        let outcome = loop {
            match answers.try_next().await {
                Ok(Some(Either::Right(row))) => {
                    if first {
                        // What the statement returned when it was prepared may have changed since.
                        rows.set_columns(row.columns().iter().map(|column| column.name().to_owned()).collect());
                        first = false;
                    }
                    if let Err(error) = rows.push(decode::size(&row), || decode::row(&row)) {
                        break Err(error);
                    }
                }
                Ok(Some(Either::Left(_))) => {}
                Ok(None) => {
                    if !rows.has_columns() {
                        rows.set_columns(columns);
                    }
                    break rows.finish();
                }
                Err(error) => break Err(db_error(&error)),
            }
        };
        drop(answers);
        self.after(outcome).await
    }

    /// Forgets all statements where the server says that one of them is out of date.
    async fn after<T>(&mut self, outcome: Result<T, DbError>) -> Result<T, DbError> {
        if outcome.as_ref().is_err_and(outdates_statements) {
            self.plans.clear();
            self.connection.clear_cached_statements().await.map_err(|error| db_error(&error))?;
        }
        outcome
    }

    /// The statement, its parameters, and the names of its columns. No round trip where it was sent before.
    ///
    /// The number of parameters is checked here: sqlx notices a wrong one too late, and waits for an answer to a
    /// question that it never asked.
    async fn prepare(
        &mut self,
        sql: &str,
        params: &[Param],
    ) -> Result<(Arc<str>, MySqlArguments, Vec<String>), DbError> {
        if !self.plans.contains(sql) {
            let sql: Arc<str> = sql.into();
            let plan = self.plan(Arc::clone(&sql)).await?;
            self.plans.put(sql, plan);
        }
        let Some(plan) = self.plans.get(sql) else { return Err(DbError::infrastructure("a statement was forgotten")) };
        if plan.parameters != params.len() {
            return Err(wrong_count(plan.parameters, params.len()));
        }
        let mut arguments = MySqlArguments::default();
        for (index, param) in params.iter().enumerate() {
            sqlx::Arguments::add(&mut arguments, encode(index + 1, param, &self.backend.decimal)?)
                .map_err(|error| driver_error(&sqlx::Error::Encode(error)))?;
        }
        Ok((Arc::clone(&plan.sql), arguments, plan.columns.clone()))
    }

    async fn plan(&mut self, sql: Arc<str>) -> Result<Plan, DbError> {
        let prepared = self.connection.prepare(AssertSqlSafe(Arc::clone(&sql)).into_sql_str()).await;
        let statement = prepared.map_err(|error| db_error(&error))?;
        let parameters = match statement.parameters() {
            Some(Either::Right(count)) => count,
            Some(Either::Left(types)) => types.len(),
            None => 0,
        };
        let columns = statement.columns().iter().map(|column| column.name().to_owned()).collect();
        let places = placeholders(&sql).filter(|places| places.len() == parameters);
        Ok(Plan { sql, parameters, columns, places })
    }
}
