//! Failures, provoked for real, and what they are taken for.

use std::time::{Duration, Instant};

use hapax::ledger::database::{DbError, DbErrorKind, Dialect, SessionSettings, open};
use hapax::ledger::value::{RowLimits, Value};

use crate::backend::{Backend, Client, SETTINGS, amount, make_stock, text};

async fn fails(client: &mut Client, sql: &str, params: &[Value]) -> DbError {
    client.try_run(sql, params).await.expect_err(sql)
}

pub(crate) async fn violated_constraints(backend: &Backend) {
    let mut client = backend.connect().await;
    client.run("CREATE TABLE p (id INT PRIMARY KEY)", &[]).await;
    client
        .run(
            "CREATE TABLE c (id INT NOT NULL, p INT, n INT, CONSTRAINT by_id UNIQUE (id), \
             CONSTRAINT positive CHECK (n > 0), CONSTRAINT parent FOREIGN KEY (p) REFERENCES p (id))",
            &[],
        )
        .await;
    client.run("INSERT INTO p VALUES (1)", &[]).await;
    client.run("INSERT INTO c VALUES (1, 1, 1)", &[]).await;
    let named = |name: &str| Some(name.to_owned());
    for (sql, name) in [
        ("INSERT INTO c VALUES (1, 1, 1)", backend.pick(named("by_id"), named("by_id"), None)),
        ("INSERT INTO c VALUES (2, 7, 1)", backend.pick(named("parent"), named("parent"), None)),
        ("DELETE FROM p", backend.pick(named("parent"), named("parent"), None)),
        ("INSERT INTO c VALUES (2, 1, -1)", named("positive")),
        ("INSERT INTO c VALUES (NULL, 1, 1)", None),
        ("UPDATE c SET id = NULL", None),
    ] {
        let error = fails(&mut client, sql, &[]).await;
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Constraint, false), "{sql}: {error}");
        assert_eq!(error.constraint, name, "{sql}: {error}");
        assert!(error.code.is_some() && error.is_handlers_fault());
    }
    let violated = backend.pick("23505", "1062", "2067");
    assert_eq!(fails(&mut client, "INSERT INTO c VALUES (1, 1, 1)", &[]).await.code.as_deref(), Some(violated));
    client.run("INSERT INTO c VALUES (2, 1, 1)", &[]).await;
}

pub(crate) async fn wrong_statements(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    for sql in [
        "SELEC 1",
        "SELECT * FROM missing",
        "SELECT missing FROM stock",
        "SELECT no_such_function(1)",
        "INSERT INTO stock VALUES (1, 2, 3)",
        "SELECT amount FROM stock WHERE",
        "'",
    ] {
        let error = fails(&mut client, sql, &[]).await;
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Invalid, false), "{sql}: {error}");
    }
    for sql in backend.pick(
        &[
            "SELECT ARRAY[1, 'x']::int[]",
            "SELECT DISTINCT amount FROM stock FOR UPDATE",
            "SELECT (SELECT generate_series(1, 2))",
        ][..],
        &[
            "SELECT (SELECT 1 UNION SELECT 2)",
            "SELECT 1, (SELECT 1, 2)",
            "SELECT a.id FROM stock a, stock b WHERE id = 1",
        ],
        &["SELECT (SELECT 1, 2)", "SELECT a.id FROM stock a, stock b WHERE id = 1", "SELECT json('{')"],
    ) {
        let error = client.try_query(sql, &[]).await.expect_err(sql);
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Invalid, false), "{sql}: {error}");
    }
    assert_eq!(amount(&mut client, 1).await, Value::Int(100));
}

