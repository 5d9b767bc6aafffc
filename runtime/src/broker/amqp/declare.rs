//! Queues brought into being, or checked, and what to say when the broker disagrees.

use std::collections::BTreeMap;

use lapin::Channel;
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tracing::warn;

use super::errors::{Failure, code, pattern, quoted};
use super::link::{Address, Live};
use super::values::{short, table_to_amqp};
use crate::broker::{Binding, BrokerError, Declare, QueueSpec};
use crate::message::HeaderValue;

const DELIVERY_LIMIT: &str = "x-delivery-limit";

/// Does what `spec.declare` says, on a channel of its own: a refusal closes it.
pub(super) async fn declare(live: &Live, address: &Address, spec: &QueueSpec) -> Result<(), BrokerError> {
    match spec.declare {
        Declare::None => Ok(()),
        Declare::Passive => {
            let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = queue_declare(live, spec, options, FieldTable::default()).await;
            let channel = declared.map_err(|error| error.explain(address, spec, Asked::Exists))?;
            live.finish(channel).await;
            Ok(())
        }
        Declare::Create => {
            let channel = create(live, address, spec).await?;
            for binding in &spec.bindings {
                bind(live, &channel, spec, binding)
                    .await
                    .map_err(|error| error.explain(address, spec, Asked::Bound(binding)))?;
            }
            live.finish(channel).await;
            Ok(())
        }
    }
}

/// Declares the queue durable with the given arguments; the channel is good for what comes next.
async fn create(live: &Live, address: &Address, spec: &QueueSpec) -> Result<Channel, BrokerError> {
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let (product, version) = live.product();
    let arguments = with_delivery_limit(&spec.arguments, &product, &version);
    let limited = arguments.len() > spec.arguments.len();
    let explain = |error: Problem| error.explain(address, spec, Asked::Created);
    let table = |arguments: &BTreeMap<String, HeaderValue>| {
        let entries = arguments.iter().map(|(name, value)| (name.as_str(), value));
        table_to_amqp(entries).map_err(|reason| explain(Problem::Unspeakable(reason)))
    };
    match queue_declare(live, spec, durable, table(&arguments)?).await {
        Err(Problem::Server(Failure::Refused { code: code::PRECONDITION_FAILED, text, .. }))
            if limited && text.contains(DELIVERY_LIMIT) =>
        {
            if !lacks_the_argument(&text) {
                warn!(
                    queue = %spec.queue,
                    "the queue exists with a delivery limit: the broker drops a message that comes back too often",
                );
            }
            queue_declare(live, spec, durable, table(&spec.arguments)?).await.map_err(explain)
        }
        other => other.map_err(explain),
    }
}

async fn queue_declare(
    live: &Live,
    spec: &QueueSpec,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<Channel, Problem> {
    let queue = short("the queue's name", &spec.queue).map_err(Problem::Unspeakable)?;
    let channel = live.channel().await?;
    live.request("queue.declare", channel.queue_declare(queue, options, arguments)).await?;
    Ok(channel)
}

async fn bind(live: &Live, channel: &Channel, spec: &QueueSpec, binding: &Binding) -> Result<(), Problem> {
    let queue = short("the queue's name", &spec.queue).map_err(Problem::Unspeakable)?;
    let exchange = short("the exchange's name", &binding.exchange).map_err(Problem::Unspeakable)?;
    let key = short("the routing key", &binding.routing_key).map_err(Problem::Unspeakable)?;
    let options = QueueBindOptions::default();
    let request = channel.queue_bind(queue, exchange, key, options, FieldTable::default());
    live.request("queue.bind", request).await?;
    Ok(())
}

/// Since RabbitMQ 4.0 a quorum queue drops a message at its 20th return unless it is told otherwise, and a host that
/// crashes or pauses returns messages. `-1` means no limit there; before 4.0 it meant a limit that is always exceeded.
/// Without a type the virtual host's default says what a queue becomes: the argument is tried, and left out where the
/// broker answers that such a queue has none.
fn with_delivery_limit(
    arguments: &BTreeMap<String, HeaderValue>,
    product: &str,
    version: &str,
) -> BTreeMap<String, HeaderValue> {
    let mut arguments = arguments.clone();
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let may_be_quorum = match arguments.get("x-queue-type") {
        None => true,
        Some(kind) => *kind == HeaderValue::Text("quorum".to_owned()),
    };
    if product == "RabbitMQ" && major.is_some_and(|major| major >= 4) && may_be_quorum {
        arguments.entry(DELIVERY_LIMIT.to_owned()).or_insert(HeaderValue::Integer(-1));
    }
    arguments
}

/// True if the broker's objection to the delivery limit is that queues of this type have none.
fn lacks_the_argument(objection: &str) -> bool {
    objection.contains("invalid arg")
}

/// What stood in the way.
#[derive(Debug)]
pub(super) enum Problem {
    /// The server's answer, or that there was none.
    Server(Failure),
    /// AMQP cannot even say it.
    Unspeakable(String),
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self::Server(failure)
    }
}

