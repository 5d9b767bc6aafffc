//! The servers of a run, started for it; and for each drain, a queue and a database of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hapax::ledger::database::{self, Connection as Session, SessionSettings};
use hapax::ledger::value::{RowLimits, Value};
use hapax_tests::servers::{MariaDb, Postgres, Rabbit, Redis, RedisDatabase};
use hapax_tests::vhost::Vhost;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, PublisherConfirm};
use serde::Serialize;
use tempfile::TempDir;

use crate::worker::QUEUE;
use crate::workload::{GOODS, Order, STOCK};
use hapax_tests::usage;

/// Which database a variant works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Database {
    Postgres,
    MariaDb,
    Sqlite,
    None,
}

/// Publications on their way to the broker at a time.
const WINDOW: usize = 1000;

/// Of these, so many are handed to the library at a time: it writes them to its socket together.
const BURST: usize = 100;

/// Where a handler publishes to, and the queue that its messages go to.
pub(crate) const TOLD_EXCHANGE: &str = "told";
pub(crate) const TOLD_QUEUE: &str = "told";

/// The servers.
pub(crate) struct Stage {
    pub(crate) rabbit: Rabbit,
    pub(crate) redis: Redis,
    postgres: Postgres,
    mariadb: MariaDb,
    folder: PathBuf,
}

/// One drain's queue, lock database and SQL database.
pub(crate) struct Place {
    pub(crate) vhost: Vhost,
    pub(crate) locks: RedisDatabase,
    /// The database's URL; empty without one.
    pub(crate) database: String,
    pub(crate) folder: TempDir,
}

impl Stage {
    /// Starts them, and makes sure that what they are told to keep is kept.
    ///
    /// # Errors
    /// When one does not start, or keeps its data in memory, or is set up to lose it.
    pub(crate) async fn start(folder: &Path) -> Result<Self> {
        usage::on_disk(folder)?;
        let (rabbit, redis, postgres, mariadb) =
            tokio::try_join!(Rabbit::start(), Redis::start(), Postgres::start(), MariaDb::start())?;
        for directory in [rabbit.directory(), postgres.directory(), mariadb.directory()].into_iter().flatten() {
            usage::on_disk(directory)?;
        }
        Ok(Self { rabbit, redis, postgres, mariadb, folder: folder.to_owned() })
    }

    /// Names and versions.
    pub(crate) fn versions(&self) -> Vec<String> {
        vec![
            format!("RabbitMQ {}", self.rabbit.version()),
            format!("Redis {}", self.redis.version()),
            format!("Postgres {}", self.postgres.version()),
            format!("MariaDB {}", self.mariadb.version()),
        ]
    }

    /// What the databases say of their durability.
    ///
    /// # Errors
    /// When one does not answer, or would lose what it has committed.
    pub(crate) async fn durability(&self) -> Result<Vec<String>> {
        let wanted = [
            (Database::Postgres, "SELECT current_setting('fsync')", "fsync", "on"),
            (Database::Postgres, "SELECT current_setting('synchronous_commit')", "synchronous_commit", "on"),
            (Database::Postgres, "SELECT current_setting('full_page_writes')", "full_page_writes", "on"),
            (
                Database::MariaDb,
                "SELECT CAST(@@innodb_flush_log_at_trx_commit AS CHAR)",
                "innodb_flush_log_at_trx_commit",
                "1",
            ),
        ];
        let mut found = Vec::new();
        for (database, query, name, right) in wanted {
            let url = match database {
                Database::Postgres => self.postgres.url().to_owned(),
                _ => format!("{}/information_schema", self.mariadb.url().trim_end_matches('/')),
            };
            let value = text(&mut *connect(&url).await?, query).await.with_context(|| format!("asking for {name}"))?;
            ensure!(value == right, "{name} is {value}: figures of a database that may lose commits are void");
            found.push(format!("{name} = {value}"));
        }
        found.push("SQLite: synchronous = FULL, in every variant".to_owned());
        Ok(found)
    }

    /// A queue and a database for one drain.
    ///
    /// # Errors
    /// When a server refuses.
    pub(crate) async fn place(&self, database: Database, quorum: bool) -> Result<Place> {
        let folder = tempfile::Builder::new().prefix("hapax-bench-").tempdir_in(&self.folder)?;
        let url = match database {
            Database::Postgres => self.postgres.fresh_database("bench").await?.url().to_owned(),
            Database::MariaDb => self.mariadb.fresh_database("bench").await?.url().to_owned(),
            Database::Sqlite => format!("sqlite://{}", folder.path().join("bench.db").display()),
            Database::None => String::new(),
        };
        self.place_at(database, url, folder, quorum).await
    }

    /// The same on another Postgres.
    ///
    /// # Errors
    /// When a server refuses.
    pub(crate) async fn place_on(&self, postgres: &Postgres) -> Result<Place> {
        let folder = tempfile::Builder::new().prefix("hapax-bench-").tempdir_in(&self.folder)?;
        let url = postgres.fresh_database("bench").await?.url().to_owned();
        self.place_at(Database::Postgres, url, folder, false).await
    }

    async fn place_at(&self, database: Database, url: String, folder: TempDir, quorum: bool) -> Result<Place> {
        let vhost = self.rabbit.vhost("bench").await?;
        let arguments = if quorum { serde_json::json!({ "x-queue-type": "quorum" }) } else { serde_json::json!({}) };
        vhost.declare_queue(QUEUE, arguments).await?;
        let place = Place { vhost, locks: self.redis.fresh_database().await?, database: url, folder };
        place.create_tables(database).await?;
        Ok(place)
    }

