//! A world for one test: servers (or files), a queue, a database with business tables, and hosts to run on them.

use std::fmt::Display;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hapax::broker::{self, Broker, Outgoing, Published};
use hapax::ledger::database::{self, Connection, Database, SessionSettings};
use hapax::ledger::value::{RowLimits, Value};
use hapax::message::Properties;
use hapax_tests::proc::{self, Launch, Process};
use hapax_tests::servers::shared;
use hapax_tests::vhost::Vhost;
use hapax_tests::{wait_for, wait_until};

/// How long anything may take that is expected to happen, on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The name of the consumer under test.
pub(crate) const CONSUMER: &str = "under-test";
/// Its queue.
pub(crate) const QUEUE: &str = "work";
/// The queue that copies of its dead letters go to.
pub(crate) const DEAD_QUEUE: &str = "work.dead";

/// How a scenario's own connections to the database behave.
pub(crate) const SESSION: SessionSettings = SessionSettings {
    lock_timeout: Duration::from_secs(10),
    statement_timeout: Duration::from_secs(30),
    idle_in_transaction: Duration::from_secs(60),
};

/// Which servers a scenario runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// RabbitMQ, Redis, MariaDB.
    MariaDb,
    /// RabbitMQ, Redis, Postgres.
    Postgres,
    /// Files.
    Embedded,
}

/// One test's world.
pub(crate) struct World {
    pub(crate) stage: Stage,
    directory: tempfile::TempDir,
    vhost: Option<Vhost>,
    broker_url: String,
    lock_url: String,
    database_url: String,
    database: Arc<dyn Database>,
}

/// How a test's consumer differs from the usual one.
pub(crate) struct Consumer {
    guest: &'static str,
    lines: Vec<String>,
    top: String,
    lock_url: Option<String>,
    database_url: Option<String>,
    more: String,
}

impl Default for Consumer {
    fn default() -> Self {
        Self {
            guest: "chaos",
            lines: Vec::new(),
            top: String::new(),
            lock_url: None,
            database_url: None,
            more: String::new(),
        }
    }
}

impl Consumer {
    /// One more line of its section, in place of the usual one of that key.
    pub(crate) fn with(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Another guest than `chaos`.
    pub(crate) fn guest(mut self, guest: &'static str) -> Self {
        self.guest = guest;
        self
    }

    /// Text for the head of the config file.
    pub(crate) fn top(mut self, text: &str) -> Self {
        self.top = text.to_owned();
        self
    }

    /// Another lock server than the world's.
    pub(crate) fn lock(mut self, url: &str) -> Self {
        self.lock_url = Some(url.to_owned());
        self
    }

    /// Another way to the world's database.
    pub(crate) fn database(mut self, url: &str) -> Self {
        self.database_url = Some(url.to_owned());
        self
    }

    /// Text for the end of the config file: further consumers.
    pub(crate) fn more(mut self, text: impl Into<String>) -> Self {
        self.more = text.into();
        self
    }
}

/// The tables that scenarios write to: `effects` has a row for each effect, so that a doubled one shows.
/// A row of `latch` that a test has locked holds up whoever changes it.
const TABLES: [(&str, &str); 4] = [
    ("effects", "name VARCHAR(300), value VARCHAR(2000)"),
    ("latch", "name VARCHAR(50) PRIMARY KEY, value BIGINT NOT NULL"),
    ("stock", "goods_id BIGINT PRIMARY KEY, quantity BIGINT NOT NULL"),
    (
        "refused_order",
        "message_id VARCHAR(255) PRIMARY KEY, goods_id BIGINT NOT NULL, quantity BIGINT NOT NULL, reason VARCHAR(255) NOT NULL",
    ),
];

impl World {
    pub(crate) async fn new(stage: Stage) -> Result<Self> {
        Self::build(stage, None).await
    }

    /// A world whose business database is on a server of the test's own, to be killed.
    pub(crate) async fn on_database(stage: Stage, url: &str) -> Result<Self> {
        Self::build(stage, Some(url)).await
    }

