//! The broker seam: where deliveries come from, and where the outbox goes.
//!
//! Two back ends: [`amqp`] (RabbitMQ and anything else that speaks AMQP 0-9-1) and [`embedded`] (a durable SQLite
//! file). Both pass the suite in `tests/suite/broker.rs`; what one of them cannot do is a line in [`Features`].

pub mod amqp;
pub mod embedded;
mod window;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::message::{HeaderValue, Message, Properties};

/// What a back end can do, so that a suite says which of its facts it checks where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Publishing to an exchange that does not exist is refused, and not merely returned.
    pub refuses_unknown_exchange: bool,
    /// The server can be asked to declare queues with arguments of its own.
    pub queue_arguments: bool,
    /// Another process may publish while this one consumes.
    pub shared: bool,
    /// [`Declare::Create`] creates the exchanges that its bindings name.
    pub creates_bound_exchanges: bool,
    /// Several subscriptions may share one queue.
    pub competing_consumers: bool,
    /// A message's `expiration` is honoured.
    pub expires_messages: bool,
    /// The server can close a connection or a channel by itself.
    pub server_closes: bool,
}

/// How to reach a broker, beside its URL. The embedded broker has no use for most of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What the broker's own tools show for our connections.
    pub connection_name: String,
    /// How often each side makes sure that the other is there; a `heartbeat` in the URL counts more.
    pub heartbeat: Duration,
    /// Limit of each attempt to connect, and of each request to the server.
    pub connect_timeout: Duration,
    /// How long the broker may take to confirm messages, before the channel that they went through is closed. Whoever
    /// publishes is told earlier what is known.
    pub publish_timeout: Duration,
    /// How long nothing may come to a subscription that has nothing in hand, until it ends with [`BrokerError::Quiet`].
    pub quiet: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connection_name: "hapax".to_owned(),
            heartbeat: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            publish_timeout: Duration::from_secs(30),
            quiet: Duration::from_secs(60),
        }
    }
}

/// Opens the broker that a URL names: `amqp://` and `amqps://`, or `embedded:PATH`. An AMQP broker is connected to
/// when it is first used; an embedded one is created where there is none.
pub async fn open(url: &str, settings: &Settings) -> Result<Arc<dyn Broker>, BrokerError> {
    match url.split_once(':') {
        Some(("amqp" | "amqps", _)) => Ok(Arc::new(amqp::Amqp::new(url, settings.clone())?)),
        Some(("embedded", path)) => {
            let path = path.strip_prefix("//").unwrap_or(path);
            Ok(Arc::new(embedded::Embedded::open(path).await?))
        }
        _ => Err(BrokerError::Unavailable {
            server: "broker".to_owned(),
            reason: "the address must begin with amqp://, amqps:// or embedded:".to_owned(),
        }),
    }
}

/// How a queue is brought into being, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Declare {
    /// Check that it exists; never change it.
    #[default]
    Passive,
    /// Declare it durable with the given arguments and bindings.
    Create,
    /// Say nothing about it.
    None,
}

/// A binding of the consumer's queue to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange; it must exist, unless [`Features::creates_bound_exchanges`].
    pub exchange: String,
    /// The routing key or pattern.
    pub routing_key: String,
}

/// Everything a broker needs to know to consume one queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueSpec {
    /// The queue's name.
    pub queue: String,
    /// The consumer's name: it becomes part of the consumer tag.
    pub consumer: String,
    /// How the queue comes into being.
    pub declare: Declare,
    /// Arguments for [`Declare::Create`], verbatim.
    pub arguments: BTreeMap<String, HeaderValue>,
    /// Bindings for [`Declare::Create`].
    pub bindings: Vec<Binding>,
    /// At most this many deliveries unsettled; never 0.
    pub prefetch_messages: u16,
    /// About this many bytes of bodies unsettled; never 0.
    pub prefetch_bytes: u64,
    /// The order of the queue counts: while a subscription lives, nothing that it does may hand the queue to another
    /// consumer. Set it for a single active consumer whose queue's arguments are not known here.
    pub ordered: bool,
}

/// Something that a consumer does at the broker, for which it may lack a right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Consume from a queue.
    Consume {
        /// The queue.
        queue: String,
    },
    /// Create a queue.
    Create {
        /// The queue.
        queue: String,
    },
    /// Bind a queue.
    Bind {
        /// The queue.
        queue: String,
        /// The exchange that it is bound to.
        exchange: String,
        /// The routing key or pattern.
        routing_key: String,
    },
    /// Publish messages.
    Publish {
        /// The exchange; empty for the default exchange.
        exchange: String,
        /// The routing key, or a pattern of those that are used.
        routing_key: String,
    },
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Consume { queue } => write!(f, "read queue {queue:?}"),
            Self::Create { queue } => write!(f, "configure queue {queue:?}"),
            Self::Bind { queue, exchange, .. } => write!(f, "write queue {queue:?} and read exchange {exchange:?}"),
            Self::Publish { exchange, .. } if exchange.is_empty() => f.write_str("write the default exchange"),
            Self::Publish { exchange, .. } => write!(f, "write exchange {exchange:?}"),
        }
    }
}

