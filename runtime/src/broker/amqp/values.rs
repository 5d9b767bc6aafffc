//! Properties and headers, from AMQP and back.
//!
//! Everything a broker can deliver has an image in [`Properties`]; nothing here can fail on that way. On the way back,
//! what AMQP cannot carry (names over 255 bytes) is an error in words.
//!
//! | AMQP | [`HeaderValue`] | back |
//! |---|---|---|
//! | long string, short string | text; bytes if not UTF-8 | long string; byte array |
//! | byte array | bytes | byte array |
//! | every integer | integer | signed 64-bit |
//! | float, double | float | double |
//! | decimal | decimal | decimal; long string if it does not fit 32 bits and 255 places |
//! | timestamp | timestamp | timestamp |
//! | table, array | json | table, array |
//! | void | null | void |
//!
//! Inside JSON, bytes are base64 text, timestamps are numbers, and a decimal is text: nested values come back as the
//! nearest thing that JSON has.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use serde_json::{Map, Number, Value as Json};

use crate::message::{HeaderValue, Properties};

/// The persistent delivery mode.
const PERSISTENT: u8 = 2;

/// Properties of a message that was delivered.
pub(super) fn properties_from_amqp(from: &BasicProperties) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let headers = from.headers().iter().flat_map(FieldTable::inner);
    Properties {
        content_type: text(from.content_type()),
        content_encoding: text(from.content_encoding()),
        headers: headers.map(|(name, value)| (name.as_str().to_owned(), value_from_amqp(value))).collect(),
        delivery_mode: *from.delivery_mode(),
        priority: *from.priority(),
        correlation_id: text(from.correlation_id()),
        reply_to: text(from.reply_to()),
        expiration: text(from.expiration()),
        message_id: text(from.message_id()),
        timestamp: *from.timestamp(),
        kind: text(from.kind()),
        user_id: text(from.user_id()),
        app_id: text(from.app_id()),
    }
}

/// Properties of a message to publish, persistent unless they say otherwise; the error says what AMQP cannot carry.
pub(super) fn properties_to_amqp(from: &Properties) -> Result<BasicProperties, String> {
    let mut to = BasicProperties::default().with_delivery_mode(from.delivery_mode.unwrap_or(PERSISTENT));
    if !from.headers.is_empty() {
        let headers = from.headers.iter().map(|(name, value)| (name.as_str(), value));
        to = to.with_headers(table_to_amqp(headers)?);
    }
    if let Some(priority) = from.priority {
        to = to.with_priority(priority);
    }
    if let Some(seconds) = from.timestamp {
        to = to.with_timestamp(seconds);
    }
    type With = fn(BasicProperties, ShortString) -> BasicProperties;
    let texts: [(&str, &Option<String>, With); 9] = [
        ("content-type", &from.content_type, BasicProperties::with_content_type),
        ("content-encoding", &from.content_encoding, BasicProperties::with_content_encoding),
        ("correlation-id", &from.correlation_id, BasicProperties::with_correlation_id),
        ("reply-to", &from.reply_to, BasicProperties::with_reply_to),
        ("expiration", &from.expiration, BasicProperties::with_expiration),
        ("message-id", &from.message_id, BasicProperties::with_message_id),
        ("type", &from.kind, BasicProperties::with_type),
        ("user-id", &from.user_id, BasicProperties::with_user_id),
        ("app-id", &from.app_id, BasicProperties::with_app_id),
    ];
    for (name, text, with) in texts {
        if let Some(text) = text {
            to = with(to, short(name, text)?);
        }
    }
    Ok(to)
}

/// A table of headers or arguments. The first of several entries of one name counts, as it does for
/// [`Properties::header`].
pub(super) fn table_to_amqp<'a>(
    entries: impl Iterator<Item = (&'a str, &'a HeaderValue)>,
) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        if !table.contains_key(name) {
            table.insert(short("a header's name", name)?, value_to_amqp(value)?);
        }
    }
    Ok(table)
}

/// A text of at most 255 bytes; `what` names it in the error.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("{what} has {} bytes, and AMQP carries at most 255", text.len()))
}

/// One header that was delivered.
pub(super) fn value_from_amqp(value: &AMQPValue) -> HeaderValue {
    match value {
        AMQPValue::Boolean(value) => HeaderValue::Boolean(*value),
        AMQPValue::ShortShortInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::ShortShortUInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::ShortInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::ShortUInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::LongInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::LongUInt(value) => HeaderValue::Integer((*value).into()),
        AMQPValue::LongLongInt(value) => HeaderValue::Integer(*value),
        AMQPValue::Float(value) => HeaderValue::Float((*value).into()),
        AMQPValue::Double(value) => HeaderValue::Float(*value),
        AMQPValue::DecimalValue(value) => HeaderValue::Decimal(decimal_text(*value)),
        AMQPValue::ShortString(text) => HeaderValue::Text(text.as_str().to_owned()),
        AMQPValue::LongString(text) => match std::str::from_utf8(text.as_bytes()) {
            Ok(text) => HeaderValue::Text(text.to_owned()),
            Err(_) => HeaderValue::Bytes(text.as_bytes().to_vec()),
        },
        AMQPValue::ByteArray(bytes) => HeaderValue::Bytes(bytes.as_slice().to_vec()),
        AMQPValue::Timestamp(seconds) => HeaderValue::Timestamp(*seconds),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => HeaderValue::Json(json_from_amqp(value).to_string()),
        AMQPValue::Void => HeaderValue::Null,
    }
}

