//! The ledger: what SQL remembers of every message.
//!
//! [`database`] is the seam; everything else here is written once, for all dialects. A lane owns a connection and
//! passes it to the functions that take one (they run in the lane's transaction); the others run in a transaction of
//! their own, on a connection that the ledger keeps for that.

mod calendar;
pub mod database;
pub mod dead;
mod gate;
pub mod inbox;
pub mod mysql;
pub mod outbox;
pub mod parked;
pub mod postgres;
mod scan;
pub mod sqlite;
pub mod statements;
pub(crate) mod together;
pub mod upkeep;
pub mod value;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use database::{Connection, Database, DbError, Dialect, Features, SessionSettings};
use statements::{Args, Statement, Statements};
use value::{Executed, ResultSet, RowLimits, Value};

/// At most this many rows travel in one statement. MySQL takes 65,535 parameters, SQLite 32,766, and a parked row has 23.
pub const STATEMENT_ROWS: usize = 1000;

/// How long one statement of the ledger's own may run, and wait for a lock, at least. What limits handlers must not stop
/// the clock, the outbox or a rescue.
const OWN_STATEMENT_TIME: Duration = Duration::from_secs(5);
const OWN_LOCK_TIME: Duration = Duration::from_secs(2);

/// One database's `hapax_*` tables.
pub struct Ledger {
    database: Arc<dyn Database>,
    features: Features,
    statements: Statements,
    /// For work outside the lanes' transactions; one at a time.
    own: Mutex<Option<Box<dyn Connection>>>,
}

impl Ledger {
    /// Asks the server where its tables live. The tables themselves may still be missing: see [`Self::migrate`].
    pub async fn open(database: Arc<dyn Database>) -> Result<Self, DbError> {
        let features = database.features().await?;
        let mut connection = connect_own(database.as_ref()).await?;
        let schema = schema(database.dialect(), connection.as_mut()).await?;
        let statements = Statements::load(database.dialect(), &schema);
        Ok(Self { database, features, statements, own: Mutex::new(Some(connection)) })
    }

    /// Creates or upgrades the tables.
    pub async fn migrate(&self) -> Result<(), DbError> {
        self.database.migrate(false).await.map(drop)
    }

    /// What the database can do.
    pub fn features(&self) -> Features {
        self.features
    }

    /// The database behind it.
    pub fn database(&self) -> &Arc<dyn Database> {
        &self.database
    }

    /// Opens a connection for a lane.
    pub async fn connect(&self) -> Result<Box<dyn Connection>, DbError> {
        self.database.connect().await
    }

    /// Opens a connection for what is not a lane's.
    pub async fn connect_own(&self) -> Result<Box<dyn Connection>, DbError> {
        connect_own(self.database.as_ref()).await
    }

    /// Whether the database does what a lane needs of it, asked on a connection of its own: commits a write. One that
    /// is read-only after a failover, or whose disk is full, answers pings too.
    pub async fn probe(&self) -> Result<(), DbError> {
        let mut connection = self.database.connect().await?;
        let name = format!("probe:{}", uuid::Uuid::new_v4());
        let probed = async {
            connection.begin().await?;
            execute(connection.as_mut(), &self.statements.lease_seed, Args::new().one("name", name.clone())).await?;
            let end = Args::new().one("first", name.clone()).one("past", format!("{name};")).one("age", 0);
            execute(connection.as_mut(), &self.statements.lease_forget, end).await?;
            connection.commit().await
        };
        match probed.await {
            // Somebody else's write is in the way: it works.
            Err(error) if error.kind == database::DbErrorKind::Contention => Ok(()),
            probed => probed,
        }
    }

    /// Reads with one statement of the ledger's own, by itself: what is asked every second should cost no BEGIN and no
    /// COMMIT.
    async fn own_query(&self, statement: &Statement, args: Args) -> Result<ResultSet, DbError> {
        let mut slot = self.own.lock().await;
        if let Some(mut kept) = slot.take() {
            match query(kept.as_mut(), statement, args.clone()).await {
                // It sat idle, and the server or the network may have ended it.
                Err(error) if error.connection_lost => {}
                found => {
                    *slot = Some(kept);
                    return found;
                }
            }
        }
        let mut connection = self.connect_own().await?;
        let found = query(connection.as_mut(), statement, args).await;
        if !found.as_ref().is_err_and(|error| error.connection_lost) {
            *slot = Some(connection);
        }
        found
    }

