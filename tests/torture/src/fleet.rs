//! The hosts under torture: started, killed, frozen, stopped; and what they have logged, whatever became of them.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hapax::sabotage::{Breach, Step};
use hapax_tests::is_stopped;
use hapax_tests::proc::{Launch, Process};

use crate::stage::{Stage, Wires};

/// What the log says when a host has exchanged its module.
pub(crate) const SWAPPED: &str = "module swapped";

/// How long a host may take to stop in good order: its drain, and then some on a slow machine.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How long a host that dies while it is frozen takes to be seen dead.
const THIS_MOMENT: Duration = Duration::from_millis(50);

/// One host, through all its lives.
pub(crate) struct Host {
    name: String,
    config: PathBuf,
    logs: PathBuf,
    pub(crate) wires: Arc<Wires>,
    process: Option<Process>,
    /// How often it was started.
    lives: usize,
    breach: Option<Breach>,
}

/// What a host does to itself at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trap {
    /// It dies when it comes by for the given time.
    Kill(Step, u32),
    /// It freezes.
    Stop(Step, u32),
}

impl Trap {
    pub(crate) fn step(self) -> Step {
        match self {
            Self::Kill(step, _) | Self::Stop(step, _) => step,
        }
    }

    fn order(self) -> String {
        match self {
            Self::Kill(step, times) => format!("kill@{}:{times}", step.name()),
            Self::Stop(step, times) => format!("stop@{}:{times}", step.name()),
        }
    }
}

/// Commands of the binary with the config of one host.
#[derive(Clone)]
pub(crate) struct Commands {
    config: PathBuf,
}

impl Commands {
    /// Runs one to its end. `trap` as in [`Host::start`].
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub(crate) async fn run(&self, args: &[&str], trap: Option<Trap>, limit: Duration) -> Result<(ExitStatus, String)> {
        let mut process = self.launch(args, trap)?.name(args.first().copied().unwrap_or("hapax")).start()?;
        let status = process.wait(limit).await?;
        Ok((status, process.log()))
    }

    fn launch(&self, args: &[&str], trap: Option<Trap>) -> Result<Launch> {
        let config = ["-c".into(), self.config.clone().into_os_string()];
        let launch = Launch::program(binary()?, args.iter().map(OsString::from).chain(config));
        Ok(match trap {
            Some(trap) => launch.env("HAPAX_SABOTAGE", trap.order()),
            None => launch,
        })
    }
}

impl Host {
    /// A host that is not started yet.
    ///
    /// # Errors
    /// When its config or its wires cannot be made.
    pub(crate) async fn new(stage: &Stage, number: usize, breach: Option<Breach>) -> Result<Self> {
        let name = format!("host-{}", number + 1);
        let wires = Arc::new(stage.wires(number).await?);
        let config = stage.configure(&name, &wires)?;
        let logs = stage.folder.path().join("logs");
        std::fs::create_dir_all(&logs)?;
        Ok(Self { name, config, logs, wires, process: None, lives: 0, breach })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Starts it, unless it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(&mut self, trap: Option<Trap>) -> Result<()> {
        if self.is_running() {
            return Ok(());
        }
        self.bury()?;
        self.lives += 1;
        let mut launch = self.commands().launch(&["run"], trap)?;
        if let Some(breach) = self.breach {
            launch = launch.env("HAPAX_BREACH", breach.name());
        }
        self.process = Some(launch.name(&format!("{}, life {}", self.name, self.lives)).start()?);
        Ok(())
    }

    /// Other commands of the binary, with this host's config.
    pub(crate) fn commands(&self) -> Commands {
        Commands { config: self.config.clone() }
    }

    /// Waits until it is subscribed to its queues.
    ///
    /// # Errors
    /// When it does not say so in time, or ends.
    pub(crate) async fn wait_consuming(&mut self, limit: Duration) -> Result<()> {
        self.process_mut()?.wait_consuming(limit).await
    }

    fn process_mut(&mut self) -> Result<&mut Process> {
        self.process.as_mut().with_context(|| format!("{} does not run", self.name))
    }

    /// True if it was started and has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Kills it.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.process_mut()?.kill9().await?;
        self.bury()
    }