/// A need that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What is missing, and what the broker said.
    pub problem: String,
    /// The command that mends it.
    pub hint: String,
}

/// One handing-over of a message, to be settled once.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What the producer sent.
    pub message: Message,
    /// The broker may have delivered it before.
    pub redelivered: bool,
    /// Its number within its subscription.
    pub tag: u64,
}

/// A live subscription to a queue. When `deliveries` ends, the subscription is gone: tags that were not settled are
/// void, their messages come again, and the caller subscribes anew with back-off.
pub struct Subscription {
    /// The deliveries, in the broker's order; an `Err` is the last item and says why it ended.
    pub deliveries: mpsc::Receiver<Result<Delivery, BrokerError>>,
    /// Settles what came through `deliveries`.
    pub settler: Box<dyn Settler>,
}

/// The only way to acknowledge.
#[async_trait]
pub trait Settler: Send + Sync {
    /// Acknowledges these tags. Queued to the one task that owns the channel's watermark: it returns when the
    /// acknowledgement is on its way, not when the broker has read it. Tags of a lost channel are ignored.
    fn acknowledge(&self, tags: Vec<u64>);

    /// Stops new deliveries, sends the acknowledgements still queued, and closes: what is unsettled goes back to the
    /// queue. This is both how a pause begins and how a consumer shuts down.
    async fn close(&self);
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// The exchange; empty for the default exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Properties; `message_id` and `delivery_mode` are already what they should be.
    pub properties: Properties,
    /// The body.
    pub body: Bytes,
}

/// What became of one published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The broker has taken responsibility for it.
    Confirmed,
    /// No queue for it: `mandatory` brought it back.
    Returned(String),
    /// The broker refused it, and will refuse it again: unknown exchange, no right to write, not a message for AMQP.
    Refused(String),
    /// Not now, or nobody knows: the connection was lost, publishing is blocked, a queue is full. To be published again.
    Unknown(String),
}

/// A confirmed, mandatory, persistent publisher. It rebuilds its connection by itself.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes a window and waits for every answer; the results are in the order of `window`.
    async fn publish(&self, window: &[Outgoing]) -> Vec<Published>;
}

/// A message broker.
#[async_trait]
pub trait Broker: Send + Sync {
    /// What this back end can do.
    fn features(&self) -> Features;

    /// Server name and version, for logs and `hapax check --connect`.
    async fn describe(&self) -> Result<String, BrokerError>;

    /// Declares as `spec` says, without consuming.
    async fn declare(&self, spec: &QueueSpec) -> Result<(), BrokerError>;

    /// Subscribes to a queue, declaring it first as `spec` says.
    async fn subscribe(&self, spec: &QueueSpec) -> Result<Subscription, BrokerError>;

    /// Finds out which of these needs are not met, without changing anything. A queue to consume from need not exist.
    async fn lacks(&self, needs: &[Need]) -> Result<Vec<Lack>, BrokerError>;

    /// A publisher, on a connection apart from the one that consumes.
    fn publisher(&self) -> Box<dyn Publisher>;

    /// Closes every connection in an orderly way.
    async fn close(&self);
}

/// What a broker answers instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// Not reachable, or lost; try again with back-off.
    #[error("{server}: {reason}")]
    Unavailable {
        /// Address without credentials.
        server: String,
        /// What happened.
        reason: String,
    },
    /// User or password refused. Tried again with back-off: rights can be mended while we run.
    #[error("{server} refused the login: {reason}")]
    Login {
        /// Address without credentials.
        server: String,
        /// What the server said.
        reason: String,
    },
    /// The queue is not as the config says; `hint` holds the command that mends it.
    #[error("queue {queue:?}: {reason}")]
    Queue {
        /// The queue.
        queue: String,
        /// Both sides of the disagreement.
        reason: String,
        /// What to run or change.
        hint: String,
    },
    /// The broker ended the subscription: consumer cancelled, channel closed.
    #[error("the broker ended the subscription to {queue:?}: {reason}")]
    Ended {
        /// The queue.
        queue: String,
        /// What the server said.
        reason: String,
    },
    /// Nothing has come, and nothing is in hand: most likely there is nothing, but a broker may also count deliveries
    /// as ours that never arrived, and then sends no more. Close the subscription and subscribe anew.
    #[error("nothing has come from {queue:?} for {lasting:?}")]
    Quiet {
        /// The queue.
        queue: String,
        /// For how long.
        lasting: Duration,
    },
}

impl BrokerError {
    /// What to run or change, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Queue { hint, .. } => Some(hint),
            Self::Unavailable { .. } | Self::Login { .. } | Self::Ended { .. } | Self::Quiet { .. } => None,
        }
    }

    /// What happened and, where that is known, what to do about it: for a log.
    pub fn advised(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}; what mends it: {hint}"),
            None => self.to_string(),
        }
    }
}