pub(crate) async fn data_that_does_not_fit(backend: &Backend) {
    let mut client = backend.connect().await;
    let cases = backend.pick(
        &[
            ("VARCHAR(3))", "abcd", "22001"),
            ("INT)", "x", "22P02"),
            ("NUMERIC(3, 1))", "1000", "22003"),
            ("DATE)", "2024-02-30", "22008"),
            ("JSON)", "{", "22P02"),
        ][..],
        &[
            ("VARCHAR(3))", "abcd", "1406"),
            ("INT)", "x", "1366"),
            ("TINYINT)", "1000", "1264"),
            ("DATE)", "2024-02-30", "1292"),
            ("DATE)", "0000-00-00", "1292"),
            ("ENUM('a'))", "b", "1265"),
        ],
        &[("INT) STRICT", "x", "3091")],
    );
    for (number, (column, value, code)) in cases.iter().enumerate() {
        client.run(&format!("CREATE TABLE d{number} (v {column}"), &[]).await;
        let error = fails(&mut client, &format!("INSERT INTO d{number} VALUES (?)"), &[text(value)]).await;
        assert!(error.is_handlers_fault() && !error.connection_lost, "{column} {value}: {error}");
        assert_eq!(error.code.as_deref(), Some(*code), "{column} {value}: {error}");
    }
    client.run("CREATE TABLE d (v INT)", &[]).await;
    if backend.dialect != Dialect::Sqlite {
        let error = fails(&mut client, "INSERT INTO d SELECT 1 / (1 - 1)", &[]).await;
        assert_eq!(error.kind, DbErrorKind::Invalid, "{error}");
    }
}

pub(crate) async fn raised_by_a_trigger(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    match backend.dialect {
        Dialect::Postgres => {
            let function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'out of stock'; END $$";
            client.run(function, &[]).await;
            client
                .run("CREATE TRIGGER refuse BEFORE UPDATE ON stock FOR EACH ROW EXECUTE FUNCTION refuse()", &[])
                .await;
        }
        Dialect::MySql => {
            let trigger = "CREATE TRIGGER refuse BEFORE UPDATE ON stock FOR EACH ROW \
                           SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'out of stock'";
            client.run(trigger, &[]).await;
        }
        Dialect::Sqlite => {
            let trigger = "CREATE TRIGGER refuse BEFORE UPDATE ON stock BEGIN SELECT RAISE(ABORT, 'out of stock'); END";
            client.run(trigger, &[]).await;
        }
    }
    let error = fails(&mut client, "UPDATE stock SET amount = 0", &[]).await;
    // SQLite calls it a constraint.
    let kind = backend.pick(DbErrorKind::Invalid, DbErrorKind::Invalid, DbErrorKind::Constraint);
    assert_eq!((error.kind, error.message.as_str()), (kind, "out of stock"));
}

pub(crate) async fn faults_of_rarer_kinds(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let columns = (0..1700).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    if backend.dialect == Dialect::Postgres {
        client.run("CREATE SEQUENCE numbers", &[]).await;
        client.run("CREATE VIEW amounts AS SELECT DISTINCT amount FROM stock", &[]).await;
        let function = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ \
                        BEGIN RAISE EXCEPTION 'out of stock' USING ERRCODE = 'STOCK'; END $$";
        client.run(function, &[]).await;
        client.run("CREATE TRIGGER refuse BEFORE DELETE ON stock FOR EACH ROW EXECUTE FUNCTION refuse()", &[]).await;
    }
    let cases = backend.pick(
        vec![
            ("DELETE FROM stock".to_owned(), "STOCK"),
            (format!("SELECT {columns}"), "54011"),
            ("SELECT currval('numbers')".to_owned(), "55000"),
            ("UPDATE amounts SET amount = 1".to_owned(), "55000"),
            ("SELECT DISTINCT amount FROM stock FOR UPDATE".to_owned(), "0A000"),
        ],
        vec![
            ("SELECT 'a' REGEXP '('".to_owned(), "1139"),
            ("WITH a (x, y) AS (SELECT 1) SELECT * FROM a".to_owned(), "4002"),
            ("SELECT ROW_NUMBER() OVER w FROM stock".to_owned(), "4009"),
            ("SELECT id FROM stock WHERE ROW_NUMBER() OVER () = 1".to_owned(), "4015"),
            ("SELECT SUM(ROW_NUMBER() OVER ()) FROM stock".to_owned(), "4074"),
            ("SELECT POINT(1, 1) + 1".to_owned(), "4078"),
        ],
        // A value that SQLite would build in this process.
        vec![("SELECT zeroblob(200000000)".to_owned(), "18")],
    );
    if backend.dialect == Dialect::Sqlite {
        // A gigabyte is too long, which printf says by NULL.
        let long = client.value("SELECT printf('%.*c', 1000000000, 'x')", &[]).await;
        assert_eq!(long, Value::Null);
    }
    for (sql, code) in cases {
        let error = client.try_query(&sql, &[]).await.expect_err(&sql);
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Invalid, false), "{sql:.60}: {error}");
        assert_eq!(error.code.as_deref(), Some(code), "{sql:.60}: {error}");
    }
    assert_eq!(amount(&mut client, 1).await, Value::Int(100));
}

