//! What the four servers have in common: start, readiness, crash, restart, end.

use std::future::Future;
use std::io::Write as _;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;
use url::Url;

use super::disk::SmallDisk;
use super::home::{Home, NotInstalled};
use crate::proc::{Process, describe};

/// Longest wait for a server to answer. RabbitMQ takes 6 s on two idle cores, and tests share theirs.
const START_LIMIT: Duration = Duration::from_secs(180);
/// Longest wait for one answer.
const PROBE_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for an orderly end.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Starts on fresh ports when another program took the first ones in the meantime.
const PORT_ATTEMPTS: usize = 3;

/// The folder of the databases' data in their directories.
pub(super) const DATA: &str = "data";

/// What a server is started from, and its disk if that is a small one.
type Prepared<K> = Result<(K, Option<SmallDisk>)>;

/// What distinguishes one kind of server from another.
pub trait Kind: Sized + Send + Sync + 'static {
    /// Its name for people.
    const NAME: &'static str;
    /// Its Debian package.
    const PACKAGE: &'static str;
    /// The variable that names a user's own server.
    const VARIABLE: &'static str;
    /// The system user that it runs as when the tests run as root; none if it runs as root too.
    const USER: Option<&'static str>;
    /// What asks it to end in good order.
    const STOP: Signal;
    /// What ends it at once but lets it release what outlives processes; as `kill` names it.
    const CRASH: &'static str;

    /// Makes its files and chooses its ports. Blocks.
    ///
    /// # Errors
    /// When a program is missing or fails.
    fn prepare(home: &Home) -> Result<Self>;

    /// The command that runs it in the foreground.
    ///
    /// # Errors
    /// When the program is missing.
    fn command(&self, home: &Home) -> Result<Command>;

    /// One that runs already, at `url`.
    ///
    /// # Errors
    /// When the URL is not one for this kind.
    fn external(url: Url) -> Result<Self>;

    /// Where clients connect to.
    fn url(&self) -> &Url;

    /// Its version, if it answers, and is ready, and is the one meant.
    fn probe(&self, pid: Option<u32>) -> impl Future<Output = Result<String>> + Send;
}

/// A server: a private one, which ends with this value, or a user's own.
pub struct Server<K: Kind> {
    // Dropped in this order: the server, its helpers, its directory.
    process: Option<Process>,
    pub(super) kind: K,
    /// What its data is on, if that is small.
    disk: Option<SmallDisk>,
    home: Option<Arc<Home>>,
    version: String,
    started_in: Duration,
}

impl<K: Kind> Server<K> {
    /// The user's own server where its variable names one, else a private one. For what leaves a user's server as it
    /// was: see [`shared`](super::shared).
    ///
    /// # Errors
    /// When it does not start or answer in time: with the end of its log and the package to install.
    pub(super) async fn given_or_private() -> Result<Self> {
        match given::<K>() {
            Some(url) => Self::connect(&url).await,
            None => Self::start().await,
        }
    }

    /// A private server for a test that kills, freezes or reconfigures it, whatever the variable says.
    ///
    /// None where its program is not installed because the user named a server instead: the test is then to be left
    /// out, which standard error says. In CI that is an error, for there nothing may be left out.
    ///
    /// # Errors
    /// When it does not start or answer in time.
    pub async fn private() -> Result<Option<Self>> {
        match Self::start().await {
            Err(error) if given::<K>().is_some() && std::env::var_os("CI").is_none() && is_not_installed(&error) => {
                let test = std::thread::current().name().unwrap_or("a test").to_owned();
                // Past the capture of test output.
                let _ =
                    writeln!(std::io::stderr(), "LEFT OUT: {test} needs a {} of its own to break: {error:#}", K::NAME);
                Ok(None)
            }
            started => started.map(Some),
        }
    }

