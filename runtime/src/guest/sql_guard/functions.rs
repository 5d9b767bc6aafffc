//! Which functions guests may call: an allow-list per database, in files beside this one, and what a consumer's
//! `grants.functions` adds.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use crate::ledger::database::Dialect;

/// The functions of one database that are open to every guest.
#[derive(Debug, Default)]
struct Known {
    scalar: BTreeSet<&'static str>,
    table: BTreeSet<&'static str>,
}

static POSTGRES: LazyLock<Known> = LazyLock::new(|| read(include_str!("functions/postgres.txt")));
static MYSQL: LazyLock<Known> = LazyLock::new(|| read(include_str!("functions/mysql.txt")));
static SQLITE: LazyLock<Known> = LazyLock::new(|| read(include_str!("functions/sqlite.txt")));
static NEVER: LazyLock<BTreeSet<&'static str>> = LazyLock::new(|| read(include_str!("functions/never.txt")).scalar);

fn read(file: &'static str) -> Known {
    let mut known = Known::default();
    let mut tables = false;
    for line in file.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        match line {
            "[tables]" => tables = true,
            _ if tables => known.table.extend(line.split_whitespace()),
            _ => known.scalar.extend(line.split_whitespace()),
        }
    }
    known
}

fn known(dialect: Dialect) -> &'static Known {
    match dialect {
        Dialect::Postgres => &POSTGRES,
        Dialect::MySql => &MYSQL,
        Dialect::Sqlite => &SQLITE,
    }
}

/// Whether `name`, in lower case, is open to every guest as part of an expression.
pub(super) fn is_known(dialect: Dialect, name: &str) -> bool {
    known(dialect).scalar.contains(name)
}

/// Whether `name`, in lower case, may stand where a table does.
pub(super) fn is_table_function(dialect: Dialect, name: &str) -> bool {
    known(dialect).table.contains(name)
}

/// Whether `name` is refused even if it is granted.
pub(super) fn is_never(name: &str) -> bool {
    let name = name.to_lowercase();
    NEVER.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *pattern,
    })
}
