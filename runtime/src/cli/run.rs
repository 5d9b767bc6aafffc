//! `hapax run`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use tokio::signal::unix::{Signal, SignalKind, signal};
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

Signals: SIGTERM and SIGINT stop it in good order: no new deliveries, what has begun is finished within `drain`, the \
rest is given back. A second signal ends it at once; nothing is lost by that either.

Exit codes: 0 stopped in good order, 1 could not start, 2 the config has errors; 130 (SIGINT) or 143 (SIGTERM) ended by \
a second signal.";

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
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(heed(signals, stop.clone()));
    tokio::spawn(metrics.clone().keep_up(stop.clone()));
    host::run(config, metrics, stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// SIGTERM and SIGINT: the first one stops the host in good order, the second one ends the process.
async fn heed((mut terminate, mut interrupt): (Signal, Signal), stop: CancellationToken) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => ("SIGTERM", SignalKind::terminate()),
            _ = interrupt.recv() => ("SIGINT", SignalKind::interrupt()),
        }
    };
    let (name, _) = next().await;
    tracing::info!("{name}: finishing what has begun; a second signal ends at once");
    stop.cancel();
    let (name, signal) = next().await;
    // Asked twice: what is unfinished is redelivered or rescued, as after a crash.
    tracing::warn!("{name}: ending at once; what is unfinished will be run again");
    std::process::exit(128 + signal.as_raw_value());
}
