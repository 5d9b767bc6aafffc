//! `make demo`: thousands of orders are published, many of them twice or more, some of them broken; the handler fails
//! half of the time after its UPDATE; the consuming process is killed twice. In the end each order has taken effect
//! once, or is a dead letter that was compensated once; the demo works out by itself what must have come of what it
//! published, and compares.
//!
//! Exit status: 0 if everything agrees, 1 if not or if something failed on the way, 2 for wrong usage.

mod books;
mod play;
mod progress;
mod report;
mod scenario;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, ValueEnum};

use scenario::Scenario;
use stage::Stage;

/// Shows that duplicates, failures and crashes go in, and exact effects come out.
#[derive(Debug, Parser)]
#[command(name = "hapax-demo", version, max_term_width = 110)]
struct Args {
    /// Run on RabbitMQ, Redis and a database server, started privately, instead of embedded files.
    #[arg(long)]
    servers: bool,
    /// Where the stock and the ledger are: `sqlite` by default, `mysql` (a MariaDB) with --servers.
    #[arg(long, value_enum)]
    database: Option<Database>,
    /// How many messages to publish, duplicates and all.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(200..=1_000_000))]
    orders: u32,
    /// What chance starts from: the same seed publishes the same messages. Another one each time by default.
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the folder with the config, the logs and the embedded files.
    #[arg(long)]
    keep: bool,
    /// The handler; by default the one that was built beside this program.
    #[arg(long, value_name = "FILE", hide = true)]
    module: Option<PathBuf>,
}

/// A kind of database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Database {
    /// MariaDB, or MySQL.
    #[value(alias = "mariadb")]
    Mysql,
    /// Postgres.
    #[value(alias = "postgresql")]
    Postgres,
    /// A SQLite file.
    Sqlite,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let database = args.database.unwrap_or(if args.servers { Database::Mysql } else { Database::Sqlite });
    if !args.servers && database != Database::Sqlite {
        let message = "only SQLite works without a server: add --servers (`make demo SERVERS=1 DATABASE=…`)";
        Args::command().error(clap::error::ErrorKind::ArgumentConflict, message).exit();
    }
    // Children and files go with what is dropped, whichever ends first.
    let agreed = tokio::select! {
        shown = show(&args, database) => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    match agreed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole demonstration. True if everything agreed.
async fn show(args: &Args, database: Database) -> anyhow::Result<bool> {
    let module = match &args.module {
        Some(module) => module.clone(),
        None => stage::built_module()?,
    };
    let seed = args.seed.unwrap_or_else(rand::random);
    let scenario = Scenario::new(args.orders, seed);
    let mut folder = tempfile::Builder::new().prefix("hapax-demo-").tempdir().context("making a folder")?;
    folder.disable_cleanup(args.keep);
    scenario::introduce(&scenario, args.servers);
    let stage = match args.servers {
        true => Stage::servers(folder.path(), database).await?,
        false => Stage::embedded(folder.path()).await?,
    };
    stage.set(&scenario, &module).await.context("preparing broker and database")?;
    println!("{}; seed {seed}; {}", stage.title(), folder.path().display());

    let played = play::play(&stage, &scenario).await;
    if played.is_err() {
        folder.disable_cleanup(true);
        eprintln!("\nThe config, the hosts' logs and the embedded files are kept in {}", folder.path().display());
    }
    let performance = played?;
    let found = report::gather(&stage, performance).await.context("looking at what came of it")?;
    let report = report::Report::new(&scenario, &found);
    println!("\n{}", report.table());
    let agreed = report.disagreements().is_empty();
    if agreed {
        println!("{}", report::closing_words(args.servers));
    } else {
        folder.disable_cleanup(true);
        println!("{}", report.complaint(seed, args.orders, folder.path()));
    }
    stage.close().await;
    Ok(agreed)
}
