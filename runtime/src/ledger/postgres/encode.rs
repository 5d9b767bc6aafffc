//! Parameters in the binary form of the types that the server reports for them.

use std::borrow::Cow;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};

use super::super::database::{DbError, DbErrorKind};
use super::super::gate::invalid;
use super::super::value::{Param, Value};
use super::decode::oid;
use super::plan::Wire;

/// A parameter ready for the wire.
pub(super) struct Encoded<'v> {
    pub(super) wire: Wire,
    bytes: Cow<'v, [u8]>,
}

impl<'v> Encoded<'v> {
    fn native(bytes: impl Into<Cow<'v, [u8]>>) -> Self {
        Self { wire: Wire::Native, bytes: bytes.into() }
    }

    /// What sqlx takes: under the type that the server reported, or, where the way to send the statement has a cast at
    /// this place, under the type that is cast. sqlx declares it when it has to prepare a forgotten statement again.
    pub(super) fn argument(self, place: Wire, reported: PgTypeInfo) -> Argument<'v> {
        let type_info = match place {
            Wire::Null | Wire::Native => reported,
            Wire::Text | Wire::Instant => <str as Type<Postgres>>::type_info(),
            Wire::Ints => <[i64] as Type<Postgres>>::type_info(),
            Wire::Texts => <[String] as Type<Postgres>>::type_info(),
            Wire::Blobs => <[Vec<u8>] as Type<Postgres>>::type_info(),
        };
        Argument { bytes: (self.wire != Wire::Null).then_some(self.bytes), type_info }
    }
}

/// Bytes that sqlx passes on.
pub(super) struct Argument<'v> {
    bytes: Option<Cow<'v, [u8]>>,
    type_info: PgTypeInfo,
}

impl Type<Postgres> for Argument<'_> {
    fn type_info() -> PgTypeInfo {
        <str as Type<Postgres>>::type_info()
    }
}

impl Encode<'_, Postgres> for Argument<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        match &self.bytes {
            None => Ok(IsNull::Yes),
            Some(bytes) => {
                buffer.extend_from_slice(bytes);
                Ok(IsNull::No)
            }
        }
    }

    fn produces(&self) -> Option<PgTypeInfo> {
        Some(self.type_info.clone())
    }

    fn size_hint(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len())
    }
}

/// Encodes the parameter with this number (from 1) for the type with this oid.
pub(super) fn encode(number: usize, param: &Param, to: u32) -> Result<Encoded<'_>, DbError> {
    match param {
        Param::One(value) => one(number, value, to),
        Param::Ints(items) => Ok(Encoded {
            wire: if to == oid::INT8_ARRAY { Wire::Native } else { Wire::Ints },
            bytes: array(oid::INT8, items, |item| Cow::Owned(item.to_be_bytes().to_vec()))?.into(),
        }),
        Param::Texts(items) => Ok(Encoded {
            wire: if to == oid::TEXT_ARRAY { Wire::Native } else { Wire::Texts },
            bytes: array(oid::TEXT, items, |item| Cow::Borrowed(item.as_bytes()))?.into(),
        }),
        Param::Blobs(items) => Ok(Encoded {
            wire: if to == oid::BYTEA_ARRAY { Wire::Native } else { Wire::Blobs },
            bytes: array(oid::BYTEA, items, |item| Cow::Borrowed(item.as_slice()))?.into(),
        }),
    }
}

fn one(number: usize, value: &Value, to: u32) -> Result<Encoded<'_>, DbError> {
    let native = match (value, to) {
        (Value::Null, _) => return Ok(Encoded { wire: Wire::Null, bytes: Cow::Borrowed(&[]) }),
        (Value::Boolean(flag), oid::BOOL) => vec![u8::from(*flag)],
        (Value::Boolean(flag), _) if is_number(to) => return integer(number, i64::from(*flag), to),
        (Value::Int(int), _) if is_number(to) => return integer(number, *int, to),
        (Value::Float(float), oid::FLOAT8) => float.to_be_bytes().to_vec(),
        (Value::Float(float), oid::FLOAT4) => narrow(number, *float)?.to_be_bytes().to_vec(),
        (Value::Blob(bytes), oid::BYTEA) => return Ok(Encoded::native(bytes.as_slice())),
        (Value::Blob(_), _) if is_text(to) => return Err(unfit(number, value, "a text or JSON")),
        (Value::Uuid(text), oid::UUID) => match uuid::Uuid::parse_str(text) {
            Ok(uuid) => uuid.as_bytes().to_vec(),
            Err(_) => return Err(unfit(number, value, "a uuid: it is not one")),
        },
        (_, oid::JSONB) => {
            // The binary form of jsonb is its text behind a version number.
            let text = text_form(value);
            let mut bytes = Vec::with_capacity(text.len() + 1);
            bytes.push(1);
            bytes.extend_from_slice(&text);
            bytes
        }
        (_, _) if is_text(to) => return Ok(Encoded::native(text_form(value))),
        (Value::Timestamptz(text), oid::TIMESTAMP | oid::DATE | oid::TIME) => {
            return Ok(Encoded { wire: Wire::Instant, bytes: Cow::Borrowed(text.as_bytes()) });
        }
        _ => return Ok(Encoded { wire: Wire::Text, bytes: text_form(value) }),
    };
    Ok(Encoded::native(native))
}

fn is_text(to: u32) -> bool {
    matches!(to, oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::JSON | oid::JSONB | oid::UNKNOWN)
}

