//! The relay: the only publisher. It publishes what lanes have just committed, and sweeps what was left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{SendTimeoutError, TrySendError};
use tokio_util::sync::CancellationToken;

use crate::broker::{Outgoing, Published, Publisher};
use crate::ledger::Ledger;
use crate::ledger::database::DbError;
use crate::ledger::outbox::{OutboxId, OutboxRow};
use crate::sabotage::{self, Breach, Step};
use crate::telemetry::metrics;

/// At most this many messages wait for confirms at a time. Each window costs the broker a sync, and SQL one more.
const WINDOW: usize = 1024;

/// At most this many committed rows wait in memory, with at most so many bytes of bodies (a single larger one may). What
/// has more bytes is left to the sweep: it is safe in SQL.
const QUEUE: usize = 4 * WINDOW;
const QUEUE_BYTES: usize = 32 << 20;

/// A lane that commits faster than the relay publishes waits for it: what is left to the sweep would be published only
/// after its grace time. A relay that takes nothing for this long is stuck, and holds up nobody until it goes on.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);

/// How often rows that were left behind are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Pages that one sweep publishes at most, and how soon the next one follows where more is left: what lanes commit
/// meanwhile comes in between.
const SWEEP_PAGES: usize = 4;
const SWEEP_ON: Duration = Duration::from_millis(50);

/// A row that could not be published is tried again after this, doubled each time up to the second value.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Hands committed outbox rows to the relay of their database.
#[derive(Clone)]
pub struct Relay {
    queue: mpsc::Sender<OutboxRow>,
    load: Arc<Load>,
}

/// How much a relay has on its hands.
#[derive(Default)]
struct Load {
    /// Sizes of the bodies that wait in the queue or are being published, summed.
    bytes: AtomicUsize,
    /// Somebody has waited for room in vain, and nothing was published since.
    stuck: AtomicBool,
}

impl Relay {
    /// Starts the relay of one database. It ends when `stop` is cancelled and its queue is empty; await the handle.
    pub fn start(
        ledger: Arc<Ledger>,
        publisher: Box<dyn Publisher>,
        grace: Duration,
        stop: CancellationToken,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, rows) = mpsc::channel(QUEUE);
        let load = Arc::<Load>::default();
        let relay = Self { queue, load: load.clone() };
        let task = Task { ledger, publisher, grace, load };
        (relay, tokio::spawn(task.run(rows, stop)))
    }

    /// Publishes rows that have committed. Waits for room while the relay gets on; what does not fit is swept later.
    /// Copies of dead letters, whose bodies are in SQL, always are.
    pub async fn publish(&self, rows: Vec<OutboxRow>) {
        for row in rows.into_iter().filter(|row| row.parked_id.is_none()) {
            let size = row.outgoing.body.len();
            let before = self.load.bytes.fetch_add(size, Ordering::Relaxed);
            let fits = before == 0 || before + size <= QUEUE_BYTES;
            if !fits || !self.enqueue(row).await {
                self.load.bytes.fetch_sub(size, Ordering::Relaxed);
            }
        }
    }

    /// False if there is no room for it.
    async fn enqueue(&self, row: OutboxRow) -> bool {
        match self.queue.try_send(row) {
            Ok(()) => true,
            Err(TrySendError::Full(row)) if !self.load.stuck.load(Ordering::Relaxed) => {
                let sent = self.queue.send_timeout(row, ROOM_PATIENCE).await;
                self.load.stuck.store(matches!(sent, Err(SendTimeoutError::Timeout(_))), Ordering::Relaxed);
                sent.is_ok()
            }
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
        }
    }
}

struct Task {
    ledger: Arc<Ledger>,
    publisher: Box<dyn Publisher>,
    grace: Duration,
    load: Arc<Load>,
}

