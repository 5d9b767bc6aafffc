//! The ledger on MariaDB 10.6 and later, and on MySQL 8.
//!
//! Parameters are bound by what they are, and the server converts: the types that it reports for the parameters of a
//! prepared statement are of no use. What comes back is read by column type (`decode`).

mod connection;
mod decode;
mod encode;
mod error;
mod together;

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryFutureExt;
use sqlx::migrate::Migrator;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlRow, MySqlTypeInfo};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Decode, Executor, Row, ValueRef, raw_sql};
use tokio::sync::OnceCell;

use super::database::{Connection, Database, DbError, Dialect, Features, KillSwitch, Migration, SessionSettings};
use super::gate::{
    KILL_LIMIT, MIGRATION_LIMIT, MIGRATION_LOCK_LIMIT, MIGRATIONS_TABLE, apply_migrations, connecting, driver_error,
    looked, lost, migration_error, millis, plan_migrations, seconds,
};
use connection::MySqlLedgerConnection;

/// Prepared statements kept for each connection; the server allows 16,382 for all of them together.
const STATEMENTS: usize = 256;

/// What strings, zero dates and quotes mean.
///
/// - Strict, for all engines: a value that does not fit is an error, not a warning and another value.
/// - No zero dates, and no division by zero that gives NULL.
/// - Without `ANSI_QUOTES` and `NO_BACKSLASH_ESCAPES`: the SQL of handlers is parsed before it is sent, and the server
///   has to read quotes and backslashes as that parser does, or text could become code.
/// - Without `PIPES_AS_CONCAT` and the modes of other databases, for the same reason.
const SQL_MODE: &str = "STRICT_ALL_TABLES,STRICT_TRANS_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION";

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/mysql");

/// A MariaDB or MySQL database.
pub struct MySql {
    options: MySqlConnectOptions,
    settings: SessionSettings,
    server: OnceCell<(Flavor, String)>,
    migrations: &'static Migrator,
}

impl std::fmt::Debug for MySql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MySql").field(&self.address()).finish()
    }
}

/// Which of the two it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavor {
    /// Limits every statement and idle transactions itself.
    MariaDb,
    /// Limits SELECT only, and connections only where MariaDB limits transactions.
    MySql,
}

/// The server's side of a connection.
struct Backend {
    flavor: Flavor,
    version: String,
    id: u64,
    /// The session's own limit of idleness, in seconds; see [`MySqlLedgerConnection`].
    wait_timeout: u64,
    /// The server rolls the whole transaction back at a lock time-out.
    rollback_on_timeout: bool,
    /// The type of exact decimals, which sqlx lets nobody make.
    decimal: MySqlTypeInfo,
}

impl MySql {
    /// A database by its URL (see [`super::database::open`]). Nothing is sent to it yet.
    ///
    /// # Errors
    /// Infrastructure where the URL cannot be read.
    pub fn new(url: &str, settings: SessionSettings) -> Result<Self, DbError> {
        let options = MySqlConnectOptions::from_str(url).map_err(|error| driver_error(&error))?;
        let options = options
            .charset("utf8mb4")
            .timezone(Some("+00:00".to_owned()))
            .pipes_as_concat(false)
            .no_engine_substitution(false)
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        Ok(Self { options, settings, server: OnceCell::new(), migrations: &MIGRATIONS })
    }

    /// The same with other migrations than Hapax's own.
    pub fn with_migrations(mut self, migrations: &'static Migrator) -> Self {
        self.migrations = migrations;
        self
    }

    /// Where it is, without credentials.
    fn address(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or("(none)");
        match options.get_socket() {
            Some(socket) => format!("MariaDB or MySQL database {database} at {}", socket.display()),
            None => format!("MariaDB or MySQL database {database} at {}:{}", options.get_host(), options.get_port()),
        }
    }

    /// A connection with its session pinned.
    async fn open(&self, settings: SessionSettings, autocommit: bool) -> Result<(MySqlConnection, Backend), DbError> {
        let session = async {
            let db_error = |error: sqlx::Error| error::db_error(&error);
            let mut connection = self.options.connect().await.map_err(db_error)?;
            let row = connection.fetch_one(raw_sql(PROBE)).await.map_err(db_error)?;
            let backend = backend(&row)?;
            let pins = pin_session(&settings, backend.flavor, autocommit);
            connection.execute(raw_sql(AssertSqlSafe(pins))).await.map_err(db_error)?;
            Ok((connection, backend))
        };
        let (connection, backend) = connecting(&self.address(), session).await?;
        let known = (backend.flavor, backend.version.clone());
        self.server.get_or_init(async || known).await;
        Ok((connection, backend))
    }

