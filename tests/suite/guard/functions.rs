//! The functions that need no grant, against what each server really has built in. A name that it does not have would be a
//! user's function there: run without a grant, and taken for one that changes nothing.

use std::collections::BTreeSet;

use hapax::ledger::database::Dialect;
use hapax_tests::TestResult;
use sqlx::mysql::MySqlDatabaseError;

use crate::bench::Bench;

const POSTGRES: &str = include_str!("../../../runtime/src/guest/sql_guard/functions/postgres.txt");
const MYSQL: &str = include_str!("../../../runtime/src/guest/sql_guard/functions/mysql.txt");
const SQLITE: &str = include_str!("../../../runtime/src/guest/sql_guard/functions/sqlite.txt");

/// Not functions but grammar, which no user's function can take the place of.
const GRAMMAR: [&str; 16] = [
    "array",
    "coalesce",
    "current_date",
    "current_time",
    "current_timestamp",
    "extract",
    "greatest",
    "grouping",
    "least",
    "localtime",
    "localtimestamp",
    "normalize",
    "nullif",
    "overlay",
    "row",
    "trim",
];

/// MariaDB's "FUNCTION … does not exist".
const NO_SUCH_FUNCTION: u16 = 1305;

/// All names of a file, those that may stand in place of a table included.
fn names(file: &'static str) -> impl Iterator<Item = &'static str> {
    file.lines().filter(|line| !line.starts_with(['#', '['])).flat_map(str::split_whitespace)
}

#[tokio::test]
async fn every_function_without_a_grant_is_built_into_postgres() -> TestResult {
    let mut bench = Bench::open(Dialect::Postgres).await?;
    let mut missing = Vec::new();
    for name in names(POSTGRES).filter(|name| !GRAMMAR.contains(name)) {
        let found = format!(
            "SELECT count(*)::text FROM pg_catalog.pg_proc \
             WHERE proname = '{name}' AND pronamespace = 'pg_catalog'::regnamespace"
        );
        if bench.value(&found).await?.is_none_or(|count| count == b"0") {
            missing.push(name);
        }
    }
    assert_eq!(missing, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn every_function_without_a_grant_is_built_into_mariadb() -> TestResult {
    let mut bench = Bench::open(Dialect::MySql).await?;
    let mut missing = Vec::new();
    for name in names(MYSQL) {
        // Most want arguments, or stand elsewhere; that is another error.
        let Err(sqlx::Error::Database(error)) = bench.exec(&format!("SELECT {name}()")).await else { continue };
        if error.try_downcast_ref::<MySqlDatabaseError>().is_some_and(|error| error.number() == NO_SUCH_FUNCTION) {
            missing.push(name);
        }
    }
    assert_eq!(missing, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn every_function_without_a_grant_is_built_into_sqlite() -> TestResult {
    let mut bench = Bench::open(Dialect::Sqlite).await?;
    let list = bench.value("SELECT group_concat(DISTINCT name) FROM pragma_function_list").await?;
    let list = String::from_utf8(list.unwrap_or_default())?;
    let built_in: BTreeSet<&str> = list.split(',').collect();
    // Those in place of tables are of another kind, and nobody but an extension can add to them.
    let scalars = SQLITE.split("[tables]").next().unwrap_or_default();
    let missing: Vec<_> = names(scalars).filter(|name| !built_in.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
    Ok(())
}
