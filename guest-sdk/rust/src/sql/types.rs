//! SQL types that Rust's standard library has no type for. They carry the text that the database reads and writes, so
//! nothing is lost on the way; parse it with the crate of your choice.

use std::fmt;

macro_rules! text_types {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub struct $name(pub String);

            impl $name {
                /// From its text form, which the database checks.
                pub fn new(text: impl Into<String>) -> Self {
                    Self(text.into())
                }

                /// The text form.
                pub fn as_str(&self) -> &str {
                    &self.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str(&self.0)
                }
            }
        )*
    };
}

text_types! {
    /// An exact decimal: `12.50`.
    Decimal,
    /// A UUID, hyphenated.
    Uuid,
    /// A date: `2026-01-31`.
    Date,
    /// A time of day: `23:59:59.999999`.
    Time,
    /// A date and time without a zone: `2026-01-31 23:59:59.999999`.
    Timestamp,
    /// A point in time: `2026-01-31 23:59:59.999999+00:00`.
    Timestamptz,
}

/// A value of a type that the contract does not know: an array, an `inet`, an interval.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Other {
    /// The database's name for the type.
    pub type_name: String,
    /// The value in the database's text form.
    pub text: String,
}
