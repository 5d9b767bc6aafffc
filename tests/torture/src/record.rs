//! The record of a campaign: a line of JSON for each run.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use hapax::sabotage::Breach;
use serde::{Deserialize, Serialize};

use crate::recovery::Recovery;
use crate::run::{Task, Verdict};
use crate::stage::{BrokerKind, DatabaseKind, Setting};

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// What was tortured: see [`NAMING`].
    pub(crate) runtime: String,
    /// When it ended.
    pub(crate) date: String,
    pub(crate) seed: u64,
    pub(crate) database: DatabaseKind,
    pub(crate) broker: BrokerKind,
    /// Names and versions.
    pub(crate) servers: String,
    pub(crate) found: Found,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// How long messages stood still, in seconds, by what was killed.
    Recovery(BTreeMap<String, Vec<f64>>),
    Run(Run),
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) seconds: u64,
    pub(crate) small_disk: bool,
    /// The invariant that was broken on purpose.
    pub(crate) breach: Option<String>,
    pub(crate) orders: u64,
    /// What was to take effect, or to be dead, once each: every order at two consumers, and what they told a third.
    pub(crate) messages: u64,
    /// What was published besides.
    pub(crate) copies: u64,
    pub(crate) felt: BTreeMap<String, u64>,
    pub(crate) missed: BTreeMap<String, u64>,
    pub(crate) swaps: u64,
    pub(crate) soak: Option<String>,
    pub(crate) violations: u64,
    /// The first line of the first of them: what follows are ends of logs.
    pub(crate) first: Option<String>,
}

impl Run {
    /// Faults that took effect, of all kinds.
    pub(crate) fn faults(&self) -> u64 {
        self.felt.values().sum()
    }
}

impl Line {
    /// The line of a run.
    ///
    /// # Errors
    /// When git does not say what was tortured.
    pub(crate) fn of_run(task: &Task, verdict: &Verdict) -> Result<Self> {
        let run = Run {
            seconds: task.time.as_secs(),
            small_disk: task.setting.small_disk,
            breach: task.breach.map(|breach| Breach::name(breach).to_owned()),
            orders: verdict.orders,
            messages: verdict.messages,
            copies: verdict.copies,
            felt: verdict.tally.felt.clone(),
            missed: verdict.tally.missed.clone(),
            swaps: verdict.swaps as u64,
            soak: verdict.soak.clone(),
            violations: verdict.violations.len() as u64,
            first: verdict.violations.first().map(|violation| violation.to_string().lines().take(1).collect()),
        };
        Self::new(task.seed, task.setting, verdict.servers.clone(), Found::Run(run))
    }

    /// The line of a measurement of recoveries.
    ///
    /// # Errors
    /// As [`of_run`](Self::of_run).
    pub(crate) fn of_recovery(seed: u64, setting: Setting, servers: String, found: &[Recovery]) -> Result<Self> {
        let found = found.iter().map(|recovery| (recovery.what.to_owned(), recovery.seconds.clone())).collect();
        Self::new(seed, setting, servers, Found::Recovery(found))
    }

    fn new(seed: u64, setting: Setting, servers: String, found: Found) -> Result<Self> {
        let Setting { database, broker, .. } = setting;
        let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Ok(Self { runtime: runtime()?, date, seed, database, broker, servers, found })
    }

    /// What a run came to, if it was one.
    pub(crate) fn run(&self) -> Option<&Run> {
        match &self.found {
            Found::Run(run) => Some(run),
            Found::Recovery(_) => None,
        }
    }
}

/// Adds a line to the record.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn append(path: &Path, line: &Line) -> Result<()> {
    let text = serde_json::to_string(line)? + "\n";
    let file = std::fs::File::options().create(true).append(true).open(path);
    // In one piece: others write to it at the same time.
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("writing {}", path.display()))
}

/// Reads a record; one that is not there is empty.
///
/// # Errors
/// When it cannot be read, or a line is none.
pub(crate) fn read(path: &Path) -> Result<Vec<Line>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let line =
        |(number, line)| serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1));
    text.lines().enumerate().map(line).collect()
}

/// Tells the runs of a campaign what they torture: somebody may have changed the sources since it was built.
pub(crate) const RUNTIME: &str = "HAPAX_TORTURE_RUNTIME";

/// Names the code of the runtime, its contract included; not what fuzzers have found beside it.
pub(crate) const NAMING: &str =
    "git ls-tree -r HEAD runtime wit | grep -v __fuzz__ | git hash-object --stdin | cut -c 1-12";
const CHANGES: &str = "git status --porcelain runtime wit | grep -v __fuzz__ || true";

/// The code of the runtime, as [`NAMING`] names it.
///
/// # Errors
/// When there is no git, or it says nothing.
pub(crate) fn runtime() -> Result<String> {
    if let Ok(told) = std::env::var(RUNTIME) {
        return Ok(told);
    }
    let shell = |script: &str| -> Result<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let done = Command::new("sh").current_dir(root).args(["-c", script]).output();
        let done = done.with_context(|| format!("calling {script}"))?;
        let complaint = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success() && complaint.is_empty(), "{script}: {}", complaint.trim());
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let name = shell(NAMING)?;
    Ok(if shell(CHANGES)?.is_empty() { name } else { name + ", changed" })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The line of a run on seed 1, Postgres and RabbitMQ, in which nothing happened but what `change` makes of it.
    pub(crate) fn line(change: impl FnOnce(&mut Run)) -> Line {
        let mut run = Run {
            seconds: 60,
            small_disk: false,
            breach: None,
            orders: 0,
            messages: 0,
            copies: 0,
            felt: BTreeMap::new(),
            missed: BTreeMap::new(),
            swaps: 0,
            soak: None,
            violations: 0,
            first: None,
        };
        change(&mut run);
        Line {
            runtime: "aa".to_owned(),
            date: "2026-11-26T13:00:00Z".to_owned(),
            seed: 1,
            database: DatabaseKind::Postgres,
            broker: BrokerKind::Amqp,
            servers: "Postgres 1".to_owned(),
            found: Found::Run(run),
        }
    }

    #[test]
    fn lines_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("campaign.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let recovery = Found::Recovery(BTreeMap::from([("host".to_owned(), vec![0.25])]));
        let lines = [line(|run| run.breach = Some("endless".to_owned())), Line { found: recovery, ..line(|_| {}) }];
        for line in &lines {
            append(&path, line).unwrap();
        }
        assert_eq!(read(&path).unwrap(), lines);
    }
}
