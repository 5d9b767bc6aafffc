//! One run: hosts and producer on one side, the nemesis on the other; then everything is mended, and judged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hapax::sabotage::{Breach, Step};
use hapax_tests::wait_until;

use crate::checker::{Violation, check};
use crate::fleet::{Host, Trap};
use crate::hoarding::Watch;
use crate::nemesis::{Nemesis, START_LIMIT, Tally};
use crate::order::Order;
use crate::producer::{Producer, Progress, Sent};
use crate::soak::Soak;
use crate::stage::{ORDERED, Profile, Setting, Stage, TOLD};
use crate::witness::Witness;

/// How long nothing may change before a run counts as stuck, and how long it may take until all is done: thousands of
/// suspects may be left, which run singly, and on two cores that four runs share a server commits 20 times a second.
const LIMITS: Limits = Limits { still: Duration::from_secs(60), rest: Duration::from_secs(900) };

/// Where an invariant is broken there is no use in waiting.
const LIMITS_OF_BREACHES: Limits = Limits { still: Duration::from_secs(20), rest: Duration::from_secs(120) };

#[derive(Debug, Clone, Copy)]
struct Limits {
    still: Duration,
    rest: Duration,
}

fn limits(task: &Task) -> Limits {
    if task.breach.is_some() { LIMITS_OF_BREACHES } else { LIMITS }
}

/// The time of a batch, in milliseconds. What it has no time for goes back, and its claim is undone: where that is broken, a
/// minute must see much of it.
fn batch_ms(breach: Option<Breach>) -> u32 {
    if breach == Some(Breach::ClaimLeftIn) { 20 } else { 200 }
}

/// How often it is looked whether all is done.
const LOOK: Duration = Duration::from_millis(250);

/// For how long all must be done. What RabbitMQ says of its queues is 200 ms old, and what is asked about one after
/// the other may be on its way from what was not yet asked to what was.
const REST: Duration = Duration::from_secs(1);

/// How often it says so.
const SAY: Duration = Duration::from_secs(10);

/// Messages whose history is printed.
const HISTORIES: usize = 10;

/// What is to be done.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) seed: u64,
    pub(crate) time: Duration,
    pub(crate) setting: Setting,
    pub(crate) hosts: usize,
    pub(crate) breach: Option<Breach>,
    /// Only faults in whose names this is.
    pub(crate) only: String,
    /// Orders a second at most.
    pub(crate) rate: Option<u32>,
    /// See [`Soak`].
    pub(crate) soak: bool,
}

/// What came of it.
pub(crate) struct Verdict {
    pub(crate) servers: String,
    pub(crate) orders: u64,
    /// What was to take effect, or to be dead, once each: every order at two consumers, and what they told a third.
    pub(crate) messages: u64,
    pub(crate) copies: u64,
    pub(crate) tally: Tally,
    /// See [`Host::swaps_in_flight`].
    pub(crate) swaps: usize,
    pub(crate) violations: Vec<Violation>,
    /// What a soak has measured.
    pub(crate) soak: Option<String>,
    /// Of the first of them.
    pub(crate) histories: Vec<String>,
    /// Where the whole logs of hosts and servers are kept, if there is something to be found out.
    pub(crate) logs: Option<PathBuf>,
}

