//! One connection of Postgres.

use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::TryStreamExt;
use lru::LruCache;
use sqlx::postgres::{PgArguments, PgConnection, PgRow, PgStatement, PgTypeInfo};
use sqlx::{AssertSqlSafe, Column, Connection as _, Either, Executor, Row, SqlSafeStr, Statement, TypeInfo, raw_sql};

use super::super::database::{Connection, DbError, DbErrorKind, KillSwitch, SessionSettings, Statement as OneOf};
use super::super::gate::{
    ANSWER_GRACE, Gate, Rows, driver_error, kill_in_background, millis, watched, within, wrong_count,
};
use super::super::together;
use super::super::value::{Executed, Param, ResultSet, RowLimits};
use super::decode::{self, Reader};
use super::encode::{Encoded, encode};
use super::error::{db_error, outdates_statements, timed_out};
use super::plan::{Plan, TypeName, Variant, Wire, variant};
use super::{PostgresKill, STATEMENTS, Types, timeouts};

/// A connection, its transaction, and the statements that it knows.
pub(super) struct PostgresConnection {
    session: Session,
    gate: Gate,
    limits: Limits,
    replan: Replan,
    kill: Arc<PostgresKill>,
}

/// When the server is to plan its prepared statements anew.
///
/// Postgres keeps the plan that it made when a table was nearly empty, and reads the whole table, until ANALYZE comes
/// by: a minute later, or never where autovacuum is off. So plans are dropped after 16, 32, 64, … transactions: at most
/// as often as a table has doubled, and nothing in the long run.
#[derive(Debug)]
struct Replan {
    begun: u64,
    next: u64,
}

impl Replan {
    const FIRST: u64 = 16;

    /// Counts a transaction; true if it should begin with new plans.
    fn is_due(&mut self) -> bool {
        self.begun += 1;
        let due = self.begun == self.next;
        if due {
            self.next *= 2;
        }
        due
    }
}

/// The limits of a statement. A setting made inside a transaction is undone with it: then it is made again.
struct Limits {
    lock: Duration,
    statement: Duration,
    set_in_transaction: bool,
}

impl Limits {
    fn sql(&self) -> String {
        let set = timeouts(self.lock, self.statement).map(|(name, value)| format!("SET {name} = {value}"));
        set.join("; ")
    }

    /// Waits for the answer to so many statements, which may wait for locks of others meanwhile.
    async fn watched<T>(
        &self,
        statements: usize,
        kill: &Arc<PostgresKill>,
        answer: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        watched(self.statement, kill.as_ref(), bounded(self.statement, statements, kill, answer)).await
    }

    /// A statement that undoes work, and the limits that it would undo.
    fn keep(&self, undo: &'static str) -> String {
        if self.set_in_transaction { format!("{undo}; {}", self.sql()) } else { undo.to_owned() }
    }
}

impl PostgresConnection {
    pub(super) fn new(
        connection: PgConnection,
        settings: SessionSettings,
        types: Arc<Types>,
        kill: Arc<PostgresKill>,
    ) -> Self {
        let plans = LruCache::new(NonZeroUsize::new(STATEMENTS).unwrap_or(NonZeroUsize::MIN));
        Self {
            session: Session { connection, plans, types, next_name: 1, nameless: Vec::new() },
            gate: Gate::default(),
            limits: Limits {
                lock: settings.lock_timeout,
                statement: settings.statement_timeout,
                set_in_transaction: false,
            },
            replan: Replan { begun: 0, next: Replan::FIRST },
            kill,
        }
    }

    /// Begins, in one round trip with what else is to be done then.
    async fn begin_then(&mut self, then: String) -> Result<(), DbError> {
        self.gate.begin()?;
        self.limits.set_in_transaction = false;
        let discard = if self.replan.is_due() { "DISCARD PLANS; " } else { "" };
        let result = self.simple(format!("{discard}BEGIN ISOLATION LEVEL READ COMMITTED{then}")).await;
        self.gate.begun(result)
    }

    /// Sends text in one round trip, without preparing it.
    async fn simple(&mut self, sql: String) -> Result<(), DbError> {
        bounded(self.limits.statement, 1, &self.kill, self.session.simple(sql)).await
    }
}

