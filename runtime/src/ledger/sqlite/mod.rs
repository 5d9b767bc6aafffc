//! The ledger in a SQLite file, for one process: WAL, `synchronous = FULL`, one writer at a time.
//!
//! SQLite has storage classes where others have types: booleans are 0 and 1, and decimals, dates, UUIDs and JSON are
//! text. (A column declared `DECIMAL` or `NUMERIC` turns text that looks like a number into one, which is a float if it
//! is no integer: declare exact amounts as `TEXT`, or count the smallest unit.)

mod connection;
mod error;
mod together;
mod values;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use sqlx::migrate::Migrator;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor, Row, raw_sql};
use tokio::sync::{Mutex, OnceCell};
use tokio::task::JoinHandle;

use super::database::{
    Connection, Database, DbError, DbErrorKind, Dialect, Features, KillSwitch, Migration, SessionSettings,
};
use super::gate::{
    KILL_LIMIT, MIGRATION_LIMIT, MIGRATION_LOCK_LIMIT, MIGRATIONS_TABLE, apply_migrations, connecting, driver_error,
    lost, migration_error, millis, plan_migrations,
};
use connection::SqliteLedgerConnection;

/// Prepared statements kept for each connection.
const STATEMENTS: usize = 512;

/// How many instructions of SQLite's machine run between two looks at the clock: well under a millisecond.
const INSTRUCTIONS: i32 = 2_000;

/// The longest value and row, in bytes. A body of the outbox is one value, and 128 MiB is the longest message that
/// RabbitMQ was ever set to by default. SQLite's own limit is 1 GB, which `printf('%.*c', 1000000000, 'x')` would build in
/// this process.
const LONGEST_VALUE: i32 = 129 << 20;

/// How long a statement may go on after it was told to stop. SQLite asks between two of its instructions whether it may
/// run, and one call of a function is one instruction: `instr` takes hours over two long texts, and nothing else can
/// write to the file meanwhile.
const UNSTOPPABLE: Duration = Duration::from_secs(60);

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");

/// A SQLite database: a file, or one in memory that lives as long as this value.
pub struct Sqlite {
    options: SqliteConnectOptions,
    place: Place,
    settings: SessionSettings,
    /// What keeps a database in memory alive.
    keeper: OnceCell<Mutex<SqliteConnection>>,
    migrations: &'static Migrator,
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sqlite").field(&self.place).finish()
    }
}

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    File { path: PathBuf, read_only: bool },
    Memory,
}

impl Place {
    /// Reads `sqlite://PATH`, `sqlite::memory:` or a bare path. `?mode=ro` opens a file read-only.
    fn read(url: &str) -> Result<Self, DbError> {
        let rest = url.strip_prefix("sqlite://").or_else(|| url.strip_prefix("sqlite:")).unwrap_or(url);
        if rest == ":memory:" {
            return Ok(Self::Memory);
        }
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let read_only = match query {
            "" | "mode=rwc" => false,
            "mode=ro" => true,
            _ => {
                return Err(DbError::infrastructure(
                    "the database URL is not usable: behind sqlite://PATH only ?mode=ro and ?mode=rwc are known",
                ));
            }
        };
        let path = percent_decode_str(path).decode_utf8().map_err(|_| not_usable("the path is not UTF-8"))?;
        if path.is_empty() {
            return Err(not_usable("sqlite:// is followed by the path of a file"));
        }
        Ok(Self::File { path: PathBuf::from(path.into_owned()), read_only })
    }
}

fn not_usable(why: &str) -> DbError {
    DbError::infrastructure(format!("the database URL is not usable: {why}"))
}

impl Sqlite {
    /// A database by its URL (see [`super::database::open`]) or path. Nothing is opened yet.
    ///
    /// # Errors
    /// Infrastructure where the URL cannot be read.
    pub fn new(path_or_url: &str, settings: SessionSettings) -> Result<Self, DbError> {
        let place = Place::read(path_or_url)?;
        let options = SqliteConnectOptions::new()
            .foreign_keys(true)
            .synchronous(SqliteSynchronous::Full)
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging();
        let options = match &place {
            Place::File { path, read_only: true } => options.filename(path).read_only(true),
            Place::File { path, read_only: false } => {
                options.filename(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal)
            }
            // SQLite's own store in memory: several connections of one process share it by its name, and wait for
            // each other's locks, which connections with a shared cache do not.
            Place::Memory => {
                options.filename(format!("/hapax-{}", uuid::Uuid::new_v4())).create_if_missing(true).vfs("memdb")
            }
        };
        Ok(Self { options, place, settings, keeper: OnceCell::new(), migrations: &MIGRATIONS })
    }

