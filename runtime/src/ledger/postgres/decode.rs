//! Results from their binary form.

use sqlx::postgres::PgRow;
use sqlx::{Row, ValueRef};

use super::super::calendar::{Civil, DAY, civil, clock};
use super::super::database::DbError;
use super::super::gate::lost;
use super::super::value::Value;
use super::plan::TypeName;

/// Numbers of built-in types: `pg_type.dat` of the server, which never change.
pub(super) mod oid {
    pub(in super::super) const BOOL: u32 = 16;
    pub(in super::super) const BYTEA: u32 = 17;
    pub(in super::super) const NAME: u32 = 19;
    pub(in super::super) const INT8: u32 = 20;
    pub(in super::super) const INT2: u32 = 21;
    pub(in super::super) const INT4: u32 = 23;
    pub(in super::super) const TEXT: u32 = 25;
    pub(in super::super) const OID: u32 = 26;
    pub(in super::super) const JSON: u32 = 114;
    pub(in super::super) const FLOAT4: u32 = 700;
    pub(in super::super) const FLOAT8: u32 = 701;
    pub(in super::super) const UNKNOWN: u32 = 705;
    pub(in super::super) const BYTEA_ARRAY: u32 = 1001;
    pub(in super::super) const TEXT_ARRAY: u32 = 1009;
    pub(in super::super) const INT8_ARRAY: u32 = 1016;
    pub(in super::super) const BPCHAR: u32 = 1042;
    pub(in super::super) const VARCHAR: u32 = 1043;
    pub(in super::super) const DATE: u32 = 1082;
    pub(in super::super) const TIME: u32 = 1083;
    pub(in super::super) const TIMESTAMP: u32 = 1114;
    pub(in super::super) const TIMESTAMPTZ: u32 = 1184;
    pub(in super::super) const NUMERIC: u32 = 1700;
    pub(in super::super) const VOID: u32 = 2278;
    pub(in super::super) const UUID: u32 = 2950;
    pub(in super::super) const JSONB: u32 = 3802;
}

/// Days from 1970-01-01 to 2000-01-01, where Postgres begins to count.
const EPOCH_DAYS: i64 = 10_957;

/// How a column is read.
#[derive(Debug, Clone)]
pub(super) enum Reader {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    Numeric,
    Text,
    Bytes,
    Uuid,
    Date,
    Time,
    Timestamp,
    Timestamptz,
    Json,
    Jsonb,
    Void,
    /// Cast to text by the server.
    Cast(TypeName),
}

impl Reader {
    /// How a column of a type is read, if this program reads that type itself.
    pub(super) fn native(oid: u32) -> Option<Self> {
        Some(match oid {
            oid::BOOL => Self::Bool,
            oid::INT2 => Self::Int2,
            oid::INT4 => Self::Int4,
            oid::INT8 => Self::Int8,
            oid::OID => Self::Oid,
            oid::FLOAT4 => Self::Float4,
            oid::FLOAT8 => Self::Float8,
            oid::NUMERIC => Self::Numeric,
            oid::TEXT | oid::VARCHAR | oid::BPCHAR | oid::NAME | oid::UNKNOWN => Self::Text,
            oid::BYTEA => Self::Bytes,
            oid::UUID => Self::Uuid,
            oid::DATE => Self::Date,
            oid::TIME => Self::Time,
            oid::TIMESTAMP => Self::Timestamp,
            oid::TIMESTAMPTZ => Self::Timestamptz,
            oid::JSON => Self::Json,
            oid::JSONB => Self::Jsonb,
            oid::VOID => Self::Void,
            _ => return None,
        })
    }