/// Waits for the answer to so many statements. The server keeps the limit of each; somewhat later it counts as vanished.
async fn bounded<T>(
    limit: Duration,
    statements: usize,
    kill: &Arc<PostgresKill>,
    answer: impl Future<Output = Result<T, DbError>>,
) -> Result<T, DbError> {
    let kill: Arc<dyn KillSwitch> = kill.clone();
    let started = Instant::now();
    let all = together::times(limit, statements) + ANSWER_GRACE;
    let result = within(all, DbErrorKind::Infrastructure, &kill, answer).await;
    result.map_err(|error| timed_out(error, started.elapsed() >= limit))
}

#[async_trait]
impl Connection for PostgresConnection {
    async fn begin(&mut self) -> Result<(), DbError> {
        self.begin_then(String::new()).await
    }

    async fn begin_impatient(&mut self, lock: Duration) -> Result<(), DbError> {
        let set = match lock < self.limits.lock {
            true => format!("; SET LOCAL lock_timeout = {}", millis(lock)),
            false => String::new(),
        };
        self.begin_then(set).await
    }

    async fn commit(&mut self) -> Result<(), DbError> {
        self.gate.commit()?;
        let sql = "COMMIT".to_owned();
        let result = self.simple(sql).await;
        let failed = result.is_err();
        let result = self.gate.committed(result);
        // A COMMIT that fails ends the transaction too, and undoes the limits that were set in it.
        self.gate.ended();
        if failed && self.limits.set_in_transaction {
            self.gate.enter()?;
            let again = self.simple(self.limits.sql()).await;
            self.gate.leave(again)?;
        }
        result
    }

    async fn rollback(&mut self) -> Result<(), DbError> {
        if !self.gate.rollback()? {
            return Ok(());
        }
        let result = self.simple(self.limits.keep("ROLLBACK")).await;
        let result = self.gate.leave(result);
        if result.is_ok() {
            self.gate.ended();
        }
        result
    }

    async fn savepoint(&mut self) -> Result<(), DbError> {
        // A second one of the same name would hide the first, which goes on holding its resources.
        let sql = if self.gate.savepoint()? { "RELEASE SAVEPOINT hapax; SAVEPOINT hapax" } else { "SAVEPOINT hapax" };
        let result = self.simple(sql.to_owned()).await;
        self.gate.savepoint_set(result)
    }

    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError> {
        self.gate.rollback_to_savepoint()?;
        let result = self.simple(self.limits.keep("ROLLBACK TO SAVEPOINT hapax")).await;
        self.gate.rolled_back_to_savepoint(result)
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        self.gate.statement()?;
        let result = self.limits.watched(1, &self.kill, self.session.execute(sql, params)).await;
        self.gate.leave(result)
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        self.gate.statement()?;
        let result = self.limits.watched(1, &self.kill, self.session.query(sql, params, limits)).await;
        self.gate.leave(result)
    }

    async fn execute_all(&mut self, statements: &[OneOf<'_>], executed: &mut Vec<Executed>) -> Result<(), DbError> {
        self.gate.statement()?;
        let running = together::execute_all(&mut self.session, statements, executed);
        let result = self.limits.watched(statements.len(), &self.kill, running).await;
        self.gate.leave(result)
    }

    async fn ping(&mut self) -> Result<(), DbError> {
        self.gate.enter()?;
        let answer = async { self.session.connection.ping().await.map_err(|error| db_error(&error)) };
        let result = bounded(self.limits.statement, 1, &self.kill, answer).await;
        self.gate.leave(result)
    }

    fn kill_switch(&self) -> Arc<dyn KillSwitch> {
        self.kill.clone()
    }

    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError> {
        self.gate.statement()?;
        self.limits = Limits { lock, statement, set_in_transaction: self.gate.in_transaction() };
        let result = self.simple(self.limits.sql()).await;
        self.gate.leave(result)
    }
}

impl Drop for PostgresConnection {
    fn drop(&mut self) {
        if self.gate.is_abandoned() {
            kill_in_background(self.kill.clone());
        } else {
            self.kill.closed.store(true, Ordering::Release);
        }
    }
}

/// A statement ready to be sent.
struct Ready {
    variant: Variant,
    arguments: PgArguments,
    /// It was prepared in an earlier call, and may be out of date.
    known: bool,
}

/// The wire, and what is known about the statements sent over it.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) plans: LruCache<Arc<str>, Plan>,
    types: Arc<Types>,
    /// The number in the next name of a prepared statement.
    pub(super) next_name: u32,
    /// Names whose statements were forgotten here, and not yet at the server.
    pub(super) nameless: Vec<u32>,
}

