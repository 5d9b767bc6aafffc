//! `hapax dead show`.

use std::process::ExitCode;

use base64::Engine as _;
use serde_json::json;

use super::super::ConfigArg;
use super::super::output::{clean, clean_lines, count, indented, raw, say, size, when};
use super::{Books, as_json, attempts, refused};
use crate::ledger::parked::{ParkedRow, Phase, State};
use crate::message::HeaderValue;

/// Bytes of a body that are shown.
const SHOWN: usize = 4 << 10;

pub(super) const HELP: &str = "\
Examples:
  hapax dead show 0192f3a1
  hapax dead show 0192f3a1 --body > body.json
  hapax dead show 0192f3a1 --json

Exit codes: 0 shown, 1 there is no such message, or several begin so, 2 wrong usage or config.";

/// Show all that is known of a dead letter: failure, properties, body
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its id, or enough of its beginning
    id: String,
    /// Its body alone, as it is
    #[arg(long, conflicts_with = "json")]
    body: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(books) = Books::open(&args.config, None).await? else { return Ok(refused()) };
    let (_, row) = books.find(&args.id).await?;
    if args.body {
        raw(&row.message.body)?;
    } else if args.json {
        say!("{:#}", whole(&row))?;
    } else {
        print(&row)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// With the body, as `hapax publish --lines` takes it.
fn whole(row: &ParkedRow) -> serde_json::Value {
    let mut object = as_json(row);
    match std::str::from_utf8(&row.message.body) {
        Ok(text) => object["body"] = json!(text),
        Err(_) => {
            object["body_base64"] = json!(base64::engine::general_purpose::STANDARD.encode(&row.message.body));
        }
    }
    object
}

fn print(row: &ParkedRow) -> anyhow::Result<()> {
    say!("id          {}", row.id)?;
    say!("consumer    {}", clean(&row.consumer))?;
    say!("message id  {}", row.message_id.as_ref().map_or("none that is usable".to_owned(), |id| clean(id.as_str())))?;
    say!("state       {}", state(row))?;
    if let Some(reason) = &row.reason {
        say!("reason      {}", clean(reason))?;
    }
    say!("attempts    {}", attempts(row))?;
    if row.phase == Phase::Compensate {
        let failed = format!("{} failed", count(row.attempts.into(), "attempt"));
        say!("compensated {}", if row.compensations > 0 { "yes" } else { &failed })?;
    }
    if row.crashes > 0 {
        say!("crashes     {}", row.crashes)?;
    }
    if row.generation > 0 {
        say!("redriven    {}", count(row.generation.into(), "time"))?;
    }
    if let Some(module) = row.module {
        say!("module      {}", module.iter().map(|byte| format!("{byte:02x}")).collect::<String>())?;
    }
    say!("received    {}", when(row.created_at))?;
    say!("changed     {}", when(row.updated_at))?;
    failure(row)?;
    message(row)
}

fn state(row: &ParkedRow) -> String {
    match (row.state, row.due_at) {
        (State::Dead, _) => "dead".to_owned(),
        (state, Some(due)) => format!("{}, due {}", state.as_str(), when(due)),
        (state, None) => state.as_str().to_owned(),
    }
}

fn failure(row: &ParkedRow) -> anyhow::Result<()> {
    let Some(failure) = row.failure() else { return Ok(()) };
    let code = failure.code.map(|code| format!("[{}] ", clean(&code))).unwrap_or_default();
    say!("\nfailure     {code}{}", clean(&failure.message))?;
    match failure.detail {
        Some(detail) => say!("{}", indented(&clean_lines(&detail), 12)),
        None => Ok(()),
    }
}

fn message(row: &ParkedRow) -> anyhow::Result<()> {
    let message = &row.message;
    let properties = &message.properties;
    say!("\nexchange    \"{}\"", clean(&message.exchange))?;
    say!("routing key \"{}\"", clean(&message.routing_key))?;
    let named = [
        ("content-type", &properties.content_type),
        ("content-encoding", &properties.content_encoding),
        ("correlation-id", &properties.correlation_id),
        ("reply-to", &properties.reply_to),
        ("expiration", &properties.expiration),
        ("message-id", &properties.message_id),
        ("type", &properties.kind),
        ("user-id", &properties.user_id),
        ("app-id", &properties.app_id),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            say!("property    {name} = {}", clean(value))?;
        }
    }
    let numbers = [
        ("delivery-mode", properties.delivery_mode.map(u64::from)),
        ("priority", properties.priority.map(u64::from)),
        ("timestamp", properties.timestamp),
    ];
    for (name, value) in numbers {
        if let Some(value) = value {
            say!("property    {name} = {value}")?;
        }
    }
    for (name, value) in &properties.headers {
        say!("header      {} = {}", clean(name), header(value))?;
    }
    say!("body        {}", size(row.body_bytes))?;
    let shown = &message.body[..message.body.len().min(SHOWN)];
    match std::str::from_utf8(shown) {
        Ok(text) => say!("{}", indented(&clean_lines(text), 12))?,
        // Cut inside a character, or no text at all.
        Err(error) if error.error_len().is_none() && message.body.len() > SHOWN => {
            say!("{}", indented(&clean_lines(&String::from_utf8_lossy(&shown[..error.valid_up_to()])), 12))?;
        }
        Err(_) => say!("            (no text; --body writes it as it is)")?,
    }
    if message.body.len() > SHOWN {
        say!("            … (--body writes all of it)")?;
    }
    Ok(())
}

fn header(value: &HeaderValue) -> String {
    match value {
        HeaderValue::Null => "null".to_owned(),
        HeaderValue::Text(text) => format!("\"{}\"", clean(text)),
        HeaderValue::Integer(number) => number.to_string(),
        HeaderValue::Float(number) => number.to_string(),
        HeaderValue::Boolean(flag) => flag.to_string(),
        HeaderValue::Bytes(bytes) => count(bytes.len() as u64, "byte"),
        HeaderValue::Timestamp(seconds) => format!("{seconds} (seconds since 1970)"),
        HeaderValue::Decimal(text) | HeaderValue::Json(text) => clean(text),
    }
}
