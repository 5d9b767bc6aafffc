//! What a consumer's module may do: grants, limits, and how long an instance lives. Plain values; the config makes them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::guest::sql_guard::{Guard, TableGrants};
use crate::ledger::database::Dialect;

/// Everything about a consumer that its guests' calls depend on. All its lanes share one.
#[derive(Debug)]
pub struct ConsumerContext {
    /// The consumer's name.
    pub consumer: String,
    /// Its queue.
    pub queue: String,
    /// What its module may do.
    pub grants: Grants,
    /// How much of it.
    pub limits: Limits,
    /// How long an instance is kept; none: every message gets a fresh one.
    pub reuse: Option<Reuse>,
    /// How often the lane's connection is asked for a sign of life while guest code runs outside SQL: a third of the
    /// session's idle-in-transaction time-out.
    pub ping_every: Duration,
    /// Checks guest SQL by `grants`, and remembers what it checked.
    pub(crate) guard: Guard,
}

impl ConsumerContext {
    /// Puts a consumer's settings together.
    pub fn new(
        consumer: impl Into<String>,
        queue: impl Into<String>,
        dialect: Dialect,
        grants: Grants,
        limits: Limits,
        reuse: Option<Reuse>,
        ping_every: Duration,
    ) -> Self {
        let guard = Guard::new(dialect, grants.tables.clone(), grants.functions.clone());
        Self { consumer: consumer.into(), queue: queue.into(), grants, limits, reuse, ping_every, guard }
    }
}

/// Capabilities given to a consumer's module; nothing by default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Grants {
    /// Tables, and what may be done to each.
    pub tables: TableGrants,
    /// SQL functions beyond those that are always allowed.
    pub functions: Vec<String>,
    /// Where the outbox may publish.
    pub publish: Vec<PublishGrant>,
    /// Values for `context.config`.
    pub config: ConfigValues,
}

/// Config values of a consumer. They may be secrets, so they never show up in debug output.
#[derive(Clone, Default, PartialEq)]
pub struct ConfigValues(pub BTreeMap<String, String>);

impl fmt::Debug for ConfigValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// In bytes: AMQP has no longer names, and a config refuses them. One that is longer stands for every exchange.
const LONGEST_NAME: usize = 255;

/// An exchange, and the routing keys that may be used there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishGrant {
    /// The exchange's name; empty for the default exchange, where the routing key is a queue.
    pub exchange: String,
    /// A pattern as in an AMQP topic binding: `*` is one word, `#` any number of words, words are separated by dots.
    pub routing_key: String,
}

impl PublishGrant {
    /// Every exchange and every routing key: for a call whose messages nobody publishes.
    pub(crate) fn anywhere() -> Self {
        Self { exchange: "*".repeat(LONGEST_NAME + 1), routing_key: "#".to_owned() }
    }

    /// Whether this grant covers a publication.
    pub fn allows(&self, exchange: &str, routing_key: &str) -> bool {
        (self.exchange == exchange || self.exchange.len() > LONGEST_NAME)
            && topic_matches(&self.routing_key, routing_key)
    }
}

/// Limits of one attempt. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Linear memory of one instance, all its memories together.
    pub memory: u64,
    /// Wall-clock time of one attempt, its statements included.
    pub time: Duration,
    /// Data that one call of the host may hand over, and the guest's answer: [`Self::host_call`].
    pub host_call: u64,
    /// Calls of `execute`, `execute-many` and `query`.
    pub sql_statements: u32,
    /// Length of one statement's text.
    pub sql_text: u64,
    /// Rows of one result, and parameter rows of one `execute-many`.
    pub sql_rows: u64,
    /// Size of one result.
    pub sql_bytes: u64,
    /// Rows that all statements together may change.
    pub sql_rows_affected: u64,
    /// Time of one statement. The database keeps it, by the session's setting; the host waits a little longer, and then
    /// gives the connection up.
    pub sql_time: Duration,
    /// Outbox messages.
    pub outbox_messages: u32,
    /// Outbox messages together, with properties.
    pub outbox_bytes: u64,
    /// Standard output and error together that reach the log.
    pub output: u64,
}

