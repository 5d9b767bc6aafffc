//! The servers of a run, started for it, and the configs of its hosts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use hapax::broker::{self, Broker};
use hapax_tests::servers::{MariaDb, Postgres, Rabbit, Redis};
use hapax_tests::vhost::{Message, Vhost};
use serde_json::json;
use tempfile::TempDir;

use crate::books::Reader;
use crate::order::{GOODS, MAX_ATTEMPTS, Order, STOCK};
use crate::wire::Wire;

/// Where orders and what handlers tell are published to.
pub(crate) const EXCHANGE: &str = "shop";
/// The routing key of orders, and of all that begin with it.
pub(crate) const ORDER: &str = "order";
const ORDERS: &str = "order.#";
/// The exchange that hands orders to both consumers.
const BOTH: &str = "both";
/// The consumer of what handlers tell: its queue and its routing key.
pub(crate) const TOLD: &str = "told";
/// The consumers of orders, and their queues. One has lanes by partition and a classic queue, the other one lane and a
/// quorum queue.
pub(crate) const ORDERED: [&str; 2] = ["left", "right"];
/// The queue of dead letters' copies, and the consumer that they come from.
pub(crate) const DEAD_QUEUE: &str = "dead";
pub(crate) const DEAD_OF: &str = ORDERED[0];

/// What ids begin with that nobody has ordered: rows for retention to find.
pub(crate) const OLD: &str = "old-";

/// The lease of locks, and how long a host may be silent before its rows are rescued.
pub(crate) const LEASE_SECONDS: u64 = 2;

/// Which database a run is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DatabaseKind {
    Postgres,
    Mariadb,
    Sqlite,
}

/// Which broker a run is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BrokerKind {
    Amqp,
    Embedded,
}

/// The database server, or none for a file.
pub(crate) enum DatabaseServer {
    Postgres(Postgres),
    MariaDb(MariaDb),
    None,
}

/// Everything that hosts depend on.
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) rabbit: Option<Rabbit>,
    pub(crate) redis: Option<Redis>,
    pub(crate) database: DatabaseServer,
    pub(crate) vhost: Option<Vhost>,
    pub(crate) broker_url: String,
    pub(crate) lock_url: String,
    pub(crate) database_url: String,
    pub(crate) reader: Reader,
    pub(crate) module: PathBuf,
}

/// What lies between one host and its servers; none to a file.
#[derive(Default)]
pub(crate) struct Wires {
    pub(crate) broker: Option<Wire>,
    pub(crate) lock: Option<Wire>,
    pub(crate) database: Option<Wire>,
}

