//! A stand-in with the guard's signature that accepts everything; replaced by the guard itself when branches meet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ledger::database::Dialect;

/// What may be done to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Read rows.
    Select,
    /// Add rows.
    Insert,
    /// Change rows.
    Update,
    /// Remove rows.
    Delete,
}

/// Tables by name, each with the verbs allowed on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableGrants(pub BTreeMap<String, BTreeSet<Verb>>);

/// Whether a statement may change anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only reads.
    Read,
    /// It writes, or may.
    Write,
}

/// A statement that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What is sent.
    pub sql: String,
    /// How many parameters the caller must supply.
    pub parameters: usize,
    /// For each bound position, the index of the caller's parameter.
    pub order: Vec<usize>,
    /// Reads or writes.
    pub kind: Kind,
    /// It returns rows.
    pub returns_rows: bool,
}

/// Why a statement was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// It is not allowed.
    #[error("denied: {what}; hint: {hint}")]
    Denied {
        /// What is forbidden.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// It is not valid.
    #[error("invalid statement: {message}")]
    Invalid {
        /// What is wrong.
        message: String,
    },
}

/// Checks guest SQL.
#[derive(Debug)]
pub struct Guard;

impl Guard {
    /// A guard for one consumer.
    pub fn new(_dialect: Dialect, _tables: TableGrants, _functions: impl IntoIterator<Item = String>) -> Self {
        Self
    }

    /// Checks one statement.
    pub fn check(&self, sql: &str) -> Result<Arc<Checked>, GuardError> {
        let verb = sql.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
        match verb.as_str() {
            "" => Err(GuardError::Invalid { message: "the statement is empty".to_owned() }),
            "COMMIT" => Err(GuardError::Denied { what: "COMMIT".to_owned(), hint: "return".to_owned() }),
            _ => {
                let parameters = sql.matches('?').count();
                let read = verb == "SELECT";
                Ok(Arc::new(Checked {
                    sql: sql.to_owned(),
                    parameters,
                    order: (0..parameters).collect(),
                    kind: if read { Kind::Read } else { Kind::Write },
                    returns_rows: read,
                }))
            }
        }
    }
}
