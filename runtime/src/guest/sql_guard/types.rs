//! The types that guests may cast to, and how they are written.

use sqlparser::ast::{
    ArrayElemTypeDef, BinaryLength, CharLengthUnits, CharacterLength, DataType as T, ExactNumberInfo, TimezoneInfo,
};

use super::GuardError;
use super::names::{Grants, idents, meanings};
use crate::ledger::database::Dialect;

/// Types of Postgres that sqlparser has no word for, and that read nothing but their text. The `reg*` types look names
/// up in the catalog, and are not here.
const POSTGRES_OTHERS: &[&str] = &[
    "inet",
    "cidr",
    "macaddr",
    "macaddr8",
    "money",
    "citext",
    "hstore",
    "int4range",
    "int8range",
    "numrange",
    "tsrange",
    "tstzrange",
    "daterange",
    "bpchar",
    "timestamptz",
    "timetz",
];

/// True if casting to it may call a function of somebody's own.
pub(super) fn is_custom(data_type: &T) -> bool {
    match data_type {
        T::Custom(..) => true,
        T::Array(ArrayElemTypeDef::SquareBracket(element, _)) => is_custom(element),
        _ => false,
    }
}

/// How `data_type` is written; an error if it is not one for guests.
pub(super) fn text(grants: &Grants, data_type: &T) -> Result<String, GuardError> {
    let own = match grants.dialect {
        Dialect::Postgres => postgres(grants, data_type)?,
        Dialect::MySql => mysql(data_type),
        Dialect::Sqlite => sqlite(data_type),
    };
    own.ok_or_else(|| {
        GuardError::denied(
            format!("type `{data_type}`"),
            "cast to one of the database's own value types; a type of yours goes into grants.functions",
        )
    })
}

