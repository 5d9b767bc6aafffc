//! Partitions: which messages must not run side by side.
//!
//! The hash is part of the stored format (`hapax_parked.slot`) and shared by all hosts: SHA-256 of the key's bytes, of
//! which the first eight, read as a big-endian number, are the partition key, and the first one is the slot. It never
//! changes; golden values in the tests hold it.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::source::json_at;
use super::{BadRule, JsonPointer, header_name};
use crate::message::{HeaderValue, Message, MessageId};

/// How many slots there are.
pub const SLOTS: u16 = 256;

/// What the partition of a message is computed from. Where a message lacks it, its id takes its place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PartitionRule {
    /// `body`: the whole body.
    Body,
    /// `message-id`: the message id.
    MessageId,
    /// `routing-key`: the routing key.
    RoutingKey,
    /// `header:NAME`: an application header of any type but null.
    Header(String),
    /// `json:/pointer`: any value but null in a JSON body, by JSON Pointer (RFC 6901); a string and a number that read
    /// the same are the same key.
    Json(JsonPointer),
}

impl PartitionRule {
    /// How the rules are written, for messages.
    pub const FORMS: [&str; 5] = ["body", "message-id", "routing-key", "header:NAME", "json:/pointer"];
}

impl FromStr for PartitionRule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        Ok(match text.split_once(':') {
            Some(("header", name)) => Self::Header(header_name(name)?),
            Some(("json", pointer)) => Self::Json(pointer.parse()?),
            _ => match text {
                "body" => Self::Body,
                "message-id" => Self::MessageId,
                "routing-key" => Self::RoutingKey,
                _ => return Err(BadRule::Unknown(text.to_owned())),
            },
        })
    }
}

impl fmt::Display for PartitionRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => f.write_str("body"),
            Self::MessageId => f.write_str("message-id"),
            Self::RoutingKey => f.write_str("routing-key"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(pointer) => write!(f, "json:{}", pointer.as_str()),
        }
    }
}

/// A message's place among the partitions: equal keys never run side by side within a host, and a batch runs sorted by
/// it. Sorting by key sorts by slot too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartitionKey(pub u64);

impl PartitionKey {
    fn of(key: &[u8]) -> Self {
        let digest = Sha256::digest(key);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }

    /// The slot, below [`SLOTS`]: what a parked row keeps.
    pub fn slot(self) -> u16 {
        u16::from(self.0.to_be_bytes()[0])
    }
}

/// The partition key of a message under a rule.
pub fn partition_key(rule: &PartitionRule, message: &Message, id: &MessageId) -> PartitionKey {
    let key: Option<Cow<'_, [u8]>> = match rule {
        PartitionRule::Body => Some(Cow::Borrowed(&message.body)),
        PartitionRule::MessageId => None,
        PartitionRule::RoutingKey => Some(Cow::Borrowed(message.routing_key.as_bytes())),
        PartitionRule::Header(name) => message.properties.header(name).and_then(header_bytes),
        PartitionRule::Json(pointer) => {
            json_at(&message.body, pointer.as_str()).ok().flatten().and_then(json_bytes).map(Cow::Owned)
        }
    };
    PartitionKey::of(key.as_deref().unwrap_or(id.as_bytes()))
}

/// The slot of a message under a rule, below [`SLOTS`].
pub fn slot(rule: &PartitionRule, message: &Message, id: &MessageId) -> u16 {
    partition_key(rule, message, id).slot()
}

/// Which of `lanes` lanes a slot belongs to. Each lane has one unbroken range of slots, so that "due rows of this lane"
/// is one range of an index. `lanes` of 0 counts as 1.
pub fn lane_of(slot: u16, lanes: u16) -> u16 {
    let lane = u32::from(slot.min(SLOTS - 1)) * u32::from(lanes.max(1)) / u32::from(SLOTS);
    u16::try_from(lane).unwrap_or(u16::MAX) // it is below `lanes`
}

/// The slots of a lane: those that [`lane_of`] maps to it.
pub fn slots_of(lane: u16, lanes: u16) -> Range<u16> {
    let first = |lane: u32| (lane * u32::from(SLOTS)).div_ceil(u32::from(lanes.max(1))).min(u32::from(SLOTS));
    let narrow = |slot: u32| u16::try_from(slot).unwrap_or(SLOTS);
    narrow(first(u32::from(lane)))..narrow(first(u32::from(lane) + 1))
}

fn header_bytes(value: &HeaderValue) -> Option<Cow<'_, [u8]>> {
    Some(match value {
        HeaderValue::Null => return None,
        HeaderValue::Text(text) | HeaderValue::Decimal(text) | HeaderValue::Json(text) => {
            Cow::Borrowed(text.as_bytes())
        }
        HeaderValue::Bytes(bytes) => Cow::Borrowed(bytes),
        HeaderValue::Integer(number) => Cow::Owned(number.to_string().into_bytes()),
        HeaderValue::Timestamp(seconds) => Cow::Owned(seconds.to_string().into_bytes()),
        HeaderValue::Float(number) => Cow::Owned(number.to_string().into_bytes()),
        HeaderValue::Boolean(flag) => Cow::Owned(flag.to_string().into_bytes()),
    })
}

fn json_bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.into_bytes()),
        other => Some(other.to_string().into_bytes()),
    }
}
