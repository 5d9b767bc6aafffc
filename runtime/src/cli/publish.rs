//! `hapax publish`: messages from arguments, a file or JSON lines; confirmed, and said how many were.

mod line;
mod sender;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};

use super::error::{failure, usage};
use super::output::{count, say, tell};
use super::{ConfigArg, USAGE, open};
use crate::broker::{self, Outgoing};
use crate::message::{HeaderValue, MessageId, Properties};
use line::Line;
use sender::Sender;

pub(super) const HELP: &str = "\
Examples:
  hapax publish --queue reduce_stock_queue '{\"goods_id\": 1, \"quantity\": 2}'
  hapax publish --exchange shop --routing-key order.created --file order.json --id order-4711
  hapax publish -b embedded:broker.db -e shop -k order.created --lines < orders.jsonl

JSON lines (--lines) hold one object a message; every key may be left out, and what is left out comes from the options:
  {\"id\": \"order-1\", \"body\": {\"goods_id\": 1}, \"headers\": {\"tenant\": \"a\"}}
  body         text as it is, anything else as JSON (then of type application/json by default)
  body_base64  a body that is no text, instead
  id           the message id; a UUIDv7 where there is none
  headers, exchange, routing_key, content_type
  properties   AMQP properties as `hapax dead show --json` prints them

Messages are persistent and mandatory: one that no queue takes comes back, and is reported. Those whose answer is lost \
with the connection are published again, under the same id.

Exit codes: 0 every message was confirmed, 1 not all, or the input is wrong, 2 wrong usage or config.";

/// Publish messages, and say how many were confirmed
///
/// One message from the arguments or a file, or any number as JSON lines. To the broker of the config, or the one that
/// --broker names.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The message's body
    #[arg(conflicts_with_all = ["file", "lines"])]
    body: Option<String>,
    /// Take the body from a file; `-` for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "lines")]
    file: Option<PathBuf>,
    /// Take messages from JSON lines, from a file or standard input
    #[arg(short, long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    lines: Option<PathBuf>,
    /// To this queue, by way of the default exchange
    #[arg(short, long, value_name = "NAME", conflicts_with_all = ["exchange", "routing_key"])]
    queue: Option<String>,
    /// To this exchange
    #[arg(short, long, value_name = "NAME")]
    exchange: Option<String>,
    /// With this routing key
    #[arg(short = 'k', long, value_name = "KEY")]
    routing_key: Option<String>,
    /// The message id; a UUIDv7 by default
    #[arg(long, conflicts_with = "lines")]
    id: Option<String>,
    /// An application header; repeatable
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, HeaderValue)>,
    /// MIME type of the body
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Messages that wait for their confirms at once
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    /// The broker: amqp://, amqps:// or embedded:PATH; the config's otherwise. A password is safer in the variable or in
    /// the config than in the arguments, which other users of this machine can see
    #[arg(short, long, value_name = "URL", env = "HAPAX_BROKER", hide_env_values = true)]
    broker: Option<String>,
    #[command(flatten)]
    config: ConfigArg,
}

/// `NAME=VALUE`, a header of type text.
pub(super) fn header(text: &str) -> Result<(String, HeaderValue), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), HeaderValue::Text(value.to_owned()))),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let defaults = defaults(&args);
    if args.lines.is_none() && defaults.exchange.is_empty() && defaults.routing_key.is_empty() {
        let hint = "--queue NAME, or --exchange NAME and --routing-key KEY";
        return Err(usage("where should the message go?", hint).into());
    }
    let broker = match &args.broker {
        Some(url) => broker::open(url, &broker::Settings::default()).await.context("cannot open the broker")?,
        None => match super::load(&args.config.config) {
            Some(config) => open::broker(&config.broker).await?,
            None => return Ok(ExitCode::from(USAGE)),
        },
    };
    let mut sender = Sender::new(broker.publisher(), usize::from(args.window));
    let fed = feed(&args, &defaults, &mut sender).await;
    // What was read before the input went wrong is published.
    sender.flush().await;
    broker.close().await;
    fed?;
    let tally = sender.tally();
    match (&tally.single, tally.published) {
        (Some(id), 1) if tally.is_complete() => say!("confirmed: message {id}")?,
        _ => say!("{}: {}", count(tally.published, "message"), tally)?,
    }
    tally.reasons().for_each(|reason| tell!("  {reason}"));
    Ok(if tally.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What messages are like where nothing else is said.
fn defaults(args: &Args) -> Outgoing {
    Outgoing {
        exchange: args.exchange.clone().unwrap_or_default(),
        routing_key: args.queue.clone().or_else(|| args.routing_key.clone()).unwrap_or_default(),
        properties: Properties {
            content_type: args.content_type.clone(),
            headers: args.headers.clone(),
            ..Properties::default()
        },
        body: bytes::Bytes::new(),
    }
}

async fn feed(args: &Args, defaults: &Outgoing, sender: &mut Sender) -> anyhow::Result<()> {
    let Some(lines) = &args.lines else {
        return sender.add(single(args, defaults)?).await;
    };
    if lines == Path::new("-") {
        return feed_lines(BufReader::new(tokio::io::stdin()), defaults, sender).await;
    }
    let file = tokio::fs::File::open(lines).await.with_context(|| format!("cannot open {}", lines.display()))?;
    feed_lines(BufReader::new(file), defaults, sender).await
}

async fn feed_lines(input: impl AsyncBufRead + Unpin, defaults: &Outgoing, sender: &mut Sender) -> anyhow::Result<()> {
    let mut lines = input.lines();
    let mut number = 0_u64;
    loop {
        number += 1;
        let wrong = |why: anyhow::Error| {
            let hint = format!("the lines before it were published; go on behind it with `tail -n +{number}`");
            anyhow::Error::new(failure(format!("line {number} of the input is not a message"), hint).because(why))
        };
        let Some(text) = lines.next_line().await.map_err(|error| wrong(error.into()))? else { return Ok(()) };
        if !text.trim().is_empty() {
            let message = Line::parse(&text).and_then(|line| line.message(defaults)).map_err(wrong)?;
            sender.add(message).await?;
        }
    }
}

/// The message of the arguments.
fn single(args: &Args, defaults: &Outgoing) -> anyhow::Result<Outgoing> {
    let body = match (&args.body, &args.file) {
        (Some(body), _) => body.clone().into_bytes(),
        (None, Some(file)) => super::invoke::read(file)?,
        (None, None) => {
            return Err(usage("there is nothing to publish", "give a body, --file FILE or --lines").into());
        }
    };
    let mut message = Outgoing { body: body.into(), ..defaults.clone() };
    identify(&mut message, args.id.clone())
        .map_err(|error| usage("--id cannot be a message id", "1 to 255 bytes without NUL").because(error))?;
    Ok(message)
}

/// Gives a message its id and makes it persistent.
fn identify(message: &mut Outgoing, id: Option<String>) -> anyhow::Result<()> {
    let id = match id.or_else(|| message.properties.message_id.take()) {
        Some(id) => MessageId::new(id)?.to_string(),
        None => uuid::Uuid::now_v7().to_string(),
    };
    message.properties.message_id = Some(id);
    message.properties.delivery_mode = Some(2);
    Ok(())
}