    /// Begins a transaction of the ledger's own. One that is dropped takes its connection with it.
    async fn begin_own(&self) -> Result<OwnTransaction<'_>, DbError> {
        let mut slot = self.own.lock().await;
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => self.connect_own().await?,
        };
        if connection.begin().await.is_err() {
            // It sat idle, and the server or the network may have ended it.
            connection = self.connect_own().await?;
            connection.begin().await?;
        }
        Ok(OwnTransaction { slot, connection })
    }
}

/// Opens a connection that handlers' limits do not hold for.
async fn connect_own(database: &dyn Database) -> Result<Box<dyn Connection>, DbError> {
    let mut connection = database.connect().await?;
    let SessionSettings { lock_timeout, statement_timeout, .. } = database.settings();
    if lock_timeout < OWN_LOCK_TIME || statement_timeout < OWN_STATEMENT_TIME {
        let (lock, statement) = (lock_timeout.max(OWN_LOCK_TIME), statement_timeout.max(OWN_STATEMENT_TIME));
        connection.set_timeouts(lock, statement).await?;
    }
    Ok(connection)
}

/// A transaction of the ledger's own.
struct OwnTransaction<'l> {
    slot: MutexGuard<'l, Option<Box<dyn Connection>>>,
    connection: Box<dyn Connection>,
}

impl OwnTransaction<'_> {
    /// Commits what went well, rolls back what did not, and keeps the connection if it is still good.
    async fn end<T>(mut self, done: Result<T, DbError>) -> Result<T, DbError> {
        let ended = match &done {
            Ok(_) => self.connection.commit().await,
            Err(error) if error.connection_lost => return done,
            Err(_) => self.connection.rollback().await,
        };
        match (ended, done) {
            (Ok(()), done) => {
                *self.slot = Some(self.connection);
                done
            }
            (Err(error), Ok(_)) | (Err(_), Err(error)) => Err(error),
        }
    }
}

/// Runs a body in a transaction of the ledger's own; `?` in it rolls back. (A function that takes an async closure would
/// read better, but the compiler cannot see yet that a task made of one may move between threads.)
macro_rules! own_transaction {
    ($ledger:expr, |$connection:ident| $body:expr) => {{
        let mut own = $ledger.begin_own().await?;
        let done: Result<_, DbError> = async {
            let $connection: &mut dyn Connection = own.connection.as_mut();
            $body
        }
        .await;
        own.end(done).await
    }};
}
use own_transaction;

async fn schema(dialect: Dialect, connection: &mut dyn Connection) -> Result<String, DbError> {
    let (sql, quote) = match dialect {
        Dialect::Postgres => ("SELECT current_schema()::text", '"'),
        Dialect::MySql => ("SELECT DATABASE()", '`'),
        Dialect::Sqlite => return Ok("main".to_owned()),
    };
    connection.begin().await?;
    let found = connection.query(sql, &[], RowLimits::NONE).await?;
    connection.rollback().await?;
    match found.rows.first().and_then(|row| row.first()) {
        Some(Value::Text(name)) => Ok(format!("{quote}{}{quote}", name.replace(quote, &format!("{quote}{quote}")))),
        _ => Err(DbError::infrastructure(
            "the database URL names no database or schema to keep the hapax_* tables in: add /NAME to it",
        )),
    }
}

async fn execute(connection: &mut dyn Connection, statement: &Statement, args: Args) -> Result<Executed, DbError> {
    let (sql, params) = statement.bind(args);
    connection.execute(&sql, &params).await
}

async fn query(connection: &mut dyn Connection, statement: &Statement, args: Args) -> Result<ResultSet, DbError> {
    let (sql, params) = statement.bind(args);
    connection.query(&sql, &params, RowLimits::NONE).await
}

/// Reads the columns of one row of the host's own tables, in order.
struct Reader(std::vec::IntoIter<Value>);

