//! `hapax dead list`.

use std::process::ExitCode;

use super::super::ConfigArg;
use super::super::output::{clean, count, cut, say, table, tell, time, trimmed};
use super::{Books, Which, as_json, attempts, refused};
use crate::ledger::parked::ParkedRow;

/// Rows of one query.
const PAGE: usize = 500;

pub(super) const HELP: &str = "\
Examples:
  hapax dead list
  hapax dead list --consumer reduce-stock --reason permanent --since 2026-01-31
  hapax dead list --json --limit 100000 | jq -r 'select(.code == \"out-of-stock\") | .message_id'

Exit codes: 0 listed, also when there are none; 1 failed, 2 wrong usage or config.";

/// List dead letters, oldest first
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    which: Which,
    /// At most so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line, instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(books) = Books::open(&args.config, args.which.consumer.as_deref()).await? else { return Ok(refused()) };
    let filter = args.which.filter();
    let mut rows = Vec::new();
    let mut more = false;
    for ledger in &books.ledgers {
        let mut after = None;
        loop {
            // One more than wanted tells whether there are more.
            let wanted = (args.limit - rows.len() + 1).min(PAGE);
            let page = ledger.dead_letters(&filter, after, wanted).await?;
            after = page.last().map(|row| row.id);
            let is_last = page.len() < wanted;
            let room = args.limit - rows.len();
            more |= page.len() > room;
            rows.extend(page.into_iter().take(room));
            if is_last || more {
                break;
            }
        }
    }
    print(&rows, args.json)?;
    if more {
        tell!("the first {} are shown; --limit N shows more", rows.len());
    } else if rows.is_empty() && !args.json {
        tell!("no dead letters{}", if args.which.is_everything() { "" } else { " like that" });
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints rows as a table, or as JSON lines.
pub(super) fn print(rows: &[ParkedRow], as_json_lines: bool) -> anyhow::Result<()> {
    if as_json_lines {
        return rows.iter().try_for_each(|row| say!("{}", as_json(row)));
    }
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = table(&["ID", "CONSUMER", "MESSAGE ID", "REASON", "CODE", "ATTEMPTS", "DIED", "ERROR"]);
    for row in rows {
        let text = |text: Option<&str>, characters| cut(&clean(text.unwrap_or("-")), characters);
        let error = row.error.as_deref().and_then(|error| error.lines().next());
        table.add_row([
            row.id.to_string(),
            clean(&row.consumer),
            text(row.message_id.as_ref().map(|id| id.as_str()), 48),
            compensated(row),
            text(row.code.as_deref(), 32),
            attempts(row).to_string(),
            time(row.updated_at),
            text(error, 100),
        ]);
    }
    say!("{}", trimmed(&table))?;
    say!("{}", count(rows.len() as u64, "dead letter"))
}

fn compensated(row: &ParkedRow) -> String {
    let reason = clean(row.reason.as_deref().unwrap_or("-"));
    if row.compensations > 0 { format!("{reason}, compensated") } else { reason }
}
