//! Messages that came back often, and what a broker may make of that.
//!
//! A quorum queue counts how often a message came back. Past a limit it drops the message, or dead-letters it behind our
//! back. The limit may stand in a policy, where AMQP cannot see it; the count stands in each delivery.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

use super::errors::{pattern, quoted};
use super::link::{Address, Live};
use crate::message::{HeaderValue, Properties};

/// Half of the limit that RabbitMQ has by default since 4.0: early enough to do something about it.
const OFTEN: i64 = 10;

/// Warns once for each queue. What it remembers is bounded by the config: it has so many queues.
#[derive(Default)]
pub(super) struct Comebacks {
    told: Mutex<HashSet<String>>,
}

impl Comebacks {
    /// Looks at a delivery from a queue.
    pub(super) fn look(&self, properties: &Properties, queue: &str, address: &Address, live: &Live) {
        let Some(count) = often(properties) else { return };
        if self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned()) {
            let advice = advice(&live.product().1, &address.vhost, queue);
            warn!(queue, count, "a message came back often: with a delivery limit the broker would drop it. {advice}");
        }
    }
}

/// How often a message came back, if that is often.
fn often(properties: &Properties) -> Option<i64> {
    match properties.header("x-delivery-count") {
        Some(HeaderValue::Integer(count)) if *count > OFTEN => Some(*count),
        _ => None,
    }
}

/// What lifts a limit. Before RabbitMQ 4.0 there was none by default, and `-1` dropped a message at its first return.
fn advice(version: &str, vhost: &str, queue: &str) -> String {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    let vhost = quoted(vhost);
    if major.is_some_and(|major| major >= 4) {
        let pattern = quoted(&pattern(queue));
        return format!(
            "To lift it: rabbitmqctl set_policy -p {vhost} --apply-to quorum_queues --priority 100 \
             hapax-no-delivery-limit {pattern} '{{\"delivery-limit\": -1}}' (one policy applies to a queue: repeat in it \
             what the present one says; rabbitmqctl list_policies -p {vhost})"
        );
    }
    format!("If a policy sets `delivery-limit`, set it anew without: rabbitmqctl list_policies -p {vhost}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_ten_returns_are_often() {
        let counted = |value| {
            let headers = vec![("x-delivery-count".to_owned(), value)];
            often(&Properties { headers, ..Properties::default() })
        };
        assert_eq!(counted(HeaderValue::Integer(11)), Some(11));
        assert_eq!(counted(HeaderValue::Integer(10)), None);
        assert_eq!(counted(HeaderValue::Text("11".to_owned())), None);
        assert_eq!(often(&Properties::default()), None);
    }

    #[test]
    fn the_command_that_lifts_a_limit_fits_the_server() {
        insta::assert_snapshot!(advice("4.1.0", "/", "my.q"), @r#"To lift it: rabbitmqctl set_policy -p / --apply-to quorum_queues --priority 100 hapax-no-delivery-limit '^my\.q$' '{"delivery-limit": -1}' (one policy applies to a queue: repeat in it what the present one says; rabbitmqctl list_policies -p /)"#);
        insta::assert_snapshot!(advice("3.10.8", "/", "my.q"), @"If a policy sets `delivery-limit`, set it anew without: rabbitmqctl list_policies -p /");
    }
}