fn postgres(grants: &Grants, data_type: &T) -> Result<Option<String>, GuardError> {
    let text = match data_type {
        T::Text => "text".to_owned(),
        T::Varchar(length) | T::CharacterVarying(length) | T::CharVarying(length) => {
            return Ok(characters("varchar", length));
        }
        T::Char(length) | T::Character(length) => return Ok(characters("char", length)),
        T::Uuid => "uuid".to_owned(),
        T::Numeric(info) | T::Decimal(info) | T::Dec(info) => numeric("numeric", info),
        T::SmallInt(None) | T::Int2(None) => "smallint".to_owned(),
        T::Int(None) | T::Integer(None) | T::Int4(None) => "integer".to_owned(),
        T::BigInt(None) | T::Int8(None) => "bigint".to_owned(),
        T::Real | T::Float4 => "real".to_owned(),
        T::Float(info) => numeric("float", info),
        T::DoublePrecision | T::Float8 => "double precision".to_owned(),
        T::Bool | T::Boolean => "boolean".to_owned(),
        T::Date => "date".to_owned(),
        T::Time(precision, zone) => timed("time", *precision, zone),
        T::Timestamp(precision, zone) => timed("timestamp", *precision, zone),
        T::Interval { fields: None, precision: None } => "interval".to_owned(),
        T::JSON => "json".to_owned(),
        T::JSONB => "jsonb".to_owned(),
        T::Bytea => "bytea".to_owned(),
        T::Bit(length) => sized("bit", *length),
        T::BitVarying(length) | T::VarBit(length) => sized("bit varying", *length),
        T::TsVector => "tsvector".to_owned(),
        T::TsQuery => "tsquery".to_owned(),
        T::Array(ArrayElemTypeDef::SquareBracket(element, size)) => {
            let size = size.map(|size| size.to_string()).unwrap_or_default();
            format!("{}[{size}]", self::text(grants, element)?)
        }
        T::Custom(name, modifiers) if modifiers.is_empty() => {
            let parts = meanings(grants.dialect, name)?;
            match parts.as_slice() {
                [one] if POSTGRES_OTHERS.contains(&one.as_str()) => one.clone(),
                _ if !parts.iter().any(|part| part.to_lowercase().starts_with("reg")) && grants.function(&parts) => {
                    let quoted = |part: String| format!("\"{}\"", part.replace('"', "\"\""));
                    parts.into_iter().map(quoted).collect::<Vec<_>>().join(".")
                }
                _ => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    Ok(Some(text))
}

fn mysql(data_type: &T) -> Option<String> {
    let text = match data_type {
        T::Signed | T::SignedInteger => "SIGNED".to_owned(),
        T::Unsigned | T::UnsignedInteger => "UNSIGNED".to_owned(),
        T::Char(length) | T::Character(length) => return characters("CHAR", length),
        T::Varchar(length) => return characters("VARCHAR", length),
        T::Text => "TEXT".to_owned(),
        T::Binary(length) => sized("BINARY", *length),
        T::Varbinary(Some(BinaryLength::IntegerLength { length })) => format!("VARBINARY({length})"),
        T::Date => "DATE".to_owned(),
        T::Datetime(precision) => sized("DATETIME", *precision),
        T::Timestamp(precision, TimezoneInfo::None) => sized("TIMESTAMP", *precision),
        T::Time(precision, TimezoneInfo::None) => sized("TIME", *precision),
        T::Decimal(info) | T::Dec(info) | T::Numeric(info) => numeric("DECIMAL", info),
        T::Double(ExactNumberInfo::None) | T::DoublePrecision => "DOUBLE".to_owned(),
        T::Float(ExactNumberInfo::None) => "FLOAT".to_owned(),
        T::TinyInt(None) => "TINYINT".to_owned(),
        T::SmallInt(None) => "SMALLINT".to_owned(),
        T::Int(None) | T::Integer(None) => "INT".to_owned(),
        T::BigInt(None) => "BIGINT".to_owned(),
        T::BigIntUnsigned(None) => "BIGINT UNSIGNED".to_owned(),
        T::JSON => "JSON".to_owned(),
        _ => return None,
    };
    Some(text)
}

fn sqlite(data_type: &T) -> Option<String> {
    let text = match data_type {
        T::Integer(None) | T::Int(None) | T::BigInt(None) => "INTEGER",
        T::Text | T::Varchar(None) => "TEXT",
        T::Real | T::DoublePrecision | T::Double(ExactNumberInfo::None) => "REAL",
        T::Blob(None) => "BLOB",
        T::Numeric(ExactNumberInfo::None) | T::Decimal(ExactNumberInfo::None) => "NUMERIC",
        T::Boolean | T::Bool => "BOOLEAN",
        T::Date => "DATE",
        T::Custom(name, modifiers) if modifiers.is_empty() => {
            let parts = idents(name).ok()?;
            let [one] = parts.as_slice() else { return None };
            return one.value.eq_ignore_ascii_case("any").then(|| "ANY".to_owned());
        }
        _ => return None,
    };
    Some(text.to_owned())
}

fn sized(name: &str, size: Option<u64>) -> String {
    size.map_or_else(|| name.to_owned(), |size| format!("{name}({size})"))
}

fn characters(name: &str, length: &Option<CharacterLength>) -> Option<String> {
    match length {
        None => Some(name.to_owned()),
        Some(CharacterLength::IntegerLength { length, unit: None | Some(CharLengthUnits::Characters) }) => {
            Some(format!("{name}({length})"))
        }
        Some(_) => None,
    }
}

fn numeric(name: &str, info: &ExactNumberInfo) -> String {
    match info {
        ExactNumberInfo::None => name.to_owned(),
        ExactNumberInfo::Precision(precision) => format!("{name}({precision})"),
        ExactNumberInfo::PrecisionAndScale(precision, scale) => format!("{name}({precision}, {scale})"),
    }
}

fn timed(name: &str, precision: Option<u64>, zone: &TimezoneInfo) -> String {
    let name = sized(name, precision);
    match zone {
        TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => name,
        TimezoneInfo::WithTimeZone | TimezoneInfo::Tz => format!("{name} with time zone"),
    }
}
