//! Parameters, bound by what they are.

use std::borrow::Cow;

use chrono::{DateTime, NaiveDateTime, Utc};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::mysql::MySqlTypeInfo;
use sqlx::{Encode, MySql, Type};

use super::super::database::DbError;
use super::super::gate::invalid;
use super::super::value::{Param, Value};

/// The most digits that an exact decimal has.
const DECIMAL_DIGITS: usize = 65;

/// A parameter that sqlx passes on.
pub(super) enum Argument<'v> {
    Null,
    Int(i64),
    Unsigned(u64),
    Float(f64),
    Text(Cow<'v, str>),
    Blob(&'v [u8]),
    /// Bound as what it is: compared with a decimal column, a text would become a float.
    Decimal(&'v str, MySqlTypeInfo),
}

impl Type<MySql> for Argument<'_> {
    fn type_info() -> MySqlTypeInfo {
        <str as Type<MySql>>::type_info()
    }
}

impl Encode<'_, MySql> for Argument<'_> {
    fn encode_by_ref(&self, buffer: &mut Vec<u8>) -> Result<IsNull, BoxDynError> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Int(int) => <i64 as Encode<MySql>>::encode_by_ref(int, buffer),
            Self::Unsigned(int) => <u64 as Encode<MySql>>::encode_by_ref(int, buffer),
            Self::Float(float) => <f64 as Encode<MySql>>::encode_by_ref(float, buffer),
            Self::Text(text) => <&str as Encode<MySql>>::encode_by_ref(&text.as_ref(), buffer),
            Self::Blob(bytes) => <&[u8] as Encode<MySql>>::encode_by_ref(bytes, buffer),
            Self::Decimal(text, _) => <&str as Encode<MySql>>::encode_by_ref(text, buffer),
        }
    }

    fn produces(&self) -> Option<MySqlTypeInfo> {
        Some(match self {
            Self::Int(_) => <i64 as Type<MySql>>::type_info(),
            Self::Unsigned(_) => <u64 as Type<MySql>>::type_info(),
            Self::Float(_) => <f64 as Type<MySql>>::type_info(),
            Self::Null | Self::Text(_) => <str as Type<MySql>>::type_info(),
            Self::Blob(_) => <[u8] as Type<MySql>>::type_info(),
            Self::Decimal(_, type_info) => type_info.clone(),
        })
    }
}

/// Encodes the parameter with this number (from 1). `decimal` is the server's type of exact decimals.
pub(super) fn encode<'v>(number: usize, param: &'v Param, decimal: &MySqlTypeInfo) -> Result<Argument<'v>, DbError> {
    let Param::One(value) = param else {
        return Err(DbError::infrastructure("a whole column as one parameter works on Postgres only"));
    };
    Ok(match value {
        Value::Null => Argument::Null,
        Value::Boolean(flag) => Argument::Int(i64::from(*flag)),
        Value::Int(int) => Argument::Int(*int),
        Value::Float(float) if float.is_finite() => Argument::Float(*float),
        Value::Float(_) => {
            return Err(invalid(format!("parameter {number}: this database has no NaN and no infinity")));
        }
        Value::Decimal(text) if is_decimal(text) => Argument::Decimal(text, decimal.clone()),
        Value::Blob(bytes) => Argument::Blob(bytes),
        Value::Timestamptz(text) => match in_utc(text) {
            Some(text) => Argument::Text(Cow::Owned(text)),
            None => {
                return Err(invalid(format!("parameter {number}: not a timestamp with time zone: {text:?}")));
            }
        },
        Value::Other { type_name, text } if is_unsigned(type_name) => match text.parse() {
            Ok(int) => Argument::Unsigned(int),
            Err(_) => return Err(invalid(format!("parameter {number}: {text:?} is out of range for {type_name}"))),
        },
        Value::Text(text)
        | Value::Decimal(text)
        | Value::Uuid(text)
        | Value::Date(text)
        | Value::Time(text)
        | Value::Timestamp(text)
        | Value::Json(text)
        | Value::Other { text, .. } => Argument::Text(Cow::Borrowed(text)),
    })
}

/// The types whose text form is an unsigned number.
fn is_unsigned(type_name: &str) -> bool {
    ["BIGINT UNSIGNED", "BIT"].iter().any(|name| type_name.eq_ignore_ascii_case(name))
}

/// What the server reads as an exact decimal without losing anything. Anything else goes as text, and the server says
/// what is wrong with it.
fn is_decimal(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    !whole.is_empty() && digits(whole) && digits(fraction) && whole.len() + fraction.len() <= DECIMAL_DIGITS
}

/// A point in time in the session's zone, which is UTC: MariaDB takes no offsets.
fn in_utc(text: &str) -> Option<String> {
    let text = text.trim().replacen(['T', 't'], " ", 1);
    let text = match text.strip_suffix(['Z', 'z']) {
        Some(without) => format!("{}+00:00", without.trim_end()),
        None => text,
    };
    let utc: DateTime<Utc> = match DateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f%#z") {
        Ok(time) => time.to_utc(),
        Err(_) => NaiveDateTime::parse_from_str(&text, "%Y-%m-%d %H:%M:%S%.f").ok()?.and_utc(),
    };
    Some(utc.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_time_lose_their_offset() {
        let expected = Some("2024-02-29 22:30:00.500000".to_owned());
        for text in [
            "2024-03-01 00:30:00.5+02:00",
            "2024-03-01T00:30:00.5+0200",
            "2024-03-01 00:30:00.5+02",
            "2024-02-29 22:30:00.5Z",
            "2024-02-29T22:30:00.500Z",
            "2024-02-29 22:30:00.5",
        ] {
            assert_eq!(in_utc(text), expected, "{text}");
        }
        for text in ["", "2024", "2024-02-30 00:00:00Z", "now", "2024-03-01 00:30:00 Europe/Berlin"] {
            assert_eq!(in_utc(text), None, "{text}");
        }
    }

    #[test]
    fn decimals() {
        for text in ["0", "-1.50", "+3.", "123456789012345678901234567890.1"] {
            assert!(is_decimal(text), "{text}");
        }
        for text in ["", "-", ".5", "1e3", "NaN", "1.2.3", " 1", &"9".repeat(66)] {
            assert!(!is_decimal(text), "{text}");
        }
    }
}
