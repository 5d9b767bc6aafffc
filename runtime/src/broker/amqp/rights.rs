//! Whether a user may do what its consumers need, found out without doing it.
//!
//! AMQP has no question for that. But RabbitMQ looks at rights before it looks at anything else in a request, so each
//! right is asked for by a request that cannot succeed, or that changes nothing when it does: 403 (`ACCESS_REFUSED`) means
//! that the right is missing, every other answer that it is there.
//!
//! | right | request | with the right |
//! |---|---|---|
//! | read a queue | consume with a priority that is no number | 406 |
//! | configure a queue | declare it with a time to live that is no number | 406 |
//! | write a queue, read an exchange | unbind what is not bound | done, or 404 |
//! | write an exchange | publish in a transaction, and roll it back | done, or 404 |
//!
//! A refusal closes the channel, and what the broker says of a declaration may close the connection: each request has a
//! channel of its own, and all of them a connection of their own.

use std::collections::BTreeSet;

use lapin::options::{BasicConsumeOptions, BasicPublishOptions, ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, ExchangeKind};

use super::errors::{Failure, code, pattern, quoted};
use super::link::{Address, Live};
use super::values::short;
use crate::broker::{BrokerError, Lack, Need};

/// How often a publication is tried whose refusal came before somebody waited for it.
const PUBLICATIONS: u32 = 20;

/// What no queue is declared, consumed or unbound with.
const NO_NUMBER: &str = "hapax-check";

/// Finds out which needs are not met. Of another server than RabbitMQ nobody knows what it would make of these requests:
/// it is not asked.
pub(super) async fn lacks(live: &Live, address: &Address, needs: &[Need]) -> Result<Vec<Lack>, BrokerError> {
    let mut lacks = Vec::new();
    if live.product().0 != "RabbitMQ" {
        return Ok(lacks);
    }
    let needs: BTreeSet<&Need> = needs.iter().collect();
    for need in &needs {
        match ask(live, need).await {
            Ok(()) => {}
            Err(Problem::Lost(failure)) => return Err(failure.unavailable(&address.server)),
            Err(Problem::Unspeakable(problem)) => {
                lacks.push(Lack { problem, hint: "use a shorter name in the config".to_owned() });
            }
            Err(Problem::Forbidden(text)) => lacks.push(Lack {
                problem: format!("user {:?} may not {need} ({text})", address.user),
                hint: granting(address, &needs),
            }),
            Err(Problem::Missing(text)) => lacks.push(missing(address, need, &text)),
        }
    }
    Ok(lacks)
}

/// Why a need is not met.
enum Problem {
    Lost(Failure),
    Unspeakable(String),
    Forbidden(String),
    Missing(String),
}

impl Problem {
    /// What an answer says about rights; nothing against them, if it is about something else.
    fn of(failure: Failure) -> Result<(), Self> {
        match failure {
            Failure::Refused { code: code::ACCESS_REFUSED, text, .. } if text.contains("exclusive") => Ok(()),
            Failure::Refused { code: code::ACCESS_REFUSED, text, .. } => Err(Self::Forbidden(text)),
            Failure::Refused { code: code::NOT_FOUND, text, .. } => Err(Self::Missing(text)),
            lost @ (Failure::Lost(_) | Failure::Refused { code: code::CONNECTION_FORCED, .. }) => Err(Self::Lost(lost)),
            Failure::Refused { .. } => Ok(()),
        }
    }
}

