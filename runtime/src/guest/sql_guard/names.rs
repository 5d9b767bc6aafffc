//! Names, and what a consumer was granted under them.

use std::collections::{BTreeMap, BTreeSet};

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart};

use super::{GuardError, TableGrants, Verb, functions};
use crate::ledger::database::Dialect;

/// Schemas that belong to a database, on any of them.
const SYSTEM_SCHEMAS: &[&str] = &["pg_catalog", "information_schema", "mysql", "sys", "performance_schema"];
/// How tables start that belong to a database.
const SYSTEM_PREFIXES: &[&str] = &["pg_", "sqlite_", "pragma_"];
/// How everything starts that belongs to the host.
const OWN_PREFIX: &str = "hapax_";

/// A consumer's grants, ready for look-ups.
#[derive(Debug)]
pub(super) struct Grants {
    pub(super) dialect: Dialect,
    tables: BTreeMap<Vec<String>, BTreeSet<Verb>>,
    functions: BTreeSet<Vec<String>>,
}

impl Grants {
    pub(super) fn new(dialect: Dialect, tables: TableGrants, functions: impl IntoIterator<Item = String>) -> Self {
        let parts = |name: &str| name.split('.').map(str::to_owned).collect::<Vec<_>>();
        let tables = tables.0.into_iter().map(|(name, verbs)| (table_key(dialect, parts(&name)), verbs)).collect();
        let functions = functions.into_iter().map(|name| function_key(dialect, parts(&name))).collect();
        Self { dialect, tables, functions }
    }

    /// Whether `verb` is granted on the table of that name.
    pub(super) fn table(&self, name: &[String], verb: Verb) -> Result<(), GuardError> {
        self.any_of(name, &[verb])
    }

    /// Whether one of `verbs` is granted on the table of that name.
    pub(super) fn any_of(&self, name: &[String], verbs: &[Verb]) -> Result<(), GuardError> {
        let shown = name.join(".");
        if is_system_table(name) {
            return Err(GuardError::denied(
                format!("table `{shown}` belongs to the database system"),
                "guests see the tables of grants.tables only",
            ));
        }
        let granted = self.tables.get(&table_key(self.dialect, name.to_vec()));
        if granted.is_some_and(|granted| verbs.iter().any(|verb| granted.contains(verb))) {
            return Ok(());
        }
        let wanted: Vec<_> = verbs.iter().map(|verb| format!("`{}`", verb.as_str())).collect();
        Err(GuardError::denied(
            format!("table `{shown}`: {} is not granted to this consumer", wanted.join(" or ")),
            self.how_to_grant(name, granted, verbs[0]),
        ))
    }

    fn how_to_grant(&self, name: &[String], granted: Option<&BTreeSet<Verb>>, verb: Verb) -> String {
        let shown = name.join(".");
        let mut verbs: BTreeSet<_> = granted.cloned().unwrap_or_default();
        verbs.insert(verb);
        let verbs: Vec<_> = verbs.iter().map(|verb| format!("{:?}", verb.as_str())).collect();
        let bare = !shown.is_empty() && shown.chars().all(|c| c == '_' || c == '-' || c.is_ascii_alphanumeric());
        let key = if bare { shown.clone() } else { format!("{shown:?}") };
        let mut hint = format!("add grants.tables.{key} = [{}]", verbs.join(", "));
        let last = |parts: &[String]| parts.last().map(|part| part.to_lowercase());
        let similar = self.tables.keys().find(|other| granted.is_none() && last(other) == last(name));
        if let Some(similar) = similar {
            hint.push_str(&format!(", or write the name as it is granted: `{}`", similar.join(".")));
        }
        hint
    }

    /// Whether the function or type of that name was granted.
    pub(super) fn function(&self, name: &[String]) -> bool {
        let own = name.iter().any(|part| is_own(part));
        let never = name.last().is_none_or(|last| functions::is_never(last));
        let system = name.len() > 1 && is_system_schema(&name[0]);
        !own && !never && !system && self.functions.contains(&function_key(self.dialect, name.to_vec()))
    }
}

/// How tables compare: exactly, but SQLite ignores the case of ASCII letters.
fn table_key(dialect: Dialect, name: Vec<String>) -> Vec<String> {
    match dialect {
        Dialect::Sqlite => name.iter().map(|part| part.to_ascii_lowercase()).collect(),
        Dialect::Postgres | Dialect::MySql => name,
    }
}

/// How functions compare: exactly on Postgres, without case elsewhere.
fn function_key(dialect: Dialect, name: Vec<String>) -> Vec<String> {
    match dialect {
        Dialect::Postgres => name,
        Dialect::MySql | Dialect::Sqlite => name.iter().map(|part| part.to_ascii_lowercase()).collect(),
    }
}

pub(super) fn is_system_schema(schema: &str) -> bool {
    let schema = schema.to_lowercase();
    SYSTEM_SCHEMAS.contains(&schema.as_str()) || schema.starts_with("pg_")
}

fn is_system_table(name: &[String]) -> bool {
    let (Some(last), qualifiers) = (name.last(), &name[..name.len().saturating_sub(1)]) else { return true };
    let last = last.to_lowercase();
    qualifiers.iter().any(|part| is_system_schema(part))
        || SYSTEM_PREFIXES.iter().any(|prefix| last.starts_with(prefix))
}

/// Whether a name is one of the host's.
pub(super) fn is_own(name: &str) -> bool {
    name.to_lowercase().starts_with(OWN_PREFIX)
}

/// A name as the database understands it: Postgres folds unquoted ones to lower case, ASCII letters only.
pub(super) fn meaning(dialect: Dialect, ident: &Ident) -> String {
    match (dialect, ident.quote_style) {
        (Dialect::Postgres, None) => ident.value.to_ascii_lowercase(),
        _ => ident.value.clone(),
    }
}

/// The parts of a name; a part that is a call is refused.
pub(super) fn idents(name: &ObjectName) -> Result<Vec<&Ident>, GuardError> {
    let ObjectName(parts) = name;
    let mut idents = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            ObjectNamePart::Identifier(ident) => idents.push(ident),
            ObjectNamePart::Function(_) => return Err(GuardError::invalid(format!("`{name}` is no plain name"))),
        }
    }
    Ok(idents)
}

/// The parts of a name as the database understands them.
pub(super) fn meanings(dialect: Dialect, name: &ObjectName) -> Result<Vec<String>, GuardError> {
    Ok(idents(name)?.into_iter().map(|ident| meaning(dialect, ident)).collect())
}
