//! Statements that must never reach a database.

use super::{DIALECTS, check, corpus};
use crate::guest::sql_guard::GuardError;
use crate::ledger::database::Dialect::{self, MySql, Postgres, Sqlite};

const REFUSED: &str = include_str!("../corpus/refused.sql");

/// What does not fit a line of a file.
const ODD: &[&str] = &[
    "",
    "   ",
    "\n",
    "SELECT 'a\0b'",
    "SELECT 1 \0",
    "SELECT \u{a0}1",
    "SELECT \u{200b}1",
    "\u{feff}SELECT 1",
    "SELECT 1 -- a\r; COMMIT",
];

/// Harmless readings: what the guard makes of them is another statement than it looks like.
fn is_another_statement(dialect: Dialect, sql: &str) -> bool {
    match dialect {
        // `"…"` is a string there, and `@` the absolute value.
        MySql => matches!(sql, "SELECT \"\""),
        Postgres => matches!(sql, "SELECT @a" | "UPDATE stock SET qty = @a"),
        Sqlite => false,
    }
}

#[test]
fn nothing_hostile_passes() {
    let odd = DIALECTS.into_iter().flat_map(|dialect| ODD.iter().map(move |sql| (dialect, *sql)));
    let passed: Vec<_> = corpus(REFUSED)
        .into_iter()
        .chain(odd)
        .filter(|(dialect, sql)| !is_another_statement(*dialect, sql))
        .filter_map(|(dialect, sql)| {
            check(dialect, sql).ok().map(|checked| format!("{dialect:?}: {sql}\n    {}", checked.sql))
        })
        .collect();
    assert!(passed.is_empty(), "{} passed:\n{}", passed.len(), passed.join("\n"));
}

#[test]
fn a_refusal_says_what_is_missing_and_how_to_grant_it() {
    let cases = [
        (
            "UPDATE orders SET id = 1",
            "denied: table `orders`: `update` is not granted to this consumer; hint: add grants.tables.orders = [\"select\", \"update\"]",
        ),
        (
            "SELECT * FROM secrets",
            "denied: table `secrets`: `select` is not granted to this consumer; hint: add grants.tables.secrets = [\"select\"]",
        ),
        (
            "SELECT * FROM other.orders",
            "denied: table `other.orders`: `select` is not granted to this consumer; hint: add grants.tables.\"other.orders\" = [\"select\"], or write the name as it is granted: `orders`",
        ),
        (
            "SELECT * FROM orders FOR UPDATE",
            "denied: table `orders`: `update` or `delete` is not granted to this consumer; hint: add grants.tables.orders = [\"select\", \"update\"]",
        ),
        (
            "SELECT pg_sleep(1)",
            "denied: function `pg_sleep`: it reaches beyond the statement's transaction; hint: no grant opens it",
        ),
        (
            "SELECT lastval()",
            "denied: function `lastval` is not on the list of functions for guests; hint: add \"lastval\" to grants.functions, if it reads and writes only what this consumer may",
        ),
        (
            "COMMIT",
            "denied: `COMMIT`: the transaction is the host's; hint: return from the handler to commit, or return a failure to roll back",
        ),
        (
            "SELECT * FROM hapax_inbox",
            "denied: `hapax_inbox`: names that start with hapax_ are the host's; hint: use another name; the host's tables are never open to guests",
        ),
    ];
    for (sql, expected) in cases {
        assert_eq!(check(Postgres, sql).unwrap_err().to_string(), expected);
    }
}

#[test]
fn long_and_deep_texts_are_refused_and_overflow_nothing() {
    let nested = |open: &str, inner: &str, close: &str, times: usize| {
        format!("{}{inner}{}", open.repeat(times), close.repeat(times))
    };
    for dialect in DIALECTS {
        for times in [10, 30, 45, 1_000, 10_000] {
            let statements = [
                format!("SELECT {}", nested("(", "1", ")", times)),
                format!("SELECT {}", nested("coalesce(", "1", ")", times)),
                format!("SELECT {}", nested("(SELECT ", "1", ")", times)),
                format!("SELECT * FROM {}", nested("(", "stock", ")", times)),
                format!("SELECT * FROM {}", nested("(SELECT * FROM ", "stock", ") AS x", times)),
                format!("SELECT {}", nested("CASE WHEN ", "1", " THEN 1 END", times)),
                format!("SELECT {}", nested("CAST(", "1", " AS INT)", times)),
                format!("SELECT {}1", "NOT ".repeat(times)),
                format!("SELECT {}1", "- ".repeat(times)),
                format!("SELECT 1{}", " + 1".repeat(times)),
                format!("SELECT 1{}", " DIV 1".repeat(times)),
                format!("SELECT 1{}", " REGEXP 'a'".repeat(times)),
                format!("SELECT 1{}", " IS NULL".repeat(times)),
                format!("SELECT 1{}", " UNION SELECT 1".repeat(times)),
                format!("SELECT 1{}", "::int".repeat(times)),
                format!("SELECT a{}", "[1]".repeat(times)),
                format!("SELECT a{}", ".a".repeat(times)),
                format!("SELECT 'x'{}", " COLLATE C".repeat(times)),
                format!("SELECT case{}", "-case".repeat(times)),
                format!("SELECT CAST(1 AS int{})", "[]".repeat(times)),
                format!("SELECT * FROM stock{}", " JOIN stock".repeat(times)),
                format!("SELECT {}", nested("ARRAY[", "1", "]", times)),
                format!("{}SELECT 1", "WITH x AS (".repeat(times)),
                "(".repeat(times),
                "SELECT ".repeat(times),
                "'".repeat(times),
            ];
            for sql in statements {
                let started = std::time::Instant::now();
                let verdict = check(dialect, &sql);
                assert!(
                    started.elapsed().as_secs() < 5,
                    "{dialect:?}: {times}: {}… took {:?}",
                    &sql[..sql.len().min(60)],
                    started.elapsed()
                );
                assert!(times < 1_000 || verdict.is_err(), "{dialect:?}: {}…", &sql[..60]);
            }
        }
        let long = format!("SELECT '{}'", "x".repeat(64 * 1024));
        assert!(matches!(check(dialect, &long), Err(GuardError::Invalid { .. })));
        let bulk = format!("INSERT INTO stock (id, qty) VALUES {}", vec!["(?, ?)"; 8_000].join(", "));
        assert_eq!(check(dialect, &bulk).unwrap().parameters, 16_000);
        let all_of = format!("SELECT id FROM stock WHERE {}", vec!["id = ?"; 400].join(" OR "));
        assert!(check(dialect, &all_of).is_ok());
    }
}