    /// Uses a server that runs already: a user's own.
    ///
    /// # Errors
    /// When the URL is not one for this kind, or the server does not answer.
    pub async fn connect(url: &str) -> Result<Self> {
        let begin = Instant::now();
        // The URL may hold a password, so no error shows it.
        let url = Url::parse(url).with_context(|| format!("{} is not a URL", K::VARIABLE))?;
        let kind = K::external(url).with_context(|| format!("{} does not name a {} server", K::VARIABLE, K::NAME))?;
        let version = kind.probe(None).await.with_context(|| format!("asking the {} at {}", K::NAME, K::VARIABLE))?;
        Ok(Self { process: None, kind, disk: None, home: None, version, started_in: begin.elapsed() })
    }

    /// Starts a private server.
    ///
    /// # Errors
    /// When it does not start or answer in time: with the end of its log and the package to install.
    pub async fn start() -> Result<Self> {
        Self::start_as(|home| Ok((K::prepare(home)?, None))).await
    }

    /// A private server whose data is on a disk that can be filled.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when this process may not mount a disk.
    pub async fn start_on_small_disk() -> Result<Self> {
        let prepare = |home: &Home| {
            let disk = SmallDisk::at(home.make_folder(DATA)?)?;
            Ok((K::prepare(home)?, Some(disk)))
        };
        Self::start_as(prepare).await
    }

    /// A private server of which `prepare` makes the files and chooses the ports. Blocks.
    pub(super) async fn start_as(prepare: impl Fn(&Home) -> Prepared<K> + Clone + Send + 'static) -> Result<Self> {
        for _ in 1..PORT_ATTEMPTS {
            match Self::try_start(prepare.clone()).await {
                Err(error) if port_was_taken(&error) => {}
                result => return result,
            }
        }
        Self::try_start(prepare).await
    }

    async fn try_start(prepare: impl Fn(&Home) -> Prepared<K> + Send + 'static) -> Result<Self> {
        let begin = Instant::now();
        let prepare = tokio::task::spawn_blocking(move || {
            let home = Home::create(&K::NAME.to_lowercase(), K::USER, K::CRASH)?;
            prepare(&home).map(|(kind, disk)| (kind, disk, Arc::new(home)))
        });
        let prepared = prepare.await.context("the preparation panicked")?;
        let (kind, disk, home) = prepared.with_context(Self::how_to_get_it)?;
        let mut server =
            Self { process: None, kind, disk, home: Some(home), version: String::new(), started_in: Duration::ZERO };
        server.launch().await.with_context(Self::how_to_get_it)?;
        server.started_in = begin.elapsed();
        Ok(server)
    }

    fn how_to_get_it() -> String {
        format!(
            "could not start a private {}. It needs Debian's package {} (sudo apt-get install --no-install-recommends {}); \
             or set {} to a server of your own",
            K::NAME,
            K::PACKAGE,
            K::PACKAGE,
            K::VARIABLE
        )
    }