    /// The same with other migrations than Hapax's own.
    pub fn with_migrations(mut self, migrations: &'static Migrator) -> Self {
        self.migrations = migrations;
        self
    }

    fn address(&self) -> String {
        match &self.place {
            Place::File { path, .. } => format!("SQLite file {}", path.display()),
            Place::Memory => "SQLite in memory".to_owned(),
        }
    }

    /// A connection with its session pinned.
    async fn open(&self, lock_timeout: Duration) -> Result<SqliteConnection, DbError> {
        if self.place == Place::Memory {
            self.keeper.get_or_try_init(async || self.open_once(lock_timeout).await.map(Mutex::new)).await?;
        }
        self.open_once(lock_timeout).await
    }

    async fn open_once(&self, lock_timeout: Duration) -> Result<SqliteConnection, DbError> {
        let options =
            self.options.clone().busy_timeout(Duration::from_millis(millis(lock_timeout).unsigned_abs().into()));
        let attempts = async {
            loop {
                // SQLite does not wait where two connections turn WAL on at once.
                match options.connect().await.map_err(|error| error::db_error(&error)) {
                    Err(error) if error.kind == DbErrorKind::Contention => {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    result => break result,
                }
            }
        };
        connecting(&self.address(), attempts).await
    }
}

#[async_trait]
impl Database for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    async fn features(&self) -> Result<Features, DbError> {
        Ok(Features { concurrent_writers: false, insert_returning: true, shared: false })
    }

    async fn describe(&self) -> Result<String, DbError> {
        let mut connection = self.open(self.settings.lock_timeout).await?;
        let row = connection.fetch_one(raw_sql("SELECT sqlite_version()")).await;
        let row = row.map_err(|error| error::db_error(&error))?;
        let version = row.try_get::<String, _>(0).map_err(|error| driver_error(&error))?;
        Ok(format!("SQLite {version}"))
    }

    fn settings(&self) -> SessionSettings {
        self.settings
    }

    async fn connect(&self) -> Result<Box<dyn Connection>, DbError> {
        let mut connection = self.open(self.settings.lock_timeout).await?;
        let watch = Arc::new(Watch::new());
        watch.attach(&mut connection).await?;
        limit_values(&mut connection).await?;
        Ok(Box::new(SqliteLedgerConnection::new(connection, self.settings, watch)))
    }

    async fn migrate(&self, dry_run: bool) -> Result<Vec<Migration>, DbError> {
        let mut connection = self.open(MIGRATION_LOCK_LIMIT).await?;
        let work = async {
            let found = format!("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{MIGRATIONS_TABLE}'");
            let found = connection.fetch_optional(raw_sql(AssertSqlSafe(found))).await;
            let exists = found.map_err(|error| error::db_error(&error))?.is_some();
            let failed = |error| migration_error(error, error::db_error);
            if let Some(done) =
                plan_migrations(&mut connection, self.migrations, exists, dry_run).await.map_err(failed)?
            {
                return Ok(done);
            }
            // Files are for one process: there is nobody to lock out.
            apply_migrations(&mut connection, self.migrations).await.map_err(failed)
        };
        match tokio::time::timeout(MIGRATION_LIMIT, work).await {
            Ok(result) => result,
            Err(_) => Err(lost("migrating the hapax_* tables took too long")),
        }
    }
}

/// Sets the longest value, for the guest's statements and the host's own.
async fn limit_values(connection: &mut SqliteConnection) -> Result<(), DbError> {
    let mut handle = connection.lock_handle().await.map_err(|error| driver_error(&error))?;
    let raw = handle.as_raw_handle().as_ptr();
    // SAFETY: the handle is locked, so the connection is open and no other thread uses it; the call keeps nothing.
    unsafe { libsqlite3_sys::sqlite3_limit(raw, libsqlite3_sys::SQLITE_LIMIT_LENGTH, LONGEST_VALUE) };
    Ok(())
}

/// What SQLite tells this program, and what it asks it, while a statement runs on a thread of its own.
struct Watch {
    born: Instant,
    /// When the running statement has to stop: microseconds since `born`.
    deadline: AtomicU64,
    killed: AtomicBool,
    /// A transaction ended in a commit since the last look.
    committed: AtomicBool,
    /// A transaction was rolled back since the last look.
    rolled_back: AtomicBool,
}

/// No deadline.
const NEVER: u64 = u64::MAX;

