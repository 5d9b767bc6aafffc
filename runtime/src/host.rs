//! The host: builds every part from the config, wires them, and runs until it is told to stop.
//!
//! Each part knows its own settings; this is the one place that knows them all. A consumer whose server, queue or module
//! is not there yet waits for it, and the others go on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use tokio::sync::{Mutex, RwLock};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{self, Broker};
use crate::config::{self, BrokerConfig, Config, ConsumerConfig, DatabaseConfig, LockConfig, OnUnavailable};
use crate::consumer::{self, MassFailure, UpkeepPolicy};
use crate::guest::cache::ModuleCache;
use crate::guest::compile::Compiler;
use crate::guest::engine::{Engine, EngineSettings};
use crate::guest::grants::{ConfigValues, ConsumerContext, Grants, Limits, PublishGrant, Reuse};
use crate::guest::sql_guard::TableGrants;
use crate::guest::swap::ModuleSlot;
use crate::ledger::Ledger;
use crate::ledger::database::{self, SessionSettings};
use crate::ledger::parked::Incarnation;
use crate::ledger::upkeep::RescuePolicy;
use crate::lock::lease::Leases;
use crate::lock::redis::RedisSettings;
use crate::lock::{self, Lock};
use crate::pipeline::member::Rules;
use crate::pipeline::recent::Recent;
use crate::pipeline::records::DeadLetterTarget;
use crate::pipeline::shared::{Locking, Shared};
use crate::relay::Relay;
use crate::telemetry::http;
use crate::telemetry::metrics::{ConsumerMetrics, Metrics, Swap};
use crate::telemetry::readiness::{Component, Readiness};
use crate::telemetry::waits::retry_forever;

/// How long outbox rows are left to the host that committed them, before any host publishes them.
const OUTBOX_GRACE: Duration = Duration::from_secs(10);

/// How long connections, locks and the relay have to end in good order, once every consumer has.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Places in the wasm pool beside one for each lane: modules being checked before a swap, and instances being replaced.
const SPARE_INSTANCES: u32 = 4;

/// What all consumers use.
struct Parts {
    engine: Engine,
    cache: Arc<ModuleCache>,
    broker: Arc<dyn Broker>,
    lock: Arc<dyn Lock>,
    incarnation: Incarnation,
    readiness: Readiness,
    suspects: Arc<RwLock<()>>,
    relays: Mutex<HashMap<String, Relay>>,
    relay_tasks: Mutex<JoinSet<()>>,
    /// Cancelled when every consumer has ended: what they have committed is still published.
    ended: CancellationToken,
}

/// Runs every configured consumer until `stop`. Consumers then finish what they have begun, for at most the config's
/// drain time; what they do not finish is given back. A stop while it still waits for its broker is as good an end.
///
/// # Errors
/// When the host cannot start at all: listen address, module cache, wasm engine. What may come later is waited for.
pub async fn run(config: Config, metrics: Metrics, stop: CancellationToken) -> anyhow::Result<()> {
    let readiness = Readiness::new();
    let server = match config.listen {
        Some(address) => Some(http::serve(&address.to_string(), readiness.clone(), metrics, stop.clone()).await?),
        None => None,
    };
    if let Some(parts) = parts(&config, &readiness, &stop).await? {
        run_consumers(Arc::new(parts), config, &readiness, &stop).await?;
    }
    if let Some(server) = server {
        server.ended().await;
    }
    tracing::info!("stopped in good order");
    Ok(())
}

async fn run_consumers(
    parts: Arc<Parts>,
    config: Config,
    readiness: &Readiness,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let drain = config.drain;
    let mut consumers = JoinSet::new();
    for consumer in config.consumers {
        let component = readiness.component(format_args!("consumer {}", consumer.name));
        consumers.spawn(run_consumer(parts.clone(), consumer, component, stop.clone(), drain));
    }
    while let Some(ended) = consumers.join_next().await {
        ended.context("a consumer ended in a way that it should not: this is a bug in Hapax, please report it")?;
    }
    parts.close().await;
    Ok(())
}