impl Stage {
    /// Starts the servers, and prepares them.
    ///
    /// # Errors
    /// When one does not start or refuses something.
    pub(crate) async fn start(database: DatabaseKind, broker: BrokerKind) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hapax-torture-").tempdir()?;
        let file = |name: &str| folder.path().join(name).display().to_string();
        let (rabbit, vhost, broker_url) = match broker {
            BrokerKind::Embedded => (None, None, format!("embedded:{}", file("broker.db"))),
            BrokerKind::Amqp => {
                let rabbit = Rabbit::start().await?;
                let vhost = rabbit.vhost("torture").await?;
                let url = vhost.url().to_owned();
                (Some(rabbit), Some(vhost), url)
            }
        };
        let (redis, lock_url) = match broker {
            BrokerKind::Embedded => (None, "local:".to_owned()),
            BrokerKind::Amqp => {
                let redis = Redis::start().await?;
                let url = redis.fresh_database().await?.url().to_owned();
                (Some(redis), url)
            }
        };
        let (database, database_url) = match database {
            DatabaseKind::Sqlite => (DatabaseServer::None, format!("sqlite://{}", file("shop.db"))),
            DatabaseKind::Postgres => {
                let server = Postgres::start().await?;
                let url = server.create_database("torture").await?;
                (DatabaseServer::Postgres(server), url)
            }
            DatabaseKind::Mariadb => {
                let server = MariaDb::start().await?;
                let url = server.create_database("torture").await?;
                (DatabaseServer::MariaDb(server), url)
            }
        };
        let reader = Reader::open(&database_url).await?;
        prepare_tables(&reader).await?;
        if let Some(vhost) = &vhost {
            prepare_queues(vhost).await?;
        }
        let module = folder.path().join("module.wasm");
        std::fs::copy(hapax_tests::proc::guest("chaos")?, &module).context("copying the handler")?;
        Ok(Self { folder, rabbit, redis, database, vhost, broker_url, lock_url, database_url, reader, module })
    }

    /// Names and versions of the servers.
    pub(crate) fn describe(&self) -> String {
        let database = match &self.database {
            DatabaseServer::Postgres(server) => format!("Postgres {}", server.version()),
            DatabaseServer::MariaDb(server) => format!("MariaDB {}", server.version()),
            DatabaseServer::None => "SQLite".to_owned(),
        };
        let rabbit = self.rabbit.as_ref().map(|server| format!("RabbitMQ {}", server.version()));
        let redis = self.redis.as_ref().map(|server| format!("Redis {}", server.version()));
        [Some(database), Some(rabbit.unwrap_or("the embedded broker".to_owned())), redis]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// What a producer publishes with.
    ///
    /// # Errors
    /// When the broker does not let it in.
    pub(crate) async fn broker(&self) -> Result<Arc<dyn Broker>> {
        Ok(broker::open(&self.broker_url, &broker::Settings::default()).await?)
    }

    /// Wires for one host, all fair.
    ///
    /// # Errors
    /// When there is no port for one.
    pub(crate) async fn wires(&self) -> Result<Wires> {
        let remote = async |url: &str, is_server: bool| match is_server {
            true => Wire::to(url).await.map(Some),
            false => Ok(None),
        };
        Ok(Wires {
            broker: remote(&self.broker_url, self.rabbit.is_some()).await?,
            lock: remote(&self.lock_url, self.redis.is_some()).await?,
            database: remote(&self.database_url, !matches!(self.database, DatabaseServer::None)).await?,
        })
    }

    /// Writes the config of a host, and returns where.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn configure(&self, host: &str, wires: &Wires) -> Result<PathBuf> {
        let through = |wire: &Option<Wire>, url: &str| match wire {
            Some(wire) => wire.through(url),
            None => Ok(url.to_owned()),
        };
        let path = self.folder.path().join(format!("{host}.toml"));
        let text = config(
            &through(&wires.broker, &self.broker_url)?,
            &through(&wires.lock, &self.lock_url)?,
            &through(&wires.database, &self.database_url)?,
            &self.module,
            self.rabbit.is_none(),
        )?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

async fn prepare_tables(reader: &Reader) -> Result<()> {
    reader
        .execute(
            "CREATE TABLE effects (consumer VARCHAR(64) NOT NULL, message_id VARCHAR(255) NOT NULL, \
             origin VARCHAR(255) NOT NULL, phase VARCHAR(20) NOT NULL, attempt BIGINT NOT NULL, reason VARCHAR(100), \
             goods_id BIGINT NOT NULL)",
        )
        .await?;
    reader.execute("CREATE TABLE stock (goods_id BIGINT PRIMARY KEY, quantity BIGINT NOT NULL)").await?;
    reader.execute("CREATE TABLE switch (goods_id BIGINT PRIMARY KEY, turned BIGINT NOT NULL)").await?;
    let deferred = if matches!(reader, Reader::MariaDb(_)) { "" } else { " DEFERRABLE INITIALLY DEFERRED" };
    reader
        .execute(&format!(
            "CREATE TABLE late (goods_id BIGINT NOT NULL, FOREIGN KEY (goods_id) REFERENCES stock (goods_id){deferred})"
        ))
        .await?;
    for goods in 0..GOODS {
        reader.execute(&format!("INSERT INTO switch (goods_id, turned) VALUES ({goods}, 0)")).await?;
        reader.execute(&format!("INSERT INTO stock (goods_id, quantity) VALUES ({goods}, {STOCK})")).await?;
    }
    Ok(())
}

async fn prepare_queues(vhost: &Vhost) -> Result<()> {
    vhost.declare_exchange(EXCHANGE, "topic").await?;
    vhost.declare_exchange(BOTH, "topic").await?;
    for queue in ORDERED {
        vhost.declare_exchange(&own_exchange(queue), "topic").await?;
    }
    for queue in [ORDERED[0], ORDERED[1], TOLD, DEAD_QUEUE] {
        declare(vhost, queue).await?;
    }
    bind(vhost).await
}

/// Declares a queue and binds it: again, after it was deleted.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn declare(vhost: &Vhost, queue: &str) -> Result<()> {
    let quorum = json!({ "x-queue-type": "quorum" });
    vhost.declare_queue(queue, if queue == ORDERED[1] { quorum } else { json!({}) }).await?;
    if ORDERED.contains(&queue) {
        vhost.bind_queue(BOTH, queue, "#").await?;
        vhost.bind_queue(&own_exchange(queue), queue, "#").await?;
    }
    Ok(())
}