impl Reader {
    fn new(row: Vec<Value>) -> Self {
        Self(row.into_iter())
    }

    fn next(&mut self) -> Result<Value, DbError> {
        self.0.next().ok_or_else(|| DbError::infrastructure("a hapax_* table has fewer columns than expected"))
    }

    fn int(&mut self) -> Result<i64, DbError> {
        self.maybe_int()?.ok_or_else(|| unexpected("an integer", &Value::Null))
    }

    fn number<T: TryFrom<i64>>(&mut self) -> Result<T, DbError> {
        let value = self.int()?;
        T::try_from(value).map_err(|_| unexpected("a smaller integer", &Value::Int(value)))
    }

    fn maybe_int(&mut self) -> Result<Option<i64>, DbError> {
        match self.next()? {
            Value::Int(value) => Ok(Some(value)),
            Value::Boolean(value) => Ok(Some(value.into())),
            Value::Null => Ok(None),
            // MariaDB sums and differences of BIGINT may come as DECIMAL.
            Value::Decimal(text) => text.parse().map(Some).map_err(|_| unexpected("an integer", &Value::Decimal(text))),
            other => Err(unexpected("an integer", &other)),
        }
    }

    fn blob(&mut self) -> Result<Vec<u8>, DbError> {
        self.maybe_blob()?.ok_or_else(|| unexpected("bytes", &Value::Null))
    }

    fn maybe_blob(&mut self) -> Result<Option<Vec<u8>>, DbError> {
        match self.next()? {
            Value::Blob(bytes) => Ok(Some(bytes)),
            Value::Null => Ok(None),
            other => Err(unexpected("bytes", &other)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DbError> {
        fixed(self.blob()?)
    }

    fn maybe_array<const N: usize>(&mut self) -> Result<Option<[u8; N]>, DbError> {
        self.maybe_blob()?.map(fixed).transpose()
    }

    fn text(&mut self) -> Result<String, DbError> {
        self.maybe_text()?.ok_or_else(|| unexpected("text", &Value::Null))
    }

    fn maybe_text(&mut self) -> Result<Option<String>, DbError> {
        match self.next()? {
            Value::Text(text) => Ok(Some(text)),
            Value::Null => Ok(None),
            other => Err(unexpected("text", &other)),
        }
    }
}

fn fixed<const N: usize>(bytes: Vec<u8>) -> Result<[u8; N], DbError> {
    bytes.try_into().map_err(|bytes: Vec<u8>| {
        DbError::infrastructure(format!("a hapax_* table holds {} bytes where {N} belong", bytes.len()))
    })
}

fn unexpected(wanted: &str, found: &Value) -> DbError {
    DbError::infrastructure(format!("a hapax_* table holds {found:?} where {wanted} belongs"))
}

/// That many rows were changed, or the guard's error.
fn all_moved(done: Executed, wanted: usize, what: &str) -> Result<(), DbError> {
    if done.rows_affected == wanted as u64 { Ok(()) } else { Err(moved_elsewhere(what)) }
}

/// A guard matched fewer rows than it should have: somebody else moved them. The transaction must be rolled back and
/// the decision made again.
fn moved_elsewhere(what: &str) -> DbError {
    DbError {
        kind: database::DbErrorKind::Contention,
        code: None,
        constraint: None,
        message: format!("{what} was changed by somebody else in the meantime"),
        connection_lost: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_that_somebody_else_writes_to_works() {
        let settings = database::SessionSettings {
            lock_timeout: Duration::from_millis(50),
            statement_timeout: Duration::from_secs(5),
            idle_in_transaction: Duration::from_secs(60),
        };
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("shop.db").display());
        let ledger = Ledger::open(database::open(&url, settings).unwrap()).await.unwrap();
        assert!(ledger.probe().await.is_err(), "there are no tables");
        ledger.migrate().await.unwrap();
        let mut other = ledger.connect().await.unwrap();
        other.begin().await.unwrap();
        let refused = ledger.connect().await.unwrap().begin().await.unwrap_err();
        assert_eq!(refused.kind, database::DbErrorKind::Contention);
        assert_eq!(ledger.probe().await, Ok(()));
    }
}