    async fn build(stage: Stage, own_database: Option<&str>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("hapax-e2e-").tempdir()?;
        let file = |name: &str| directory.path().join(name).display().to_string();
        let (vhost, broker_url, lock_url) = if stage == Stage::Embedded {
            (None, format!("embedded:{}", file("broker.db")), "local:".to_owned())
        } else {
            let vhost = shared().rabbit().await?.vhost("e2e").await?;
            let redis = shared().redis().await?.fresh_database().await?;
            let url = vhost.url().to_owned();
            (Some(vhost), url, redis.url().to_owned())
        };
        let database_url = match stage {
            _ if own_database.is_some() => own_database.unwrap_or_default().to_owned(),
            Stage::MariaDb => shared().mariadb().await?.fresh_database("e2e").await?.url().to_owned(),
            Stage::Postgres => shared().postgres().await?.fresh_database("e2e").await?.url().to_owned(),
            Stage::Embedded => format!("sqlite://{}", file("shop.db")),
        };
        let database = database::open(&database_url, SESSION)?;
        let world = Self { stage, directory, vhost, broker_url, lock_url, database_url, database };
        for (name, columns) in TABLES {
            world.execute(&format!("CREATE TABLE {name} ({columns})")).await?;
        }
        if let Some(vhost) = &world.vhost {
            vhost.declare_queue(QUEUE, serde_json::json!({})).await?;
            vhost.declare_queue(DEAD_QUEUE, serde_json::json!({})).await?;
            vhost.declare_exchange("shop", "topic").await?;
        }
        Ok(world)
    }

    /// The virtual host, on stages that have one.
    pub(crate) fn vhost(&self) -> &Vhost {
        self.vhost.as_ref().unwrap_or_else(|| panic!("{:?} has no RabbitMQ", self.stage))
    }

    /// The database's URL.
    pub(crate) fn database_url(&self) -> &str {
        &self.database_url
    }

    /// A connection to the lock server, on stages that have one.
    pub(crate) async fn redis(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.lock_url.as_str()).context("this stage has no Redis")?;
        client.get_multiplexed_async_connection().await.context("connecting to Redis")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes a config file, and returns its path.
    pub(crate) fn configure(&self, consumer: Consumer) -> Result<PathBuf> {
        let path = self.path("hapax.toml");
        std::fs::write(&path, self.config_text(consumer)?)?;
        Ok(path)
    }

    fn config_text(&self, consumer: Consumer) -> Result<String> {
        let module = self.path("module.wasm");
        std::fs::copy(guest(consumer.guest)?, &module)?;
        let declare = if self.stage == Stage::Embedded { "create" } else { "passive" };
        let bindings = if self.stage == Stage::Embedded {
            "[{ exchange = \"shop\", routing_key = \"order.created\" }]"
        } else {
            "[]"
        };
        let mut keys: Vec<(String, String)> = vec![
            ("queue".into(), format!("{QUEUE:?}")),
            ("module".into(), format!("{:?}", module.display().to_string())),
            ("declare".into(), format!("{declare:?}")),
            ("bindings".into(), bindings.into()),
            (
                "grants".into(),
                "{ tables = { effects = [\"select\", \"insert\", \"update\", \"delete\"], stock = [\"select\", \"update\"], \
                 latch = [\"select\", \"update\"], refused_order = [\"insert\"] }, publish = [{ exchange = \"shop\", routing_key = \"#\" }, { exchange = \"\", routing_key = \"#\" }], \
                 config = { exchange = \"shop\" } }"
                    .into(),
            ),
            (
                "retry".into(),
                "{ max_attempts = 5, initial_interval = \"100ms\", multiplier = 1.0, max_interval = \"10s\", jitter = 0.0 }"
                    .into(),
            ),
        ];
        for line in consumer.lines {
            let (key, value) = line.split_once('=').context("a line of a consumer's section needs `=`")?;
            let key = key.trim().to_owned();
            keys.retain(|(known, _)| *known != key);
            keys.push((key, value.trim().to_owned()));
        }
        let mut text = consumer.top;
        write!(
            text,
            "\ndrain = \"5s\"\n[log]\nformat = \"text\"\nlevel = \"info,hapax=debug\"\n[module_cache]\ndir = {:?}\n\
             [broker]\nurl = {:?}\n[lock]\nurl = {:?}\n[database]\nurl = {:?}\n[consumers.{CONSUMER}]\n",
            cache()?.display().to_string(),
            self.broker_url,
            consumer.lock_url.as_ref().unwrap_or(&self.lock_url),
            consumer.database_url.as_ref().unwrap_or(&self.database_url),
        )?;
        for (key, value) in keys {
            writeln!(text, "{key} = {value}")?;
        }
        text.push_str(&consumer.more);
        Ok(text)
    }

