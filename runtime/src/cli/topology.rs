//! `hapax topology`: what the broker has to have for the consumers of a config.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::{Value as Json, json};

use super::output::say;
use super::{ConfigArg, USAGE};
use crate::broker::Declare;
use crate::config::{BrokerConfig, Config, ConsumerConfig};
use crate::message::HeaderValue;

pub(super) const HELP: &str = "\
Examples:
  hapax topology -c hapax.toml
  hapax topology -c hapax.toml --format definitions > definitions.json
  rabbitmqctl import_definitions definitions.json

Definitions hold every queue, exchange and binding that the config needs, those with declare = \"passive\" too: import \
leaves what exists as it is. Exchanges become durable topic exchanges, since a config does not say what they are.

Exit codes: 0 printed, 2 the config has errors.";

/// Show which queues, exchanges and bindings the config needs, and who makes them
///
/// Queues of consumers with declare = "create" are declared by `hapax run`, with their arguments and bindings. All else
/// must be there: exchanges of bindings and of grants to publish, and queues for copies of dead letters.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For `rabbitmqctl import_definitions`, in JSON
    Definitions,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let topology = Topology::of(&config);
    match args.format {
        Format::Text => say!("{}", topology.text(matches!(config.broker, BrokerConfig::Embedded(_))))?,
        Format::Definitions => say!("{:#}", topology.definitions(&virtual_host(&config.broker)))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a broker has to have.
#[derive(Debug, Default)]
struct Topology<'c> {
    queues: BTreeMap<&'c str, Queue<'c>>,
    /// Exchanges that are not the default one.
    exchanges: BTreeMap<&'c str, Exchange>,
}

#[derive(Debug, Default)]
struct Exchange {
    /// A queue that is declared is bound to it, which creates it on a broker that does that.
    bound: bool,
    needed: Vec<String>,
}

#[derive(Debug, Default)]
struct Queue<'c> {
    /// The consumer that declares it.
    made_by: Option<&'c ConsumerConfig>,
    needed: Vec<String>,
}

impl<'c> Topology<'c> {
    fn of(config: &'c Config) -> Self {
        let mut topology = Self::default();
        for consumer in &config.consumers {
            topology.add(consumer);
        }
        topology
    }

    fn add(&mut self, consumer: &'c ConsumerConfig) {
        let name = &consumer.name;
        let queue = self.queues.entry(&consumer.queue).or_default();
        queue.needed.push(format!("consumed by {name}"));
        if consumer.declare == Declare::Create {
            queue.made_by = Some(consumer);
            for binding in &consumer.bindings {
                let why = format!("{name} binds its queue to it ({})", shown(&binding.routing_key));
                self.exchange(&binding.exchange, why);
                if let Some(exchange) = self.exchanges.get_mut(binding.exchange.as_str()) {
                    exchange.bound = true;
                }
            }
        }
        for grant in &consumer.grants.publish {
            let key = &grant.routing_key;
            match grant.exchange.as_str() {
                "" if key.contains(['*', '#']) => {}
                "" => self.queue(key, format!("{name} may publish to it")),
                exchange => self.exchange(exchange, format!("{name} may publish to it ({})", shown(key))),
            }
        }
        if let Some(copy) = &consumer.dead_letter {
            match copy.exchange.as_str() {
                "" => self.queue(&copy.routing_key, format!("takes copies of dead letters of {name}")),
                exchange => {
                    let why = format!("takes copies of dead letters of {name} ({})", shown(&copy.routing_key));
                    self.exchange(exchange, why);
                }
            }
        }
    }

    fn queue(&mut self, name: &'c str, why: String) {
        self.queues.entry(name).or_default().needed.push(why);
    }

    fn exchange(&mut self, name: &'c str, why: String) {
        if !name.is_empty() {
            self.exchanges.entry(name).or_default().needed.push(why);
        }
    }

    /// For people. The embedded broker creates exchanges that bindings name; RabbitMQ's belong to others.
    fn text(&self, embedded: bool) -> String {
        let mut lines = Vec::new();
        for (name, queue) in &self.queues {
            let who = match queue.made_by {
                Some(consumer) => format!("`hapax run` declares it for {}, durable", consumer.name),
                None => "must exist".to_owned(),
            };
            lines.push(format!("queue {}: {who}", shown(name)));
            lines.extend(queue.needed.iter().map(|why| format!("  {why}")));
            if let Some(consumer) = queue.made_by {
                let arguments = consumer.arguments.iter();
                lines.extend(arguments.map(|(name, value)| format!("  argument {name} = {}", plain(value))));
                lines.extend(consumer.bindings.iter().map(|binding| {
                    format!("  bound to exchange {} with {}", shown(&binding.exchange), shown(&binding.routing_key))
                }));
            }
        }
        for (name, exchange) in &self.exchanges {
            let who = match embedded && exchange.bound {
                true => "`hapax run` makes it with the binding",
                false => "must exist",
            };
            lines.push(format!("exchange {}: {who}", shown(name)));
            lines.extend(exchange.needed.iter().map(|why| format!("  {why}")));
        }
        if lines.is_empty() {
            lines.push("nothing: the config has no consumer".to_owned());
        }
        lines.join("\n")
    }

    /// As RabbitMQ imports it.
    fn definitions(&self, vhost: &str) -> Json {
        let queues = self.queues.iter().map(|(name, queue)| {
            let arguments = queue.made_by.map(|consumer| &consumer.arguments).into_iter().flatten();
            let arguments: serde_json::Map<String, Json> =
                arguments.map(|(name, value)| (name.clone(), plain(value))).collect();
            json!({ "name": name, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": arguments })
        });
        let exchanges = self.exchanges.keys().filter(|name| !name.starts_with("amq.")).map(|name| {
            json!({
                "name": name, "vhost": vhost, "type": "topic",
                "durable": true, "auto_delete": false, "internal": false, "arguments": {},
            })
        });
        let bound = self.queues.values().filter_map(|queue| queue.made_by);
        let bindings = bound.flat_map(|consumer| {
            consumer.bindings.iter().map(|binding| {
                json!({
                    "source": binding.exchange, "vhost": vhost, "destination": consumer.queue,
                    "destination_type": "queue", "routing_key": binding.routing_key, "arguments": {},
                })
            })
        });
        json!({
            "queues": queues.collect::<Vec<_>>(),
            "exchanges": exchanges.collect::<Vec<_>>(),
            "bindings": bindings.collect::<Vec<_>>(),
        })
    }
}

fn shown(name: &str) -> String {
    format!("\"{}\"", super::output::clean(name))
}

/// An argument as JSON has it.
fn plain(value: &HeaderValue) -> Json {
    match value {
        HeaderValue::Text(text) | HeaderValue::Decimal(text) => json!(text),
        HeaderValue::Integer(number) => json!(number),
        HeaderValue::Timestamp(seconds) => json!(seconds),
        HeaderValue::Float(number) => json!(number),
        HeaderValue::Boolean(flag) => json!(flag),
        HeaderValue::Json(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        HeaderValue::Null | HeaderValue::Bytes(_) => Json::Null,
    }
}

/// What the address of an AMQP broker names: `/%2f` and no path at all are `/`.
fn virtual_host(broker: &BrokerConfig) -> String {
    let BrokerConfig::Amqp(url) = broker else { return "/".to_owned() };
    match url.url().path().strip_prefix('/').unwrap_or_default() {
        "" => "/".to_owned(),
        path => percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned(),
    }
}
