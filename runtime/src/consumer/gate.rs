//! What makes a consumer stop and wait: infrastructure that failed.

use std::time::Instant;

use tokio::sync::watch;

use crate::pipeline::Fault;

/// Closed while infrastructure is away. Lanes keep what they have, and wait.
pub(super) struct Gate(watch::Sender<Option<Closed>>);

/// Since when, and why.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    /// What failed.
    pub(super) fault: Fault,
    /// When it was noticed.
    pub(super) since: Instant,
}

impl Default for Gate {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Gate {
    /// Closes it; the first fault counts.
    pub(super) fn close(&self, fault: Fault) {
        self.0.send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(Closed { fault, since: Instant::now() });
            first
        });
    }

    /// Opens it again.
    pub(super) fn open(&self) {
        self.0.send_replace(None);
    }

    /// Why it is closed, if it is.
    pub(super) fn closed(&self) -> Option<Closed> {
        self.0.borrow().clone()
    }

    /// Waits until it is open.
    pub(super) async fn opened(&self) {
        // The sender lives as long as we do, so the only end is the condition.
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }

    /// Waits until it is closed, and says why.
    pub(super) async fn shut(&self) -> Closed {
        let mut watch = self.0.subscribe();
        loop {
            if let Some(closed) = watch.borrow_and_update().clone() {
                return closed;
            }
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
