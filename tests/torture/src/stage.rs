//! The servers of a run, started for it, and the configs of its hosts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use hapax::broker::{self, Broker};
use hapax_tests::servers::{Kind, MariaDb, Postgres, Rabbit, Redis, Server, SmallDisk};
use hapax_tests::vhost::{Message, QueueState, Vhost};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tempfile::TempDir;
use url::Url;

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

/// Deliveries in hand of a subscription, at most.
pub(crate) const PREFETCH: u64 = 256;

/// Which database a run is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DatabaseKind {
    Postgres,
    Mariadb,
    Sqlite,
}

/// Which broker a run is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BrokerKind {
    /// One RabbitMQ.
    Amqp,
    /// Three nodes of RabbitMQ.
    Cluster,
    Embedded,
}

impl DatabaseKind {
    /// Its name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Postgres => "Postgres",
            Self::Mariadb => "MariaDB",
            Self::Sqlite => "SQLite",
        }
    }
}

impl BrokerKind {
    /// Its name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Amqp => "RabbitMQ",
            Self::Cluster => "RabbitMQ (3 nodes)",
            Self::Embedded => "embedded broker",
        }
    }
}

/// What a run is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) database: DatabaseKind,
    pub(crate) broker: BrokerKind,
    /// Can the database's disk be filled?
    pub(crate) small_disk: bool,
}

impl Setting {
    /// True if the database is a file.
    pub(crate) fn is_file(self) -> bool {
        self.database == DatabaseKind::Sqlite
    }

    /// True if broker and locks are in the host's own process.
    pub(crate) fn is_embedded(self) -> bool {
        self.broker == BrokerKind::Embedded
    }

    /// True if the broker has several nodes.
    pub(crate) fn is_cluster(self) -> bool {
        self.broker == BrokerKind::Cluster
    }
}

/// How hosts are configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Leases, rescues and retries come soon, so that a short run sees many of them. Batches have this time, in
    /// milliseconds.
    Torture { batch_ms: u32 },
    /// As everybody has it who has written down nothing.
    Default,
}

/// Nodes of a cluster: the fewest that can lose one.
const NODES: usize = 3;

/// The database server, or none for a file.
pub(crate) enum DatabaseServer {
    Postgres(Postgres),
    MariaDb(MariaDb),
    None,
}

impl DatabaseServer {
    /// Kills it, and starts it again. False for a file.
    ///
    /// # Errors
    /// When it does not come back.
    pub(crate) async fn crash(&mut self) -> Result<bool> {
        match self {
            Self::Postgres(server) => server.crash().await?,
            Self::MariaDb(server) => server.crash().await?,
            Self::None => return Ok(false),
        }
        Ok(true)
    }

    fn copy_log(&self, folder: &Path) -> Result<()> {
        match self {
            Self::Postgres(server) => server.copy_log(folder, "postgres.log"),
            Self::MariaDb(server) => server.copy_log(folder, "mariadb.log"),
            Self::None => Ok(()),
        }
    }

    /// As the server says it itself; none for a file.
    fn version(&self) -> Option<&str> {
        match self {
            Self::Postgres(server) => Some(server.version()),
            Self::MariaDb(server) => Some(server.version()),
            Self::None => None,
        }
    }
}

/// Everything that hosts depend on.
pub(crate) struct Stage {
    pub(crate) setting: Setting,
    profile: Profile,
    pub(crate) folder: TempDir,
    /// RabbitMQ's nodes, if there are any.
    pub(crate) rabbits: Vec<Rabbit>,
    pub(crate) redis: Option<Redis>,
    pub(crate) database: DatabaseServer,
    pub(crate) vhost: Option<Arc<Vhost>>,
    /// Where the broker is: each of its nodes.
    pub(crate) broker_urls: Vec<String>,
    /// The embedded broker's file.
    broker_file: Option<Reader>,
    /// To the broker, or to whichever of its nodes lives.
    balanced: Option<Wire>,
    pub(crate) lock_url: String,
    pub(crate) database_url: String,
    pub(crate) reader: Reader,
    pub(crate) module: PathBuf,
    /// What a database file is on, if that is small.
    file_disk: Option<SmallDisk>,
}

