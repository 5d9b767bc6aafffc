//! One set of servers for all tests of one binary.

use std::io::Write;

use anyhow::{Result, anyhow};
use tokio::sync::OnceCell;

use super::server::{Kind, Server};
use super::{MariaDb, MariaDbKind, Postgres, PostgresKind, Rabbit, RabbitKind, Redis, RedisKind};

/// The servers that the tests of this process share; each starts when it is first asked for.
///
/// A test takes what nobody else touches: a virtual host, a database, a numbered Redis database. A test that kills or
/// freezes a server starts its own: these cannot be, since those methods want `&mut`.
pub fn shared() -> &'static Shared {
    static SHARED: Shared = Shared {
        rabbit: OnceCell::const_new(),
        redis: OnceCell::const_new(),
        postgres: OnceCell::const_new(),
        mariadb: OnceCell::const_new(),
    };
    &SHARED
}

/// See [`shared`].
pub struct Shared {
    rabbit: Cell<RabbitKind>,
    redis: Cell<RedisKind>,
    postgres: Cell<PostgresKind>,
    mariadb: Cell<MariaDbKind>,
}

/// A failed start is kept too, so that it costs its limit once and not once per test.
type Cell<K> = OnceCell<Result<Server<K>, String>>;

impl Shared {
    /// RabbitMQ.
    ///
    /// # Errors
    /// When it did not start; every caller gets the same error.
    pub async fn rabbit(&'static self) -> Result<&'static Rabbit> {
        get(&self.rabbit).await
    }

    /// Redis.
    ///
    /// # Errors
    /// When it did not start; every caller gets the same error.
    pub async fn redis(&'static self) -> Result<&'static Redis> {
        get(&self.redis).await
    }

    /// Postgres.
    ///
    /// # Errors
    /// When it did not start; every caller gets the same error.
    pub async fn postgres(&'static self) -> Result<&'static Postgres> {
        get(&self.postgres).await
    }

    /// MariaDB.
    ///
    /// # Errors
    /// When it did not start; every caller gets the same error.
    pub async fn mariadb(&'static self) -> Result<&'static MariaDb> {
        get(&self.mariadb).await
    }
}

async fn get<K: Kind>(cell: &'static Cell<K>) -> Result<&'static Server<K>> {
    let started = cell.get_or_init(async || {
        let server = Server::<K>::given_or_private().await.map_err(|error| format!("{error:?}"))?;
        // Past the capture of test output: every run shows which versions it ran against.
        let _ = writeln!(std::io::stderr(), "tested against {}", server.describe());
        Ok(server)
    });
    started.await.as_ref().map_err(|error| anyhow!("{error}"))
}
