//! `hapax:handler/sql`: statements in the transaction that records the message as done.
//!
//! ```wit
//! let changed = sql.execute("UPDATE stock SET n = n - 1 WHERE id = ? AND n > 0", [value.int64(id)])?
//! ```
//! After the first error, a refusal included, nothing more is sent for the attempt: on one database the transaction is
//! aborted by then, on another it is gone and the next statement would commit by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker};

use super::super::ahead::Refuted;
use super::super::bindings::sql::{self, Error, ErrorKind, Executed, Host, ResultSet, Value};
use super::super::convert;
use super::super::grants::ConsumerContext;
use super::super::lent::Lent;
use super::super::sql_guard::{Checked, GuardError, Kind};
use super::super::state::State;
use super::super::verdict::size;
use crate::ledger::database::{DbError, DbErrorKind};
use crate::ledger::value::{Param, RowLimits};
use crate::sabotage::{self, Breach};

/// How much longer than its limit a statement may take before its connection is given up here. The database stops it, and
/// leaves the connection usable; where it does not, its driver gives up some seconds later. This is for a driver that hangs.
const STATEMENT_GRACE: Duration = Duration::from_secs(15);

/// Rows of an `execute-many` that are sent together: so many that the round trip does not count, so few that an attempt
/// that changes too much is stopped soon.
const TOGETHER: usize = 128;

/// The first error of an attempt.
#[derive(Debug, Clone)]
pub(crate) enum SqlFailure {
    /// Nothing was sent.
    Refused { kind: ErrorKind, code: Option<&'static str>, message: String },
    /// The database said no, or nothing.
    Database(DbError),
    /// What this attempt or one before it had run ahead of was answered differently.
    Refuted(Refuted),
}

impl SqlFailure {
    fn invalid(message: impl Into<String>) -> Self {
        Self::Refused { kind: ErrorKind::Invalid, code: None, message: message.into() }
    }

    fn too_large(message: impl Into<String>) -> Self {
        Self::Refused { kind: ErrorKind::TooLarge, code: None, message: message.into() }
    }

    /// For people.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Refused { message, .. } => message,
            Self::Database(error) => &error.message,
            Self::Refuted(_) => "an answer that was given in advance has proved wrong; the attempt is made again",
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refuted(_) => ErrorKind::Transient,
            Self::Refused { kind, .. } => *kind,
            Self::Database(error) => match error.kind {
                DbErrorKind::Constraint => ErrorKind::Constraint,
                DbErrorKind::Invalid => ErrorKind::Invalid,
                DbErrorKind::TooLarge => ErrorKind::TooLarge,
                DbErrorKind::TimedOut => ErrorKind::Other,
                DbErrorKind::Contention | DbErrorKind::Infrastructure => ErrorKind::Transient,
            },
        }
    }

    fn to_guest(&self) -> Error {
        let (code, constraint) = match self {
            Self::Refused { code, .. } => (code.map(str::to_owned), None),
            Self::Database(error) => (error.code.clone(), error.constraint.clone()),
            Self::Refuted(_) => (None, None),
        };
        Error { kind: self.kind(), code, constraint, message: self.message().to_owned() }
    }
}

impl From<GuardError> for SqlFailure {
    fn from(error: GuardError) -> Self {
        let kind = match error {
            GuardError::Denied { .. } => ErrorKind::Denied,
            GuardError::Invalid { .. } => ErrorKind::Invalid,
        };
        Self::Refused { kind, code: None, message: error.to_string() }
    }
}

impl From<DbError> for SqlFailure {
    fn from(error: DbError) -> Self {
        Self::Database(error)
    }
}

impl From<Refuted> for SqlFailure {
    fn from(refuted: Refuted) -> Self {
        Self::Refuted(refuted)
    }
}

/// The host's side of `sql`.
pub(crate) struct SqlHost {
    consumer: Arc<ConsumerContext>,
    lent: Arc<Lent>,
    /// How long to wait for one statement.
    patience: Duration,
    used: Used,
}

/// What an attempt has used up.
#[derive(Default)]
struct Used {
    /// Time that the host took for its calls.
    took: Duration,
    statements: u32,
    rows_affected: u64,
    touched: bool,
    failure: Option<SqlFailure>,
}

/// What is left of an attempt's SQL.
#[derive(Debug)]
pub(crate) struct SqlReport {
    /// The first error.
    pub(crate) failure: Option<SqlFailure>,
    /// The transaction may differ from what it was before the attempt.
    pub(crate) touched: bool,
}

impl SqlHost {
    pub(crate) fn new(consumer: Arc<ConsumerContext>, lent: Arc<Lent>) -> Self {
        let patience = consumer.limits.sql_time.saturating_add(STATEMENT_GRACE);
        Self { consumer, lent, patience, used: Used::default() }
    }

