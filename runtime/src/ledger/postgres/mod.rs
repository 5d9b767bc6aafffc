//! The ledger on PostgreSQL 12 and later.
//!
//! Statements are prepared, and parameters sent in the binary form of the types that the server reports for them
//! (`encode`); where the two do not match, the server converts (`plan`), never this program. Results are read in
//! binary form too (`decode`); columns of types without a form of their own are asked for as text.

mod connection;
mod decode;
mod encode;
mod error;
mod plan;
mod together;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::TryFutureExt;
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, Row, raw_sql};

use super::database::{Connection, Database, DbError, Dialect, Features, KillSwitch, Migration, SessionSettings};
use super::gate::{
    KILL_LIMIT, MIGRATION_LIMIT, MIGRATION_LOCK_LIMIT, MIGRATIONS_TABLE, apply_migrations, connecting, driver_error,
    looked, lost, migration_error, millis, plan_migrations, seconds,
};
use connection::PostgresConnection;
use plan::TypeName;

/// Prepared statements kept for each connection.
const STATEMENTS: usize = 512;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/postgres");

/// A PostgreSQL database.
pub struct Postgres {
    options: PgConnectOptions,
    settings: SessionSettings,
    types: Arc<Types>,
    migrations: &'static Migrator,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Postgres").field(&self.address()).finish()
    }
}

impl Postgres {
    /// A database by its URL (see [`super::database::open`]). Nothing is sent to it yet.
    ///
    /// # Errors
    /// Infrastructure where the URL cannot be read.
    pub fn new(url: &str, settings: SessionSettings) -> Result<Self, DbError> {
        let options = PgConnectOptions::from_str(url).map_err(|error| driver_error(&error))?;
        let options =
            options.application_name("hapax").statement_cache_capacity(STATEMENTS).disable_statement_logging();
        Ok(Self { options, settings, types: Arc::default(), migrations: &MIGRATIONS })
    }

    /// The same with other migrations than Hapax's own.
    pub fn with_migrations(mut self, migrations: &'static Migrator) -> Self {
        self.migrations = migrations;
        self
    }

    /// Where it is, without credentials.
    fn address(&self) -> String {
        let options = &self.options;
        let database = options.get_database().unwrap_or(options.get_username());
        match options.get_socket() {
            Some(socket) => format!("PostgreSQL database {database} at {}", socket.display()),
            None => format!("PostgreSQL database {database} at {}:{}", options.get_host(), options.get_port()),
        }
    }

    /// A connection with its session pinned.
    async fn open(&self, settings: SessionSettings) -> Result<(PgConnection, Backend), DbError> {
        let session = async {
            let mut connection = self.options.connect().await.map_err(|error| error::db_error(&error))?;
            let row = connection
                .fetch_one(raw_sql(AssertSqlSafe(pin_session(&settings))))
                .await
                .map_err(|error| error::db_error(&error))?;
            let text = |index: usize| row.try_get::<String, _>(index).map_err(|error| driver_error(&error));
            Ok((connection, Backend { pid: text(0)?, started: text(1)?, version: text(2)? }))
        };
        connecting(&self.address(), session).await
    }
}

/// The server's side of a connection.
struct Backend {
    pid: String,
    started: String,
    version: String,
}

/// One statement that sets everything that a session is pinned to.
///
/// - `search_path`: the schemas that exist of what the role or the URL asks for (so `"$user"` is resolved now, and a
///   schema made later changes nothing), `public` where none does, and temporary tables last, so that none can hide a
///   real one. Functions and types of `pg_catalog` come first, as always when it is not named.
/// - Formats of text, so that what is read and what is written means the same everywhere.
/// - Time-outs, among them those of TCP: a host that is frozen or gone frees its transaction in about
///   `idle_in_transaction`.
fn pin_session(settings: &SessionSettings) -> String {
    let idle = settings.idle_in_transaction;
    let probe = seconds(idle / 3);
    let mut pins = vec![
        ("default_transaction_isolation", "read committed".to_owned()),
        ("standard_conforming_strings", "on".to_owned()),
        ("backslash_quote", "safe_encoding".to_owned()),
        ("transform_null_equals", "off".to_owned()),
        ("TimeZone", "UTC".to_owned()),
        ("DateStyle", "ISO, MDY".to_owned()),
        ("IntervalStyle", "postgres".to_owned()),
        ("bytea_output", "hex".to_owned()),
        ("extra_float_digits", "1".to_owned()),
        ("client_min_messages", "warning".to_owned()),
        ("idle_in_transaction_session_timeout", millis(idle).to_string()),
        ("tcp_user_timeout", millis(idle).to_string()),
        ("tcp_keepalives_idle", probe.to_string()),
        ("tcp_keepalives_interval", probe.to_string()),
        ("tcp_keepalives_count", "3".to_owned()),
    ];
    pins.extend(timeouts(settings.lock_timeout, settings.statement_timeout));
    let pins: Vec<String> =
        pins.iter().map(|(name, value)| format!("pg_catalog.set_config('{name}', '{value}', false)")).collect();
    format!(
        "WITH pinned AS MATERIALIZED (SELECT {}, pg_catalog.set_config('search_path', coalesce((
           SELECT pg_catalog.string_agg(pg_catalog.quote_ident(name), ', ' ORDER BY place)
           FROM pg_catalog.unnest(pg_catalog.current_schemas(false)) WITH ORDINALITY AS schemas(name, place)
         ), 'public') || ', pg_temp', false))
         SELECT a.pid::text, a.backend_start::text, pg_catalog.current_setting('server_version')
         FROM pinned, pg_catalog.pg_stat_activity AS a WHERE a.pid = pg_catalog.pg_backend_pid()",
        pins.join(", ")
    )
}