    async fn server(&self) -> Result<(Flavor, String), DbError> {
        if self.server.get().is_none() {
            self.open(self.settings, true).await?;
        }
        self.server.get().cloned().ok_or_else(|| DbError::infrastructure("the database server is unknown"))
    }
}

const PROBE: &str = "SELECT VERSION(), CONNECTION_ID(), @@SESSION.wait_timeout, @@innodb_rollback_on_timeout, \
                     CAST(1.5 AS DECIMAL(2, 1))";

fn backend(row: &MySqlRow) -> Result<Backend, DbError> {
    let text = |index: usize| {
        let raw = row.try_get_raw(index).ok()?;
        let bytes = <&[u8] as Decode<sqlx::MySql>>::decode(raw).ok()?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    };
    let number = |index: usize| text(index)?.parse::<u64>().ok();
    let read = || {
        let version = text(0)?;
        Some(Backend {
            flavor: if version.contains("MariaDB") { Flavor::MariaDb } else { Flavor::MySql },
            version,
            id: number(1)?,
            wait_timeout: number(2)?,
            rollback_on_timeout: number(3)? != 0,
            decimal: row.try_get_raw(4).ok()?.type_info().into_owned(),
        })
    };
    read().ok_or_else(|| lost("the database server does not say what it is"))
}

/// Statements that set everything that a session is pinned to.
///
/// `autocommit = 0`: when the server has rolled a transaction back (after a deadlock, say), what follows must not take
/// effect on its own.
fn pin_session(settings: &SessionSettings, flavor: Flavor, autocommit: bool) -> String {
    let idle = seconds(settings.idle_in_transaction);
    let limit = match flavor {
        Flavor::MariaDb => format!(", idle_transaction_timeout = {idle}"),
        Flavor::MySql => String::new(),
    };
    format!(
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
         SET SESSION autocommit = {}, completion_type = 'NO_CHAIN', sql_mode = '{SQL_MODE}', time_zone = '+00:00', \
         sql_auto_is_null = 0, sql_safe_updates = 0, sql_select_limit = DEFAULT, foreign_key_checks = 1, \
         unique_checks = 1, net_read_timeout = {idle}, net_write_timeout = {idle}{limit}; {}",
        u8::from(autocommit),
        timeouts(flavor, settings.lock_timeout, settings.statement_timeout)
    )
}

/// The statement that sets the two limits of a statement. Locks are waited for in whole seconds.
fn timeouts(flavor: Flavor, lock: Duration, statement: Duration) -> String {
    let lock = seconds(lock);
    let statement = millis(statement);
    let limit = match flavor {
        Flavor::MariaDb => format!("max_statement_time = {}.{:03}", statement / 1000, statement % 1000),
        Flavor::MySql => format!("max_execution_time = {statement}"),
    };
    format!("SET SESSION innodb_lock_wait_timeout = {lock}, lock_wait_timeout = {lock}, {limit}")
}

#[async_trait]
impl Database for MySql {
    fn dialect(&self) -> Dialect {
        Dialect::MySql
    }

    async fn features(&self) -> Result<Features, DbError> {
        let (flavor, _) = self.server().await?;
        Ok(Features { concurrent_writers: true, insert_returning: flavor == Flavor::MariaDb, shared: true })
    }

    async fn describe(&self) -> Result<String, DbError> {
        let (flavor, version) = self.server().await?;
        Ok(match flavor {
            // MariaDB says so itself, for example 10.11.6-MariaDB.
            Flavor::MariaDb => format!("MariaDB {}", version.replace("-MariaDB", "")),
            Flavor::MySql => format!("MySQL {version}"),
        })
    }