    /// Waits until it dies by its trap; false if it has not within `limit`.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub(crate) async fn dies(&mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        let process = self.process_mut()?;
        while Instant::now() < end {
            if let Some(status) = process.try_wait()? {
                ensure!(was_killed(status), "it ended by itself, with {status}\n{}", process.log_tail());
                self.bury()?;
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(false)
    }

    /// Waits until it dies by its trap, and kills it if it has not within `limit`: false then.
    ///
    /// # Errors
    /// When it ends otherwise.
    pub(crate) async fn dies_or_is_killed(&mut self, limit: Duration) -> Result<bool> {
        if self.dies(limit).await? {
            return Ok(true);
        }
        // The trap may spring at this very moment; frozen, it cannot. An error says that it has.
        let _ = self.freeze();
        if self.dies(THIS_MOMENT).await? {
            return Ok(true);
        }
        self.kill().await.map(|()| false)
    }

    /// Waits until it is frozen by its trap; false if it is not within `limit`.
    ///
    /// # Errors
    /// When it ends.
    pub(crate) async fn freezes(&mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if !self.is_running() {
                bail!("{} ended where it was to freeze\n{}", self.name, self.log_tail());
            }
            if self.pid().is_some_and(is_stopped) {
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(false)
    }

    /// Freezes it.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn freeze(&mut self) -> Result<()> {
        self.process_mut()?.sigstop()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn thaw(&mut self) -> Result<()> {
        self.process_mut()?.sigcont()
    }

    /// Stops it in good order.
    ///
    /// # Errors
    /// When it does not stop in time, or not in good order.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let process = self.process_mut()?;
        let status = process.terminate(STOP_LIMIT).await?;
        ensure!(status.success(), "{} did not stop in good order: {status}\n{}", self.name, self.log_tail());
        self.bury()
    }

    /// How often it has subscribed to a queue in its present life.
    pub(crate) fn subscriptions(&self) -> usize {
        self.process.as_ref().map_or(0, Process::subscriptions)
    }

    /// How often it has said this in its present life.
    pub(crate) fn said(&self, words: &str) -> usize {
        self.process.as_ref().map_or(0, |process| process.log().matches(words).count())
    }

    /// The end of what it has said.
    pub(crate) fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// Keeps what it has logged; it is gone.
    fn bury(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            std::fs::write(self.logs.join(self.log_file(self.lives)), process.log()).context("keeping a log")?;
        }
        Ok(())
    }

    /// The name of the file that keeps what it has logged in that life.
    fn log_file(&self, life: usize) -> String {
        format!("{}.{life}.log", self.name)
    }

    /// Writes what it has logged in all its lives to a folder.
    ///
    /// # Errors
    /// When the system does not let it.
    pub(crate) fn copy_logs(&self, to: &Path) -> Result<()> {
        for (life, log) in self.all_logs() {
            std::fs::write(to.join(self.log_file(life)), log).context("copying a log")?;
        }
        Ok(())
    }

    /// Lines about a message in the logs of all its lives.
    pub(crate) fn lines_about(&self, message_id: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for (life, log) in self.all_logs() {
            let about = log.lines().filter(|line| line.contains(message_id));
            lines.extend(about.map(|line| format!("{}.{life}: {line}", self.name)));
        }
        lines
    }

    /// How often a module was exchanged while its handlers were at work: an attempt of the old one ended afterwards.
    pub(crate) fn swaps_in_flight(&self) -> usize {
        self.all_logs().map(|(_, log)| swaps_in_flight(&log)).sum()
    }

    /// What it has logged in each of its lives.
    fn all_logs(&self) -> impl Iterator<Item = (usize, String)> {
        (1..=self.lives).filter_map(|life| {
            let kept = std::fs::read_to_string(self.logs.join(self.log_file(life)));
            let log = kept.ok().or_else(|| self.process.as_ref().map(Process::log));
            log.map(|log| (life, log))
        })
    }
}

/// See [`Host::swaps_in_flight`]: lines that say `module swapped … old=X`, of which one with `handled … module=X` follows.
fn swaps_in_flight(log: &str) -> usize {
    let word = |line: &str, name: &str| {
        line.split(' ').find_map(|word| word.strip_prefix(name).map(|value| value.trim_matches('"').to_owned()))
    };
    let (mut replaced, mut count) = (HashSet::new(), 0);
    for line in log.lines() {
        if line.contains(SWAPPED) {
            replaced.extend(word(line, "old="));
        } else if line.contains(": handled ")
            && let Some(module) = word(line, "module=")
        {
            count += usize::from(replaced.remove(&module));
        }
    }
    count
}

/// True if a signal ended it that nobody can defend himself against.
pub(crate) fn was_killed(status: ExitStatus) -> bool {
    status.signal() == Some(9)
}

/// The `hapax` that can be sabotaged.
fn binary() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    let path = exe.with_file_name("hapax-sabotaged");
    ensure!(path.is_file(), "there is no {}: build it with `cargo build -p hapax-torture`", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::swaps_in_flight;

    #[test]
    fn a_swap_counts_if_an_attempt_of_the_old_module_ended_after_it() {
        let log = "INFO hapax::guest::swap: module swapped module=/m.wasm old=aa new=bb\n\
                   DEBUG hapax::pipeline::shared: handled consumer=right attempt=1 module=bb\n\
                   DEBUG hapax::pipeline::shared: handled consumer=left attempt=1 module=aa\n\
                   DEBUG hapax::pipeline::shared: handled consumer=left attempt=1 module=aa\n\
                   INFO hapax::guest::swap: module swapped module=/m.wasm old=bb new=cc\n\
                   DEBUG hapax::pipeline::shared: handled consumer=left attempt=1 module=cc\n";
        assert_eq!(swaps_in_flight(log), 1);
    }
}
