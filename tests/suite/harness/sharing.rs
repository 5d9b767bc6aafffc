//! Tests of one binary share servers, each test on a thread and a runtime of its own.

use std::collections::HashSet;

use anyhow::Result;
use hapax_tests::TestResult;
use hapax_tests::servers::shared;
use sqlx::Connection;
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;

/// What one test would take.
async fn take_one_of_each() -> Result<[String; 3]> {
    let mariadb = shared().mariadb().await?;
    let database = mariadb.fresh_database("sharing").await?;
    let mut connection = MySqlConnection::connect(database.url()).await?;
    sqlx::raw_sql("CREATE TABLE same_name (n int)").execute(&mut connection).await?;
    let redis = shared().redis().await?;
    let numbered = redis.fresh_database().await?;
    Ok([mariadb.url().to_owned(), database.url().to_owned(), numbered.url().to_owned()])
}

#[test]
fn tests_get_the_same_servers_and_databases_of_their_own() -> TestResult {
    let threads: Vec<_> = (0..6)
        .map(|_| {
            std::thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(take_one_of_each())
            })
        })
        .collect();
    let mut servers = HashSet::new();
    let mut databases = HashSet::new();
    for thread in threads {
        let [server, database, redis] = thread.join().expect("no thread panics")?;
        servers.insert(server);
        assert!(databases.insert(database) && databases.insert(redis), "given out twice: {databases:?}");
    }
    assert_eq!(servers.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_fresh_database_speaks_utf8() -> TestResult {
    let database = shared().postgres().await?.fresh_database("Encoding!").await?;
    assert!(database.name().starts_with("hapax_ncoding_"), "{}", database.name());
    let mut connection = PgConnection::connect(database.url()).await?;
    let encoding: String = sqlx::query_scalar("SHOW server_encoding").fetch_one(&mut connection).await?;
    assert_eq!(encoding, "UTF8");

    let database = shared().mariadb().await?.fresh_database("encoding").await?;
    let mut connection = MySqlConnection::connect(database.url()).await?;
    let encoding: String = sqlx::query_scalar("SELECT @@character_set_database").fetch_one(&mut connection).await?;
    assert_eq!(encoding, "utf8mb4");
    Ok(())
}

#[tokio::test]
async fn a_users_own_server_is_left_clean() -> TestResult {
    let ours = shared().postgres().await?;
    let theirs = hapax_tests::servers::Postgres::connect(ours.url()).await?;
    let database = theirs.fresh_database("cleanup").await?;
    let url = database.url().to_owned();
    let _still_open = PgConnection::connect(&url).await?;
    drop(database);
    assert!(PgConnection::connect(&url).await.is_err(), "the database is gone");
    Ok(())
}

#[tokio::test]
async fn descriptions_name_the_versions() -> TestResult {
    for (name, described) in [
        ("RabbitMQ ", shared().rabbit().await?.describe()),
        ("Redis ", shared().redis().await?.describe()),
        ("Postgres ", shared().postgres().await?.describe()),
        ("MariaDB ", shared().mariadb().await?.describe()),
    ] {
        let version = described.strip_prefix(name).unwrap_or_default();
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{described}");
    }
    Ok(())
}
