//! The command line: one file for each subcommand.
//!
//! Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage or
//! config (nothing was started).

mod check;
mod dead;
mod error;
mod explain;
mod import_ids;
mod invoke;
mod migrate;
mod new;
mod open;
mod outbox;
mod output;
mod publish;
mod run;
mod topology;
mod version;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::guest::compile;
use crate::telemetry::logging::{self, Format, LogSettings};
use output::tell;

/// What the wrong usage of a command, or a config that cannot be used, ends with.
const USAGE: u8 = 2;

const AFTER_HELP: &str = "\
Start here:
  hapax new my-handler       a handler in Rust, with a test
  hapax invoke M.wasm …      run it once, on SQLite, and see what it did
  hapax check -c hapax.toml  what is wrong with a config and its modules
  hapax run -c hapax.toml    consume

Exit codes of every command:
  0  done
  1  failed; the lines `error:`, `because:` and `hint:` on standard error say why, and what to do
  2  wrong usage, or a config that cannot be used; nothing was started

HAPAX_LOG sets what is logged to standard error: error, warn, info, debug, or by module (warn,hapax::lock=debug).";

/// Consumes AMQP queues with WebAssembly handlers, so that every message takes effect once
#[derive(Debug, Parser)]
#[command(name = "hapax", version = version::SHORT, long_version = version::LONG, about, max_term_width = 110)]
#[command(after_long_help = AFTER_HELP, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(after_long_help = run::HELP)]
    Run(run::Args),
    #[command(after_long_help = check::HELP)]
    Check(check::Args),
    #[command(after_long_help = new::HELP)]
    New(new::Args),
    #[command(after_long_help = invoke::HELP)]
    Invoke(Box<invoke::Args>),
    #[command(after_long_help = publish::HELP)]
    Publish(Box<publish::Args>),
    #[command(after_long_help = dead::HELP)]
    Dead(Box<dead::Args>),
    #[command(after_long_help = explain::HELP)]
    Explain(explain::Args),
    #[command(after_long_help = outbox::HELP)]
    Outbox(outbox::Args),
    #[command(after_long_help = migrate::HELP)]
    Migrate(migrate::Args),
    #[command(after_long_help = topology::HELP)]
    Topology(topology::Args),
    #[command(after_long_help = import_ids::HELP)]
    ImportIds(import_ids::Args),
}

/// Parses the command line and carries it out.
pub fn main() -> ExitCode {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|first| first == compile::CHILD_COMMAND) {
        return compile::child_main(args);
    }
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return error::report(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let done = runtime.block_on(carry_out(cli.command));
    // What is still running was given its time.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| error::report(&error))
}

async fn carry_out(command: Command) -> anyhow::Result<ExitCode> {
    if !matches!(command, Command::Run(_)) {
        // `run` reads its own settings; here a person is looking at the results of one command.
        let filter = if matches!(command, Command::Invoke(_)) { "warn,hapax::guest=info" } else { "warn" };
        logging::init(&LogSettings { format: Format::Text, filter: Some(filter.to_owned()) })?;
    }
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Check(args) => check::run(args).await,
        Command::New(args) => new::run(&args),
        Command::Invoke(args) => invoke::run(*args).await,
        Command::Publish(args) => publish::run(*args).await,
        Command::Dead(args) => dead::run(*args).await,
        Command::Explain(args) => explain::run(args).await,
        Command::Outbox(args) => outbox::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Topology(args) => topology::run(&args),
        Command::ImportIds(args) => import_ids::run(args).await,
    }
}

/// Where the config is looked for.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The config file
    #[arg(short, long, value_name = "FILE", default_value = "hapax.toml", env = "HAPAX_CONFIG")]
    config: PathBuf,
}

/// Loads a config and prints what is wrong with it. None: it has errors, and they have been printed.
fn load(path: &Path) -> Option<Config> {
    let (config, diagnostics) = match Config::load(path) {
        Ok((config, warnings)) => (Some(config), warnings),
        Err(errors) => (None, errors),
    };
    for diagnostic in &diagnostics {
        tell!("{diagnostic}\n");
    }
    config
}