pub(super) fn is_number(to: u32) -> bool {
    matches!(to, oid::INT2 | oid::INT4 | oid::INT8 | oid::OID | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC)
}

fn integer<'v>(number: usize, int: i64, to: u32) -> Result<Encoded<'v>, DbError> {
    let range = |name: &str| DbError {
        code: Some("22003".to_owned()),
        ..invalid(format!("parameter {number}: {int} is out of range for type {name}"))
    };
    let bytes = match to {
        oid::INT2 => i16::try_from(int).map_err(|_| range("smallint"))?.to_be_bytes().to_vec(),
        oid::INT4 => i32::try_from(int).map_err(|_| range("integer"))?.to_be_bytes().to_vec(),
        oid::OID => u32::try_from(int).map_err(|_| range("oid"))?.to_be_bytes().to_vec(),
        #[expect(clippy::cast_precision_loss, reason = "the column is a float: nearest is what the server does too")]
        oid::FLOAT4 => (int as f32).to_be_bytes().to_vec(),
        #[expect(clippy::cast_precision_loss, reason = "the column is a float: nearest is what the server does too")]
        oid::FLOAT8 => (int as f64).to_be_bytes().to_vec(),
        oid::NUMERIC => numeric(int),
        _ => int.to_be_bytes().to_vec(),
    };
    Ok(Encoded::native(bytes))
}

/// An integer as numeric: digits of base 10000, the weight of the first, sign, and no digits after the point.
fn numeric(int: i64) -> Vec<u8> {
    let mut rest = int.unsigned_abs();
    let mut digits = Vec::new();
    while rest > 0 {
        digits.push(u16::try_from(rest % 10_000).unwrap_or_default());
        rest /= 10_000;
    }
    let count = u16::try_from(digits.len()).unwrap_or_default();
    let sign: u16 = if int < 0 { 0x4000 } else { 0 };
    [count, count.saturating_sub(1), sign, 0]
        .into_iter()
        .chain(digits.into_iter().rev())
        .flat_map(u16::to_be_bytes)
        .collect()
}

fn narrow(number: usize, float: f64) -> Result<f32, DbError> {
    #[expect(clippy::cast_possible_truncation, reason = "out of range becomes infinite, which is checked")]
    let narrowed = float as f32;
    if narrowed.is_infinite() && float.is_finite() {
        return Err(DbError {
            code: Some("22003".to_owned()),
            ..invalid(format!("parameter {number}: {float:e} is out of range for type real"))
        });
    }
    Ok(narrowed)
}

/// A value in the text form of Postgres.
pub(super) fn text_form(value: &Value) -> Cow<'_, [u8]> {
    let text = match value {
        Value::Null => String::new(),
        Value::Boolean(flag) => flag.to_string(),
        Value::Int(int) => int.to_string(),
        Value::Float(float) if float.is_infinite() => if *float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Value::Float(float) => format!("{float:?}"),
        Value::Blob(bytes) => bytes.iter().fold("\\x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
        Value::Text(text)
        | Value::Decimal(text)
        | Value::Uuid(text)
        | Value::Date(text)
        | Value::Time(text)
        | Value::Timestamp(text)
        | Value::Timestamptz(text)
        | Value::Json(text)
        | Value::Other { text, .. } => return Cow::Borrowed(text.as_bytes()),
    };
    Cow::Owned(text.into_bytes())
}

/// The binary form of an array with one dimension.
fn array<T>(element: u32, items: &[Option<T>], bytes: impl Fn(&T) -> Cow<'_, [u8]>) -> Result<Vec<u8>, DbError> {
    let length = |length: usize| {
        i32::try_from(length).map_err(|_| DbError {
            kind: DbErrorKind::Infrastructure,
            ..invalid("an array is larger than the database's protocol allows")
        })
    };
    let mut buffer = Vec::with_capacity(20 + items.len() * 12);
    buffer.extend_from_slice(&i32::from(!items.is_empty()).to_be_bytes());
    buffer.extend_from_slice(&i32::from(items.iter().any(Option::is_none)).to_be_bytes());
    buffer.extend_from_slice(&element.to_be_bytes());
    if items.is_empty() {
        return Ok(buffer);
    }
    buffer.extend_from_slice(&length(items.len())?.to_be_bytes());
    buffer.extend_from_slice(&1_i32.to_be_bytes());
    for item in items {
        match item {
            None => buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(item) => {
                let bytes = bytes(item);
                buffer.extend_from_slice(&length(bytes.len())?.to_be_bytes());
                buffer.extend_from_slice(&bytes);
            }
        }
    }
    Ok(buffer)
}

fn unfit(number: usize, value: &Value, place: &str) -> DbError {
    invalid(format!("parameter {number}: {} cannot go where the statement expects {place}", value.kind()))
}

#[cfg(test)]
mod tests {
    use super::super::decode::numeric_text;
    use super::*;

    #[test]
    fn integers_are_numerics() {
        for int in [0, 1, -1, 9_999, 10_000, 100_000_000, -123_456_789_012, i64::MAX, i64::MIN] {
            assert_eq!(numeric_text(&numeric(int)), Some(Ok(int.to_string())), "{int}");
        }
    }

    #[test]
    fn out_of_range_says_so() {
        let error = one(2, &Value::Int(70_000), oid::INT2).err().expect("out of range");
        assert_eq!(error.kind, DbErrorKind::Invalid);
        assert_eq!(error.message, "parameter 2: 70000 is out of range for type smallint");
    }
}