    /// The process of a database server; none for a file.
    pub(crate) fn database_pid(&self, database: Database) -> Result<Option<u32>> {
        match database {
            Database::Postgres => self.postgres.pid().map(Some),
            Database::MariaDb => self.mariadb.pid().map(Some),
            Database::Sqlite | Database::None => Ok(None),
        }
    }
}

impl Place {
    async fn create_tables(&self, database: Database) -> Result<()> {
        let (id, options) = match database {
            Database::None => return Ok(()),
            Database::Postgres => ("text", ""),
            Database::MariaDb => ("VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin", " ENGINE = InnoDB"),
            Database::Sqlite => ("TEXT", ""),
        };
        let rows: Vec<String> = (0..GOODS).map(|goods| format!("({goods}, {STOCK})")).collect();
        for statement in [
            format!("CREATE TABLE stock (goods_id BIGINT PRIMARY KEY, quantity BIGINT NOT NULL){options}"),
            format!("CREATE TABLE message_flow (message_id {id} PRIMARY KEY){options}"),
            format!("INSERT INTO stock (goods_id, quantity) VALUES {}", rows.join(", ")),
        ] {
            let mut session = connect(&self.database).await?;
            session.begin().await?;
            session.execute(&statement, &[]).await?;
            session.commit().await?;
        }
        Ok(())
    }

    /// Who counts effects.
    ///
    /// # Errors
    /// When the database does not let it in.
    pub(crate) async fn effects(&self) -> Result<Effects> {
        connect(&self.database).await.map(Effects)
    }

    /// Puts the messages into a queue, persistent and confirmed.
    ///
    /// # Errors
    /// When the broker does not confirm one.
    pub(crate) async fn fill(&self, queue: &str, orders: &[Order]) -> Result<()> {
        let connection = Connection::connect(self.vhost.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let published = stream::iter(orders).map(|order| publish(&channel, queue, order)).buffered(BURST);
        let taken = published.map(async |confirm| {
            ensure!(confirm?.await?.is_ack(), "the broker did not take a message");
            Ok(())
        });
        taken.buffered(WINDOW).try_collect::<()>().await?;
        connection.close(200, "filled".into()).await?;
        Ok(())
    }
}

/// Publishes one order, persistent.
///
/// # Errors
/// When the channel is closed.
pub(crate) async fn publish(channel: &Channel, queue: &str, order: &Order) -> Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_message_id(order.id.as_str().into()).with_delivery_mode(2);
    let options = BasicPublishOptions::default();
    Ok(channel.basic_publish("".into(), queue.into(), options, &order.body, properties).await?)
}

/// Looks at what has been committed.
pub(crate) struct Effects(Box<dyn Session>);

impl Effects {
    /// How many orders have reduced the stock.
    pub(crate) async fn count(&mut self) -> Result<u64> {
        let left = number(&mut *self.0, "SELECT CAST(SUM(quantity) AS CHAR(20)) FROM stock").await?;
        u64::try_from(i64::from(GOODS) * STOCK - left).context("there is more in stock than there was")
    }

    /// Rows of a table under a condition.
    pub(crate) async fn rows(&mut self, table_and_condition: &str) -> Result<u64> {
        self.number(&format!("SELECT CAST(COUNT(*) AS CHAR(20)) FROM {table_and_condition}")).await
    }

    /// The one number, as text, that a query returns.
    pub(crate) async fn number(&mut self, query: &str) -> Result<u64> {
        u64::try_from(number(&mut *self.0, query).await?).context("a negative count")
    }

    /// The two texts of each row that a query returns.
    pub(crate) async fn pairs(&mut self, query: &str) -> Result<Vec<(String, String)>> {
        let rows = self.0.query(query, &[], RowLimits::NONE).await?.rows;
        let pairs = rows.into_iter().map(|row| match <[Value; 2]>::try_from(row) {
            Ok([Value::Text(one), Value::Text(other)]) => Ok((one, other)),
            row => bail!("{query} returned {row:?}, not two texts"),
        });
        pairs.collect()
    }

    /// Deadlocks that Postgres has found in this database. What a session has seen is counted when it ends, so it waits
    /// for all others to end.
    pub(crate) async fn deadlocks(&mut self) -> Result<u64> {
        const OTHERS: &str = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND client_port IS NOT NULL";
        let began = Instant::now();
        while self.rows(OTHERS).await? > 0 {
            ensure!(began.elapsed() < SESSIONS_END, "sessions outlive the programs that opened them");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.number("SELECT CAST(deadlocks AS CHAR(20)) FROM pg_stat_database WHERE datname = current_database()").await
    }
}

/// How long the sessions of programs that have ended may stay.
const SESSIONS_END: Duration = Duration::from_secs(20);

async fn connect(url: &str) -> Result<Box<dyn Session>> {
    let limit = Duration::from_secs(60);
    let settings = SessionSettings { lock_timeout: limit, statement_timeout: limit, idle_in_transaction: limit };
    database::open(url, settings)?.connect().await.context("connecting to the database")
}

async fn number(session: &mut dyn Session, query: &str) -> Result<i64> {
    let found = text(session, query).await?;
    found.trim().parse().with_context(|| format!("{query}: {found}"))
}

/// The one text that a query returns.
async fn text(session: &mut dyn Session, query: &str) -> Result<String> {
    match session.query(query, &[], RowLimits::NONE).await?.rows.first().and_then(|row| row.first()) {
        Some(Value::Text(text)) => Ok(text.clone()),
        other => bail!("{query} returned {other:?}, not a text"),
    }
}
