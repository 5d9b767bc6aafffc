//! From a config to what commands work on: its ledgers, its broker, a consumer by name.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::error::failure;
use crate::broker::{self, Broker};
use crate::config::{BrokerConfig, Config, ConsumerConfig, DatabaseConfig};
use crate::host::{broker_url, database_url};
use crate::ledger::Ledger;
use crate::ledger::database::{self, Database, SessionSettings};

/// A person waits for the answer, and nobody waits for this session's locks.
const SESSION: SessionSettings = SessionSettings {
    lock_timeout: Duration::from_secs(10),
    statement_timeout: Duration::from_secs(120),
    idle_in_transaction: Duration::from_secs(60),
};

/// A database that consumers of the config keep their ledger in.
pub(super) struct Place<'c> {
    /// Which one.
    pub(super) database: &'c DatabaseConfig,
    /// The consumers that use it.
    pub(super) consumers: Vec<&'c ConsumerConfig>,
}

/// The distinct databases of the config's consumers; without a consumer, the one that they would use.
pub(super) fn places(config: &Config) -> Vec<Place<'_>> {
    let mut places: Vec<Place<'_>> = Vec::new();
    for consumer in &config.consumers {
        match places.iter_mut().find(|place| *place.database == consumer.database) {
            Some(place) => place.consumers.push(consumer),
            None => places.push(Place { database: &consumer.database, consumers: vec![consumer] }),
        }
    }
    if places.is_empty() {
        places.push(Place { database: &config.database, consumers: Vec::new() });
    }
    places
}

/// A consumer of the config.
pub(super) fn consumer<'c>(config: &'c Config, name: &str) -> anyhow::Result<&'c ConsumerConfig> {
    if let Some(found) = config.consumers.iter().find(|consumer| consumer.name == name) {
        return Ok(found);
    }
    let names: Vec<&str> = config.consumers.iter().map(|consumer| consumer.name.as_str()).collect();
    let close = names.iter().copied().filter(|other| strsim::jaro_winkler(other, name) > 0.8);
    let hint = match close.max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name))) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if names.is_empty() => "it has no [consumers.NAME] at all".to_owned(),
        None => format!("it has: {}", names.join(", ")),
    };
    Err(failure(format!("{} has no consumer `{name}`", config.path.display()), hint).into())
}

/// A database as the config names it. Nothing is sent to it yet.
pub(super) fn database(config: &DatabaseConfig) -> anyhow::Result<Arc<dyn Database>> {
    database::open(&database_url(config), SESSION).with_context(|| format!("cannot use the database {config}"))
}

/// A ledger whose tables are there and up to date.
pub(super) async fn ledger(config: &DatabaseConfig) -> anyhow::Result<Ledger> {
    expect_file(config)?;
    let database = database(config)?;
    let cannot = || format!("cannot open the ledger in {config}");
    let pending = database.migrate(true).await.with_context(cannot)?;
    if !pending.is_empty() {
        let message = format!("the database {config} lacks tables of Hapax, or has older ones");
        return Err(failure(message, "`hapax migrate` makes them; `hapax migrate --dry-run` shows how").into());
    }
    Ledger::open(database).await.with_context(cannot)
}

/// SQLite makes a file that is not there; a command that only looks must not.
fn expect_file(config: &DatabaseConfig) -> anyhow::Result<()> {
    match config {
        DatabaseConfig::Sqlite(path) if !path.exists() => Err(failure(
            format!("there is no database file {}", path.display()),
            "is this the right config? `hapax migrate` and `hapax run` create the file",
        )
        .into()),
        _ => Ok(()),
    }
}

/// The config's broker.
pub(super) async fn broker(config: &BrokerConfig) -> anyhow::Result<Arc<dyn Broker>> {
    let settings = broker::Settings::default();
    broker::open(&broker_url(config), &settings).await.with_context(|| format!("cannot open the broker {config}"))
}