impl Session {
    pub(super) async fn simple(&mut self, sql: String) -> Result<(), DbError> {
        let sent = self.connection.execute(raw_sql(AssertSqlSafe(sql))).await;
        sent.map(drop).map_err(|error| db_error(&error))
    }

    pub(super) async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError> {
        let Ready { variant, arguments, known } = self.prepare(sql, params, false).await?;
        let mut executed = Executed::default();
        let query = sqlx::query_with(AssertSqlSafe(variant.sql), arguments);
        let mut answers = self.connection.fetch_many(query);
        let outcome = loop {
            match answers.try_next().await {
                Ok(Some(Either::Left(done))) => executed.rows_affected += done.rows_affected(),
                Ok(Some(Either::Right(_))) => {}
                Ok(None) => break Ok(executed),
                Err(error) => break Err(db_error(&error)),
            }
        };
        drop(answers);
        self.after(outcome, known).await
    }

    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError> {
        let Ready { variant, arguments, known } = self.prepare(sql, params, true).await?;
        let Self { connection, plans, .. } = self;
        let Some(plan) = plans.peek(sql) else { return Err(DbError::infrastructure("a statement was forgotten")) };
        let mut rows = Rows::new(limits);
        rows.set_columns(plan.columns.clone());
        let mut answers = connection.fetch_many(sqlx::query_with(AssertSqlSafe(variant.sql), arguments));
        let outcome = loop {
            match answers.try_next().await {
                Ok(Some(Either::Right(row))) => {
                    if let Err(error) = rows.push(decode::size(&row), || read(&row, plan)) {
                        break Err(error);
                    }
                }
                Ok(Some(Either::Left(_))) => {}
                Ok(None) => break rows.finish(),
                Err(error) => break Err(db_error(&error)),
            }
        };
        drop(answers);
        self.after(outcome, known).await
    }

    /// Forgets all statements where one that was known before seems to be out of date.
    pub(super) async fn after<T>(&mut self, outcome: Result<T, DbError>, known: bool) -> Result<T, DbError> {
        match outcome {
            Err(error) if known && outdates_statements(&error) => {
                while let Some((_, plan)) = self.plans.pop_lru() {
                    self.nameless.extend(plan.name.number());
                }
                self.connection.clear_cached_statements().await.map_err(|error| db_error(&error))?;
                Err(DbError { kind: DbErrorKind::Infrastructure, ..error })
            }
            other => other,
        }
    }

    /// The statement as it is sent, and its parameters. No round trip where both were sent alike before.
    async fn prepare(&mut self, sql: &str, params: &[Param], reads: bool) -> Result<Ready, DbError> {
        let mut known = true;
        if !self.plans.contains(sql) {
            known = false;
            let plan = self.plan(sql).await?;
            let forgotten = self.plans.push(sql.into(), plan);
            self.nameless.extend(forgotten.and_then(|(_, plan)| plan.name.number()));
        }
        let Some(plan) = self.plans.get(sql) else { return Err(DbError::infrastructure("a statement was forgotten")) };
        if plan.parameters.len() != params.len() {
            return Err(wrong_count(plan.parameters.len(), params.len()));
        }
        let mut encoded = Vec::with_capacity(params.len());
        for (index, (param, to)) in params.iter().zip(&plan.parameters).enumerate() {
            encoded.push(encode(index + 1, param, oid_of(to))?);
        }
        let types = plan.parameters.clone();
        let wires: Vec<_> = encoded.iter().map(|parameter| parameter.wire).collect();
        let wrapped = reads && plan.needs_wrapping();
        let variant = match plan.find(&wires, wrapped) {
            Some(variant) => variant.clone(),
            None => {
                let plain = !wrapped && wires.iter().all(|wire| matches!(wire, Wire::Null | Wire::Native));
                known &= plain;
                self.vary(sql, &encoded, wrapped).await?
            }
        };
        let mut arguments = PgArguments::default();
        for ((parameter, reported), place) in encoded.into_iter().zip(types).zip(&variant.wires) {
            sqlx::Arguments::add(&mut arguments, parameter.argument(*place, reported))
                .map_err(|error| driver_error(&sqlx::Error::Encode(error)))?;
        }
        Ok(Ready { variant, arguments, known })
    }

