//! The classic recipe, natively in Rust, as well as it can be written: a lock in Redis by SET NX, a look into the flow
//! table, the update and the flow row in one transaction, the lock given back by a compare-and-delete script, and then
//! the acknowledgement. Several workers share a channel; statements are prepared once a connection; connections are not
//! tested before use.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use lapin::message::Delivery;
use lapin::options::BasicAckOptions;
use redis::Script;
use redis::aio::MultiplexedConnection;
use sqlx::mysql::{MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::{Mutex, mpsc};

use super::consume;
use crate::workload::{UPDATE, UPDATE_POSTGRES, goods_of};

/// Deliveries ahead of each worker.
const PREFETCH: u16 = 32;

/// The recipe's lease.
const LOCK_MILLIS: u64 = 300_000;

const RELEASE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

enum Database {
    Postgres(PgPool),
    MySql(MySqlPool),
    Sqlite(SqlitePool),
}

/// Whether a message is locked before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// As the recipe has it.
    Redis,
    /// The flow table alone: the least that can be done with a duplicate.
    None,
}

/// Runs until it is killed.
pub(crate) async fn run(amqp: &str, redis: &str, database: &str, workers: u16, lock: Lock) -> Result<()> {
    let (_connection, _channel, mut consumer) = consume(amqp, PREFETCH.saturating_mul(workers)).await?;
    let database = Arc::new(open(database, u32::from(workers)).await?);
    let locks = match lock {
        Lock::Redis => {
            let client = redis::Client::open(redis)?;
            Some(client.get_multiplexed_async_connection().await.context("connecting to Redis")?)
        }
        Lock::None => None,
    };
    let (deliveries, received) = mpsc::channel::<Delivery>(1);
    let received = Arc::new(Mutex::new(received));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        tasks.spawn(work(received.clone(), locks.clone(), database.clone()));
    }
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => ended??,
            delivery = consumer.next() => match delivery {
                Some(delivery) => deliveries.send(delivery?).await.context("every worker has ended")?,
                None => bail!("the broker ended the subscription"),
            },
        }
    }
}

async fn work(
    received: Arc<Mutex<mpsc::Receiver<Delivery>>>,
    mut locks: Option<MultiplexedConnection>,
    database: Arc<Database>,
) -> Result<()> {
    let release = Script::new(RELEASE);
    loop {
        let next = received.lock().await.recv().await;
        let Some(delivery) = next else { return Ok(()) };
        let id = delivery.properties.message_id().as_ref().context("a message without an id")?.to_string();
        let goods = goods_of(&delivery.data).context("a body that is no order")?;
        match &mut locks {
            Some(locks) => handle_locked(locks, &release, &database, &id, goods).await?,
            None => database.handle(&id, goods).await?,
        }
        delivery.acker.ack(BasicAckOptions::default()).await?;
    }
}

async fn handle_locked(
    locks: &mut MultiplexedConnection,
    release: &Script,
    database: &Database,
    id: &str,
    goods: i64,
) -> Result<()> {
    let locked: Option<String> = redis::cmd("SET")
        .arg(id)
        .arg(id)
        .arg("NX")
        .arg("PX")
        .arg(LOCK_MILLIS)
        .query_async(locks)
        .await
        .context("locking")?;
    if locked.is_some() {
        database.handle(id, goods).await?;
        let _: i64 = release.key(id).arg(id).invoke_async(locks).await.context("unlocking")?;
    }
    Ok(())
}

async fn open(url: &str, connections: u32) -> Result<Database> {
    let scheme = url.split(':').next().unwrap_or_default();
    Ok(match scheme {
        "postgres" => {
            let options = PgPoolOptions::new().max_connections(connections).min_connections(connections);
            Database::Postgres(options.test_before_acquire(false).connect(url).await?)
        }
        "mysql" => {
            let options = MySqlPoolOptions::new().max_connections(connections).min_connections(connections);
            Database::MySql(options.test_before_acquire(false).connect(url).await?)
        }
        _ => {
            let options = url
                .parse::<SqliteConnectOptions>()?
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_secs(60));
            let pool = SqlitePoolOptions::new().max_connections(1).test_before_acquire(false);
            Database::Sqlite(pool.connect_with(options).await?)
        }
    })
}

/// The same three statements, on each database in its own words.
macro_rules! handle {
    ($pool:expr, $id:expr, $known:expr, $update:expr, [$($bound:expr),*], $insert:expr) => {{
        if sqlx::query($known).bind($id).fetch_optional($pool).await.context("looking into the flow table")?.is_some() {
            return Ok(());
        }
        let mut transaction = $pool.begin().await?;
        let updated = sqlx::query($update)$(.bind($bound))*.execute(&mut *transaction).await.context("updating")?;
        if updated.rows_affected() != 1 {
            bail!("no stock for {}", $id);
        }
        sqlx::query($insert).bind($id).execute(&mut *transaction).await.context("inserting the flow row")?;
        transaction.commit().await.context("committing")?;
    }};
}

impl Database {
    async fn handle(&self, id: &str, goods: i64) -> Result<()> {
        match self {
            Self::Postgres(pool) => handle!(
                pool,
                id,
                "SELECT 1 FROM message_flow WHERE message_id = $1",
                UPDATE_POSTGRES,
                [1_i64, goods],
                "INSERT INTO message_flow (message_id) VALUES ($1)"
            ),
            Self::MySql(pool) => handle!(
                pool,
                id,
                "SELECT 1 FROM message_flow WHERE message_id = ?",
                UPDATE,
                [1_i64, goods, 1_i64],
                "INSERT INTO message_flow (message_id) VALUES (?)"
            ),
            Self::Sqlite(pool) => handle!(
                pool,
                id,
                "SELECT 1 FROM message_flow WHERE message_id = ?",
                UPDATE,
                [1_i64, goods, 1_i64],
                "INSERT INTO message_flow (message_id) VALUES (?)"
            ),
        }
        Ok(())
    }
}
