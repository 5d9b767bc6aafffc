//! `hapax dead redrive` and `hapax dead discard`: one conditional transition a row, so that a second run, or somebody else
//! doing the same, changes nothing more.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;

use super::super::ConfigArg;
use super::super::error::usage;
use super::super::output::{clean, count, say, tell};
use super::{Books, Which, list, moment, refused};
use crate::config::Config;
use crate::identity;
use crate::ledger::Ledger;
use crate::ledger::dead::Redriven;
use crate::ledger::parked::{ParkedId, ParkedRow, State};
use crate::message::MessageId;
use crate::pipeline::member::{Rules, partition};

/// Rows of one query.
const PAGE: usize = 500;

/// Lines about single rows; more are only counted.
const LINES: u64 = 20;

pub(super) const REDRIVE_HELP: &str = "\
Examples:
  hapax dead redrive 0192f3a1
  hapax dead redrive --consumer reduce-stock --code db-down --dry-run
  hapax dead redrive --consumer reduce-stock --since 2h --rate 50/s --yes

A redriven message starts anew: no attempts, no crashes, handled by the module that runs now. Running the command twice \
is safe: what is not a dead letter any more stays as it is. A message whose compensation took effect is refused, because \
handling it now would come on top of that; --force does it all the same. A message without a usable id is redriven \
under the id that today's `message_id` rules find in it.

Exit codes: 0 all redriven (or there were none), 1 some were refused or the database failed, 2 wrong usage or config.";

pub(super) const DISCARD_HELP: &str = "\
Examples:
  hapax dead discard 0192f3a1
  hapax dead discard --consumer reduce-stock --reason no-id --until 30days --yes

A discarded message is given up: it cannot be redriven, and is deleted after `retention`. Until then a late duplicate of \
it is still recognised. Running the command twice is safe.

Exit codes: 0 all discarded (or there were none), 1 the database failed, 2 wrong usage or config.";

/// Which dead letters to act on.
#[derive(Debug, clap::Args)]
struct Selection {
    /// Their ids, or enough of the beginning of each
    #[arg(value_name = "ID", conflicts_with_all = ["consumer", "reason", "code", "since", "until", "all"])]
    ids: Vec<String>,
    #[command(flatten)]
    which: Which,
    /// All there are
    #[arg(long)]
    all: bool,
    /// At most so many, oldest first
    #[arg(short = 'n', long, value_name = "N")]
    limit: Option<usize>,
    /// Say which ones, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Have dead letters handled again
#[derive(Debug, clap::Args)]
pub(super) struct RedriveArgs {
    #[command(flatten)]
    selection: Selection,
    /// Spread over time: 50/s, 600/min, 10/h
    #[arg(long, value_name = "RATE", value_parser = moment::interval)]
    rate: Option<Duration>,
    /// Also those whose compensation took effect
    #[arg(long)]
    force: bool,
}

/// Give dead letters up for good
#[derive(Debug, clap::Args)]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    selection: Selection,
}

/// What is done with each.
#[derive(Debug, Clone, Copy)]
enum Act {
    Redrive { interval: Duration, force: bool },
    Discard,
}

pub(super) async fn redrive(args: RedriveArgs) -> anyhow::Result<ExitCode> {
    let act = Act::Redrive { interval: args.rate.unwrap_or_default(), force: args.force };
    run(args.selection, act).await
}

pub(super) async fn discard(args: DiscardArgs) -> anyhow::Result<ExitCode> {
    run(args.selection, Act::Discard).await
}

