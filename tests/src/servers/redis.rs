//! A private Redis.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use url::Url;

use super::home::{Home, find_program, free_port};
use super::server::{Kind, Server};
use super::tls::{Tls, TlsAccess};

/// Numbered databases of a private server: one per test.
const DATABASES: u32 = 1024;

/// A Redis server that keeps nothing on disk: what it held is gone after [`Server::kill9`].
pub type Redis = Server<RedisKind>;

/// See [`Redis`].
pub struct RedisKind {
    url: Url,
    /// The next numbered database to give to a test; 0 is nobody's.
    next: AtomicU32,
    /// None for a user's own server.
    tls: Option<Tls>,
}

/// A numbered database, empty when it was given out.
pub struct RedisDatabase {
    url: String,
}

impl RedisDatabase {
    /// Where it is: `redis://127.0.0.1:PORT/NUMBER`.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Kind for RedisKind {
    const NAME: &'static str = "Redis";
    const PACKAGE: &'static str = "redis-server";
    const VARIABLE: &'static str = "HAPAX_TEST_REDIS_URL";
    const USER: Option<&'static str> = None;
    const STOP: Signal = Signal::TERM;
    const CRASH: &'static str = "KILL";

    fn prepare(home: &Home) -> Result<Self> {
        home.make_folder("data")?;
        let tls = Some(Tls::prepare(home)?);
        Ok(Self { tls, ..Self::external(Url::parse(&format!("redis://127.0.0.1:{}", free_port()?))?)? })
    }

    fn command(&self, home: &Home) -> Result<Command> {
        let program = find_program("redis-server", &[])?;
        let port = self.url.port().context("the URL lost its port")?;
        let mut command = home.command(&program);
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--databases", &DATABASES.to_string()]);
        if let Some(tls) = &self.tls {
            command.args(["--tls-port", &tls.port.to_string(), "--tls-auth-clients", "no"]);
            command.arg("--tls-cert-file").arg(&tls.certificate).arg("--tls-key-file").arg(&tls.key);
            command.arg("--tls-ca-cert-file").arg(&tls.authority);
        }
        command.args(["--save", "", "--appendonly", "no", "--dir"]).arg(home.path().join("data"));
        Ok(command)
    }

    fn external(url: Url) -> Result<Self> {
        ensure!(matches!(url.scheme(), "redis" | "rediss"), "the URL must begin with redis:// or rediss://");
        Ok(Self { url, next: AtomicU32::new(1), tls: None })
    }

    fn url(&self) -> &Url {
        &self.url
    }

    async fn probe(&self, pid: Option<u32>) -> Result<String> {
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut connection(self.url.as_str()).await?).await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        if let Some(pid) = pid {
            ensure!(field("process_id") == Some(pid.to_string().as_str()), "another Redis answers at {}", self.url);
        }
        field("redis_version").map(str::to_owned).context("INFO names no version")
    }
}

impl Redis {
    /// How to reach it with TLS; none for a user's own server.
    pub fn tls(&self) -> Option<TlsAccess<'_>> {
        self.kind.tls.as_ref().map(Tls::access)
    }

    /// An empty numbered database that no other test of this process uses.
    ///
    /// A user's own server has 16 by default: they are then given out in turn, all but number 0, and emptied each time.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn fresh_database(&self) -> Result<RedisDatabase> {
        let databases = if self.is_private() { DATABASES } else { self.databases().await? };
        let number = 1 + (self.kind.next.fetch_add(1, Ordering::Relaxed) - 1) % databases.saturating_sub(1).max(1);
        let mut url = self.kind.url.clone();
        url.set_path(&number.to_string());
        let () =
            redis::cmd("FLUSHDB").query_async(&mut connection(url.as_str()).await?).await.context("emptying it")?;
        Ok(RedisDatabase { url: url.into() })
    }

    async fn databases(&self) -> Result<u32> {
        let mut connection = connection(self.url()).await?;
        let answer: (String, u32) = redis::cmd("CONFIG")
            .arg("GET")
            .arg("databases")
            .query_async(&mut connection)
            .await
            .unwrap_or((String::new(), 16));
        Ok(answer.1)
    }
}

async fn connection(url: &str) -> Result<redis::aio::MultiplexedConnection> {
    let client = redis::Client::open(url).context("the URL is not one for Redis")?;
    client.get_multiplexed_async_connection().await.context("connecting to Redis")
}
