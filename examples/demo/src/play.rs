//! The play: orders are published while the host works; it is killed twice and started again; late duplicates come when
//! everything is done; then it is asked to stop.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hapax_tests::proc::{Launch, Process};

use crate::books::{Books, Pending};
use crate::progress::Progress;
use crate::scenario::Scenario;
use crate::stage::{ORDERS, Stage};

/// Longest start of a host; compiling the module for the first time takes most of it.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Longest time without any change. What a killed host had committed and not published is published by its successor
/// after a grace time of 10 s.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// Longest orderly stop.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// Pause between two looks at the database, and the share of time that looking may take at most, as a divisor.
const LOOK: (Duration, u32) = (Duration::from_millis(100), 5);

/// What the hosts have left behind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Performance {
    /// Messages that the broker confirmed.
    pub(crate) published: usize,
    /// What each of the hosts logged.
    pub(crate) logs: Vec<String>,
    /// How often a host was killed.
    pub(crate) kills: usize,
}

/// Plays the scenario to its end.
///
/// # Errors
/// When something does not start, does not answer or makes no progress; that is not a disagreement yet.
pub(crate) async fn play(stage: &Stage, scenario: &Scenario) -> Result<Performance> {
    let ids = scenario.expected.fates.len() as u64;
    let mut host = Host::start(stage, 1)?;
    host.process.wait_for_log(START_LIMIT, "\"consuming\"").await?;
    let mut play = Play {
        stage,
        books: stage.books().await?,
        host,
        logs: Vec::new(),
        progress: Progress::new(ids),
        seen: Watch { state: (Pending::default(), None), since: Instant::now() },
    };

    let work = async {
        for third in [ids / 3, ids * 2 / 3] {
            play.settled(third).await?;
            play.crash().await?;
        }
        play.settled(ids).await
    };
    tokio::try_join!(stage.publish(&scenario.flow), work)?;

    play.progress.doing("Late duplicates; what the killed hosts left in the outbox waits for a grace time of 10 s");
    stage.publish(&scenario.late).await?;
    play.nothing_left().await?;
    play.stop().await?;
    play.progress.end();
    let kills = play.logs.len() - 1;
    Ok(Performance { published: scenario.messages(), logs: play.logs, kills })
}

struct Play<'a> {
    stage: &'a Stage,
    books: Books,
    host: Host,
    logs: Vec<String>,
    progress: Progress,
    seen: Watch,
}

/// When something changed last.
struct Watch {
    state: (Pending, Option<u64>),
    since: Instant,
}

impl Watch {
    fn note(&mut self, state: (Pending, Option<u64>)) {
        if self.state != state {
            *self = Self { state, since: Instant::now() };
        }
    }
}

impl Play<'_> {
    /// Waits until so many message ids are settled.
    async fn settled(&mut self, ids: u64) -> Result<()> {
        while self.look(None).await?.settled < ids {}
        Ok(())
    }

    /// Waits until the queue is empty, and nothing is parked or unpublished.
    async fn nothing_left(&mut self) -> Result<()> {
        let mut empty_since = None;
        loop {
            let depth = self.stage.depth(ORDERS).await.ok();
            let Pending { parked, outbox, .. } = self.look(depth).await?;
            if (depth, parked, outbox) != (Some(0), 0, 0) {
                empty_since = None;
                continue;
            }
            if empty_since.get_or_insert_with(Instant::now).elapsed() >= self.stage.stale() {
                return Ok(());
            }
        }
    }

    /// A look at the database, and a pause.
    async fn look(&mut self, depth: Option<u64>) -> Result<Pending> {
        let begin = Instant::now();
        let pending = self.books.pending().await?;
        self.progress.reached(pending.settled);
        self.seen.note((pending, depth));
        if let Some(status) = self.host.process.try_wait()? {
            bail!("hapax run ended by itself ({status})\n{}", self.host.process.log_tail());
        }
        if self.seen.since.elapsed() > STALL_LIMIT {
            let Pending { settled, parked, outbox } = pending;
            bail!(
                "nothing has changed for {STALL_LIMIT:?}: {settled} ids settled, {parked} messages parked, {outbox} unpublished, \
                 queue depth {depth:?}\n{}",
                self.host.process.log_tail()
            );
        }
        tokio::time::sleep(LOOK.0.max(begin.elapsed() * LOOK.1)).await;
        Ok(pending)
    }

    /// SIGKILL, and a new host.
    async fn crash(&mut self) -> Result<()> {
        let pid = self.host.process.pid();
        self.host.process.kill9().await?;
        let next = Host::start(self.stage, self.logs.len() + 2)?;
        let killed = std::mem::replace(&mut self.host, next);
        self.logs.push(killed.process.log());
        let now = self.host.process.pid();
        self.progress
            .say(&format!("SIGKILL to hapax run (process {pid}) in the middle of its work; started again ({now})"));
        Ok(())
    }

    /// SIGTERM, and a good end.
    async fn stop(&mut self) -> Result<()> {
        let status = self.host.process.terminate(STOP_LIMIT).await.context("stopping hapax run")?;
        ensure!(status.success(), "hapax run did not stop in good order ({status})\n{}", self.host.process.log_tail());
        self.logs.push(self.host.process.log());
        Ok(())
    }
}

/// A host, whose log goes to the demo's folder when it is over.
struct Host {
    process: Process,
    log: PathBuf,
}

impl Host {
    fn start(stage: &Stage, number: usize) -> Result<Self> {
        let name = format!("host-{number}");
        let process = Launch::hapax(["run", "-c", "hapax.toml", "--log", "json"])
            .current_dir(stage.folder())
            // Failed attempts are counted in the log, whatever the caller's environment says of logs.
            .env("HAPAX_LOG", "info")
            .name(&name)
            .start()?;
        Ok(Self { process, log: stage.folder().join(format!("{name}.log")) })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(&self.log, self.process.log()) {
            eprintln!("warning: cannot keep the log {}: {error}", self.log.display());
        }
    }
}
