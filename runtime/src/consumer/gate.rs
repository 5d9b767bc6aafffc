//! What makes a consumer stop and wait: infrastructure that failed, and handlers that nearly all fail.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::watch;

use crate::pipeline::{Fault, Verdicts};

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

/// When a consumer takes the failures of its handler for the failure of something that it depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassFailure {
    /// How many verdicts to look at.
    pub window: usize,
    /// Probing begins above this share of transient failures, 0 to 1.
    pub threshold: f64,
}

/// A consumer's judgement of its handler. While it probes, single messages are tried with back-off and nothing counts.
pub(super) struct Health {
    policy: Option<MassFailure>,
    recent: Mutex<VecDeque<bool>>,
    probing: AtomicBool,
    /// Held by the one lane that probes.
    pub(super) probe: tokio::sync::Mutex<()>,
}

/// A change of mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mood {
    /// Nearly everything fails: probing begins.
    Worse,
    /// A message was answered: probing ends.
    Better,
    /// As before.
    Same,
}

impl Health {
    /// In good health. Without a policy it never probes.
    pub(super) fn new(policy: Option<MassFailure>) -> Self {
        Self { policy, recent: Mutex::default(), probing: AtomicBool::new(false), probe: tokio::sync::Mutex::new(()) }
    }

    /// True while single messages are tried.
    pub(super) fn probing(&self) -> bool {
        self.probing.load(Ordering::Acquire)
    }

    /// Takes note of a batch's verdicts.
    pub(super) fn note(&self, verdicts: Verdicts) -> Mood {
        let Some(policy) = self.policy else { return Mood::Same };
        let mut recent = self.recent.lock().unwrap_or_else(|poison| poison.into_inner());
        if self.probing() {
            if verdicts.answered == 0 {
                return Mood::Same;
            }
            recent.clear();
            self.probing.store(false, Ordering::Release);
            return Mood::Better;
        }
        recent.extend(std::iter::repeat_n(true, verdicts.transient as usize));
        recent.extend(std::iter::repeat_n(false, verdicts.answered as usize));
        let surplus = recent.len().saturating_sub(policy.window);
        recent.drain(..surplus);
        let failed = recent.iter().filter(|&&failed| failed).count();
        if recent.len() < policy.window || (failed as f64) <= policy.threshold * recent.len() as f64 {
            return Mood::Same;
        }
        self.probing.store(true, Ordering::Release);
        Mood::Worse
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_begins_above_the_threshold_of_a_full_window_and_ends_with_one_answer() {
        let health = Health::new(Some(MassFailure { window: 10, threshold: 0.9 }));
        let failed = |transient| Verdicts { answered: 0, transient };
        assert_eq!(health.note(failed(9)), Mood::Same, "the window is not full");
        assert_eq!(health.note(Verdicts { answered: 1, transient: 0 }), Mood::Same, "nine of ten is not above");
        assert_eq!(health.note(failed(10)), Mood::Worse);
        assert_eq!(health.note(failed(1)), Mood::Same);
        assert!(health.probing());
        assert_eq!(health.note(Verdicts { answered: 1, transient: 0 }), Mood::Better);
        assert_eq!(health.note(failed(9)), Mood::Same, "it starts afresh");
    }
}
