//! What people write by hand, as programs of their own: so that their CPU time is theirs.

pub(crate) mod bare;
pub(crate) mod classic;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, Consumer};

/// The queue that is drained.
pub(crate) const QUEUE: &str = "orders";

/// Connects and consumes.
async fn consume(amqp: &str, prefetch: u16) -> Result<(Connection, Channel, Consumer)> {
    let connection = Connection::connect(amqp, ConnectionProperties::default()).await.context("connecting")?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(QUEUE.into(), "".into(), options, FieldTable::default()).await?;
    Ok((connection, channel, consumer))
}

/// How far a worker is, for those who measure it: a number in a file, written every 10 ms.
#[derive(Clone, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Starts writing to `file`.
    pub(crate) fn to(file: PathBuf) -> Self {
        let counter = Self::default();
        let shown = counter.clone();
        tokio::spawn(async move {
            loop {
                // By renaming, so that no reader sees half a number. Who measures notices when it is missing.
                let next = file.with_extension("next");
                let number = shown.0.load(Ordering::Relaxed).to_string();
                let _ = std::fs::write(&next, number).and_then(|()| std::fs::rename(&next, &file));
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        counter
    }

    /// That many messages more are done.
    pub(crate) fn add(&self, messages: u64) {
        self.0.fetch_add(messages, Ordering::Relaxed);
    }
}
