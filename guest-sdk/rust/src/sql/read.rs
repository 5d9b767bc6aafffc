//! Rows as Rust values.

use std::rc::Rc;

use serde::de::DeserializeOwned;

use super::{Date, Decimal, Error, ErrorKind, Other, Time, Timestamp, Timestamptz, Uuid, Value};
use crate::Json;

/// A Rust type that a column can be read into.
pub trait FromValue: Sized {
    /// What is expected, for error messages: `i64`.
    const EXPECTED: &'static str;

    /// Reads the value, or gives it back if it is something else.
    ///
    /// # Errors
    /// The value, unchanged.
    fn from_value(value: Value) -> Result<Self, Value>;
}

/// A Rust type that a row can be read into: a tuple of up to 16 values, one value, or a struct with
/// `#[derive(FromRow)]`.
pub trait FromRow: Sized {
    /// Reads the row.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the column, what was expected and what was found.
    fn from_row(row: Row) -> Result<Self, Error>;
}

/// The column names that the rows of one result share.
pub(super) struct Columns(Rc<[String]>);

impl Columns {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self(names.into())
    }

    pub(super) fn row(&self, values: Vec<Value>) -> Row {
        Row { columns: Rc::clone(&self.0), values: values.into_iter().map(Some).collect() }
    }
}

/// One row; each column can be taken once.
#[derive(Debug, Clone)]
pub struct Row {
    columns: Rc<[String]>,
    values: Vec<Option<Value>>,
}

impl Row {
    /// Column names, in order.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Takes a column by name; without regard to case, if none has exactly this name.
    ///
    /// # Errors
    /// If there is no such column, or its value is no `T`.
    pub fn take<T: FromValue>(&mut self, name: &str) -> Result<T, Error> {
        let exactly = self.columns.iter().position(|column| column == name);
        let index = exactly.or_else(|| self.columns.iter().position(|column| column.eq_ignore_ascii_case(name)));
        match index {
            Some(index) => self.take_at(index),
            None => Err(invalid(format!("no column {name:?}; the columns are {}", self.columns.join(", ")))),
        }
    }

    /// Takes a column by position, from 0.
    ///
    /// # Errors
    /// As [`Row::take`].
    pub fn take_at<T: FromValue>(&mut self, index: usize) -> Result<T, Error> {
        let Some(value) = self.values.get_mut(index) else {
            return Err(invalid(format!("no column {}; the row has {}", index + 1, self.values.len())));
        };
        let name = self.columns.get(index).map_or("", String::as_str);
        let column = format!("column {} {name:?}", index + 1);
        match value.take() {
            Some(value) => T::from_value(value)
                .map_err(|found| invalid(format!("{column}: expected {}, found {}", T::EXPECTED, describe(&found)))),
            None => Err(invalid(format!("{column} was already taken"))),
        }
    }
}

fn invalid(message: String) -> Error {
    Error::local(ErrorKind::Invalid, message)
}

/// The type and, cut, the content of a value: `text "12 pieces"`.
fn describe(value: &Value) -> String {
    let cut = |text: &str| match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    };
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Boolean(boolean) => format!("boolean {boolean}"),
        Value::Int64(int) => format!("integer {int}"),
        Value::Float64(float) => format!("float {float}"),
        Value::Text(text) => format!("text {}", cut(text)),
        Value::Blob(bytes) => format!("{} bytes", bytes.len()),
        Value::Decimal(text) => format!("decimal {}", cut(text)),
        Value::Uuid(text) => format!("uuid {}", cut(text)),
        Value::Date(text) => format!("date {}", cut(text)),
        Value::Time(text) => format!("time {}", cut(text)),
        Value::Timestamp(text) => format!("timestamp {}", cut(text)),
        Value::Timestamptz(text) => format!("timestamptz {}", cut(text)),
        Value::Json(text) => format!("json {}", cut(text)),
        Value::Other((kind, text)) => format!("{kind} {}", cut(text)),
    }
}

/// A type that is one value, so it reads both a column and a row of one column.
macro_rules! scalar {
    ($($type:ty, $expected:literal, $($pattern:pat $(if $guard:expr)? => $to:expr),+;)*) => {
        $(
            impl FromValue for $type {
                const EXPECTED: &'static str = $expected;

                fn from_value(value: Value) -> Result<Self, Value> {
                    match value {
                        $($pattern $(if $guard)? => Ok($to),)+
                        other => Err(other),
                    }
                }
            }
            single!($type);
        )*
    };
}

macro_rules! single {
    ($type:ty) => {
        impl FromRow for $type {
            fn from_row(row: Row) -> Result<Self, Error> {
                <($type,)>::from_row(row).map(|(value,)| value)
            }
        }
    };
}