/// None if the host stops before its broker is there.
async fn parts(config: &Config, readiness: &Readiness, stop: &CancellationToken) -> anyhow::Result<Option<Parts>> {
    let lanes: u32 = config.consumers.iter().map(|consumer| u32::from(consumer.concurrency)).sum();
    let modules = u32::try_from(config.consumers.len()).unwrap_or(u32::MAX);
    let memory = config.consumers.iter().map(|consumer| consumer.limits.memory).max().unwrap_or(64 << 20);
    let settings = EngineSettings {
        max_instances: lanes.saturating_add(modules).saturating_add(SPARE_INSTANCES),
        memory_per_instance: memory,
    };
    let engine = Engine::new(settings)?;
    let compiler = Compiler::current_exe().context("cannot find this program's own file to compile modules with")?;
    let cache = Arc::new(ModuleCache::open(&config.module_cache.dir, compiler)?);
    let settings = broker::Settings::default();
    let url = broker_url(&config.broker);
    let component = readiness.component("broker");
    let what = format!("the broker at {}", config.broker);
    let open = move || {
        let (url, settings) = (url.clone(), settings.clone());
        async move { broker::open(&url, &settings).await }
    };
    let Some(broker) = retry_forever(&what, &component, stop, open).await else { return Ok(None) };
    component.retire();
    let lock = match &config.lock {
        LockConfig::Redis(url) => lock::open(url.expose(), RedisSettings::default())?,
        LockConfig::Local => lock::open("local:", RedisSettings::default())?,
    };
    Ok(Some(Parts {
        engine,
        cache,
        broker,
        lock,
        incarnation: Incarnation::new(),
        readiness: readiness.clone(),
        suspects: Arc::default(),
        relays: Mutex::default(),
        relay_tasks: Mutex::default(),
        ended: CancellationToken::new(),
    }))
}

impl Parts {
    /// The relay of a database, started with its first consumer.
    async fn relay(&self, url: &str, ledger: &Arc<Ledger>) -> Relay {
        let mut relays = self.relays.lock().await;
        if let Some(relay) = relays.get(url) {
            return relay.clone();
        }
        let publisher = self.broker.publisher();
        let (relay, task) = Relay::start(ledger.clone(), publisher, OUTBOX_GRACE, self.ended.clone());
        self.relay_tasks.lock().await.spawn(async move {
            // It neither panics nor is aborted; and if it did, the rows are in SQL.
            let _ = task.await;
        });
        relays.insert(url.to_owned(), relay.clone());
        relay
    }

    async fn close(&self) {
        self.ended.cancel();
        let ended = async {
            let mut tasks = self.relay_tasks.lock().await;
            while tasks.join_next().await.is_some() {}
            self.broker.close().await;
        };
        if tokio::time::timeout(CLOSE_LIMIT, ended).await.is_err() {
            tracing::warn!("connections did not close within {CLOSE_LIMIT:?}");
        }
    }
}

/// Waits for what a consumer needs, and runs it.
async fn run_consumer(
    parts: Arc<Parts>,
    config: ConsumerConfig,
    component: Component,
    stop: CancellationToken,
    drain: Duration,
) {
    let infrastructure = parts.readiness.component(format_args!("servers of consumer {}", config.name));
    let Some((settings, leases)) = prepare(&parts, &config, &component, &stop).boxed().await else { return };
    let signs = consumer::Signs { deliveries: component, infrastructure };
    let shared = settings.shared.clone();
    let metrics = Arc::new(ConsumerMetrics::new(&config.name));
    let watch = shared.modules.watch(move |swapped| {
        metrics.module_file_changed(if swapped.is_ok() { Swap::Swapped } else { Swap::Refused });
    });
    consumer::run(settings, signs, stop, drain).await;
    drop(watch);
    drop(shared);
    if let Ok(leases) = Arc::try_unwrap(leases) {
        leases.shutdown(CLOSE_LIMIT).await;
    }
}

/// Opens the ledger, loads the module, and puts a consumer together. None if the host stops first.
async fn prepare(
    parts: &Arc<Parts>,
    config: &ConsumerConfig,
    component: &Component,
    stop: &CancellationToken,
) -> Option<(consumer::Settings, Arc<Leases>)> {
    let url = database_url(&config.database);
    let what = format!("the database at {}", config.database);
    let (ledger_url, session) = (url.clone(), config.session_settings());
    let open = move || open_ledger(ledger_url.clone(), session);
    let ledger = retry_forever(&what, component, stop, open).await?;
    let what = format!("module {}", config.module.display());
    let (owner, path, memory) = (parts.clone(), config.module.clone(), config.limits.memory);
    let load = move || {
        let (parts, path) = (owner.clone(), path.clone());
        async move { ModuleSlot::load(&parts.engine, &parts.cache, &path, memory).await }
    };
    let modules = retry_forever(&what, component, stop, load).await?;
    tracing::info!(
        consumer = %config.name, module = %config.module.display(), digest = %modules.current().short_digest(),
        "module loaded"
    );
    let leases = Arc::new(Leases::start(parts.lock.clone(), config.lock.ttl));
    let shared = Arc::new(Shared {
        name: config.name.clone(),
        relay: parts.relay(&url, &ledger).await,
        recent: Recent::default(),
        locking: Locking {
            lock: parts.lock.clone(),
            leases: leases.clone(),
            pause_without: config.lock.on_unavailable == OnUnavailable::Pause,
            tries: u32::try_from(config.lock.wait.as_millis() / consumer::LOCK_WAIT.as_millis())
                .unwrap_or(u32::MAX)
                .max(1),
        },
        modules,
        context: Arc::new(consumer_context(config)),
        rules: Rules { id: config.message_id.clone(), partition: config.partition_by.clone() },
        retry: config.retry,
        time_limit: config.limits.time,
        batch_max_time: config.batch.max_time,
        run_ahead: config.batch.run_ahead,
        dead_letter: config
            .dead_letter
            .as_ref()
            .map(|copy| DeadLetterTarget { exchange: copy.exchange.clone(), routing_key: copy.routing_key.clone() }),
        outbox_grace: OUTBOX_GRACE,
        incarnation: parts.incarnation,
        metrics: ConsumerMetrics::new(&config.name),
        ledger,
    });
    let settings = consumer::Settings {
        shared,
        broker: parts.broker.clone(),
        spec: config.queue_spec(),
        lanes: config.concurrency,
        batch: usize::from(config.batch.max_messages),
        mass_failure: config
            .mass_failure
            .map(|policy| MassFailure { window: policy.window as usize, threshold: policy.threshold }),
        suspects: parts.suspects.clone(),
        upkeep: UpkeepPolicy {
            rescue: RescuePolicy {
                after: config.rescue_after,
                max_crashes: config.max_crashes,
                delay: config.retry.initial_interval.min(Duration::from_secs(1)),
            },
            retention: config.retention,
            parked_max: config.parked_max,
            outbox_max: config.outbox_max,
        },
    };
    Some((settings, leases))
}