impl Task {
    async fn run(self, mut rows: mpsc::Receiver<OutboxRow>, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut window = Vec::with_capacity(WINDOW);
        loop {
            // In this order: under steady traffic there always are rows, and what was left behind must get its turn.
            tokio::select! {
                biased;
                _ = sweep.tick() => {
                    if self.sweep(&stop).await == Swept::InPart {
                        sweep.reset_after(SWEEP_ON);
                    }
                }
                () = stop.cancelled() => {
                    while rows.try_recv().map(|row| window.push(row)).is_ok() {}
                    self.publish_fresh(&mut window).await;
                    return;
                }
                received = rows.recv_many(&mut window, WINDOW) => {
                    if received == 0 {
                        return;
                    }
                    self.publish_fresh(&mut window).await;
                }
            }
        }
    }

    /// Publishes what lanes have just committed.
    async fn publish_fresh(&self, window: &mut Vec<OutboxRow>) {
        let bytes = window.iter().map(|row| row.outgoing.body.len()).sum();
        self.publish(window.drain(..).map(|row| (row, 0)).collect()).await;
        self.load.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.load.stuck.store(false, Ordering::Relaxed);
    }

    /// Publishes one window and records what became of each row. Errors of the database are logged: the rows stay, and
    /// come again with the next sweep, under the same ids.
    async fn publish(&self, rows: Vec<(OutboxRow, u32)>) {
        if rows.is_empty() {
            return;
        }
        let mut window: Vec<Outgoing> = rows.iter().map(|(row, _)| row.outgoing.clone()).collect();
        if sabotage::broken(Breach::OutboxIdsUnstable) {
            let anew = |message: &mut Outgoing| message.properties.message_id = Some(uuid::Uuid::new_v4().to_string());
            window.iter_mut().for_each(anew);
        }
        sabotage::at(Step::Publishing);
        let answers = self.publisher.publish(&window).await;
        sabotage::at(Step::Confirmed);
        let mut done: Vec<OutboxId> = Vec::with_capacity(rows.len());
        let mut recorded = Ok(());
        for ((row, attempts), answer) in rows.iter().zip(answers) {
            let result = match answer {
                Published::Confirmed => {
                    done.push(row.id);
                    Ok(())
                }
                Published::Returned(reason) | Published::Refused(reason) => self.undeliverable(row, &reason).await,
                Published::Unknown(reason) => self.ledger.outbox_retry(row.id, &reason, delay(*attempts)).await,
            };
            recorded = recorded.and(result);
        }
        metrics::outbox_published(done.len() as u64);
        if let Err(error) = recorded.and(self.ledger.outbox_done(&done).await) {
            metrics::database_failed();
            tracing::warn!("outbox: {error}; what was published may be published again, under the same ids");
        }
    }

    async fn undeliverable(&self, row: &OutboxRow, reason: &str) -> Result<(), DbError> {
        metrics::outbox_undeliverable(1);
        tracing::error!(
            message_id = row.outgoing.properties.message_id.as_deref().unwrap_or("-"),
            "outbox message to exchange {:?} with routing key {:?} is undeliverable: {reason}. \
             It stays in hapax_outbox; bind a queue or declare the exchange, then run `hapax outbox retry`",
            row.outgoing.exchange,
            row.outgoing.routing_key,
        );
        self.ledger.outbox_undeliverable(row.id, reason).await
    }

    /// Publishes rows older than their grace time: those of hosts that are gone, those that did not fit the queue,
    /// copies of dead letters, and those whose last publication came to nothing.
    async fn sweep(&self, stop: &CancellationToken) -> Swept {
        for _ in 0..SWEEP_PAGES {
            if stop.is_cancelled() {
                return Swept::InPart;
            }
            match self.ledger.outbox_due(WINDOW, self.grace).await {
                Ok(due) if due.is_empty() => return Swept::All,
                Ok(due) => self.publish(due.into_iter().map(|entry| (entry.row, entry.attempts)).collect()).await,
                Err(error) => {
                    metrics::database_failed();
                    tracing::debug!("outbox: {error}");
                    return Swept::All;
                }
            }
        }
        Swept::InPart
    }
}

/// How far a sweep came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Swept {
    /// Nothing more is due, or nothing more can be learnt now.
    All,
    /// More may be due.
    InPart,
}

fn delay(attempts: u32) -> Duration {
    RETRY_DELAY.0.saturating_mul(1 << attempts.min(10)).min(RETRY_DELAY.1)
}