macro_rules! integers {
    ($($type:ident)*) => {
        $(
            impl FromValue for $type {
                const EXPECTED: &'static str = stringify!($type);

                /// Integers in range; whole decimals and the database's own unsigned types, by their text.
                fn from_value(value: Value) -> Result<Self, Value> {
                    let read = match &value {
                        Value::Int64(int) => (*int).try_into().ok(),
                        Value::Decimal(text) | Value::Other((_, text)) => text.parse().ok(),
                        _ => None,
                    };
                    read.ok_or(value)
                }
            }
            single!($type);
        )*
    };
}

integers!(i8 i16 i32 i64 u8 u16 u32 u64 isize usize);

scalar! {
    bool, "bool",
        Value::Boolean(boolean) => boolean,
        // MariaDB and SQLite have no booleans.
        Value::Int64(int @ (0 | 1)) => int == 1;
    f64, "f64",
        Value::Float64(float) => float,
        // SQLite stores whole floats as integers in some columns, and MariaDB computes with decimals.
        Value::Int64(int) if is_exact(int) => int as f64,
        Value::Decimal(ref text) if is_number(text) => text.parse().unwrap_or_default();
    f32, "f32",
        Value::Float64(float) if fits_f32(float) => float as f32,
        Value::Int64(int) if is_exact(int) => int as f32,
        Value::Decimal(ref text) if text.parse().is_ok_and(f32::is_finite) => text.parse().unwrap_or_default();
    String, "text",
        Value::Text(text) => text;
    Vec<u8>, "bytes",
        Value::Blob(bytes) => bytes;
    Decimal, "a decimal",
        Value::Decimal(text) => Self(text),
        Value::Int64(int) => Self(int.to_string()),
        // SQLite has no decimals: they come back as the text that was stored, or as what the column made of it.
        Value::Text(text) if is_number(&text) => Self(text),
        Value::Float64(float) if float.is_finite() => Self(float.to_string());
    Uuid, "a uuid",
        Value::Uuid(text) | Value::Text(text) => Self(text);
    Date, "a date",
        Value::Date(text) | Value::Text(text) => Self(text);
    Time, "a time",
        Value::Time(text) | Value::Text(text) => Self(text);
    Timestamp, "a timestamp",
        Value::Timestamp(text) | Value::Text(text) => Self(text);
    Timestamptz, "a timestamptz",
        Value::Timestamptz(text) | Value::Text(text) => Self(text);
    Other, "a value of another type",
        Value::Other((type_name, text)) => Self { type_name, text };
}

/// Whether a float holds the integer without loss: up to 2^53.
fn is_exact(int: i64) -> bool {
    int.unsigned_abs() <= 1 << f64::MANTISSA_DIGITS
}

/// Whether text is a number, so neither a word nor NaN nor infinite.
fn is_number(text: &str) -> bool {
    text.parse().is_ok_and(f64::is_finite)
}

/// Whether a float is about the same as an `f32`: rounded, but not made infinite.
fn fits_f32(float: f64) -> bool {
    !float.is_finite() || (float as f32).is_finite()
}

impl FromValue for Value {
    const EXPECTED: &'static str = "any value";

    fn from_value(value: Value) -> Result<Self, Value> {
        Ok(value)
    }
}
single!(Value);

impl<T: FromValue> FromValue for Option<T> {
    const EXPECTED: &'static str = T::EXPECTED;

    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl<T: FromValue> FromRow for Option<T> {
    fn from_row(row: Row) -> Result<Self, Error> {
        <(Self,)>::from_row(row).map(|(value,)| value)
    }
}

impl<T: DeserializeOwned> FromValue for Json<T> {
    const EXPECTED: &'static str = "JSON of the expected shape";

