//! `[consumers.NAME]`: one queue, one handler, one scope of message ids. `[defaults]` holds the same keys.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;
use toml::Spanned;
use toml::de::DeValue;

use super::grants::{self, Grants, table_item};
use super::policy::{self, Batch, Limits, LockPolicy, MassFailure, Prefetch, Reuse};
use super::reader::{Field, Problem, Reader, unknown_word};
use super::server::{self, DatabaseConfig};
use crate::broker::{Binding, Declare, QueueSpec};
use crate::identity::{BadRule, IdRule, PartitionRule, SLOTS};
use crate::ledger::database::SessionSettings;
use crate::message::HeaderValue;
use crate::retry::RetryPolicy;
use crate::sabotage::{self, Breach};

/// One consumer, defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct ConsumerConfig {
    /// Its name: the scope of its message ids, in every table.
    pub name: String,
    /// The queue it consumes.
    pub queue: String,
    /// The file of its module.
    pub module: PathBuf,
    /// Where message ids are looked for, in this order; never empty.
    pub message_id: Vec<IdRule>,
    /// What messages are spread over lanes by.
    pub partition_by: Option<PartitionRule>,
    /// Lanes; 1 to 256, and 1 on SQLite.
    pub concurrency: u16,
    /// What its module may do.
    pub grants: Grants,
    /// How the queue comes into being.
    pub declare: Declare,
    /// Arguments of the queue, verbatim.
    pub arguments: BTreeMap<String, HeaderValue>,
    /// Bindings of the queue.
    pub bindings: Vec<Binding>,
    /// Where copies of dead letters are published to.
    pub dead_letter: Option<DeadLetterCopy>,
    /// When failed messages run again.
    pub retry: RetryPolicy,
    /// How much is delivered ahead.
    pub prefetch: Prefetch,
    /// How many messages share a transaction.
    pub batch: Batch,
    /// What one attempt may use.
    pub limits: Limits,
    /// How message ids are locked.
    pub lock: LockPolicy,
    /// A message that crashed its host more often is dead.
    pub max_crashes: u32,
    /// How long completed and discarded messages are remembered.
    pub retention: Duration,
    /// When instances are discarded.
    pub reuse: Reuse,
    /// With more parked rows than this, no more deliveries are taken.
    pub parked_max: u64,
    /// With more outbox rows than this, no more deliveries are taken.
    pub outbox_max: u64,
    /// When failures are taken for an outage; `None` never.
    pub mass_failure: Option<MassFailure>,
    /// When a running row that nobody has locked is given to another runner.
    pub rescue_after: Duration,
    /// Where its ledger is.
    pub database: DatabaseConfig,
}

/// Where copies of dead letters are published to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterCopy {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// The routing key; with the default exchange, the name of a queue.
    pub routing_key: String,
}

impl ConsumerConfig {
    /// What the broker needs to know.
    pub fn queue_spec(&self) -> QueueSpec {
        QueueSpec {
            queue: self.queue.clone(),
            consumer: self.name.clone(),
            declare: self.declare,
            arguments: self.arguments.clone(),
            bindings: self.bindings.clone(),
            prefetch_messages: match sabotage::broken(Breach::PrefetchUnlimited) {
                true => u16::MAX,
                false => self.prefetch.messages,
            },
            prefetch_bytes: self.prefetch.bytes,
            ordered: self.retry.keeps_order(),
        }
    }

    /// What its lanes' connections are set to. A transaction may be idle for one lease: a frozen host's claims are
    /// freed about when its locks are.
    pub fn session_settings(&self) -> SessionSettings {
        SessionSettings {
            lock_timeout: self.limits.sql_lock_time,
            statement_timeout: self.limits.sql_time,
            idle_in_transaction: self.lock.ttl,
        }
    }
}

/// Reads a consumer; in `[defaults]`, nothing is missing. What cannot be read is reported and replaced by a default.
pub(super) fn consumer(reader: &mut Reader<'_>, name: &str, shared: Option<&DatabaseConfig>) -> ConsumerConfig {
    let database = server::consumer_database(reader).or_else(|| shared.cloned());
    let limits = reader.section("limits", policy::limits);
    let batch = reader.section("batch", |reader| policy::batch(reader, limits));
    let concurrency = concurrency(reader, database.as_ref());
    reader.get("isolation", (), isolation);
    ConsumerConfig {
        name: name.to_owned(),
        queue: reader.require("queue", "\"orders\"", Field::name).unwrap_or_default(),
        module: reader.require("module", "\"handler.wasm\"", Field::path).unwrap_or_default(),
        message_id: message_id(reader),
        partition_by: reader.optional("partition_by", |f| rule(f, &PartitionRule::FORMS)),
        concurrency,
        grants: reader.section("grants", grants::grants),
        declare: reader.get("declare", Declare::Passive, |f| f.choice(&DECLARE)),
        arguments: arguments(reader),
        bindings: bindings(reader),
        dead_letter: reader.switch("dead_letter", false, dead_letter).flatten(),
        retry: reader.section("retry", policy::retry),
        prefetch: reader.section("prefetch", |reader| policy::prefetch(reader, concurrency, batch)),
        batch,
        limits,
        lock: reader.section("lock", policy::lock),
        max_crashes: policy::max_crashes(reader),
        retention: policy::retention(reader),
        reuse: policy::reuse(reader),
        parked_max: reader.section("parked", policy::max_rows),
        outbox_max: reader.section("outbox", policy::max_rows),
        mass_failure: policy::mass_failure(reader),
        rescue_after: policy::rescue_after(reader),
        // Without any, an error has been reported, and this is never used.
        database: database.unwrap_or_else(|| DatabaseConfig::Sqlite(PathBuf::new())),
    }
}