/// Opens a ledger and brings its tables up to date. A host without the right to create tables works on tables that were
/// made beforehand.
async fn open_ledger(url: String, session: SessionSettings) -> Result<Arc<Ledger>, database::DbError> {
    let ledger = Ledger::open(database::open(&url, session)?).await?;
    ledger.migrate().await?;
    Ok(Arc::new(ledger))
}

/// The URL by which the broker is opened, credentials inside.
pub fn broker_url(broker: &BrokerConfig) -> String {
    match broker {
        BrokerConfig::Amqp(url) => url.expose().to_owned(),
        BrokerConfig::Embedded(path) => format!("embedded:{}", path.display()),
    }
}

/// The URL by which a database is opened, credentials inside.
pub fn database_url(database: &DatabaseConfig) -> String {
    match database {
        DatabaseConfig::MySql(url) | DatabaseConfig::Postgres(url) => url.expose().to_owned(),
        DatabaseConfig::Sqlite(path) => format!("sqlite://{}", path.display()),
    }
}

/// What a consumer's module may do, from its config.
pub fn consumer_context(config: &ConsumerConfig) -> ConsumerContext {
    let grants = Grants {
        tables: table_grants(config),
        functions: config.grants.functions.iter().cloned().collect(),
        publish: config
            .grants
            .publish
            .iter()
            .map(|grant| PublishGrant { exchange: grant.exchange.clone(), routing_key: grant.routing_key.clone() })
            .collect(),
        config: ConfigValues(
            config.grants.config.iter().map(|(key, value)| (key.clone(), value.expose().to_owned())).collect(),
        ),
    };
    // Taken apart, so that a limit that is added to the config cannot be forgotten here. The session's own settings keep
    // the time of a wait for a lock.
    let config::Limits {
        memory,
        time,
        sql_rows,
        sql_bytes,
        sql_rows_affected,
        sql_text,
        sql_time,
        sql_lock_time: _,
        sql_statements,
        outbox_messages,
        outbox_bytes,
        output,
    } = config.limits;
    let limits = Limits {
        memory,
        time,
        host_call: Limits::host_call(memory, sql_bytes, outbox_bytes),
        sql_statements,
        sql_text,
        sql_rows,
        sql_bytes,
        sql_rows_affected,
        sql_time,
        outbox_messages,
        outbox_bytes,
        output,
    };
    let reuse = (config.reuse.calls > 1).then_some(Reuse { calls: config.reuse.calls, growth: config.reuse.memory });
    let ping_every = config.session_settings().idle_in_transaction / 3;
    ConsumerContext::new(&config.name, &config.queue, config.database.dialect(), grants, limits, reuse, ping_every)
}

fn table_grants(config: &ConsumerConfig) -> TableGrants {
    use crate::config::Verb as Granted;
    use crate::guest::sql_guard::Verb;
    let verb = |granted: &Granted| match granted {
        Granted::Select => Verb::Select,
        Granted::Insert => Verb::Insert,
        Granted::Update => Verb::Update,
        Granted::Delete => Verb::Delete,
    };
    let tables = config.grants.tables.iter();
    TableGrants(tables.map(|(table, verbs)| (table.clone(), verbs.iter().map(verb).collect())).collect())
}
