//! Where it plays: embedded files, or servers that are started for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use hapax::broker::embedded::Embedded;
use hapax::broker::{self, Binding, Broker, Declare, Outgoing, Published, QueueSpec};
use hapax::message::{HeaderValue, Properties};
use hapax_tests::servers::{self, MariaDb, Postgres, Rabbit, Redis, RedisDatabase};
use hapax_tests::vhost::Vhost;

use crate::Database;
use crate::books::{self, Books};
use crate::scenario::{Publication, Scenario};

/// The queue of orders.
pub(crate) const ORDERS: &str = "reduce_stock_queue";
/// The queue of what the handler tells others; nobody but the demo reads it.
pub(crate) const REDUCED: &str = "stock_reduced_queue";
/// The exchange of both.
const EXCHANGE: &str = "shop";

/// Messages on their way to the broker at a time.
const WINDOW: usize = 200;
/// Queue depths of RabbitMQ's management API are this old at most: 200 ms on servers started here, 5 s on others.
const STALE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(7));
/// A queue that hands over nothing for this long is empty.
const QUIET: Duration = Duration::from_secs(2);

/// A broker, a lock and a database, and the folder with the config for them.
pub(crate) struct Stage {
    folder: PathBuf,
    title: String,
    broker: Arc<dyn Broker>,
    depths: Depths,
    /// What the config says: broker, lock, database.
    urls: [String; 3],
    /// The ledger, as seen from here.
    ledger: String,
    database: Database,
    // Dropped in this order: what lies on a server before the server.
    _given: Option<(RedisDatabase, Option<servers::Database>)>,
    servers: Option<Servers>,
}

/// Who knows how many messages a queue holds.
enum Depths {
    File(Arc<Embedded>),
    Server(Box<Vhost>),
}

struct Servers {
    rabbit: Rabbit,
    redis: Redis,
    mariadb: Option<MariaDb>,
    postgres: Option<Postgres>,
}

impl Stage {
    /// Broker and ledger are files in `folder`, the lock is in the host's memory.
    ///
    /// # Errors
    /// When the folder is not writable.
    pub(crate) async fn embedded(folder: &Path) -> Result<Self> {
        let broker = Arc::new(Embedded::open(folder.join("broker.db")).await?);
        Ok(Self {
            folder: folder.to_owned(),
            title: "Embedded: broker and ledger are SQLite files, the lock is in memory".to_owned(),
            broker: broker.clone(),
            depths: Depths::File(broker),
            urls: ["embedded:broker.db", "local:", "sqlite://shop.db"].map(str::to_owned),
            ledger: format!("sqlite://{}", folder.join("shop.db").display()),
            database: Database::Sqlite,
            _given: None,
            servers: None,
        })
    }

    /// RabbitMQ, Redis and a database server, started for this process; or those that the environment names.
    ///
    /// # Errors
    /// When one of them does not start.
    pub(crate) async fn servers(folder: &Path, database: Database) -> Result<Self> {
        let (rabbit, redis, mariadb, postgres) = tokio::try_join!(
            Rabbit::start(),
            Redis::start(),
            async { if database == Database::Mysql { MariaDb::start().await.map(Some) } else { Ok(None) } },
            async { if database == Database::Postgres { Postgres::start().await.map(Some) } else { Ok(None) } },
        )?;
        let vhost = rabbit.vhost("demo").await?;
        vhost.declare_exchange(EXCHANGE, "topic").await?;
        let locks = redis.fresh_database().await?;
        let (given, last) = match (&mariadb, &postgres) {
            (Some(server), _) => (Some(server.fresh_database("demo").await?), format!("MariaDB {}", server.version())),
            (_, Some(server)) => (Some(server.fresh_database("demo").await?), format!("Postgres {}", server.version())),
            (None, None) => (None, "a SQLite file".to_owned()),
        };
        let (configured, ledger) = match &given {
            Some(given) => (given.url().to_owned(), given.url().to_owned()),
            None => ("sqlite://shop.db".to_owned(), format!("sqlite://{}", folder.join("shop.db").display())),
        };
        Ok(Self {
            folder: folder.to_owned(),
            title: format!("RabbitMQ {}, Redis {}, {last}", rabbit.version(), redis.version()),
            broker: broker::open(vhost.url(), &broker::Settings::default()).await?,
            urls: [vhost.url().to_owned(), locks.url().to_owned(), configured],
            depths: Depths::Server(Box::new(vhost)),
            ledger,
            database,
            _given: Some((locks, given)),
            servers: Some(Servers { rabbit, redis, mariadb, postgres }),
        })
    }