pub(crate) async fn several_statements_are_refused(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let error = fails(&mut client, "UPDATE stock SET amount = 1; UPDATE stock SET amount = 2", &[]).await;
    assert_eq!(error.kind, DbErrorKind::Invalid, "{error}");
    assert_eq!(amount(&mut client, 1).await, Value::Int(100));
    client.run("UPDATE stock SET amount = 3;", &[]).await;
}

pub(crate) async fn locks_held_by_another(backend: &Backend) {
    let lock_timeout = Duration::from_millis(if backend.dialect == Dialect::MySql { 1000 } else { 300 });
    let mut holder = backend.connect().await;
    make_stock(&mut holder, 1).await;
    let mut waiter = backend.connect_with(SessionSettings { lock_timeout, ..SETTINGS }).await;
    holder.begin().await;
    holder.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let started = Instant::now();
    let error = if backend.dialect == Dialect::Sqlite {
        waiter.connection.begin().await.expect_err("one writer at a time")
    } else {
        waiter.begin().await;
        fails(&mut waiter, "UPDATE stock SET amount = 2 WHERE id = 1", &[]).await
    };
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Contention, false), "{error}");
    assert_eq!(error.code.as_deref(), Some(backend.pick("55P03", "1205", "5")));
    let waited = started.elapsed();
    assert!(waited >= lock_timeout && waited < lock_timeout + Duration::from_secs(2), "{waited:?}");
    waiter.rollback().await;
    holder.commit().await;
    waiter.begin().await;
    waiter.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    waiter.commit().await;
    assert_eq!(amount(&mut waiter, 1).await, Value::Int(2));
    if backend.dialect != Dialect::Sqlite {
        holder.begin().await;
        holder.query("SELECT * FROM stock WHERE id = 1 FOR UPDATE", &[]).await;
        let error = waiter.try_query("SELECT * FROM stock WHERE id = 1 FOR UPDATE NOWAIT", &[]).await;
        assert_eq!(error.expect_err("locked").kind, DbErrorKind::Contention);
    }
}

pub(crate) async fn a_transaction_in_a_hurry(backend: &Backend) {
    let short = Duration::from_millis(300);
    let (mut holder, mut client) = (backend.connect().await, backend.connect().await);
    make_stock(&mut holder, 1).await;
    client.connection.begin_impatient(short).await.expect("BEGIN");
    client.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    client.commit().await;
    assert_eq!(amount(&mut holder, 1).await, Value::Int(101));
    if backend.dialect != Dialect::Postgres {
        // A transaction as any other: deadlocks are found at once, or there are none.
        return;
    }
    holder.begin().await;
    holder.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let started = Instant::now();
    client.connection.begin_impatient(short).await.expect("BEGIN");
    client.connection.savepoint().await.expect("SAVEPOINT");
    let error = fails(&mut client, "UPDATE stock SET amount = 2 WHERE id = 1", &[]).await;
    assert_eq!(error.kind, DbErrorKind::Contention, "{error}");
    assert!(started.elapsed() < SETTINGS.lock_timeout / 2, "{:?}", started.elapsed());
    client.rollback().await;
    let limit = client.query("SHOW lock_timeout", &[]).await;
    assert_eq!(limit, [[Value::Text("10s".to_owned())]], "the next transaction has time again");
}

