//! Child processes under test: started with a log file, signalled, waited for with limits, never left behind.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::guard::Guard;
use crate::tree;

/// Lines of a log shown in an error.
const TAIL_LINES: usize = 40;
/// Longest wait for a process to be gone after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// What a host says when it is subscribed to a queue, as text and as JSON.
const CONSUMING: &[&str] = &["hapax::consumer: consuming", r#""message":"consuming""#];

/// The `hapax` binary: `HAPAX_BIN`, or the one that was built beside this test.
///
/// # Errors
/// When there is none; the error says how to build it.
pub fn hapax_bin() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("HAPAX_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "HAPAX_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let exe = std::env::current_exe().context("finding this program's own path")?;
    // A test lies in target/PROFILE/deps, other programs in target/PROFILE.
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join("hapax")).find(|path| path.is_file());
    found.with_context(|| {
        format!("no `hapax` beside {}: build it with `cargo build -p hapax`, or set HAPAX_BIN", exe.display())
    })
}

/// The folder that cargo builds into, whatever it is called: a test lies in PROFILE/deps below it, another program in
/// PROFILE.
///
/// # Errors
/// When this program's own path is unknown.
pub fn target_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("finding this program's own path")?;
    let folder = exe.parent().filter(|folder| folder.ends_with("deps")).unwrap_or(&exe);
    folder.ancestors().nth(2).map(Path::to_owned).with_context(|| format!("{} is in no target folder", exe.display()))
}

/// A guest component as `make guests` builds it, by its file name without extension.
///
/// # Errors
/// When there is none; the error says how to build it.
pub fn guest(name: &str) -> Result<PathBuf> {
    let (target, file) = (target_dir()?, format!("{name}.wasm"));
    ["wasm32-wasip2/release", "guests"]
        .map(|folder| target.join(folder).join(&file))
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("no component {name:?} under {}: run `make guests`", target.display()))
}

/// A program about to be started; see [`Launch::hapax`].
pub struct Launch {
    name: String,
    program: Result<PathBuf>,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
}

impl Launch {
    /// The `hapax` binary (see [`hapax_bin`]) with these arguments.
    pub fn hapax<A: Into<OsString>>(args: impl IntoIterator<Item = A>) -> Self {
        Self::of("hapax", hapax_bin(), args)
    }

    /// Any program with these arguments.
    pub fn program<A: Into<OsString>>(program: impl Into<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        let program = program.into();
        let name = program.file_name().unwrap_or(OsStr::new("program")).to_string_lossy().into_owned();
        Self::of(&name, Ok(program), args)
    }

    fn of<A: Into<OsString>>(name: &str, program: Result<PathBuf>, args: impl IntoIterator<Item = A>) -> Self {
        let args = args.into_iter().map(Into::into).collect();
        Self { name: name.to_owned(), program, args, envs: Vec::new(), directory: None }
    }

    /// The name used in errors and above its log ("host-a").
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets an environment variable, besides those inherited.
    #[must_use]
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((key.into(), value.into()));
        self
    }

    /// Runs it in `directory`.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Starts it, its standard output and standard error going to one log file.
    ///
    /// # Errors
    /// When the program cannot be found or started.
    pub fn start(self) -> Result<Process> {
        let program = self.program?;
        let home =
            tempfile::Builder::new().prefix("hapax-proc-").tempdir().context("making a folder for a log")?.keep();
        let guard = Arc::new(Guard::new(&home, "KILL")?);
        let mut command = Command::new(&program);
        command.args(&self.args).envs(self.envs);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        Process::spawn(&self.name, command, &home.join("log"), guard)
    }
}

/// A running child. Dropped, it is killed with its descendants; if that happens in a panic, its log's end is printed.
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    log: PathBuf,
    guard: Arc<Guard>,
    /// Has the end of the log been shown, so that a panic need not repeat it?
    shown: AtomicBool,
}