    fn from_value(value: Value) -> Result<Self, Value> {
        match &value {
            Value::Json(text) | Value::Text(text) => serde_json::from_str(text).map(Self).map_err(|_| value),
            _ => Err(value),
        }
    }
}

macro_rules! tuple_row {
    ($count:literal: $($type:ident $index:tt),+) => {
        impl<$($type: FromValue),+> FromRow for ($($type,)+) {
            fn from_row(mut row: Row) -> Result<Self, Error> {
                if row.values.len() != $count {
                    let (found, names) = (row.values.len(), row.columns.join(", "));
                    return Err(invalid(format!("expected {} column(s), found {found}: {names}", $count)));
                }
                Ok(($(row.take_at($index)?,)+))
            }
        }
    };
}

tuple_row!(1: A 0);
tuple_row!(2: A 0, B 1);
tuple_row!(3: A 0, B 1, C 2);
tuple_row!(4: A 0, B 1, C 2, D 3);
tuple_row!(5: A 0, B 1, C 2, D 3, E 4);
tuple_row!(6: A 0, B 1, C 2, D 3, E 4, F 5);
tuple_row!(7: A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple_row!(8: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuple_row!(9: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuple_row!(10: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuple_row!(11: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuple_row!(12: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
tuple_row!(13: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12);
tuple_row!(14: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13);
tuple_row!(15: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14);
tuple_row!(16: A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14, P 15);

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: impl IntoIterator<Item = (&'static str, Value)>) -> Row {
        let (names, values): (Vec<_>, _) = values.into_iter().map(|(name, value)| (name.to_owned(), value)).unzip();
        Columns::new(names).row(values)
    }

    #[test]
    fn rows_read_into_tuples_single_values_and_structs() {
        #[derive(Debug, PartialEq, crate::sql::FromRow)]
        struct Stock {
            quantity: u32,
            #[row(rename = "type")]
            kind: Option<String>,
        }
        let values = || [("type", Value::Null), ("QUANTITY", Value::Int64(3))];
        assert_eq!(Stock::from_row(row(values())).unwrap(), Stock { quantity: 3, kind: None });
        assert_eq!(<(Option<String>, i64)>::from_row(row(values())).unwrap(), (None, 3));
        assert_eq!(i64::from_row(row([("n", Value::Decimal("7".into()))])).unwrap(), 7);
        assert_eq!(
            u64::from_row(row([("n", Value::Other(("BIGINT UNSIGNED".into(), u64::MAX.to_string())))])),
            Ok(u64::MAX)
        );
        assert_eq!(Json::<Vec<i64>>::from_value(Value::Json("[1]".into())), Ok(Json(vec![1])));
    }

    #[test]
    fn numbers_are_read_in_whatever_form_a_database_has_them() {
        let decimal = |text: &str| Ok(Decimal(text.to_owned()));
        assert_eq!(Decimal::from_value(Value::Decimal("1.50".into())), decimal("1.50"));
        assert_eq!(Decimal::from_value(Value::Text("1.50".into())), decimal("1.50"));
        assert_eq!(Decimal::from_value(Value::Float64(1.5)), decimal("1.5"));
        assert_eq!(Decimal::from_value(Value::Int64(-2)), decimal("-2"));
        for other in [Value::Text("twelve".into()), Value::Text("NaN".into()), Value::Float64(f64::INFINITY)] {
            assert_eq!(Decimal::from_value(other.clone()), Err(other));
        }
        assert_eq!(f64::from_value(Value::Int64(1 << 53)), Ok(9_007_199_254_740_992.0));
        assert_eq!(f64::from_value(Value::Int64((1 << 53) + 1)), Err(Value::Int64((1 << 53) + 1)));
        assert_eq!(f64::from_value(Value::Decimal("2.25".into())), Ok(2.25));
        assert_eq!(f64::from_value(Value::Text("2.25".into())), Err(Value::Text("2.25".into())));
        assert_eq!(f32::from_value(Value::Float64(0.1)), Ok(0.1));
        assert_eq!(f32::from_value(Value::Int64(3)), Ok(3.0));
        assert_eq!(f32::from_value(Value::Decimal("-0.5".into())), Ok(-0.5));
        assert_eq!(f32::from_value(Value::Float64(1e300)), Err(Value::Float64(1e300)));
    }

    #[test]
    fn a_value_of_another_type_is_an_error_that_names_column_expectation_and_finding() {
        let message = |error: Error| error.message;
        let text = || Value::Text("12 pieces".into());
        assert_eq!(
            message(<(i64, i64)>::from_row(row([("id", Value::Int64(1)), ("quantity", text())])).unwrap_err()),
            "column 2 \"quantity\": expected i64, found text \"12 pieces\""
        );
        assert_eq!(
            message(String::from_row(row([("name", Value::Null)])).unwrap_err()),
            "column 1 \"name\": expected text, found NULL"
        );
        assert_eq!(
            message(u8::from_row(row([("n", Value::Int64(256))])).unwrap_err()),
            "column 1 \"n\": expected u8, found integer 256"
        );
        assert_eq!(
            message(i64::from_row(row([("a", text()), ("b", text())])).unwrap_err()),
            "expected 1 column(s), found 2: a, b"
        );
        let long = Value::Text("é".repeat(100));
        assert!(message(i64::from_row(row([("n", long)])).unwrap_err()).ends_with("éé\"…"));
    }

    #[test]
    fn a_missing_column_is_named_with_those_that_exist() {
        let mut row = row([("id", Value::Int64(1)), ("name", Value::Null)]);
        assert_eq!(row.take::<i64>("nmae").unwrap_err().message, "no column \"nmae\"; the columns are id, name");
        assert_eq!(row.take::<i64>("id"), Ok(1));
        assert_eq!(row.take::<i64>("id").unwrap_err().message, "column 1 \"id\" was already taken");
    }
}