pub(crate) async fn deadlock(backend: &Backend) {
    let mut one = backend.connect().await;
    let mut two = backend.connect().await;
    make_stock(&mut one, 4).await;
    one.begin().await;
    if backend.writers_take_turns().await {
        return;
    }
    two.begin().await;
    one.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    two.run("UPDATE stock SET amount = 2 WHERE id = 2", &[]).await;
    // MariaDB sacrifices the transaction that changed less.
    two.run("UPDATE stock SET amount = 2 WHERE id IN (3, 4)", &[]).await;
    let ((first, mut one), (second, mut two)) = tokio::join!(
        tokio::spawn(async move { (one.try_run("UPDATE stock SET amount = 1 WHERE id = 2", &[]).await, one) }),
        tokio::spawn(async move { (two.try_run("UPDATE stock SET amount = 2 WHERE id = 1", &[]).await, two) }),
    )
    .into_results();
    let (error, loser, winner) = match (first, second) {
        (Err(error), Ok(_)) => (error, &mut one, &mut two),
        (Ok(_), Err(error)) => (error, &mut two, &mut one),
        both => panic!("one of two loses: {both:?}"),
    };
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Contention, false), "{error}");
    assert_eq!(error.code.as_deref(), Some(backend.pick("40P01", "1213", "")));
    // The server has ended the loser's transaction: nothing may run in its place, or take effect on its own.
    let refused = fails(loser, "UPDATE stock SET amount = 99 WHERE id = 4", &[]).await;
    assert_eq!(refused.kind, DbErrorKind::Infrastructure, "{refused}");
    assert!(loser.connection.commit().await.is_err());
    winner.rollback().await;
    loser.rollback().await;
    for key in 1..=4 {
        assert_eq!(amount(loser, key).await, Value::Int(100));
    }
    loser.begin().await;
    loser.run("UPDATE stock SET amount = 5 WHERE id = 4", &[]).await;
    loser.commit().await;
}

/// Both results of two tasks, or their panics.
trait IntoResults<A, B> {
    fn into_results(self) -> (A, B);
}

impl<A, B> IntoResults<A, B> for (Result<A, tokio::task::JoinError>, Result<B, tokio::task::JoinError>) {
    fn into_results(self) -> (A, B) {
        (self.0.expect("a task"), self.1.expect("a task"))
    }
}

/// A statement that takes about this many seconds, or for ever.
pub(crate) fn slow(backend: &Backend) -> &'static str {
    backend.pick(
        "SELECT pg_sleep(30)",
        "SELECT SLEEP(30)",
        "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n) SELECT count(*) FROM n",
    )
}

pub(crate) async fn statement_time_limit(backend: &Backend) {
    let statement_timeout = Duration::from_millis(400);
    let mut client = backend.connect_with(SessionSettings { statement_timeout, ..SETTINGS }).await;
    client.begin().await;
    let started = Instant::now();
    let error = client.try_query(slow(backend), &[]).await.expect_err("too slow");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::TimedOut, false), "{error}");
    assert!(error.is_handlers_fault());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    client.rollback().await;
    assert_eq!(client.query("SELECT 1", &[]).await.len(), 1);
    // A statement that changes data is stopped too, and leaves nothing.
    make_stock(&mut client, 1).await;
    client.begin().await;
    let sql = backend.pick(
        "UPDATE stock SET amount = (SELECT 1 FROM pg_sleep(30))",
        "UPDATE stock SET amount = SLEEP(30)",
        "UPDATE stock SET amount = (WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n) SELECT count(*) FROM n)",
    );
    assert_eq!(fails(&mut client, sql, &[]).await.kind, DbErrorKind::TimedOut);
    client.rollback().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(100));
}

