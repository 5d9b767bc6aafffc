//! The command line: one file for each subcommand.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage or config (nothing was started).

mod run;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;
use crate::guest::compile;

/// Consumes AMQP queues with WebAssembly handlers, so that every message takes effect once.
#[derive(Debug, Parser)]
#[command(name = "hapax", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run every configured consumer until SIGTERM or SIGINT.
    Run(run::Args),
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
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let done = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(args).await,
        }
    });
    // What is still running was given its time.
    runtime.shutdown_background();
    done.unwrap_or_else(|error| fail(&error))
}

/// Prints an error with its causes, on one line each.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  because: {cause}");
    }
    ExitCode::FAILURE
}

/// Where the config is looked for.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The config file.
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
        eprintln!("{diagnostic}\n");
    }
    config
}