    /// Starts a host on a config, and waits until it consumes.
    pub(crate) async fn host(&self, consumer: Consumer) -> Result<Process> {
        let mut host = self.start(consumer)?;
        host.wait_consuming(PATIENCE).await?;
        Ok(host)
    }

    /// Starts a host on a config, whatever it may have to wait for.
    pub(crate) fn start(&self, consumer: Consumer) -> Result<Process> {
        let config = self.configure(consumer)?;
        Launch::hapax(["run".into(), "-c".into(), config.into_os_string()]).name("host").start()
    }

    /// Starts a further host on the config that is there.
    pub(crate) async fn another_host(&self, name: &str) -> Result<Process> {
        let config = self.path("hapax.toml").into_os_string();
        let mut host = Launch::hapax(["run".into(), "-c".into(), config]).name(name).start()?;
        host.wait_consuming(PATIENCE).await?;
        Ok(host)
    }

    /// Runs the binary to its end and returns what it printed.
    pub(crate) async fn hapax(&self, args: &[&str]) -> Result<String> {
        let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        all.extend(["-c".to_owned(), self.path("hapax.toml").display().to_string()]);
        let mut done = Launch::hapax(all).name(args[0]).start()?;
        done.wait_success(PATIENCE).await?;
        Ok(done.log())
    }

    pub(crate) async fn broker(&self) -> Result<Arc<dyn Broker>> {
        Ok(broker::open(&self.broker_url, &broker::Settings::default()).await?)
    }

    /// Publishes to the queue under test.
    pub(crate) async fn publish(&self, messages: impl IntoIterator<Item = Outgoing>) -> Result<()> {
        let broker = self.broker().await?;
        let window: Vec<Outgoing> = messages.into_iter().collect();
        let publisher = broker.publisher();
        for part in window.chunks(1000) {
            let answers = publisher.publish(part).await;
            if let Some(answer) = answers.iter().find(|answer| **answer != Published::Confirmed) {
                bail!("publishing to {QUEUE}: {answer:?}");
            }
        }
        drop(publisher);
        broker.close().await;
        Ok(())
    }

    /// A connection of the test's own to the world's database, in a transaction.
    pub(crate) async fn begin(&self) -> Result<Box<dyn Connection>> {
        let mut connection = self.database.connect().await?;
        connection.begin().await?;
        Ok(connection)
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        let mut connection = self.begin().await?;
        connection.execute(sql, &[]).await?;
        Ok(connection.commit().await?)
    }

    /// Runs statements that make or change business data.
    pub(crate) async fn prepare(&self, statements: &[&str]) -> Result<()> {
        for statement in statements {
            self.execute(statement).await?;
        }
        Ok(())
    }

    /// Ends every other connection to the world's database, at the server.
    pub(crate) async fn cut_connections(&self) -> Result<()> {
        let (list, kill) = match self.stage {
            Stage::Postgres => (
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
                "SELECT pg_terminate_backend",
            ),
            Stage::MariaDb => (
                "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
                "KILL CONNECTION ",
            ),
            Stage::Embedded => bail!("files have no connections"),
        };
        for row in self.rows(list).await? {
            let Some(Value::Int(id)) = row.first() else { bail!("{row:?} is no connection") };
            let statement = if self.stage == Stage::Postgres { format!("{kill}({id})") } else { format!("{kill}{id}") };
            // One that has ended by itself in the meantime is no matter.
            let _ = self.rows(&statement).await;
        }
        Ok(())
    }

    /// All rows of a query.
    pub(crate) async fn rows(&self, sql: &str) -> Result<Vec<Vec<Value>>> {
        // Without a transaction: on SQLite one would wait for the writer, and what is looked at would be over.
        let mut connection = self.database.connect().await?;
        Ok(connection.query(sql, &[], RowLimits::NONE).await?.rows)
    }

