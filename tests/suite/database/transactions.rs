//! Transactions, savepoints, and what must never be committed.

use std::time::Duration;

use hapax::ledger::database::{DbErrorKind, Dialect};
use hapax::ledger::value::Value;

use crate::backend::{Backend, amount, make_stock, text};

pub(crate) async fn commit_and_rollback(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let mut observer = backend.connect().await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(100));
    client.rollback().await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(100));
    client.begin().await;
    client.run("UPDATE stock SET amount = 2 WHERE id = 1", &[]).await;
    client.commit().await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(2));
    // A connection that is dropped takes its transaction with it.
    client.begin().await;
    client.run("UPDATE stock SET amount = 3 WHERE id = 1", &[]).await;
    drop(client);
    observer.begin().await;
    observer.run("UPDATE stock SET amount = amount + 10 WHERE id = 1", &[]).await;
    observer.commit().await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(12));
}

pub(crate) async fn savepoints(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 3).await;
    client.begin().await;
    client.connection.savepoint().await.expect("SAVEPOINT");
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    client.connection.savepoint().await.expect("another one");
    client.run("UPDATE stock SET amount = 2 WHERE id = 2", &[]).await;
    client.connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
    client.run("UPDATE stock SET amount = 3 WHERE id = 3", &[]).await;
    // It stays set.
    client.connection.rollback_to_savepoint().await.expect("ROLLBACK TO, again");
    client.commit().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(1));
    assert_eq!(amount(&mut client, 2).await, Value::Int(100));
    assert_eq!(amount(&mut client, 3).await, Value::Int(100));
    // It ends with its transaction.
    client.begin().await;
    assert!(client.connection.rollback_to_savepoint().await.is_err());
    client.rollback().await;
}

pub(crate) async fn savepoint_undoes_a_failure(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 2).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    client.connection.savepoint().await.expect("SAVEPOINT");
    client.run("UPDATE stock SET amount = 2 WHERE id = 2", &[]).await;
    let error = client.try_run("INSERT INTO stock VALUES (1, 1)", &[]).await.expect_err("a duplicate");
    assert_eq!(error.kind, DbErrorKind::Constraint);
    assert!(client.connection.savepoint().await.is_err(), "a savepoint after a failure would keep what failed");
    client.connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
    client.run("UPDATE stock SET amount = amount + 1 WHERE id = 2", &[]).await;
    client.commit().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(1));
    assert_eq!(amount(&mut client, 2).await, Value::Int(101));
}

pub(crate) async fn several_statements_run_in_order_and_each_is_answered(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 3).await;
    let (take, give) =
        ("UPDATE stock SET amount = amount - 1 WHERE id = ?", "UPDATE stock SET amount = 7 WHERE id <= ?");
    let ids = [1, 2, 3, 9].map(Value::Int);
    // Twice: the first time nobody knows them.
    for _ in 0..2 {
        client.begin().await;
        let statements = [(take, &ids[0]), (give, &ids[1]), (take, &ids[0]), (take, &ids[3]), (take, &ids[2])];
        let executed = client.try_run_all(&statements).await.expect("all of them");
        let rows: Vec<u64> = executed.iter().map(|executed| executed.rows_affected).collect();
        assert_eq!(rows, [1, 2, 1, 0, 1]);
        client.commit().await;
        assert_eq!(amount(&mut client, 1).await, Value::Int(6), "first given, then taken");
    }
    assert_eq!(amount(&mut client, 2).await, Value::Int(7));
    assert_eq!(amount(&mut client, 3).await, Value::Int(98));
    assert_eq!(client.try_run_all(&[]).await.expect("nothing to do"), []);
}

pub(crate) async fn several_statements_stop_at_the_first_that_fails(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 2).await;
    let insert = "INSERT INTO stock VALUES (?, 5)";
    let (new, newer, newest, old, wrong) =
        (Value::Int(10), Value::Int(11), Value::Int(12), Value::Int(1), text("it's \\ no number"));
    client.run(insert, &[Value::Int(9)]).await;
    let mut cases = vec![(&old, DbErrorKind::Constraint)];
    // SQLite's columns take whatever they are given.
    if backend.dialect != Dialect::Sqlite {
        cases.push((&wrong, DbErrorKind::Invalid));
    }
    for (bad, kind) in cases {
        client.begin().await;
        client.connection.savepoint().await.expect("SAVEPOINT");
        let statements = [(insert, &new), (insert, &newer), (insert, bad), (insert, &newest)];
        let (executed, error) = client.try_run_all(&statements).await.expect_err("the third");
        assert_eq!((executed.len(), error.kind), (2, kind), "{error}");
        assert!(client.try_run(insert, &[Value::Int(13)]).await.is_err(), "nothing runs after a failure");
        client.connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
        client.run(insert, std::slice::from_ref(&newest)).await;
        client.rollback().await;
    }
    assert_eq!(client.value("SELECT count(*) FROM stock", &[]).await, Value::Int(3));
}

