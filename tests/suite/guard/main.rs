//! The SQL guard against real databases: what it lets through is run, and nothing of the host's may move.

mod bench;
mod fidelity;
mod functions;
mod fuzz;
mod hostile;

use std::collections::{BTreeMap, BTreeSet};

use hapax::guest::sql_guard::{Guard, TableGrants, Verb};
use hapax::ledger::database::Dialect;

const ACCEPTED: &str = include_str!("../../../runtime/src/guest/sql_guard/corpus/accepted.sql");
const REFUSED: &str = include_str!("../../../runtime/src/guest/sql_guard/corpus/refused.sql");

/// The statements of a corpus file that are for `dialect`.
fn corpus(file: &'static str, dialect: Dialect) -> Vec<&'static str> {
    let own = match dialect {
        Dialect::Postgres => "[postgres]",
        Dialect::MySql => "[mysql]",
        Dialect::Sqlite => "[sqlite]",
    };
    let mut wanted = false;
    let mut statements = Vec::new();
    for line in file.lines() {
        match line {
            _ if line.starts_with('[') && line.ends_with(']') => wanted = line == "[all]" || line == own,
            _ if line.is_empty() || line.starts_with("##") => {}
            sql if wanted => statements.push(sql),
            _ => {}
        }
    }
    assert!(statements.len() > 50);
    statements
}

/// A consumer with generous grants, including some that no operator should give.
fn guard(dialect: Dialect) -> Guard {
    let all = BTreeSet::from([Verb::Select, Verb::Insert, Verb::Update, Verb::Delete]);
    let tables = ["stock", "shop.stock", "hapax_inbox", "hapax_parked", "pg_class", "mysql.user", "sqlite_master"];
    let mut grants: BTreeMap<_, _> = tables.into_iter().map(|name| (name.to_owned(), all.clone())).collect();
    grants.insert("orders".to_owned(), BTreeSet::from([Verb::Select]));
    grants.insert("audit".to_owned(), BTreeSet::from([Verb::Insert]));
    grants.insert("counters".to_owned(), BTreeSet::from([Verb::Update]));
    let functions = ["shop.next_price", "next_no", "mood", "pg_sleep", "set_config", "get_lock", "load_extension"];
    Guard::new(dialect, TableGrants(grants), functions.map(str::to_owned))
}
