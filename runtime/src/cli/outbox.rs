//! `hapax outbox`: messages that the broker would not take.

use std::process::ExitCode;

use anyhow::Context as _;

use super::output::{count, rough, say, tell};
use super::{ConfigArg, USAGE, open};

pub(super) const HELP: &str = "\
Examples:
  hapax outbox stats reduce-stock
  hapax outbox retry reduce-stock

A message that the broker returns (no queue takes it) or refuses (no such exchange, no right) becomes undeliverable and \
stays in SQL while the others flow. `hapax explain CONSUMER ID` shows those of one message, with what the broker said.

Exit codes: 0 done, 1 failed, 2 wrong usage or config.";

/// Look after messages that wait to be published
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say how many of a consumer's messages wait to be published, or are undeliverable
    Stats(ConsumerArgs),
    /// Publish a consumer's undeliverable messages again, once the cause is mended
    Retry(ConsumerArgs),
}

#[derive(Debug, clap::Args)]
struct ConsumerArgs {
    /// The consumer
    consumer: String,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (Command::Stats(given) | Command::Retry(given)) = &args.command;
    let Some(config) = super::load(&given.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let consumer = open::consumer(&config, &given.consumer)?;
    let ledger = open::ledger(&consumer.database).await?;
    match &args.command {
        Command::Stats(_) => {
            let (waiting, age) = ledger.outbox_stats(&consumer.name).await.context("cannot look into the outbox")?;
            let oldest =
                |number, age| if number == 0 { String::new() } else { format!(", the oldest for {}", rough(age)) };
            let waits = if waiting == 1 { "waits" } else { "wait" };
            say!("{} {waits} to be published{}", count(waiting, "message"), oldest(waiting, age))?;
            let (stuck, age) =
                ledger.outbox_undeliverables(&consumer.name).await.context("cannot look into the outbox")?;
            let is = if stuck == 1 { "is" } else { "are" };
            say!("{} {is} undeliverable{}", count(stuck, "message"), oldest(stuck, age))?;
            if stuck > 0 {
                tell!(
                    "hint: no queue took them; bind one, then `hapax outbox retry {}`; the host's log and `hapax explain` \
                     name exchange and routing key",
                    consumer.name
                );
            }
        }
        Command::Retry(_) => {
            let again = ledger.outbox_requeue(&consumer.name).await.context("cannot change the outbox")?;
            say!("{} will be published again", count(again, "message"))?;
            if again > 0 {
                tell!("a running host does that within seconds; without one, the next that starts");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
