//! Values on their way to and from a database: those of the contract, and the arrays that only the host binds.

/// A SQL value, as `value` of the contract has it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// SQL NULL, of whatever type is expected.
    Null,
    /// Boolean; 0 or 1 where a database has none.
    Boolean(bool),
    /// Any integer that fits 64 bits, signed.
    Int(i64),
    /// Any floating point number.
    Float(f64),
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
    /// The same with an offset, `+00:00` when read.
    Timestamptz(String),
    /// JSON text.
    Json(String),
    /// Any other type: its name in the database, and its text form there.
    Other {
        /// The database's name for the type.
        type_name: String,
        /// The value in the database's text form.
        text: String,
    },
}

impl Value {
    /// About how many bytes it holds in memory.
    pub fn size(&self) -> u64 {
        let held = match self {
            Self::Null | Self::Boolean(_) | Self::Int(_) | Self::Float(_) => 0,
            Self::Blob(bytes) => bytes.len(),
            Self::Text(text)
            | Self::Decimal(text)
            | Self::Uuid(text)
            | Self::Date(text)
            | Self::Time(text)
            | Self::Timestamp(text)
            | Self::Timestamptz(text)
            | Self::Json(text) => text.len(),
            Self::Other { type_name, text } => type_name.len() + text.len(),
        };
        (held + size_of::<Self>()) as u64
    }

    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a floating point number",
            Self::Text(_) => "a text",
            Self::Blob(_) => "a blob",
            Self::Decimal(_) => "a decimal",
            Self::Uuid(_) => "a uuid",
            Self::Date(_) => "a date",
            Self::Time(_) => "a time",
            Self::Timestamp(_) => "a timestamp",
            Self::Timestamptz(_) => "a timestamp with time zone",
            Self::Json(_) => "a JSON value",
            Self::Other { .. } => "a value of another type",
        }
    }
}

/// A parameter of a statement.
#[derive(Debug, Clone, PartialEq)]
pub enum Param {
    /// One value.
    One(Value),
    /// A whole column of integers; Postgres only.
    Ints(Vec<Option<i64>>),
    /// A whole column of texts; Postgres only.
    Texts(Vec<Option<String>>),
    /// A whole column of byte strings; Postgres only.
    Blobs(Vec<Option<Vec<u8>>>),
}

impl From<Value> for Param {
    fn from(value: Value) -> Self {
        Self::One(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Blob(value.to_vec())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// What a statement changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Executed {
    /// Rows inserted, changed or deleted.
    pub rows_affected: u64,
    /// The generated key of the last row inserted; none on Postgres.
    pub last_insert_id: Option<u64>,
}

/// What a query returned.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResultSet {
    /// Column names, in order.
    pub columns: Vec<String>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
}

/// How much of a result may be held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLimits {
    /// At most this many rows.
    pub rows: u64,
    /// At most about this many bytes of values.
    pub bytes: u64,
}

impl RowLimits {
    /// For the host's own queries, which limit themselves.
    pub const NONE: Self = Self { rows: u64::MAX, bytes: u64::MAX };
}
