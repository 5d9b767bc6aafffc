//! The messages that handlers send: a queue that gets one for each order.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};

use crate::stage::{Place, TOLD_EXCHANGE, TOLD_QUEUE};

/// How long the broker may take for the next message of a queue that holds one.
const NEXT: Duration = Duration::from_secs(10);

/// The queue that the handlers' messages go to.
pub(crate) struct Told {
    channel: Channel,
    _connection: Connection,
}

impl Told {
    /// Declares it and the exchange that it is bound to.
    ///
    /// # Errors
    /// When the broker refuses.
    pub(crate) async fn declare(place: &Place) -> Result<()> {
        place.vhost.declare_queue(TOLD_QUEUE, serde_json::json!({})).await?;
        place.vhost.declare_exchange(TOLD_EXCHANGE, "direct").await?;
        place.vhost.bind_queue(TOLD_EXCHANGE, TOLD_QUEUE, "stock.reduced").await
    }

    /// That of a place.
    ///
    /// # Errors
    /// When the broker does not let it in.
    pub(crate) async fn of(place: &Place) -> Result<Self> {
        let connection = Connection::connect(place.vhost.url(), ConnectionProperties::default()).await?;
        Ok(Self { channel: connection.create_channel().await?, _connection: connection })
    }

    /// How many messages it holds.
    ///
    /// # Errors
    /// When it is gone.
    pub(crate) async fn count(&self) -> Result<u64> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = self.channel.queue_declare(TOLD_QUEUE.into(), passive, FieldTable::default()).await?;
        Ok(u64::from(queue.message_count()))
    }

    /// Takes all messages out, and makes sure that there is one for each order: ids of outbox messages are made from
    /// those of their orders.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub(crate) async fn check(&self, unique: u64) -> Result<()> {
        let found = self.count().await?;
        ensure!(found == unique, "{unique} orders, {found} messages sent");
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut consumer =
            self.channel.basic_consume(TOLD_QUEUE.into(), "".into(), options, FieldTable::default()).await?;
        let mut ids = HashSet::new();
        for _ in 0..found {
            let next = tokio::time::timeout(NEXT, consumer.next()).await.context("messages sent are missing")?;
            let delivery = next.context("the broker ended the subscription")??;
            let id = delivery.properties.message_id().as_ref().context("a message sent without an id")?;
            ids.insert(id.to_string());
        }
        ensure!(ids.len() as u64 == unique, "{unique} orders, {} different messages sent", ids.len());
        Ok(())
    }
}