pub(crate) async fn killed_by_the_server(backend: &Backend) {
    if backend.dialect == Dialect::Sqlite {
        // There is no server. A killed connection is tested with the kill switch.
        assert!(!backend.database().features().await.expect("features").shared);
        return;
    }
    let mut client = backend.connect().await;
    let mut admin = backend.connect().await;
    let id =
        client.value(backend.pick("SELECT pg_backend_pid()", "SELECT CAST(CONNECTION_ID() AS SIGNED)", ""), &[]).await;
    let Value::Int(id) = id else { panic!("{id:?}") };
    // A cancelled statement that had time left is not the handler's fault.
    let cancel = backend.pick(format!("SELECT pg_cancel_backend({id})"), format!("KILL QUERY {id}"), String::new());
    let cancelling = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        admin.run(&cancel, &[]).await;
        admin
    });
    // MariaDB's SLEEP says 1 when it is cut short: count something instead.
    let long = backend.pick(
        "SELECT pg_sleep(30)",
        "WITH RECURSIVE n AS (SELECT 1 AS v UNION ALL SELECT v + 1 FROM n) SELECT COUNT(*) FROM n",
        "",
    );
    if backend.dialect == Dialect::MySql {
        client.run("SET SESSION max_recursive_iterations = 4294967295", &[]).await;
    }
    let error = client.try_query(long, &[]).await.expect_err("cancelled");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, false), "{error}");
    let mut admin = cancelling.await.expect("a task");
    client.begin().await;
    admin
        .run(&backend.pick(format!("SELECT pg_terminate_backend({id})"), format!("KILL {id}"), String::new()), &[])
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = fails(&mut client, "SELECT 1", &[]).await;
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, true), "{error}");
    // COMMIT on a lost connection: nobody knows, and nobody says otherwise.
    let error = client.connection.rollback().await.expect_err("lost");
    assert!(error.connection_lost);
    let mut client = backend.connect().await;
    client.begin().await;
    let id =
        client.value(backend.pick("SELECT pg_backend_pid()", "SELECT CAST(CONNECTION_ID() AS SIGNED)", ""), &[]).await;
    let Value::Int(id) = id else { panic!("{id:?}") };
    admin
        .run(&backend.pick(format!("SELECT pg_terminate_backend({id})"), format!("KILL {id}"), String::new()), &[])
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let error = client.connection.commit().await.expect_err("lost in COMMIT");
    assert!(error.connection_lost && error.kind == DbErrorKind::Infrastructure, "{error:?}");
}

pub(crate) async fn read_only(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    match backend.dialect {
        Dialect::Sqlite => {
            let database = open(&format!("{}?mode=ro", backend.url), SETTINGS).expect("a usable URL");
            let mut connection = database.connect().await.expect("a connection");
            // SQLite makes BEGIN IMMEDIATE a reader here.
            connection.begin().await.expect("BEGIN");
            let error = connection.execute("UPDATE stock SET amount = 1", &[]).await.expect_err("read-only");
            assert_eq!(error.kind, DbErrorKind::Infrastructure, "{error}");
        }
        _ => {
            client.begin().await;
            if backend.dialect == Dialect::Postgres {
                client.run("SET TRANSACTION READ ONLY", &[]).await;
            } else {
                client.rollback().await;
                client.run("SET SESSION TRANSACTION READ ONLY", &[]).await;
                client.begin().await;
            }
            let error = fails(&mut client, "UPDATE stock SET amount = 1", &[]).await;
            assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, false), "{error}");
        }
    }
}

