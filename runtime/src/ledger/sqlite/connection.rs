//! One connection of SQLite.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use futures::TryStreamExt;
use futures::future::BoxFuture;
use lru::LruCache;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteQueryResult};
use sqlx::{AssertSqlSafe, Column, Connection as _, Either, Executor, SqlSafeStr, Statement, raw_sql};
use tokio::sync::Mutex;

use super::super::database::{Connection, DbError, DbErrorKind, KillSwitch, SessionSettings, Statement as OneOf};
use super::super::gate::{ANSWER_GRACE, Gate, Rows, excerpt, invalid, lost, millis, within, wrong_count};
use super::super::scan::{Rules, Verb, scan};
use super::super::together::times;
use super::super::value::{Executed, Param, ResultSet, RowLimits};
use super::error::{db_error, is_interrupt};
use super::together::Copyable;
use super::{STATEMENTS, Shared, SqliteKill, Watch, values};

/// A connection, its transaction, and the statements that it knows.
pub(super) struct SqliteLedgerConnection {
    session: Shared,
    plans: LruCache<Arc<str>, Plan>,
    gate: Gate,
    lock_limit: Duration,
    statement_limit: Duration,
    watch: Arc<Watch>,
    kill: Arc<SqliteKill>,
}

/// What is known of a statement once it was prepared.
#[derive(Clone)]
pub(super) struct Plan {
    sql: Arc<str>,
    pub(super) parameters: usize,
    columns: Arc<[String]>,
    pub(super) verb: Verb,
    /// How several of it are sent.
    pub(super) copyable: Option<Arc<Copyable>>,
}

impl SqliteLedgerConnection {
    pub(super) fn new(connection: SqliteConnection, settings: SessionSettings, watch: Arc<Watch>) -> Self {
        let session = Arc::new(Mutex::new(Some(connection)));
        let kill = SqliteKill { connection: Arc::clone(&session), watch: Arc::clone(&watch) };
        Self {
            session,
            plans: LruCache::new(NonZeroUsize::new(STATEMENTS).unwrap_or(NonZeroUsize::MIN)),
            gate: Gate::default(),
            lock_limit: settings.lock_timeout,
            statement_limit: settings.statement_timeout,
            watch,
            kill: Arc::new(kill),
        }
    }

    /// Does something with the connection, in the time that so many statements have.
    pub(super) async fn work<T>(
        &self,
        statements: usize,
        work: impl for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, DbError>> + Send,
    ) -> Result<T, DbError> {
        let kill: Arc<dyn KillSwitch> = self.kill.clone();
        let limit = times(self.statement_limit, statements);
        let answer = async {
            let mut session = self.session.lock().await;
            let connection = session.as_mut().ok_or_else(|| lost("the connection was closed from outside"))?;
            self.watch.start(limit);
            let result = work(connection).await;
            let late = self.watch.is_late();
            self.watch.stop();
            result.map_err(|error| self.interrupted(error, late))
        };
        within(self.lock_limit + limit + ANSWER_GRACE, DbErrorKind::Infrastructure, &kill, answer).await
    }

    fn interrupted(&self, error: DbError, late: bool) -> DbError {
        if !is_interrupt(&error) {
            return error;
        }
        if self.watch.killed.load(Ordering::Acquire) {
            return lost("the connection was closed from outside");
        }
        let kind = if late { DbErrorKind::TimedOut } else { DbErrorKind::Infrastructure };
        DbError { kind, message: "the statement took too long, and was stopped".to_owned(), ..error }
    }

    async fn simple(&self, sql: String) -> Result<(), DbError> {
        self.work(1, |connection| {
            Box::pin(async move {
                let sent = connection.execute(raw_sql(AssertSqlSafe(sql))).await;
                sent.map(drop).map_err(|error| db_error(&error))
            })
        })
        .await
    }

    /// After a statement: nobody but [`Connection::commit`] and [`Connection::rollback`] may end a transaction.
    fn ran<T>(&mut self, sql: &str, result: Result<T, DbError>) -> Result<T, DbError> {
        let committed = self.watch.committed.load(Ordering::Acquire);
        let rolled_back = self.watch.rolled_back.load(Ordering::Acquire);
        let ended = self.gate.in_transaction() && (committed || rolled_back);
        let result = match result {
            Ok(_) if ended => Err(DbError::infrastructure(format!(
                "the statement `{}` ended the transaction that it ran in",
                excerpt(sql)
            ))),
            other => other,
        };
        let result = self.gate.leave(result);
        if ended {
            self.gate.transaction_gone();
        }
        result
    }

    pub(super) async fn plan(&mut self, sql: &str, given: usize) -> Result<Plan, DbError> {
        if let Some(known) = self.plans.get(sql) {
            return known.clone().checked(given);
        }
        let scanned = scan(sql, Rules::Sqlite);
        if !scanned.is_single() {
            return Err(invalid("several statements at once"));
        }
        let text: Arc<str> = sql.into();
        let (verb, copyable) = (scanned.verb(), Copyable::new(sql, &scanned));
        let unprepared = AssertSqlSafe(Arc::clone(&text)).into_sql_str();
        let prepared = self
            .work(1, |connection| {
                Box::pin(async move { connection.prepare(unprepared).await.map_err(|error| db_error(&error)) })
            })
            .await?;
        let parameters = match prepared.parameters() {
            Some(Either::Right(count)) => count,
            Some(Either::Left(types)) => types.len(),
            None => 0,
        };
        let columns = prepared.columns().iter().map(|column| column.name().to_owned()).collect();
        let copyable = copyable.map(Arc::new);
        let plan = Plan { sql: Arc::clone(&text), parameters, columns, verb, copyable };
        self.plans.put(text, plan.clone());
        plan.checked(given)
    }

