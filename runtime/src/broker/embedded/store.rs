//! The file, and every statement that is run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, QueryBuilder, Row as _, Sqlite};

use super::routing::{ExchangeKind, Routes};
use crate::broker::{Binding, BrokerError, Outgoing};
use crate::message::{HeaderValue, Message, Properties};

/// Marks a file as ours: "HpxB".
const APPLICATION_ID: i64 = 0x4870_7842;
const SCHEMA_VERSION: i64 = 1;

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// Rows of one INSERT.
const INSERT_ROWS: usize = 50;

/// Where the file is, and how to name it in errors.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) path: PathBuf,
}

impl Place {
    /// What the error means for the whole broker.
    pub(super) fn unavailable(&self, error: &sqlx::Error) -> BrokerError {
        self.broken(words(error))
    }

    pub(super) fn broken(&self, reason: impl Into<String>) -> BrokerError {
        BrokerError::Unavailable { server: format!("embedded:{}", self.path.display()), reason: reason.into() }
    }

    /// Opens one connection; creates the file where there is none.
    pub(super) async fn connect(&self) -> Result<SqliteConnection, BrokerError> {
        let options = SqliteConnectOptions::new()
            .filename(&self.path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        SqliteConnection::connect_with(&options).await.map_err(|error| self.unavailable(&error))
    }

    /// Opens one connection, and creates the tables in a new file.
    pub(super) async fn set_up(&self) -> Result<SqliteConnection, BrokerError> {
        let mut connection = self.connect().await?;
        let ours = async {
            let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
            let pragma = |name: &'static str| sqlx::query_scalar::<_, i64>(name);
            let application = pragma("PRAGMA application_id").fetch_one(&mut *transaction).await?;
            let version = pragma("PRAGMA user_version").fetch_one(&mut *transaction).await?;
            let tables = pragma("SELECT count(*) FROM sqlite_schema").fetch_one(&mut *transaction).await?;
            if (application, version, tables) == (0, 0, 0) {
                sqlx::raw_sql(include_str!("schema.sql")).execute(&mut *transaction).await?;
                sqlx::raw_sql(MARK_AS_OURS).execute(&mut *transaction).await?;
                transaction.commit().await?;
                return Ok((APPLICATION_ID, SCHEMA_VERSION));
            }
            Ok::<_, sqlx::Error>((application, version))
        };
        match ours.await.map_err(|error| self.unavailable(&error))? {
            (APPLICATION_ID, SCHEMA_VERSION) => Ok(connection),
            (APPLICATION_ID, version) => {
                let reason =
                    format!("the file has format {version}, and this program knows {SCHEMA_VERSION}: use a newer one");
                Err(self.broken(reason))
            }
            _ => Err(self.broken("the file is a database of something else: the broker needs a file of its own")),
        }
    }
}

const MARK_AS_OURS: &str = "PRAGMA application_id = 0x48707842; PRAGMA user_version = 1;";

/// What SQLite said, without the library's preamble.
pub(super) fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// A queue as the file has it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Queue {
    pub(super) id: i64,
    pub(super) arguments: BTreeMap<String, HeaderValue>,
    pub(super) delivered: i64,
}

pub(super) async fn queue(connection: &mut SqliteConnection, name: &str) -> sqlx::Result<Option<Queue>> {
    let row = sqlx::query("SELECT id, arguments, delivered FROM queues WHERE name = ?");
    let row = row.bind(name).fetch_optional(connection).await?;
    row.map(|row| {
        let arguments: String = row.try_get(1)?;
        let arguments = serde_json::from_str(&arguments).map_err(|error| sqlx::Error::Decode(error.into()))?;
        Ok(Queue { id: row.try_get(0)?, arguments, delivered: row.try_get(2)? })
    })
    .transpose()
}

