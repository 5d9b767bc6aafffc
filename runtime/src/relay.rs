//! The relay: the only publisher. It publishes what lanes have just committed, and sweeps what was left behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::broker::{Outgoing, Published, Publisher};
use crate::ledger::Ledger;
use crate::ledger::database::DbError;
use crate::ledger::outbox::{OutboxId, OutboxRow};
use crate::telemetry::metrics;

/// At most this many messages wait for confirms at a time.
const WINDOW: usize = 256;

/// At most this many committed rows wait in memory. Past it they are left to the sweep: they are safe in SQL.
const QUEUE: usize = 4 * WINDOW;

/// How often rows that were left behind are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A row that could not be published is tried again after this, doubled each time up to the second value.
const RETRY_DELAY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Hands committed outbox rows to the relay of their database.
#[derive(Clone)]
pub struct Relay {
    queue: mpsc::Sender<OutboxRow>,
    waiting: Arc<AtomicU64>,
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
        let waiting = Arc::new(AtomicU64::new(0));
        let relay = Self { queue, waiting: waiting.clone() };
        let task = Task { ledger, publisher, grace, waiting };
        (relay, tokio::spawn(task.run(rows, stop)))
    }

    /// Publishes rows that have committed. Never waits: what does not fit is swept later. Copies of dead letters, whose
    /// bodies are in SQL, always are.
    pub fn publish(&self, rows: Vec<OutboxRow>) {
        for row in rows {
            if row.parked_id.is_some() || self.queue.try_send(row).is_err() {
                self.waiting.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Rows that wait to be published, as of the last look.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

struct Task {
    ledger: Arc<Ledger>,
    publisher: Box<dyn Publisher>,
    grace: Duration,
    waiting: Arc<AtomicU64>,
}

impl Task {
    async fn run(self, mut rows: mpsc::Receiver<OutboxRow>, stop: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut window = Vec::with_capacity(WINDOW);
        loop {
            tokio::select! {
                biased;
                received = rows.recv_many(&mut window, WINDOW) => {
                    if received == 0 {
                        return;
                    }
                    let fresh = window.drain(..).map(|row| (row, 0)).collect();
                    self.publish(fresh).await;
                }
                _ = sweep.tick() => self.sweep().await,
                () = stop.cancelled() => {
                    while rows.try_recv().map(|row| window.push(row)).is_ok() {}
                    self.publish(window.drain(..).map(|row| (row, 0)).collect()).await;
                    return;
                }
            }
        }
    }

    /// Publishes one window and records what became of each row. Errors of the database are logged: the rows stay, and
    /// come again with the next sweep, under the same ids.
    async fn publish(&self, rows: Vec<(OutboxRow, u32)>) {
        if rows.is_empty() {
            return;
        }
        let window: Vec<Outgoing> = rows.iter().map(|(row, _)| row.outgoing.clone()).collect();
        let answers = self.publisher.publish(&window).await;
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
    async fn sweep(&self) {
        loop {
            let due = match self.ledger.outbox_due(WINDOW, self.grace).await {
                Ok(due) => due,
                Err(error) => {
                    metrics::database_failed();
                    tracing::debug!("outbox: {error}");
                    return;
                }
            };
            let full = due.len() == WINDOW;
            self.publish(due.into_iter().map(|entry| (entry.row, entry.attempts)).collect()).await;
            if !full {
                break;
            }
        }
        if let Ok((waiting, oldest)) = self.ledger.outbox_stats().await {
            self.waiting.store(waiting, Ordering::Relaxed);
            metrics::outbox_waiting(waiting, oldest);
        }
    }
}

fn delay(attempts: u32) -> Duration {
    RETRY_DELAY.0.saturating_mul(1 << attempts.min(10)).min(RETRY_DELAY.1)
}
