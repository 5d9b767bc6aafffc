//! `hapax explain`: what became of a message, in words.

use std::process::ExitCode;

use anyhow::Context as _;
use chrono::Utc;

use super::error::usage;
use super::output::{clean, count, cut, rough, say, when};
use super::{ConfigArg, USAGE, open};
use crate::config::ConsumerConfig;
use crate::ledger::dead::Known;
use crate::ledger::inbox::{InboxRow, Status};
use crate::ledger::outbox::OutboxEntry;
use crate::ledger::parked::{ParkedRow, Phase, State};
use crate::message::MessageId;
use crate::outcome::Reason;

pub(super) const HELP: &str = "\
Example:
  hapax explain reduce-stock order-4711

Exit codes: 0 explained, 1 nothing is known of the message (or the database failed), 2 wrong usage or config.";

/// Say in words what became of a message
///
/// From its rows in inbox, parked messages and outbox: whether it was handled, what it waits for, why it is dead, what it
/// has yet to publish.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The consumer
    consumer: String,
    /// The message id
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let id = MessageId::new(args.id.as_str());
    let id = id.map_err(|bad| usage("that cannot be a message id", "1 to 255 bytes without NUL").because(bad))?;
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let consumer = open::consumer(&config, &args.consumer)?;
    let ledger = open::ledger(&consumer.database).await?;
    let known = ledger.known(&consumer.name, &id).await.context("cannot look the message up")?;
    let outbox = ledger.outbox_of_message(&consumer.name, &id).await.context("cannot look into the outbox")?;
    say!("message {} of consumer {}\n", clean(id.as_str()), consumer.name)?;
    if known.inbox.is_none() && known.parked.is_empty() && outbox.is_empty() {
        say!(
            "Nothing is known of it. Either it never arrived, or it still waits in queue {},",
            clean(&consumer.queue)
        )?;
        say!(
            "or it was handled more than {} ago (`retention`), or it arrived under another id:",
            rough(consumer.retention)
        )?;
        say!("ids compare byte by byte, and this consumer finds them by {}.", rules(consumer))?;
        return Ok(ExitCode::FAILURE);
    }
    say!("{}", inbox(&known))?;
    for row in &known.parked {
        let owns = known.inbox.as_ref().is_some_and(|inbox| inbox.parked_id == Some(row.id));
        say!("\n{}", parked(row, owns, consumer))?;
    }
    say!("\n{}", published(&outbox, &known))?;
    Ok(ExitCode::SUCCESS)
}

fn rules(consumer: &ConsumerConfig) -> String {
    let rules: Vec<String> = consumer.message_id.iter().map(ToString::to_string).collect();
    rules.join(", then ")
}

/// What the inbox says.
fn inbox(known: &Known) -> String {
    let Some(InboxRow { status, digest, parked_id }) = &known.inbox else {
        return "The inbox does not have it yet: no transaction has claimed it.".to_owned();
    };
    let row = parked_id.map(|id| format!(" ({id})")).unwrap_or_default();
    match (status, digest) {
        (Status::Completed, None) => {
            "Imported: taken as handled elsewhere, so whatever comes under this id is acknowledged \
                                      and dropped."
                .to_owned()
        }
        (Status::Completed, Some(digest)) => format!(
            "Handled: its effects are committed. A duplicate (same id, body digest {digest:?}) is acknowledged and dropped; \
             another body under this id becomes a dead letter, id-conflict."
        ),
        (Status::Parked, _) => format!("Not finished: SQL holds the message itself, as a parked row{row}."),
        (Status::Dead, _) => {
            format!(
                "Dead: it will not be handled unless somebody redrives it{row}. Duplicates are acknowledged and dropped."
            )
        }
    }
}

/// What a parked row says.
fn parked(row: &ParkedRow, owns: bool, consumer: &ConsumerConfig) -> String {
    let mut words = vec![format!("Parked row {}, received {}.", row.id, when(row.created_at))];
    words.push(match row.state {
        State::Retry => waiting(row, consumer),
        State::Running => {
            let since = row.taken_at.map(when).unwrap_or_default();
            let what = if row.phase == Phase::Compensate { "its compensation" } else { "it" };
            format!("A host has been running {what} since {since}.")
        }
        State::Deferred => format!(
            "A delivery put off, because another one under this id was being handled; due {}. It counts no attempt.",
            due(row)
        ),
        State::Dead => dead(row, owns),
        State::Discarded => {
            format!("Discarded {}: given up for good, and deleted after `retention`.", when(row.updated_at))
        }
    });
    if let Some(failure) = row.failure() {
        let code = failure.code.map(|code| format!("[{}] ", clean(&code))).unwrap_or_default();
        let by = row.module.map(|module| format!(" (module {})", hex(&module))).unwrap_or_default();
        words.push(format!("Its last failure{by}: {code}{}", cut(&clean(&failure.message), 400)));
    }
    if row.crashes > 0 {
        words.push(format!("Hosts that were lost while they ran it: {}.", row.crashes));
    }
    if row.generation > 0 {
        words.push(format!("It was redriven {}.", count(row.generation.into(), "time")));
    }
    if row.state == State::Dead {
        let id = row.id;
        words.push(match row.compensations {
            0 => format!("`hapax dead show {id}` shows it, `hapax dead redrive {id}` has it handled again."),
            _ => format!(
                "`hapax dead show {id}` shows it. Handled again (`hapax dead redrive {id} --force`), it would take effect \
                 on top of its compensation."
            ),
        });
    }
    words.join("\n  ")
}

