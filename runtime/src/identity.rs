//! Which message this is, and which partition it belongs to: the consumer's `message_id` and `partition_by` rules.
//!
//! ```
//! use hapax::identity::{IdRule, extract};
//! # use hapax::message::{HeaderValue, Message, Properties};
//! # let headers = vec![("order".to_owned(), HeaderValue::Integer(42))];
//! # let message = Message { exchange: String::new(), routing_key: String::new(), body: bytes::Bytes::new(),
//! #     properties: Properties { headers, ..Properties::default() } };
//! let rules: Vec<IdRule> = vec!["property".parse()?, "header:order".parse()?];
//! assert_eq!(extract(&rules, &message).map(|id| id.to_string()), Ok("42".to_owned()));
//! # Ok::<(), hapax::identity::BadRule>(())
//! ```
//!
//! Rules are tried in order. A rule that finds nothing hands over to the next one. A rule that finds something which
//! cannot be an id (empty, longer than 255 bytes, …) ends the search: falling back would give one message two ids,
//! depending on which of its fields was damaged. So there are two reasons: `no-id` (nothing found) and `bad-id`.

mod partition;
mod source;

use std::fmt;
use std::str::FromStr;

use crate::message::{BadMessageId, Message, MessageId};

pub use partition::{PartitionKey, PartitionRule, SLOTS, lane_of, partition_key, slot, slots_of};

/// Where a message id is looked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IdRule {
    /// `property`: the AMQP property `message-id`.
    Property,
    /// `header:NAME`: an application header; text, a number, or bytes that are UTF-8.
    Header(String),
    /// `cloudevents`: source and id of a CloudEvent, in binary or structured mode, joined by one space. An event is
    /// identified by both, and a source is a URI reference, which holds no space.
    CloudEvents,
    /// `json:/pointer`: a string or a number (as it is written) in a JSON body, by JSON Pointer (RFC 6901).
    Json(JsonPointer),
    /// `body-digest`: `sha256:` and the SHA-256 of the body in hex; always found.
    BodyDigest,
}

/// A JSON Pointer (RFC 6901) whose syntax was checked. The empty pointer is the whole document.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JsonPointer(String);

impl JsonPointer {
    /// The pointer as it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JsonPointer {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        if !text.is_empty() && !text.starts_with('/') {
            return Err(BadRule::Pointer(format!("a JSON pointer begins with `/`: `/{text}`")));
        }
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if character == '~' && !matches!(characters.next(), Some('0' | '1')) {
                return Err(BadRule::Pointer(
                    "in a JSON pointer, `~` is written `~0`, and `/` inside a name `~1`".to_owned(),
                ));
            }
        }
        Ok(Self(text.to_owned()))
    }
}

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// No rule has that name.
    #[error("unknown rule `{0}`")]
    Unknown(String),
    /// `header:` without a name.
    #[error("`header:` needs the name of a header")]
    NoHeaderName,
    /// The JSON pointer is wrong.
    #[error("{0}")]
    Pointer(String),
}

impl IdRule {
    /// How the rules are written, for messages.
    pub const FORMS: [&str; 5] = ["property", "header:NAME", "cloudevents", "json:/pointer", "body-digest"];
}

impl FromStr for IdRule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        Ok(match text.split_once(':') {
            Some(("header", name)) => Self::Header(header_name(name)?),
            Some(("json", pointer)) => Self::Json(pointer.parse()?),
            _ => match text {
                "property" => Self::Property,
                "cloudevents" => Self::CloudEvents,
                "body-digest" => Self::BodyDigest,
                _ => return Err(BadRule::Unknown(text.to_owned())),
            },
        })
    }
}

fn header_name(name: &str) -> Result<String, BadRule> {
    if name.is_empty() { Err(BadRule::NoHeaderName) } else { Ok(name.to_owned()) }
}

impl fmt::Display for IdRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Property => f.write_str("property"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::CloudEvents => f.write_str("cloudevents"),
            Self::Json(pointer) => write!(f, "json:{}", pointer.as_str()),
            Self::BodyDigest => f.write_str("body-digest"),
        }
    }
}

/// What one rule met instead of an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Nothing there; the next rule is tried.
    #[error("{0}")]
    Absent(&'static str),
    /// It cannot be an id.
    #[error("{0}")]
    Bad(#[from] BadMessageId),
    /// It is neither text nor a number.
    #[error("it is {0}, where text or a number is expected")]
    NotText(&'static str),
    /// A CloudEvents id alone does not identify an event.
    #[error("the CloudEvent has an id but no source")]
    NoSource,
}

impl Problem {
    fn is_absence(&self) -> bool {
        matches!(self, Self::Absent(_))
    }
}

/// No message id: the rules that were tried, and what each of them met. Never shows a value of the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoId {
    /// In the order tried; the last one decides the reason.
    pub tried: Vec<(IdRule, Problem)>,
}

impl NoId {
    /// The reason of the dead letter: `no-id` where nothing was found, `bad-id` where something unusable was.
    pub fn reason(&self) -> &'static str {
        if self.tried.iter().all(|(_, problem)| problem.is_absence()) { "no-id" } else { "bad-id" }
    }
}

impl fmt::Display for NoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no usable message id")?;
        for (index, (rule, problem)) in self.tried.iter().enumerate() {
            write!(f, "{} {rule}: {problem}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for NoId {}

/// The message's id under these rules, tried in order.
pub fn extract(rules: &[IdRule], message: &Message) -> Result<MessageId, NoId> {
    let mut tried = Vec::new();
    for rule in rules {
        match source::find(rule, message) {
            Ok(id) => return Ok(id),
            Err(problem) => {
                let ends = !problem.is_absence();
                tried.push((rule.clone(), problem));
                if ends {
                    break;
                }
            }
        }
    }
    Err(NoId { tried })
}

#[cfg(test)]
mod tests;
