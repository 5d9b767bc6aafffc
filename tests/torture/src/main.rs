//! The torture: hosts on private servers handle orders that come twice, fail, trap and hang, while a nemesis kills,
//! freezes, cuts and floods everything. Then a judge who trusts nobody reads the books.
//!
//! `make torture` runs it.

mod aftermath;
mod books;
mod campaign;
mod checker;
mod fleet;
mod hoarding;
mod nemesis;
mod order;
mod producer;
mod record;
mod recovery;
mod report;
mod run;
mod soak;
mod stage;
mod wire;
mod witness;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use hapax::sabotage::Breach;
use hapax_tests::servers::SmallDisk;

use record::Line;
use run::Task;
use stage::{BrokerKind, DatabaseKind, Setting};

/// Torture Hapax, and see whether every message takes effect once
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Kill each server and a host, and measure how long messages stand still
    Recovery(RecoveryArgs),
    /// Torture until the record holds what a campaign is to reach; goes on where it was left
    Campaign(campaign::Args),
}

#[derive(Debug, clap::Args)]
struct RecoveryArgs {
    /// How often each of them is killed
    #[arg(long, value_name = "N", default_value_t = 9)]
    times: usize,
    #[command(flatten)]
    common: CommonArgs,
}

/// What both kinds of work are told.
#[derive(Debug, clap::Args)]
struct CommonArgs {
    /// The same seed draws the same orders and faults; by default one by chance
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[arg(long, value_enum, default_value_t = DatabaseKind::Postgres)]
    database: DatabaseKind,
    /// Where the result goes as JSON, on one line, after those that are there
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// How long the nemesis rages; mending and judging come on top
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    #[command(flatten)]
    common: CommonArgs,
    #[arg(long, value_enum, default_value_t = BrokerKind::Amqp)]
    broker: BrokerKind,
    /// Hosts on the same queues; a file has one
    #[arg(long, value_name = "N", default_value_t = 2)]
    hosts: usize,
    /// Orders a second at most; by default as many as are handled
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Spare the first host, strike seldom, and watch what that host uses
    #[arg(long)]
    soak: bool,
    /// Only faults in whose names this is, as the report names them
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Break an invariant on purpose: then the run must fail, or it proves nothing
    #[arg(long, value_name = "NAME", value_parser = breach)]
    breach: Option<Breach>,
}

fn breach(name: &str) -> Result<Breach, String> {
    let names: Vec<&str> = Breach::ALL.iter().map(|breach| breach.name()).collect();
    Breach::of(name).ok_or_else(|| format!("it is one of {}", names.join(", ")))
}

#[tokio::main]
async fn main() -> ExitCode {
    // What its own clients meet is what it does to them.
    let own = tracing_subscriber::EnvFilter::new("off,hapax_torture=info");
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_target(false)
        .with_ansi(is_terminal)
        .with_env_filter(own)
        .with_writer(std::io::stderr)
        .init();
    match torture(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::from(2)
        }
    }
}

/// 0 for a clean run, 1 for violations.
async fn torture(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Some(Command::Campaign(args)) => campaign::run(&args).await,
        Some(Command::Recovery(args)) => measure_recovery(args).await,
        None => run_once(cli.run).await,
    }
}

async fn measure_recovery(RecoveryArgs { times, common }: RecoveryArgs) -> Result<ExitCode> {
    let seed = common.seed.unwrap_or_else(rand::random);
    let setting = Setting { database: common.database, broker: BrokerKind::Amqp, small_disk: false };
    let (servers, found) = recovery::measure(setting, seed, times).await?;
    println!("{servers}\n{}", recovery::table(&found));
    if let Some(path) = common.json {
        record::append(&path, &Line::of_recovery(seed, setting, servers, &found)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn run_once(cli: RunArgs) -> Result<ExitCode> {
    let seed = cli.common.seed.unwrap_or_else(rand::random);
    // Writes to a disk in memory take no time, so half of all runs are on a true one.
    let small_disk = seed.is_multiple_of(2) && SmallDisk::is_possible();
    let task = Task {
        seed,
        time: Duration::from_secs(cli.seconds),
        setting: Setting { database: cli.common.database, broker: cli.broker, small_disk },
        hosts: cli.hosts.max(1),
        breach: cli.breach,
        only: cli.only,
        rate: cli.rate,
        soak: cli.soak,
    };
    println!("{}", report::title(&task));
    let verdict = run::run(&task).await.with_context(|| format!("seed {}", task.seed))?;
    print!("{}", report::text(&task, &verdict));
    if let Some(path) = cli.common.json {
        record::append(&path, &Line::of_run(&task, &verdict)?)?;
    }
    Ok(if verdict.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
