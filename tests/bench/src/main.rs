//! Hapax against what people write by hand: every variant drains the same queue, in alternation, in one run.
//!
//! Nothing here measures an inner loop: Hapax is the released binary, fed through AMQP, and after every drain it is
//! checked that each order took effect exactly once.

mod drain;
mod report;
mod stage;
mod usage;
mod variant;
mod worker;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use report::{Report, Rounds};
use stage::Stage;
use workload::{MESSAGES, MESSAGES_QUICK};

/// Measure Hapax against what people write by hand
#[derive(Debug, Parser)]
struct Cli {
    /// Fewer messages: some minutes instead of most of an hour
    #[arg(long)]
    quick: bool,
    /// How often every variant runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only variants whose names contain this; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Messages of a drain, instead of the usual number
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Where the figures go, as JSON
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Where the page of results goes; nowhere if it is not given
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    #[command(subcommand)]
    worker: Option<Role>,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// What this program runs as while it measures others (not for people)
    #[command(hide = true)]
    Worker(WorkerArgs),
}

#[derive(Debug, clap::Args)]
struct WorkerArgs {
    #[arg(long)]
    amqp: String,
    #[arg(long, default_value = "")]
    redis: String,
    #[arg(long, default_value = "")]
    database: String,
    #[arg(long, default_value_t = 1)]
    workers: u16,
    #[arg(long)]
    counter: Option<PathBuf>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    BareBatch,
    BareEach,
    Classic,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut cli = Cli::parse();
    match cli.worker.take() {
        Some(Role::Worker(args)) => work(args).await,
        None => measure(cli).await,
    }
}

async fn work(args: WorkerArgs) -> Result<()> {
    let WorkerArgs { amqp, redis, database, workers, counter, kind } = args;
    if kind == Kind::Classic {
        return worker::classic::run(&amqp, &redis, &database, workers).await;
    }
    let counter = worker::Counter::to(counter.context("a bare consumer needs --counter")?);
    worker::bare::run(&amqp, kind == Kind::BareEach, counter).await
}

async fn measure(cli: Cli) -> Result<()> {
    let messages = cli.messages.unwrap_or(if cli.quick { MESSAGES_QUICK } else { MESSAGES });
    let is_wanted = |name: &str| cli.only.is_empty() || cli.only.iter().any(|part| name.contains(part.as_str()));
    let variants: Vec<_> = variant::all().into_iter().filter(|variant| is_wanted(&variant.name)).collect();
    ensure!(!variants.is_empty(), "no variant is called that");
    let module = module()?;
    eprintln!("Starting RabbitMQ, Redis, Postgres and MariaDB.");
    let stage = Stage::start(&std::env::temp_dir()).await?;
    let about = about(&stage).await?;
    for line in &about {
        eprintln!("  {line}");
    }
    let mut rounds = Rounds::new();
    for round in 1..=cli.rounds {
        for (number, variant) in variants.iter().enumerate() {
            let figures = drain::drain(&stage, variant, messages, &module).await;
            let figures = figures.with_context(|| format!("measuring {:?}", variant.name))?;
            eprintln!(
                "round {round}/{}, {:2}/{}: {:8.0} msg/s  {}",
                cli.rounds,
                number + 1,
                variants.len(),
                figures.rate,
                variant.name
            );
            rounds.entry(variant.name.clone()).or_default().push(figures);
        }
    }
    let report = Report::new(about, messages, &variants, &rounds);
    println!("{}", report.table());
    write(&cli.json, &serde_json::to_string_pretty(&report)?)?;
    if let Some(page) = &cli.page {
        write(page, &report.page())?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    eprintln!("written: {}", file.display());
    Ok(())
}

/// The handler that was built beside this program.
fn module() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    // This program lies in target/PROFILE.
    let target = exe.ancestors().nth(2).unwrap_or(Path::new("target"));
    let module = target.join("wasm32-wasip2/release/stock.wasm");
    ensure!(module.is_file(), "there is no {}: run `make bench`", module.display());
    Ok(module)
}

/// What a figure depends on besides the code.
async fn about(stage: &Stage) -> Result<Vec<String>> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success());
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let changed = said("git", &["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    let commit = said("git", &["rev-parse", "--short", "HEAD"]).unwrap_or_else(unknown);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|name| name.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let command: Vec<String> = std::env::args().skip(1).collect();
    let mut about = vec![
        format!("hapax-bench {}", command.join(" ")),
        format!("commit {commit}{}", if changed { ", with changes" } else { "" }),
        format!("{cores} cores ({}), shared by everything", cpu.unwrap_or("unknown")),
        said("uname", &["-sr"]).unwrap_or_else(unknown),
        said("rustc", &["--version"]).unwrap_or_else(unknown),
        stage.versions().join(", "),
    ];
    about.extend(stage.durability().await?);
    Ok(about)
}