/// What lies between one host and its servers; none to a file.
#[derive(Default)]
pub(crate) struct Wires {
    pub(crate) broker: Option<Wire>,
    pub(crate) lock: Option<Wire>,
    pub(crate) database: Option<Wire>,
}

impl Wires {
    /// Those that there are.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Wire> {
        [&self.broker, &self.lock, &self.database].into_iter().flatten()
    }
}

impl Stage {
    /// Starts the servers, and prepares them.
    ///
    /// # Errors
    /// When one does not start or refuses something.
    pub(crate) async fn start(setting: Setting, profile: Profile) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hapax-torture-").tempdir()?;
        let rabbits = match setting.broker {
            BrokerKind::Embedded => Vec::new(),
            BrokerKind::Amqp => vec![Rabbit::start().await?],
            BrokerKind::Cluster => Rabbit::start_cluster(NODES).await?,
        };
        let vhost = match rabbits.first() {
            Some(rabbit) => Some(Arc::new(rabbit.vhost("torture").await?)),
            None => None,
        };
        let broker_urls = match &vhost {
            Some(vhost) => rabbits.iter().map(|node| same_path(node.url(), vhost.url())).collect::<Result<_>>()?,
            None => vec![format!("embedded:{}", folder.path().join("broker.db").display())],
        };
        let broker_file = match &vhost {
            Some(_) => None,
            None => Some(Reader::open(&broker_urls[0].replace("embedded:", "sqlite://")).await?),
        };
        let balanced = if setting.is_cluster() { Some(Wire::to(&broker_urls).await?) } else { None };
        let redis = if setting.is_embedded() { None } else { Some(Redis::start().await?) };
        let lock_url = match &redis {
            Some(redis) => redis.fresh_database().await?.url().to_owned(),
            None => "local:".to_owned(),
        };
        let mut file_disk = None;
        let (database, database_url) = match setting.database {
            DatabaseKind::Sqlite => {
                file_disk = if setting.small_disk { Some(SmallDisk::make()?) } else { None };
                let file = file_disk.as_ref().map_or(folder.path(), SmallDisk::path).join("shop.db");
                (DatabaseServer::None, format!("sqlite://{}", file.display()))
            }
            DatabaseKind::Postgres => {
                let server: Postgres = start_database(setting.small_disk).await?;
                let url = server.create_database("torture").await?;
                (DatabaseServer::Postgres(server), url)
            }
            DatabaseKind::Mariadb => {
                let server: MariaDb = start_database(setting.small_disk).await?;
                let url = server.create_database("torture").await?;
                (DatabaseServer::MariaDb(server), url)
            }
        };
        let reader = Reader::open(&database_url).await?;
        prepare_tables(&reader).await?;
        if let Some(vhost) = &vhost {
            prepare_queues(vhost, setting.is_cluster()).await?;
        }
        let module = folder.path().join("module.wasm");
        std::fs::copy(hapax_tests::proc::guest("chaos")?, &module).context("copying the handler")?;
        Ok(Self {
            setting,
            profile,
            folder,
            rabbits,
            redis,
            database,
            vhost,
            broker_urls,
            broker_file,
            balanced,
            lock_url,
            database_url,
            reader,
            module,
            file_disk,
        })
    }

    /// The disk that the database is on, if that is a small one.
    pub(crate) fn small_disk(&self) -> Option<&SmallDisk> {
        match &self.database {
            DatabaseServer::Postgres(server) => server.disk(),
            DatabaseServer::MariaDb(server) => server.disk(),
            DatabaseServer::None => self.file_disk.as_ref(),
        }
    }

    /// Names and versions of the servers.
    pub(crate) fn describe(&self) -> String {
        let name = self.setting.database.title();
        let database = match self.database.version() {
            Some(version) => format!("{name} {version}"),
            None => name.to_owned(),
        };
        let nodes = if self.setting.is_cluster() { format!(" ({NODES} nodes)") } else { String::new() };
        let rabbit = self.rabbits.first().map(|server| format!("RabbitMQ {}{nodes}", server.version()));
        let redis = self.redis.as_ref().map(|server| format!("Redis {}", server.version()));
        [Some(database), Some(rabbit.unwrap_or("the embedded broker".to_owned())), redis]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Copies what all servers have logged to a folder.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(crate) fn copy_logs(&self, folder: &Path) -> Result<()> {
        for (number, server) in self.rabbits.iter().enumerate() {
            server.copy_log(folder, &format!("rabbitmq-{number}.log"))?;
        }
        self.redis.as_ref().map_or(Ok(()), |server| server.copy_log(folder, "redis.log"))?;
        self.database.copy_log(folder)
    }

    /// What a producer publishes with.
    ///
    /// # Errors
    /// When the broker does not let it in.
    pub(crate) async fn broker(&self) -> Result<Arc<dyn Broker>> {
        let url = match &self.balanced {
            Some(wire) => wire.through(&self.broker_urls[0])?,
            None => self.broker_urls[0].clone(),
        };
        Ok(broker::open(&url, &broker::Settings::default()).await?)
    }

    /// What a queue holds: a moment ago on RabbitMQ, now in the embedded broker's file, where only a message that was
    /// never delivered is ready.
    ///
    /// # Errors
    /// When the broker does not answer, or has no such queue.
    pub(crate) async fn queue(&self, queue: &str) -> Result<QueueState> {
        if let Some(vhost) = &self.vhost {
            return vhost.queue(queue).await;
        }
        let file = self.broker_file.as_ref().context("there is no broker")?;
        let of_queue = format!("FROM messages m JOIN queues q ON q.id = m.queue WHERE q.name = '{queue}'");
        let count = async |which: &str| -> Result<u64> {
            Ok(file.number("COUNT(*)", &format!("{of_queue} AND m.id {which} q.delivered")).await?.try_into()?)
        };
        let (ready, unacknowledged) = (count(">").await?, count("<=").await?);
        Ok(QueueState { messages: ready + unacknowledged, ready, unacknowledged, consumers: 0 })
    }

    /// Asks the lock server.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub(crate) async fn ask_locks<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let client = redis::Client::open(self.lock_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await.context("connecting to Redis")?;
        let (name, args) = words.split_first().context("nothing to ask")?;
        redis::cmd(name).arg(args).query_async(&mut connection).await.with_context(|| format!("asking Redis {words:?}"))
    }

    /// Wires for the host of that number, all fair. Hosts prefer different nodes of a cluster.
    ///
    /// # Errors
    /// When there is no port for one.
    pub(crate) async fn wires(&self, host: usize) -> Result<Wires> {
        let remote = async |urls: &[String], is_server: bool| match is_server {
            true => Wire::to(urls).await.map(Some),
            false => Ok(None),
        };
        let mut brokers = self.broker_urls.clone();
        let count = brokers.len();
        brokers.rotate_left(host % count);
        Ok(Wires {
            broker: remote(&brokers, !self.setting.is_embedded()).await?,
            lock: remote(std::slice::from_ref(&self.lock_url), self.redis.is_some()).await?,
            database: remote(std::slice::from_ref(&self.database_url), !self.setting.is_file()).await?,
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
            &through(&wires.broker, &self.broker_urls[0])?,
            &through(&wires.lock, &self.lock_url)?,
            &through(&wires.database, &self.database_url)?,
            &self.module,
            self.setting.is_embedded(),
            self.profile,
        )?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

async fn start_database<K: Kind>(small_disk: bool) -> Result<Server<K>> {
    if small_disk { Server::start_on_small_disk().await } else { Server::start().await }
}

/// The URL of another node to the same virtual host.
fn same_path(node: &str, vhost: &str) -> Result<String> {
    let (mut node, vhost) = (Url::parse(node)?, Url::parse(vhost)?);
    node.set_path(vhost.path());
    Ok(node.into())
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
    prepare_sickness(reader).await?;
    for goods in 0..GOODS {
        reader.execute(&format!("INSERT INTO switch (goods_id, turned) VALUES ({goods}, 0)")).await?;
        reader.execute(&format!("INSERT INTO stock (goods_id, quantity) VALUES ({goods}, {STOCK})")).await?;
    }
    Ok(())
}

/// A trigger that fails some statements as if transactions could not be put in an order, while a switch is on. What it
/// has done a sequence counts, which no rollback undoes.
async fn prepare_sickness(reader: &Reader) -> Result<()> {
    let (before, trigger) = match reader {
        Reader::Postgres(_) => (
            "CREATE FUNCTION sicken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF (SELECT sick FROM health) = 1 AND random() < 0.05 AND nextval('sickened') > 0 THEN \
             RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER sicken BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION sicken()",
        ),
        Reader::MariaDb(_) => (
            "DO 0",
            "CREATE TRIGGER sicken BEFORE INSERT ON effects FOR EACH ROW \
             IF (SELECT sick FROM health) = 1 AND RAND() < 0.05 AND NEXTVAL(sickened) > 0 THEN \
             SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213, MESSAGE_TEXT = 'Deadlock found'; END IF",
        ),
        Reader::Sqlite(_) => return Ok(()),
    };
    reader.execute("CREATE TABLE health (sick BIGINT NOT NULL)").await?;
    reader.execute("INSERT INTO health (sick) VALUES (0)").await?;
    reader.execute("CREATE SEQUENCE sickened").await?;
    reader.execute(before).await?;
    reader.execute(trigger).await
}

async fn prepare_queues(vhost: &Vhost, is_cluster: bool) -> Result<()> {
    vhost.declare_exchange(EXCHANGE, "topic").await?;
    vhost.declare_exchange(BOTH, "topic").await?;
    for queue in ORDERED {
        vhost.declare_exchange(&own_exchange(queue), "topic").await?;
    }
    for queue in [ORDERED[0], ORDERED[1], TOLD, DEAD_QUEUE] {
        declare(vhost, queue, is_cluster).await?;
    }
    bind(vhost).await
}

/// Declares a queue and binds it: again, after it was deleted.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn declare(vhost: &Vhost, queue: &str, is_cluster: bool) -> Result<()> {
    let quorum = json!({ "x-queue-type": "quorum" });
    // A classic queue is lost for as long as its node is.
    vhost.declare_queue(queue, if is_cluster || queue == ORDERED[1] { quorum } else { json!({}) }).await?;
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

fn config(broker: &str, lock: &str, database: &str, module: &Path, embedded: bool, profile: Profile) -> Result<String> {
    let module = module.display().to_string();
    let cache = hapax_tests::proc::target_dir()?.join("module-cache").display().to_string();
    let mut text = format!(
        r#"drain = "200ms"
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
"#
    );
    if let Profile::Torture { batch_ms } = profile {
        write!(
            text,
            r#"[defaults]
rescue_after = "{LEASE_SECONDS}s"
max_crashes = 1000
retry = {{ max_attempts = {MAX_ATTEMPTS}, initial_interval = "200ms", multiplier = 2.0, max_interval = "1s", jitter = 0.2 }}
limits = {{ time = "6s" }}
batch = {{ max_time = "{batch_ms}ms" }}
lock = {{ ttl = "{LEASE_SECONDS}s" }}
prefetch = {{ messages = {PREFETCH} }}
"#
        )?;
    }
    let declare = if embedded { "create" } else { "passive" };
    for (consumer, key, more) in [
        (ORDERED[0], ORDERS, "partition_by = \"json:/goods\"\nconcurrency = 2\n"),
        (ORDERED[1], ORDERS, ""),
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
