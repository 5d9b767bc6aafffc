//! Statements that handlers write, and that have to pass.

use super::{check, corpus, sent};
use crate::guest::sql_guard::Kind;
use crate::ledger::database::Dialect::{MySql, Postgres, Sqlite};

const ACCEPTED: &str = include_str!("../corpus/accepted.sql");

#[test]
fn what_handlers_write_passes() {
    let refused: Vec<_> = corpus(ACCEPTED)
        .into_iter()
        .filter_map(|(dialect, sql)| check(dialect, sql).err().map(|error| format!("{dialect:?}: {sql}\n    {error}")))
        .collect();
    assert!(refused.is_empty(), "{} refused:\n{}", refused.len(), refused.join("\n"));
}

#[test]
fn the_text_that_is_sent_is_quoted_and_plain() {
    let cases = [
        (Postgres, "select Qty from Stock", r#"SELECT "qty" FROM "stock""#),
        (Postgres, "select s.qty x from stock s -- all", r#"SELECT "s"."qty" AS "x" FROM "stock" AS "s""#),
        (MySql, "select a from stock where b=-1 # x", "SELECT `a` FROM `stock` WHERE `b` = - 1"),
        (Postgres, "SELECT id -- the key\n FROM /* all */ stock", r#"SELECT "id" FROM "stock""#),
        (Sqlite, "select [a`b] from stock", "SELECT `a``b` FROM `stock`"),
        (MySql, "select timestampdiff(hour, a, b) from stock", "SELECT timestampdiff(HOUR, `a`, `b`) FROM `stock`"),
        (
            Postgres,
            "with few as (select id from stock) select few.id from few",
            r#"WITH "cte:few" AS (SELECT "id" FROM "stock") SELECT "few"."id" FROM "cte:few" AS "few""#,
        ),
    ];
    for (dialect, sql, expected) in cases {
        assert_eq!(sent(dialect, sql), expected);
    }
}

#[test]
fn a_statement_is_known_by_what_it_does() {
    let cases = [
        ("SELECT id FROM stock", Kind::Read, true),
        ("SELECT id FROM stock FOR UPDATE", Kind::Write, true),
        ("SELECT next_no()", Kind::Write, true),
        ("SELECT CAST('a' AS next_no)", Kind::Write, true),
        ("SELECT CAST('{a}' AS next_no[])", Kind::Write, true),
        ("SELECT CAST('{1}' AS int[])", Kind::Read, true),
        ("WITH x AS (DELETE FROM stock RETURNING id) SELECT id FROM x", Kind::Write, true),
        ("INSERT INTO stock (id) VALUES (1)", Kind::Write, false),
        ("INSERT INTO stock (id) VALUES (1) RETURNING id", Kind::Write, true),
        ("UPDATE stock SET id = 1", Kind::Write, false),
        ("DELETE FROM stock RETURNING id", Kind::Write, true),
        ("WITH x AS (SELECT 1) DELETE FROM stock", Kind::Write, false),
    ];
    for (sql, kind, returns_rows) in cases {
        let checked = check(Postgres, sql).unwrap();
        assert_eq!((checked.kind, checked.returns_rows), (kind, returns_rows), "{sql}");
    }
}

#[test]
fn what_is_sent_passes_again_as_itself() {
    for (dialect, sql) in corpus(ACCEPTED) {
        let once = sent(dialect, sql);
        assert_eq!(sent(dialect, &once), once, "{dialect:?}");
    }
}