impl Process {
    /// Starts `command` with its output appended to `log`, to die with `guard`. In a process group of its own, so that a
    /// Ctrl-C meant for the tests does not reach it first.
    pub(crate) fn spawn(name: &str, mut command: Command, log: &Path, guard: Arc<Guard>) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("opening the log {}", log.display()))?;
        let errors = output.try_clone().context("sharing the log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        let program = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("starting {name} ({})", program.display()))?;
        let process = Self {
            name: name.to_owned(),
            child,
            status: None,
            log: log.to_owned(),
            guard,
            shown: AtomicBool::new(false),
        };
        process.guard.watch(process.pid())?;
        Ok(process)
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its status if it has ended; reaps it then.
    ///
    /// # Errors
    /// When the system refuses to say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?;
            if self.status.is_some() {
                self.guard.forget(self.pid())?;
            }
        }
        Ok(self.status)
    }

    /// Is it still running?
    pub fn is_running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Waits for it to end.
    ///
    /// # Errors
    /// When it still runs after `limit`; the error holds the end of its log.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{} (process {}) still runs after {limit:?}\n{}", self.name, self.pid(), self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for it to end of itself with status 0.
    ///
    /// # Errors
    /// When it does not end in time, or ends otherwise; the error holds the end of its log.
    pub async fn wait_success(&mut self, limit: Duration) -> Result<()> {
        let status = self.wait(limit).await?;
        ensure!(status.success(), "{} ended with {}\n{}", self.name, describe(status), self.log_tail());
        Ok(())
    }

    /// SIGKILL to this process alone, and reaps it.
    ///
    /// # Errors
    /// When it cannot be killed, or had ended before.
    pub async fn kill9(&mut self) -> Result<()> {
        if let Some(status) = self.try_wait()? {
            bail!("{} had ended before it could be killed, with {}\n{}", self.name, describe(status), self.log_tail());
        }
        self.signal(Signal::KILL)?;
        self.wait(KILL_LIMIT).await.map(drop)
    }

    /// SIGKILL to this process and all its descendants; returns when all are gone.
    ///
    /// # Errors
    /// As [`Process::kill9`], or when a descendant cannot be killed.
    pub async fn kill9_tree(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?; // first, so that it starts no more children
        let family = tree::descendants(self.pid());
        self.kill9().await?;
        for &pid in &family {
            tree::send(pid, Signal::KILL).with_context(|| format!("killing process {pid} of {}", self.name))?;
        }
        ensure!(tree::gone(&family, KILL_LIMIT).await, "processes of {} outlived SIGKILL: {family:?}", self.name);
        Ok(())
    }

    /// Asks it to end with SIGTERM, and waits.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.sigterm()?;
        self.wait(limit).await
    }

    /// SIGTERM, without waiting.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigterm(&mut self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGINT, as Ctrl-C sends it, without waiting.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigint(&mut self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Freezes this process (SIGSTOP), not its children.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigstop(&mut self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn sigcont(&mut self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Freezes it and its descendants.
    pub(crate) fn sigstop_tree(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?; // first, so that it starts no more children
        for pid in tree::descendants(self.pid()) {
            // Stopped children cannot notice that their parent died.
            self.guard.watch(pid)?;
            tree::send(pid, Signal::STOP).with_context(|| format!("stopping process {pid} of {}", self.name))?;
        }
        Ok(())
    }

    /// Lets it and its descendants go on.
    pub(crate) fn sigcont_tree(&mut self) -> Result<()> {
        for pid in tree::descendants(self.pid()) {
            tree::send(pid, Signal::CONT).with_context(|| format!("continuing process {pid} of {}", self.name))?;
            self.guard.forget(pid)?;
        }
        self.signal(Signal::CONT)
    }

    /// Sends `signal`, unless it has ended: its number may then be someone else's.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.try_wait()? {
            bail!("{} has ended ({})\n{}", self.name, describe(status), self.log_tail());
        }
        tree::send(self.pid(), signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// All it has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_else(|error| format!("(no log at {}: {error})", self.log.display()))
    }

    /// The end of what it has written, under a headline.
    pub fn log_tail(&self) -> String {
        self.shown.store(true, Ordering::Relaxed);
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let skipped = lines.len().saturating_sub(TAIL_LINES);
        format!(
            "--- {}: last {} lines of its log\n{}\n---",
            self.name,
            lines.len() - skipped,
            lines[skipped..].join("\n")
        )
    }

    /// Waits until its log contains `needle`, while it runs.
    ///
    /// # Errors
    /// When it does not say so within `limit`, or ends first; the error holds the end of its log.
    pub async fn wait_for_log(&mut self, limit: Duration, needle: &str) -> Result<()> {
        self.wait_for_any(limit, &[needle]).await
    }

    /// Waits until it is subscribed to a queue: until then a message may go to any other host. A link that is open says
    /// that it is for consuming, too, which is not enough.
    ///
    /// # Errors
    /// As [`Process::wait_for_log`].
    pub async fn wait_consuming(&mut self, limit: Duration) -> Result<()> {
        self.wait_for_any(limit, CONSUMING).await
    }

    /// How often it has said that it is subscribed to a queue.
    pub fn subscriptions(&self) -> usize {
        let log = self.log();
        CONSUMING.iter().map(|words| log.matches(words).count()).sum()
    }

    async fn wait_for_any(&mut self, limit: Duration, needles: &[&str]) -> Result<()> {
        let start = Instant::now();
        let wanted = || needles.iter().map(|needle| format!("{needle:?}")).collect::<Vec<_>>().join(" or ");
        loop {
            let ended = self.try_wait()?; // before reading, so that its last words count
            let log = self.log();
            if needles.iter().any(|needle| log.contains(needle)) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("{} ended ({}) without saying {}\n{}", self.name, describe(status), wanted(), self.log_tail());
            }
            if start.elapsed() > limit {
                bail!("{} did not say {} within {limit:?}\n{}", self.name, wanted(), self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.shown.load(Ordering::Relaxed) && !self.log().is_empty() {
            eprintln!("{}", self.log_tail());
        }
        if !self.is_running() {
            return;
        }
        let family = tree::descendants(self.pid());
        for pid in std::iter::once(self.pid()).chain(family) {
            // It may have gone by itself; the guard tries again.
            let _ = tree::send(pid, Signal::KILL);
        }
        let start = Instant::now();
        while self.is_running() && start.elapsed() < KILL_LIMIT {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// "exit status 2", "signal 9".
pub(crate) fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => status.to_string(),
    }
}
