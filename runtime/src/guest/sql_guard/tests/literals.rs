//! Literals: what is sent holds the value that was read.

use super::sent;
use crate::ledger::database::Dialect::{MySql, Postgres, Sqlite};

#[test]
fn strings_are_written_so_that_nothing_ends_them_early() {
    let cases = [
        (Postgres, r"SELECT '\'", r"SELECT E'\\'"),
        (Postgres, r"SELECT '\'''", r"SELECT E'\\'''"),
        (Postgres, "SELECT 'a''''b'", "SELECT 'a''''b'"),
        (Postgres, r"SELECT E'\'; COMMIT --'", "SELECT '''; COMMIT --'"),
        (Postgres, r"SELECT E'\\\' '", r"SELECT E'\\'' '"),
        (Postgres, r"SELECT E'\101\x42\u00e9\U0001F600\n\q'", "SELECT 'ABé😀\nq'"),
        (Postgres, "SELECT $tag$'; COMMIT --$$$tag$", "SELECT '''; COMMIT --$$'"),
        (Postgres, "SELECT 'a' -- 'b\n", "SELECT 'a'"),
        (MySql, r"SELECT '\\'", r"SELECT '\\'"),
        (MySql, r"SELECT '\''", "SELECT ''''"),
        (MySql, r"SELECT '\\\''", r"SELECT '\\'''"),
        (MySql, r#"SELECT "\"; COMMIT # ""#, r#"SELECT '"; COMMIT # '"#),
        (MySql, r"SELECT '\%\_\0\Z\b\n\r\t\x\a'", "SELECT '\\\\%\\\\_\\0\u{1a}\u{8}\n\r\txa'"),
        (MySql, "SELECT 'it''s', \"a\"\"b\"", "SELECT 'it''s', 'a\"b'"),
        (MySql, "SELECT `a``b` FROM stock", "SELECT `a``b` FROM `stock`"),
        (Sqlite, r"SELECT '\'", r"SELECT '\'"),
        (Sqlite, r"SELECT '\'''", r"SELECT '\'''"),
        (Sqlite, "SELECT \"a`b\" FROM stock", "SELECT `a``b` FROM `stock`"),
        (Postgres, "SELECT \"a\"\"b\" FROM stock", "SELECT \"a\"\"b\" FROM \"stock\""),
    ];
    for (dialect, sql, expected) in cases {
        assert_eq!(sent(dialect, sql), expected, "{dialect:?}: {sql}");
    }
}

#[test]
fn nothing_that_is_sent_can_open_a_comment() {
    assert_eq!(sent(MySql, "SELECT 1 - -1"), "SELECT 1 - - 1");
    assert_eq!(sent(Postgres, "SELECT 1 - - 1, 1 -(-1)"), "SELECT 1 - - 1, 1 - (- 1)");
    assert_eq!(sent(Sqlite, "SELECT 4 / (SELECT 2)"), "SELECT 4 / (SELECT 2)");
}
