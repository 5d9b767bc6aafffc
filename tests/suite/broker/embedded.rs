//! The embedded broker, and what is true of it alone.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use hapax::broker::embedded::{Embedded, ExchangeKind};
use hapax::broker::{Broker, BrokerError, Outgoing, Published, QueueSpec, Settings};
use hapax::message::{HeaderValue, Properties};

use super::kit::{Backend, name, next, numbers, publish_numbers, spec, take, to_queue};

/// A folder with one broker in it.
pub(crate) struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("suite.broker")
    }

    async fn embedded(&self) -> Embedded {
        Embedded::open(self.path()).await.unwrap()
    }
}

#[async_trait]
impl Backend for Files {
    async fn open(&self) -> Arc<dyn Broker> {
        Arc::new(self.embedded().await)
    }

    async fn delete_queue(&self, queue: &str) {
        self.embedded().await.delete_queue(queue).await.unwrap();
    }

    async fn create_topic_exchange(&self, exchange: &str) {
        self.embedded().await.declare_exchange(exchange, ExchangeKind::Topic).await.unwrap();
    }
}

/// A runtime that is thrown away with everything that runs on it does to the broker what `kill -9` does: nothing is
/// written any more, and the kernel takes the lock back.
#[test]
fn what_a_process_held_when_it_died_comes_again_flagged() {
    let files = Files::new();
    let dying = tokio::runtime::Runtime::new().unwrap();
    dying.block_on(async {
        let broker = files.open().await;
        broker.declare(&spec("q")).await.unwrap();
        publish_numbers(&*broker, "q", 0..10).await;
        let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 5, ..spec("q") }).await.unwrap();
        assert_eq!(numbers(&take(&mut subscription, 5).await), [0, 1, 2, 3, 4]);
        std::mem::forget(subscription);
    });
    drop(dying);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let broker = files.open().await;
        let mut subscription = broker.subscribe(&spec("q")).await.unwrap();
        let deliveries = take(&mut subscription, 10).await;
        assert_eq!(numbers(&deliveries), (0..10).collect::<Vec<_>>());
        assert!(deliveries[..5].iter().all(|delivery| delivery.redelivered));
        subscription.settler.acknowledge(deliveries.iter().map(|delivery| delivery.tag).collect());
        subscription.settler.close().await;
        // Far enough ahead, nothing is flagged any more.
        publish_numbers(&*broker, "q", 0..3000).await;
        let mut subscription = broker.subscribe(&QueueSpec { prefetch_messages: 3000, ..spec("q") }).await.unwrap();
        assert!(!take(&mut subscription, 3000).await[2999].redelivered);
        subscription.settler.close().await;
    });
}

#[tokio::test]
async fn exchanges_of_each_kind_route_as_their_kind_says() {
    let files = Files::new();
    let broker = files.embedded().await;
    let (fanout, direct) = (name("fanout"), name("direct"));
    broker.declare_exchange(&fanout, ExchangeKind::Fanout).await.unwrap();
    broker.declare_exchange(&direct, ExchangeKind::Direct).await.unwrap();
    broker.declare_exchange(&direct, ExchangeKind::Direct).await.unwrap();
    let error = broker.declare_exchange(&direct, ExchangeKind::Topic).await.unwrap_err().to_string();
    assert!(error.contains("declared as topic, and exists as direct"), "{error}");
    let bind =
        |exchange: &str, key: &str| hapax::broker::Binding { exchange: exchange.into(), routing_key: key.into() };
    for queue in ["one", "two"] {
        let bindings = vec![bind(&fanout, ""), bind(&direct, queue)];
        broker.declare(&QueueSpec { bindings, ..spec(queue) }).await.unwrap();
    }
    let to = |exchange: &str, key: &str| Outgoing { exchange: exchange.into(), ..to_queue(key, "1") };
    let window = [to(&fanout, "whatever"), to(&direct, "two"), to(&direct, "three")];
    let answers = broker.publisher().publish(&window).await;
    assert!(matches!(&answers[..], [Published::Confirmed, Published::Confirmed, Published::Returned(_)]));
    assert_eq!(broker.queue_depth("one").await.unwrap(), Some(1));
    assert_eq!(broker.queue_depth("two").await.unwrap(), Some(2));
    assert_eq!(broker.queue_depth("three").await.unwrap(), None);
}

#[tokio::test]
async fn a_file_of_something_else_is_left_alone() {
    let files = Files::new();
    std::fs::write(files.path(), "no database, but long enough to be looked at as one; ".repeat(20)).unwrap();
    let before = std::fs::read(files.path()).unwrap();
    let error = Embedded::open(files.path()).await.err().unwrap();
    assert!(matches!(&error, BrokerError::Unavailable { .. }) && error.to_string().contains("suite.broker"), "{error}");
    assert_eq!(std::fs::read(files.path()).unwrap(), before);
    let error = Embedded::open(files.folder.path().join("no/such/folder/x")).await.err().unwrap();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}

#[tokio::test]
async fn numbers_that_json_cannot_hold_are_refused() {
    let files = Files::new();
    let broker = files.open().await;
    broker.declare(&spec("q")).await.unwrap();
    let headers = vec![("h".to_owned(), HeaderValue::Float(f64::NAN))];
    let odd = Outgoing { properties: Properties { headers, ..Properties::default() }, ..to_queue("q", "1") };
    let answers = broker.publisher().publish(&[odd, to_queue("q", "2")]).await;
    assert!(matches!(&answers[..], [Published::Refused(reason), Published::Confirmed] if reason.contains("\"h\"")));
    let mut subscription = broker.subscribe(&spec("q")).await.unwrap();
    assert_eq!(numbers(&[next(&mut subscription).await]), [2]);
    subscription.settler.close().await;
}

#[tokio::test]
async fn a_url_opens_the_broker_it_names() {
    let files = Files::new();
    let url = format!("embedded:{}", files.path().display());
    let broker = hapax::broker::open(&url, &Settings::default()).await.unwrap();
    assert!(broker.describe().await.unwrap().starts_with("embedded broker (SQLite 3."));
    for bad in ["", "redis://x", "amqp://h:notaport", "embedded"] {
        assert!(hapax::broker::open(bad, &Settings::default()).await.is_err(), "{bad:?}");
    }
}