const DECLARE: [(&str, Declare); 3] =
    [("passive", Declare::Passive), ("create", Declare::Create), ("none", Declare::None)];

/// SQLite has one writer, and so one lane.
fn concurrency(reader: &mut Reader<'_>, database: Option<&DatabaseConfig>) -> u16 {
    let lanes = reader.get("concurrency", 1, |f| f.integer(1..=u64::from(SLOTS)));
    if lanes > 1 && matches!(database, Some(DatabaseConfig::Sqlite(_))) {
        let problem = Problem::new("SQLite has one writer: one lane is used").label("taken as 1");
        reader.context.warning(reader.place(&["concurrency"]).unwrap_or_default(), problem);
        return 1;
    }
    lanes
}

/// One rule, or an array of them.
fn message_id(reader: &mut Reader<'_>) -> Vec<IdRule> {
    let Some(field) = reader.field("message_id") else { return vec![IdRule::Property] };
    let items = if field.raw().is_some() { Some(vec![field.clone()]) } else { field.check(Field::items) };
    let items = items.unwrap_or_default();
    let rules: Vec<_> = items.iter().map(|item| (item, item.check(|f| rule(f, &IdRule::FORMS)))).collect();
    if items.is_empty() && field.node.get_ref().is_array() {
        let problem = Problem::new("`message_id` names no rule").label("no message would have an id");
        reader.context.error(field.span(), problem.help("[\"property\"] takes the AMQP property message-id"));
    }
    if let Some(at) = rules.iter().position(|(_, rule)| *rule == Some(IdRule::BodyDigest))
        && let Some((after, _)) = rules.get(at + 1)
    {
        let problem = Problem::new("this rule is never reached").label("`body-digest` before it always finds an id");
        reader.context.warning(after.span(), problem);
    }
    rules.into_iter().filter_map(|(_, rule)| rule).collect()
}

fn rule<T: std::str::FromStr<Err = BadRule>>(field: &Field<'_>, forms: &[&str]) -> Result<T, Problem> {
    let text = field.text()?;
    text.parse().map_err(|error: BadRule| match error {
        BadRule::Unknown(_) => unknown_word(&error.to_string(), &text, forms),
        other => Problem::new(other.to_string()),
    })
}

/// There is one level, which claims and fenced transitions are built on. The key is there for whoever looks for it.
fn isolation(field: &Field<'_>) -> Result<(), Problem> {
    match field.text()?.as_str() {
        "repeatable-read" | "serializable" => Err(Problem::new("the only isolation level is `read-committed`")
            .help("claims and transitions are built on it; lock rows with SELECT … FOR UPDATE where that is needed")),
        _ => field.choice(&[("read-committed", ())]),
    }
}

fn dead_letter(reader: &mut Reader<'_>) -> Option<DeadLetterCopy> {
    let exchange = reader.get("exchange", String::new(), Field::name_or_empty);
    let routing_key = reader.require("routing_key", "\"orders.dead\"", Field::name_or_empty)?;
    Some(DeadLetterCopy { exchange, routing_key })
}

fn bindings(reader: &mut Reader<'_>) -> Vec<Binding> {
    let items = reader.optional("bindings", Field::items).unwrap_or_default();
    items.iter().filter_map(|item| table_item(reader, "bindings", item, binding)).flatten().collect()
}

fn binding(reader: &mut Reader<'_>) -> Option<Binding> {
    let exchange = reader.require("exchange", "\"shop\"", Field::name);
    let routing_key = reader.require("routing_key", "\"order.created\"", Field::name_or_empty);
    Some(Binding { exchange: exchange?, routing_key: routing_key? })
}

fn arguments(reader: &mut Reader<'_>) -> BTreeMap<String, HeaderValue> {
    let entries = reader.optional("arguments", Field::entries).unwrap_or_default();
    let argument = |field: Field<'_>| Some((field.name.clone(), field.check(argument)?));
    entries.into_iter().filter_map(|(_, field)| argument(field)).collect()
}

/// Verbatim: variables are not replaced.
fn argument(field: &Field<'_>) -> Result<HeaderValue, Problem> {
    let wrong = || Problem::new(format!("the argument `{}` has a value that AMQP cannot carry", field.name));
    match json(field.node).ok_or_else(wrong)? {
        Json::String(text) => Ok(HeaderValue::Text(text)),
        Json::Bool(flag) => Ok(HeaderValue::Boolean(flag)),
        Json::Number(number) => {
            let float = || number.as_f64().map(HeaderValue::Float);
            number.as_i64().map(HeaderValue::Integer).or_else(float).ok_or_else(wrong)
        }
        nested => Ok(HeaderValue::Json(nested.to_string())),
    }
}

fn json(node: &Spanned<DeValue<'_>>) -> Option<Json> {
    Some(match node.get_ref() {
        DeValue::String(text) => Json::from(text.as_ref()),
        DeValue::Boolean(flag) => Json::from(*flag),
        DeValue::Integer(number) => Json::from(i64::from_str_radix(number.as_str(), number.radix()).ok()?),
        DeValue::Float(number) => Json::Number(serde_json::Number::from_f64(number.as_str().parse().ok()?)?),
        DeValue::Array(items) => Json::Array(items.iter().map(json).collect::<Option<_>>()?),
        DeValue::Table(table) => Json::Object(
            table.iter().map(|(key, node)| Some((key.get_ref().to_string(), json(node)?))).collect::<Option<_>>()?,
        ),
        DeValue::Datetime(_) => return None,
    })
}