impl Watch {
    fn new() -> Self {
        Self {
            born: Instant::now(),
            deadline: AtomicU64::new(NEVER),
            killed: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            rolled_back: AtomicBool::new(false),
        }
    }

    /// Makes SQLite look at the clock as it runs, and say when a transaction ends. That is how a statement that ends
    /// one is noticed.
    async fn attach(self: &Arc<Self>, connection: &mut SqliteConnection) -> Result<(), DbError> {
        let mut handle = connection.lock_handle().await.map_err(|error| driver_error(&error))?;
        let watch = Arc::clone(self);
        handle.set_progress_handler(INSTRUCTIONS, move || watch.may_run());
        let watch = Arc::clone(self);
        handle.set_commit_hook(move || {
            watch.committed.store(true, Ordering::Release);
            true
        });
        let watch = Arc::clone(self);
        handle.set_rollback_hook(move || watch.rolled_back.store(true, Ordering::Release));
        Ok(())
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_micros()).unwrap_or(NEVER)
    }

    fn may_run(&self) -> bool {
        !self.killed.load(Ordering::Acquire) && !self.is_late()
    }

    fn is_late(&self) -> bool {
        self.now() >= self.deadline.load(Ordering::Acquire)
    }

    fn start(&self, limit: Duration) {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(NEVER);
        self.committed.store(false, Ordering::Release);
        self.rolled_back.store(false, Ordering::Release);
        self.deadline.store(self.now().saturating_add(limit), Ordering::Release);
    }

    fn stop(&self) {
        self.deadline.store(NEVER, Ordering::Release);
    }
}

/// A connection that can be taken away.
type Shared = Arc<Mutex<Option<SqliteConnection>>>;

/// Interrupts what a connection runs, and closes it.
struct SqliteKill {
    connection: Shared,
    watch: Arc<Watch>,
}

#[async_trait]
impl KillSwitch for SqliteKill {
    async fn kill(&self) {
        self.watch.killed.store(true, Ordering::Release);
        let Ok(mut session) = tokio::time::timeout(KILL_LIMIT, self.connection.lock()).await else {
            tracing::warn!("a connection of the SQLite database is still in use; it ends with its statement");
            return;
        };
        let Some(connection) = session.take() else { return };
        drop(session);
        // Closing rolls back. What it answers is of no use to anybody.
        let mut closing = tokio::spawn(async move { drop(connection.close().await) });
        if tokio::time::timeout(KILL_LIMIT, &mut closing).await.is_err() {
            tracing::warn!("closing a connection of the SQLite database takes too long; it ends with its statement");
            tokio::spawn(unless_it_ends(closing, UNSTOPPABLE, end_process));
        }
    }
}

/// Does something about a task that goes on for too long.
async fn unless_it_ends(task: JoinHandle<()>, limit: Duration, otherwise: impl FnOnce()) {
    if tokio::time::timeout(limit, task).await.is_err() {
        otherwise();
    }
}

/// Ends this process, as a crash: there is no other way to stop the statement, and until it ends no message can be handled.
/// The message comes back as a suspect, and is a dead letter, `crashed`, after `max_crashes`.
fn end_process() {
    tracing::error!(
        limit = ?UNSTOPPABLE,
        "a statement on the SQLite database cannot be stopped and holds the lock of the whole file: this process ends itself. \
         The message whose handler sent the statement is run again, alone, and becomes a dead letter, `crashed`, after \
         max_crashes. A function such as instr, replace or LIKE over very long texts does this"
    );
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_does_not_end_is_ended() {
        let ended = AtomicBool::new(false);
        let end = || ended.store(true, Ordering::Release);
        unless_it_ends(tokio::spawn(async {}), Duration::from_secs(60), end).await;
        assert!(!ended.load(Ordering::Acquire));
        let stuck = tokio::spawn(std::future::pending());
        unless_it_ends(stuck, Duration::from_millis(10), end).await;
        assert!(ended.load(Ordering::Acquire));
    }

    #[test]
    fn places() {
        let file = |path: &str, read_only| Ok(Place::File { path: PathBuf::from(path), read_only });
        assert_eq!(Place::read("sqlite::memory:"), Ok(Place::Memory));
        assert_eq!(Place::read("sqlite:///var/a%20b.db"), file("/var/a b.db", false));
        assert_eq!(Place::read("sqlite://a.db?mode=ro"), file("a.db", true));
        assert_eq!(Place::read("/tmp/a.db"), file("/tmp/a.db", false));
        assert!(Place::read("sqlite://").is_err());
        assert!(Place::read("sqlite://a.db?cache=shared").is_err());
    }
}