    /// One number.
    pub(crate) async fn number(&self, sql: &str) -> Result<i64> {
        let rows = self.rows(sql).await?;
        match rows.first().and_then(|row| row.first()) {
            Some(Value::Int(number)) => Ok(*number),
            Some(Value::Decimal(number)) => Ok(number.parse()?),
            Some(Value::Null) => Ok(0),
            other => bail!("{sql} returned {other:?}, not a number"),
        }
    }

    /// Waits until a query returns that number.
    pub(crate) async fn wait_number(&self, sql: &str, wanted: i64) -> Result<()> {
        self.wait_for(format!("{sql} = {wanted}"), async || {
            let found = self.number(sql).await?;
            if found == wanted { Ok(()) } else { bail!("it is {found}") }
        })
        .await
    }

    /// Tries until it succeeds; the error of a wait in vain says where messages are.
    pub(crate) async fn wait_for<T>(&self, what: impl Display, attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
        match wait_for(PATIENCE, what, attempt).await {
            Ok(found) => Ok(found),
            Err(error) => Err(error.context(self.situation().await)),
        }
    }

    /// Where messages are.
    async fn situation(&self) -> String {
        let queue = match &self.vhost {
            Some(vhost) => format!("{:?}", vhost.queue(QUEUE).await),
            None => "embedded".to_owned(),
        };
        let parked = "SELECT state, phase, crashes, due_at, taken_at, COUNT(*) FROM hapax_parked
                      GROUP BY state, phase, crashes, due_at, taken_at";
        let inbox = "SELECT status, COUNT(*) FROM hapax_inbox GROUP BY status";
        let (parked, inbox) = (self.rows(parked).await, self.rows(inbox).await);
        format!("queue: {queue}\nparked (state, phase, crashes, due, taken, rows): {parked:?}\ninbox: {inbox:?}")
    }

    /// Rows of `effects` of that name.
    pub(crate) async fn effects(&self, name: &str) -> Result<i64> {
        self.number(&format!("SELECT COUNT(*) FROM effects WHERE name = '{name}'")).await
    }

    /// Dead letters with that reason.
    pub(crate) async fn dead(&self, reason: &str) -> Result<i64> {
        self.number(&format!("SELECT COUNT(*) FROM hapax_parked WHERE state = 4 AND reason = '{reason}'")).await
    }

    /// Waits for that many dead letters with that reason.
    pub(crate) async fn wait_dead(&self, reason: &str, wanted: i64) -> Result<()> {
        self.wait_number(&format!("SELECT COUNT(*) FROM hapax_parked WHERE state = 4 AND reason = '{reason}'"), wanted)
            .await
    }

    /// Waits until the queue is empty, nothing is parked but dead letters, and the outbox is empty too.
    pub(crate) async fn quiet(&self) -> Result<()> {
        if let Some(vhost) = &self.vhost {
            wait_until(PATIENCE, "the queue to be empty", async || {
                vhost.queue(QUEUE).await.is_ok_and(|queue| queue.messages == 0)
            })
            .await?;
        }
        // In the order in which messages go: what has left one place for the next is seen there.
        self.wait_number("SELECT COUNT(*) FROM hapax_parked WHERE state IN (1, 2, 3)", 0).await?;
        self.wait_number("SELECT COUNT(*) FROM hapax_outbox WHERE state = 1", 0).await
    }
}

/// A message to the queue under test.
pub(crate) fn message(id: &str, body: impl Into<Vec<u8>>) -> Outgoing {
    let properties = Properties { message_id: Some(id.to_owned()), delivery_mode: Some(2), ..Properties::default() };
    Outgoing { exchange: String::new(), routing_key: QUEUE.to_owned(), properties, body: body.into().into() }
}

/// A message whose handler writes one effect under the message's own name, after these steps.
pub(crate) fn effect(id: &str, steps: &[serde_json::Value]) -> Outgoing {
    let mut all = vec![serde_json::json!({
        "sql": "INSERT INTO effects (name, value) VALUES (?, ?)", "params": [id, {"$": "attempt"}],
    })];
    all.extend_from_slice(steps);
    message(id, serde_json::json!({ "do": all }).to_string())
}

/// A guest component as `make guests` builds it, or the one that is never built again.
pub(crate) fn guest(name: &str) -> Result<PathBuf> {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}-0.1.0.wasm"));
    if golden.is_file() { Ok(golden) } else { proc::guest(name) }
}