    /// Starts an attempt.
    pub(crate) fn begin(&mut self) {
        self.used = Used::default();
    }

    /// Ends it.
    pub(crate) fn finish(&mut self) -> SqlReport {
        let Used { failure, touched, .. } = std::mem::take(&mut self.used);
        SqlReport { failure: failure.filter(|_| !sabotage::broken(Breach::StatementAfterError)), touched }
    }

    /// Charges a statement to the attempt, and checks it.
    fn prepare(&mut self, statement: &str) -> Result<Arc<Checked>, SqlFailure> {
        let limits = &self.consumer.limits;
        self.used.statements += 1;
        if self.used.statements > limits.sql_statements {
            let message = format!("an attempt may send {} statements", limits.sql_statements);
            return Err(SqlFailure::too_large(message));
        }
        if statement.len() as u64 > limits.sql_text {
            let (has, limit) = (statement.len(), size(limits.sql_text));
            let message = format!("the statement has {has} bytes; {limit} are allowed. Pass data as parameters");
            return Err(SqlFailure::too_large(message));
        }
        match self.consumer.guard.check(statement) {
            Err(_) if sabotage::broken(Breach::SqlUnguarded) => Ok(Arc::new(Checked {
                sql: statement.to_owned(),
                parameters: 0,
                order: Vec::new(),
                kind: Kind::Write,
                returns_rows: false,
            })),
            checked => Ok(checked?),
        }
    }

    /// Notes that a statement is about to be sent. A read leaves nothing behind; the guard calls it a write otherwise.
    fn touch(&mut self, checked: &Checked) {
        self.used.touched |= checked.kind == Kind::Write;
    }

    /// Notes what a statement changed.
    fn count(&mut self, rows: u64) -> Result<(), SqlFailure> {
        self.used.rows_affected = self.used.rows_affected.saturating_add(rows);
        let limit = self.consumer.limits.sql_rows_affected;
        if self.used.rows_affected > limit {
            return Err(SqlFailure::too_large(format!(
                "an attempt may change {limit} rows; this one has changed more"
            )));
        }
        Ok(())
    }

    async fn run_execute(
        &mut self,
        checked: &Arc<Checked>,
        params: Vec<Value>,
    ) -> Result<crate::ledger::value::Executed, SqlFailure> {
        let params = bind(checked, params)?;
        self.touch(checked);
        let mut session = self.lent.session().await;
        let executed = match session.expected(&checked.sql) {
            Some(expected) => {
                session.put_off(checked, params, expected, self.patience).await?;
                expected
            }
            None => {
                session.catch_up(self.patience).await?;
                session.execute(&checked.sql, &params, self.patience).await?
            }
        };
        drop(session);
        self.count(executed.rows_affected)?;
        Ok(executed)
    }

    async fn try_execute(&mut self, statement: &str, params: Vec<Value>) -> Result<Executed, SqlFailure> {
        let checked = self.prepare(statement)?;
        returns_no_rows(&checked)?;
        let executed = self.run_execute(&checked, params).await?;
        Ok(Executed { rows_affected: executed.rows_affected, last_insert_id: executed.last_insert_id })
    }

    async fn try_execute_many(&mut self, statement: &str, rows: Vec<Vec<Value>>) -> Result<u64, SqlFailure> {
        let checked = self.prepare(statement)?;
        returns_no_rows(&checked)?;
        let limit = self.consumer.limits.sql_rows;
        if rows.len() as u64 > limit {
            let message = format!("execute-many has {} rows; {limit} are allowed", rows.len());
            return Err(SqlFailure::too_large(message));
        }
        let bound = rows.into_iter().map(|params| bind(&checked, params)).collect::<Result<Vec<_>, _>>()?;
        let mut affected = 0_u64;
        for together in bound.chunks(TOGETHER) {
            self.touch(&checked);
            let mut session = self.lent.session().await;
            session.catch_up(self.patience).await?;
            let changed = session.execute_all(&checked.sql, together, self.patience).await?;
            drop(session);
            self.count(changed)?;
            affected = affected.saturating_add(changed);
        }
        Ok(affected)
    }

    async fn try_query(&mut self, statement: &str, params: Vec<Value>) -> Result<ResultSet, SqlFailure> {
        let checked = self.prepare(statement)?;
        if !checked.returns_rows {
            return Err(SqlFailure::invalid("the statement returns no rows: use execute"));
        }
        let params = bind(&checked, params)?;
        self.touch(&checked);
        let limits = RowLimits { rows: self.consumer.limits.sql_rows, bytes: self.consumer.limits.sql_bytes };
        let mut session = self.lent.session().await;
        session.catch_up(self.patience).await?;
        let result = session.query(&checked, &params, limits, self.patience).await?;
        drop(session);
        if checked.kind == Kind::Write {
            self.count(result.rows.len() as u64)?;
        }
        Ok(convert::result_set(result))
    }