/// An exchange for one queue alone.
fn own_exchange(queue: &str) -> String {
    format!("{EXCHANGE}.{queue}")
}

/// An order's message, once more for one consumer alone.
pub(crate) fn again(queue: &str, order: &Order) -> Message {
    let message = Message::to_queue(queue, Some(order.id()), order.body());
    Message { exchange: own_exchange(queue), routing_key: order.routing_key(), ..message }
}

/// Binds what is behind the exchange: again, after it was deleted. Each kind of message in one step, or some would go
/// to one queue and not to the other.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn bind(vhost: &Vhost) -> Result<()> {
    vhost.bind_exchange(EXCHANGE, BOTH, ORDERS).await?;
    vhost.bind_queue(EXCHANGE, TOLD, TOLD).await
}

fn config(broker: &str, lock: &str, database: &str, module: &Path, embedded: bool) -> Result<String> {
    let module = module.display().to_string();
    let cache = hapax_tests::proc::target_dir()?.join("module-cache").display().to_string();
    let mut text = format!(
        r#"drain = "1s"
[log]
format = "text"
level = "info,hapax=debug"
[module_cache]
dir = {cache:?}
[broker]
url = {broker:?}
[lock]
url = {lock:?}
[database]
url = {database:?}
[defaults]
rescue_after = "{LEASE_SECONDS}s"
max_crashes = 1000
retry = {{ max_attempts = {MAX_ATTEMPTS}, initial_interval = "200ms", multiplier = 2.0, max_interval = "1s", jitter = 0.2 }}
limits = {{ time = "6s" }}
batch = {{ max_time = "200ms" }}
lock = {{ ttl = "{LEASE_SECONDS}s" }}
"#
    );
    let declare = if embedded { "create" } else { "passive" };
    for (consumer, key, more) in [
        (ORDERED[0], ORDERS, "partition_by = \"json:/goods\"\nconcurrency = 2\n"),
        (ORDERED[1], ORDERS, "batch = { max_messages = 256 }\n"),
        (TOLD, TOLD, ""),
    ] {
        // SQLite has one lane.
        let more = if database.starts_with("sqlite") {
            more.replace("concurrency = 2", "concurrency = 1")
        } else {
            more.to_owned()
        };
        let bindings = if embedded {
            format!("[{{ exchange = \"{EXCHANGE}\", routing_key = \"{key}\" }}]")
        } else {
            "[]".to_owned()
        };
        write!(
            text,
            r#"[consumers.{consumer}]
queue = "{consumer}"
module = {module:?}
declare = "{declare}"
bindings = {bindings}
{more}"#
        )?;
        if consumer == DEAD_OF && !embedded {
            writeln!(text, "dead_letter = {{ exchange = \"\", routing_key = \"{DEAD_QUEUE}\" }}")?;
        }
        write!(
            text,
            r#"[consumers.{consumer}.grants]
tables = {{ effects = ["insert"], stock = ["select", "insert", "update"], switch = ["select", "update"], late = ["insert"] }}
publish = [{{ exchange = "{EXCHANGE}", routing_key = "{TOLD}" }}]
config = {{ consumer = "{consumer}" }}
"#
        )?;
    }
    Ok(text)
}
