//! The ledger seam: a SQL database, and one connection of it.
//!
//! Everything above this seam (claims, parked rows, the outbox) is written once, on these two traits, with the SQL of
//! each dialect in a file of its own. Everything that differs between drivers (binding, decoding, error codes, how a
//! statement is stopped) is below.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::value::{Executed, Param, ResultSet, RowLimits};

/// Which SQL is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MariaDB and MySQL 8.
    MySql,
    /// SQLite.
    Sqlite,
}

/// What a back end can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Several writers at once; where not, a consumer has one lane.
    pub concurrent_writers: bool,
    /// `INSERT … RETURNING` tells which rows went in (not on MySQL 8).
    pub insert_returning: bool,
    /// Several processes may use the database at once.
    pub shared: bool,
}

/// What every connection is set to before its first statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// How long a statement waits for a row lock.
    pub lock_timeout: Duration,
    /// How long one statement may run.
    pub statement_timeout: Duration,
    /// How long a transaction may sit without a statement before the server ends it, so that the claims of a frozen
    /// host are freed.
    pub idle_in_transaction: Duration,
}

/// A SQL database.
#[async_trait]
pub trait Database: Send + Sync {
    /// Which SQL it speaks.
    fn dialect(&self) -> Dialect;

    /// What it can do; asks the server once.
    async fn features(&self) -> Result<Features, DbError>;

    /// Server name and version.
    async fn describe(&self) -> Result<String, DbError>;

    /// What its connections are set to.
    fn settings(&self) -> SessionSettings;

    /// Opens a connection with its session pinned: READ COMMITTED, settings, `search_path` or `sql_mode`.
    async fn connect(&self) -> Result<Box<dyn Connection>, DbError>;

    /// Creates or upgrades the `hapax_*` tables, under a lock. Returns the migrations applied, or with `dry_run` those
    /// that would be.
    async fn migrate(&self, dry_run: bool) -> Result<Vec<Migration>, DbError>;
}

/// Opens a database by the scheme of its URL. Nothing is sent to it yet.
///
/// - `postgres://user:password@host:port/database`, `postgresql://…`; `?host=/directory` for a Unix socket,
///   `?sslmode=verify-full&sslrootcert=FILE` for TLS, `?options[search_path]=schema` for another schema.
/// - `mysql://…`, `mariadb://…`; `?socket=/path` for a Unix socket, `?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE` for TLS.
/// - `sqlite://PATH` (relative, or absolute with a third slash; `?mode=ro` opens it read-only), and `sqlite::memory:`
///   for a private database that lives as long as what is returned here.
///
/// # Errors
/// [`DbErrorKind::Infrastructure`] where the scheme is unknown or the URL cannot be read. The URL is not in the message.
pub fn open(url: &str, settings: SessionSettings) -> Result<Arc<dyn Database>, DbError> {
    let scheme = url.split(':').next().unwrap_or_default();
    let is_complete = url.contains("://") || scheme == "sqlite";
    match scheme {
        "postgres" | "postgresql" if is_complete => Ok(Arc::new(super::postgres::Postgres::new(url, settings)?)),
        "mysql" | "mariadb" if is_complete => Ok(Arc::new(super::mysql::MySql::new(url, settings)?)),
        "sqlite" => Ok(Arc::new(super::sqlite::Sqlite::new(url, settings)?)),
        _ => Err(DbError::infrastructure(
            "the database URL must begin with postgres://, postgresql://, mysql://, mariadb://, sqlite://PATH or \
             sqlite::memory:",
        )),
    }
}

/// One schema migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Its number.
    pub version: i64,
    /// Its name.
    pub description: String,
    /// Its SQL.
    pub sql: String,
}

/// One of several statements.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// Its text.
    pub sql: &'a str,
    /// Its parameters.
    pub params: &'a [Param],
}

/// One connection, with at most one transaction. Dropping it mid-statement is allowed: the connection is then closed,
/// never reused.
#[async_trait]
pub trait Connection: Send {
    /// Begins a transaction.
    async fn begin(&mut self) -> Result<(), DbError>;

    /// Begins a transaction whose statements wait for locks no longer than `lock`, if the connection's limit is not
    /// shorter anyway. Where the database finds deadlocks at once, or has one writer, as [`begin`](Self::begin).
    async fn begin_impatient(&mut self, lock: Duration) -> Result<(), DbError> {
        let _ = lock;
        self.begin().await
    }

