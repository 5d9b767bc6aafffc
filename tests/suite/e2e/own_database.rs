//! A database server of a test's own, to be stopped and killed.

use anyhow::Result;
use hapax_tests::servers::{MariaDb, Postgres};

use crate::world::{Stage, World};

/// See the module.
pub(crate) enum Server {
    MariaDb(MariaDb),
    Postgres(Postgres),
}

impl Server {
    /// Starts the stage's server, and a world on it. None where a user has only servers that may not be broken.
    pub(crate) async fn start(stage: Stage) -> Result<Option<(Self, World)>> {
        let (server, database) = if stage == Stage::MariaDb {
            let Some(server) = MariaDb::private().await? else { return Ok(None) };
            let database = server.fresh_database("outage").await?;
            (Self::MariaDb(server), database)
        } else {
            let Some(server) = Postgres::private().await? else { return Ok(None) };
            let database = server.fresh_database("outage").await?;
            (Self::Postgres(server), database)
        };
        let world = World::on_database(stage, database.url()).await?;
        Ok(Some((server, world)))
    }

    /// Ends it in good order.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        match self {
            Self::MariaDb(server) => server.stop().await,
            Self::Postgres(server) => server.stop().await,
        }
    }

    /// Kills it with SIGKILL.
    pub(crate) async fn kill9(&mut self) -> Result<()> {
        match self {
            Self::MariaDb(server) => server.kill9().await,
            Self::Postgres(server) => server.kill9().await,
        }
    }

    /// Starts it again with its data, after ending it in good order if it still runs.
    pub(crate) async fn restart(&mut self) -> Result<()> {
        match self {
            Self::MariaDb(server) => server.restart().await,
            Self::Postgres(server) => server.restart().await,
        }
    }
}
