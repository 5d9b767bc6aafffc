//! A broker in a file: durable, without a server, for trying things out, for tests, and for one machine.
//!
//! ```no_run
//! # async fn example() -> Result<(), hapax::broker::BrokerError> {
//! use hapax::broker::embedded::{Embedded, ExchangeKind};
//!
//! let broker = Embedded::open("orders.broker").await?;
//! broker.declare_exchange("shop", ExchangeKind::Topic).await?;
//! # Ok(())
//! # }
//! ```
//!
//! It is a SQLite database of its own, apart from the ledger's, so that a message handed over and a message remembered
//! are two commits here as they are with a real broker. It redelivers as one does: what was delivered and not settled
//! comes again, in its old place and flagged, when the subscription closes or its process dies. Any number of
//! processes may publish; a queue has one consumer, which holds a lock file beside the database.
//!
//! What it does not do: queue arguments are kept and compared, and have no effect; `expiration`, `priority`, `CC` and
//! `BCC` are carried along and not acted upon; a message that goes to several queues is stored once for each.

mod consume;
mod routing;
mod store;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Mutex, Notify};

use self::routing::Routes;
use self::store::Place;
use super::{
    Broker, BrokerError, Declare, Features, Lack, Need, Outgoing, Published, Publisher, QueueSpec, Subscription,
};

pub use self::routing::ExchangeKind;
use crate::message::HeaderValue;

/// Bodies of one transaction at most, in bytes; a larger window takes several.
const TRANSACTION_BYTES: usize = 64 << 20;

/// A broker in a file.
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    place: Place,
    /// For everything but a subscription's own work.
    connection: Mutex<SqliteConnection>,
    /// Wakes the subscriptions of this process.
    published: Arc<Notify>,
}

impl Embedded {
    /// Opens a broker's file, and creates it where there is none; its folder must exist.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, BrokerError> {
        let place = Place { path: path.into() };
        let connection = Mutex::new(place.set_up().await?);
        Ok(Self { shared: Arc::new(Shared { place, connection, published: Arc::default() }) })
    }

    /// Creates an exchange. It is an error if there is one of that name and another kind. (A queue that is created with
    /// bindings creates the exchanges that they name as topic exchanges.)
    pub async fn declare_exchange(&self, name: &str, kind: ExchangeKind) -> Result<(), BrokerError> {
        let present = self.run(async |connection| store::create_exchange(connection, name, kind).await).await?;
        match present {
            Some(present) if present == kind => Ok(()),
            Some(present) => Err(self.shared.place.broken(format!(
                "exchange {name:?} is declared as {}, and exists as {}",
                kind.name(),
                present.name()
            ))),
            None => Err(self.shared.place.broken(format!("exchange {name:?} is of no known kind"))),
        }
    }

    /// Deletes a queue with all its messages; its subscription ends. False if there was none.
    pub async fn delete_queue(&self, queue: &str) -> Result<bool, BrokerError> {
        self.run(async |connection| store::delete_queue(connection, queue).await).await
    }

    /// How many messages a queue holds, those that are delivered and not settled included; none if there is no such
    /// queue.
    pub async fn queue_depth(&self, queue: &str) -> Result<Option<u64>, BrokerError> {
        self.run(async |connection| store::depth(connection, queue).await).await
    }

    async fn run<T>(&self, work: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>) -> Result<T, BrokerError> {
        let mut connection = self.shared.connection.lock().await;
        work(&mut connection).await.map_err(|error| self.shared.place.unavailable(&error))
    }

    async fn create(&self, spec: &QueueSpec) -> Result<(), BrokerError> {
        let (name, arguments, bindings) = (&spec.queue, &spec.arguments, &spec.bindings);
        let created =
            self.run(async |connection| store::create_queue(connection, name, arguments, bindings).await).await?;
        created.map_err(|present| BrokerError::Queue {
            queue: spec.queue.clone(),
            reason: format!(
                "the config declares it with arguments {arguments:?}; it exists with {:?}",
                present.arguments
            ),
            hint: "set `declare = \"passive\"` to consume it as it is, or change `arguments`".to_owned(),
        })
    }

    /// The queue, or an error that says what to do.
    async fn expect(&self, spec: &QueueSpec) -> Result<store::Queue, BrokerError> {
        let queue = self.run(async |connection| store::queue(connection, &spec.queue).await).await?;
        queue.ok_or_else(|| BrokerError::Queue {
            queue: spec.queue.clone(),
            reason: format!("it does not exist in {}", self.shared.place.path.display()),
            hint: "set `declare = \"create\"`: there is no other way to create a queue of the embedded broker"
                .to_owned(),
        })
    }
}

#[async_trait]
impl Broker for Embedded {
    fn features(&self) -> Features {
        Features {
            refuses_unknown_exchange: true,
            queue_arguments: false,
            shared: true,
            creates_bound_exchanges: true,
            competing_consumers: false,
            expires_messages: false,
            server_closes: false,
        }
    }