    fn settings(&self) -> SessionSettings {
        self.settings
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, DbError> {
        let (connection, backend) = self.open(self.settings, false).await?;
        let kill = MySqlKill { options: self.options.clone(), id: backend.id, closed: AtomicBool::new(false) };
        Ok(Box::new(MySqlLedgerConnection::new(connection, self.settings, backend, Arc::new(kill))))
    }

    async fn migrate(&self, dry_run: bool) -> Result<Vec<Migration>, DbError> {
        let settings = SessionSettings {
            lock_timeout: MIGRATION_LOCK_LIMIT,
            statement_timeout: MIGRATION_LIMIT,
            idle_in_transaction: MIGRATION_LIMIT,
        };
        // What sqlx writes about its own work outside of transactions has to stay.
        let (mut connection, _) = self.open(settings, true).await?;
        let work = async {
            let found = format!(
                "SELECT 1 FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '{MIGRATIONS_TABLE}'"
            );
            let found = connection.fetch_optional(raw_sql(AssertSqlSafe(found))).await;
            let exists = found.map_err(|error| error::db_error(&error))?.is_some();
            let failed = |error| migration_error(error, error::db_error);
            if let Some(done) =
                plan_migrations(&mut connection, self.migrations, exists, dry_run).await.map_err(failed)?
            {
                return Ok(done);
            }
            lock_migrations(&mut connection).await?;
            apply_migrations(&mut connection, self.migrations).await.map_err(failed)
        };
        match tokio::time::timeout(MIGRATION_LIMIT, work).await {
            Ok(result) => result,
            Err(_) => Err(lost("migrating the hapax_* tables took too long, or another host holds the lock for it")),
        }
    }
}

/// Takes the lock for migrations of this database; it is held until the connection is closed. Not with sqlx: it asks to
/// wait for ever by a negative time, and MariaDB answers that with NULL and no lock.
async fn lock_migrations(connection: &mut MySqlConnection) -> Result<(), DbError> {
    let lock = format!("SELECT GET_LOCK(CONCAT('hapax:', MD5(DATABASE())), {})", seconds(MIGRATION_LIMIT));
    let row = connection.fetch_one(raw_sql(AssertSqlSafe(lock))).await.map_err(|error| error::db_error(&error))?;
    match row.try_get::<Option<i64>, _>(0) {
        Ok(Some(1)) => Ok(()),
        _ => Err(DbError::infrastructure("another host holds the lock for migrating the hapax_* tables")),
    }
}

/// Looks at a connection, and ends it, from another one.
struct MySqlKill {
    options: MySqlConnectOptions,
    id: u64,
    /// The connection ended in order; nothing is to be killed.
    closed: AtomicBool,
}

impl MySqlKill {
    /// Waits for tables are in the list of processes, whose own everybody may see. Who waits for a row is told only to
    /// those who have the privilege PROCESS; others are told whether anybody does.
    async fn waits(&self, connection: &mut MySqlConnection) -> Result<bool, sqlx::Error> {
        let table = format!(
            "SELECT 1 FROM information_schema.processlist WHERE id = {} AND state LIKE 'Waiting for %lock'",
            self.id
        );
        if connection.fetch_optional(raw_sql(AssertSqlSafe(table))).await?.is_some() {
            return Ok(true);
        }
        let row = format!(
            "SELECT 1 FROM information_schema.innodb_trx WHERE trx_mysql_thread_id = {} AND trx_state = 'LOCK WAIT'",
            self.id
        );
        match connection.fetch_optional(raw_sql(AssertSqlSafe(row))).await {
            Err(error) if error::is_lack_of_privilege(&error) => {
                let anybody = "SHOW GLOBAL STATUS WHERE variable_name = 'Innodb_row_lock_current_waits' AND value > 0";
                Ok(connection.fetch_optional(raw_sql(anybody)).await?.is_some())
            }
            own => Ok(own?.is_some()),
        }
    }
}

#[async_trait]
impl KillSwitch for MySqlKill {
    async fn is_waiting(&self) -> bool {
        let look = async {
            let mut connection = self.options.connect().await?;
            let waits = self.waits(&mut connection).await?;
            connection.close().await?;
            Ok(waits)
        };
        looked(look.map_err(|error| error::db_error(&error))).await
    }

    async fn kill(&self) {
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let work = async {
            let mut connection = self.options.connect().await?;
            let killed = connection.execute(raw_sql(AssertSqlSafe(format!("KILL CONNECTION {}", self.id)))).await;
            if let Err(error) = killed {
                return if error::is_unknown_thread(&error) { Ok(()) } else { Err(error) };
            }
            let alive = format!("SELECT 1 FROM information_schema.processlist WHERE id = {}", self.id);
            while connection.fetch_optional(raw_sql(AssertSqlSafe(alive.clone()))).await?.is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            connection.close().await
        };
        match tokio::time::timeout(KILL_LIMIT, work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %error::db_error(&error), "cannot end a connection of the database")
            }
            Err(_) => tracing::warn!("ending a connection of the database takes too long; its time-outs will"),
        }
    }
}
