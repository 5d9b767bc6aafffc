//! Hapax against what people write by hand: every variant drains the same queue, in alternation, in one run.
//!
//! Nothing here measures an inner loop: Hapax is the released binary, fed through AMQP, and after every drain it is
//! checked that each order took effect exactly once.

mod about;
mod consumers;
mod drain;
mod extra;
mod fleet;
mod guest;
mod inbox;
mod latency;
mod plots;
mod programs;
mod progress;
mod repeats;
mod report;
mod results;
mod sizing;
mod stage;
mod stats;
mod told;

mod variant;
mod worker;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use extra::{Extra, Run};
use programs::Programs;
use report::{Report, Rounds};
use results::Results;
use stage::Stage;
use variant::Variant;
use worker::classic::Lock;
use workload::{MESSAGES, MESSAGES_QUICK};

/// Measure Hapax against what people write by hand
#[derive(Debug, Parser)]
struct Cli {
    /// Fewer messages, numbers of workers and seconds: some ten minutes instead of an hour and a half
    #[arg(long)]
    quick: bool,
    /// How often every variant runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only variants and sections whose names contain this; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Rows of the section "a large inbox", instead of the usual number: to try it out
    #[arg(long, value_name = "N", hide = true, default_value_t = inbox::ROWS)]
    inbox_rows: u64,
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
    LookUp,
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
    let bare = async |each| {
        let counter = worker::Counter::to(counter.context("a bare consumer needs --counter")?);
        worker::bare::run(&amqp, each, counter).await
    };
    match kind {
        Kind::BareBatch => bare(false).await,
        Kind::BareEach => bare(true).await,
        Kind::Classic => worker::classic::run(&amqp, &redis, &database, workers, Lock::Redis).await,
        Kind::LookUp => worker::classic::run(&amqp, &redis, &database, workers, Lock::None).await,
    }
}

async fn measure(cli: Cli) -> Result<()> {
    let messages = cli.messages.unwrap_or(if cli.quick { MESSAGES_QUICK } else { MESSAGES });
    let programs = Programs::find()?;
    let Wanted { variants, extras, left_out } = wanted(&cli, &programs);
    ensure!(!variants.is_empty() || !extras.is_empty(), "nothing is called that\n{}", left_out.join("\n"));
    programs.module(variant::Handler::Rust)?;
    eprintln!("Starting RabbitMQ, Redis, Postgres and MariaDB.");
    let stage = Stage::start(&std::env::temp_dir()).await?;
    let about = [about::about(&stage).await?, left_out].concat();
    for line in &about {
        eprintln!("  {line}");
    }
    let run = Run { stage: &stage, programs: &programs, messages, inbox_rows: cli.inbox_rows, quick: cli.quick };
    eprintln!(
        "{} drains in {} rounds, of {messages} messages at most, and {} sections.",
        Rounds::planned(&variants, cli.rounds),
        cli.rounds,
        extras.len()
    );
    let mut results = Results::new(about, variants, extras);
    for round in 1..=cli.rounds {
        results.measure_round(&run, round, cli.rounds).await;
        // After each round: a run of hours that somebody ends has still found something.
        save(&cli, &results.report(messages))?;
    }
    let report = results.report(messages);
    println!("{}", report.table());
    ensure!(report.failures.is_empty(), "{} of what was to be measured failed, see above", report.failures.len());
    Ok(())
}

/// What a run measures, and why it does not measure the rest.
struct Wanted {
    variants: Vec<Variant>,
    extras: Vec<Extra>,
    left_out: Vec<String>,
}

fn wanted(cli: &Cli, programs: &Programs) -> Wanted {
    let is_named = |name: &str| cli.only.iter().any(|part| name.contains(part.as_str()));
    let is_wanted = |name: &str| cli.only.is_empty() || is_named(name);
    let mut variants = Vec::new();
    let mut left_out = Vec::new();
    for variant in variant::all(cli.quick).into_iter().filter(|variant| is_wanted(&variant.name)) {
        match programs.missing(&variant) {
            None => variants.push(variant),
            Some(why) => left_out.push(format!("left out: {}: {why}", variant.name)),
        }
    }
    let is_wanted =
        |extra: &Extra| is_wanted(extra.title()) && (is_named(extra.title()) || !cli.quick || !extra.is_long());
    Wanted { variants, extras: Extra::ALL.into_iter().filter(is_wanted).collect(), left_out }
}

/// Writes a report where the command line wants it.
fn save(cli: &Cli, report: &Report) -> Result<()> {
    write(&cli.json, &serde_json::to_string_pretty(report)?)?;
    if let Some(page) = &cli.page {
        let plots = plots::all(report)?;
        for plot in &plots {
            write(&page.with_file_name(plots::FOLDER).join(plot.file), &plot.svg)?;
        }
        write(page, &report.page(&plots))?;
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
