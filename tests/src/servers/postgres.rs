//! A private Postgres.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sqlx::{ConnectOptions, Connection};
use url::Url;

use super::home::{Home, find_program, free_port};
use super::server::{DATA, Kind, Server};
use super::sql::{self, Database};

/// A Postgres server with durability as in production; user `hapax` without a password is its superuser.
pub type Postgres = Server<PostgresKind>;

/// See [`Postgres`].
pub struct PostgresKind {
    url: Url,
    /// Where its data is, if it is a private one.
    data: Option<PathBuf>,
}

impl Kind for PostgresKind {
    const NAME: &'static str = "Postgres";
    const PACKAGE: &'static str = "postgresql";
    const VARIABLE: &'static str = "HAPAX_TEST_POSTGRES_URL";
    const USER: Option<&'static str> = Some("postgres");
    const STOP: Signal = Signal::INT; // "fast": ends sessions, where SIGTERM waits for them
    const CRASH: &'static str = "QUIT"; // "immediate": a crash that releases its shared memory

    fn prepare(home: &Home) -> Result<Self> {
        let data = home.make_folder(DATA)?;
        let mut initdb = home.command(&program("initdb")?);
        initdb.args(["-U", "hapax", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        home.run("initdb", initdb)?;
        let url = Url::parse(&format!("postgres://hapax@127.0.0.1:{}/postgres", free_port()?))?;
        Ok(Self { url, data: Some(data) })
    }

    fn command(&self, home: &Home) -> Result<Command> {
        let data = self.data.as_ref().context("a user's own server has no data folder here")?;
        let port = self.url.port().context("the URL lost its port")?;
        let mut command = home.command(&program("postgres")?);
        command.arg("-D").arg(data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "max_connections=300"]);
        Ok(command)
    }

    fn external(url: Url) -> Result<Self> {
        ensure!(matches!(url.scheme(), "postgres" | "postgresql"), "the URL must begin with postgres://");
        Ok(Self { url, data: None })
    }

    fn url(&self) -> &Url {
        &self.url
    }

    async fn probe(&self, _pid: Option<u32>) -> Result<String> {
        let mut connection = sqlx::postgres::PgConnectOptions::from_url(&self.url)?.connect().await?;
        if let Some(data) = &self.data {
            let theirs: String = sqlx::query_scalar("SHOW data_directory").fetch_one(&mut connection).await?;
            ensure!(same_file(data, Path::new(&theirs)), "another Postgres answers at {}", self.url);
        }
        let version: String = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version)
    }
}

impl Postgres {
    /// Creates a database and returns its URL.
    ///
    /// # Errors
    /// When it exists already, or the server refuses.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        sql::create(&self.kind.url, name, "").await.map(String::from)
    }

    /// A new, empty database with a name of its own that contains `hint`.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn fresh_database(&self, hint: &str) -> Result<Database> {
        sql::create_fresh(&self.kind.url, hint, "", self.is_private()).await
    }

    /// Changes a setting of a private server that is read only at its start, and restarts it.
    ///
    /// # Errors
    /// When it is not a private one, refuses the setting, or does not answer in time.
    pub async fn set(&mut self, setting: &str, value: &str) -> Result<()> {
        self.home()?;
        sql::execute(&self.kind.url, format!("ALTER SYSTEM SET {setting} = '{value}'")).await?;
        self.restart().await
    }
}

/// Debian keeps the server's programs off the PATH, in a folder per major version: the newest one is taken.
fn program(name: &'static str) -> Result<PathBuf> {
    let mut folders: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("postgres").is_file())
        .collect();
    folders.sort_by_key(|folder| std::cmp::Reverse(major(folder)));
    find_program(name, &folders)
}

/// 15 for /usr/lib/postgresql/15/bin.
fn major(folder: &Path) -> u32 {
    let version = folder.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    version.and_then(|version| version.parse().ok()).unwrap_or(0)
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