async fn ask(live: &Live, need: &Need) -> Result<(), Problem> {
    match need {
        // Whether there is a queue is asked elsewhere.
        Need::Consume { queue } => unless_missing(consume(live, name("queue", queue)?).await),
        Need::Create { queue } => unless_missing(create(live, name("queue", queue)?).await),
        Need::Bind { queue, exchange, routing_key } => {
            let (queue, exchange) = (name("queue", queue)?, name("exchange", exchange)?);
            unless_missing(unbind(live, queue, exchange.clone(), name("routing key", routing_key)?).await)?;
            exchange_exists(live, exchange).await
        }
        Need::Publish { exchange, routing_key } => {
            publish(live, name("exchange", exchange)?, name("routing key", routing_key)?).await?;
            match exchange.is_empty() && !routing_key.contains(['*', '#']) {
                // The default exchange takes a message to the queue of that name.
                true => queue_exists(live, name("queue", routing_key)?).await,
                false => Ok(()),
            }
        }
    }
}

fn name(what: &str, name: &str) -> Result<ShortString, Problem> {
    short(&format!("the {what}'s name"), name).map_err(Problem::Unspeakable)
}

fn unless_missing(answer: Result<(), Problem>) -> Result<(), Problem> {
    match answer {
        Err(Problem::Missing(_)) => Ok(()),
        other => other,
    }
}

/// Sends one request on a channel of its own.
async fn on_a_channel<T>(
    live: &Live,
    what: &str,
    request: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
) -> Result<(), Problem> {
    let channel = live.channel().await.map_err(Problem::Lost)?;
    let answer = live.request(what, request(&channel)).await;
    live.finish(channel).await;
    match answer {
        Ok(_) => Ok(()),
        Err(failure) => Problem::of(failure),
    }
}

fn impossible(argument: &str) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert(argument.into(), AMQPValue::LongString(NO_NUMBER.into()));
    arguments
}

async fn consume(live: &Live, queue: ShortString) -> Result<(), Problem> {
    on_a_channel(live, "basic.consume", async |channel| {
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue, NO_NUMBER.into(), options, impossible("x-priority")).await
    })
    .await
}

async fn create(live: &Live, queue: ShortString) -> Result<(), Problem> {
    on_a_channel(live, "queue.declare", async |channel| {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, options, impossible("x-message-ttl")).await
    })
    .await
}

async fn unbind(live: &Live, queue: ShortString, exchange: ShortString, key: ShortString) -> Result<(), Problem> {
    // A binding is known by its arguments too, and nobody has these.
    on_a_channel(live, "queue.unbind", async |channel| {
        channel.queue_unbind(queue, exchange, key, impossible(&format!("hapax-check-{}", uuid::Uuid::new_v4()))).await
    })
    .await
}

/// A publication is not answered; what answers for it is the request behind it. Where the broker is faster, the channel is
/// closed by then, and lapin does not say why: that is asked again.
async fn publish(live: &Live, exchange: ShortString, key: ShortString) -> Result<(), Problem> {
    let mut tries = 0;
    loop {
        let (exchange, key) = (exchange.clone(), key.clone());
        let answer = on_a_channel(live, "tx.rollback", async |channel| {
            channel.tx_select().await?;
            let options = BasicPublishOptions::default();
            channel.basic_publish(exchange, key, options, &[], BasicProperties::default()).await?;
            channel.tx_rollback().await
        });
        tries += 1;
        match answer.await {
            Err(Problem::Lost(_)) if live.is_connected() && tries < PUBLICATIONS => {}
            answer => return answer,
        }
    }
}

/// Needs no right.
async fn exchange_exists(live: &Live, exchange: ShortString) -> Result<(), Problem> {
    on_a_channel(live, "exchange.declare", async |channel| {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(exchange, ExchangeKind::Topic, options, FieldTable::default()).await
    })
    .await
}

/// Needs no right.
async fn queue_exists(live: &Live, queue: ShortString) -> Result<(), Problem> {
    on_a_channel(live, "queue.declare", async |channel| {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(queue, options, FieldTable::default()).await
    })
    .await
}

