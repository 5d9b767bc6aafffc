//! Parameters and results, by SQLite's storage classes.

use sqlx::sqlite::{SqliteArguments, SqliteRow};
use sqlx::{Arguments, Decode, Row, Sqlite, TypeInfo, ValueRef};

use super::super::database::DbError;
use super::super::gate::{driver_error, invalid, lost};
use super::super::value::{Param, Value};

/// Binds the parameters of a statement.
pub(super) fn arguments<'p>(params: impl IntoIterator<Item = &'p Param>) -> Result<SqliteArguments, DbError> {
    let mut arguments = SqliteArguments::default();
    for (index, param) in params.into_iter().enumerate() {
        let Param::One(value) = param else {
            return Err(DbError::infrastructure("a whole column as one parameter works on Postgres only"));
        };
        let added = match value {
            Value::Null => Arguments::add(&mut arguments, None::<i64>),
            Value::Boolean(flag) => Arguments::add(&mut arguments, i64::from(*flag)),
            Value::Int(int) => Arguments::add(&mut arguments, *int),
            // SQLite would make NULL of it without a word.
            Value::Float(float) if float.is_nan() => {
                return Err(invalid(format!("parameter {}: this database has no NaN", index + 1)));
            }
            Value::Float(float) => Arguments::add(&mut arguments, *float),
            Value::Blob(bytes) => Arguments::add(&mut arguments, bytes.clone()),
            Value::Text(text)
            | Value::Decimal(text)
            | Value::Uuid(text)
            | Value::Date(text)
            | Value::Time(text)
            | Value::Timestamp(text)
            | Value::Timestamptz(text)
            | Value::Json(text)
            | Value::Other { text, .. } => Arguments::add(&mut arguments, text.clone()),
        };
        added.map_err(|error| driver_error(&sqlx::Error::Encode(error)))?;
    }
    Ok(arguments)
}

/// A row, read column by column.
pub(super) fn row(row: &SqliteRow) -> Result<Vec<Value>, DbError> {
    let mut values = Vec::with_capacity(row.len());
    for index in 0..row.len() {
        let unreadable = || lost(format!("column {} of the result cannot be read", index + 1));
        values.push(read(row, index).ok_or_else(unreadable)?);
    }
    Ok(values)
}

/// How many bytes a row's texts and blobs have.
pub(super) fn size(row: &SqliteRow) -> u64 {
    let bytes = |index| {
        let raw = row.try_get_raw(index).ok()?;
        // SQLite would make a text of a number to hand out its bytes.
        let is_long = matches!(raw.type_info().name(), "TEXT" | "BLOB");
        if is_long { <&[u8] as Decode<Sqlite>>::decode(raw).ok() } else { None }
    };
    (0..row.len()).filter_map(bytes).map(|bytes| bytes.len() as u64).sum()
}

fn read(row: &SqliteRow, index: usize) -> Option<Value> {
    let raw = row.try_get_raw(index).ok()?;
    if raw.is_null() {
        return Some(Value::Null);
    }
    let class = raw.type_info().name().to_owned();
    Some(match class.as_str() {
        "INTEGER" => Value::Int(<i64 as Decode<Sqlite>>::decode(raw).ok()?),
        "REAL" => Value::Float(<f64 as Decode<Sqlite>>::decode(raw).ok()?),
        "TEXT" => {
            let bytes = <Vec<u8> as Decode<Sqlite>>::decode(raw).ok()?;
            // SQLite stores what it is given, UTF-8 or not.
            String::from_utf8(bytes).map_or_else(|error| Value::Blob(error.into_bytes()), Value::Text)
        }
        _ => Value::Blob(<Vec<u8> as Decode<Sqlite>>::decode(raw).ok()?),
    })
}
