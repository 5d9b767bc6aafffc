//! What a call came to, for people.

use std::path::Path;
use std::time::Duration;

use super::super::output::{body, clean, clean_lines, count, cut, indented, param, say, size, took};
use super::record::{Answer, Statement};
use crate::broker::Outgoing;
use crate::guest::{Advice, Call, Failure, Finished, Phase, Verdict};
use crate::ledger::database::DbError;

/// Statements and messages shown in full; more are counted.
const SHOWN: usize = 50;

/// Everything that there is to say of a call.
pub(super) struct Outcome {
    /// What it came to.
    pub(super) finished: Finished,
    /// What it sent to the database.
    pub(super) statements: Vec<Statement>,
    /// Its effects remain.
    pub(super) committed: bool,
}

/// Prints it.
pub(super) fn print(module: &Path, call: &Call, outcome: &Outcome, loaded: Duration) -> anyhow::Result<()> {
    let Outcome { finished, statements, committed } = outcome;
    let function = if call.phase == Phase::Handle { "handle" } else { "compensate" };
    let digest: String = finished.module.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    say!("module   {} ({digest})", module.display())?;
    let bytes = size(call.message.body.len() as u64);
    say!("message  {} ({bytes}), attempt {} of {}", clean(call.id.as_str()), call.attempt, call.max_attempts)?;
    verdict(&finished.verdict, function, call)?;
    say!("time     {} (and {} to load the module)", took(finished.elapsed), took(loaded))?;
    if let Some(instance) = &finished.instance {
        say!("memory   {}", size(instance.memory()))?;
    }
    sql(statements)?;
    outbox(&finished.outbox, &finished.verdict)?;
    say!("")?;
    match (committed, &finished.verdict) {
        (true, _) => say!("committed, with the record that message {} is handled", clean(call.id.as_str())),
        (false, Verdict::Ok) => say!("rolled back: nothing of this remains"),
        (false, _) => say!("rolled back, as a failure always is: nothing of this remains"),
    }
}

fn verdict(verdict: &Verdict, function: &str, call: &Call) -> anyhow::Result<()> {
    match verdict {
        Verdict::Ok => say!("result   {function} returned ok"),
        Verdict::Failed(failure) => failed(failure, function, call),
        Verdict::Contention(error) => {
            say!("result   {function} met another transaction: {}", database(error))?;
            say!("then     it would be run again at once, uncounted")
        }
        // Nothing runs ahead here: every statement is shown with its own answer.
        Verdict::Refuted(_) => say!("result   {function} would be called again"),
        Verdict::Infrastructure(error) => {
            say!("result   {function} could not go on: {}", database(error))?;
            say!("then     it would be given back, uncounted, and the consumer would pause")
        }
    }
}

fn failed(failure: &Failure, function: &str, call: &Call) -> anyhow::Result<()> {
    let code = failure.code.as_deref().map(|code| format!(" [{}]", cut(&clean(code), 100))).unwrap_or_default();
    say!("result   {function} failed{code}: {}", cut(&clean(&failure.message), 2_000))?;
    say!("then     {}", consequence(failure, call))?;
    if let Some(detail) = &failure.detail {
        say!("detail\n{}", indented(&clean_lines(&cut(detail, 8_000)), 9))?;
    }
    Ok(())
}

/// What `hapax run` would do about a failure.
fn consequence(failure: &Failure, call: &Call) -> String {
    let compensating = call.phase != Phase::Handle;
    let last = call.attempt >= call.max_attempts;
    let end =
        if compensating { "a dead letter, compensation-failed" } else { "compensated if it can be, and a dead letter" };
    match failure.advice {
        Advice::Never => format!("it would not be tried again: {end}"),
        _ if last => format!("that was its last attempt: {end}"),
        Advice::After(delay) => format!("it would be tried again after {}", humantime::format_duration(delay)),
        Advice::ByPolicy => "it would be tried again when the retry policy says".to_owned(),
    }
}

fn database(error: &DbError) -> String {
    clean(&error.to_string())
}

fn sql(statements: &[Statement]) -> anyhow::Result<()> {
    say!("\nsql: {}", count(statements.len() as u64, "statement"))?;
    for (index, statement) in statements.iter().take(SHOWN).enumerate() {
        say!("{:>4}  {}", index + 1, clean(&statement.sql))?;
        if !statement.params.is_empty() {
            let params: Vec<String> = statement.params.iter().map(param).collect();
            say!("      with {}", params.join(", "))?;
        }
        let answer = match &statement.answer {
            Answer::Changed(rows) => format!("{} changed", count(*rows, "row")),
            Answer::Read(rows) => format!("{} read", count(*rows as u64, "row")),
            Answer::Failed(error) => format!("failed: {}", database(error)),
        };
        say!("      {answer}, {}", took(statement.elapsed))?;
    }
    more(statements.len())
}

fn outbox(messages: &[Outgoing], verdict: &Verdict) -> anyhow::Result<()> {
    let dropped = if *verdict == Verdict::Ok { "" } else { " (a failed attempt sends none)" };
    say!("\noutbox: {}{dropped}", count(messages.len() as u64, "message"))?;
    for (index, message) in messages.iter().take(SHOWN).enumerate() {
        let properties = &message.properties;
        let exchange = clean(&message.exchange);
        say!("{:>4}  to exchange \"{exchange}\" with routing key \"{}\"", index + 1, clean(&message.routing_key))?;
        let id = properties.message_id.as_deref().map(clean).unwrap_or_default();
        let kind = properties.content_type.as_deref().map(|kind| format!("{}, ", clean(kind))).unwrap_or_default();
        say!("      id {id}, {kind}{}", size(message.body.len() as u64))?;
        for (name, value) in &properties.headers {
            say!("      header {} = {}", clean(name), clean(&format!("{value:?}")))?;
        }
        say!("      {}", body(&message.body, 400))?;
    }
    more(messages.len())
}

fn more(all: usize) -> anyhow::Result<()> {
    match all.checked_sub(SHOWN) {
        Some(more) if more > 0 => say!("      … and {more} more"),
        _ => Ok(()),
    }
}
