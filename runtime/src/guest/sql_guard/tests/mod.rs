//! Tests of the guard without a database. Those with one are in the test suite's `guard.rs`.

mod accepted;
mod literals;
mod placeholders;
mod properties;
mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Checked, Guard, GuardError, TableGrants, Verb};
use crate::ledger::database::Dialect;

const DIALECTS: [Dialect; 3] = [Dialect::Postgres, Dialect::MySql, Dialect::Sqlite];

/// The statements of a corpus file, each with the database that it is for: one a line, under `[all]` or its name.
fn corpus(file: &'static str) -> Vec<(Dialect, &'static str)> {
    let mut section: &[Dialect] = &[];
    let mut statements = Vec::new();
    for line in file.lines() {
        match line {
            "[all]" => section = &DIALECTS,
            "[postgres]" => section = &[Dialect::Postgres],
            "[mysql]" => section = &[Dialect::MySql],
            "[sqlite]" => section = &[Dialect::Sqlite],
            _ if line.is_empty() || line.starts_with("##") => {}
            sql => statements.extend(section.iter().map(|dialect| (*dialect, sql))),
        }
    }
    assert!(statements.len() > 100);
    statements
}

/// `stock` and `shop.stock` with every verb, `orders` to read, `audit` to write; no functions.
fn grants() -> TableGrants {
    let all = [Verb::Select, Verb::Insert, Verb::Update, Verb::Delete];
    let mut tables = BTreeMap::new();
    let mut grant =
        |name: &str, verbs: &[Verb]| tables.insert(name.to_owned(), BTreeSet::from_iter(verbs.iter().copied()));
    grant("stock", &all);
    grant("shop.stock", &all);
    grant("orders", &[Verb::Select]);
    grant("audit", &[Verb::Insert]);
    grant("counters", &[Verb::Update]);
    // What an operator should not grant, and the guard refuses all the same.
    for name in [
        "hapax_inbox",
        "HAPAX_INBOX",
        "pg_class",
        "pg_catalog.pg_class",
        "information_schema.tables",
        "mysql.user",
        "sqlite_master",
    ] {
        grant(name, &all);
    }
    TableGrants(tables)
}

fn guard(dialect: Dialect) -> Guard {
    let functions = ["shop.next_price", "next_no", "pg_sleep", "set_config", "get_lock", "load_extension", "mood"];
    Guard::new(dialect, grants(), functions.map(str::to_owned))
}

fn check(dialect: Dialect, sql: &str) -> Result<Arc<Checked>, GuardError> {
    guard(dialect).check(sql)
}

/// The text that would be sent.
#[track_caller]
fn sent(dialect: Dialect, sql: &str) -> String {
    match check(dialect, sql) {
        Ok(checked) => checked.sql.clone(),
        Err(error) => panic!("{dialect:?}: {sql}\n  {error}"),
    }
}
