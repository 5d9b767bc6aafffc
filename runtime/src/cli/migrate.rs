//! `hapax migrate`: makes and upgrades the tables of Hapax.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;

use super::error::failure;
use super::output::{Closed, say, tell};
use super::{ConfigArg, USAGE, open};
use crate::config::DatabaseConfig;
use crate::ledger::database::{Database, Migration};

pub(super) const HELP: &str = "\
Examples:
  hapax migrate -c hapax.toml --dry-run    the SQL, for review or for somebody with more rights
  hapax migrate -c hapax.toml

`hapax run` does the same at its start. A host without the right to create tables works on tables that were made \
before. The hapax_* tables alone are touched; those of handlers are their authors'.

Exit codes: 0 done, or nothing to do; 1 a database could not be migrated; 2 the config has errors.";

/// Make or upgrade the hapax_* tables of every database that the config names
///
/// Runs under a lock, so any number of hosts may do it at once.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Print the SQL, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let mut failed = 0;
    for place in open::places(&config) {
        // One database that is down does not keep the others from being migrated.
        if let Err(error) = migrate(place.database, args.dry_run).await {
            if error.is::<Closed>() {
                return Err(error);
            }
            failed += 1;
            super::error::report(&error.context(format!("{}: not migrated", place.database)));
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn migrate(config: &DatabaseConfig, dry_run: bool) -> anyhow::Result<()> {
    let migrations = target(config, dry_run)?.migrate(dry_run).await;
    let migrations = migrations.map_err(|error| {
        let hint = "the user needs the right to create tables, or somebody with that right runs this command; \
                    --dry-run prints the SQL";
        failure("the database refused", hint).because(error)
    })?;
    if migrations.is_empty() {
        return if dry_run { say!("-- {config}: up to date") } else { say!("{config}: up to date") };
    }
    if dry_run {
        return script(config, &migrations);
    }
    migrations.iter().try_for_each(|one| say!("{config}: applied {:04} {}", one.version, one.description))
}

/// A dry run makes no SQLite file: an empty database needs the same migrations.
fn target(config: &DatabaseConfig, dry_run: bool) -> anyhow::Result<Arc<dyn Database>> {
    match config {
        DatabaseConfig::Sqlite(path) if dry_run && !path.exists() => {
            tell!("note: {} does not exist yet; `hapax migrate` creates it", path.display());
            open::database(&DatabaseConfig::Sqlite(":memory:".into()))
        }
        DatabaseConfig::Sqlite(path) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
                let hint = format!("mkdir -p {}", folder.display());
                return Err(failure("the folder of the file does not exist", hint).into());
            }
            open::database(config)
        }
        _ => open::database(config).context("cannot connect"),
    }
}

fn script(config: &DatabaseConfig, migrations: &[Migration]) -> anyhow::Result<()> {
    for migration in migrations {
        say!("-- {config}: {:04} {}\n", migration.version, migration.description)?;
        say!("{}", migration.sql.trim_end())?;
        say!("")?;
    }
    Ok(())
}
