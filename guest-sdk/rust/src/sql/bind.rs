//! Rust values as parameters.

use std::borrow::Cow;

use serde::Serialize;

use super::{Date, Decimal, Error, ErrorKind, Other, Time, Timestamp, Timestamptz, Uuid, Value};
use crate::Json;

/// A Rust value that can be a parameter.
///
/// Integers of every width (unsigned 64-bit ones up to `i64::MAX`), floats, `bool`, text, bytes, `Option` of them,
/// [`Json`], the types of this module, and [`Value`] itself.
pub trait ToValue {
    /// The value, or why there is none, in words that follow "parameter 2: ".
    ///
    /// # Errors
    /// If this value has no SQL form.
    fn to_value(&self) -> Result<Value, String>;
}

/// The parameters of a statement: `()`, a tuple of up to 16 values, an array, a slice or a vector of values of one type.
///
/// One parameter is the tuple `(value,)`.
pub trait Params {
    /// The values in order.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`], naming the parameter, if one has no SQL form.
    fn into_values(self) -> Result<Vec<Value>, Error>;
}

fn parameter(index: usize, value: &(impl ToValue + ?Sized)) -> Result<Value, Error> {
    value.to_value().map_err(|why| Error::local(ErrorKind::Invalid, format!("parameter {}: {why}", index + 1)))
}

macro_rules! to_value {
    ($($from:ty => $value:ident => $to:expr),* $(,)?) => {
        $(impl ToValue for $from {
            fn to_value(&self) -> Result<Value, String> {
                let $value = self;
                Ok($to)
            }
        })*
    };
}

to_value! {
    bool => value => Value::Boolean(*value),
    i8 => value => Value::Int64((*value).into()),
    i16 => value => Value::Int64((*value).into()),
    i32 => value => Value::Int64((*value).into()),
    i64 => value => Value::Int64(*value),
    u8 => value => Value::Int64((*value).into()),
    u16 => value => Value::Int64((*value).into()),
    u32 => value => Value::Int64((*value).into()),
    u64 => value => checked(*value)?,
    isize => value => checked(*value)?,
    usize => value => checked(*value)?,
    f32 => value => Value::Float64((*value).into()),
    f64 => value => Value::Float64(*value),
    str => value => Value::Text(value.to_owned()),
    String => value => Value::Text(value.clone()),
    Cow<'_, str> => value => Value::Text(value.clone().into_owned()),
    [u8] => value => Value::Blob(value.to_vec()),
    Vec<u8> => value => Value::Blob(value.clone()),
    Decimal => value => Value::Decimal(value.0.clone()),
    Uuid => value => Value::Uuid(value.0.clone()),
    Date => value => Value::Date(value.0.clone()),
    Time => value => Value::Time(value.0.clone()),
    Timestamp => value => Value::Timestamp(value.0.clone()),
    Timestamptz => value => Value::Timestamptz(value.0.clone()),
    Other => value => Value::Other((value.type_name.clone(), value.text.clone())),
    Value => value => value.clone(),
    serde_json::Value => value => Value::Json(value.to_string()),
}

fn checked<T: TryInto<i64> + Copy + std::fmt::Display>(value: T) -> Result<Value, String> {
    let hint = "bind it as a Decimal if the column can hold it";
    value.try_into().map(Value::Int64).map_err(|_| format!("{value} does not fit a signed 64-bit integer; {hint}"))
}

impl<const N: usize> ToValue for [u8; N] {
    fn to_value(&self) -> Result<Value, String> {
        Ok(Value::Blob(self.to_vec()))
    }
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Result<Value, String> {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Result<Value, String> {
        self.as_ref().map_or(Ok(Value::Null), ToValue::to_value)
    }
}

impl<T: Serialize> ToValue for Json<T> {
    fn to_value(&self) -> Result<Value, String> {
        serde_json::to_string(&self.0).map(Value::Json).map_err(|error| format!("not writable as JSON: {error}"))
    }
}

impl Params for () {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        Ok(Vec::new())
    }
}

impl<T: ToValue> Params for &[T] {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        self.iter().enumerate().map(|(index, value)| parameter(index, value)).collect()
    }
}

impl<T: ToValue> Params for Vec<T> {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        self.as_slice().into_values()
    }
}

impl<T: ToValue> Params for &Vec<T> {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        self.as_slice().into_values()
    }
}

impl<T: ToValue, const N: usize> Params for [T; N] {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        self.as_slice().into_values()
    }
}

impl<T: ToValue, const N: usize> Params for &[T; N] {
    fn into_values(self) -> Result<Vec<Value>, Error> {
        self.as_slice().into_values()
    }
}

macro_rules! tuple_params {
    ($($type:ident $index:tt),+) => {
        impl<$($type: ToValue),+> Params for ($($type,)+) {
            fn into_values(self) -> Result<Vec<Value>, Error> {
                Ok(vec![$(parameter($index, &self.$index)?),+])
            }
        }
    };
}

tuple_params!(A 0);
tuple_params!(A 0, B 1);
tuple_params!(A 0, B 1, C 2);
tuple_params!(A 0, B 1, C 2, D 3);
tuple_params!(A 0, B 1, C 2, D 3, E 4);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14);
tuple_params!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11, M 12, N 13, O 14, P 15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_slices_and_nothing_are_parameters() {
        assert_eq!(().into_values().unwrap(), []);
        let (text, bytes) = ("a".to_owned(), [1_u8, 2]);
        assert_eq!(
            (1_i8, text, &bytes, None::<i64>, Some("x"), true, Decimal::new("1.10")).into_values().unwrap(),
            [
                Value::Int64(1),
                Value::Text("a".into()),
                Value::Blob(vec![1, 2]),
                Value::Null,
                Value::Text("x".into()),
                Value::Boolean(true),
                Value::Decimal("1.10".into()),
            ]
        );
        assert_eq!([1, 2].into_values().unwrap(), [Value::Int64(1), Value::Int64(2)]);
        assert_eq!(vec!["a"].into_values().unwrap(), [Value::Text("a".into())]);
        assert_eq!((Json(vec![1]),).into_values().unwrap(), [Value::Json("[1]".into())]);
    }

    #[test]
    fn an_unsigned_integer_past_the_signed_range_is_an_error_that_names_the_parameter() {
        assert_eq!((u64::MAX >> 1,).into_values().unwrap(), [Value::Int64(i64::MAX)]);
        let error = (0, u64::MAX).into_values().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(
            error.message,
            "parameter 2: 18446744073709551615 does not fit a signed 64-bit integer; \
             bind it as a Decimal if the column can hold it"
        );
    }
}