/// Creates the queue and its bindings, and the topic exchanges that they name, in one transaction. Returns the queue
/// that was there already, untouched, if its arguments are others.
pub(super) async fn create_queue(
    connection: &mut SqliteConnection,
    name: &str,
    arguments: &BTreeMap<String, HeaderValue>,
    bindings: &[Binding],
) -> sqlx::Result<Result<(), Queue>> {
    let text = serde_json::to_string(arguments).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let insert = "INSERT INTO queues (name, arguments) VALUES (?, ?) ON CONFLICT (name) DO NOTHING";
    sqlx::query(insert).bind(name).bind(text).execute(&mut *transaction).await?;
    let Some(present) = queue(&mut transaction, name).await? else { return Err(sqlx::Error::RowNotFound) };
    if present.arguments != *arguments {
        return Ok(Err(present));
    }
    for binding in bindings.iter().filter(|binding| !binding.exchange.is_empty()) {
        let insert = "INSERT INTO exchanges (name, kind) VALUES (?, 'topic') ON CONFLICT (name) DO NOTHING";
        sqlx::query(insert).bind(&binding.exchange).execute(&mut *transaction).await?;
        let insert = "INSERT INTO bindings (exchange, routing_key, queue) VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
        let insert = sqlx::query(insert).bind(&binding.exchange).bind(&binding.routing_key).bind(present.id);
        insert.execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(Ok(()))
}

/// Creates an exchange; returns the kind that it has, which is another one if it was there before.
pub(super) async fn create_exchange(
    connection: &mut SqliteConnection,
    name: &str,
    kind: ExchangeKind,
) -> sqlx::Result<Option<ExchangeKind>> {
    let insert = "INSERT INTO exchanges (name, kind) VALUES (?, ?) ON CONFLICT (name) DO NOTHING";
    sqlx::query(insert).bind(name).bind(kind.name()).execute(&mut *connection).await?;
    let present: String =
        sqlx::query_scalar("SELECT kind FROM exchanges WHERE name = ?").bind(name).fetch_one(connection).await?;
    Ok(ExchangeKind::from_name(&present))
}

/// Deletes a queue with its bindings and messages.
pub(super) async fn delete_queue(connection: &mut SqliteConnection, name: &str) -> sqlx::Result<bool> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let messages = "DELETE FROM messages WHERE queue = (SELECT id FROM queues WHERE name = ?)";
    sqlx::query(messages).bind(name).execute(&mut *transaction).await?;
    let queue = sqlx::query("DELETE FROM queues WHERE name = ?").bind(name).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(queue.rows_affected() > 0)
}

/// How many messages a queue holds, delivered ones included; none if there is no such queue.
pub(super) async fn depth(connection: &mut SqliteConnection, name: &str) -> sqlx::Result<Option<u64>> {
    let count = "SELECT (SELECT count(*) FROM messages WHERE queue = queues.id) FROM queues WHERE name = ?";
    let count: Option<i64> = sqlx::query_scalar(count).bind(name).fetch_optional(connection).await?;
    Ok(count.and_then(|count| u64::try_from(count).ok()))
}

/// Every exchange, queue and binding.
pub(super) async fn routes(connection: &mut SqliteConnection) -> sqlx::Result<Routes> {
    let mut routes = Routes::default();
    for row in sqlx::query("SELECT name, id FROM queues").fetch_all(&mut *connection).await? {
        routes.queues.insert(row.try_get(0)?, row.try_get(1)?);
    }
    for row in sqlx::query("SELECT name, kind FROM exchanges").fetch_all(&mut *connection).await? {
        let kind: String = row.try_get(1)?;
        let kind = ExchangeKind::from_name(&kind)
            .ok_or_else(|| sqlx::Error::Decode(format!("an exchange of kind {kind:?}").into()))?;
        routes.exchanges.insert(row.try_get(0)?, (kind, Vec::new()));
    }
    for row in sqlx::query("SELECT exchange, routing_key, queue FROM bindings").fetch_all(connection).await? {
        let exchange: String = row.try_get(0)?;
        if let Some((_, bindings)) = routes.exchanges.get_mut(&exchange) {
            bindings.push((row.try_get(1)?, row.try_get(2)?));
        }
    }
    Ok(routes)
}