    /// Commits. The caller has seen to it that every statement since `begin` succeeded or was undone: Postgres answers
    /// COMMIT of an aborted transaction with success. With [`DbError::connection_lost`] nobody knows whether it
    /// happened.
    async fn commit(&mut self) -> Result<(), DbError>;

    /// Rolls back.
    async fn rollback(&mut self) -> Result<(), DbError>;

    /// Sets the one savepoint, replacing the last one.
    async fn savepoint(&mut self) -> Result<(), DbError>;

    /// Undoes everything since the savepoint; it stays set.
    async fn rollback_to_savepoint(&mut self) -> Result<(), DbError>;

    /// Runs one statement that returns no rows. Parameters are bound by the types that the prepared statement reports.
    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<Executed, DbError>;

    /// Runs statements that return no rows, in their order, in as few round trips as the database allows. Stops at the
    /// first that fails: those after it have not run. `executed` gets what each that ran has changed.
    async fn execute_all(&mut self, statements: &[Statement<'_>], executed: &mut Vec<Executed>) -> Result<(), DbError> {
        for statement in statements {
            executed.push(self.execute(statement.sql, statement.params).await?);
        }
        Ok(())
    }

    /// Runs one statement that returns rows. Past `limits` the rest is read and thrown away, and the answer is
    /// [`DbErrorKind::TooLarge`].
    async fn query(&mut self, sql: &str, params: &[Param], limits: RowLimits) -> Result<ResultSet, DbError>;

    /// Asks the server for a sign of life; also what keeps an idle transaction from being ended.
    async fn ping(&mut self) -> Result<(), DbError>;

    /// A handle that ends whatever this connection runs, from outside it.
    fn kill_switch(&self) -> Arc<dyn KillSwitch>;

    /// Changes the two per-statement limits for this connection's later statements.
    async fn set_timeouts(&mut self, lock: Duration, statement: Duration) -> Result<(), DbError>;
}

/// Looks at a connection from outside it, and ends it.
#[async_trait]
pub trait KillSwitch: Send + Sync {
    /// Tells whether the statement that runs waits, at this moment, for what another transaction has locked. Bounded in
    /// time; false where that cannot be found out.
    async fn is_waiting(&self) -> bool {
        false
    }

    /// Makes the server stop the running statement and close the connection, rolling back. Bounded in time; best
    /// effort, since the server's own time-outs do the same later.
    async fn kill(&self);
}

/// What kind of failure a database reported. An allow-list: what is not known to be the statement's own fault is
/// infrastructure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DbErrorKind {
    /// A constraint was violated (SQLSTATE class 23).
    Constraint,
    /// The statement or its data is wrong (classes 22, 42, 44, P0001).
    Invalid,
    /// The result is larger than the limit.
    TooLarge,
    /// The statement ran into the session's own statement time limit, and was not seen waiting for anybody else.
    TimedOut,
    /// Deadlock, serialization failure, lock time-out, or a statement time limit that went by in waiting for locks: the
    /// same again may well succeed.
    Contention,
    /// Anything else: not reachable, disk full, read-only, no slot, plan changed.
    Infrastructure,
}

/// What a database answered instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbError {
    /// Whose fault it is.
    pub kind: DbErrorKind,
    /// SQLSTATE, or the driver's own code.
    pub code: Option<String>,
    /// The violated constraint, where the database names it.
    pub constraint: Option<String>,
    /// The server's message, without credentials.
    pub message: String,
    /// The connection cannot be used any more.
    pub connection_lost: bool,
}

impl DbError {
    /// An infrastructure failure that Hapax itself noticed.
    pub fn infrastructure(message: impl Into<String>) -> Self {
        Self {
            kind: DbErrorKind::Infrastructure,
            code: None,
            constraint: None,
            message: message.into(),
            connection_lost: false,
        }
    }

    /// True where the statement's author is to blame, and an attempt is counted.
    pub fn is_handlers_fault(&self) -> bool {
        matches!(
            self.kind,
            DbErrorKind::Constraint | DbErrorKind::Invalid | DbErrorKind::TooLarge | DbErrorKind::TimedOut
        )
    }
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} ({code})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for DbError {}
