//! What no single key shows: values that do not go together.

use std::ops::Range;
use std::time::Duration;

use super::consumer::ConsumerConfig;
use super::reader::{Problem, Reader};
use super::server::{BrokerConfig, DatabaseConfig};
use crate::broker::Declare;
use crate::retry::RetryMode;

/// Longest consumer name: it is part of every key.
const MAX_NAME_BYTES: usize = 64;

/// RabbitMQ takes a delivery back that is not settled within its `consumer_timeout`, 30 minutes by default.
const MAX_UNSETTLED: Duration = Duration::from_secs(25 * 60);

/// Checks a consumer's name.
pub(super) fn name(name: &str) -> Result<(), Problem> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(allowed) {
        return Ok(());
    }
    let what = "1 to 64 characters, of which each is a letter a-z or A-Z, a digit, `-`, `_` or `.`";
    Err(Problem::new("not a name for a consumer").help(what))
}

/// Checks one consumer's values against each other. A default never conflicts with what is written, so that a problem
/// is always at one of the keys that cause it.
pub(super) fn consumer(reader: &Reader<'_>, config: &ConsumerConfig, broker: Option<&BrokerConfig>) {
    lanes(reader, config);
    retry(reader, config);
    times(reader, config, broker);
    sizes(reader, config);
    queue(reader, config);
}

fn warn(reader: &Reader<'_>, span: Option<Range<usize>>, problem: Problem) {
    if let Some(span) = span {
        reader.context.warning(span, problem);
    }
}

fn error(reader: &Reader<'_>, span: Option<Range<usize>>, problem: Problem) {
    if let Some(span) = span {
        reader.context.error(span, problem);
    }
}

fn lanes(reader: &Reader<'_>, config: &ConsumerConfig) {
    if config.concurrency > 1 && config.partition_by.is_none() {
        let problem = Problem::new("several lanes without `partition_by`")
            .label("transactions of different lanes will block each other")
            .help("name the key of the row that the handler changes, e.g. partition_by = \"json:/order_id\"; or use one lane and a larger batch.max_messages");
        warn(reader, reader.place(&["concurrency"]), problem);
    }
}

fn retry(reader: &Reader<'_>, config: &ConsumerConfig) {
    let retry = &config.retry;
    if retry.initial_interval > retry.max_interval {
        let place = reader.place(&["retry", "initial_interval"]).or_else(|| reader.place(&["retry", "max_interval"]));
        let most = humantime::format_duration(retry.max_interval);
        let first = humantime::format_duration(retry.initial_interval);
        let problem = Problem::new("the first retry interval exceeds the longest one")
            .label(format!("initial_interval is {first}, max_interval {most}"));
        error(reader, place, problem);
    }
    if retry.mode == RetryMode::Blocking && retry.max_interval > MAX_UNSETTLED {
        let problem = Problem::new("blocking retry holds deliveries longer than brokers allow")
            .help("RabbitMQ takes them back after 30 minutes; use max_interval of 25m or less, or mode = \"delayed\"");
        warn(reader, reader.place(&["retry", "max_interval"]), problem);
    }
}

