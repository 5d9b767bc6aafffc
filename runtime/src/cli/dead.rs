//! `hapax dead`: dead letters, looked at, handled again, or given up.

mod act;
mod list;
mod moment;
mod show;

use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value as Json, json};

use super::error::{failure, usage};
use super::output::{tell, time};
use super::{ConfigArg, USAGE, open};
use crate::config::Config;
use crate::ledger::Ledger;
use crate::ledger::dead::Filter;
use crate::ledger::parked::{ParkedId, ParkedRow, Phase};
use crate::outcome::Reason;

pub(super) const HELP: &str = "\
Examples:
  hapax dead list --consumer reduce-stock --since 2h
  hapax dead show 0192f3a1
  hapax dead redrive --consumer reduce-stock --code db-down --rate 50/s
  hapax dead discard 0192f3a1-6c1e-7d0e-a2b5-1f0f5d1e7c11

Reasons: exhausted (attempts used up), permanent (the handler said never), contention (its statements kept losing \
against others), crashed (it killed its host too often), compensation-failed, no-id and bad-id (no usable message id), \
id-conflict (the id of another message), stale-copy (a copy of a dead letter that is gone).";

/// List, show, redrive or discard dead letters
///
/// A dead letter is a message that will not be handled unless somebody redrives it. SQL keeps it, body and all, until
/// then; a copy in a broker queue is only a notice.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(after_long_help = list::HELP)]
    List(list::Args),
    #[command(after_long_help = show::HELP)]
    Show(show::Args),
    #[command(after_long_help = act::REDRIVE_HELP)]
    Redrive(act::RedriveArgs),
    #[command(after_long_help = act::DISCARD_HELP)]
    Discard(act::DiscardArgs),
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::List(args) => list::run(args).await,
        Command::Show(args) => show::run(args).await,
        Command::Redrive(args) => act::redrive(args).await,
        Command::Discard(args) => act::discard(args).await,
    }
}

/// Which dead letters.
#[derive(Debug, Clone, PartialEq, clap::Args)]
struct Which {
    /// Of this consumer only
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// With this reason only
    #[arg(long, value_parser = Reason::ALL.map(Reason::as_str), hide_possible_values = true)]
    reason: Option<String>,
    /// With this failure code only
    #[arg(long)]
    code: Option<String>,
    /// Dead since this time or later: a duration ("2h": in the last two hours) or RFC 3339
    #[arg(long, value_name = "TIME", value_parser = moment::moment)]
    since: Option<i64>,
    /// Dead before this time
    #[arg(long, value_name = "TIME", value_parser = moment::moment)]
    until: Option<i64>,
}

impl Which {
    fn is_everything(&self) -> bool {
        let Self { consumer, reason, code, since, until } = self;
        (consumer, reason, code, since, until) == (&None, &None, &None, &None, &None)
    }

    fn filter(&self) -> Filter {
        Filter {
            consumer: self.consumer.clone(),
            reason: self.reason.clone(),
            code: self.code.clone(),
            since: self.since,
            until: self.until,
        }
    }
}

/// The ledgers that a config names, opened.
struct Books {
    config: Config,
    ledgers: Vec<Ledger>,
}

impl Books {
    /// Those of one consumer, or all. None: the config has errors, and they have been printed.
    async fn open(config: &ConfigArg, consumer: Option<&str>) -> anyhow::Result<Option<Self>> {
        let Some(config) = super::load(&config.config) else { return Ok(None) };
        let known = consumer.and_then(|name| config.consumers.iter().find(|consumer| consumer.name == name));
        if let (Some(name), None) = (consumer, known) {
            tell!("note: the config has no consumer `{name}`; looking for its dead letters in every database");
        }
        let mut ledgers = Vec::new();
        for place in open::places(&config) {
            if known.is_none_or(|consumer| consumer.database == *place.database) {
                ledgers.push(open::ledger(place.database).await?);
            }
        }
        Ok(Some(Self { config, ledgers }))
    }

    /// The one row whose key begins with these digits, with its body, and the ledger that holds it.
    async fn find(&self, prefix: &str) -> anyhow::Result<(&Ledger, ParkedRow)> {
        let (first, last) = range(prefix).ok_or_else(|| {
            usage(
                format!("`{prefix}` is not the id of a dead letter"),
                "ids are hexadecimal; `hapax dead list` shows them",
            )
        })?;
        let mut found = Vec::new();
        for ledger in &self.ledgers {
            let rows = ledger.parked_by_prefix(first, last).await.context("cannot look for the dead letter")?;
            found.extend(rows.into_iter().map(|row| (ledger, row)));
        }
        if let [(_, one), (_, other), ..] = found.as_slice() {
            let message =
                format!("`{prefix}` begins the ids of several parked messages, {} and {} among them", one.id, other.id);
            return Err(failure(message, "give more digits").into());
        }
        let hint = "`hapax dead list` shows what is there; messages that were redriven and handled are gone from it";
        found
            .pop()
            .ok_or_else(|| failure(format!("no parked message has an id that begins with `{prefix}`"), hint).into())
    }
}

/// The first and the last key that begin with these hexadecimal digits.
fn range(prefix: &str) -> Option<(ParkedId, ParkedId)> {
    let digits: String = prefix.chars().filter(|digit| *digit != '-').collect();
    if digits.is_empty() || digits.len() > 32 || !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let filled = |with: &str| {
        let whole = format!("{digits}{}", with.repeat(32 - digits.len()));
        u128::from_str_radix(&whole, 16).ok().map(|number| ParkedId(number.to_be_bytes()))
    };
    Some((filled("0")?, filled("f")?))
}

/// Calls of the handler that failed.
pub(super) fn attempts(row: &ParkedRow) -> u32 {
    if row.phase == Phase::Compensate { row.handler_attempts } else { row.attempts }
}

/// A row as one JSON object.
fn as_json(row: &ParkedRow) -> Json {
    let module = row.module.map(|digest| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    json!({
        "id": row.id.to_string(),
        "consumer": row.consumer,
        "message_id": row.message_id.as_ref().map(|id| id.as_str()),
        "state": row.state.as_str(),
        "reason": row.reason,
        "code": row.code,
        "error": row.error,
        "attempts": attempts(row),
        "crashes": row.crashes,
        "compensations": row.compensations,
        "generation": row.generation,
        "module": module,
        "exchange": row.message.exchange,
        "routing_key": row.message.routing_key,
        "properties": row.message.properties,
        "body_bytes": row.body_bytes,
        "received_at": time(row.created_at),
        "changed_at": time(row.updated_at),
    })
}

/// What a config with errors ends with.
fn refused() -> ExitCode {
    ExitCode::from(USAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range_of_keys() {
        let (first, last) = range("0192F3a1-6c").unwrap();
        assert_eq!(first.to_string(), "0192f3a1-6c00-0000-0000-000000000000");
        assert_eq!(last.to_string(), "0192f3a1-6cff-ffff-ffff-ffffffffffff");
        let whole = "0192f3a1-6c1e-7d0e-a2b5-1f0f5d1e7c11";
        assert_eq!(
            range(whole).map(|(first, last)| (first.to_string(), last == first)),
            Some((whole.to_owned(), true))
        );
        for bad in ["", "-", "xyz", "0192f3a1-6c1e-7d0e-a2b5-1f0f5d1e7c110", "+1"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
