//! Hapax's config: what a user would write, and nothing else.

use std::fmt::Write as _;
use std::path::Path;

use super::Hapax;
use crate::stage::{Place, TOLD_EXCHANGE};
use crate::workload::Shape;

/// One consumer of a config.
pub(crate) struct Consumer<'a> {
    /// Its name, which is the scope of message ids.
    pub(crate) name: &'a str,
    pub(crate) queue: &'a str,
    pub(crate) module: &'a Path,
    pub(crate) hapax: &'a Hapax,
    pub(crate) shape: Shape,
}

/// The whole config. Locks are in Redis if the first consumer wants them there.
pub(crate) fn hapax_toml(place: &Place, consumers: &[Consumer<'_>]) -> String {
    let redis = consumers.first().is_some_and(|consumer| consumer.hapax.redis);
    let lock = if redis { place.locks.url() } else { "local:" };
    let mut text = format!(
        "[broker]\nurl = {}\n[lock]\nurl = {}\n[database]\nurl = {}\n[log]\nlevel = \"warn\"\n",
        quoted(place.vhost.url()),
        quoted(lock),
        quoted(&place.database),
    );
    for consumer in consumers {
        text.push_str(&consumer.toml());
    }
    text
}

impl Consumer<'_> {
    fn toml(&self) -> String {
        let Hapax { lanes, batch, partitioned, ahead, prefetch, retention, .. } = self.hapax;
        let waits = if *ahead { "" } else { ", run_ahead = false" };
        let mut text = format!(
            "[consumers.{}]\nqueue = {}\nmodule = {}\nconcurrency = {lanes}\nbatch = {{ max_messages = {batch}{waits} }}\n",
            self.name,
            quoted(self.queue),
            quoted(&self.module.to_string_lossy()),
        );
        if *partitioned {
            text.push_str("partition_by = \"json:/goods_id\"\n");
        }
        if let Some(messages) = prefetch {
            let _ = writeln!(text, "prefetch = {{ messages = {messages} }}");
        }
        if let Some(retention) = retention {
            let _ = writeln!(text, "retention = \"{retention}\"");
        }
        if self.shape.failing > 0 {
            // Always the same delay: what is measured is the retry, not chance.
            text.push_str(
                "retry = { initial_interval = \"200ms\", multiplier = 1.0, jitter = 0.0, max_attempts = 5 }\n",
            );
        }
        let publish = match self.shape.told {
            true => format!(", publish = [{{ exchange = \"{TOLD_EXCHANGE}\", routing_key = \"stock.reduced\" }}]"),
            false => String::new(),
        };
        let _ = writeln!(text, "grants = {{ tables = {{ stock = [\"select\", \"update\"] }}{publish} }}");
        text
    }
}

/// Strings of JSON are strings of TOML too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
