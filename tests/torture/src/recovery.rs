//! How long it takes until messages flow again once a server is back, and until another host has done what a killed one
//! had in hand: with the config that everybody has by default.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use hapax::sabotage::Step;
use hapax_tests::wait_for;

use crate::fleet::{Host, Trap};
use crate::nemesis::START_LIMIT;
use crate::order::{Kind, Order};
use crate::producer::Producer;
use crate::report::align_numbers;
use crate::run::start_hosts;
use crate::stage::{ORDERED, Profile, Setting, Stage};

/// Orders published together while servers are killed, and how long after each other: half of what two hosts on two
/// cores manage.
const WINDOW: usize = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// Orders of which a host has some in hand when it is killed. Another one handles them all in less than a second.
const BURST: usize = 500;

/// How long after everything flows the next server is killed. One that fails again within ten seconds is left alone for
/// longer and longer, and that is not what is measured here.
const CALM: Duration = Duration::from_secs(11);

/// Where hosts are killed: from the receipt of messages to their acknowledgement.
const STEPS: [Step; 9] = [
    Step::Received,
    Step::Locked,
    Step::Begun,
    Step::Claimed,
    Step::Handled,
    Step::Committing,
    Step::CommitSent,
    Step::Committed,
    Step::Acknowledging,
];

/// What was measured.
pub(crate) struct Recovery {
    pub(crate) what: &'static str,
    /// How long messages stood still, each time.
    pub(crate) seconds: Vec<f64>,
}

/// Kills each server and a host so many times; returns what servers they are besides.
///
/// # Errors
/// When something does not come back.
pub(crate) async fn measure(setting: Setting, seed: u64, times: usize) -> Result<(String, Vec<Recovery>)> {
    let mut stage = Stage::start(setting, Profile::Default).await?;
    let mut hosts = start_hosts(&stage, 2, None).await?;
    let producer = Producer::new(&stage, seed, None, Arc::default()).await?;
    let mut orders = (0..).map(|number| Order::of(seed, number)).filter(|order| order.kind == Kind::Plain);

    let mut found = Vec::new();
    for what in ["broker", "database", "lock server"] {
        let mut recovery = Recovery { what, seconds: Vec::new() };
        while recovery.seconds.len() < times {
            let over = AtomicBool::new(false);
            let (measured, ()) = tokio::join!(
                async {
                    let measured = restart(&mut stage, what).await;
                    over.store(true, Ordering::Relaxed);
                    measured
                },
                flood(&producer, &mut orders, &over),
            );
            let measured = measured.with_context(|| format!("after the {what} was killed"))?;
            recovery.seconds.push(measured.as_secs_f64());
        }
        found.push(recovery);
    }
    let mut recovery = Recovery { what: "host", seconds: Vec::new() };
    settle(&stage).await?;
    for (number, step) in STEPS.into_iter().cycle().take(times).enumerate() {
        let count = hosts.len();
        let burst: Vec<Order> = orders.by_ref().take(BURST).collect();
        let measured = lose(&stage, &mut hosts[number % count], step, &producer, &burst).await;
        let measured = measured.with_context(|| format!("after a host was killed at {:?}", step.name()))?;
        recovery.seconds.push(measured.as_secs_f64());
    }
    found.push(recovery);
    for host in &mut hosts {
        host.stop().await?;
    }
    Ok((stage.describe(), found))
}

/// Publishes until it is over.
async fn flood(producer: &Producer, orders: &mut impl Iterator<Item = Order>, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let window: Vec<Order> = orders.take(WINDOW).collect();
        producer.publish(&window).await;
        tokio::time::sleep(PAUSE).await;
    }
}

/// Kills a server while messages flow, and starts it again; returns how long after it took connections something was
/// handled.
async fn restart(stage: &mut Stage, what: &str) -> Result<Duration> {
    flows(stage).await?;
    tokio::time::sleep(CALM).await;
    match what {
        "broker" => stage.rabbits.first_mut().context("there is no RabbitMQ here")?.crash().await?,
        "lock server" => stage.redis.as_mut().context("there is no Redis here")?.crash().await?,
        _ => ensure!(stage.database.crash().await?, "a file cannot be killed"),
    }
    let began = Instant::now();
    flows(stage).await?;
    Ok(began.elapsed())
}

/// Waits until something more is handled.
async fn flows(stage: &Stage) -> Result<()> {
    let count = async || stage.reader.number("COUNT(*)", "FROM effects").await;
    let before = wait_for(START_LIMIT, "the database to answer", count).await?;
    wait_for(START_LIMIT, "messages to be handled", async || {
        let now = count().await?;
        ensure!(now > before, "{now} effects, as before");
        Ok(())
    })
    .await
}

/// Waits until nothing is left in the queues.
async fn settle(stage: &Stage) -> Result<()> {
    let vhost = stage.vhost.as_ref().context("there is no RabbitMQ here")?;
    wait_for(START_LIMIT, "the queues to be empty", async || {
        for queue in ORDERED {
            ensure!(vhost.queue(queue).await?.messages == 0, "{queue} is not empty");
        }
        Ok(())
    })
    .await
}

/// A host dies at a step with messages in hand; returns how long after that all of them are done.
async fn lose(stage: &Stage, host: &mut Host, step: Step, producer: &Producer, burst: &[Order]) -> Result<Duration> {
    let known = async || stage.reader.number("COUNT(*)", "FROM hapax_inbox WHERE status = 1").await;
    let wanted = known().await? + i64::try_from(burst.len() * ORDERED.len())?;
    host.stop().await?;
    host.start(Some(Trap::Kill(step, 1)))?;
    host.wait_consuming(START_LIMIT).await?;
    producer.publish(burst).await;
    ensure!(host.dies(START_LIMIT).await?, "it did not die");
    let began = Instant::now();
    wait_for(START_LIMIT, "the other host to complete its messages", async || {
        let now = known().await?;
        ensure!(now >= wanted, "{now} of {wanted} are completed");
        Ok(())
    })
    .await?;
    let time = began.elapsed();
    host.start(None)?;
    host.wait_consuming(START_LIMIT).await?;
    Ok(time)
}

/// The measurements as a table.
pub(crate) fn table(found: &[Recovery]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([&["killed"][..], &SUMMARY].concat());
    for recovery in found {
        table.add_row([&[recovery.what.to_owned()][..], &summary(&recovery.seconds)].concat());
    }
    align_numbers(&mut table);
    table
}

/// What [`summary`] returns.
pub(crate) const SUMMARY: [&str; 3] = ["times", "median, s", "longest, s"];

/// What many measurements come to.
pub(crate) fn summary(seconds: &[f64]) -> [String; 3] {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let text = |time: Option<&f64>| time.map_or("-".to_owned(), |time| format!("{time:.2}"));
    [sorted.len().to_string(), text(sorted.get(sorted.len() / 2)), text(sorted.last())]
}
