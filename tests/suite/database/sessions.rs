//! What a session is set to, and how it ends.

use std::time::{Duration, Instant};

use hapax::ledger::database::{DbErrorKind, Dialect, SessionSettings, open};
use hapax::ledger::value::Value;
use hapax_tests::proxy::Proxy;

use crate::backend::{Backend, SETTINGS, amount, make_stock, text};
use crate::errors::slow;

pub(crate) async fn features_and_description(backend: &Backend) {
    let database = backend.database();
    assert_eq!(database.dialect(), backend.dialect);
    let features = database.features().await.expect("features");
    let description = database.describe().await.expect("a description");
    println!("{description}: {features:?}");
    let names = backend.pick(&["PostgreSQL "][..], &["MariaDB ", "MySQL "], &["SQLite "]);
    assert!(names.iter().any(|name| description.starts_with(name)), "{description}");
    assert_eq!(features.concurrent_writers, backend.dialect != Dialect::Sqlite);
    assert_eq!(features.shared, backend.dialect != Dialect::Sqlite);
    assert_eq!(features.insert_returning, !description.starts_with("MySQL "));
}

pub(crate) async fn the_session_is_pinned(backend: &Backend) {
    let mut client = backend.connect().await;
    match backend.dialect {
        Dialect::Postgres => {
            for (name, expected) in [
                ("transaction_isolation", "read committed"),
                ("standard_conforming_strings", "on"),
                ("TimeZone", "UTC"),
                ("application_name", "hapax"),
                ("lock_timeout", "10s"),
                ("statement_timeout", "20s"),
                ("idle_in_transaction_session_timeout", "1min"),
            ] {
                let value = client.value(&format!("SELECT current_setting('{name}')"), &[]).await;
                assert_eq!(value, text(expected), "{name}");
            }
            let Value::Text(path) = client.value("SELECT current_setting('search_path')", &[]).await else {
                panic!("a search path is a text");
            };
            assert!(path.starts_with("hapax_test_") && path.ends_with(", pg_temp"), "{path}");
        }
        Dialect::MySql => {
            for (name, expected) in [
                ("autocommit", Value::Int(0)),
                ("time_zone", text("+00:00")),
                ("innodb_lock_wait_timeout", Value::Int(10)),
                ("character_set_client", text("utf8mb4")),
                ("character_set_results", text("utf8mb4")),
            ] {
                let value = client.value(&format!("SELECT @@SESSION.{name}"), &[]).await;
                assert_eq!(value, expected, "{name}");
            }
            let isolation = client.value("SELECT @@SESSION.tx_isolation", &[]).await;
            assert_eq!(isolation, text("READ-COMMITTED"));
            let Value::Text(mode) = client.value("SELECT @@SESSION.sql_mode", &[]).await else {
                panic!("modes are a text")
            };
            assert!(mode.contains("STRICT_ALL_TABLES") && mode.contains("NO_ZERO_DATE"), "{mode}");
            assert!(!mode.contains("ANSI_QUOTES") && !mode.contains("NO_BACKSLASH_ESCAPES"), "{mode}");
            assert_eq!(client.value("SELECT \"a\\\"b\"", &[]).await, text("a\"b"));
        }
        Dialect::Sqlite => {
            for (name, expected) in [
                ("journal_mode", text("wal")),
                ("synchronous", Value::Int(2)),
                ("foreign_keys", Value::Int(1)),
                ("busy_timeout", Value::Int(10_000)),
            ] {
                assert_eq!(client.value(&format!("PRAGMA {name}"), &[]).await, expected, "{name}");
            }
        }
    }
    // Committed work of others is visible inside a transaction, except in SQLite, which has one writer.
    make_stock(&mut client, 1).await;
    if backend.dialect != Dialect::Sqlite {
        let mut writer = backend.connect().await;
        client.begin().await;
        assert_eq!(amount(&mut client, 1).await, Value::Int(100));
        writer.run("UPDATE stock SET amount = 1", &[]).await;
        assert_eq!(amount(&mut client, 1).await, Value::Int(1));
    }
}

