//! SQL in the transaction that records this message as done: it commits with that record, or not at all.
//!
//! ```
//! # use hapax_guest::{Failure, testing::Fake, sql};
//! # let fake = Fake::new();
//! # fake.when("UPDATE").affects(1);
//! # fake.when("SELECT").returns(["name", "quantity"], [("bolt", 3)]);
//! let changed = sql::execute("UPDATE stock SET quantity = quantity - ? WHERE goods_id = ?", (1, 7))?.rows_affected;
//!
//! #[derive(sql::FromRow)]
//! struct Stock { name: String, quantity: i64 }
//! let stock: Option<Stock> = sql::query_optional("SELECT name, quantity FROM stock WHERE goods_id = ?", (7,))?;
//! # assert_eq!((changed, stock.unwrap().quantity), (1, 3));
//! # Ok::<(), Failure>(())
//! ```
//!
//! - Placeholders are `?` on every database; the host rewrites them for Postgres.
//! - The transaction may be shared with other messages of a batch: their earlier writes are visible, `now()` is theirs,
//!   and row locks last until all commit.
//! - **After any error the attempt is lost**: later calls answer [`ErrorKind::Poisoned`], and the message is tried again
//!   even if the handler returns `Ok`. So test with a condition (`WHERE quantity >= ?` and `rows_affected`, or
//!   `ON CONFLICT DO NOTHING`), not by provoking an error.
//! - A statement that always answers alike may be answered with that before the database has. If the database then says
//!   something else, the attempt is undone and made again with its own answers.
//! - The host refuses what would end the transaction or outlive it (`COMMIT`, DDL, `SET`), and tables that the config
//!   does not grant.

mod bind;
mod read;
mod types;

use std::fmt;

use crate::host::sql as host;

pub use bind::{Params, ToValue};
pub use hapax_guest_macros::FromRow;
pub use read::{FromRow, FromValue, Row};
pub use types::{Date, Decimal, Other, Time, Timestamp, Timestamptz, Uuid};

/// A SQL value, as it crosses between handler and host.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// NULL of any type.
    Null,
    /// Boolean.
    Boolean(bool),
    /// Any integer that fits 64 bits, signed.
    Int64(i64),
    /// Any floating point number.
    Float64(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
    /// An exact decimal, as text.
    Decimal(String),
    /// A UUID, hyphenated.
    Uuid(String),
    /// `YYYY-MM-DD`.
    Date(String),
    /// `HH:MM:SS[.ffffff]`.
    Time(String),
    /// `YYYY-MM-DD HH:MM:SS[.ffffff]`, without a zone.
    Timestamp(String),
    /// The same with an offset.
    Timestamptz(String),
    /// JSON text.
    Json(String),
    /// Any other type of the database: its name there, and the value's text form.
    Other((String, String)),
}

macro_rules! value_from {
    ($($from:ty => $value:ident => $to:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}

value_from! {
    bool => value => Self::Boolean(value),
    i32 => value => Self::Int64(value.into()),
    u32 => value => Self::Int64(value.into()),
    i64 => value => Self::Int64(value),
    f64 => value => Self::Float64(value),
    &str => value => Self::Text(value.to_owned()),
    String => value => Self::Text(value),
    Vec<u8> => value => Self::Blob(value),
}

/// What a statement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Executed {
    /// Rows inserted, changed or deleted.
    pub rows_affected: u64,
    /// The key generated for the last inserted row; none on Postgres.
    pub last_insert_id: Option<u64>,
}

/// What a query returned, as the host hands it over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResultSet {
    /// Column names, in order.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
}

/// What went wrong with a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Not allowed to a handler, or not granted to this consumer.
    Denied,
    /// The statement, its parameters or its result do not fit.
    Invalid,
    /// A unique key, a foreign key, a check.
    Constraint,
    /// A deadlock, a lock time-out, a lost connection.
    Transient,
    /// More rows or bytes than the limits allow.
    TooLarge,
    /// An earlier statement of this attempt failed.
    Poisoned,
    /// Something else.
    Other,
}

impl ErrorKind {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Denied => "sql-denied",
            Self::Invalid => "sql-invalid",
            Self::Constraint => "sql-constraint",
            Self::Transient => "sql-transient",
            Self::TooLarge => "sql-too-large",
            Self::Poisoned => "sql-poisoned",
            Self::Other => "sql-other",
        }
    }

    /// From the number that the contract gives the case; the generated bindings ask for this by this name.
    #[cfg(target_arch = "wasm32")]
    pub(crate) unsafe fn _lift(number: u8) -> Self {
        match number {
            0 => Self::Denied,
            1 => Self::Invalid,
            2 => Self::Constraint,
            3 => Self::Transient,
            4 => Self::TooLarge,
            5 => Self::Poisoned,
            _ => Self::Other,
        }
    }
}

/// A statement failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// The database's own code, for example the SQLSTATE `23505`.
    pub code: Option<String>,
    /// The constraint that was violated, where the database names it.
    pub constraint: Option<String>,
    /// What the database, the host or this crate says.
    pub message: String,
}

impl Error {
    /// An error that this crate found, before or after the host.
    pub(crate) fn local(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, code: None, constraint: None, message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.code {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Runs a statement that returns no rows.
///
/// # Errors
/// If a parameter does not fit ([`ErrorKind::Invalid`]: nothing was sent), or the statement failed.
pub fn execute(statement: &str, params: impl Params) -> Result<Executed, Error> {
    host::execute(statement, &params.into_values()?)
}

/// Runs one statement for each set of parameters, in one round trip where the database can; returns all rows affected.
///
/// # Errors
/// As [`execute`]; rows before the failing one do not stay either.
pub fn execute_many<P: Params>(statement: &str, rows: impl IntoIterator<Item = P>) -> Result<u64, Error> {
    let rows = rows.into_iter().map(Params::into_values).collect::<Result<Vec<_>, _>>()?;
    host::execute_many(statement, &rows)
}

/// Runs a query and reads every row: into a tuple, a struct with `#[derive(FromRow)]`, or a single value.
///
/// # Errors
/// As [`execute`]; and [`ErrorKind::Invalid`] if a row does not read as `T`: it names the column, and what was found.
pub fn query<T: FromRow>(statement: &str, params: impl Params) -> Result<Vec<T>, Error> {
    let ResultSet { columns, rows } = host::query(statement, &params.into_values()?)?;
    let columns = read::Columns::new(columns);
    rows.into_iter().map(|row| T::from_row(columns.row(row))).collect()
}

/// Runs a query that returns at most one row.
///
/// # Errors
/// As [`query`]; and [`ErrorKind::Invalid`] if there are more rows.
pub fn query_optional<T: FromRow>(statement: &str, params: impl Params) -> Result<Option<T>, Error> {
    let mut rows = query(statement, params)?;
    match rows.len() {
        0 | 1 => Ok(rows.pop()),
        many => Err(Error::local(ErrorKind::Invalid, format!("expected at most one row, found {many}: {statement}"))),
    }
}

/// Runs a query that returns exactly one row.
///
/// # Errors
/// As [`query_optional`]; and [`ErrorKind::Invalid`] if there is no row.
pub fn query_one<T: FromRow>(statement: &str, params: impl Params) -> Result<T, Error> {
    query_optional(statement, params)?
        .ok_or_else(|| Error::local(ErrorKind::Invalid, format!("expected one row, found none: {statement}")))
}
