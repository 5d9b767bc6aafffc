//! What each id rule reads.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{IdRule, Problem};
use crate::message::{HeaderValue, Message, MessageId, Properties};

/// Prefixes of CloudEvents attributes in headers: the two of the AMQP binding, and those of HTTP and Kafka, which
/// bridges leave in place. Id and source are taken from the same family.
const CLOUD_EVENT_PREFIXES: [&str; 4] = ["cloudEvents:", "cloudEvents_", "ce-", "ce_"];

/// Applies one rule.
pub(super) fn find(rule: &IdRule, message: &Message) -> Result<MessageId, Problem> {
    match rule {
        IdRule::Property => match &message.properties.message_id {
            Some(id) => Ok(MessageId::new(id.as_str())?),
            None => Err(Problem::Absent("the property is not set")),
        },
        IdRule::Header(name) => match message.properties.header(name) {
            Some(value) => from_header(value),
            None => Err(Problem::Absent("there is no such header")),
        },
        IdRule::CloudEvents => from_cloud_event(message),
        IdRule::Json(pointer) => from_json(json_at(&message.body, pointer.as_str())?.as_ref()),
        IdRule::BodyDigest => Ok(MessageId::new(body_digest(&message.body))?),
    }
}

fn from_header(value: &HeaderValue) -> Result<MessageId, Problem> {
    if let Some(text) = value.as_text() {
        return Ok(MessageId::new(text.as_ref())?);
    }
    match value {
        HeaderValue::Bytes(bytes) => Ok(MessageId::from_bytes(bytes)?),
        HeaderValue::Null => Err(Problem::Absent("the header is null")),
        HeaderValue::Boolean(_) => Err(Problem::NotText("a boolean")),
        HeaderValue::Float(_) => Err(Problem::NotText("a floating point number")),
        _ => Err(Problem::NotText("a table or an array")),
    }
}

/// The value under a pointer in a JSON body; `None` where the document has no such place.
pub(super) fn json_at(body: &[u8], pointer: &str) -> Result<Option<Value>, Problem> {
    let mut document: Value = serde_json::from_slice(body).map_err(|_| Problem::Absent("the body is not JSON"))?;
    Ok(document.pointer_mut(pointer).map(Value::take))
}

fn from_json(value: Option<&Value>) -> Result<MessageId, Problem> {
    match value {
        None => Err(Problem::Absent("the body has no such field")),
        Some(Value::Null) => Err(Problem::Absent("the field is null")),
        Some(Value::String(text)) => Ok(MessageId::new(text.as_str())?),
        Some(Value::Number(number)) => Ok(MessageId::new(number.to_string())?),
        Some(Value::Bool(_)) => Err(Problem::NotText("a boolean")),
        Some(Value::Array(_)) => Err(Problem::NotText("an array")),
        Some(Value::Object(_)) => Err(Problem::NotText("an object")),
    }
}

fn from_cloud_event(message: &Message) -> Result<MessageId, Problem> {
    let (id, source) = if is_structured_cloud_event(&message.properties) {
        let event = json_at(&message.body, "")?.unwrap_or_default();
        (attribute(from_json(event.get("id")))?, attribute(from_json(event.get("source")))?)
    } else {
        binary_cloud_event(&message.properties)?
    };
    match (id, source) {
        (Some(id), Some(source)) => Ok(MessageId::new(format!("{source} {id}"))?),
        (Some(_), None) => Err(Problem::NoSource),
        (None, _) => Err(Problem::Absent("the message is no CloudEvent")),
    }
}

/// Binary mode: attributes are headers. The first family of names that has an id counts.
fn binary_cloud_event(properties: &Properties) -> Result<(Option<MessageId>, Option<MessageId>), Problem> {
    let header = |prefix: &str, name: &str| properties.header(&format!("{prefix}{name}")).map(from_header);
    for prefix in CLOUD_EVENT_PREFIXES {
        if let Some(id) = header(prefix, "id") {
            let source = header(prefix, "source").map(attribute).transpose()?.flatten();
            return Ok((attribute(id)?, source));
        }
    }
    Ok((None, None))
}

fn is_structured_cloud_event(properties: &Properties) -> bool {
    let content_type = properties.content_type.as_deref().unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/cloudevents+json")
}

/// One attribute: absence is no error here.
fn attribute(found: Result<MessageId, Problem>) -> Result<Option<MessageId>, Problem> {
    match found {
        Ok(text) => Ok(Some(text)),
        Err(problem) if problem.is_absence() => Ok(None),
        Err(problem) => Err(problem),
    }
}

fn body_digest(body: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(body).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}