/// Tortures, and judges.
///
/// # Errors
/// When servers or hosts cannot be started.
pub(crate) async fn run(task: &Task) -> Result<Verdict> {
    let (mut nemesis, producer) = set_up(task).await?;
    let servers = nemesis.stage.describe();
    let witness = nemesis.stage.redis.is_some().then(|| Witness::of(&nemesis.stage.lock_url)).transpose()?;
    let watch = nemesis.stage.vhost.as_ref().map(|vhost| Watch::on(vhost.clone()));
    let mut violations = Vec::new();
    let mut say = |what: String| violations.push(Violation { message: None, what });

    let until = Instant::now() + task.time;
    let mut publishing = tokio::spawn({
        let producer = producer.clone();
        async move { producer.run(until).await }
    });
    let spared = nemesis.hosts[0].pid().filter(|_| task.soak);
    let soaking = spared.map(|pid| tokio::spawn(soak(Soak::begin(), pid, until)));
    if let Err(error) = nemesis.rage(until).await {
        say(format!("{error:#}"));
    }
    let mut sent = match tokio::time::timeout(limits(task).rest, &mut publishing).await {
        Ok(sent) => sent,
        Err(_) => {
            say(format!("stuck: the broker did not confirm what was published within {:?}", limits(task).rest));
            producer.give_up();
            publishing.await
        }
    }
    .context("the producer panicked")?;

    if let Err(error) = nemesis.heal().await {
        say(format!("it cannot be mended: {error:#}"));
    }
    if let Err(stuck) = come_to_rest(&mut nemesis, &producer, &mut sent).await {
        say(format!("stuck: {stuck:#}"));
    }
    producer.broker.close().await;
    let mut soaked = None;
    if let Some(measuring) = soaking {
        let (words, may_be) = measuring.await.context("the measuring panicked")??.judge();
        if !may_be {
            say(words.clone());
        }
        soaked = Some(words);
    }
    let left = crate::aftermath::look(&mut nemesis).await;
    left.into_iter()
        .chain(witness.iter().flat_map(Witness::found))
        .chain(watch.iter().filter_map(Watch::found))
        .for_each(say);
    match nemesis.stage.reader.books().await {
        Ok(books) => violations.extend(check(&sent.orders, &books)),
        Err(error) => {
            violations.push(Violation { message: None, what: format!("the books cannot be read: {error:#}") })
        }
    }

    let histories = histories(&nemesis, &sent.orders, &violations).await?;
    let (orders, copies, tally) = (sent.orders.len() as u64, sent.copies, nemesis.tally.clone());
    let messages = orders * ORDERED.len() as u64 + sent.told();
    let swaps = nemesis.hosts.iter().map(Host::swaps_in_flight).sum();
    let is_riddle = !violations.is_empty() && task.breach.is_none();
    let logs = if is_riddle { Some(keep_logs(&nemesis, task.seed)?) } else { None };
    Ok(Verdict { servers, orders, messages, copies, tally, swaps, violations, soak: soaked, histories, logs })
}

/// Servers, hosts that consume, and a producer.
async fn set_up(task: &Task) -> Result<(Nemesis, Arc<Producer>)> {
    let stage = Stage::start(task.setting, Profile::Torture { batch_ms: batch_ms(task.breach) }).await?;
    let hosts = start_hosts(&stage, task.hosts, task.breach).await?;
    let progress = Arc::<Progress>::default();
    let producer = Producer::new(&stage, task.seed, task.rate, progress.clone()).await?;
    Ok((Nemesis::new(stage, hosts, task.clone(), progress)?, Arc::new(producer)))
}

/// Waits until nothing waits any more; then publishes what is to come again at the end, and waits again.
async fn come_to_rest(nemesis: &mut Nemesis, producer: &Producer, sent: &mut Sent) -> Result<()> {
    let limits = limits(&nemesis.task);
    settle(nemesis, sent, limits).await?;
    let repeated = tokio::time::timeout(limits.rest, producer.repeat(sent)).await;
    repeated.context("the broker did not confirm what was repeated at the end")?;
    settle(nemesis, sent, limits).await
}

/// Measures until the time is over.
async fn soak(mut soak: Soak, pid: u32, until: Instant) -> Result<Soak> {
    while Instant::now() < until {
        soak.measure(pid)?;
        tokio::time::sleep(crate::soak::EVERY).await;
    }
    Ok(soak)
}

/// How often the first host dies while it makes the tables.
pub(crate) const MIGRATIONS_KILLED: u64 = 2;

/// Hosts that consume, once the first one has died while it made the tables.
///
/// # Errors
/// When one does not start.
pub(crate) async fn start_hosts(stage: &Stage, count: usize, breach: Option<Breach>) -> Result<Vec<Host>> {
    // A file has one host.
    let count = if stage.setting.is_file() || stage.setting.is_embedded() { 1 } else { count };
    let mut hosts = Vec::new();
    for number in 0..count {
        hosts.push(Host::new(stage, number, breach).await?);
    }
    let first = hosts.first_mut().context("no hosts")?;
    for _ in 0..MIGRATIONS_KILLED {
        first.start(Some(Trap::Kill(Step::Migrating, 1)))?;
        anyhow::ensure!(first.dies(START_LIMIT).await?, "the first host did not make the tables");
    }
    for host in &mut hosts {
        host.start(None)?;
        // Each consumer makes its own queue on the embedded broker, which takes nothing for a queue that is not there yet.
        let all = ORDERED.len() + 1;
        wait_until(START_LIMIT, "every consumer to consume", async || host.subscriptions() >= all).await?;
    }
    Ok(hosts)
}

