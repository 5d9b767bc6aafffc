//! A campaign: run after run, until the record holds what was to be reached. It goes on where it was left.

mod page;
mod plan;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use hapax_tests::proc::target_dir;
use tokio::task::JoinSet;

use crate::record::{self, Line};
use plan::Job;

/// What a campaign is told.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A line of JSON for each run, after those that are there
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// The page whose tables are made from the record
    #[arg(long, value_name = "FILE")]
    page: PathBuf,
    /// Runs at the same time: one keeps a core busy
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..))]
    jobs: u8,
}

/// Runs all that is missing in the record, and writes the page. 0 if everything was reached, 1 if not.
///
/// # Errors
/// When the record is of other code, or a run does not come to a result.
pub(crate) async fn run(args: &Args) -> Result<ExitCode> {
    let runtime = record::runtime()?;
    let mut lines = record::read(&args.record)?;
    ensure!(
        lines.iter().all(|line| line.runtime == runtime),
        "{} is of another runtime than this one, {runtime}: delete it to begin anew",
        args.record.display()
    );
    // The page may have been made by other code than this.
    page::write(&args.page, &lines)?;
    let mut running: Vec<Job> = Vec::new();
    let mut ends: JoinSet<Result<Job>> = JoinSet::new();
    loop {
        while let Some(job) = plan::next(&lines, &running).filter(|job| {
            let is_room = if job.is_alone() || running.iter().any(Job::is_alone) { 1 } else { args.jobs.into() };
            running.len() < is_room
        }) {
            tracing::info!("{job}");
            running.push(job.clone());
            ends.spawn(carry_out(job, args.record.clone(), runtime.clone()));
        }
        let Some(end) = ends.join_next().await else { break };
        let done = end.context("a run panicked")??;
        lines = record::read(&args.record)?;
        let line = lines.iter().rev().find(|line| done.is(line));
        let line = line.with_context(|| format!("{done} has left no line in {}", args.record.display()))?;
        tracing::info!("{done}: {}", page::in_a_word(line));
        running.retain(|job| *job != done);
        page::write(&args.page, &lines)?;
    }
    let missed = plan::missed(&lines);
    missed.iter().for_each(|missed| eprintln!("not reached: {missed}"));
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls this program for one run.
async fn carry_out(job: Job, file: PathBuf, runtime: String) -> Result<Job> {
    let log = log_of(&job)?;
    let output = std::fs::File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(job.args()).arg("--json").arg(&file).env(record::RUNTIME, runtime).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let status = command.status().await.context("starting a run")?;
    // 1 says that something was found: the record says what.
    ensure!(matches!(status.code(), Some(0 | 1)), "{job} ended with {status}: see {}", log.display());
    Ok(job)
}

/// Where a run's report goes.
fn log_of(job: &Job) -> Result<PathBuf> {
    let folder = target_dir()?.join("campaign");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let name: String = job.to_string().chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    Ok(folder.join(name + ".log"))
}

/// All runs of a record.
fn runs(lines: &[Line]) -> impl Iterator<Item = (&Line, &record::Run)> {
    lines.iter().filter_map(|line| Some((line, line.run()?)))
}

/// The runs in which no invariant was broken on purpose: those that count.
fn clean_runs(lines: &[Line]) -> impl Iterator<Item = (&Line, &record::Run)> {
    runs(lines).filter(|(_, run)| run.breach.is_none())
}