async fn run(selection: Selection, act: Act) -> anyhow::Result<ExitCode> {
    if selection.ids.is_empty() && selection.which.is_everything() && !selection.all {
        let hint = "name ids, filter with --consumer, --reason, --code, --since, --until, or say --all";
        return Err(usage("which dead letters?", hint).into());
    }
    let Some(books) = Books::open(&selection.config, selection.which.consumer.as_deref()).await? else {
        return Ok(refused());
    };
    let mut work = Work { books: &books, act, tally: Tally::default() };
    if selection.ids.is_empty() {
        let limit = selection.limit.unwrap_or(usize::MAX);
        if selection.dry_run {
            return dry_run(&books, &selection.which, limit, act).await;
        }
        let mut limit = limit;
        if !selection.yes && std::io::stdin().is_terminal() {
            // What dies while the question stands is not part of the answer.
            limit = how_many(&books, &selection.which, limit).await?;
            if limit > 1 && !confirmed(act, limit)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        work.filtered(&selection.which, limit).await?;
    } else {
        let mut rows = Vec::new();
        for id in &selection.ids {
            let (ledger, row) = books.find(id).await?;
            if !rows.iter().any(|(_, other): &(&Ledger, ParkedRow)| other.id == row.id) {
                rows.push((ledger, row));
            }
        }
        if selection.dry_run {
            let rows: Vec<ParkedRow> =
                rows.into_iter().map(|(_, row)| row).filter(|row| row.state == State::Dead).collect();
            return announce(&rows, act);
        }
        if rows.len() > 1 && !selection.yes && std::io::stdin().is_terminal() && !confirmed(act, rows.len())? {
            return Ok(ExitCode::FAILURE);
        }
        for (ledger, row) in &rows {
            work.one(ledger, row).await?;
        }
    }
    work.tally.print(act)
}

impl Act {
    fn verb(self) -> &'static str {
        match self {
            Self::Redrive { .. } => "redrive",
            Self::Discard => "discard",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Redrive { .. } => "redriven",
            Self::Discard => "discarded",
        }
    }
}

/// One run over a selection.
struct Work<'b> {
    books: &'b Books,
    act: Act,
    tally: Tally,
}

/// What became of the rows.
#[derive(Debug, Default)]
struct Tally {
    done: u64,
    already: u64,
    compensated: u64,
    no_id: u64,
    lines: u64,
}

/// What became of one row.
enum Done {
    Yes,
    Already,
    Compensated,
    NoId(String),
}

impl Work<'_> {
    async fn filtered(&mut self, which: &Which, limit: usize) -> anyhow::Result<()> {
        let mut left = limit;
        for ledger in &self.books.ledgers {
            let mut after: Option<ParkedId> = None;
            while left > 0 {
                let wanted = left.min(PAGE);
                let page = ledger.dead_letters(&which.filter(), after, wanted).await?;
                for row in &page {
                    self.one(ledger, row).await?;
                }
                left -= page.len();
                // Rows that are redriven and die again lie behind this key: nothing is met twice.
                after = page.last().map(|row| row.id);
                if page.len() < wanted {
                    break;
                }
            }
        }
        Ok(())
    }

    async fn one(&mut self, ledger: &Ledger, row: &ParkedRow) -> anyhow::Result<()> {
        let done = match self.act {
            _ if row.state != State::Dead => Ok(Done::Already),
            Act::Discard => {
                ledger.discard(row).await.map(|yes| if yes { Done::Yes } else { Done::Already }).map_err(Into::into)
            }
            Act::Redrive { interval, force } => {
                let before = u32::try_from(self.tally.done).unwrap_or(u32::MAX);
                reopen(&self.books.config, ledger, row, interval.saturating_mul(before), force).await
            }
        };
        let done = done.with_context(|| {
            let so_far = count(self.tally.done, "dead letter");
            format!("stopped at {}, {so_far} {} before it; the command can be run again", row.id, self.act.done())
        })?;
        self.tally.note(row, done);
        Ok(())
    }
}

/// Redrives one row; under today's id where the inbox does not know it under one.
async fn reopen(
    config: &Config,
    ledger: &Ledger,
    row: &ParkedRow,
    delay: Duration,
    force: bool,
) -> anyhow::Result<Done> {
    let redriven = match ledger.redrive(row, delay, force, None).await? {
        Redriven::NoId => {
            // Lists come without bodies, and rules may look there.
            let Some(whole) = ledger.parked_row(row.id).await? else { return Ok(Done::Already) };
            match target(config, &whole) {
                Ok(target) => ledger.redrive(row, delay, force, Some(target)).await?,
                Err(why) => return Ok(Done::NoId(why)),
            }
        }
        other => other,
    };
    Ok(match redriven {
        Redriven::Yes => Done::Yes,
        Redriven::Already | Redriven::Gone => Done::Already,
        Redriven::AlreadyCompensated => Done::Compensated,
        Redriven::NoId => Done::NoId("no usable message id".to_owned()),
    })
}

