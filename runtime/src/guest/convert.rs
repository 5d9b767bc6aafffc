//! Between the contract's types and those of the host. What a guest hands over is cut to size here.

use std::time::Duration;

use super::bindings::{sql, types};
use super::{Advice, Call, Death, Failure};
use crate::ledger::value::{ResultSet, Value};
use crate::message::{HeaderValue, Properties};

/// Longest failure message in bytes.
pub(crate) const MAX_MESSAGE: usize = 4 << 10;
/// Longest failure detail in bytes.
pub(crate) const MAX_DETAIL: usize = 16 << 10;
/// Longest failure code in bytes.
pub(crate) const MAX_CODE: usize = 128;
/// Longest delay that a guest can advise: ten years. Beyond it, due times leave the range of some databases' types.
const MAX_DELAY: Duration = Duration::from_secs(10 * 366 * 24 * 60 * 60);

/// The message of a call, as the guest sees it.
pub(crate) fn message(call: &Call) -> types::Message {
    types::Message {
        id: call.id.as_str().to_owned(),
        exchange: call.message.exchange.clone(),
        routing_key: call.message.routing_key.clone(),
        properties: properties_to_guest(&call.message.properties),
        body: call.message.body.to_vec(),
    }
}

/// Why a message died, as the guest sees it.
pub(crate) fn death(death: &Death) -> types::Death {
    types::Death {
        reason: death.reason.clone(),
        attempts: death.attempts,
        failure: death.failure.as_ref().map(|failure| types::Failure {
            advice: match failure.advice {
                Advice::ByPolicy => types::Advice::ByPolicy,
                Advice::After(delay) => types::Advice::AfterMs(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
                Advice::Never => types::Advice::Never,
            },
            code: failure.code.clone(),
            message: failure.message.clone(),
            detail: failure.detail.clone(),
        }),
    }
}

/// A guest's failure, cut to size and free of NULs, so that every log and every database can hold it.
pub(crate) fn failure(failure: types::Failure) -> Failure {
    let advice = match failure.advice {
        types::Advice::ByPolicy => Advice::ByPolicy,
        types::Advice::AfterMs(delay) => Advice::After(Duration::from_millis(delay).min(MAX_DELAY)),
        types::Advice::Never => Advice::Never,
    };
    let filled = |text: String| Some(text).filter(|text| !text.is_empty());
    Failure {
        advice,
        code: failure.code.map(|code| one_line(cut(code, MAX_CODE))).and_then(filled),
        message: filled(cut(failure.message, MAX_MESSAGE)).unwrap_or_else(|| "the handler gave no reason".to_owned()),
        detail: failure.detail.map(|detail| cut(detail, MAX_DETAIL)).and_then(filled),
    }
}

/// Cuts `text` to at most `limit` bytes between two characters, and replaces NULs.
pub(crate) fn cut(mut text: String, limit: usize) -> String {
    text.truncate(text.floor_char_boundary(limit));
    // A NUL has one byte, its replacement must too, or the text could outgrow the limit again.
    if text.contains('\0') { text.replace('\0', "?") } else { text }
}

/// Replaces control characters: codes become labels of metrics and words in a terminal.
fn one_line(text: String) -> String {
    if text.contains(char::is_control) {
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>()
    } else {
        text
    }
}

fn properties_to_guest(properties: &Properties) -> types::Properties {
    let properties = properties.clone();
    types::Properties {
        content_type: properties.content_type,
        content_encoding: properties.content_encoding,
        headers: properties.headers.into_iter().map(|(name, value)| (name, header_to_guest(value))).collect(),
        delivery_mode: properties.delivery_mode,
        priority: properties.priority,
        correlation_id: properties.correlation_id,
        reply_to: properties.reply_to,
        expiration: properties.expiration,
        message_id: properties.message_id,
        timestamp: properties.timestamp,
        type_: properties.kind,
        user_id: properties.user_id,
        app_id: properties.app_id,
    }
}

/// Properties that a guest made, as they are.
pub(crate) fn properties(properties: types::Properties) -> Properties {
    Properties {
        content_type: properties.content_type,
        content_encoding: properties.content_encoding,
        headers: properties.headers.into_iter().map(|(name, value)| (name, header(value))).collect(),
        delivery_mode: properties.delivery_mode,
        priority: properties.priority,
        correlation_id: properties.correlation_id,
        reply_to: properties.reply_to,
        expiration: properties.expiration,
        message_id: properties.message_id,
        timestamp: properties.timestamp,
        kind: properties.type_,
        user_id: properties.user_id,
        app_id: properties.app_id,
    }
}

fn header_to_guest(value: HeaderValue) -> types::HeaderValue {
    match value {
        HeaderValue::Null => types::HeaderValue::Null,
        HeaderValue::Text(text) => types::HeaderValue::Text(text),
        HeaderValue::Integer(number) => types::HeaderValue::Integer(number),
        HeaderValue::Float(number) => types::HeaderValue::Float(number),
        HeaderValue::Boolean(boolean) => types::HeaderValue::Boolean(boolean),
        HeaderValue::Bytes(bytes) => types::HeaderValue::Bytes(bytes),
        HeaderValue::Timestamp(seconds) => types::HeaderValue::Timestamp(seconds),
        HeaderValue::Decimal(text) => types::HeaderValue::Decimal(text),
        HeaderValue::Json(text) => types::HeaderValue::Json(text),
    }
}

fn header(value: types::HeaderValue) -> HeaderValue {
    match value {
        types::HeaderValue::Null => HeaderValue::Null,
        types::HeaderValue::Text(text) => HeaderValue::Text(text),
        types::HeaderValue::Integer(number) => HeaderValue::Integer(number),
        types::HeaderValue::Float(number) => HeaderValue::Float(number),
        types::HeaderValue::Boolean(boolean) => HeaderValue::Boolean(boolean),
        types::HeaderValue::Bytes(bytes) => HeaderValue::Bytes(bytes),
        types::HeaderValue::Timestamp(seconds) => HeaderValue::Timestamp(seconds),
        types::HeaderValue::Decimal(text) => HeaderValue::Decimal(text),
        types::HeaderValue::Json(text) => HeaderValue::Json(text),
    }
}

/// A parameter on its way to the database.
pub(crate) fn value(value: sql::Value) -> Value {
    match value {
        sql::Value::Null => Value::Null,
        sql::Value::Boolean(boolean) => Value::Boolean(boolean),
        sql::Value::Int64(number) => Value::Int(number),
        sql::Value::Float64(number) => Value::Float(number),
        sql::Value::Text(text) => Value::Text(text),
        sql::Value::Blob(bytes) => Value::Blob(bytes),
        sql::Value::Decimal(text) => Value::Decimal(text),
        sql::Value::Uuid(text) => Value::Uuid(text),
        sql::Value::Date(text) => Value::Date(text),
        sql::Value::Time(text) => Value::Time(text),
        sql::Value::Timestamp(text) => Value::Timestamp(text),
        sql::Value::Timestamptz(text) => Value::Timestamptz(text),
        sql::Value::Json(text) => Value::Json(text),
        sql::Value::Other((type_name, text)) => Value::Other { type_name, text },
    }
}

fn value_to_guest(value: Value) -> sql::Value {
    match value {
        Value::Null => sql::Value::Null,
        Value::Boolean(boolean) => sql::Value::Boolean(boolean),
        Value::Int(number) => sql::Value::Int64(number),
        Value::Float(number) => sql::Value::Float64(number),
        Value::Text(text) => sql::Value::Text(text),
        Value::Blob(bytes) => sql::Value::Blob(bytes),
        Value::Decimal(text) => sql::Value::Decimal(text),
        Value::Uuid(text) => sql::Value::Uuid(text),
        Value::Date(text) => sql::Value::Date(text),
        Value::Time(text) => sql::Value::Time(text),
        Value::Timestamp(text) => sql::Value::Timestamp(text),
        Value::Timestamptz(text) => sql::Value::Timestamptz(text),
        Value::Json(text) => sql::Value::Json(text),
        Value::Other { type_name, text } => sql::Value::Other((type_name, text)),
    }
}

/// A result on its way to the guest.
pub(crate) fn result_set(result: ResultSet) -> sql::ResultSet {
    sql::ResultSet {
        columns: result.columns,
        rows: result.rows.into_iter().map(|row| row.into_iter().map(value_to_guest).collect()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(code: &str, message: &str, detail: &str, advice: types::Advice) -> types::Failure {
        types::Failure { advice, code: Some(code.into()), message: message.into(), detail: Some(detail.into()) }
    }

    #[test]
    fn a_failure_is_cut_between_characters() {
        let long = "é".repeat(MAX_DETAIL);
        let failure = failure(raw(&long, &format!("x{long}"), &long, types::Advice::AfterMs(u64::MAX)));
        assert_eq!(failure.code.unwrap().len(), MAX_CODE);
        assert_eq!(failure.message.len(), MAX_MESSAGE - 1);
        assert_eq!(failure.detail.unwrap().len(), MAX_DETAIL);
        assert_eq!(failure.advice, Advice::After(MAX_DELAY));
    }

    #[test]
    fn a_failure_holds_no_nul_and_its_code_no_control_character() {
        let failure = failure(raw("a\nb\0", "x\0y\nz", "", types::Advice::Never));
        assert_eq!(failure.code.as_deref(), Some("a?b?"));
        assert_eq!(failure.message, "x?y\nz");
        assert_eq!(failure.detail, None);
    }

    #[test]
    fn an_empty_failure_still_says_something() {
        let failure = failure(raw("", "", "", types::Advice::ByPolicy));
        assert_eq!((failure.code, failure.detail), (None, None));
        assert_eq!(failure.message, "the handler gave no reason");
    }

    #[test]
    fn properties_survive_the_way_to_the_guest_and_back() {
        let before = Properties {
            headers: vec![("n".into(), HeaderValue::Null), ("j".into(), HeaderValue::Json("[1]".into()))],
            kind: Some("order".into()),
            priority: Some(9),
            timestamp: Some(1),
            ..Properties::default()
        };
        assert_eq!(properties(properties_to_guest(&before)), before);
    }
}