    /// What it is, in a line.
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    /// Where the config and the logs are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Queues, tables, stock and config.
    ///
    /// # Errors
    /// When broker, database or folder refuse something.
    pub(crate) async fn set(&self, scenario: &Scenario, module: &Path) -> Result<()> {
        self.broker.declare(&self.queue(ORDERS, "order.created")).await?;
        self.broker.declare(&self.queue(REDUCED, "stock.#")).await?;
        let schema = match self.database {
            Database::Sqlite => include_str!("../../reduce-stock/schema/sqlite.sql"),
            Database::Mysql => include_str!("../../reduce-stock/schema/mysql.sql"),
            Database::Postgres => include_str!("../../reduce-stock/schema/postgres.sql"),
        };
        let rows: Vec<String> = scenario.stock.iter().map(|(goods, left)| format!("({goods}, {left})")).collect();
        let script = format!("{schema}\nINSERT INTO stock (goods_id, quantity) VALUES {};", rows.join(", "));
        books::set_up(&self.ledger, script).await?;
        let config = self.config(module, scenario.max_attempts());
        std::fs::write(self.folder.join("hapax.toml"), config).context("writing hapax.toml")
    }

    fn config(&self, module: &Path, max_attempts: u32) -> String {
        // Strings of JSON are strings of TOML too.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let [broker, lock, database] = self.urls.each_ref().map(|url| quoted(url));
        let module = quoted(&module.to_string_lossy());
        let lanes = match self.database {
            Database::Sqlite => "# SQLite has one lane.\nconcurrency = 1",
            Database::Mysql | Database::Postgres => "concurrency = 4\npartition_by = \"json:/goods_id\"",
        };
        let arguments = match self.servers {
            Some(_) => "arguments = { x-queue-type = \"quorum\" }\n",
            None => "",
        };
        format!(
            r#"# Written by hapax-demo.
[broker]
url = {broker}

[lock]
url = {lock}

[database]
url = {database}

[module_cache]
dir = "modules"

[consumers.reduce-stock]
queue = "{ORDERS}"
module = {module}
message_id = ["property"]
{lanes}
declare = "create"
{arguments}bindings = [{{ exchange = "{EXCHANGE}", routing_key = "order.created" }}]
# Half of the attempts fail: none of the orders may use up its attempts by mere bad luck.
retry = {{ max_attempts = {max_attempts}, initial_interval = "30ms", multiplier = 1.0, max_interval = "50ms", jitter = 0.3 }}

[consumers.reduce-stock.grants]
tables = {{ stock = ["select", "update"], refused_order = ["insert"] }}
publish = [{{ exchange = "{EXCHANGE}", routing_key = "stock.*" }}]
config = {{ exchange = "{EXCHANGE}", fail_after_update = "0.5" }}
"#
        )
    }

    fn queue(&self, queue: &str, routing_key: &str) -> QueueSpec {
        let quorum = ("x-queue-type".to_owned(), HeaderValue::Text("quorum".to_owned()));
        QueueSpec {
            queue: queue.to_owned(),
            consumer: "hapax-demo".to_owned(),
            declare: Declare::Create,
            arguments: self.servers.iter().map(|_| quorum.clone()).collect(),
            bindings: vec![Binding { exchange: EXCHANGE.to_owned(), routing_key: routing_key.to_owned() }],
            prefetch_messages: 1000,
            prefetch_bytes: 64 << 20,
            ordered: false,
        }
    }

