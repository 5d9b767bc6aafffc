//! Databases on the SQL servers: one per test.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};
use url::Url;

use crate::wait::block_on;

/// Longest wait for a statement of the harness's own.
const LIMIT: Duration = Duration::from_secs(30);

/// A database of one test. Dropped with this value on a user's own server; a private server goes as a whole.
pub struct Database {
    name: String,
    url: Url,
    /// Where to drop it; none on a private server.
    server: Option<Url>,
}

impl Database {
    /// Its URL, with the user to connect as.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let force = if server.scheme().starts_with("postgres") { " WITH (FORCE)" } else { "" };
        let statement = format!("DROP DATABASE IF EXISTS {}{force}", self.name);
        if let Err(error) = block_on(async move { execute(&server, statement).await }) {
            eprintln!("the database {} stays on your server: {error:#}", self.name);
        }
    }
}

/// Creates database `name` on `server` and returns its URL.
pub(super) async fn create(server: &Url, name: &str, suffix: &str) -> Result<Url> {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    ensure!(plain && !name.is_empty() && name.len() <= 60, "{name:?}: 1 to 60 of a-z, 0-9 and _ make a database name");
    execute(server, format!("CREATE DATABASE {name}{suffix}"))
        .await
        .with_context(|| format!("creating database {name}"))?;
    let mut url = server.clone();
    url.set_path(name);
    Ok(url)
}

/// Creates a database with a name of its own, which begins with "hapax_" and `hint`.
pub(super) async fn create_fresh(server: &Url, hint: &str, suffix: &str, private: bool) -> Result<Database> {
    let hint: String = hint.chars().filter(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')).take(24).collect();
    let name = format!("hapax_{hint}_{}", unique());
    let url = create(server, &name, suffix).await?;
    Ok(Database { name, url, server: (!private).then(|| server.clone()) })
}

/// Six bytes in hexadecimal that no other test has: from the clock and from chance.
pub(crate) fn unique() -> String {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
    format!("{:04x}{:08x}", clock & 0xffff, rand::rng().random::<u32>())
}

/// One statement on a connection of its own.
pub(super) async fn execute(server: &Url, statement: String) -> Result<()> {
    let work = async {
        if server.scheme().starts_with("postgres") {
            let mut connection = sqlx::postgres::PgConnectOptions::from_url(server)?.connect().await?;
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
            connection.close().await?;
        } else {
            let mut connection = sqlx::mysql::MySqlConnectOptions::from_url(server)?.connect().await?;
            sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await?;
            connection.close().await?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, work).await.with_context(|| format!("no answer within {LIMIT:?}"))?
}
