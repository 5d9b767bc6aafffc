//! `hapax check --connect`: are the servers there, and do they let us do what we must?

use std::time::Duration;

use super::super::open::{self, Place};
use super::super::output::clean_lines;
use super::{Report, rights};
use crate::broker::{Broker, BrokerError, Declare, Lack, Need, QueueSpec};
use crate::config::{Config, ConsumerConfig, DatabaseConfig, LockConfig};
use crate::ledger::database::Database;
use crate::lock;
use crate::lock::redis::RedisSettings;

/// Asks every server that the config names.
pub(super) async fn check(config: &Config, report: &mut Report) {
    broker(config, report).await;
    lock(config, report).await;
    for place in open::places(config) {
        database(&place, report).await;
    }
}

async fn broker(config: &Config, report: &mut Report) {
    report.heading(&format!("broker {}", config.broker));
    let broker = match open::broker(&config.broker).await {
        Ok(broker) => broker,
        Err(error) => return report.problem(&clean_lines(&format!("{error:#}")), None),
    };
    match broker.describe().await {
        Ok(server) => {
            report.fact("server", &clean_lines(&server));
            for consumer in &config.consumers {
                queue(broker.as_ref(), consumer, report).await;
            }
            rights_at_broker(broker.as_ref(), config, report).await;
        }
        Err(error) => report.problem(&clean_lines(&error.to_string()), Some(remedy(&error))),
    }
    broker.close().await;
}

fn remedy(error: &BrokerError) -> &str {
    match error {
        BrokerError::Login { .. } => "correct user and password under [broker], or create the user at the broker",
        BrokerError::Queue { hint, .. } => hint,
        BrokerError::Unavailable { .. } | BrokerError::Ended { .. } | BrokerError::Quiet { .. } => {
            "start the broker, or correct `url` under [broker]"
        }
    }
}

/// Looks without declaring: a check changes nothing.
async fn queue(broker: &dyn Broker, consumer: &ConsumerConfig, report: &mut Report) {
    let name = format!("queue {:?}", consumer.queue);
    if consumer.declare == Declare::None {
        return report.fact(&name, "not asked about (declare = \"none\")");
    }
    let spec = QueueSpec { declare: Declare::Passive, ..consumer.queue_spec() };
    match broker.declare(&spec).await {
        Ok(()) => report.fact(&name, "there"),
        Err(BrokerError::Queue { reason, .. })
            if consumer.declare == Declare::Create && reason.contains("does not exist") =>
        {
            report.fact(&name, "not there yet; `hapax run` creates it (declare = \"create\")");
        }
        Err(error) => report.problem(&clean_lines(&error.to_string()), Some(&clean_lines(remedy(&error)))),
    }
}

async fn rights_at_broker(broker: &dyn Broker, config: &Config, report: &mut Report) {
    let needs: Vec<Need> = config.consumers.iter().flat_map(needs).collect();
    match broker.lacks(&needs).await {
        Ok(lacks) => {
            // One command may mend several: it stands below the last of them.
            for (index, Lack { problem, hint }) in lacks.iter().enumerate() {
                let again = lacks[index + 1..].iter().any(|later| later.hint == *hint);
                let hint = (!again).then(|| clean_lines(hint));
                report.problem(&clean_lines(problem), hint.as_deref());
            }
        }
        Err(error) => report.problem(&clean_lines(&error.to_string()), Some(remedy(&error))),
    }
}

/// All that a consumer does at the broker.
fn needs(consumer: &ConsumerConfig) -> Vec<Need> {
    let queue = || consumer.queue.clone();
    let mut needs = vec![Need::Consume { queue: queue() }];
    if consumer.declare == Declare::Create {
        needs.push(Need::Create { queue: queue() });
        needs.extend(consumer.bindings.iter().map(|binding| Need::Bind {
            queue: queue(),
            exchange: binding.exchange.clone(),
            routing_key: binding.routing_key.clone(),
        }));
    }
    let published = consumer.grants.publish.iter().map(|grant| (&grant.exchange, &grant.routing_key));
    let copies = consumer.dead_letter.iter().map(|copy| (&copy.exchange, &copy.routing_key));
    needs.extend(
        published.chain(copies).map(|(exchange, routing_key)| Need::Publish {
            exchange: exchange.clone(),
            routing_key: routing_key.clone(),
        }),
    );
    needs
}

async fn lock(config: &Config, report: &mut Report) {
    report.heading(&format!("lock {}", config.lock));
    let url = match &config.lock {
        LockConfig::Redis(url) => url.expose(),
        LockConfig::Local => "local:",
    };
    let lock = match lock::open(url, RedisSettings::default()) {
        Ok(lock) => lock,
        Err(error) => return report.problem(&clean_lines(&error.to_string()), None),
    };
    match lock.describe().await {
        Ok(server) => report.fact("server", &clean_lines(&server)),
        Err(error) => return report.problem(&clean_lines(&error.to_string()), Some(LOCK_REMEDY)),
    }
    // An error says which right is missing, and how to grant it.
    if let Err(error) = lock::probe(lock.as_ref(), PROBE_LEASE).await {
        report.problem(&clean_lines(&error.to_string()), None);
    }
}

/// How long the lock that is tried may outlive this program.
const PROBE_LEASE: Duration = Duration::from_secs(1);

const LOCK_REMEDY: &str = "start the server, or correct `url` and `password` under [lock]; `on_unavailable` says what \
                           consumers do without";

async fn database(place: &Place<'_>, report: &mut Report) {
    report.heading(&format!("database {}", place.database));
    if let DatabaseConfig::Sqlite(path) = place.database
        && !path.exists()
    {
        return absent_file(path, report);
    }
    let database = match open::database(place.database) {
        Ok(database) => database,
        Err(error) => return report.problem(&clean_lines(&format!("{error:#}")), None),
    };
    match database.describe().await {
        Ok(server) => report.fact("server", &clean_lines(&server)),
        Err(error) => {
            let remedy = "start the server, or correct `url` and `password` under [database]";
            return report.problem(&clean_lines(&error.to_string()), Some(remedy));
        }
    }
    let migrated = migrations(database.as_ref(), report).await;
    rights::check(database.as_ref(), place, migrated, report).await;
}

fn absent_file(path: &std::path::Path, report: &mut Report) {
    match path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
        Some(dir) => {
            let make = format!("mkdir -p {}", dir.display());
            report.problem("the folder of the file does not exist", Some(&make));
        }
        None => {
            report
                .note("the file does not exist yet: `hapax migrate` or `hapax run` makes it, with the tables of Hapax");
            report.note("tables of the grants have to be created in it before the first message");
        }
    }
}

/// True if the tables of Hapax are as this version wants them.
async fn migrations(database: &dyn Database, report: &mut Report) -> bool {
    match database.migrate(true).await {
        Ok(pending) if pending.is_empty() => {
            report.fact("hapax tables", "up to date");
            true
        }
        Ok(pending) => {
            let names: Vec<String> =
                pending.iter().map(|one| format!("{:04} {}", one.version, one.description)).collect();
            report.fact("hapax tables", &format!("to be made by `hapax run` or `hapax migrate`: {}", names.join(", ")));
            false
        }
        Err(error) => {
            report
                .problem(&clean_lines(&error.to_string()), Some("`hapax migrate` with a user that may create tables"));
            false
        }
    }
}