/// Waits until nothing waits any more, and has not for a while; an error if nothing changes for a long time before that.
async fn settle(nemesis: &mut Nemesis, sent: &Sent, limits: Limits) -> Result<()> {
    let began = Instant::now();
    let (mut before, mut changed, mut said) = (String::new(), Instant::now(), Instant::now());
    let mut done_since = None;
    loop {
        let (done, now) = match progress(nemesis, sent).await {
            Ok(found) => found,
            Err(error) => (false, format!("{error:#}")),
        };
        done_since = if done { done_since.or(Some(Instant::now())) } else { None };
        if done_since.is_some_and(|since| since.elapsed() >= REST) {
            return Ok(());
        }
        if said.elapsed() >= SAY {
            said = Instant::now();
            tracing::info!("{now}");
            if let Some(vhost) = &nemesis.stage.vhost {
                // If these are fewer than the queues say, the broker waits for somebody who is gone.
                tracing::info!("in the hands of channels: {:?}", vhost.unacknowledged_of_channels().await);
            }
        }
        if now != before {
            (before, changed) = (now, Instant::now());
        }
        if changed.elapsed() > limits.still {
            let logs: Vec<String> = nemesis.hosts.iter().map(Host::log_tail).collect();
            anyhow::bail!("nothing changed for {:?}: {before}\n{}", limits.still, logs.join("\n"));
        }
        anyhow::ensure!(began.elapsed() < limits.rest, "it does not come to rest: {before}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether all is done, and how far it is.
async fn progress(nemesis: &Nemesis, sent: &Sent) -> Result<(bool, String)> {
    let (reader, mut done, mut said) = (&nemesis.stage.reader, true, Vec::new());
    let named = i64::try_from(sent.named)?;
    // In the order in which messages go: what has left one place for the next is seen there.
    for queue in [ORDERED[0], ORDERED[1], TOLD] {
        let state = nemesis.stage.queue(queue).await?;
        done &= state.messages == 0;
        said.push(format!("{queue}: {} ready, {} unacknowledged", state.ready, state.unacknowledged));
    }
    let mut ask = async |what: &str, expression: &str, rest: &str, wanted: i64| {
        let found = reader.number(expression, rest).await?;
        done &= found == wanted;
        said.push(format!("{what} {found} of {wanted}"));
        anyhow::Ok(())
    };
    for consumer in ORDERED {
        let rest = format!("FROM hapax_inbox WHERE consumer = '{consumer}' AND updated_at > 0");
        ask(&format!("{consumer} knows"), "COUNT(*)", &rest, named).await?;
        let rest = format!("FROM hapax_parked WHERE consumer = '{consumer}' AND state = 4 AND reason = 'id-conflict'");
        ask(&format!("{consumer} took for forged"), "COUNT(*)", &rest, i64::try_from(sent.forged)?).await?;
    }
    ask("parked rows", "COUNT(*)", "FROM hapax_parked WHERE state < 4", 0).await?;
    ask("outbox rows", "COUNT(*)", "FROM hapax_outbox", 0).await?;
    ask("told effects", "COUNT(*)", &format!("FROM effects WHERE consumer = '{TOLD}'"), i64::try_from(sent.told())?)
        .await?;
    // What changes while retries go on.
    let attempts = reader.number("COALESCE(SUM(attempts + crashes + generation), 0)", "FROM hapax_parked").await?;
    said.push(format!("attempts {attempts}"));
    Ok((done, said.join("; ")))
}

/// Copies what all hosts and servers have logged to a folder that stays.
fn keep_logs(nemesis: &Nemesis, seed: u64) -> Result<PathBuf> {
    let folder = hapax_tests::proc::target_dir()?.join("torture");
    std::fs::create_dir_all(&folder)?;
    let folder = tempfile::Builder::new().prefix(&format!("seed-{seed}-")).tempdir_in(folder)?.keep();
    nemesis.hosts.iter().try_for_each(|host| host.copy_logs(&folder))?;
    nemesis.stage.copy_logs(&folder)?;
    Ok(folder)
}

/// What is known of the messages that something is wrong with.
async fn histories(nemesis: &Nemesis, orders: &[Order], violations: &[Violation]) -> Result<Vec<String>> {
    let mut told = Vec::new();
    let mut messages: Vec<&str> = violations.iter().filter_map(|violation| violation.message.as_deref()).collect();
    messages.dedup();
    for id in messages.into_iter().take(HISTORIES) {
        let order = orders.iter().find(|order| order.id() == id);
        let what = order.map_or("no order".to_owned(), |order| format!("{:?}, {:?}", order.kind, order.repeats));
        let mut text = format!("  {id} ({what})\n{}", nemesis.stage.reader.history(id).await?);
        for line in nemesis.hosts.iter().flat_map(|host| host.lines_about(id)) {
            text.push_str(&format!("    {line}\n"));
        }
        told.push(text);
    }
    Ok(told)
}
