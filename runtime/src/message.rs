//! What a producer sent, and the names by which Hapax knows it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::sabotage::{self, Breach};

/// Longest message id in bytes: what a key column of every supported database holds whole.
pub const MAX_MESSAGE_ID_BYTES: usize = 255;

/// The idempotency key of a message, unique within a consumer: 1 to 255 bytes of UTF-8 without NUL.
///
/// It is compared as bytes, in Rust and in SQL: case, accents and trailing spaces count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(Arc<str>);

/// Why a text cannot be a message id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessageId {
    /// There is nothing in it.
    #[error("the message id is empty")]
    Empty,
    /// It is longer than [`MAX_MESSAGE_ID_BYTES`].
    #[error("the message id has {0} bytes; at most 255 are accepted")]
    TooLong(usize),
    /// It holds a NUL, which Postgres and C clients cannot carry in text.
    #[error("the message id contains a NUL character")]
    Nul,
    /// It is not UTF-8.
    #[error("the message id is not valid UTF-8")]
    NotUtf8,
}

impl MessageId {
    /// Checks `text` against the rule for message ids.
    pub fn new(text: impl Into<Arc<str>>) -> Result<Self, BadMessageId> {
        let text: Arc<str> = text.into();
        match text.len() {
            0 => Err(BadMessageId::Empty),
            n if n > MAX_MESSAGE_ID_BYTES => Err(BadMessageId::TooLong(n)),
            _ if text.as_bytes().contains(&0) && !sabotage::broken(Breach::IdsUnchecked) => Err(BadMessageId::Nul),
            _ => Ok(Self(text)),
        }
    }

    /// The same for bytes, as they come from a database or a header.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadMessageId> {
        Self::new(std::str::from_utf8(bytes).map_err(|_| BadMessageId::NotUtf8)?)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as the bytes that SQL compares.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The first 16 bytes of a body's SHA-256: enough to tell a repeated message from another one under the same id,
/// at half the cost in every inbox row.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BodyDigest(pub [u8; 16]);

impl BodyDigest {
    /// Digests a body.
    pub fn of(body: &[u8]) -> Self {
        let full = Sha256::digest(body);
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

impl fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One header, or one field of a nested table that was flattened to JSON. Mirrors `header-value` of the contract.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeaderValue {
    /// AMQP void.
    Null,
    /// A string that is UTF-8.
    Text(String),
    /// Any AMQP integer that fits; unsigned 64-bit ones that do not are `Decimal`.
    Integer(i64),
    /// Float or double.
    Float(#[serde(with = "any_float")] f64),
    /// Boolean.
    Boolean(bool),
    /// A byte array, or a string that is not UTF-8.
    Bytes(#[serde(with = "base64_bytes")] Vec<u8>),
    /// Seconds since the Unix epoch.
    Timestamp(u64),
    /// An AMQP decimal, as text.
    Decimal(String),
    /// A nested table or array, as JSON text.
    Json(String),
}

impl HeaderValue {
    /// The value as text where it is one: strings, and numbers in their shortest form.
    pub fn as_text(&self) -> Option<std::borrow::Cow<'_, str>> {
        use std::borrow::Cow;
        match self {
            Self::Text(text) | Self::Decimal(text) => Some(Cow::Borrowed(text)),
            Self::Integer(number) => Some(Cow::Owned(number.to_string())),
            Self::Timestamp(seconds) => Some(Cow::Owned(seconds.to_string())),
            _ => None,
        }
    }
}

/// The AMQP 0-9-1 basic properties, all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Properties {
    /// MIME type of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// MIME content encoding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_encoding: Option<String>,
    /// Application headers, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, HeaderValue)>,
    /// 1 transient, 2 persistent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery_mode: Option<u8>,
    /// 0 to 9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Correlation id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// Where an answer is expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Per-message time to live in milliseconds, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<String>,
    /// The producer's message id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// Seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<u64>,
    /// Message type name.
    #[serde(skip_serializing_if = "Option::is_none", rename = "type")]
    pub kind: Option<String>,
    /// The user that published, checked by the broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The publishing application.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_id: Option<String>,
}

impl Properties {
    /// The first header of that name; AMQP header names compare exactly.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// What the producer sent: properties and body, and the address it was published to.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The exchange it was published to; empty for the default exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its properties, as first published.
    pub properties: Properties,
    /// Its body, shared between the delivery and everything made from it.
    pub body: Bytes,
}

/// Serde for floats, those that JSON has no number for included: AMQP can deliver NaN and infinities.
mod any_float {
    use serde::{Deserialize as _, Deserializer, Serializer};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_str(&value.to_string()) }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Number(number) => number.as_f64().ok_or_else(|| serde::de::Error::custom("a number out of range")),
            Value::String(text) => text.parse().map_err(serde::de::Error::custom),
            _ => Err(serde::de::Error::custom("neither a number nor the name of one")),
        }
    }
}

/// Serde for byte strings inside JSON.
mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_id_has_1_to_255_bytes_and_no_nul() {
        assert_eq!(MessageId::new(""), Err(BadMessageId::Empty));
        assert_eq!(MessageId::new("a\0b"), Err(BadMessageId::Nul));
        assert_eq!(MessageId::new("é".repeat(128)), Err(BadMessageId::TooLong(256)));
        assert!(MessageId::new("x".repeat(255)).is_ok());
        assert_eq!(MessageId::from_bytes(&[0xff]), Err(BadMessageId::NotUtf8));
    }

    #[test]
    fn ids_that_differ_in_case_or_trailing_space_are_different() {
        let id = |text: &str| MessageId::new(text).unwrap();
        assert_ne!(id("A"), id("a"));
        assert_ne!(id("a"), id("a "));
    }

    #[test]
    fn floats_survive_json_whatever_they_are() {
        for value in [0.1, -0.0, f64::MAX, f64::INFINITY, f64::NEG_INFINITY] {
            let json = serde_json::to_string(&HeaderValue::Float(value)).unwrap();
            assert_eq!(serde_json::from_str::<HeaderValue>(&json).unwrap(), HeaderValue::Float(value), "{json}");
        }
        let json = serde_json::to_string(&HeaderValue::Float(f64::NAN)).unwrap();
        assert!(matches!(serde_json::from_str(&json), Ok(HeaderValue::Float(value)) if value.is_nan()));
    }

    #[test]
    fn properties_survive_json() {
        let properties = Properties {
            headers: vec![
                ("a".into(), HeaderValue::Bytes(vec![0, 255])),
                ("b".into(), HeaderValue::Null),
                ("c".into(), HeaderValue::Integer(i64::MIN)),
                ("d".into(), HeaderValue::Json("[1]".into())),
            ],
            kind: Some("order".into()),
            ..Properties::default()
        };
        let json = serde_json::to_string(&properties).unwrap();
        assert_eq!(serde_json::from_str::<Properties>(&json).unwrap(), properties);
    }
}