pub(crate) async fn too_many_rows(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 20).await;
    let limits = |rows, bytes| RowLimits { rows, bytes };
    let sql = "SELECT id, amount FROM stock";
    let all = client.connection.query(sql, &[], limits(20, 1_000_000)).await.expect("20 rows");
    assert_eq!(all.rows.len(), 20);
    client.begin().await;
    let error = client.connection.query(sql, &[], limits(19, 1_000_000)).await.expect_err("too many");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::TooLarge, false));
    assert!(error.message.contains("19 rows"), "{error}");
    client.rollback().await;
    let error = client.connection.query(sql, &[], limits(20, 100)).await.expect_err("too large");
    assert!(error.kind == DbErrorKind::TooLarge && error.message.contains("100 bytes"), "{error}");
    // The rest was read and thrown away: the connection goes on.
    assert_eq!(amount(&mut client, 20).await, Value::Int(100));
}

pub(crate) async fn dropped_future(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let abandoned = tokio::time::timeout(Duration::from_millis(200), client.query(slow(backend), &[])).await;
    assert!(abandoned.is_err());
    for error in [
        client.try_run("SELECT 1", &[]).await.map(drop),
        client.connection.commit().await,
        client.connection.rollback().await,
        client.connection.ping().await,
    ] {
        let error = error.expect_err("the connection is of no use");
        assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, true), "{error}");
    }
    drop(client);
    // Its transaction is undone soon, not when the statement would have ended.
    let started = Instant::now();
    let mut client = backend.connect().await;
    client.begin().await;
    client.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    client.commit().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(101));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

pub(crate) async fn statements_survive_a_changed_schema(backend: &Backend) {
    let mut client = backend.connect().await;

    client.run("CREATE TABLE s (v INT)", &[]).await;
    let (insert, select) = ("INSERT INTO s VALUES (?)", "SELECT * FROM s");
    client.run(insert, &[Value::Int(1)]).await;
    client.run(insert, &[text("2")]).await;
    assert_eq!(client.query(select, &[]).await.len(), 2);
    let mut admin = backend.connect().await;
    if backend.dialect == Dialect::Sqlite {
        admin.run("DROP TABLE s", &[]).await;
        admin.run("CREATE TABLE s (v TEXT)", &[]).await;
    } else {
        let change =
            backend.pick("ALTER TABLE s ALTER COLUMN v TYPE UUID USING NULL", "ALTER TABLE s MODIFY v CHAR(36)", "");
        admin.run(change, &[]).await;
    }
    let id = text("0190f5fe-7c00-7a00-8000-0123456789ab");
    for (sql, params) in [(insert, std::slice::from_ref(&id)), (select, &[])] {
        client.begin().await;
        if let Err(error) = client.try_query(sql, params).await {
            // Nobody's fault, and over with the next attempt.
            assert_eq!(backend.dialect, Dialect::Postgres, "{sql}: {error}");
            assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, false), "{sql}: {error}");
            client.rollback().await;
            client.begin().await;
            client.query(sql, params).await;
        }
        client.commit().await;
    }
    // What is wrong with the statement itself is said when it is prepared anew.
    let wrong = client.try_run("INSERT INTO s VALUES (?, 2)", &[id]).await.expect_err("two columns");
    assert_eq!(wrong.kind, DbErrorKind::Invalid);
}

pub(crate) async fn unreachable_server(backend: &Backend) {
    let url = backend.pick(
        "postgres://shop:s3cret@127.0.0.1:1/shop",
        "mysql://shop:s3cret@127.0.0.1:1/shop",
        "sqlite:///no/such/directory/a.db",
    );
    let error = match open(url, SETTINGS).expect("a usable URL").connect().await {
        Ok(_) => panic!("nothing is there"),
        Err(error) => error,
    };
    assert_eq!(error.kind, DbErrorKind::Infrastructure, "{error}");
    assert!(error.message.starts_with("cannot connect to "), "{error}");
    assert!(!format!("{error:?}").contains("s3cret"));
}
