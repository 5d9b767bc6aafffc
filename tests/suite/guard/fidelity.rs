//! What is sent means what was written: servers accept it, and literals keep their values.

use hapax::ledger::database::Dialect;
use hapax_tests::TestResult;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::bench::Bench;
use crate::{ACCEPTED, corpus, guard};

/// Random literals per database and way of quoting.
const ROUNDS: usize = 1_500;

/// Statements that the guard lets through for servers other than those of this suite.
fn is_for_another_server(dialect: Dialect, sql: &str) -> bool {
    match dialect {
        // MySQL 8 has these, MariaDB 10.11 has not.
        Dialect::MySql => sql.contains("->"),
        // An extension's, or a function that this build lacks.
        Dialect::Sqlite => sql.contains("REGEXP"),
        Dialect::Postgres => false,
    }
}

async fn servers_accept_what_is_sent(dialect: Dialect) -> TestResult {
    let guard = guard(dialect);
    let mut bench = Bench::open(dialect).await?;
    let mut failed = Vec::new();
    for sql in corpus(ACCEPTED, dialect) {
        let checked = guard.check(sql)?;
        if is_for_another_server(dialect, sql) {
            continue;
        }
        if let Err(error) = bench.prepare(&checked.sql).await {
            failed.push(format!("{sql}\n  {}\n  {error}", checked.sql));
            bench.exec("ROLLBACK TO SAVEPOINT start").await?;
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    Ok(())
}

/// Pieces that have a meaning in some literal of some database.
const PIECES: &[&str] = &[
    "'", "''", "\\", "\\\\", "\\'", "\"", "\"\"", "\\\"", "`", "a", "%", "\\%", "_", "\\_", "\\0", "\\n", "\\r", "\\t",
    "\\b", "\\Z", "\\x41", "\\u0041", "\\101", "\\q", "?", "$1", "$$", "$t$", ";", "--", "-- ", "/*", "*/", "#", "/*!",
    "é", "😀", "\u{a0}", "\n", "\r", "\t", " ", ":a", "@a", "\u{1a}", "NULL", "x",
];

/// How a literal may be opened and closed.
fn quotes(dialect: Dialect) -> &'static [(&'static str, &'static str)] {
    match dialect {
        Dialect::Postgres => &[("'", "'"), ("E'", "'"), ("e'", "'"), ("$$", "$$"), ("$t$", "$t$")],
        Dialect::MySql => &[("'", "'"), ("\"", "\"")],
        Dialect::Sqlite => &[("'", "'")],
    }
}

async fn literals_keep_their_values(dialect: Dialect) -> TestResult {
    let guard = guard(dialect);
    let mut bench = Bench::open(dialect).await?;
    let mut random = StdRng::seed_from_u64(7);
    let mut compared = 0;
    for (open, close) in quotes(dialect) {
        for _ in 0..ROUNDS {
            let length = random.random_range(0..8);
            let inner: String = (0..length).filter_map(|_| PIECES.choose(&mut random)).copied().collect();
            let sql = format!("SELECT {open}{inner}{close}");
            let Ok(checked) = guard.check(&sql) else { continue };
            if checked.parameters > 0 {
                continue;
            }
            let sent = bench.value(&checked.sql).await;
            if sent.is_err() {
                bench.exec("ROLLBACK TO SAVEPOINT start").await?;
            }
            match (sent, bench.value(&sql).await) {
                (Ok(sent), Ok(meant)) => {
                    assert_eq!(sent, meant, "{sql}\n  sent as: {}", checked.sql);
                    compared += 1;
                }
                // Two literals side by side may be nonsense, and have to be the same nonsense.
                (Err(sent), Err(meant)) => {
                    bench.exec("ROLLBACK TO SAVEPOINT start").await?;
                    let code = |error: &sqlx::Error| error.as_database_error().and_then(|e| e.code().map(String::from));
                    assert_eq!(code(&sent), code(&meant), "{sql}\n  sent as: {}", checked.sql);
                }
                (sent, meant) => panic!("{sql}: {meant:?}\n  sent as: {}: {sent:?}", checked.sql),
            }
        }
    }
    println!("{dialect:?}: {compared} literals compared");
    assert!(compared > 300, "only {compared} literals were compared");
    Ok(())
}

async fn numbers_and_bytes_keep_their_values(dialect: Dialect) -> TestResult {
    let guard = guard(dialect);
    let mut bench = Bench::open(dialect).await?;
    let everywhere = [
        "1",
        "1.",
        ".5",
        "1.50",
        "1e3",
        "1E-3",
        "007",
        "- 1",
        "1 - -1",
        "2 + 3 * 4",
        "(2 + 3) * 4",
        "- 2 * - 3",
        "9223372036854775807",
    ];
    let own: &[&str] = match dialect {
        Dialect::Postgres => &[
            "X'ff'",
            "B'0101'",
            "x'1f'",
            "2 ^ 3 ^ 2",
            "'a' || 'b'",
            "- 2 ^ 2",
            "5 / 2",
            "NOT true = false",
            "1 <> 2 AND true",
            "@ -5",
        ],
        Dialect::MySql => &[
            "X'4142'",
            "b'01000001'",
            "7 DIV 2",
            "'a' 'b'",
            "NOT 1 = 2",
            "1 || 0",
            "- 2 * 3",
            "2 << 1 + 1",
            "5 ^ 1",
            "1 = 1 <=> 1",
        ],
        Dialect::Sqlite => {
            &["X'00ff'", "'a' || 'b' || 1", "2 << 1 + 1", "NOT 1 = 2", "~ 1 + 1", "1 == 1 == 1", "5 / 2"]
        }
    };
    for literal in everywhere.iter().chain(own) {
        let sql = format!("SELECT {literal}");
        let checked = guard.check(&sql)?;
        assert_eq!(bench.value(&checked.sql).await?, bench.value(&sql).await?, "{sql}\n  sent as: {}", checked.sql);
    }
    Ok(())
}

async fn faithful(dialect: Dialect) -> TestResult {
    servers_accept_what_is_sent(dialect).await?;
    literals_keep_their_values(dialect).await?;
    numbers_and_bytes_keep_their_values(dialect).await
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_reads_what_was_meant() -> TestResult {
    faithful(Dialect::Postgres).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_reads_what_was_meant() -> TestResult {
    faithful(Dialect::MySql).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_reads_what_was_meant() -> TestResult {
    faithful(Dialect::Sqlite).await
}