fn times(reader: &Reader<'_>, config: &ConsumerConfig, broker: Option<&BrokerConfig>) {
    let (limits, batch) = (&config.limits, &config.batch);
    if batch.max_time > limits.time {
        let problem = Problem::new("`batch.max_time` exceeds `limits.time`")
            .help("one message may take less time than the batch may wait for it; raise limits.time or lower max_time");
        warn(reader, reader.place(&["batch", "max_time"]), problem);
    }
    if limits.sql_time > limits.time {
        let problem = Problem::new("`limits.sql_time` exceeds `limits.time`")
            .label("the attempt ends before the statement would");
        warn(reader, reader.place(&["limits", "sql_time"]), problem);
    }
    if limits.sql_lock_time > limits.sql_time {
        let problem = Problem::new("`limits.sql_lock_time` exceeds `limits.sql_time`")
            .label("the statement ends before its wait for a lock would");
        warn(reader, reader.place(&["limits", "sql_lock_time"]), problem);
    }
    if config.lock.wait >= config.lock.ttl {
        let problem = Problem::new("`lock.wait` is no shorter than `lock.ttl`")
            .help("a delivery would wait for a whole lease; it is deferred after `lock.wait` and costs nothing then");
        warn(reader, reader.place(&["lock", "wait"]).or_else(|| reader.place(&["lock", "ttl"])), problem);
    }
    if batch.max_time + limits.time > MAX_UNSETTLED && matches!(broker, Some(BrokerConfig::Amqp(_))) {
        let problem = Problem::new("an attempt may take longer than brokers wait for an acknowledgement")
            .help("RabbitMQ takes a delivery back after 30 minutes, unless its consumer_timeout is raised");
        warn(reader, reader.place(&["limits", "time"]), problem);
    }
    if config.retention < Duration::from_secs(3600) {
        let problem = Problem::new("messages are forgotten within the hour")
            .label("a duplicate that comes later is handled again");
        warn(reader, reader.place(&["retention"]), problem);
    }
}

fn sizes(reader: &Reader<'_>, config: &ConsumerConfig) {
    if config.prefetch.messages < config.batch.max_messages {
        let problem = Problem::new("`prefetch.messages` is smaller than a batch")
            .label(format!("batches of {} are never full", config.batch.max_messages));
        warn(reader, reader.place(&["prefetch", "messages"]), problem);
    }
    if config.reuse.memory >= config.limits.memory {
        let problem = Problem::new("`reuse.memory` is never reached")
            .label("no instance can grow by that much within `limits.memory`");
        warn(reader, reader.place(&["reuse", "memory"]), problem);
    }
}

fn queue(reader: &Reader<'_>, config: &ConsumerConfig) {
    if config.declare == Declare::Create && config.queue.starts_with("amq.") {
        let problem = Problem::new("queues named `amq.…` belong to the broker and cannot be created");
        error(reader, reader.place(&["queue"]), problem);
    }
    if let Some(copy) = &config.dead_letter
        && copy.exchange.is_empty()
        && copy.routing_key == config.queue
    {
        let problem = Problem::new("dead letters would go back to the queue they came from")
            .label("this is the consumer's own queue");
        error(reader, reader.place(&["dead_letter", "routing_key"]), problem);
    }
    for (table, _) in config.grants.tables.iter().filter(|(_, verbs)| verbs.is_empty()) {
        let problem = Problem::new(format!("nothing is granted on `{table}`")).label("no verb");
        warn(reader, reader.place(&["grants", "tables", table]), problem);
    }
}

/// Checks consumers against each other, each with the place of its queue, and against the broker.
pub(super) fn consumers(
    reader: &Reader<'_>,
    consumers: &[(ConsumerConfig, Range<usize>)],
    broker: Option<&BrokerConfig>,
) {
    if let Some(BrokerConfig::Embedded(file)) = broker
        && consumers.iter().any(|(c, _)| matches!(&c.database, DatabaseConfig::Sqlite(ledger) if ledger == file))
    {
        let problem = Problem::new("broker and ledger are the same file").label("each needs a file of its own");
        error(reader, reader.place(&["broker", "url"]), problem);
    }
    for (index, (later, place)) in consumers.iter().enumerate() {
        let Some((earlier, _)) = consumers[..index].iter().find(|(c, _)| !c.queue.is_empty() && c.queue == later.queue)
        else {
            continue;
        };
        let problem = Problem::new(format!("two consumers share the queue `{}`", later.queue))
            .label(format!("`{}` consumes it too", earlier.name))
            .help(
                "each message goes to one of them, and they do not share message ids; for a copy each, bind two queues",
            );
        reader.context.warning(place.clone(), problem);
    }
}