    async fn describe(&self) -> Result<String, BrokerError> {
        let version: String = self
            .run(async |connection| sqlx::query_scalar("SELECT sqlite_version()").fetch_one(connection).await)
            .await?;
        Ok(format!("embedded broker (SQLite {version})"))
    }

    async fn declare(&self, spec: &QueueSpec) -> Result<(), BrokerError> {
        match spec.declare {
            Declare::None => Ok(()),
            Declare::Passive => self.expect(spec).await.map(|_| ()),
            Declare::Create => self.create(spec).await,
        }
    }

    async fn subscribe(&self, spec: &QueueSpec) -> Result<Subscription, BrokerError> {
        self.declare(spec).await?;
        // The lock first: whoever holds it may still be writing how far the queue was delivered.
        let shared = &self.shared;
        let lock = consume::ConsumerLock::take(&shared.place.path, &spec.queue)?;
        let queue = self.expect(spec).await?;
        consume::subscribe(shared.place.clone(), lock, queue, spec, shared.published.clone()).await
    }

    /// Whoever can write the file may do everything.
    async fn lacks(&self, _needs: &[Need]) -> Result<Vec<Lack>, BrokerError> {
        Ok(Vec::new())
    }

    fn publisher(&self) -> Box<dyn Publisher> {
        Box::new(EmbeddedPublisher(self.shared.clone()))
    }

    async fn close(&self) {
        // Every commit is on disk; this merely empties the write-ahead log into the file.
        let mut connection = self.shared.connection.lock().await;
        let _ = sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *connection).await;
    }
}

struct EmbeddedPublisher(Arc<Shared>);

#[async_trait]
impl Publisher for EmbeddedPublisher {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Published> {
        let mut connection = self.0.connection.lock().await;
        let mut answers = Vec::with_capacity(window.len());
        for messages in pieces(window) {
            match publish(&mut connection, messages).await {
                Ok(published) => answers.extend(published),
                Err(error) => {
                    let reason = self.0.place.unavailable(&error).to_string();
                    answers.extend(messages.iter().map(|_| Published::Unknown(reason.clone())));
                }
            }
        }
        drop(connection);
        self.0.published.notify_waiters();
        answers
    }
}

/// Cuts a window so that each piece holds a bounded number of bytes, one message at least.
fn pieces(window: &[Outgoing]) -> Vec<&[Outgoing]> {
    let mut pieces = Vec::new();
    let (mut start, mut bytes) = (0, 0_usize);
    for (index, message) in window.iter().enumerate() {
        bytes = bytes.saturating_add(message.body.len());
        if bytes > TRANSACTION_BYTES && index > start {
            pieces.push(&window[start..index]);
            (start, bytes) = (index, message.body.len());
        }
    }
    if start < window.len() {
        pieces.push(&window[start..]);
    }
    pieces
}

/// Publishes messages in one transaction: after its commit they are confirmed.
async fn publish(connection: &mut SqliteConnection, messages: &[Outgoing]) -> sqlx::Result<Vec<Published>> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let routes = store::routes(&mut transaction).await?;
    let mut rows = Vec::with_capacity(messages.len());
    let mut answers = Vec::with_capacity(messages.len());
    for message in messages {
        let (answer, queues) = route(&routes, message);
        answers.push(answer);
        for queue in queues {
            let properties =
                serde_json::to_string(&message.properties).map_err(|error| sqlx::Error::Encode(error.into()))?;
            rows.push((queue, message, properties));
        }
    }
    store::insert(&mut transaction, &rows).await?;
    transaction.commit().await?;
    Ok(answers)
}

/// What becomes of a message, and the queues that it goes to.
fn route(routes: &Routes, message: &Outgoing) -> (Published, Vec<i64>) {
    if let Some(name) = unstorable_header(message) {
        // JSON has no such numbers: the row could be written, and never be read.
        return (Published::Refused(format!("header {name:?} is not a finite number")), vec![]);
    }
    match routes.of(&message.exchange, &message.routing_key) {
        None => (Published::Refused(format!("no exchange {:?}", message.exchange)), vec![]),
        Some(queues) if queues.is_empty() => {
            let (exchange, key) = (&message.exchange, &message.routing_key);
            (Published::Returned(format!("no queue for exchange {exchange:?} and routing key {key:?}")), vec![])
        }
        Some(queues) => (Published::Confirmed, queues.into_iter().collect()),
    }
}

fn unstorable_header(message: &Outgoing) -> Option<&str> {
    let infinite = |value: &HeaderValue| matches!(value, HeaderValue::Float(number) if !number.is_finite());
    let mut headers = message.properties.headers.iter();
    headers.find(|(_, value)| infinite(value)).map(|(name, _)| name.as_str())
}