/// Id and slot under the rules that the row's consumer has today.
fn target(config: &Config, row: &ParkedRow) -> Result<(MessageId, u16), String> {
    let consumer = config.consumers.iter().find(|consumer| consumer.name == row.consumer);
    let consumer = consumer.ok_or_else(|| format!("the config has no consumer `{}`", clean(&row.consumer)))?;
    let id = identity::extract(&consumer.message_id, &row.message).map_err(|none| none.to_string())?;
    let rules = Rules { id: consumer.message_id.clone(), partition: consumer.partition_by.clone() };
    let (slot, _) = partition(&rules, &row.message, Some(&id));
    Ok((id, slot))
}

impl Tally {
    fn note(&mut self, row: &ParkedRow, done: Done) {
        let words = match done {
            Done::Yes => {
                self.done += 1;
                return;
            }
            Done::Already => {
                self.already += 1;
                return;
            }
            Done::Compensated => {
                self.compensated += 1;
                "refused, its compensation took effect".to_owned()
            }
            Done::NoId(why) => {
                self.no_id += 1;
                format!("refused: {}", clean(&why))
            }
        };
        self.lines += 1;
        if self.lines <= LINES {
            tell!("{}: {words}", row.id);
        }
    }

    fn print(&self, act: Act) -> anyhow::Result<ExitCode> {
        let refused = self.compensated + self.no_id;
        let mut words = format!("{} {}", count(self.done, "dead letter"), act.done());
        if let (Act::Redrive { interval, .. }, 2..) = (act, self.done)
            && !interval.is_zero()
        {
            let last = interval.saturating_mul(u32::try_from(self.done - 1).unwrap_or(u32::MAX));
            let last = Duration::from_millis(u64::try_from(last.as_millis()).unwrap_or(u64::MAX));
            words += &format!(", the last one due in {}", humantime::format_duration(last));
        }
        if self.already > 0 {
            words += &format!("; {} not dead letters any more", self.already);
        }
        if refused > 0 {
            words += &format!("; {refused} refused");
        }
        say!("{words}")?;
        if self.compensated > 0 {
            tell!("hint: --force handles compensated messages again; make sure that nothing is done twice by it");
        }
        if self.no_id > 0 {
            tell!("hint: a `message_id` rule that finds an id in them (body-digest always does) lets them be redriven");
        }
        Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Counts, up to a limit.
async fn how_many(books: &Books, which: &Which, limit: usize) -> anyhow::Result<usize> {
    let mut number = 0;
    for ledger in &books.ledgers {
        let mut after = None;
        while number < limit {
            let wanted = (limit - number).min(PAGE);
            let page = ledger.dead_letters(&which.filter(), after, wanted).await?;
            number += page.len();
            after = page.last().map(|row| row.id);
            if page.len() < wanted {
                break;
            }
        }
    }
    Ok(number)
}

async fn dry_run(books: &Books, which: &Which, limit: usize, act: Act) -> anyhow::Result<ExitCode> {
    let number = how_many(books, which, limit).await?;
    let mut shown = Vec::new();
    for ledger in &books.ledgers {
        let wanted = PAGE.min(number - shown.len());
        if wanted > 0 {
            shown.extend(ledger.dead_letters(&which.filter(), None, wanted).await?);
        }
    }
    announce(&shown, act)?;
    if number > shown.len() {
        say!("{} in all", count(number as u64, "dead letter"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn announce(rows: &[ParkedRow], act: Act) -> anyhow::Result<ExitCode> {
    list::print(rows, false)?;
    let refuses = |row: &&ParkedRow| matches!(act, Act::Redrive { force: false, .. }) && row.compensations > 0;
    let refused = rows.iter().filter(refuses).count();
    let mut words = format!("would {} {}", act.verb(), count((rows.len() - refused) as u64, "dead letter"));
    if refused > 0 {
        words += &format!(", and refuse {refused} whose compensation took effect");
    }
    say!("{words}; nothing was changed")?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the person at the terminal.
fn confirmed(act: Act, number: usize) -> anyhow::Result<bool> {
    let mut err = std::io::stderr();
    // Nobody can answer a question that cannot be asked.
    write!(err, "{} {}? [y/N] ", act.verb(), count(number as u64, "dead letter")).and_then(|()| err.flush())?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    let yes = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes");
    if !yes {
        tell!("nothing was changed");
    }
    Ok(yes)
}