/// What was asked of the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked<'a> {
    /// Does the queue exist?
    Exists,
    /// Create it.
    Created,
    /// Bind it.
    Bound(&'a Binding),
    /// Deliver from it.
    Consumed,
}

impl Problem {
    /// Says what happened, where, and what to do about it.
    pub(super) fn explain(self, address: &Address, spec: &QueueSpec, asked: Asked<'_>) -> BrokerError {
        let (reason, hint) = match self {
            Self::Unspeakable(reason) => (reason, "use a shorter name in the config".to_owned()),
            Self::Server(failure @ Failure::Lost(_)) => return failure.unavailable(&address.server),
            Self::Server(Failure::Refused { code, text, .. }) => match (code, asked) {
                (code::CONNECTION_FORCED, _) => {
                    return BrokerError::Unavailable { server: address.server.clone(), reason: text };
                }
                (code::NOT_FOUND, Asked::Bound(binding)) => missing_exchange(address, binding, &text),
                (code::NOT_FOUND, _) => missing_queue(address, spec, &text),
                (code::ACCESS_REFUSED, Asked::Consumed) if text.contains("exclusive") => in_exclusive_use(&text),
                (code::RESOURCE_LOCKED, _) => in_exclusive_use(&text),
                (code::ACCESS_REFUSED, _) => no_permission(address, spec, asked, &text),
                (code::PRECONDITION_FAILED, Asked::Created) => other_arguments(address, spec, &text),
                _ => (
                    format!("the broker refused it: {text}"),
                    "the broker's own log says more; `arguments` is passed to it as it stands".to_owned(),
                ),
            },
        };
        BrokerError::Queue { queue: spec.queue.clone(), reason, hint }
    }
}

fn missing_queue(address: &Address, spec: &QueueSpec, text: &str) -> (String, String) {
    let reason = format!(
        "the config expects it in virtual host {:?} of {}, where it does not exist ({text})",
        address.vhost, address.server
    );
    let hint = format!(
        "set `declare = \"create\"`, or create it: rabbitmqadmin --vhost={} declare queue name={} durable=true",
        quoted(&address.vhost),
        quoted(&spec.queue)
    );
    (reason, hint)
}

fn missing_exchange(address: &Address, binding: &Binding, text: &str) -> (String, String) {
    let reason = format!(
        "the config binds it to exchange {:?}, which does not exist in virtual host {:?} ({text})",
        binding.exchange, address.vhost
    );
    let hint = format!(
        "correct `bindings`, or create it: rabbitmqadmin --vhost={} declare exchange name={} type=topic durable=true",
        quoted(&address.vhost),
        quoted(&binding.exchange)
    );
    (reason, hint)
}

fn in_exclusive_use(text: &str) -> (String, String) {
    let reason = format!("another connection holds it for itself ({text})");
    (reason, "stop the other consumer, or have it consume without `exclusive`".to_owned())
}

fn other_arguments(address: &Address, spec: &QueueSpec, text: &str) -> (String, String) {
    let arguments: Vec<String> = spec.arguments.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
    let reason = format!(
        "the config declares it durable with arguments {{ {} }}; it exists otherwise ({text})",
        arguments.join(", ")
    );
    let hint = format!(
        "set `declare = \"passive\"` to consume it as it is, change `arguments`, or, if it may be deleted: \
         rabbitmqctl delete_queue --if-empty -p {} {}",
        quoted(&address.vhost),
        quoted(&spec.queue)
    );
    (reason, hint)
}

