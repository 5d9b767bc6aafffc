//! Results from the binary form of prepared statements.
//!
//! `BOOLEAN` is a name for `TINYINT(1)`, which holds any small number, so it is read as an integer. MariaDB's JSON, UUID
//! and INET6 columns come as text, since the protocol does not tell them from it.

use sqlx::mysql::{MySqlRow, MySqlTypeInfo};
use sqlx::{Decode, MySql, Row, Type, TypeInfo, ValueRef};

use super::super::calendar::clock;
use super::super::database::DbError;
use super::super::gate::lost;
use super::super::value::Value;

/// A row, read column by column.
pub(super) fn row(row: &MySqlRow) -> Result<Vec<Value>, DbError> {
    let mut values = Vec::with_capacity(row.len());
    for index in 0..row.len() {
        let raw = row.try_get_raw(index).map_err(|_| unreadable(index, "anything"))?;
        let type_info = raw.type_info().into_owned();
        // sqlx calls zero dates NULL; the bytes tell.
        let value = match <&[u8] as Decode<MySql>>::decode(raw) {
            Ok(bytes) => read(bytes, &type_info),
            Err(_) => Some(Value::Null),
        };
        values.push(value.ok_or_else(|| unreadable(index, type_info.name()))?);
    }
    Ok(values)
}

/// How many bytes a row's values have on the wire.
pub(super) fn size(row: &MySqlRow) -> u64 {
    let bytes = |index| <&[u8] as Decode<MySql>>::decode(row.try_get_raw(index).ok()?).ok();
    (0..row.len()).filter_map(bytes).map(|bytes| bytes.len() as u64).sum()
}

/// Not the statement's fault: the server sent what its protocol does not have.
fn unreadable(index: usize, what: &str) -> DbError {
    lost(format!("column {} of the result cannot be read as {what}", index + 1))
}

fn read(bytes: &[u8], type_info: &MySqlTypeInfo) -> Option<Value> {
    Some(match type_info.name() {
        "BOOLEAN" | "TINYINT" | "TINYINT UNSIGNED" | "SMALLINT" | "SMALLINT UNSIGNED" | "MEDIUMINT"
        | "MEDIUMINT UNSIGNED" | "INT" | "INT UNSIGNED" | "BIGINT" | "BIGINT UNSIGNED" | "YEAR" => {
            integer(bytes, is_unsigned(type_info))?
        }
        "FLOAT" => Value::Float(f32::from_le_bytes(bytes.try_into().ok()?).into()),
        "DOUBLE" => Value::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        "DECIMAL" => Value::Decimal(text(bytes)?),
        "JSON" => Value::Json(text(bytes)?),
        "BIT" => unsigned("BIT", bits(bytes)?),
        name @ ("DATE" | "DATETIME" | "TIMESTAMP") => moment(name, bytes)?,
        "TIME" => time(bytes)?,
        "NULL" => Value::Null,
        "GEOMETRY" => Value::Blob(bytes.to_vec()),
        "SET" | "ENUM" => Value::Text(text(bytes)?),
        _ if <str as Type<MySql>>::compatible(type_info) => Value::Text(text(bytes)?),
        _ => Value::Blob(bytes.to_vec()),
    })
}

/// The name of `TINYINT(1)` hides the sign, the type itself does not.
fn is_unsigned(type_info: &MySqlTypeInfo) -> bool {
    *type_info == <u8 as Type<MySql>>::type_info()
        || type_info.name().ends_with("UNSIGNED")
        || type_info.name() == "YEAR"
}

fn integer(bytes: &[u8], is_unsigned: bool) -> Option<Value> {
    let mut wide = [0; 8];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    let negative = !is_unsigned && bytes.last()? & 0x80 != 0;
    if negative {
        wide[bytes.len()..].fill(0xFF);
    }
    let int = u64::from_le_bytes(wide);
    Some(if is_unsigned { unsigned("BIGINT UNSIGNED", int) } else { Value::Int(int.cast_signed()) })
}

/// An integer where it fits; else its text, under the name of its type.
fn unsigned(type_name: &str, int: u64) -> Value {
    match i64::try_from(int) {
        Ok(int) => Value::Int(int),
        Err(_) => Value::Other { type_name: type_name.to_owned(), text: int.to_string() },
    }
}