/// Appends messages to queues, in this order.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    messages: &[(i64, &Outgoing, String)],
) -> sqlx::Result<()> {
    for rows in messages.chunks(INSERT_ROWS) {
        let mut insert: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO messages (queue, size, exchange, routing_key, properties, body) ");
        insert.push_values(rows, |mut row, (queue, message, properties)| {
            row.push_bind(*queue)
                .push_bind(i64::try_from(message.body.len()).unwrap_or(i64::MAX))
                .push_bind(&message.exchange)
                .push_bind(&message.routing_key)
                .push_bind(properties.as_str())
                .push_bind(&message.body[..]);
        });
        insert.build().execute(&mut *connection).await?;
    }
    Ok(())
}

/// The next ids of a queue after `after`, with the sizes of their bodies, in order.
pub(super) async fn upcoming(
    connection: &mut SqliteConnection,
    queue: i64,
    after: i64,
    limit: usize,
) -> sqlx::Result<Vec<(i64, u64)>> {
    let select = "SELECT id, size FROM messages WHERE queue = ? AND id > ? ORDER BY id LIMIT ?";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows: Vec<(i64, i64)> =
        sqlx::query_as(select).bind(queue).bind(after).bind(limit).fetch_all(connection).await?;
    Ok(rows.into_iter().map(|(id, size)| (id, u64::try_from(size).unwrap_or(0))).collect())
}

/// The messages of a queue with ids from `first` to `last`, in order.
pub(super) async fn messages(
    connection: &mut SqliteConnection,
    queue: i64,
    first: i64,
    last: i64,
) -> sqlx::Result<Vec<(i64, Message)>> {
    let select = "SELECT id, exchange, routing_key, properties, body FROM messages \
                  WHERE queue = ? AND id >= ? AND id <= ? ORDER BY id";
    let rows = sqlx::query(select).bind(queue).bind(first).bind(last).fetch_all(connection).await?;
    let message = |row: sqlx::sqlite::SqliteRow| {
        let properties: String = row.try_get(3)?;
        let properties: Properties =
            serde_json::from_str(&properties).map_err(|error| sqlx::Error::Decode(error.into()))?;
        let body: Vec<u8> = row.try_get(4)?;
        let message =
            Message { exchange: row.try_get(1)?, routing_key: row.try_get(2)?, properties, body: Bytes::from(body) };
        Ok((row.try_get(0)?, message))
    };
    rows.into_iter().map(message).collect()
}

/// True while the queue exists.
pub(super) async fn exists(connection: &mut SqliteConnection, queue: i64) -> sqlx::Result<bool> {
    let found: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM queues WHERE id = ?").bind(queue).fetch_optional(connection).await?;
    Ok(found.is_some())
}

/// Deletes runs of messages of a queue and notes how far it was delivered, in one transaction.
pub(super) async fn settle(
    connection: &mut SqliteConnection,
    queue: i64,
    runs: &[(i64, i64)],
    delivered: Option<i64>,
) -> sqlx::Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for (first, last) in runs {
        let delete = "DELETE FROM messages WHERE queue = ? AND id >= ? AND id <= ?";
        sqlx::query(delete).bind(queue).bind(first).bind(last).execute(&mut *transaction).await?;
    }
    if let Some(delivered) = delivered {
        let update = "UPDATE queues SET delivered = ? WHERE id = ?";
        sqlx::query(update).bind(delivered).bind(queue).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// The path of the file that says who consumes a queue. Its name holds the queue's as far as a file name can.
pub(super) fn consumer_lock_path(path: &Path, queue: &str) -> PathBuf {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(queue.as_bytes());
    let tail: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let plain = |character: &char| character.is_ascii_alphanumeric() || "-_".contains(*character);
    let name: String = queue.chars().filter(plain).take(40).collect();
    let mut lock = path.as_os_str().to_owned();
    lock.push(format!(".{name}-{tail}.lock"));
    PathBuf::from(lock)
}