pub(crate) async fn idle_transactions_end(backend: &Backend) {
    let idle_in_transaction = Duration::from_secs(1);
    let settings = SessionSettings { idle_in_transaction, ..SETTINGS };
    let mut frozen = backend.connect_with(settings).await;
    make_stock(&mut frozen, 1).await;
    if backend.dialect == Dialect::Sqlite {
        // One process, no server: a host that is frozen holds its own file only.
        assert!(!backend.database().features().await.expect("features").shared);
        return;
    }
    frozen.begin().await;
    frozen.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let mut other = backend.connect().await;
    let started = Instant::now();
    other.begin().await;
    other.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    other.commit().await;
    let waited = started.elapsed();
    assert!(waited >= Duration::from_millis(800) && waited < Duration::from_secs(5), "{waited:?}");
    assert_eq!(amount(&mut other, 1).await, Value::Int(101));
    let error = frozen.connection.commit().await.expect_err("ended by the server");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, true), "{error}");
    // Outside of a transaction a connection may rest.
    let mut resting = backend.connect_with(settings).await;
    resting.begin().await;
    resting.commit().await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(amount(&mut resting, 1).await, Value::Int(101));
}

pub(crate) async fn ping_keeps_a_transaction(backend: &Backend) {
    let idle_in_transaction = Duration::from_secs(1);
    let mut client = backend.connect_with(SessionSettings { idle_in_transaction, ..SETTINGS }).await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.connection.ping().await.expect("a sign of life");
    }
    client.commit().await;
    assert_eq!(amount(&mut client, 1).await, Value::Int(1));
}

pub(crate) async fn kill_switch_stops_a_statement(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let kill = client.connection.kill_switch();
    let sql = slow(backend);
    let running = tokio::spawn(async move { (client.try_query(sql, &[]).await, client) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    kill.kill().await;
    let (result, mut client) = running.await.expect("a task");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    let error = result.expect_err("killed");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, true), "{error}");
    assert!(client.connection.commit().await.is_err());
    // When the switch returns, what the connection held is free.
    let mut other = backend.connect_with(SessionSettings { lock_timeout: Duration::from_secs(1), ..SETTINGS }).await;
    other.begin().await;
    other.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    other.commit().await;
    assert_eq!(amount(&mut other, 1).await, Value::Int(101));
    // Again, after the connection is gone: nobody else is hit.
    kill.kill().await;
    drop(client);
    kill.kill().await;
    assert_eq!(amount(&mut other, 1).await, Value::Int(101));
}

pub(crate) async fn kill_switch_frees_an_idle_transaction(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    client.connection.kill_switch().kill().await;
    let mut other = backend.connect_with(SessionSettings { lock_timeout: Duration::from_secs(1), ..SETTINGS }).await;
    other.begin().await;
    other.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    other.commit().await;
    let error = client.connection.commit().await.expect_err("killed");
    assert!(error.connection_lost, "{error}");
    assert_eq!(amount(&mut other, 1).await, Value::Int(101));
}

