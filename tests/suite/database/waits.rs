//! Statements that wait for others until their time is up, and statements that are slow themselves.

use std::time::Duration;

use hapax::ledger::database::{DbError, DbErrorKind, SessionSettings, open};
use hapax::ledger::value::Value;
use tokio::task::JoinHandle;

use crate::backend::{Backend, Client, SETTINGS, amount, make_stock};
use crate::errors::slow;

/// Every wait for one lock may be longer than the statement.
const IN_A_HURRY: SessionSettings = SessionSettings { statement_timeout: Duration::from_secs(2), ..SETTINGS };

/// Locks a row until it is let go.
async fn hold(backend: &Backend, key: i64) -> Client {
    let mut holder = backend.connect().await;
    holder.begin().await;
    holder.run(&format!("UPDATE stock SET amount = amount + 1 WHERE id = {key}"), &[]).await;
    holder
}

/// Runs a statement in a transaction of its own.
fn run(mut client: Client, sql: &'static str) -> JoinHandle<(Result<(), DbError>, Client)> {
    tokio::spawn(async move {
        client.begin().await;
        (client.try_run(sql, &[]).await.map(drop), client)
    })
}

pub(crate) async fn one_lock_after_another(backend: &Backend) {
    let mut client = backend.connect_with(IN_A_HURRY).await;
    make_stock(&mut client, 2).await;
    if backend.writers_take_turns().await {
        return;
    }
    let (mut first, mut second) = (hold(backend, 1).await, hold(backend, 2).await);
    // Whoever stands in line behind another waits for that one's place, and not for the holder.
    let before = run(backend.connect().await, "UPDATE stock SET amount = amount + 10 WHERE id = 1");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiting = run(client, "UPDATE stock SET amount = amount + 100");
    tokio::time::sleep(Duration::from_millis(600)).await;
    first.commit().await;
    let (done, mut before) = before.await.expect("a task");
    done.expect("it was first in line");
    tokio::time::sleep(Duration::from_millis(600)).await;
    before.commit().await;
    let (answer, mut client) = waiting.await.expect("a task");
    let error = answer.expect_err("the second row is still locked");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Contention, false), "{error}");
    assert_eq!(error.code.as_deref(), Some(backend.pick("57014", "1969", "")), "{error}");
    client.rollback().await;
    second.commit().await;
    client.begin().await;
    client.run("UPDATE stock SET amount = amount + 100", &[]).await;
    client.commit().await;
    assert_eq!((amount(&mut client, 1).await, amount(&mut client, 2).await), (Value::Int(211), Value::Int(201)));
}

pub(crate) async fn a_slow_statement_while_somebody_else_waits(backend: &Backend) {
    let mut client = backend.connect_with(IN_A_HURRY).await;
    make_stock(&mut client, 1).await;
    if backend.writers_take_turns().await {
        return;
    }
    let mut holder = hold(backend, 1).await;
    let waiting = run(backend.connect().await, "UPDATE stock SET amount = amount + 10 WHERE id = 1");
    let error = client.try_query(slow(backend), &[]).await.expect_err("too slow");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::TimedOut, false), "{error}");
    holder.commit().await;
    waiting.await.expect("a task").0.expect("the row is free");
}

/// A user who has no privilege but those on the tables.
pub(crate) async fn a_wait_of_a_plain_user(backend: &Backend) {
    if backend.writers_take_turns().await {
        return;
    }
    let mut client = backend.connect().await;
    make_stock(&mut client, 1).await;
    let name = &backend.name;
    // No longer than names of users may be on MySQL.
    let user = &format!("u{}", &name[name.len() - 31..]);
    let created = backend.pick(
        vec![
            format!("CREATE ROLE {user} LOGIN PASSWORD 'secret'"),
            format!("GRANT USAGE ON SCHEMA {name} TO {user}"),
            format!("GRANT ALL ON stock TO {user}"),
        ],
        vec![format!("CREATE USER {user} IDENTIFIED BY 'secret'"), format!("GRANT ALL ON {name}.* TO {user}")],
        Vec::new(),
    );
    for sql in &created {
        client.run(sql, &[]).await;
    }
    let mut url = url::Url::parse(&backend.url).expect("a URL");
    url.set_username(user).expect("a user");
    url.set_password(Some("secret")).expect("a password");
    let plain = open(url.as_str(), IN_A_HURRY).expect("a usable URL").connect().await.expect("a connection");
    let mut holder = hold(backend, 1).await;
    let waiting = run(Client { connection: plain, dialect: backend.dialect }, "UPDATE stock SET amount = 5");
    let (answer, mut plain) = waiting.await.expect("a task");
    let error = answer.expect_err("the row is locked");
    assert_eq!((error.kind, error.connection_lost), (DbErrorKind::Contention, false), "{error}");
    plain.rollback().await;
    holder.commit().await;
    drop(plain);
    let dropped = backend.pick(
        vec![format!("DROP OWNED BY {user}"), format!("DROP ROLE {user}")],
        vec![format!("DROP USER {user}")],
        Vec::new(),
    );
    for sql in &dropped {
        client.run(sql, &[]).await;
    }
}