/// Where all tests of this run keep compiled modules.
fn cache() -> Result<PathBuf> {
    Ok(proc::target_dir()?.join("module-cache"))
}

/// A message as it arrived in a queue.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) id: String,
    pub(crate) body: String,
}

impl World {
    /// The same world, on another RabbitMQ than the shared one.
    pub(crate) async fn on_broker(mut self, vhost: Vhost) -> Result<Self> {
        vhost.declare_queue(QUEUE, serde_json::json!({})).await?;
        vhost.declare_queue(DEAD_QUEUE, serde_json::json!({})).await?;
        vhost.declare_exchange("shop", "topic").await?;
        vhost.url().clone_into(&mut self.broker_url);
        self.vhost = Some(vhost);
        Ok(self)
    }

    /// Starts a host whose module may take longer than usual to compile.
    pub(crate) async fn host_within(&self, patience: Duration, consumer: Consumer) -> Result<Process> {
        let config = self.configure(consumer)?;
        let mut host = Launch::hapax(["run".into(), "-c".into(), config.into_os_string()]).name("host").start()?;
        host.wait_consuming(patience).await?;
        Ok(host)
    }

    /// Runs the binary to its end, which must be a failure, and returns what it printed.
    pub(crate) async fn hapax_refuses(&self, args: &[&str]) -> Result<String> {
        let mut all: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        all.extend(["-c".to_owned(), self.path("hapax.toml").display().to_string()]);
        let mut done = Launch::hapax(all).name(args[0]).start()?;
        let status = done.wait(PATIENCE).await?;
        anyhow::ensure!(!status.success(), "{args:?} succeeded\n{}", done.log_tail());
        Ok(done.log())
    }

    /// Creates a queue bound to an exchange (a topic exchange, made too where there is none).
    pub(crate) async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
        let broker = self.broker().await?;
        broker.declare(&listener(queue, Some((exchange, routing_key)))).await?;
        broker.close().await;
        Ok(())
    }

    /// Takes messages from a queue until these are enough, and then whatever else is there.
    pub(crate) async fn collect(&self, queue: &str, enough: impl Fn(&[Arrived]) -> bool) -> Result<Vec<Arrived>> {
        let broker = self.broker().await?;
        let mut subscription = broker.subscribe(&listener(queue, None)).await?;
        let mut arrived = Vec::new();
        loop {
            let had_enough = enough(&arrived);
            let patience = if had_enough { Duration::from_millis(500) } else { PATIENCE };
            let next = tokio::time::timeout(patience, subscription.deliveries.recv()).await;
            let Ok(next) = next else {
                anyhow::ensure!(had_enough, "{queue} brought only {} messages within {patience:?}", arrived.len());
                break;
            };
            let delivery = next.with_context(|| format!("the subscription to {queue} ended"))??;
            subscription.settler.acknowledge(vec![delivery.tag]);
            arrived.push(Arrived {
                id: delivery.message.properties.message_id.clone().unwrap_or_default(),
                body: String::from_utf8_lossy(&delivery.message.body).into_owned(),
            });
        }
        subscription.settler.close().await;
        broker.close().await;
        Ok(arrived)
    }
}

/// A queue to look into, created if a binding is given.
fn listener(queue: &str, binding: Option<(&str, &str)>) -> broker::QueueSpec {
    let declare = if binding.is_some() { broker::Declare::Create } else { broker::Declare::Passive };
    let bindings = binding.into_iter().map(|(exchange, routing_key)| broker::Binding {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
    });
    broker::QueueSpec {
        queue: queue.to_owned(),
        consumer: "listener".to_owned(),
        declare,
        arguments: std::collections::BTreeMap::new(),
        bindings: bindings.collect(),
        prefetch_messages: 500,
        prefetch_bytes: 16 << 20,
        ordered: false,
    }
}

/// Runs one scenario on several stages, as tests of their own.
macro_rules! on_stages {
    ($($(#[$doc:meta])* $name:ident: [$($stage:ident),*];)*) => {
        $($(#[$doc])* mod $name {
            $(
                #[expect(non_snake_case, reason = "named after the stage")]
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $stage() -> hapax_tests::TestResult {
                    let world = $crate::world::World::new($crate::world::Stage::$stage).await?;
                    super::scenarios::$name(world).await
                }
            )*
        })*
    };
}
pub(crate) use on_stages;