fn missing(address: &Address, need: &Need, text: &str) -> Lack {
    let vhost = quoted(&address.vhost);
    let (what, create) = match need {
        Need::Publish { exchange, routing_key } if exchange.is_empty() => (
            format!("there is no queue {routing_key:?} to publish to"),
            format!("rabbitmqadmin --vhost={vhost} declare queue name={} durable=true", quoted(routing_key)),
        ),
        Need::Bind { exchange, .. } | Need::Publish { exchange, .. } => (
            format!("there is no exchange {exchange:?}"),
            format!("rabbitmqadmin --vhost={vhost} declare exchange name={} type=topic durable=true", quoted(exchange)),
        ),
        Need::Consume { queue } | Need::Create { queue } => (
            format!("there is no queue {queue:?}"),
            format!("rabbitmqadmin --vhost={vhost} declare queue name={} durable=true", quoted(queue)),
        ),
    };
    let hint = format!("{create}\nor all that is missing at once: `hapax topology --format definitions`");
    Lack { problem: format!("{what} ({text})"), hint }
}

/// The command that grants all of these needs: a user has one pattern for each kind of right, and setting them replaces
/// what was there, so that one command for each need would undo the one before.
fn granting(address: &Address, needs: &BTreeSet<&Need>) -> String {
    let [mut configure, mut write, mut read] = [const { BTreeSet::new() }; 3];
    // What RabbitMQ calls the exchange without a name.
    let exchange_pattern = |exchange: &str| pattern(if exchange.is_empty() { "amq.default" } else { exchange });
    for need in needs {
        match need {
            Need::Consume { queue } => drop(read.insert(pattern(queue))),
            Need::Create { queue } => drop(configure.insert(pattern(queue))),
            Need::Bind { queue, exchange, .. } => {
                write.insert(pattern(queue));
                read.insert(exchange_pattern(exchange));
            }
            Need::Publish { exchange, .. } => drop(write.insert(exchange_pattern(exchange))),
        }
    }
    let joined = |patterns: BTreeSet<String>| quoted(&patterns.into_iter().collect::<Vec<_>>().join("|"));
    let (vhost, user) = (quoted(&address.vhost), quoted(&address.user));
    format!(
        "rabbitmqctl set_permissions -p {vhost} {user} {} {} {}\n\
         (all that this config needs; it replaces what the user has: rabbitmqctl list_user_permissions {user})",
        joined(configure),
        joined(write),
        joined(read),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Settings;

    #[test]
    fn one_command_grants_everything_that_is_needed() {
        let address = Address::parse("amqp://shop:pw@h/%2f", &Settings::default()).unwrap();
        let queue = || "my.q".to_owned();
        let publish = |exchange: &str, key: &str| Need::Publish { exchange: exchange.into(), routing_key: key.into() };
        let needs = [
            Need::Consume { queue: queue() },
            Need::Create { queue: queue() },
            Need::Bind { queue: queue(), exchange: "shop".into(), routing_key: "order.*".into() },
            publish("shop", "stock.*"),
            publish("", "dead"),
        ];
        insta::assert_snapshot!(granting(&address, &needs.iter().collect()), @r"
        rabbitmqctl set_permissions -p / shop '^my\.q$' '^amq\.default$|^my\.q$|^shop$' '^my\.q$|^shop$'
        (all that this config needs; it replaces what the user has: rabbitmqctl list_user_permissions shop)
        ");
    }

    #[test]
    fn only_a_refused_access_is_a_missing_right() {
        let said = |code, text: &str| Problem::of(Failure::Refused { code, text: text.into() });
        assert!(matches!(said(403, "ACCESS_REFUSED - access to queue 'q' refused"), Err(Problem::Forbidden(_))));
        assert!(said(403, "ACCESS_REFUSED - queue 'q' in exclusive use").is_ok());
        assert!(said(406, "PRECONDITION_FAILED - invalid arg 'x-priority'").is_ok());
        assert!(said(405, "RESOURCE_LOCKED").is_ok());
        assert!(matches!(said(404, "NOT_FOUND - no exchange 'x'"), Err(Problem::Missing(_))));
        assert!(matches!(said(320, "CONNECTION_FORCED"), Err(Problem::Lost(_))));
    }
}
