//! `hapax run`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::ConfigArg;
use crate::config::LogFormat;
use crate::host;
use crate::telemetry::logging::{self, Format, LogSettings};
use crate::telemetry::metrics::Metrics;

pub(super) const HELP: &str = "\
Examples:
  hapax run -c hapax.toml
  HAPAX_LOG=info,hapax::broker=debug hapax run -c hapax.toml --log json

Signals: SIGTERM and SIGINT stop it in good order: no new deliveries, what has begun is finished within `drain`, the
rest is given back. The same signal again ends it at once; nothing is lost by that either.

Exit codes: 0 stopped in good order, 1 could not start, 2 the config has errors.";

/// Run every configured consumer until SIGTERM or SIGINT
///
/// Starts in any order with its servers: what is not there yet (broker, queue, lock, database, module) is waited for, and
/// the log says for what. A module whose file changes is swapped while messages flow; one that does not load changes
/// nothing.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// How logs look: `text` or `json`; `log.format` of the config otherwise
    #[arg(long, value_name = "FORMAT")]
    log: Option<Format>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(super::USAGE)) };
    let format = args.log.unwrap_or(match config.log.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
        LogFormat::Auto if std::io::stderr().is_terminal() => Format::Text,
        LogFormat::Auto => Format::Json,
    });
    logging::init(&LogSettings { format, filter: Some(config.log.level.clone()) })?;
    let metrics = Metrics::install()?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let signalled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: finishing what has begun"),
            _ = interrupt.recv() => tracing::info!("SIGINT: finishing what has begun; once more ends at once"),
        }
        signalled.cancel();
        interrupt.recv().await;
        // Asked twice: what is unfinished is redelivered or rescued, as after a crash.
        std::process::exit(130);
    });
    host::run(config, metrics, stop).await?;
    Ok(ExitCode::SUCCESS)
}
