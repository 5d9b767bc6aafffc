//! Redis, Postgres and MariaDB: start, crash, freeze, end.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hapax_tests::servers::{MariaDb, Postgres, Redis, alive, descendants};
use hapax_tests::{TestResult, wait_for};
use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;

/// Longer than any answer takes, shorter than anyone waits.
const SOON: Duration = Duration::from_secs(20);

async fn redis_get(url: &str, key: &str) -> Result<Option<String>> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("GET").arg(key).query_async(&mut connection).await?)
}

#[tokio::test]
async fn redis_comes_back_empty_after_a_crash() -> TestResult {
    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    let url = server.fresh_database().await?.url().to_owned();
    let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    let () = redis::cmd("SET").arg("lock").arg("held").query_async(&mut connection).await?;
    assert_eq!(redis_get(&url, "lock").await?.as_deref(), Some("held"));

    let pid = server.pid()?;
    server.kill9().await?;
    assert!(!alive(pid));
    assert!(redis_get(&url, "lock").await.is_err(), "nothing answers while it is dead");

    server.restart().await?;
    assert_ne!(server.pid()?, pid);
    assert_eq!(redis_get(&url, "lock").await?, None, "it keeps nothing on disk");
    Ok(())
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_through_a_crash_and_a_stop() -> TestResult {
    let Some(mut server) = Postgres::private().await? else { return Ok(()) };
    let url = server.create_database("shop").await?;
    let mut open = PgConnection::connect(&url).await?;
    sqlx::raw_sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").execute(&mut open).await?;
    sqlx::raw_sql("BEGIN; INSERT INTO t VALUES (2)").execute(&mut open).await?;

    let family = [vec![server.pid()?], descendants(server.pid()?)].concat();
    assert!(family.len() > 3, "a postmaster has children: {family:?}");
    server.kill9().await?;
    assert!(family.iter().all(|&pid| !alive(pid)), "the whole family is gone");

    server.restart().await?;
    let mut connection = PgConnection::connect(&url).await?;
    let found: Vec<i32> = sqlx::query_scalar("SELECT n FROM t").fetch_all(&mut connection).await?;
    assert_eq!(found, [1], "what was committed, and nothing else");

    server.stop().await?;
    assert!(PgConnection::connect(&url).await.is_err(), "nothing answers while it is stopped");
    server.restart().await?;
    let mut connection = PgConnection::connect(&url).await?;
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await?;
    assert_eq!(found, 1);
    Ok(())
}

#[tokio::test]
async fn mariadb_keeps_what_was_committed_through_a_crash_and_a_stop() -> TestResult {
    let Some(mut server) = MariaDb::private().await? else { return Ok(()) };
    let url = server.create_database("shop").await?;
    let mut open = MySqlConnection::connect(&url).await?;
    sqlx::raw_sql("CREATE TABLE t (n int, name text)").execute(&mut open).await?;
    sqlx::raw_sql("INSERT INTO t VALUES (1, 'snö ☃ 𝄞')").execute(&mut open).await?;
    sqlx::raw_sql("BEGIN").execute(&mut open).await?;
    sqlx::raw_sql("INSERT INTO t VALUES (2, 'never')").execute(&mut open).await?;

    let pid = server.pid()?;
    server.kill9().await?;
    assert!(!alive(pid));

    server.restart().await?;
    let mut connection = MySqlConnection::connect(&url).await?;
    let found: Vec<(i32, String)> = sqlx::query_as("SELECT n, name FROM t").fetch_all(&mut connection).await?;
    assert_eq!(found, [(1, "snö ☃ 𝄞".to_owned())], "what was committed, and nothing else");

    server.stop().await?;
    assert!(MySqlConnection::connect(&url).await.is_err(), "nothing answers while it is stopped");
    server.restart().await?;
    let mut connection = MySqlConnection::connect(&url).await?;
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM t").fetch_one(&mut connection).await?;
    assert_eq!(found, 1);
    Ok(())
}

#[tokio::test]
async fn a_frozen_database_answers_nothing_until_it_goes_on() -> TestResult {
    let Some(mut server) = Postgres::private().await? else { return Ok(()) };
    let mut connection = PgConnection::connect(server.url()).await?;
    server.sigstop()?;
    let mut question = Box::pin(sqlx::query_scalar::<_, i32>("SELECT 42").fetch_one(&mut connection));
    let answer = tokio::time::timeout(Duration::from_millis(500), &mut question).await;
    assert!(answer.is_err(), "it answered while it was frozen");
    server.sigcont()?;
    assert_eq!(tokio::time::timeout(SOON, question).await??, 42);

    let Some(mut server) = Redis::private().await? else { return Ok(()) };
    server.sigstop()?;
    assert!(tokio::time::timeout(Duration::from_millis(500), redis_get(server.url(), "key")).await.is_err());
    server.sigcont()?;
    assert_eq!(redis_get(server.url(), "key").await?, None);
    Ok(())
}

#[tokio::test]
async fn a_dropped_server_leaves_neither_processes_nor_files() -> TestResult {
    let Some(server) = Postgres::private().await? else { return Ok(()) };
    let Some(directory) = server.directory().map(std::path::Path::to_owned) else {
        return crate::not_tested(&server.describe());
    };
    let family = [vec![server.pid()?], descendants(server.pid()?)].concat();
    assert!(directory.join("data").is_dir());
    drop(server);
    wait_for(SOON, "the last process to go", async || match family.iter().find(|&&pid| alive(pid)) {
        Some(pid) => bail!("process {pid} is there"),
        None => Ok(()),
    })
    .await?;
    assert!(!directory.exists());
    Ok(())
}

#[tokio::test]
async fn a_users_own_server_is_used_but_never_killed() -> TestResult {
    let Some(ours) = Redis::private().await? else { return Ok(()) };
    let mut theirs = Redis::connect(ours.url()).await?;
    assert!(theirs.describe().contains("yours"), "{}", theirs.describe());
    for _ in 0..20 {
        assert_eq!(redis_get(theirs.fresh_database().await?.url(), "key").await?, None);
    }
    let error = theirs.kill9().await.err().context("it was killed")?;
    assert!(error.to_string().contains("unset HAPAX_TEST_REDIS_URL"), "{error:#}");
    assert!(theirs.restart().await.is_err());
    assert!(theirs.sigstop().is_err());
    drop(theirs);
    assert_eq!(redis_get(ours.url(), "key").await?, None, "it still answers");
    Ok(())
}

#[tokio::test]
async fn names_that_are_not_plain_make_no_databases() -> TestResult {
    let server = hapax_tests::servers::shared().postgres().await?;
    for name in ["", "Shop", "a b", "a\"; DROP DATABASE postgres; --", &"x".repeat(61)] {
        let error = server.create_database(name).await.err().with_context(|| format!("{name:?} was taken"))?;
        assert!(error.to_string().contains("make a database name"), "{error:#}");
    }
    Ok(())
}