fn no_permission(address: &Address, spec: &QueueSpec, asked: Asked<'_>, text: &str) -> (String, String) {
    let (right, [configure, write, read]) = match asked {
        Asked::Exists | Asked::Created => ("configure", [pattern(&spec.queue), String::new(), pattern(&spec.queue)]),
        Asked::Bound(binding) => (
            "write the queue and read the exchange",
            [
                pattern(&spec.queue),
                pattern(&spec.queue),
                format!("{}|{}", pattern(&spec.queue), pattern(&binding.exchange)),
            ],
        ),
        Asked::Consumed => ("read", [String::new(), String::new(), pattern(&spec.queue)]),
    };
    let reason = format!("user {:?} lacks the right to {right} ({text})", address.user);
    let hint = format!(
        "rabbitmqctl set_permissions -p {vhost} {user} {} {} {} (this replaces the user's patterns to configure, \
         write and read; the present ones: rabbitmqctl list_user_permissions {user})",
        quoted(&configure),
        quoted(&write),
        quoted(&read),
        vhost = quoted(&address.vhost),
        user = quoted(&address.user),
    );
    (reason, hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Settings;

    fn explained(code: u16, asked: Asked<'_>) -> String {
        let address = Address::parse("amqp://shop:pw@h/%2f", &Settings::default()).unwrap();
        let spec = QueueSpec {
            queue: "q.1".into(),
            consumer: "c".into(),
            declare: Declare::Create,
            arguments: BTreeMap::from([("x-max-length".to_owned(), HeaderValue::Integer(3))]),
            bindings: Vec::new(),
            prefetch_messages: 1,
            prefetch_bytes: 1,
            ordered: false,
        };
        let failure = Failure::Refused { code, text: "SAID".into() };
        match Problem::from(failure).explain(&address, &spec, asked) {
            BrokerError::Queue { reason, hint, .. } => format!("{reason}\n{hint}"),
            other => other.to_string(),
        }
    }

    #[test]
    fn every_refusal_names_both_sides_and_the_command_that_mends_it() {
        let binding = Binding { exchange: "shop".into(), routing_key: "k".into() };
        insta::assert_snapshot!(explained(404, Asked::Exists), @r#"
        the config expects it in virtual host "/" of amqp://h:5672/%2f, where it does not exist (SAID)
        set `declare = "create"`, or create it: rabbitmqadmin --vhost=/ declare queue name=q.1 durable=true
        "#);
        insta::assert_snapshot!(explained(404, Asked::Bound(&binding)), @r#"
        the config binds it to exchange "shop", which does not exist in virtual host "/" (SAID)
        correct `bindings`, or create it: rabbitmqadmin --vhost=/ declare exchange name=shop type=topic durable=true
        "#);
        insta::assert_snapshot!(explained(406, Asked::Created), @r#"
        the config declares it durable with arguments { x-max-length = Integer(3) }; it exists otherwise (SAID)
        set `declare = "passive"` to consume it as it is, change `arguments`, or, if it may be deleted: rabbitmqctl delete_queue --if-empty -p / q.1
        "#);
        insta::assert_snapshot!(explained(403, Asked::Consumed), @r#"
        user "shop" lacks the right to read (SAID)
        rabbitmqctl set_permissions -p / shop '' '' '^q\.1$' (this replaces the user's patterns to configure, write and read; the present ones: rabbitmqctl list_user_permissions shop)
        "#);
        insta::assert_snapshot!(explained(320, Asked::Exists), @"amqp://h:5672/%2f: SAID");
    }

    #[test]
    fn what_may_become_a_quorum_queue_of_rabbitmq_4_or_later_gets_an_unlimited_delivery_limit() {
        let kind = |kind: &str| BTreeMap::from([("x-queue-type".to_owned(), HeaderValue::Text(kind.into()))]);
        let limit = |arguments: &BTreeMap<String, HeaderValue>, version: &str| {
            with_delivery_limit(arguments, "RabbitMQ", version).get(DELIVERY_LIMIT).cloned()
        };
        let quorum = kind("quorum");
        assert_eq!(limit(&quorum, "4.1.2"), Some(HeaderValue::Integer(-1)));
        assert_eq!(limit(&quorum, "3.10.8"), None);
        assert_eq!(limit(&quorum, ""), None);
        assert_eq!(limit(&BTreeMap::new(), "4.1.2"), Some(HeaderValue::Integer(-1)), "by the virtual host's default");
        assert_eq!(limit(&BTreeMap::new(), "3.13.0"), None);
        assert_eq!(limit(&kind("classic"), "4.1.2"), None);
        assert_eq!(limit(&kind("stream"), "4.1.2"), None);
        let mut own = quorum;
        own.insert(DELIVERY_LIMIT.to_owned(), HeaderValue::Integer(5));
        assert_eq!(limit(&own, "4.1.2"), Some(HeaderValue::Integer(5)));
    }

    #[test]
    fn a_queue_without_delivery_limits_is_told_from_one_with_another() {
        let classic = "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'q' in vhost '/' of queue type \
                       rabbit_classic_queue";
        let other = "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the \
                     value '-1' of type 'signedint' but current is none";
        assert!(lacks_the_argument(classic) && !lacks_the_argument(other));
    }
}
