//! A SQLite database for one call, made from schema files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _};

use super::super::error::failure;
use crate::ledger::database::{Database, SessionSettings};
use crate::ledger::sqlite::Sqlite;

const SESSION: SessionSettings = SessionSettings {
    lock_timeout: Duration::from_secs(2),
    statement_timeout: Duration::from_secs(5),
    idle_in_transaction: Duration::from_secs(60),
};

/// A database that lasts as long as this.
pub(super) struct Sandbox {
    /// The database, schema applied.
    pub(super) database: Arc<dyn Database>,
    /// The tables that the schema made.
    pub(super) tables: Vec<String>,
    _folder: tempfile::TempDir,
}

impl Sandbox {
    /// Makes the database, and runs the schema files in it, in order.
    pub(super) async fn open(schema: &[PathBuf]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("hapax-invoke-").tempdir().context("cannot make a folder")?;
        let path = folder.path().join("sandbox.db");
        // SQLite itself finds the ends of a script's statements: triggers have semicolons inside.
        let options =
            SqliteConnectOptions::new().filename(&path).create_if_missing(true).synchronous(SqliteSynchronous::Off);
        let mut connection = SqliteConnection::connect_with(&options).await.context("cannot make a SQLite database")?;
        for file in schema {
            apply(&mut connection, file).await?;
        }
        let sql =
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite~_%' ESCAPE '~'";
        let tables = sqlx::query_scalar(sql).fetch_all(&mut connection).await.context("cannot list the tables")?;
        connection.close().await.context("cannot close the SQLite database")?;
        let path = path.to_str().context("the path of the folder for temporary files is not UTF-8")?;
        let encoded = path.replace('%', "%25").replace('?', "%3f");
        let database = Arc::new(Sqlite::new(&format!("sqlite://{encoded}"), SESSION)?);
        Ok(Self { database, tables, _folder: folder })
    }
}

async fn apply(connection: &mut SqliteConnection, file: &Path) -> anyhow::Result<()> {
    let sql = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await;
    done.map(drop).map_err(|error| {
        let reason = match error {
            sqlx::Error::Database(error) => error.message().to_owned(),
            other => other.to_string(),
        };
        let hint = "it must be SQLite's SQL; to run on another database, name a --consumer that has one";
        failure(format!("the schema {} does not run", file.display()), hint).because(reason).into()
    })
}