/// RabbitMQ's own limit of a message: 128 MiB by default until 4.0, 16 MiB since.
const LARGEST_MESSAGE: u64 = 128 << 20;

/// What a call of the host hands over beside its payload: names, headers, a statement's text.
const HOST_CALL_ROOM: u64 = 2 << 20;

impl Limits {
    /// What one call of the host has to carry, so that no other limit is out of reach: all that a query may return or
    /// the outbox may hold, or a message, as far as the instance can hold one at all. It bounds what the host allocates
    /// for a guest that passes the same bytes many times over.
    pub fn host_call(memory: u64, sql_bytes: u64, outbox_bytes: u64) -> u64 {
        sql_bytes.max(outbox_bytes).max(memory.min(LARGEST_MESSAGE)).saturating_add(HOST_CALL_ROOM)
    }
}

impl Default for Limits {
    fn default() -> Self {
        let (memory, sql_bytes, outbox_bytes) = (64 << 20, 16 << 20, 16 << 20);
        Self {
            memory,
            time: Duration::from_secs(30),
            host_call: Self::host_call(memory, sql_bytes, outbox_bytes),
            sql_statements: 1_000,
            sql_text: 64 << 10,
            sql_rows: 10_000,
            sql_bytes,
            sql_rows_affected: 100_000,
            sql_time: Duration::from_secs(5),
            outbox_messages: 1_000,
            outbox_bytes,
            output: 64 << 10,
        }
    }
}

/// How long an instance is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reuse {
    /// Calls until it is replaced.
    pub calls: u32,
    /// Bytes by which its linear memory may grow from its start before it is replaced: memory never shrinks.
    pub growth: u64,
}

/// Matches a routing key against a topic pattern, in time proportional to the product of their words: `#.#.#…` costs no
/// more than that.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let words = |text: &'_ str| -> Vec<String> {
        if text.is_empty() { Vec::new() } else { text.split('.').map(str::to_owned).collect() }
    };
    let key = words(key);
    // `reachable[i]`: the pattern so far can match the first i words.
    let mut reachable = vec![false; key.len() + 1];
    reachable[0] = true;
    for word in words(pattern) {
        let before = reachable.clone();
        for i in 0..=key.len() {
            reachable[i] = match word.as_str() {
                "#" => before[..=i].contains(&true),
                "*" => i > 0 && before[i - 1],
                literal => i > 0 && before[i - 1] && key[i - 1] == literal,
            };
        }
    }
    reachable[key.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_keys_match_as_in_a_topic_exchange() {
        for (pattern, key, matches) in [
            ("stock.*", "stock.reduced", true),
            ("stock.*", "stock", false),
            ("stock.*", "stock.a.b", false),
            ("stock.#", "stock", true),
            ("stock.#", "stock.a.b", true),
            ("#", "", true),
            ("*", "", false),
            ("", "", true),
            ("", "a", false),
            ("#.b.#", "a.b.c", true),
            ("#.b.#", "a.c", false),
            ("*.b", "a.b", true),
            ("a..c", "a..c", true),
            ("a.*.c", "a..c", true),
            ("stock.reduced", "stock.Reduced", false),
        ] {
            assert_eq!(topic_matches(pattern, key), matches, "{pattern} and {key}");
        }
    }

    #[test]
    fn a_pattern_of_many_hashes_is_matched_in_no_time() {
        let pattern = vec!["#"; 100].join(".") + ".x";
        assert!(!topic_matches(&pattern, &vec!["a"; 100].join(".")));
    }

    #[test]
    fn config_values_do_not_show_in_debug_output() {
        let values = ConfigValues(BTreeMap::from([("api-key".to_owned(), "s3cret".to_owned())]));
        assert_eq!(format!("{values:?}"), r#"{"api-key"}"#);
    }
}