    /// Publishes messages in their order, and returns when the broker has confirmed them all.
    ///
    /// # Errors
    /// When it has not confirmed one.
    pub(crate) async fn publish(&self, messages: &[Publication]) -> Result<()> {
        let publisher = self.broker.publisher();
        for window in messages.chunks(WINDOW) {
            let window: Vec<Outgoing> = window.iter().map(outgoing).collect();
            for answer in publisher.publish(&window).await {
                match answer {
                    Published::Confirmed => {}
                    Published::Returned(why) => bail!("the broker returned an order: {why}"),
                    Published::Refused(why) => bail!("the broker refused an order: {why}"),
                    Published::Unknown(why) => bail!("the broker did not confirm an order: {why}"),
                }
            }
        }
        Ok(())
    }

    /// How many messages a queue holds, those that are delivered and not settled included.
    ///
    /// # Errors
    /// When the broker does not say.
    pub(crate) async fn depth(&self, queue: &str) -> Result<u64> {
        match &self.depths {
            Depths::File(broker) => Ok(broker.queue_depth(queue).await?.unwrap_or(0)),
            Depths::Server(vhost) => Ok(vhost.queue(queue).await?.messages),
        }
    }

    /// How old a depth may be.
    pub(crate) fn stale(&self) -> Duration {
        match &self.servers {
            Some(servers) if servers.rabbit.is_private() => STALE.0,
            Some(_) => STALE.1,
            None => Duration::ZERO,
        }
    }

    /// Takes everything out of a queue.
    ///
    /// # Errors
    /// When the broker does not hand it over.
    pub(crate) async fn drain(&self, queue: &str) -> Result<Vec<hapax::message::Message>> {
        let spec = QueueSpec { declare: Declare::Passive, ..self.queue(queue, "") };
        let mut subscription = self.broker.subscribe(&spec).await?;
        let mut messages = Vec::new();
        while let Ok(delivery) = tokio::time::timeout(QUIET, subscription.deliveries.recv()).await {
            let delivery = delivery.context("the broker ended the subscription")??;
            messages.push(delivery.message);
            subscription.settler.acknowledge(vec![delivery.tag]);
        }
        subscription.settler.close().await;
        Ok(messages)
    }

    /// The database, for reading.
    ///
    /// # Errors
    /// When it does not let us in.
    pub(crate) async fn books(&self) -> Result<Books> {
        Books::open(&self.ledger).await
    }

    /// Closes connections and stops what was started.
    pub(crate) async fn close(self) {
        let Self { broker, depths, _given: given, servers, .. } = self;
        broker.close().await;
        drop((depths, given));
        let Some(Servers { mut rabbit, mut redis, mut mariadb, mut postgres }) = servers else { return };
        // Whatever does not stop in good order is killed when it is dropped.
        let _ = tokio::join!(
            async { if rabbit.is_private() { rabbit.stop().await } else { Ok(()) } },
            async { if redis.is_private() { redis.stop().await } else { Ok(()) } },
            async {
                if let Some(server) = mariadb.as_mut().filter(|s| s.is_private()) {
                    server.stop().await
                } else {
                    Ok(())
                }
            },
            async {
                if let Some(server) = postgres.as_mut().filter(|s| s.is_private()) {
                    server.stop().await
                } else {
                    Ok(())
                }
            },
        );
    }
}

fn outgoing(message: &Publication) -> Outgoing {
    Outgoing {
        exchange: EXCHANGE.to_owned(),
        routing_key: "order.created".to_owned(),
        properties: Properties {
            content_type: Some(message.content_type.to_owned()),
            message_id: message.id.clone(),
            delivery_mode: Some(2),
            ..Properties::default()
        },
        body: Bytes::copy_from_slice(&message.body),
    }
}

/// The handler that was built beside this program.
///
/// # Errors
/// When there is none; the error says how to build it.
pub(crate) fn built_module() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    // This program lies in target/PROFILE.
    let target = exe.ancestors().nth(2).unwrap_or(Path::new("target"));
    let module = target.join("wasm32-wasip2/release/reduce_stock.wasm");
    if !module.is_file() {
        bail!(
            "there is no {}: build it with `cargo build --release --target wasm32-wasip2 -p reduce-stock`, or name it with --module",
            module.display()
        );
    }
    Ok(module)
}
