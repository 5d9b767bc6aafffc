//! What the database says, read apart from Hapax and read-only.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ColumnIndex, Connection as _, Decode, Executor as _, Row};

/// A connection for reading.
pub(crate) enum Books {
    Sqlite(SqliteConnection),
    MySql(MySqlConnection),
    Postgres(PgConnection),
}

/// What is not finished yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pending {
    /// Message ids that are completed or dead.
    pub(crate) settled: u64,
    /// Parked messages that wait for another attempt.
    pub(crate) parked: u64,
    /// Outbox messages that wait to be published.
    pub(crate) outbox: u64,
}

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeadLetter {
    /// Its message id, if it has one.
    pub(crate) id: Option<String>,
    /// Why it is dead.
    pub(crate) reason: String,
    /// The code of the handler's failure, if it was called.
    pub(crate) code: Option<String>,
    /// Digest of its body.
    pub(crate) body: Vec<u8>,
}

/// Everything that the database says in the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ledger {
    /// Message ids that are completed.
    pub(crate) completed: BTreeSet<String>,
    /// Message ids that are dead.
    pub(crate) dead: BTreeSet<String>,
    /// Message ids that are neither, which must not be.
    pub(crate) unsettled: BTreeSet<String>,
    /// Dead letters, those without a usable id and those of reused ids included.
    pub(crate) letters: Vec<DeadLetter>,
    /// Outbox messages that could not be published.
    pub(crate) undeliverable: u64,
    /// What is left of each of the goods.
    pub(crate) stock: BTreeMap<i64, i64>,
    /// Refused orders by message id, each with its reason.
    pub(crate) refused: BTreeMap<String, String>,
}

/// All rows of a statement, each read by the same expression whatever the database.
macro_rules! rows {
    ($books:expr, $sql:expr, |$row:ident| $read:expr) => {
        match $books {
            Books::Sqlite(connection) => rows!(connection, $sql, $row, $read),
            Books::MySql(connection) => rows!(connection, $sql, $row, $read),
            Books::Postgres(connection) => rows!(connection, $sql, $row, $read),
        }
    };
    ($connection:expr, $sql:expr, $row:ident, $read:expr) => {{
        let rows =
            sqlx::query($sql).fetch_all(&mut *$connection).await.with_context(|| format!("reading: {}", $sql))?;
        rows.iter().map(|$row| $read).collect::<sqlx::Result<Vec<_>>>().with_context(|| format!("reading: {}", $sql))
    }};
}

impl Books {
    /// Opens a database by its URL. A SQLite file must exist.
    ///
    /// # Errors
    /// When the database does not let us in.
    pub(crate) async fn open(url: &str) -> Result<Self> {
        Ok(match url.split_once("://") {
            Some(("sqlite", path)) => {
                let options = SqliteConnectOptions::new().filename(path).read_only(true);
                Self::Sqlite(SqliteConnection::connect_with(&options).await.context("opening the ledger's file")?)
            }
            Some(("mysql", _)) => {
                let mut connection = MySqlConnection::connect(url).await.context("connecting to the database")?;
                connection.execute("SET SESSION TRANSACTION READ ONLY").await?;
                Self::MySql(connection)
            }
            Some(("postgres", _)) => {
                let mut connection = PgConnection::connect(url).await.context("connecting to the database")?;
                connection.execute("SET default_transaction_read_only = on").await?;
                Self::Postgres(connection)
            }
            _ => bail!("a database that this demo does not know"),
        })
    }

    /// How far it is.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(crate) async fn pending(&mut self) -> Result<Pending> {
        Ok(Pending {
            settled: self.count("SELECT COUNT(*) FROM hapax_inbox WHERE status <> 2").await?,
            parked: self.count("SELECT COUNT(*) FROM hapax_parked WHERE state NOT IN (4, 5)").await?,
            outbox: self.count("SELECT COUNT(*) FROM hapax_outbox WHERE state = 1").await?,
        })
    }

    /// Reads everything.
    ///
    /// # Errors
    /// When the database does not answer, or not as it should.
    pub(crate) async fn read(&mut self) -> Result<Ledger> {
        let letters = "SELECT message_id, reason, code, body_digest FROM hapax_parked WHERE state = 4";
        let letters = rows!(self, letters, |row| {
            Ok(DeadLetter {
                id: text(row, 0)?,
                reason: text(row, 1)?.unwrap_or_default(),
                code: text(row, 2)?,
                body: bytes(row, 3)?.unwrap_or_default(),
            })
        })?;
        let stock = "SELECT goods_id, quantity FROM stock";
        let stock = rows!(self, stock, |row| Ok((row.try_get::<i64, _>(0)?, row.try_get::<i64, _>(1)?)))?;
        let refused = "SELECT message_id, reason FROM refused_order";
        let refused =
            rows!(self, refused, |row| Ok((text(row, 0)?.unwrap_or_default(), text(row, 1)?.unwrap_or_default())))?;
        Ok(Ledger {
            completed: self.ids("SELECT message_id FROM hapax_inbox WHERE status = 1").await?,
            dead: self.ids("SELECT message_id FROM hapax_inbox WHERE status = 3").await?,
            unsettled: self.ids("SELECT message_id FROM hapax_inbox WHERE status NOT IN (1, 3)").await?,
            letters,
            undeliverable: self.count("SELECT COUNT(*) FROM hapax_outbox").await?,
            stock: stock.into_iter().collect(),
            refused: refused.into_iter().collect(),
        })
    }

    async fn count(&mut self, sql: &'static str) -> Result<u64> {
        let counts = rows!(self, sql, |row| row.try_get::<i64, _>(0))?;
        counts.first().and_then(|count| u64::try_from(*count).ok()).with_context(|| format!("nothing came of: {sql}"))
    }

    async fn ids(&mut self, sql: &'static str) -> Result<BTreeSet<String>> {
        let ids = rows!(self, sql, |row| Ok(text(row, 0)?.unwrap_or_default()))?;
        Ok(ids.into_iter().collect())
    }
}

/// A text, however the database keeps it: message ids are bytes in one and text in another.
fn text<'r, R: Row>(row: &'r R, column: usize) -> sqlx::Result<Option<String>>
where
    usize: ColumnIndex<R>,
    Vec<u8>: Decode<'r, R::Database>,
{
    Ok(bytes(row, column)?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

fn bytes<'r, R: Row>(row: &'r R, column: usize) -> sqlx::Result<Option<Vec<u8>>>
where
    usize: ColumnIndex<R>,
    Vec<u8>: Decode<'r, R::Database>,
{
    row.try_get_unchecked::<Option<Vec<u8>>, _>(column)
}

/// Runs a script of statements, creating the SQLite file where there is none.
///
/// # Errors
/// When the database does not let us in or refuses a statement.
pub(crate) async fn set_up(url: &str, script: String) -> Result<()> {
    let script = sqlx::raw_sql(sqlx::AssertSqlSafe(script));
    match url.split_once("://") {
        Some(("sqlite", path)) => {
            let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
            let mut connection = SqliteConnection::connect_with(&options).await?;
            script.execute(&mut connection).await?;
            connection.close().await?;
        }
        Some(("mysql", _)) => {
            let mut connection = MySqlConnection::connect(url).await?;
            script.execute(&mut connection).await?;
            connection.close().await?;
        }
        Some(("postgres", _)) => {
            let mut connection = PgConnection::connect(url).await?;
            script.execute(&mut connection).await?;
            connection.close().await?;
        }
        _ => bail!("a database that this demo does not know"),
    }
    Ok(())
}
