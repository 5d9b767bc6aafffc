//! What a producer sent.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Failure;

/// A message as it was first published, on every attempt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The idempotency key, unique within the consumer.
    pub id: String,
    /// The exchange it was published to; empty for the default exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// The AMQP properties.
    pub properties: Properties,
    /// The body.
    pub body: Vec<u8>,
}

/// The AMQP 0-9-1 basic properties, all of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// MIME type of the body.
    pub content_type: Option<String>,
    /// MIME content encoding.
    pub content_encoding: Option<String>,
    /// Application headers, in order.
    pub headers: Vec<(String, HeaderValue)>,
    /// 1 transient, 2 persistent.
    pub delivery_mode: Option<u8>,
    /// 0 to 9.
    pub priority: Option<u8>,
    /// Correlation id.
    pub correlation_id: Option<String>,
    /// Where an answer is expected.
    pub reply_to: Option<String>,
    /// Time to live in milliseconds, as text.
    pub expiration: Option<String>,
    /// The producer's message id; [`Message::id`] is the one that counts.
    pub message_id: Option<String>,
    /// Seconds since the Unix epoch.
    pub timestamp: Option<u64>,
    /// Message type name.
    pub type_: Option<String>,
    /// The user that published, checked by the broker.
    pub user_id: Option<String>,
    /// The publishing application.
    pub app_id: Option<String>,
}

/// One header.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// AMQP void.
    Null,
    /// A string that is UTF-8.
    Text(String),
    /// Any AMQP integer that fits.
    Integer(i64),
    /// Float or double.
    Float(f64),
    /// Boolean.
    Boolean(bool),
    /// A byte array, or a string that is not UTF-8.
    Bytes(Vec<u8>),
    /// Seconds since the Unix epoch.
    Timestamp(u64),
    /// An AMQP decimal, as text.
    Decimal(String),
    /// A nested table or array, as JSON text.
    Json(String),
}

impl Properties {
    /// The first header of that name; AMQP header names compare exactly.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

impl HeaderValue {
    /// The text, where it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Decimal(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, where it is one.
    pub fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Integer(integer) => Some(*integer),
            _ => None,
        }
    }
}

/// For tests and for those who decode a body themselves.
impl Message {
    /// A message with this body and nothing else. Its id is `test-message`, until [`with_id`](Self::with_id).
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { id: "test-message".to_owned(), body: body.into(), ..Self::default() }
    }

    /// The same, with a text body and the content type `text/plain`.
    pub fn text(body: impl Into<String>) -> Self {
        Self::new(body.into()).with_content_type("text/plain")
    }

    /// The same, with a JSON body.
    ///
    /// # Panics
    /// If `body` cannot be written as JSON (a map with keys that are not strings): this is for tests.
    pub fn json(body: &(impl Serialize + ?Sized)) -> Self {
        match serde_json::to_vec(body) {
            Ok(body) => Self::new(body).with_content_type("application/json"),
            Err(error) => panic!("the body of a test message is not JSON: {error}"),
        }
    }

    /// With this id.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// With this content type.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.properties.content_type = Some(content_type.into());
        self
    }

    /// With this routing key.
    #[must_use]
    pub fn with_routing_key(mut self, routing_key: impl Into<String>) -> Self {
        self.routing_key = routing_key.into();
        self
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<HeaderValue>) -> Self {
        self.properties.headers.push((name.into(), value.into()));
        self
    }

    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.properties.header(name)
    }

    /// The body as text; a permanent failure `undecodable` if it is not UTF-8.
    pub fn body_text(&self) -> Result<&str, Failure> {
        std::str::from_utf8(&self.body).map_err(|error| Failure::undecodable(format!("the body is not UTF-8: {error}")))
    }

    /// The body read as JSON; a permanent failure `undecodable` that names what is wrong with it otherwise.
    pub fn body_json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let hint = if self.body.is_empty() { " (the body is empty)" } else { "" };
            Failure::undecodable(format!("the body is not the JSON that this handler expects: {error}{hint}"))
        })
    }
}

macro_rules! header_from {
    ($($from:ty => $value:ident => $to:expr),* $(,)?) => {
        $(impl From<$from> for HeaderValue {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}

header_from! {
    &str => value => Self::Text(value.to_owned()),
    String => value => Self::Text(value),
    &String => value => Self::Text(value.clone()),
    bool => value => Self::Boolean(value),
    i64 => value => Self::Integer(value),
    i32 => value => Self::Integer(value.into()),
    u32 => value => Self::Integer(value.into()),
    f64 => value => Self::Float(value),
    Vec<u8> => value => Self::Bytes(value),
}
