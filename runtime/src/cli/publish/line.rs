//! One line of `--lines`.

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::identify;
use crate::broker::Outgoing;
use crate::message::{HeaderValue, Properties};

/// A message as a JSON object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    body: Option<Value>,
    body_base64: Option<String>,
    id: Option<String>,
    #[serde(default)]
    headers: Map<String, Value>,
    exchange: Option<String>,
    routing_key: Option<String>,
    content_type: Option<String>,
    properties: Option<Properties>,
}

impl Line {
    /// Reads a line.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(serde_json::from_str(text)?)
    }

    /// The message, complete.
    pub(super) fn message(self, defaults: &Outgoing) -> anyhow::Result<Outgoing> {
        let mut message = defaults.clone();
        let mut inferred = None;
        message.body = match (self.body, self.body_base64) {
            (Some(_), Some(_)) => bail!("it has both `body` and `body_base64`"),
            (None, Some(text)) => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                bytes.context("`body_base64` is not base64")?.into()
            }
            (Some(Value::String(text)), None) => text.into(),
            (Some(json), None) => {
                inferred = Some("application/json".to_owned());
                json.to_string().into()
            }
            (None, None) => bytes::Bytes::new(),
        };
        if let Some(properties) = self.properties {
            let default = std::mem::replace(&mut message.properties, properties);
            message.properties.headers.extend(default.headers);
            message.properties.content_type = message.properties.content_type.take().or(default.content_type);
        }
        message.exchange = self.exchange.unwrap_or(message.exchange);
        message.routing_key = self.routing_key.unwrap_or(message.routing_key);
        let properties = &mut message.properties;
        properties.content_type = self.content_type.or_else(|| properties.content_type.take()).or(inferred);
        for (name, value) in self.headers {
            properties.headers.retain(|(other, _)| *other != name);
            properties.headers.push((name, header(value)));
        }
        ensure!(
            !(message.exchange.is_empty() && message.routing_key.is_empty()),
            "it says nowhere to go: `routing_key` (and `exchange`) here, or --queue"
        );
        identify(&mut message, self.id)?;
        Ok(message)
    }
}

fn header(value: Value) -> HeaderValue {
    match value {
        Value::Null => HeaderValue::Null,
        Value::Bool(boolean) => HeaderValue::Boolean(boolean),
        Value::String(text) => HeaderValue::Text(text),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => HeaderValue::Integer(integer),
            (None, Some(float)) if number.to_string().contains(['.', 'e', 'E']) => HeaderValue::Float(float),
            (None, _) => HeaderValue::Text(number.to_string()),
        },
        nested @ (Value::Array(_) | Value::Object(_)) => HeaderValue::Json(nested.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(line: &str) -> anyhow::Result<Outgoing> {
        let properties = Properties { headers: vec![("a".into(), HeaderValue::Integer(0))], ..Properties::default() };
        let defaults =
            Outgoing { exchange: "x".into(), routing_key: "k".into(), properties, body: bytes::Bytes::new() };
        Line::parse(line)?.message(&defaults)
    }

    #[test]
    fn a_body_is_text_or_json_or_base64() {
        let json = message(r#"{"body": {"id": 1234567890123456789, "b": [1.50]}}"#).unwrap();
        assert_eq!(json.body, r#"{"id":1234567890123456789,"b":[1.50]}"#, "numbers stay as they were written");
        assert_eq!(json.properties.content_type.as_deref(), Some("application/json"));
        let text = message(r#"{"body": "1 2"}"#).unwrap();
        assert_eq!((&text.body[..], text.properties.content_type), (&b"1 2"[..], None));
        assert_eq!(message(r#"{"body_base64": "/wA="}"#).unwrap().body[..], [0xff, 0]);
        assert!(message(r#"{"body": "", "body_base64": ""}"#).is_err());
    }

    #[test]
    fn what_a_line_says_goes_before_the_options() {
        let line =
            r#"{"id": "i", "headers": {"a": true, "b": {"c": []}}, "routing_key": "r", "properties": {"priority": 3}}"#;
        let message = message(line).unwrap();
        assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("x", "r"));
        let properties = message.properties;
        assert_eq!(
            (properties.message_id.as_deref(), properties.delivery_mode, properties.priority),
            (Some("i"), Some(2), Some(3))
        );
        let headers =
            vec![("a".into(), HeaderValue::Boolean(true)), ("b".into(), HeaderValue::Json(r#"{"c":[]}"#.into()))];
        assert_eq!(properties.headers, headers);
    }

    #[test]
    fn a_line_that_is_no_message_is_refused() {
        for (line, why) in [
            ("", "EOF"),
            ("[]", "expected struct Line"),
            (r#"{"bdy": 1}"#, "unknown field `bdy`"),
            (r#"{"id": ""}"#, "empty"),
            (r#"{"exchange": "", "routing_key": ""}"#, "nowhere"),
        ] {
            let error = format!("{:#}", message(line).unwrap_err());
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    #[test]
    fn an_id_is_made_where_there_is_none() {
        let ids =
            [message("{}").unwrap(), message("{}").unwrap()].map(|message| message.properties.message_id.unwrap());
        assert!(ids[0] < ids[1], "UUIDv7: in the order of time");
        assert_eq!(uuid::Uuid::parse_str(&ids[0]).unwrap().get_version_num(), 7);
    }
}