    /// Refuses everything after the first error.
    fn poisoned(&self) -> Option<Error> {
        let first = self.used.failure.as_ref().filter(|_| !sabotage::broken(Breach::StatementAfterError))?;
        let message = format!("not sent, because an earlier call of this attempt failed: {}", first.message());
        Some(Error { kind: ErrorKind::Poisoned, code: None, constraint: None, message })
    }

    /// Time that the host has taken for this attempt's calls.
    pub(crate) fn took(&self) -> Duration {
        self.used.took
    }

    /// Remembers the first error, and tells it to the guest.
    fn answer<T>(&mut self, result: Result<T, SqlFailure>, began: Instant) -> Result<T, Error> {
        self.used.took += began.elapsed();
        result.map_err(|failure| {
            let error = failure.to_guest();
            // What a failed statement did to the transaction depends on the database; one that was not sent did nothing.
            self.used.touched |= matches!(failure, SqlFailure::Database(_) | SqlFailure::Refuted(_));
            self.used.failure.get_or_insert(failure);
            error
        })
    }
}

fn returns_no_rows(checked: &Checked) -> Result<(), SqlFailure> {
    if checked.returns_rows {
        return Err(SqlFailure::invalid("the statement returns rows: use query"));
    }
    Ok(())
}

/// The caller's parameters in the order in which the statement binds them. Most statements bind each once, in order.
fn bind(checked: &Checked, params: Vec<Value>) -> Result<Vec<Param>, SqlFailure> {
    if params.len() != checked.parameters {
        let message = format!("the statement takes {} parameters, {} were given", checked.parameters, params.len());
        return Err(SqlFailure::invalid(message));
    }
    let params: Vec<Param> = params.into_iter().map(|value| Param::One(convert::value(value))).collect();
    if checked.order.iter().copied().eq(0..params.len()) {
        return Ok(params);
    }
    let bound = checked.order.iter().map(|&index| params.get(index).cloned());
    bound.collect::<Option<_>>().ok_or_else(|| SqlFailure::invalid("a placeholder has no parameter"))
}

impl Host for SqlHost {
    async fn execute(&mut self, statement: String, params: Vec<Value>) -> Result<Executed, Error> {
        if let Some(error) = self.poisoned() {
            return Err(error);
        }
        let began = Instant::now();
        let result = self.try_execute(&statement, params).await;
        self.answer(result, began)
    }

    async fn execute_many(&mut self, statement: String, rows: Vec<Vec<Value>>) -> Result<u64, Error> {
        if let Some(error) = self.poisoned() {
            return Err(error);
        }
        let began = Instant::now();
        let result = self.try_execute_many(&statement, rows).await;
        self.answer(result, began)
    }

    async fn query(&mut self, statement: String, params: Vec<Value>) -> Result<ResultSet, Error> {
        if let Some(error) = self.poisoned() {
            return Err(error);
        }
        let began = Instant::now();
        let result = self.try_query(&statement, params).await;
        self.answer(result, began)
    }
}

