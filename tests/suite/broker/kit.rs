//! What every fact needs: a back end, queues of its own, and patience with a limit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hapax::broker::{Broker, BrokerError, Declare, Delivery, Outgoing, Published, QueueSpec, Subscription};
use hapax::message::Properties;

/// How long something that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// A back end, and what an operator can do to it from outside the seam.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// A broker with connections of its own.
    async fn open(&self) -> Arc<dyn Broker>;

    /// Deletes a queue while somebody may consume it.
    async fn delete_queue(&self, queue: &str);

    /// Creates a topic exchange.
    async fn create_topic_exchange(&self, exchange: &str);
}

/// A name that nobody else uses.
pub(crate) fn name(what: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("hapax-test-{}-{}-{what}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A queue that is created, with room for 100 deliveries.
pub(crate) fn spec(queue: &str) -> QueueSpec {
    QueueSpec {
        queue: queue.to_owned(),
        consumer: "suite".to_owned(),
        declare: Declare::Create,
        arguments: BTreeMap::new(),
        bindings: Vec::new(),
        prefetch_messages: 100,
        prefetch_bytes: 64 << 20,
        ordered: false,
    }
}

/// A message to a queue, with its body as its id.
pub(crate) fn to_queue(queue: &str, body: impl Into<bytes::Bytes>) -> Outgoing {
    let body = body.into();
    let id = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
    let properties = Properties { message_id: Some(id), delivery_mode: Some(2), ..Properties::default() };
    Outgoing { exchange: String::new(), routing_key: queue.to_owned(), properties, body }
}

/// Publishes and insists on being confirmed.
pub(crate) async fn publish(broker: &dyn Broker, window: &[Outgoing]) {
    let answers = broker.publisher().publish(window).await;
    assert_eq!(answers.len(), window.len());
    for answer in answers {
        assert_eq!(answer, Published::Confirmed);
    }
}

/// Publishes numbers, each a message.
pub(crate) async fn publish_numbers(broker: &dyn Broker, queue: &str, numbers: std::ops::Range<u32>) {
    let window: Vec<Outgoing> = numbers.map(|number| to_queue(queue, number.to_string())).collect();
    publish(broker, &window).await;
}

/// The next delivery, which must come.
pub(crate) async fn next(subscription: &mut Subscription) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, subscription.deliveries.recv()).await;
    next.expect("a delivery in time").expect("a live subscription").expect("a delivery")
}

/// The next `count` deliveries.
pub(crate) async fn take(subscription: &mut Subscription, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.push(next(subscription).await);
    }
    deliveries
}

/// How a subscription ends: everything before the end is thrown away.
pub(crate) async fn end(subscription: &mut Subscription) -> Option<BrokerError> {
    let drained = async {
        while let Some(item) = subscription.deliveries.recv().await {
            if let Err(error) = item {
                assert!(subscription.deliveries.recv().await.is_none(), "an error is the last item");
                return Some(error);
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, drained).await.expect("an end in time")
}

/// The bodies, read as numbers.
pub(crate) fn numbers(deliveries: &[Delivery]) -> Vec<u32> {
    let number = |delivery: &Delivery| std::str::from_utf8(&delivery.message.body).unwrap().parse().unwrap();
    deliveries.iter().map(number).collect()
}

/// Checks that a queue holds exactly these numbers, in this order, and empties it.
pub(crate) async fn holds(broker: &dyn Broker, queue: &str, expected: &[u32]) -> Vec<bool> {
    // A last message behind them shows that there is nothing else, without waiting for nothing.
    publish(broker, &[to_queue(queue, u32::MAX.to_string())]).await;
    let mut subscription = broker.subscribe(&spec(queue)).await.unwrap();
    let mut flags = Vec::new();
    for number in expected.iter().chain([&u32::MAX]) {
        let delivery = next(&mut subscription).await;
        assert_eq!(numbers(std::slice::from_ref(&delivery)), [*number]);
        flags.push(delivery.redelivered);
        subscription.settler.acknowledge(vec![delivery.tag]);
    }
    subscription.settler.close().await;
    flags.pop();
    flags
}