pub(crate) async fn dropped_connection_frees_its_locks(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    client.begin().await;
    client.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    let sql = slow(backend);
    let task = tokio::spawn(async move { client.query(sql, &[]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    task.abort();
    let mut other = backend.connect_with(SessionSettings { lock_timeout: Duration::from_secs(3), ..SETTINGS }).await;
    other.begin().await;
    other.run("UPDATE stock SET amount = amount + 1 WHERE id = 1", &[]).await;
    other.commit().await;
    assert_eq!(amount(&mut other, 1).await, Value::Int(101));
}

pub(crate) async fn limits_can_be_changed(backend: &Backend) {
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let short = Duration::from_millis(300);
    let long = Duration::from_secs(20);
    client.connection.set_timeouts(long, short).await.expect("new limits");
    let error = client.try_query(slow(backend), &[]).await.expect_err("too slow");
    assert_eq!(error.kind, DbErrorKind::TimedOut, "{error}");
    client.connection.set_timeouts(long, long).await.expect("old limits");
    // Limits set in a transaction outlive it, however it ends.
    client.begin().await;
    client.connection.savepoint().await.expect("SAVEPOINT");
    client.connection.set_timeouts(long, short).await.expect("new limits");
    client.connection.rollback_to_savepoint().await.expect("ROLLBACK TO");
    client.rollback().await;
    client.begin().await;
    let started = Instant::now();
    let error = client.try_query(slow(backend), &[]).await.expect_err("too slow");
    assert_eq!(error.kind, DbErrorKind::TimedOut, "{error}");
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    client.rollback().await;
    // The limit for locks too.
    let one = Duration::from_secs(1);
    let mut holder = backend.connect().await;
    holder.begin().await;
    holder.run("UPDATE stock SET amount = 1 WHERE id = 1", &[]).await;
    client.connection.set_timeouts(one, long).await.expect("new limits");
    let started = Instant::now();
    let error = client.try_run("UPDATE stock SET amount = 2 WHERE id = 1", &[]).await.expect_err("locked");
    assert_eq!(error.kind, DbErrorKind::Contention, "{error}");
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
}

pub(crate) async fn vanished_server(backend: &Backend) {
    if backend.dialect == Dialect::Sqlite {
        // No server, nothing to vanish.
        assert!(!backend.database().features().await.expect("features").shared);
        return;
    }
    let proxy = Proxy::to(&backend.url).await.expect("a proxy");
    let url = proxy.through(&backend.url).expect("a URL");
    let settings = SessionSettings { statement_timeout: Duration::from_millis(200), ..SETTINGS };
    let database = open(&url, settings).expect("a usable URL");
    let mut connection = database.connect().await.expect("a connection");
    connection.begin().await.expect("BEGIN");
    connection.execute("SELECT 1", &[]).await.expect("an answer");
    proxy.freeze();
    let started = Instant::now();
    let error = connection.commit().await.expect_err("no answer");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Infrastructure, true), "{error}");
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    // An address that takes connections and says nothing.
    let started = Instant::now();
    let error = database.connect().await.err().expect("no answer");
    assert_eq!(error.kind, DbErrorKind::Infrastructure, "{error}");
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

pub(crate) async fn urls(backend: &Backend) {
    for url in ["", "shop", "redis://localhost", "postgres", "mysql:", "sqlite://", "postgres://[", "mysql://a:b:c"] {
        match open(url, SETTINGS) {
            Ok(_) => panic!("{url:?} is no usable URL"),
            Err(error) => assert_eq!(error.kind, DbErrorKind::Infrastructure, "{url:?}"),
        }
    }
    if backend.dialect == Dialect::Sqlite {
        let memory = open("sqlite::memory:", SETTINGS).expect("a usable URL");
        let mut one = memory.connect().await.expect("a connection");
        one.execute("CREATE TABLE t (v INT)", &[]).await.expect("a table");
        drop(one);
        let mut two = memory.connect().await.expect("a connection");
        let mut three = memory.connect().await.expect("a connection");
        two.begin().await.expect("BEGIN");
        two.execute("INSERT INTO t VALUES (1)", &[]).await.expect("it outlives a connection");
        two.commit().await.expect("COMMIT");
        let limits = hapax::ledger::value::RowLimits::NONE;
        assert_eq!(three.query("SELECT v FROM t", &[], limits).await.expect("shared").rows, [[Value::Int(1)]]);
        let another = open("sqlite::memory:", SETTINGS).expect("a usable URL");
        let mut stranger = another.connect().await.expect("a connection");
        assert!(stranger.query("SELECT v FROM t", &[], limits).await.is_err(), "each has a database of its own");
    }
}

pub(crate) async fn secrets_stay_secret(backend: &Backend) {
    if backend.dialect == Dialect::Sqlite {
        // No server, no password.
        assert!(!backend.url.contains('@'));
        return;
    }
    let mut url = url::Url::parse(&backend.url).expect("a URL");
    url.set_username("nobody").expect("a user");
    url.set_password(Some("s3cret")).expect("a password");
    let error = open(url.as_str(), SETTINGS).expect("a usable URL").connect().await.err().expect("an unknown user");
    assert_eq!(error.kind, DbErrorKind::Infrastructure, "{error}");
    assert!(error.message.contains("nobody"), "{error}");
    assert!(!format!("{error:?} {error}").contains("s3cret"), "{error}");
    let error = open("postgres://a:s3cret@host:99999/x", SETTINGS).err().expect("no such port");
    assert!(!format!("{error:?} {error}").contains("s3cret"), "{error}");
    let error = open("mysql://a:s3cret@host/x?ssl-mode=NONSENSE", SETTINGS).err().expect("no such mode");
    assert!(!format!("{error:?} {error}").contains("s3cret"), "{error}");
}
