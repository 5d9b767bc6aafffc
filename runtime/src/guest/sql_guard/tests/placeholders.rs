//! How values reach the places of a statement.

use super::{check, guard, sent};
use crate::guest::sql_guard::GuardError;
use crate::ledger::database::Dialect::{MySql, Postgres, Sqlite};

#[test]
fn question_marks_work_everywhere() {
    let sql = "UPDATE stock SET qty=qty-? WHERE id=? AND qty>=?";
    assert_eq!(sent(Postgres, sql), r#"UPDATE "stock" SET "qty" = "qty" - $1 WHERE "id" = $2 AND "qty" >= $3"#);
    assert_eq!(sent(MySql, sql), "UPDATE `stock` SET `qty` = `qty` - ? WHERE `id` = ? AND `qty` >= ?");
    assert_eq!(sent(Sqlite, sql), "UPDATE `stock` SET `qty` = `qty` - ?1 WHERE `id` = ?2 AND `qty` >= ?3");
    for dialect in super::DIALECTS {
        let checked = check(dialect, sql).unwrap();
        assert_eq!((checked.parameters, checked.order.as_slice()), (3, [0, 1, 2].as_slice()));
    }
}

#[test]
fn numbered_placeholders_may_come_in_any_order_and_twice() {
    let sql = "UPDATE stock SET qty = $2 WHERE id = $1 OR name = $2";
    assert_eq!(sent(Postgres, sql), r#"UPDATE "stock" SET "qty" = $2 WHERE "id" = $1 OR "name" = $2"#);
    assert_eq!(sent(MySql, sql), "UPDATE `stock` SET `qty` = ? WHERE `id` = ? OR `name` = ?");
    assert_eq!(sent(Sqlite, sql), "UPDATE `stock` SET `qty` = ?2 WHERE `id` = ?1 OR `name` = ?2");
    let order = |dialect| check(dialect, sql).unwrap().order.clone();
    assert_eq!(order(Postgres), [0, 1]);
    assert_eq!(order(MySql), [1, 0, 1]);
    assert_eq!(order(Sqlite), [0, 1]);
    assert_eq!(check(MySql, sql).unwrap().parameters, 2);
    assert_eq!(sent(Sqlite, "SELECT ?2, ?1"), "SELECT ?2, ?1");
}

#[test]
fn the_jsonb_operator_is_read_where_placeholders_are_numbered() {
    assert_eq!(
        sent(Postgres, "SELECT doc ? 'a' FROM stock WHERE id = $1"),
        r#"SELECT "doc" ? 'a' FROM "stock" WHERE "id" = $1"#
    );
    assert_eq!(sent(Postgres, "SELECT doc ?| $1 FROM stock"), r#"SELECT "doc" ?| $1 FROM "stock""#);
    assert_eq!(sent(Postgres, "SELECT ?||'x', ?"), "SELECT $1 || 'x', $2");
    // A dollar in a literal is none.
    assert_eq!(sent(Postgres, "SELECT '$1', ?"), "SELECT '$1', $1");
}

#[test]
fn literals_and_comments_hold_no_placeholders() {
    assert_eq!(
        sent(Postgres, "SELECT 'a?', \"b?\", $$?$$, ? /* ? */ FROM stock -- ?"),
        r#"SELECT 'a?', "b?", '?', $1 FROM "stock""#
    );
    assert_eq!(sent(MySql, "SELECT 'a?', \"b?\", `c?`, ? FROM stock # ?"), "SELECT 'a?', 'b?', `c?`, ? FROM `stock`");
    assert_eq!(check(Sqlite, "SELECT '?', [?] FROM stock").unwrap().parameters, 0);
}

#[test]
fn kinds_of_placeholders_do_not_mix_and_leave_no_gaps() {
    for (dialect, sql) in [
        (MySql, "SELECT ?, $1"),
        (Sqlite, "SELECT ?, $1"),
        (Sqlite, "SELECT ?1, ?"),
        (Postgres, "SELECT ?, $1"),
        (Postgres, "SELECT $2"),
        (Postgres, "SELECT $1, $3"),
        (Postgres, "SELECT $0"),
        (Postgres, "SELECT $99999999999999999999"),
        (MySql, "SELECT ?1"),
        (Sqlite, "SELECT :a"),
    ] {
        assert!(matches!(check(dialect, sql), Err(GuardError::Invalid { .. })), "{dialect:?}: {sql}");
    }
}

#[test]
fn verdicts_are_remembered_by_text() {
    let guard = guard(Postgres);
    let first = guard.check("SELECT 1").unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &guard.check("SELECT 1").unwrap()));
    assert_eq!(guard.check("COMMIT").unwrap_err(), guard.check("COMMIT").unwrap_err());
    for n in 0..1_000 {
        guard.check(&format!("SELECT {n}")).unwrap();
    }
    assert_eq!(guard.verdicts.lock().unwrap().len(), 256);
}