/// The settings for the two limits of a statement.
fn timeouts(lock: Duration, statement: Duration) -> [(&'static str, String); 2] {
    [("lock_timeout", millis(lock).to_string()), ("statement_timeout", millis(statement).to_string())]
}

#[async_trait]
impl Database for Postgres {
    fn dialect(&self) -> Dialect {
        Dialect::Postgres
    }

    async fn features(&self) -> Result<Features, DbError> {
        Ok(Features { concurrent_writers: true, insert_returning: true, shared: true })
    }

    async fn describe(&self) -> Result<String, DbError> {
        let (_connection, backend) = self.open(self.settings).await?;
        Ok(format!("PostgreSQL {}", backend.version))
    }

    fn settings(&self) -> SessionSettings {
        self.settings
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, DbError> {
        let (connection, backend) = self.open(self.settings).await?;
        let kill = PostgresKill {
            options: self.options.clone(),
            pid: backend.pid,
            started: backend.started,
            closed: AtomicBool::new(false),
        };
        Ok(Box::new(PostgresConnection::new(connection, self.settings, Arc::clone(&self.types), Arc::new(kill))))
    }

    async fn migrate(&self, dry_run: bool) -> Result<Vec<Migration>, DbError> {
        let settings = SessionSettings {
            lock_timeout: MIGRATION_LOCK_LIMIT,
            statement_timeout: MIGRATION_LIMIT,
            idle_in_transaction: MIGRATION_LIMIT,
        };
        let (mut connection, _) = self.open(settings).await?;
        let work = async {
            let row = connection
                .fetch_one(raw_sql(AssertSqlSafe(format!(
                    "SELECT pg_catalog.to_regclass('{MIGRATIONS_TABLE}') IS NOT NULL"
                ))))
                .await
                .map_err(|error| error::db_error(&error))?;
            let exists = row.try_get::<bool, _>(0).map_err(|error| driver_error(&error))?;
            let failed = |error| migration_error(error, error::db_error);
            if let Some(done) =
                plan_migrations(&mut connection, self.migrations, exists, dry_run).await.map_err(failed)?
            {
                return Ok(done);
            }
            // Held until the connection is closed.
            connection.lock().await.map_err(failed)?;
            apply_migrations(&mut connection, self.migrations).await.map_err(failed)
        };
        match tokio::time::timeout(MIGRATION_LIMIT, work).await {
            Ok(result) => result,
            Err(_) => Err(lost("migrating the hapax_* tables took too long, or another host holds the lock for it")),
        }
    }
}

/// Looks at a backend, and ends it, from a connection of its own.
struct PostgresKill {
    options: PgConnectOptions,
    pid: String,
    /// Process ids are used again: a backend that started at another time is another one.
    started: String,
    /// The connection ended in order; nothing is to be killed.
    closed: AtomicBool,
}

impl PostgresKill {
    /// The condition that finds it, in a session whose time zone is UTC.
    fn backend(&self) -> String {
        format!("pid = {} AND backend_start = '{}'::timestamptz", self.pid, self.started)
    }
}

#[async_trait]
impl KillSwitch for PostgresKill {
    async fn is_waiting(&self) -> bool {
        let look = async {
            let mut connection = self.options.connect().await?;
            connection.execute(raw_sql("SET TimeZone = 'UTC'")).await?;
            let sql = format!(
                "SELECT 1 FROM pg_catalog.pg_stat_activity WHERE {} AND wait_event_type = 'Lock'",
                self.backend()
            );
            let waits = connection.fetch_optional(raw_sql(AssertSqlSafe(sql))).await?.is_some();
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
            let this = self.backend();
            let terminate =
                format!("SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE {this}");
            let alive = format!("SELECT 1 FROM pg_catalog.pg_stat_activity WHERE {this}");
            connection.execute(raw_sql("SET TimeZone = 'UTC'")).await?;
            connection.execute(raw_sql(AssertSqlSafe(terminate))).await?;
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

/// Names of types by their number, asked for once.
#[derive(Default)]
struct Types(Mutex<HashMap<u32, TypeName>>);

impl Types {
    fn get(&self, oid: u32) -> Option<TypeName> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&oid).cloned()
    }

    fn insert(&self, oid: u32, name: TypeName) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(oid, name);
    }
}
