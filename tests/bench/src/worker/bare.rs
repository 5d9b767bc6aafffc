//! The ceiling: a consumer that takes messages and does nothing with them.

use anyhow::{Context as _, Result};
use futures::{FutureExt as _, StreamExt as _};
use lapin::options::BasicAckOptions;

use super::{Counter, consume};

/// Deliveries not yet acknowledged at most.
const PREFETCH: u16 = 1000;

/// Runs until it is killed. `each`: waits for each acknowledgement to be sent, instead of sending one for all deliveries
/// that are there already.
pub(crate) async fn run(amqp: &str, each: bool, counter: Counter) -> Result<()> {
    let (_connection, channel, mut consumer) = consume(amqp, PREFETCH).await?;
    while let Some(delivery) = consumer.next().await {
        let mut last = delivery.context("receiving")?;
        if each {
            last.acker.ack(BasicAckOptions::default()).await?;
            counter.add(1);
            continue;
        }
        let mut buffered = 1;
        while let Some(Some(next)) = consumer.next().now_or_never() {
            last = next.context("receiving")?;
            buffered += 1;
        }
        channel.basic_ack(last.delivery_tag, BasicAckOptions { multiple: true }).await?;
        counter.add(buffered);
    }
    Ok(())
}