/// One header to publish, or one argument to declare with.
pub(super) fn value_to_amqp(value: &HeaderValue) -> Result<AMQPValue, String> {
    Ok(match value {
        HeaderValue::Null => AMQPValue::Void,
        HeaderValue::Text(text) => AMQPValue::LongString(text.as_str().into()),
        HeaderValue::Integer(value) => AMQPValue::LongLongInt(*value),
        HeaderValue::Float(value) => AMQPValue::Double(*value),
        HeaderValue::Boolean(value) => AMQPValue::Boolean(*value),
        HeaderValue::Bytes(bytes) => AMQPValue::ByteArray(bytes.as_slice().into()),
        HeaderValue::Timestamp(seconds) => AMQPValue::Timestamp(*seconds),
        HeaderValue::Decimal(text) => match decimal_from_text(text) {
            Some(decimal) => AMQPValue::DecimalValue(decimal),
            None => AMQPValue::LongString(text.as_str().into()),
        },
        HeaderValue::Json(text) => match serde_json::from_str(text) {
            Ok(json) => json_to_amqp(&json)?,
            Err(_) => AMQPValue::LongString(text.as_str().into()),
        },
    })
}

/// `value / 10^scale`, written out.
fn decimal_text(decimal: DecimalValue) -> String {
    let places = usize::from(decimal.scale);
    let digits = format!("{:0>width$}", decimal.value, width = places + 1);
    match digits.split_at(digits.len() - places) {
        (whole, "") => whole.to_owned(),
        (whole, fraction) => format!("{whole}.{fraction}"),
    }
}

fn decimal_from_text(text: &str) -> Option<DecimalValue> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() || text.ends_with('.') || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = format!("{whole}{fraction}").parse().ok()?;
    Some(DecimalValue { scale: fraction.len().try_into().ok()?, value })
}

/// Nesting is bounded by [`MAX_DEPTH`](super::sieve::MAX_DEPTH) for everything that came over a connection.
fn json_from_amqp(value: &AMQPValue) -> Json {
    match value {
        AMQPValue::FieldTable(table) => Json::Object(
            table.inner().iter().map(|(name, value)| (name.as_str().to_owned(), json_from_amqp(value))).collect(),
        ),
        AMQPValue::FieldArray(array) => Json::Array(array.as_slice().iter().map(json_from_amqp).collect()),
        other => match value_from_amqp(other) {
            HeaderValue::Null => Json::Null,
            HeaderValue::Text(text) | HeaderValue::Decimal(text) | HeaderValue::Json(text) => Json::String(text),
            HeaderValue::Integer(value) => value.into(),
            HeaderValue::Float(value) => Number::from_f64(value).map_or(Json::Null, Json::Number),
            HeaderValue::Boolean(value) => value.into(),
            HeaderValue::Bytes(bytes) => Json::String(STANDARD.encode(bytes)),
            HeaderValue::Timestamp(seconds) => seconds.into(),
        },
    }
}

/// Nesting is bounded by the parser (128 levels).
fn json_to_amqp(json: &Json) -> Result<AMQPValue, String> {
    Ok(match json {
        Json::Null => AMQPValue::Void,
        Json::Bool(value) => AMQPValue::Boolean(*value),
        Json::String(text) => AMQPValue::LongString(text.as_str().into()),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(value), ..) => AMQPValue::LongLongInt(value),
            // Nothing else in AMQP is that large.
            (None, Some(seconds), _) => AMQPValue::Timestamp(seconds),
            (None, None, Some(value)) if value.is_finite() => AMQPValue::Double(value),
            _ => AMQPValue::LongString(number.to_string().into()),
        },
        Json::Array(values) => {
            let values = values.iter().map(json_to_amqp).collect::<Result<Vec<_>, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Json::Object(entries) => AMQPValue::FieldTable(object_to_amqp(entries)?),
    })
}

fn object_to_amqp(entries: &Map<String, Json>) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert(short("a name inside a header", name)?, json_to_amqp(value)?);
    }
    Ok(table)
}

/// Size in bytes of the frame that carries these properties. A server closes the connection when one exceeds the frame
/// size that was negotiated, since properties cannot be split.
pub(super) fn header_frame_size(properties: &BasicProperties) -> usize {
    let texts = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.expiration(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
    ];
    let texts: usize = texts.into_iter().flatten().map(|text| 1 + text.as_str().len()).sum();
    let headers = properties.headers().as_ref().map_or(0, table_size);
    // frame header and end 8, content header 14, delivery mode and priority 2, timestamp 8
    8 + 14 + 2 + 8 + texts + headers
}

fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(name, value)| 1 + name.as_str().len() + value_size(value)).sum::<usize>()
}

fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(value_size).sum::<usize>(),
        AMQPValue::FieldTable(table) => table_size(table),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::LongString;
    use proptest::prelude::*;

    fn amqp_value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<f32>().prop_map(AMQPValue::Float),
            any::<f64>().prop_map(AMQPValue::Double),
            (any::<u8>(), any::<u32>())
                .prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            ".{0,20}".prop_map(|text| AMQPValue::LongString(text.into())),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|b| AMQPValue::LongString(LongString::from(b))),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(|b| AMQPValue::ByteArray(b.into())),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6)
                    .prop_map(|values| AMQPValue::FieldArray(FieldArray::from(values))),
                proptest::collection::btree_map("[a-z]{0,8}", inner, 0..6).prop_map(|entries| {
                    let entries = entries.into_iter().map(|(name, value)| (ShortString::from(name), value));
                    AMQPValue::FieldTable(FieldTable::from(entries.collect::<std::collections::BTreeMap<_, _>>()))
                }),
            ]
        })
    }

    fn same(a: &HeaderValue, b: &HeaderValue) -> bool {
        match (a, b) {
            (HeaderValue::Float(a), HeaderValue::Float(b)) => a == b || (a.is_nan() && b.is_nan()),
            _ => a == b,
        }
    }

    proptest! {
        /// Whatever a broker delivers has an image, and the image of what we publish from it is the same.
        #[test]
        fn every_amqp_value_keeps_its_image(value in amqp_value()) {
            let image = value_from_amqp(&value);
            let back = value_to_amqp(&image).unwrap();
            let again = value_from_amqp(&back);
            prop_assert!(same(&image, &again), "{image:?} became {again:?}");
        }

        #[test]
        fn no_text_makes_a_value_that_panics(text in ".{0,40}") {
            for value in [HeaderValue::Json(text.clone()), HeaderValue::Decimal(text.clone()), HeaderValue::Text(text)] {
                let _ = value_to_amqp(&value);
            }
        }

        /// The estimate is what the library writes.
        #[test]
        fn the_size_of_a_table_is_exact(value in amqp_value()) {
            let mut table = FieldTable::default();
            table.insert("name".into(), value);
            let written = lapin::types::generation::gen_field_table(&table)(Vec::new().into())
                .map(|context| context.into_inner().0).unwrap();
            prop_assert_eq!(table_size(&table), written.len());
        }
    }

    #[test]
    fn decimals_are_written_out() {
        let text = |scale, value| decimal_text(DecimalValue { scale, value });
        assert_eq!(text(0, 17), "17");
        assert_eq!(text(2, 1750), "17.50");
        assert_eq!(text(3, 5), "0.005");
        for (scale, value) in [(0, 0), (2, 1750), (255, u32::MAX), (10, 1)] {
            let decimal = DecimalValue { scale, value };
            assert_eq!(decimal_from_text(&decimal_text(decimal)), Some(decimal));
        }
        for bad in ["", ".", "1.", ".5", "-1", "1e5", "4294967296", "１"] {
            assert_eq!(decimal_from_text(bad), None, "{bad}");
        }
    }

    #[test]
    fn nested_json_comes_back_as_tables_and_arrays() {
        let text = r#"[{"count":1,"queue":"q","time":1700000000,"deep":[1.5,null,true]}]"#;
        let value = value_to_amqp(&HeaderValue::Json(text.into())).unwrap();
        assert_eq!(
            value_from_amqp(&value),
            HeaderValue::Json(r#"[{"count":1,"deep":[1.5,null,true],"queue":"q","time":1700000000}]"#.into())
        );
    }

    #[test]
    fn what_amqp_cannot_carry_is_an_error_in_words() {
        let properties = Properties { message_id: Some("x".repeat(256)), ..Properties::default() };
        assert_eq!(
            properties_to_amqp(&properties).unwrap_err(),
            "message-id has 256 bytes, and AMQP carries at most 255"
        );
        let properties = Properties { headers: vec![("n".repeat(300), HeaderValue::Null)], ..Properties::default() };
        assert!(properties_to_amqp(&properties).unwrap_err().contains("300 bytes"));
        let json = HeaderValue::Json(format!("{{{:?}:1}}", "n".repeat(256)));
        assert!(value_to_amqp(&json).is_err());
    }

    #[test]
    fn properties_come_back_as_they_went() {
        let text = |text: &str| Some(text.to_owned());
        let properties = Properties {
            content_type: text("text/plain"),
            content_encoding: text("utf-8"),
            headers: vec![("a".into(), HeaderValue::Integer(1)), ("b".into(), HeaderValue::Bytes(vec![255]))],
            delivery_mode: Some(2),
            priority: Some(9),
            correlation_id: text("c"),
            reply_to: text("r"),
            expiration: text("1000"),
            message_id: text("m"),
            timestamp: Some(u64::MAX),
            kind: text("k"),
            user_id: text("u"),
            app_id: text("a"),
        };
        assert_eq!(properties_from_amqp(&properties_to_amqp(&properties).unwrap()), properties);
        let bare = properties_from_amqp(&properties_to_amqp(&Properties::default()).unwrap());
        assert_eq!(bare, Properties { delivery_mode: Some(2), ..Properties::default() });
    }
}