/// Links `sql`.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    sql::add_to_linker::<State, HasSelf<SqlHost>>(linker, |state| &mut state.sql)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::grants::{Grants, Limits};
    use crate::guest::sql_guard::{TableGrants, Verb};
    use crate::guest::testing::{Fake, consumer};

    async fn host(limits: Limits) -> (SqlHost, Fake) {
        let (lent, fake) = (Arc::new(Lent::default()), Fake::default());
        lent.lend(fake.line()).await;
        let tables = TableGrants([("stock".to_owned(), [Verb::Select, Verb::Update].into())].into());
        (SqlHost::new(consumer(Grants { tables, ..Grants::default() }, limits), lent), fake)
    }

    async fn update(host: &mut SqlHost) -> Result<Executed, Error> {
        host.execute("UPDATE stock SET n = ?".into(), vec![Value::Int64(1)]).await
    }

    fn failed(kind: DbErrorKind) -> DbError {
        DbError { kind, code: Some("X".into()), ..DbError::infrastructure("boom") }
    }

    #[tokio::test]
    async fn a_statement_is_sent_with_its_parameters() {
        let (mut host, fake) = host(Limits::default()).await;
        assert_eq!(update(&mut host).await.unwrap().rows_affected, 1);
        let rows = host.query("SELECT n FROM stock".into(), vec![]).await.unwrap();
        assert!(matches!(rows.rows[0][0], Value::Int64(7)));
        let many = host.execute_many("UPDATE stock SET n = ?".into(), vec![vec![Value::Null]; 3]).await.unwrap();
        assert_eq!(many, 3);
        assert_eq!(fake.sent().len(), 5);
        let report = host.finish();
        assert!(report.touched && report.failure.is_none());
    }

    #[tokio::test]
    async fn after_an_error_nothing_more_is_sent() {
        let (mut host, fake) = host(Limits::default()).await;
        fake.answer(Err(failed(DbErrorKind::Constraint)));
        let error = update(&mut host).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Constraint, Some("X")));
        let error = update(&mut host).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Poisoned);
        assert!(error.message.contains("boom"), "{}", error.message);
        assert_eq!(fake.sent().len(), 1);
        assert_eq!(host.finish().failure.unwrap().kind(), ErrorKind::Constraint);
        assert!(update(&mut host).await.is_ok(), "the next attempt starts afresh");
    }

    #[tokio::test]
    async fn a_refusal_loses_the_attempt_too_but_touches_nothing() {
        for (statement, params, kind) in [
            ("COMMIT", vec![], ErrorKind::Denied),
            ("UPDATE stock SET n = ?", vec![], ErrorKind::Invalid),
            ("SELECT 1", vec![], ErrorKind::Invalid),
        ] {
            let (mut host, fake) = host(Limits::default()).await;
            assert_eq!(host.execute(statement.into(), params).await.unwrap_err().kind, kind, "{statement}");
            assert_eq!(update(&mut host).await.unwrap_err().kind, ErrorKind::Poisoned);
            assert!(fake.sent().is_empty());
            let report = host.finish();
            assert!(!report.touched && matches!(report.failure, Some(SqlFailure::Refused { .. })));
        }
    }

    #[tokio::test]
    async fn every_kind_of_database_error_has_its_kind_in_the_contract() {
        for (kind, expected) in [
            (DbErrorKind::Constraint, ErrorKind::Constraint),
            (DbErrorKind::Invalid, ErrorKind::Invalid),
            (DbErrorKind::TooLarge, ErrorKind::TooLarge),
            (DbErrorKind::TimedOut, ErrorKind::Other),
            (DbErrorKind::Contention, ErrorKind::Transient),
            (DbErrorKind::Infrastructure, ErrorKind::Transient),
        ] {
            let (mut host, fake) = host(Limits::default()).await;
            fake.answer(Err(failed(kind)));
            assert_eq!(update(&mut host).await.unwrap_err().kind, expected);
        }
    }

    #[tokio::test]
    async fn a_read_touches_nothing() {
        let (mut host, _fake) = host(Limits::default()).await;
        host.query("SELECT 1".into(), vec![]).await.unwrap();
        assert!(!host.finish().touched);
    }

    #[tokio::test]
    async fn limits_are_for_the_whole_attempt() {
        let statements = Limits { sql_statements: 1, ..Limits::default() };
        let rows = Limits { sql_rows_affected: 1, ..Limits::default() };
        for limits in [statements, rows] {
            let (mut host, _fake) = host(limits).await;
            assert!(update(&mut host).await.is_ok());
            assert_eq!(update(&mut host).await.unwrap_err().kind, ErrorKind::TooLarge);
        }
        let (mut host, _fake) = host(Limits { sql_text: 5, sql_rows: 1, ..Limits::default() }).await;
        assert_eq!(update(&mut host).await.unwrap_err().kind, ErrorKind::TooLarge);
    }

    #[tokio::test]
    async fn a_slow_statement_is_stopped_and_costs_the_connection() {
        let (mut host, fake) = host(Limits::default()).await;
        host.patience = Duration::from_millis(20);
        fake.0.lock().unwrap().delay = Duration::from_secs(60);
        let error = update(&mut host).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Other, Some("timeout")));
        assert!(host.lent.take_back().await.is_none());
        assert_eq!((fake.sent().len(), fake.sent()[1].as_str()), (2, "kill"));
    }

    #[tokio::test]
    async fn each_statement_has_its_own_time() {
        let (mut host, fake) = host(Limits { sql_statements: 4, ..Limits::default() }).await;
        host.patience = Duration::from_millis(300);
        fake.0.lock().unwrap().delay = Duration::from_millis(100);
        for _ in 0..4 {
            update(&mut host).await.unwrap();
        }
        assert_eq!(fake.sent().len(), 4);
    }

    #[test]
    fn a_parameter_used_twice_is_bound_twice() {
        let checked =
            Checked { sql: String::new(), parameters: 2, order: vec![1, 0, 1], kind: Kind::Read, returns_rows: true };
        let bound = bind(&checked, vec![Value::Int64(1), Value::Null]).unwrap();
        use crate::ledger::value::Value::{Int, Null};
        assert_eq!(bound, [Param::One(Null), Param::One(Int(1)), Param::One(Null)]);
    }
}