    /// Asks the server what a statement takes and returns.
    async fn plan(&mut self, sql: &str) -> Result<Plan, DbError> {
        let statement = self.describe(sql.into()).await?;
        let parameters = match statement.parameters() {
            Some(Either::Left(types)) => types.to_vec(),
            _ => Vec::new(),
        };
        let mut columns = Vec::new();
        let mut readers = Vec::new();
        for column in statement.columns() {
            columns.push(column.name().to_owned());
            let oid = oid_of(column.type_info());
            readers.push(match Reader::native(oid) {
                Some(reader) => reader,
                None => Reader::Cast(self.type_name(oid, column.type_info()).await?),
            });
        }
        Ok(Plan::new(parameters, columns, readers))
    }

    /// Makes, checks and remembers a new way to send a statement.
    async fn vary(&mut self, sql: &str, encoded: &[Encoded<'_>], wrapped: bool) -> Result<Variant, DbError> {
        let Some(plan) = self.plans.peek(sql) else { return Err(DbError::infrastructure("a statement was forgotten")) };
        let parameters = plan.parameters.clone();
        let readers = wrapped.then(|| plan.readers.clone());
        let mut targets = Vec::with_capacity(encoded.len());
        for (parameter, to) in encoded.iter().zip(&parameters) {
            targets.push(match parameter.wire {
                Wire::Null | Wire::Native => None,
                _ => Some(self.type_name(oid_of(to), to).await?),
            });
        }
        let wires: Vec<_> = encoded.iter().map(|parameter| parameter.wire).collect();
        let made = variant(sql, &wires, &targets, readers.as_deref())?;
        self.describe(Arc::clone(&made.sql)).await?;
        if let Some(plan) = self.plans.get_mut(sql) {
            plan.remember(made.clone());
        }
        Ok(made)
    }

    async fn describe(&mut self, sql: Arc<str>) -> Result<PgStatement, DbError> {
        let prepared = self.connection.prepare(AssertSqlSafe(sql).into_sql_str()).await;
        prepared.map_err(|error| db_error(&error))
    }

    /// What a type is called; asks the server once for each.
    async fn type_name(&mut self, oid: u32, type_info: &PgTypeInfo) -> Result<TypeName, DbError> {
        if let Some(known) = self.types.get(oid) {
            return Ok(known);
        }
        let sql = format!(
            "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname),
                    pg_catalog.format_type(t.oid, NULL),
                    (t.typtype = 'e' OR t.typcategory = 'S' OR t.oid = 18)::text
             FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
             WHERE t.oid = {oid}"
        );
        let row =
            self.connection.fetch_optional(raw_sql(AssertSqlSafe(sql))).await.map_err(|error| db_error(&error))?;
        let Some(row) = row else {
            return Err(DbError::infrastructure(format!("the database does not know its type {}", type_info.name())));
        };
        let text = |index: usize| row.try_get::<String, _>(index).map_err(|error| driver_error(&error));
        let name = TypeName { qualified: text(0)?, display: text(1)?, is_text: text(2)? == "true" };
        self.types.insert(oid, name.clone());
        Ok(name)
    }
}

pub(super) fn oid_of(type_info: &PgTypeInfo) -> u32 {
    type_info.oid().map_or(decode::oid::UNKNOWN, |oid| oid.0)
}

fn read(row: &PgRow, plan: &Plan) -> Result<Vec<super::super::value::Value>, DbError> {
    decode::row(row, &plan.readers)
}