fn bits(bytes: &[u8]) -> Option<u64> {
    let mut wide = [0; 8];
    let start = wide.len().checked_sub(bytes.len())?;
    wide[start..].copy_from_slice(bytes);
    Some(u64::from_be_bytes(wide))
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn micros(bytes: &[u8]) -> Option<i64> {
    match bytes {
        [] => Some(0),
        _ => Some(u32::from_le_bytes(bytes.try_into().ok()?).into()),
    }
}

/// A date, or a date and a time: a length, the year in two bytes, month, day, hour, minute, second, microseconds in
/// four; what is zero at the end is left out.
fn moment(type_name: &str, bytes: &[u8]) -> Option<Value> {
    let (length, fields) = bytes.split_first()?;
    if usize::from(*length) != fields.len() {
        return None;
    }
    let field = |index: usize| fields.get(index).copied().unwrap_or(0);
    let year = u16::from_le_bytes([field(0), field(1)]);
    let (month, day) = (field(2), field(3));
    let date = format!("{year:04}-{month:02}-{day:02}");
    let seconds = i64::from(field(4)) * 3600 + i64::from(field(5)) * 60 + i64::from(field(6));
    let time = clock(seconds * 1_000_000 + micros(fields.get(7..).unwrap_or_default())?);
    let is_real = year > 0 && month > 0 && day > 0;
    Some(match (type_name, is_real) {
        ("DATE", true) => Value::Date(date),
        ("DATE", false) => Value::Other { type_name: type_name.to_owned(), text: date },
        (_, false) => Value::Other { type_name: type_name.to_owned(), text: format!("{date} {time}") },
        ("TIMESTAMP", true) => Value::Timestamptz(format!("{date} {time}+00:00")),
        (_, true) => Value::Timestamp(format!("{date} {time}")),
    })
}

/// A time of day; or a span of up to 838 hours either way, which is text.
fn time(bytes: &[u8]) -> Option<Value> {
    let (length, fields) = bytes.split_first()?;
    if fields.is_empty() && *length == 0 {
        return Some(Value::Time(clock(0)));
    }
    let negative = *fields.first()? != 0;
    let days = i64::from(u32::from_le_bytes(fields.get(1..5)?.try_into().ok()?));
    let hours = days * 24 + i64::from(*fields.get(5)?);
    let seconds = hours * 3600 + i64::from(*fields.get(6)?) * 60 + i64::from(*fields.get(7)?);
    let text = clock(seconds * 1_000_000 + micros(fields.get(8..)?)?);
    Some(match negative {
        false if hours < 24 => Value::Time(text),
        false => Value::Other { type_name: "TIME".to_owned(), text },
        true => Value::Other { type_name: "TIME".to_owned(), text: format!("-{text}") },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(type_name: &str, text: &str) -> Value {
        Value::Other { type_name: type_name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn integers_of_all_sizes() {
        assert_eq!(integer(&[0xFF], false), Some(Value::Int(-1)));
        assert_eq!(integer(&[0xFF], true), Some(Value::Int(255)));
        assert_eq!(integer(&[0x00, 0x80], false), Some(Value::Int(-32_768)));
        assert_eq!(integer(&u64::MAX.to_le_bytes(), true), Some(other("BIGINT UNSIGNED", "18446744073709551615")));
        assert_eq!(integer(&[0; 9], true), None);
        assert_eq!(integer(&[], false), None);
        assert_eq!(bits(&[1, 0]), Some(256));
    }

    #[test]
    fn moments_and_zero_dates() {
        assert_eq!(moment("DATE", &[4, 0xE8, 7, 2, 29]), Some(Value::Date("2024-02-29".to_owned())));
        assert_eq!(moment("DATE", &[0]), Some(other("DATE", "0000-00-00")));
        assert_eq!(moment("DATETIME", &[0]), Some(other("DATETIME", "0000-00-00 00:00:00")));
        assert_eq!(moment("DATE", &[4, 0xE8, 7, 0, 0]), Some(other("DATE", "2024-00-00")));
        let full = [11, 0xE8, 7, 2, 29, 23, 59, 58, 0x20, 0xA1, 7, 0];
        assert_eq!(moment("DATETIME", &full), Some(Value::Timestamp("2024-02-29 23:59:58.5".to_owned())));
        assert_eq!(moment("TIMESTAMP", &full), Some(Value::Timestamptz("2024-02-29 23:59:58.5+00:00".to_owned())));
        assert_eq!(moment("DATE", &[9, 1]), None);
        assert_eq!(moment("DATE", &[]), None);
    }

    #[test]
    fn times_and_spans() {
        assert_eq!(time(&[0]), Some(Value::Time("00:00:00".to_owned())));
        assert_eq!(time(&[8, 0, 0, 0, 0, 0, 23, 59, 58]), Some(Value::Time("23:59:58".to_owned())));
        assert_eq!(time(&[8, 1, 1, 0, 0, 0, 2, 3, 4]), Some(other("TIME", "-26:03:04")));
        assert_eq!(time(&[12, 0, 34, 0, 0, 0, 22, 59, 59, 1, 0, 0, 0]), Some(other("TIME", "838:59:59.000001")));
        assert_eq!(time(&[8, 0, 0]), None);
        assert_eq!(time(&[]), None);
    }
}
