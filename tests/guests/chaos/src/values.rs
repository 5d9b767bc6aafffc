//! Values between JSON and the contract.

use serde_json::{Value as Json, json};

use crate::bindings::hapax::handler::sql::Value;
use crate::bindings::hapax::handler::types::{HeaderValue, Message, Properties};

/// A parameter as the module documentation writes it; variables are resolved by the caller.
pub(crate) fn to_sql(json: &Json) -> Result<Value, String> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::Bool(boolean) => Value::Boolean(*boolean),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => Value::Int64(int),
            (None, Some(float)) => Value::Float64(float),
            (None, None) => Value::Decimal(number.to_string()),
        },
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(object) if object.len() == 1 => match object.iter().next() {
            Some((tag, value)) => tagged(tag, value)?,
            None => return Err("an empty object is no value".into()),
        },
        other => return Err(format!("{other} is no value")),
    })
}

fn tagged(tag: &str, value: &Json) -> Result<Value, String> {
    let text = match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(match tag {
        "int" => Value::Int64(text.parse().map_err(|_| format!("{text} is no 64-bit integer"))?),
        "float" => Value::Float64(text.parse().map_err(|_| format!("{text} is no float"))?),
        "text" => Value::Text(text),
        "decimal" => Value::Decimal(text),
        "uuid" => Value::Uuid(text),
        "date" => Value::Date(text),
        "time" => Value::Time(text),
        "timestamp" => Value::Timestamp(text),
        "timestamptz" => Value::Timestamptz(text),
        "json" => Value::Json(text),
        "blob" => Value::Blob(from_hex(&text)?),
        "other" => match (value[0].as_str(), value[1].as_str()) {
            (Some(kind), Some(text)) => Value::Other((kind.into(), text.into())),
            _ => return Err("other takes [type, text]".into()),
        },
        _ => return Err(format!("{tag} is no kind of value")),
    })
}

/// A value that was read, in the same notation.
pub(crate) fn from_sql(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Boolean(boolean) => json!(boolean),
        Value::Int64(int) => json!(int),
        Value::Float64(float) if float.is_finite() => json!(float),
        Value::Float64(float) => json!({ "float": float.to_string() }),
        Value::Text(text) => json!(text),
        Value::Blob(bytes) => json!({ "blob": hex(bytes) }),
        Value::Decimal(text) => json!({ "decimal": text }),
        Value::Uuid(text) => json!({ "uuid": text }),
        Value::Date(text) => json!({ "date": text }),
        Value::Time(text) => json!({ "time": text }),
        Value::Timestamp(text) => json!({ "timestamp": text }),
        Value::Timestamptz(text) => json!({ "timestamptz": text }),
        Value::Json(text) => json!({ "json": text }),
        Value::Other((kind, text)) => json!({ "other": [kind, text] }),
    }
}

/// Everything of a message but its body.
pub(crate) fn describe(message: &Message) -> Json {
    let properties = &message.properties;
    let headers: Vec<Json> = properties.headers.iter().map(|(name, value)| json!([name, from_header(value)])).collect();
    json!({
        "id": message.id, "exchange": message.exchange, "routing-key": message.routing_key,
        "body-bytes": message.body.len(), "content-type": properties.content_type,
        "content-encoding": properties.content_encoding, "headers": headers,
        "delivery-mode": properties.delivery_mode, "priority": properties.priority,
        "correlation-id": properties.correlation_id, "reply-to": properties.reply_to,
        "expiration": properties.expiration, "message-id": properties.message_id,
        "timestamp": properties.timestamp, "type": properties.type_, "user-id": properties.user_id,
        "app-id": properties.app_id,
    })
}

fn from_header(value: &HeaderValue) -> Json {
    match value {
        HeaderValue::Null => Json::Null,
        HeaderValue::Text(text) => json!(text),
        HeaderValue::Integer(int) => json!(int),
        HeaderValue::Float(float) => json!({ "float": float.to_string() }),
        HeaderValue::Boolean(boolean) => json!(boolean),
        HeaderValue::Bytes(bytes) => json!({ "bytes": hex(bytes) }),
        HeaderValue::Timestamp(seconds) => json!({ "timestamp": seconds }),
        HeaderValue::Decimal(text) => json!({ "decimal": text }),
        HeaderValue::Json(text) => json!({ "json": text }),
    }
}

/// A header to publish: plain JSON, or the notation of `from_header`.
fn to_header(json: &Json) -> Result<HeaderValue, String> {
    let one = json.as_object().filter(|object| object.len() == 1).and_then(|object| object.iter().next());
    Ok(match (json, one) {
        (Json::Null, _) => HeaderValue::Null,
        (Json::Bool(boolean), _) => HeaderValue::Boolean(*boolean),
        (Json::String(text), _) => HeaderValue::Text(text.clone()),
        (Json::Number(number), _) => match (number.as_i64(), number.as_f64()) {
            (Some(int), _) => HeaderValue::Integer(int),
            (None, float) => HeaderValue::Float(float.unwrap_or(f64::NAN)),
        },
        (_, Some((tag, value))) if tag == "bytes" => HeaderValue::Bytes(from_hex(value.as_str().unwrap_or(""))?),
        (_, Some((tag, value))) if tag == "timestamp" => HeaderValue::Timestamp(value.as_u64().unwrap_or(0)),
        (_, Some((tag, value))) if tag == "decimal" => HeaderValue::Decimal(value.as_str().unwrap_or("").into()),
        (_, Some((tag, value))) if tag == "json" => HeaderValue::Json(value.as_str().unwrap_or("").into()),
        (other, _) => HeaderValue::Json(other.to_string()),
    })
}

/// The properties of a `publish` step.
pub(crate) fn properties(headers: &Json, properties: &Json) -> Result<Properties, String> {
    let text = |name: &str| properties[name].as_str().map(str::to_owned);
    let byte = |name: &str| properties[name].as_u64().and_then(|number| u8::try_from(number).ok());
    let headers = headers.as_object().into_iter().flatten();
    Ok(Properties {
        content_type: text("content-type"),
        content_encoding: text("content-encoding"),
        headers: headers.map(|(name, value)| Ok((name.clone(), to_header(value)?))).collect::<Result<_, String>>()?,
        delivery_mode: byte("delivery-mode"),
        priority: byte("priority"),
        correlation_id: text("correlation-id"),
        reply_to: text("reply-to"),
        expiration: text("expiration"),
        message_id: text("message-id"),
        timestamp: properties["timestamp"].as_u64(),
        type_: text("type"),
        user_id: text("user-id"),
        app_id: text("app-id"),
    })
}

/// FNV-1a with 64 bits, in hex: tells contents apart, and needs no library that the test would have to share.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .filter(|digits: &Vec<u8>| digits.len().is_multiple_of(2))
        .ok_or_else(|| format!("{text:?} is not hex"))?;
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}
