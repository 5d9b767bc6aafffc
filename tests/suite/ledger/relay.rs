//! The relay on each database: what comes when, and what it keeps in memory.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hapax::broker::{Outgoing, Published, Publisher};
use hapax::ledger::Ledger;
use hapax::ledger::outbox::OutboxRow;
use hapax::relay::Relay;
use hapax_tests::{TestResult, wait_until};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::outbox::{add, sent};
use crate::subject::*;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that confirms everything, at its pace, and remembers it.
#[derive(Clone)]
struct Paced {
    pace: Duration,
    /// One permit for each window that it may take.
    windows: Arc<Semaphore>,
    published: Arc<Mutex<Vec<String>>>,
}

impl Paced {
    fn new(pace: Duration, windows: usize) -> Self {
        Self { pace, windows: Arc::new(Semaphore::new(windows)), published: Arc::default() }
    }

    fn published(&self) -> Vec<String> {
        self.published.lock().unwrap().clone()
    }
}

#[async_trait]
impl Publisher for Paced {
    async fn publish(&self, window: &[Outgoing]) -> Vec<Published> {
        self.windows.acquire().await.unwrap().forget();
        tokio::time::sleep(self.pace).await;
        let ids = window.iter().filter_map(|message| message.properties.message_id.clone());
        self.published.lock().unwrap().extend(ids);
        vec![Published::Confirmed; window.len()]
    }
}

/// A relay, and the hand that stops it.
async fn start(
    subject: &Subject,
    publisher: &Paced,
) -> anyhow::Result<(Relay, tokio::task::JoinHandle<()>, CancellationToken)> {
    let ledger = Arc::new(Ledger::open(Arc::clone(subject.ledger.database())).await?);
    let stop = CancellationToken::new();
    let (relay, task) = Relay::start(ledger, Box::new(publisher.clone()), LONG, stop.clone());
    Ok((relay, task, stop))
}

pub(crate) async fn what_was_left_behind_gets_its_turn_under_steady_traffic(subject: Subject) -> TestResult {
    let publisher = Paced::new(Duration::from_millis(5), Semaphore::MAX_PERMITS);
    let (relay, task, stop) = start(&subject, &publisher).await?;
    // As lanes do that are never idle: there always are rows in its queue.
    let feeding = tokio::spawn(async move {
        let fresh = |n: u64| sent("fresh", &format!("fresh {n}"), Vec::new());
        for round in 0_u64.. {
            relay.publish((0..256).map(|n| fresh(round * 256 + n)).collect()).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    wait_until(PATIENCE, "the traffic to flow", async || publisher.published().len() > 1000).await?;
    add(&subject, &[sent("a", "left behind", Vec::new())], Duration::ZERO).await?;
    let left_behind = async || publisher.published().iter().any(|id| id == "left behind");
    wait_until(PATIENCE, "the row that was left behind", left_behind).await?;
    // Nor does traffic keep it from ending.
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await??;
    feeding.abort();
    Ok(())
}

pub(crate) async fn what_has_more_bytes_than_the_relay_keeps_is_left_in_sql(subject: Subject) -> TestResult {
    let publisher = Paced::new(Duration::ZERO, 0);
    let (relay, task, stop) = start(&subject, &publisher).await?;
    let body = bytes::Bytes::from(vec![b'x'; 12 << 20]);
    let large = |name: &str| {
        let mut row: OutboxRow = sent("a", name, Vec::new());
        row.outgoing.body = body.clone();
        row
    };
    relay.publish(vec![large("one"), large("two"), large("three")]).await;
    relay.publish(vec![sent("a", "small", vec![b'x'; 100])]).await;
    publisher.windows.add_permits(100);
    wait_until(PATIENCE, "three rows", async || publisher.published().len() == 3).await?;
    assert_eq!(publisher.published(), ["one", "two", "small"]);
    // There is room again, if a moment later than the broker's answer.
    let again = async || {
        relay.publish(vec![large("four")]).await;
        publisher.published().iter().any(|id| id == "four")
    };
    wait_until(PATIENCE, "room for another one", again).await?;
    assert!(!publisher.published().iter().any(|id| id == "three"));
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await??;
    Ok(())
}

pub(crate) async fn whoever_commits_faster_than_it_publishes_waits_for_it(subject: Subject) -> TestResult {
    const ROWS: usize = 20_000;
    let publisher = Paced::new(Duration::from_millis(1), Semaphore::MAX_PERMITS);
    let (relay, task, stop) = start(&subject, &publisher).await?;
    relay.publish((0..ROWS).map(|n| sent("a", &format!("m{n}"), Vec::new())).collect()).await;
    // None was left to the sweep: they are not even in SQL.
    wait_until(PATIENCE, "all of them", async || publisher.published().len() == ROWS).await?;
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await??;
    Ok(())
}

pub(crate) async fn a_relay_that_is_stuck_holds_up_nobody(subject: Subject) -> TestResult {
    let publisher = Paced::new(Duration::ZERO, 0);
    let (relay, task, stop) = start(&subject, &publisher).await?;
    let many = |from: usize| (from..from + 20_000).map(|n| sent("a", &format!("m{n}"), Vec::new())).collect();
    tokio::time::timeout(PATIENCE, relay.publish(many(0))).await?;
    for round in 1..100 {
        tokio::time::timeout(PATIENCE, relay.publish(many(round * 20_000))).await?;
    }
    // Once it goes on, it is waited for again.
    publisher.windows.add_permits(Semaphore::MAX_PERMITS / 2);
    wait_until(PATIENCE, "the rows that it had room for", async || publisher.published().len() > 1000).await?;
    let before = publisher.published().len();
    relay.publish(many(0)).await;
    wait_until(PATIENCE, "all of the others", async || publisher.published().len() >= before + 20_000).await?;
    stop.cancel();
    tokio::time::timeout(PATIENCE, task).await??;
    Ok(())
}