fn due(row: &ParkedRow) -> String {
    match row.due_at {
        Some(due) if due <= Utc::now().timestamp_millis() => format!("{}: as soon as a host takes it", when(due)),
        Some(due) => when(due),
        None => "at no time".to_owned(),
    }
}

fn waiting(row: &ParkedRow, consumer: &ConsumerConfig) -> String {
    let next = row.attempts.saturating_add(1);
    let most = consumer.retry.max_attempts;
    match row.phase {
        Phase::Compensate => {
            let failed = count(row.handler_attempts.into(), "failed attempt");
            let why = reason(row.reason.as_deref());
            format!(
                "It will not be handled ({why}; {failed}). Its compensation is to run, attempt {next}, due {}.",
                due(row)
            )
        }
        Phase::Handle | Phase::Deliver => format!("Waits for attempt {next} of {most}, due {}.", due(row)),
    }
}

fn dead(row: &ParkedRow, owns: bool) -> String {
    let why = reason(row.reason.as_deref());
    let since = when(row.updated_at);
    if !owns {
        return format!("A dead letter of its own since {since}: {why}. It does not stand for this id.");
    }
    let failed = count(super::dead::attempts(row).into(), "failed attempt");
    let compensated = match (row.phase, row.compensations) {
        (Phase::Compensate, 1..) => " Its compensation took effect.",
        (Phase::Compensate, 0) => " Its compensation did not take effect.",
        (_, 1..) => " It had been compensated before it was redriven.",
        _ => "",
    };
    format!("A dead letter since {since}: {why}, after {failed}.{compensated}")
}

/// A reason in words.
fn reason(reason: Option<&str>) -> String {
    let Some(reason) = reason else { return "no reason is recorded".to_owned() };
    let known = Reason::ALL.into_iter().find(|known| known.as_str() == reason);
    let words = match known {
        Some(Reason::Exhausted) => "the attempts are used up",
        Some(Reason::Permanent) => "the handler said that it never will handle it",
        Some(Reason::Contention) => "its statements kept losing against others",
        Some(Reason::Crashed) => "its hosts were lost too often while they ran it",
        Some(Reason::CompensationFailed) => "its compensation failed for good",
        Some(Reason::NoId) => "no rule found a message id",
        Some(Reason::BadId) => "its message id cannot be used",
        Some(Reason::IdConflict) => "the same id had come with another body",
        Some(Reason::StaleCopy) => "the dead letter that it is a copy of is gone",
        None => return clean(reason),
    };
    format!("{reason}, {words}")
}

/// What the outbox says.
fn published(outbox: &[OutboxEntry], known: &Known) -> String {
    if outbox.is_empty() {
        let handled = known.inbox.as_ref().is_some_and(|inbox| inbox.status == Status::Completed);
        return match handled {
            true => "Outbox: nothing waits. What it published, if anything, the broker has confirmed.".to_owned(),
            false => "Outbox: nothing waits.".to_owned(),
        };
    }
    let mut words = vec![format!("Outbox: {} not confirmed yet.", count(outbox.len() as u64, "message"))];
    for entry in outbox {
        let outgoing = &entry.row.outgoing;
        let id = outgoing.properties.message_id.as_deref().map_or("without an id".to_owned(), clean);
        let what = if entry.row.parked_id.is_some() { "the dead letter's copy" } else { "message" };
        let to =
            format!("exchange \"{}\", routing key \"{}\"", clean(&outgoing.exchange), clean(&outgoing.routing_key));
        let failed = count(entry.attempts.into(), "failed publication");
        words.push(format!("{what} {id} to {to}, made {}: {failed}", when(entry.created_at)));
        let error = entry.error.as_deref().map(|error| format!(": {}", cut(&clean(error), 200))).unwrap_or_default();
        words.push(match entry.undeliverable {
            true => format!("  undeliverable{error}; once that is mended, `hapax outbox retry {}`", entry.consumer),
            false => format!("  next publication {}{error}", when(entry.next_at)),
        });
    }
    words.join("\n  ")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
