//! `hapax import-ids`: messages that another system has handled become duplicates here.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use super::output::{clean, count, cut, say, tell};
use super::{ConfigArg, USAGE, open};
use crate::ledger::Ledger;
use crate::message::MessageId;

/// Ids of one transaction.
const CHUNK: usize = 1_000;

/// Lines that are no ids and are shown; more are counted.
const SHOWN: u64 = 10;

pub(super) const HELP: &str = "\
Examples:
  mysql -N -e 'SELECT message_id FROM message_flow' shop | hapax import-ids reduce-stock
  hapax import-ids reduce-stock ids.txt -c hapax.toml

One id a line, as the consumer's `message_id` rules would find it: every byte counts, spaces too. Ids that are there \
already stay as they are, so it can be run again. Imported ids have no body to compare with: whatever comes under one \
of them is taken for its duplicate. They are forgotten like handled ones, after `retention`.

Exit codes: 0 all imported, 1 a line is no message id (the others are imported) or the database failed, 2 wrong usage \
or config.";

/// Import ids of messages that were handled elsewhere, so that they are duplicates here
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The consumer
    consumer: String,
    /// A file with one id a line; `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Some(config) = super::load(&args.config.config) else { return Ok(ExitCode::from(USAGE)) };
    let consumer = open::consumer(&config, &args.consumer)?;
    let input: Box<dyn BufRead> = if args.file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(&args.file);
        Box::new(BufReader::new(file.with_context(|| format!("cannot open {}", args.file.display()))?))
    };
    let ledger = open::ledger(&consumer.database).await?;
    let mut import =
        Import { ledger: &ledger, consumer: &consumer.name, chunk: HashSet::new(), read: 0, new: 0, bad: 0 };
    let fed = import.feed(input).await;
    // What was counted is committed, however it ended.
    let Import { read, new, bad, .. } = import;
    let known = read - new;
    say!(
        "{} read: {new} new, {known} known before{}",
        count(read, "id"),
        match bad {
            0 => String::new(),
            bad => format!("; {} refused", count(bad, "line")),
        }
    )?;
    fed?;
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Import<'l> {
    ledger: &'l Ledger,
    consumer: &'l str,
    /// Distinct: one statement claims them all.
    chunk: HashSet<MessageId>,
    read: u64,
    new: u64,
    bad: u64,
}

impl Import<'_> {
    async fn feed(&mut self, input: Box<dyn BufRead>) -> anyhow::Result<()> {
        for (index, line) in input.split(b'\n').enumerate() {
            let line = line.context("cannot read the ids")?;
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                continue;
            }
            match MessageId::from_bytes(line) {
                Ok(id) => {
                    // One that was read twice is known the second time.
                    self.read += u64::from(!self.chunk.insert(id));
                }
                Err(bad) => self.refuse(index + 1, line, &bad.to_string()),
            }
            if self.chunk.len() >= CHUNK {
                self.flush().await?;
            }
        }
        self.flush().await
    }

    fn refuse(&mut self, number: usize, line: &[u8], why: &str) {
        self.bad += 1;
        if self.bad <= SHOWN {
            tell!("line {number}: {why}: {}", cut(&clean(&String::from_utf8_lossy(line)), 60));
        }
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        let ids: Vec<MessageId> = self.chunk.drain().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let new = self.ledger.import_ids(self.consumer, &ids).await;
        let new = new.context("the ids from here on are not imported; those before are, and it can be run again")?;
        self.read += ids.len() as u64;
        self.new += new as u64;
        Ok(())
    }
}