    /// Starts the process and waits until it answers.
    async fn launch(&mut self) -> Result<()> {
        let home = self.home.as_ref().context("there is no directory to start it in")?;
        let begin = Instant::now();
        let mut process = home.spawn(K::NAME, self.kind.command(home)?)?;
        loop {
            let answer = tokio::time::timeout(PROBE_LIMIT, self.kind.probe(Some(process.pid()))).await;
            if let Some(status) = process.try_wait()? {
                bail!("{} ended while it started ({})\n{}", K::NAME, describe(status), process.log_tail());
            }
            let error = match answer {
                Ok(Ok(version)) => {
                    self.version = version;
                    self.process = Some(process);
                    return Ok(());
                }
                Ok(Err(error)) => error,
                Err(_) => anyhow!("no answer within {PROBE_LIMIT:?}"),
            };
            if begin.elapsed() > START_LIMIT {
                let tail = process.log_tail();
                return Err(error).with_context(|| format!("{} is not ready after {START_LIMIT:?}\n{tail}", K::NAME));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where clients connect to.
    pub fn url(&self) -> &str {
        self.kind.url().as_str()
    }

    /// Name, version, and whose it is, for the suites' output.
    pub fn describe(&self) -> String {
        match &self.home {
            Some(_) => format!("{} {} (private, started in {:.1?})", K::NAME, self.version, self.started_in),
            None => format!("{} {} (yours, from {})", K::NAME, self.version, K::VARIABLE),
        }
    }

    /// Its version, as it says it itself.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Was it started here, so that it can be killed and restarted?
    pub fn is_private(&self) -> bool {
        self.home.is_some()
    }

    /// Where its directory, its data and its log are, if it was started here.
    pub fn directory(&self) -> Option<&std::path::Path> {
        self.home.as_deref().map(Home::path)
    }

    /// Copies what it has logged in all its lives to a file of that folder, if it was started here.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn copy_log(&self, folder: &std::path::Path, file: &str) -> Result<()> {
        if let Some(home) = &self.home {
            let log = home.log(K::NAME);
            std::fs::copy(&log, folder.join(file)).with_context(|| format!("copying {}", log.display()))?;
        }
        Ok(())
    }

    /// The disk that its data is on, if it was started on a small one.
    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    pub(super) fn home(&self) -> Result<&Home> {
        self.home.as_deref().with_context(not_ours::<K>)
    }

    /// The process id of the server.
    ///
    /// # Errors
    /// When it is not a private one, or does not run.
    pub fn pid(&self) -> Result<u32> {
        self.home()?;
        self.process.as_ref().map(Process::pid).with_context(|| format!("{} does not run", K::NAME))
    }

    /// Kills it with SIGKILL, all its processes with it. [`restart`](Self::restart) brings it back with its data.
    ///
    /// # Errors
    /// When it is not a private one, or does not run.
    pub async fn kill9(&mut self) -> Result<()> {
        self.running()?.kill9_tree().await?;
        self.process = None;
        Ok(())
    }

    /// Ends it in good order.
    ///
    /// # Errors
    /// When it is not a private one, does not run, or does not end in time.
    pub async fn stop(&mut self) -> Result<()> {
        let process = self.running()?;
        process.signal(K::STOP)?;
        process.wait(STOP_LIMIT).await?;
        self.process = None;
        Ok(())
    }

    /// Starts it again on the same ports with the same data, after ending it in good order if it still runs. Returns when
    /// it answers.
    ///
    /// # Errors
    /// When it is not a private one, or does not answer in time; the error holds the end of its log.
    pub async fn restart(&mut self) -> Result<()> {
        self.home()?;
        if self.is_running() {
            self.stop().await?;
        }
        self.process = None;
        self.launch().await.with_context(|| format!("restarting {}", K::NAME))
    }

    /// Kills it with SIGKILL, and starts it again on the same ports with the same data. Returns when it answers.
    ///
    /// # Errors
    /// As [`kill9`](Self::kill9) and [`restart`](Self::restart).
    pub async fn crash(&mut self) -> Result<()> {
        self.kill9().await?;
        self.restart().await
    }

    /// Does it run?
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Freezes it with all its processes: connections stay open, and nothing answers.
    ///
    /// # Errors
    /// When it is not a private one, or does not run.
    pub fn sigstop(&mut self) -> Result<()> {
        self.running()?.sigstop_tree()
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// When it is not a private one, or does not run.
    pub fn sigcont(&mut self) -> Result<()> {
        self.running()?.sigcont_tree()
    }

    /// The end of its log; empty if it is not a private one or does not run.
    pub fn log_tail(&self) -> String {
        self.process.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    fn running(&mut self) -> Result<&mut Process> {
        self.home()?;
        self.process.as_mut().with_context(|| format!("{} does not run", K::NAME))
    }
}

fn not_ours<K: Kind>() -> String {
    format!(
        "the {} of {} was not started by this test, so it can be neither killed nor restarted: \
         unset {} to test on a private one",
        K::NAME,
        K::VARIABLE,
        K::VARIABLE
    )
}

/// The user's own server, if its variable names one.
fn given<K: Kind>() -> Option<String> {
    std::env::var(K::VARIABLE).ok().filter(|url| !url.is_empty())
}

/// Did the start fail because there is no program to start?
fn is_not_installed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<NotInstalled>())
}

/// Did the start fail because a port had been taken since it was found free?
fn port_was_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:?}").to_lowercase();
    text.contains("address already in use") || text.contains("eaddrinuse")
}
