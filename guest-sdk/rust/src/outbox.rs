//! Messages published if, and only if, this attempt commits: at least once, always under the same id.
//!
//! ```
//! # use hapax_guest::{Failure, testing::Fake, outbox};
//! # let fake = Fake::new();
//! let id = outbox::publish("shop", "stock.reduced").json(&[1, 2])?.header("tenant", "a").send()?;
//! assert_eq!(fake.outbox()[0].id, id);
//! # Ok::<(), Failure>(())
//! ```

use std::fmt;

use serde::Serialize;

use crate::host::outbox as host;
use crate::message::{HeaderValue, Properties};

/// Begins a message to an exchange (empty: the default exchange, whose routing keys are queue names).
///
/// Nothing happens before [`Publication::send`].
pub fn publish(exchange: impl Into<String>, routing_key: impl Into<String>) -> Publication {
    let (exchange, routing_key) = (exchange.into(), routing_key.into());
    Publication { exchange, routing_key, properties: Properties::default(), body: Vec::new() }
}

/// A message on its way to the outbox. The host chooses its id and makes it persistent; `user-id`, the headers `CC` and
/// `BCC` and those that begin with `x-hapax-` are refused.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a publication is sent by `.send()`"]
pub struct Publication {
    exchange: String,
    routing_key: String,
    properties: Properties,
    body: Vec<u8>,
}

impl Publication {
    /// A JSON body, and its content type.
    ///
    /// # Errors
    /// If the value cannot be written as JSON.
    pub fn json(mut self, value: &(impl Serialize + ?Sized)) -> Result<Self, serde_json::Error> {
        self.body = serde_json::to_vec(value)?;
        Ok(self.content_type("application/json"))
    }

    /// A text body, and its content type.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.body = text.into().into_bytes();
        self.content_type("text/plain")
    }

    /// Any body, without a content type.
    pub fn bytes(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// The MIME type of the body.
    pub fn content_type(mut self, content_type: impl Into<String>) -> Self {
        self.properties.content_type = Some(content_type.into());
        self
    }

    /// One more header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.properties.headers.push((name.into(), value.into()));
        self
    }

    /// The correlation id.
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.properties.correlation_id = Some(id.into());
        self
    }

    /// Where an answer is expected.
    pub fn reply_to(mut self, queue: impl Into<String>) -> Self {
        self.properties.reply_to = Some(queue.into());
        self
    }

    /// The message type name.
    pub fn message_type(mut self, name: impl Into<String>) -> Self {
        self.properties.type_ = Some(name.into());
        self
    }

    /// 0 to 9, for priority queues.
    pub fn priority(mut self, priority: u8) -> Self {
        self.properties.priority = Some(priority);
        self
    }

    /// Every property as given, in place of those set so far.
    pub fn properties(mut self, properties: Properties) -> Self {
        self.properties = properties;
        self
    }

    /// Hands the message to the outbox and returns its message id.
    ///
    /// # Errors
    /// If the exchange is not granted, a property is refused, or the outbox of this attempt is full.
    pub fn send(self) -> Result<String, Error> {
        host::publish(&self.exchange, &self.routing_key, &self.properties, &self.body)
    }
}

/// Why the outbox refused a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The consumer's config does not grant this exchange and routing key.
    Denied,
    /// A property, header or name that cannot be published.
    Invalid,
    /// The message, or all of this attempt, is over the limit of bytes.
    TooLarge,
    /// This attempt is over the limit of messages.
    TooMany,
    /// Something else.
    Other,
}

impl ErrorKind {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Denied => "outbox-denied",
            Self::Invalid => "outbox-invalid",
            Self::TooLarge => "outbox-too-large",
            Self::TooMany => "outbox-too-many",
            Self::Other => "outbox-other",
        }
    }

    /// From the number that the contract gives the case; the generated bindings ask for this by this name.
    #[cfg(target_arch = "wasm32")]
    pub(crate) unsafe fn _lift(number: u8) -> Self {
        match number {
            0 => Self::Denied,
            1 => Self::Invalid,
            2 => Self::TooLarge,
            3 => Self::TooMany,
            _ => Self::Other,
        }
    }
}

/// The outbox refused a message; the attempt may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Why.
    pub kind: ErrorKind,
    /// The host's words.
    pub message: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
