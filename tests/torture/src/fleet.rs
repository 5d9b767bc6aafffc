//! The hosts under torture: started, killed, frozen, stopped; and what they have logged, whatever became of them.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hapax::sabotage::{Breach, Step};
use hapax_tests::is_stopped;
use hapax_tests::proc::{Launch, Process};

use crate::stage::{Stage, Wires};

/// How long a host may take to stop in good order: its drain, and then some on a slow machine.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// One host, through all its lives.
pub(crate) struct Host {
    name: String,
    config: PathBuf,
    logs: PathBuf,
    pub(crate) wires: Wires,
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

impl Host {
    /// A host that is not started yet.
    ///
    /// # Errors
    /// When its config or its wires cannot be made.
    pub(crate) async fn new(stage: &Stage, name: &str, breach: Option<Breach>) -> Result<Self> {
        let wires = stage.wires().await?;
        let config = stage.configure(name, &wires)?;
        let logs = stage.folder.path().join("logs");
        std::fs::create_dir_all(&logs)?;
        Ok(Self { name: name.to_owned(), config, logs, wires, process: None, lives: 0, breach })
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
        let mut launch = self.launch(&["run"], trap)?;
        if let Some(breach) = self.breach {
            launch = launch.env("HAPAX_BREACH", breach.name());
        }
        self.process = Some(launch.name(&format!("{}, life {}", self.name, self.lives)).start()?);
        Ok(())
    }

    /// A command of the binary with this host's config.
    fn launch(&self, args: &[&str], trap: Option<Trap>) -> Result<Launch> {
        let config = ["-c".into(), self.config.clone().into_os_string()];
        let launch = Launch::program(binary()?, args.iter().map(OsString::from).chain(config));
        Ok(match trap {
            Some(trap) => launch.env("HAPAX_SABOTAGE", trap.order()),
            None => launch,
        })
    }

    /// Runs another command of the binary with this host's config, to its end. `trap` as in [`start`](Self::start).
    ///
    /// # Errors
    /// When it cannot be started, or does not end in time.
    pub(crate) async fn command(&self, args: &[&str], trap: Option<Trap>, limit: Duration) -> Result<(bool, String)> {
        let mut process = self.launch(args, trap)?.name(args.first().copied().unwrap_or("hapax")).start()?;
        let status = process.wait(limit).await?;
        Ok((status.success(), process.log()))
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
                let signal = std::os::unix::process::ExitStatusExt::signal(&status);
                ensure!(signal == Some(9), "it ended by itself, with {status}\n{}", process.log_tail());
                self.bury()?;
                return Ok(true);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(false)
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
            let path = self.logs.join(format!("{}.{}.log", self.name, self.lives));
            File::create(&path)?.write_all(process.log().as_bytes()).context("keeping a log")?;
        }
        Ok(())
    }

    /// Lines about a message in the logs of all its lives.
    pub(crate) fn lines_about(&self, message_id: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for life in 1..=self.lives {
            let kept = std::fs::read_to_string(self.logs.join(format!("{}.{life}.log", self.name)));
            let log = match (kept, &self.process) {
                (Ok(log), _) => log,
                (Err(_), Some(process)) => process.log(),
                (Err(_), None) => continue,
            };
            let about = log.lines().filter(|line| line.contains(message_id));
            lines.extend(about.map(|line| format!("{}.{life}: {line}", self.name)));
        }
        lines
    }
}

/// The `hapax` that can be sabotaged.
fn binary() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    let path = exe.with_file_name("hapax-sabotaged");
    ensure!(path.is_file(), "there is no {}: build it with `cargo build -p hapax-torture`", path.display());
    Ok(path)
}