    pub(super) async fn run_execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        let plan = self.plan(sql, params.len()).await?;
        let arguments = values::arguments(params)?;
        self.work(1, |connection| Box::pin(execute(connection, plan, arguments))).await
    }

    async fn run_query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        let plan = self.plan(sql, params.len()).await?;
        let arguments = values::arguments(params)?;
        self.work(1, |connection| Box::pin(query(connection, plan, arguments, limits))).await
    }
}

impl Plan {
    fn checked(self, given: usize) -> Result<Self, DbError> {
        if self.parameters == given { Ok(self) } else { Err(wrong_count(self.parameters, given)) }
    }
}

async fn execute(
    connection: &mut SqliteConnection,
    plan: Plan,
    arguments: SqliteArguments,
) -> Result<Executed, DbError> {
    let mut changed = Executed::default();
    let mut answers = connection.fetch_many(sqlx::query_with(AssertSqlSafe(plan.sql), arguments));
    while let Some(answer) = answers.try_next().await.map_err(|error| db_error(&error))? {
        if let Either::Left(done) = answer {
            changed = executed(&done, plan.verb);
        }
    }
    Ok(changed)
}

/// What a statement has changed. What SQLite counts is of the last statement that counted anything.
pub(super) fn executed(done: &SqliteQueryResult, verb: Verb) -> Executed {
    if verb == Verb::Other {
        return Executed::default();
    }
    let rows_affected = done.rows_affected();
    let inserted = verb == Verb::Insert && rows_affected > 0;
    let last_insert_id = if inserted { u64::try_from(done.last_insert_rowid()).ok() } else { None };
    Executed { rows_affected, last_insert_id }
}

async fn query(
    connection: &mut SqliteConnection,
    plan: Plan,
    arguments: SqliteArguments,
    limits: RowLimits,
) -> Result<ResultSet, DbError> {
    let mut rows = Rows::new(limits);
    rows.set_columns(plan.columns.to_vec());
    let mut answers = connection.fetch_many(sqlx::query_with(AssertSqlSafe(plan.sql), arguments));
    while let Some(answer) = answers.try_next().await.map_err(|error| db_error(&error))? {
        if let Either::Right(row) = answer {
            rows.push(values::size(&row), || values::row(&row))?;
        }
    }
    rows.finish()
}

#[async_trait]
impl Connection for SqliteLedgerConnection {
    async fn begin(&mut self) -> Result<(), DbError> {
        self.gate.begin()?;
        // At once a writer: a reader that wants to write later may find that it cannot.
        let result = self.simple("BEGIN IMMEDIATE".to_owned()).await;
        self.gate.begun(result)
    }

    async fn commit(&mut self) -> Result<(), DbError> {
        self.gate.commit()?;
        let result = self.simple("COMMIT".to_owned()).await;
        let result = self.gate.committed(result);
        if result.is_ok() {
            self.gate.ended();
        }
        result
    }

    async fn rollback(&mut self) -> Result<(), DbError> {
        if self.gate.is_gone() {
            self.gate.ended();
            return Ok(());
        }
        if !self.gate.rollback()? {
            return Ok(());
        }
        let result = self.simple("ROLLBACK".to_owned()).await;
        let result = self.gate.leave(result);
        if result.is_ok() {
            self.gate.ended();
        }
        result
    }

    async fn savepoint(&mut self) -> Result<(), DbError> {
        // One of the same name would hide the other, not replace it.
        let sql = if self.gate.savepoint()? { "RELEASE hapax; SAVEPOINT hapax" } else { "SAVEPOINT hapax" };
        let result = self.simple(sql.to_owned()).await;
        self.gate.savepoint_set(result)
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.gate.rollback_to_savepoint()?;
        let result = self.simple("ROLLBACK TO hapax".to_owned()).await;
        self.gate.rolled_back_to_savepoint(result)
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        self.gate.statement()?;
        let result = self.run_execute(sql, params).await;
        self.ran(sql, result)
    }

    async fn execute_all(&mut self, statements: &[OneOf<'_>], executed: &mut Vec<Executed>) -> Result<(), DbError> {
        self.gate.statement()?;
        let before = executed.len();
        let result = self.run_together(statements, executed).await;
        let last = statements.get(executed.len() - before).or(statements.last());
        self.ran(last.map_or("", |statement| statement.sql), result)
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        self.gate.statement()?;
        let result = self.run_query(sql, params, limits).await;
        self.ran(sql, result)
    }

    async fn ping(&mut self) -> Result<(), DbError> {
        self.gate.enter()?;
        let result = self
            .work(1, |connection| Box::pin(async { connection.ping().await.map_err(|error| db_error(&error)) }))
            .await;
        self.gate.leave(result)
    }

    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        self.kill.clone()
    }

    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError> {
        self.gate.statement()?;
        self.lock_limit = lock;
        self.statement_limit = statement;
        let result = self.simple(format!("PRAGMA busy_timeout = {}", millis(lock))).await;
        self.gate.leave(result)
    }
}

impl Drop for SqliteLedgerConnection {
    fn drop(&mut self) {
        // What still runs on SQLite's thread ends with this, and is rolled back.
        self.watch.killed.store(true, Ordering::Release);
    }
}
