//! A private MariaDB.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sqlx::{ConnectOptions, Connection};
use url::Url;

use super::home::{Home, find_program, free_port};
use super::server::{DATA, Kind, Server};
use super::sql::{self, Database};

/// The character set of every database made here: the server's own default is latin1.
const UTF8: &str = " CHARACTER SET utf8mb4";

/// A MariaDB server with durability as in production; user `root` has no password. A user's own may also be a MySQL.
pub type MariaDb = Server<MariaDbKind>;

/// See [`MariaDb`].
pub struct MariaDbKind {
    url: Url,
    /// Where its process id is written, if it is a private one.
    pid_file: Option<PathBuf>,
}

impl Kind for MariaDbKind {
    const NAME: &'static str = "MariaDB";
    const PACKAGE: &'static str = "mariadb-server";
    const VARIABLE: &'static str = "HAPAX_TEST_MYSQL_URL";
    const USER: Option<&'static str> = Some("mysql");
    const STOP: Signal = Signal::TERM;
    const CRASH: &'static str = "KILL";

    fn prepare(home: &Home) -> Result<Self> {
        let install = find_program("mariadb-install-db", &[])?;
        let data = home.make_folder(DATA)?;
        let run = home.make_folder("run")?;
        let tmp = home.make_folder("tmp")?;
        let mut command = home.command(&install);
        command.env("TMPDIR", tmp); // the caller's may be closed to the server's user
        command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        command.arg(option("--datadir", &data));
        home.run("mariadb-install-db", command)?;
        let url = Url::parse(&format!("mysql://root@127.0.0.1:{}", free_port()?))?;
        Ok(Self { url, pid_file: Some(run.join("pid")) })
    }

    fn command(&self, home: &Home) -> Result<Command> {
        let program = find_program("mariadbd", &[])?;
        let pid_file = self.pid_file.as_ref().context("a user's own server has no files here")?;
        let port = self.url.port().context("the URL lost its port")?;
        let mut command = home.command(&program);
        command.args(["--no-defaults", "--bind-address=127.0.0.1", &format!("--port={port}")]);
        command.args(["--skip-name-resolve", "--character-set-server=utf8mb4", "--max-connections=500"]);
        command.arg(option("--datadir", &home.path().join(DATA))).arg(option("--tmpdir", &home.path().join("tmp")));
        command.arg(option("--socket", &home.path().join("run/sock"))).arg(option("--pid-file", pid_file));
        Ok(command)
    }

    fn external(url: Url) -> Result<Self> {
        ensure!(matches!(url.scheme(), "mysql" | "mariadb"), "the URL must begin with mysql://");
        Ok(Self { url, pid_file: None })
    }

    fn url(&self) -> &Url {
        &self.url
    }

    async fn probe(&self, _pid: Option<u32>) -> Result<String> {
        let mut connection = sqlx::mysql::MySqlConnectOptions::from_url(&self.url)?.connect().await?;
        if let Some(pid_file) = &self.pid_file {
            let theirs: String = sqlx::query_scalar("SELECT @@pid_file").fetch_one(&mut connection).await?;
            ensure!(pid_file.as_path() == Path::new(&theirs), "another MariaDB answers at {}", self.url);
        }
        let version: String = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version)
    }
}

impl MariaDb {
    /// Creates a database and returns its URL.
    ///
    /// # Errors
    /// When it exists already, or the server refuses.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        sql::create(&self.kind.url, name, UTF8).await.map(String::from)
    }

    /// A new, empty database with a name of its own that contains `hint`.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn fresh_database(&self, hint: &str) -> Result<Database> {
        sql::create_fresh(&self.kind.url, hint, UTF8, self.is_private()).await
    }
}

/// `--name=value`, the value as it is.
fn option(name: &str, value: &Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from(name);
    option.push("=");
    option.push(value);
    option
}
