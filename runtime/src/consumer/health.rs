//! Whether a consumer's handler works at all. Where nearly every attempt fails, something that it depends on is down:
//! the consumer then probes with single messages, uncounted, until one succeeds.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedMutexGuard;

use crate::pipeline::Verdicts;

/// Back-off between probes: the first pause, doubled each time up to the second.
const PROBE_EVERY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// When a consumer takes the failures of its handler for the failure of something that it depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MassFailure {
    /// How many verdicts to look at.
    pub window: usize,
    /// Probing begins above this share of transient failures, 0 to 1.
    pub threshold: f64,
}

/// A consumer's judgement of its handler.
pub(super) struct Health {
    policy: Option<MassFailure>,
    state: Mutex<State>,
    /// Held by the one lane that probes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    /// The last verdicts; true for a failure that may pass.
    recent: VecDeque<bool>,
    probing: Option<Probing>,
}

struct Probing {
    since: Instant,
    next: Instant,
    pause: Duration,
}

/// The right to try one message. A lane asks for it before it takes anything, so that nothing waits with it.
pub(super) struct Probe {
    _turn: OwnedMutexGuard<()>,
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
        Self { policy, state: Mutex::default(), turn: Arc::default() }
    }

    /// While probing: waits for this lane's turn and for the time of the next probe. None in good health.
    pub(super) async fn probe(&self) -> Option<Probe> {
        self.probing_for()?;
        let turn = self.turn.clone().lock_owned().await;
        // It may have ended while others had their turn.
        let next = self.state().probing.as_ref()?.next;
        tokio::time::sleep_until(next.into()).await;
        Some(Probe { _turn: turn })
    }

    /// For how long single messages have been tried; none in good health.
    pub(super) fn probing_for(&self) -> Option<Duration> {
        self.state().probing.as_ref().map(|probing| probing.since.elapsed())
    }

    /// Takes note of a run's verdicts.
    pub(super) fn note(&self, verdicts: Verdicts) -> Mood {
        let Some(policy) = self.policy else { return Mood::Same };
        let mut state = self.state();
        if let Some(probing) = &mut state.probing {
            if verdicts.answered > 0 {
                *state = State::default();
                return Mood::Better;
            }
            // A message that needed no call tells nothing, and costs no pause.
            if verdicts.transient > 0 {
                probing.next = Instant::now() + probing.pause;
                probing.pause = (probing.pause * 2).min(PROBE_EVERY.1);
            }
            return Mood::Same;
        }
        let recent = &mut state.recent;
        recent.extend(std::iter::repeat_n(true, verdicts.transient as usize));
        recent.extend(std::iter::repeat_n(false, verdicts.answered as usize));
        let surplus = recent.len().saturating_sub(policy.window);
        recent.drain(..surplus);
        let failed = recent.iter().filter(|&&failed| failed).count();
        if recent.len() < policy.window || (failed as f64) <= policy.threshold * recent.len() as f64 {
            return Mood::Same;
        }
        let (now, pause) = (Instant::now(), PROBE_EVERY.0);
        state.probing = Some(Probing { since: now, next: now + pause, pause });
        Mood::Worse
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(transient: u32) -> Verdicts {
        Verdicts { answered: 0, transient }
    }

    #[test]
    fn probing_begins_above_the_threshold_of_a_full_window_and_ends_with_one_answer() {
        let health = Health::new(Some(MassFailure { window: 10, threshold: 0.9 }));
        assert_eq!(health.note(failed(9)), Mood::Same, "the window is not full");
        assert_eq!(health.note(Verdicts { answered: 1, transient: 0 }), Mood::Same, "nine of ten is not above");
        assert_eq!(health.note(failed(10)), Mood::Worse);
        assert_eq!(health.note(failed(1)), Mood::Same);
        assert!(health.probing_for().is_some());
        assert_eq!(health.note(Verdicts { answered: 1, transient: 0 }), Mood::Better);
        assert_eq!(health.note(failed(9)), Mood::Same, "it starts afresh");
    }

    #[tokio::test]
    async fn one_lane_probes_at_a_time_and_none_in_good_health() {
        let health = Health::new(Some(MassFailure { window: 10, threshold: 0.5 }));
        assert!(health.probe().await.is_none());
        health.note(failed(10));
        let probe = health.probe().await;
        assert!(probe.is_some());
        let mut second = std::pin::pin!(health.probe());
        assert!(futures::poll!(&mut second).is_pending(), "another lane has its turn");
        health.note(Verdicts { answered: 1, transient: 0 });
        drop(probe);
        assert!(second.await.is_none(), "it ended while this one waited");
    }
}