pub(crate) async fn commit_is_refused_after_a_failure(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    client.try_run("INSERT INTO stock VALUES (1, 1)", &[]).await.expect_err("a duplicate");
    let error = client.connection.commit().await.expect_err("refused");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, false), "{error}");
    assert!(error.message.contains("COMMIT refused"), "{error}");
    client.rollback().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(100));
}

pub(crate) async fn nothing_runs_after_a_failure(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 2).await;
    client.begin().await;
    // Even one that never reached the server: all three databases are alike.
    client.try_run("UPDATE stock SET amount = ? WHERE id = 1", &[]).await.expect_err("a parameter is missing");
    let error = client.try_run("UPDATE stock SET amount = 2 WHERE id = 2", &[]).await.expect_err("refused");
    assert!(error.message.contains("refused") && !error.connection_lost, "{error}");
    client.connection.ping().await.expect("the connection is well");
    client.rollback().await;
    assert_eq!(amount(&mut client, 2).await, Value::Int(100));
}

pub(crate) async fn deferred_constraints(backend: &Backend) {
    let mut client = backend.connect().await;
    if backend.dialect == Dialect::MySql {
        // It has none: every constraint is checked at once.
        let create = "CREATE TABLE d (id INT, CONSTRAINT u UNIQUE (id) DEFERRABLE INITIALLY DEFERRED)";
        assert_eq!(client.try_run(create, &[]).await.expect_err("unknown").kind, DbErrorKind::Invalid);
        return;
    }
    client.run("CREATE TABLE p (id INT PRIMARY KEY)", &[]).await;
    client.run("CREATE TABLE d (p INT REFERENCES p (id) DEFERRABLE INITIALLY DEFERRED)", &[]).await;
    client.begin().await;
    client.run("INSERT INTO d VALUES (1)", &[]).await;
    let error = client.connection.commit().await.expect_err("a violation at COMMIT");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Constraint, false), "{error}");
    client.rollback().await;
    assert_eq!(client.value("SELECT count(*) FROM d", &[]).await, Value::Int(0));
    client.begin().await;
    client.run("INSERT INTO p VALUES (1)", &[]).await;
    client.run("INSERT INTO d VALUES (1)", &[]).await;
    client.commit().await;
}

pub(crate) async fn statements_outside_of_a_transaction(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let mut observer = backend.connect().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(1));
    client.try_run("INSERT INTO stock VALUES (1, 1)", &[]).await.expect_err("a duplicate");
    client.run("UPDATE stock SET amount = 2 WHERE id = 1", &[]).await;
    assert_eq!(amount(&mut observer, 1).await, Value::Int(2));
}

pub(crate) async fn misuse(backend: &Backend) {
    let mut client = backend.connect().await;
    assert!(client.connection.commit().await.is_err());
    assert!(client.connection.savepoint().await.is_err());
    assert!(client.connection.rollback_to_savepoint().await.is_err());
    client.rollback().await;
    client.begin().await;
    assert!(client.connection.begin().await.is_err());
    client.query("SELECT 1", &[]).await;
    client.commit().await;
}

pub(crate) async fn a_transaction_ended_by_a_statement(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 2).await;
    if backend.dialect != Dialect::Sqlite {
        // Servers end a transaction by statements that are never let through to here; see the SQL guard. What a
        // deadlock ends is tested with deadlocks.
        return;
    }
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let error = client.try_run("COMMIT", &[]).await.expect_err("not a statement's business");
    assert_eq!(error.kind, DbErrorKind::Infrastructure);
    assert!(error.message.contains("`COMMIT` ended the transaction"), "{error}");
    assert!(client.try_run("UPDATE stock SET amount = 1 WHERE id = 2", &[]).await.is_err());
    client.rollback().await;
    client.begin().await;
    client.connection.savepoint().await.expect("SAVEPOINT");
    let insert = "INSERT OR ROLLBACK INTO stock VALUES (1, 1)";
    let error = client.try_run(insert, &[]).await.expect_err("a duplicate");
    assert_eq!(error.kind, DbErrorKind::Constraint);
    let again = client.connection.rollback_to_savepoint().await.expect_err("there is nothing left");
    assert_eq!(again, error);
    assert!(client.connection.commit().await.is_err());
    client.rollback().await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 7 WHERE id = 2", &[]).await;
    client.commit().await;
    assert_eq!(amount(&mut client, 2).await, Value::Int(7));
}

pub(crate) async fn concurrent_writers(backend: &Backend) {
    let features = backend.database().features().await.expect("features");
    let mut one = backend.connect().await;
    make_stock(&mut one, 2).await;
    let mut two = backend.connect().await;
    one.begin().await;
    one.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let second = async {
        two.begin().await;
        two.run("UPDATE stock SET amount = 2 WHERE id = 2", &[]).await;
        two.commit().await;
    };
    let done = tokio::time::timeout(Duration::from_millis(500), second).await.is_ok();
    assert_eq!(done, features.concurrent_writers);
    one.commit().await;
}