    fn read(&self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::Bool => Value::Boolean(*bytes.first()? != 0),
            Self::Int2 => Value::Int(i16::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Int4 => Value::Int(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Int8 => Value::Int(int8(bytes)?),
            Self::Oid => Value::Int(u32::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Float4 => Value::Float(f32::from_be_bytes(bytes.try_into().ok()?).into()),
            Self::Float8 => Value::Float(f64::from_be_bytes(bytes.try_into().ok()?)),
            Self::Numeric => match numeric_text(bytes)? {
                Ok(text) => Value::Decimal(text),
                Err(special) => other("numeric", special),
            },
            Self::Text => Value::Text(text(bytes)?),
            Self::Bytes => Value::Blob(bytes.to_vec()),
            Self::Uuid => Value::Uuid(uuid::Uuid::from_slice(bytes).ok()?.hyphenated().to_string()),
            Self::Date => date(i32::from_be_bytes(bytes.try_into().ok()?)),
            Self::Time => Value::Time(clock(int8(bytes)?)),
            Self::Timestamp => timestamp(int8(bytes)?, false),
            Self::Timestamptz => timestamp(int8(bytes)?, true),
            Self::Json => Value::Json(text(bytes)?),
            Self::Jsonb => match bytes.split_first()? {
                (1, json) => Value::Json(text(json)?),
                _ => return None,
            },
            Self::Void => Value::Null,
            Self::Cast(name) if name.is_text => Value::Text(text(bytes)?),
            Self::Cast(name) => other(&name.display, text(bytes)?),
        })
    }
}

/// A row, read column by column.
pub(super) fn row(row: &PgRow, readers: &[Reader]) -> Result<Vec<Value>, DbError> {
    let mut values = Vec::with_capacity(readers.len());
    for (index, reader) in readers.iter().enumerate() {
        let raw = row.try_get_raw(index).map_err(|_| unreadable(index, reader))?;
        let value = match raw.as_bytes() {
            _ if raw.is_null() => Some(Value::Null),
            Ok(bytes) => reader.read(bytes),
            Err(_) => None,
        };
        values.push(value.ok_or_else(|| unreadable(index, reader))?);
    }
    Ok(values)
}

/// How many bytes a row's values have on the wire.
pub(super) fn size(row: &PgRow) -> u64 {
    let bytes = |index| row.try_get_raw(index).ok()?.as_bytes().ok();
    (0..row.len()).filter_map(bytes).map(|bytes| bytes.len() as u64).sum()
}

/// Not the statement's fault: the server sent what its protocol does not have.
fn unreadable(index: usize, reader: &Reader) -> DbError {
    lost(format!("column {} of the result cannot be read as {reader:?}", index + 1))
}

fn other(type_name: &str, text: impl Into<String>) -> Value {
    Value::Other { type_name: type_name.to_owned(), text: text.into() }
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn int8(bytes: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

fn date(days: i32) -> Value {
    match days {
        i32::MAX => other("date", "infinity"),
        i32::MIN => other("date", "-infinity"),
        _ => match civil(i64::from(days) + EPOCH_DAYS) {
            plain if plain.is_plain() => Value::Date(plain.text()),
            far => other("date", far.text() + far.era()),
        },
    }
}

fn timestamp(micros: i64, zone: bool) -> Value {
    let type_name = if zone { "timestamp with time zone" } else { "timestamp without time zone" };
    match micros {
        i64::MAX => return other(type_name, "infinity"),
        i64::MIN => return other(type_name, "-infinity"),
        _ => {}
    }
    let day: Civil = civil(micros.div_euclid(DAY) + EPOCH_DAYS);
    let time = clock(micros.rem_euclid(DAY));
    match (day.is_plain(), zone) {
        (true, false) => Value::Timestamp(format!("{} {time}", day.text())),
        (true, true) => Value::Timestamptz(format!("{} {time}+00:00", day.text())),
        (false, false) => other(type_name, format!("{} {time}{}", day.text(), day.era())),
        (false, true) => other(type_name, format!("{} {time}+00{}", day.text(), day.era())),
    }
}

/// The text of a numeric; `Err` has that of NaN and the infinities. None where the bytes are no numeric.
pub(super) fn numeric_text(bytes: &[u8]) -> Option<Result<String, &'static str>> {
    let mut words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let count = usize::from(words.next()?);
    let weight = i64::from(words.next()?.cast_signed());
    let sign = words.next()?;
    let scale = usize::from(words.next()?);
    let digits: Vec<u16> = words.collect();
    let negative = match sign {
        0x0000 => false,
        0x4000 => true,
        0xC000 => return Some(Err("NaN")),
        0xD000 => return Some(Err("Infinity")),
        0xF000 => return Some(Err("-Infinity")),
        _ => return None,
    };
    if digits.len() != count || digits.iter().any(|digit| *digit > 9_999) {
        return None;
    }
    // The digit at `place` stands for itself times 10000^place.
    let digit =
        |place: i64| usize::try_from(weight - place).ok().and_then(|index| digits.get(index)).copied().unwrap_or(0);
    let mut text = if negative { "-".to_owned() } else { String::new() };
    if weight < 0 {
        text.push('0');
    } else {
        text.push_str(&digit(weight).to_string());
        for place in (0..weight).rev() {
            text.push_str(&format!("{:04}", digit(place)));
        }
    }
    if scale > 0 {
        let groups = i64::try_from(scale.div_ceil(4)).ok()?;
        let fraction: String = (1..=groups).map(|place| format!("{:04}", digit(-place))).collect();
        text.push('.');
        text.push_str(&fraction[..scale]);
    }
    Some(Ok(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numeric(words: &[u16]) -> Option<Result<String, &'static str>> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        numeric_text(&bytes)
    }

    #[test]
    fn numerics_keep_their_digits() {
        assert_eq!(numeric(&[0, 0, 0, 0]), Some(Ok("0".to_owned())));
        assert_eq!(numeric(&[0, 0, 0, 2]), Some(Ok("0.00".to_owned())));
        assert_eq!(numeric(&[2, 0, 0x4000, 2, 12, 3400]), Some(Ok("-12.34".to_owned())));
        assert_eq!(numeric(&[1, 1, 0, 0, 3]), Some(Ok("30000".to_owned())));
        assert_eq!(numeric(&[1, (-2_i16).cast_unsigned(), 0, 8, 7]), Some(Ok("0.00000007".to_owned())));
        assert_eq!(numeric(&[0, 0, 0xC000, 0]), Some(Err("NaN")));
        assert_eq!(numeric(&[2, 0, 0, 0, 1]), None);
        assert_eq!(numeric(&[]), None);
    }

    #[test]
    fn what_no_calendar_holds_is_text() {
        assert_eq!(date(0), Value::Date("2000-01-01".to_owned()));
        assert_eq!(date(i32::MAX), other("date", "infinity"));
        assert_eq!(date(i32::MAX - 1), other("date", "5881610-07-10"));
        assert_eq!(timestamp(-1, false), Value::Timestamp("1999-12-31 23:59:59.999999".to_owned()));
        assert_eq!(timestamp(0, true), Value::Timestamptz("2000-01-01 00:00:00+00:00".to_owned()));
        assert_eq!(timestamp(i64::MIN, true), other("timestamp with time zone", "-infinity"));
        assert!(matches!(timestamp(i64::MIN + 1, true), Value::Other { .. }));
    }

    #[test]
    fn short_values_are_refused() {
        for reader in [Reader::Bool, Reader::Int8, Reader::Uuid, Reader::Jsonb, Reader::Numeric] {
            assert!(reader.read(&[]).is_none(), "{reader:?}");
        }
    }
}
