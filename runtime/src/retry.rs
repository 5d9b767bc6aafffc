//! When a failed message runs again: exponential back-off with jitter, as a pure function.
//!
//! `max_attempts` counts every call of the handler, the first one included: 5 means one call and four repetitions.

use std::time::Duration;

/// The longest delay that a handler's advice can ask for: ten years. More is taken as this much, so that due times stay
/// within what every database can store.
pub const MAX_ADVICE: Duration = Duration::from_secs(315_576_000);

/// Where a failed message waits for its next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryMode {
    /// In SQL, while the queue flows on.
    Delayed,
    /// In place, and everything behind it in its lane waits too: for queues whose order matters.
    Blocking,
}

/// How often, and after how long, a failed message is handled again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryPolicy {
    /// Calls of the handler in all, the first one included; never 0.
    pub max_attempts: u32,
    /// Delay after the first failure.
    pub initial_interval: Duration,
    /// Factor from one delay to the next; at least 1.
    pub multiplier: f64,
    /// No delay of the policy's own is longer, jitter included.
    pub max_interval: Duration,
    /// Share of a delay by which chance lengthens or shortens it: 0 to 1.
    pub jitter: f64,
    /// Where the message waits.
    pub mode: RetryMode,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 5,
            initial_interval: Duration::from_secs(3),
            multiplier: 2.0,
            max_interval: Duration::from_secs(600),
            jitter: 0.2,
            mode: RetryMode::Delayed,
        }
    }
}

impl RetryPolicy {
    /// True where what comes after a failing message must wait for it.
    pub fn keeps_order(&self) -> bool {
        self.mode == RetryMode::Blocking
    }

    /// How long to wait after the `failed_attempts`-th failure (1 after the first), or `None` when that was the last
    /// attempt.
    ///
    /// `advice` is the handler's own delay: it replaces the policy's, may exceed `max_interval`, gets no jitter, and
    /// does not grant attempts beyond `max_attempts`. `random` is uniform in 0..1; a number outside is moved to the
    /// nearer end.
    pub fn next_delay(&self, failed_attempts: u32, advice: Option<Duration>, random: f64) -> Option<Duration> {
        if failed_attempts >= self.max_attempts {
            return None;
        }
        Some(match advice {
            Some(delay) => delay.min(MAX_ADVICE),
            None => self.spread(self.interval(failed_attempts), random),
        })
    }

    /// The delay without jitter. Computed in floating point: overflow becomes infinity, which the limit cuts.
    fn interval(&self, failed_attempts: u32) -> Duration {
        if self.initial_interval.is_zero() {
            return Duration::ZERO; // 0 × infinity is no number
        }
        let repetitions = f64::from(failed_attempts.saturating_sub(1));
        self.at_most_max(self.initial_interval.as_secs_f64() * self.multiplier.powf(repetitions))
    }

    fn spread(&self, interval: Duration, random: f64) -> Duration {
        let random = if random.is_nan() { 0.5 } else { random.clamp(0.0, 1.0) };
        let factor = 1.0 + self.jitter * (2.0 * random - 1.0);
        if factor == 1.0 {
            return interval; // exact where there is no jitter
        }
        self.at_most_max(interval.as_secs_f64() * factor)
    }

    /// Seconds to a duration; what is too large, infinite or not a number is the maximum, what is negative is zero.
    fn at_most_max(&self, seconds: f64) -> Duration {
        if seconds <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(seconds).unwrap_or(self.max_interval).min(self.max_interval)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn classic() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 5,
            initial_interval: Duration::from_secs(3),
            multiplier: 1.0,
            max_interval: Duration::from_secs(10),
            jitter: 0.0,
            mode: RetryMode::Delayed,
        }
    }

    #[test]
    fn the_classic_policy_calls_five_times_three_seconds_apart() {
        let delays: Vec<_> = (1..=5).map(|failed| classic().next_delay(failed, None, 0.7)).collect();
        let three = Some(Duration::from_secs(3));
        assert_eq!(delays, [three, three, three, three, None]);
    }

    #[test]
    fn intervals_grow_up_to_the_limit() {
        let policy = RetryPolicy { max_attempts: 10, multiplier: 2.0, ..classic() };
        let seconds: Vec<_> = (1..=4).map(|n| policy.next_delay(n, None, 0.5).map(|d| d.as_secs())).collect();
        assert_eq!(seconds, [Some(3), Some(6), Some(10), Some(10)]);
    }

    #[test]
    fn one_attempt_means_no_retry_even_on_advice() {
        let policy = RetryPolicy { max_attempts: 1, ..classic() };
        assert_eq!(policy.next_delay(1, None, 0.5), None);
        assert_eq!(policy.next_delay(1, Some(Duration::from_secs(1)), 0.5), None);
    }

    #[test]
    fn advice_replaces_the_policy_and_its_limit() {
        let hour = Duration::from_secs(3600);
        let jittery = RetryPolicy { jitter: 1.0, ..classic() };
        assert_eq!(jittery.next_delay(1, Some(hour), 0.0), Some(hour));
        assert_eq!(jittery.next_delay(1, Some(Duration::ZERO), 0.9), Some(Duration::ZERO));
        assert_eq!(jittery.next_delay(1, Some(Duration::MAX), 0.9), Some(MAX_ADVICE));
    }

    #[test]
    fn extremes_neither_panic_nor_exceed_the_limit() {
        let policy = RetryPolicy {
            max_attempts: u32::MAX,
            initial_interval: Duration::MAX,
            multiplier: f64::MAX,
            max_interval: Duration::MAX,
            jitter: 1.0,
            mode: RetryMode::Delayed,
        };
        assert_eq!(policy.next_delay(u32::MAX - 1, None, 1.0), Some(Duration::MAX));
        let none = RetryPolicy { initial_interval: Duration::ZERO, ..policy };
        assert_eq!(none.next_delay(u32::MAX - 1, None, f64::NAN), Some(Duration::ZERO));
        assert_eq!(policy.next_delay(0, None, f64::NEG_INFINITY), Some(Duration::ZERO));
    }

    prop_compose! {
        fn policies()(
            max_attempts in 1..u32::MAX,
            initial_ms in 0..100_000_000u64,
            multiplier in 1.0..100.0f64,
            more_ms in 0..100_000_000u64,
            jitter in 0.0..=1.0f64,
        ) -> RetryPolicy {
            RetryPolicy {
                max_attempts,
                initial_interval: Duration::from_millis(initial_ms),
                multiplier,
                max_interval: Duration::from_millis(initial_ms + more_ms),
                jitter,
                mode: RetryMode::Delayed,
            }
        }
    }

    proptest! {
        #[test]
        fn exactly_max_attempts_calls_are_made(policy in policies(), failed in any::<u32>(), random in 0.0..1.0f64) {
            prop_assert_eq!(policy.next_delay(failed, None, random).is_some(), failed < policy.max_attempts);
        }

        #[test]
        fn without_jitter_delays_never_shrink(policy in policies(), failed in 1..1000u32, random in 0.0..1.0f64) {
            let policy = RetryPolicy { jitter: 0.0, max_attempts: u32::MAX, ..policy };
            let now = policy.next_delay(failed, None, random).unwrap();
            let next = policy.next_delay(failed + 1, None, random).unwrap();
            prop_assert!(now <= next, "{:?} then {:?}", now, next);
            prop_assert!(now >= policy.initial_interval.min(policy.max_interval).saturating_sub(Duration::from_micros(1)));
        }

        #[test]
        fn jitter_stays_within_its_share(policy in policies(), failed in 1..1000u32, random in 0.0..1.0f64) {
            let policy = RetryPolicy { max_attempts: u32::MAX, ..policy };
            let plain = RetryPolicy { jitter: 0.0, ..policy }.next_delay(failed, None, random).unwrap().as_secs_f64();
            let delay = policy.next_delay(failed, None, random).unwrap().as_secs_f64();
            let slack = 1e-6 + plain * 1e-9;
            prop_assert!(delay >= plain * (1.0 - policy.jitter) - slack);
            prop_assert!(delay <= plain * (1.0 + policy.jitter) + slack);
        }

        #[test]
        fn only_advice_exceeds_the_limit(policy in policies(), failed in any::<u32>(), random in any::<f64>(), advice in any::<u64>()) {
            if let Some(delay) = policy.next_delay(failed, None, random) {
                prop_assert!(delay <= policy.max_interval);
            }
            let advice = Duration::from_millis(advice);
            if let Some(delay) = policy.next_delay(failed, Some(advice), random) {
                prop_assert_eq!(delay, advice.min(MAX_ADVICE));
            }
        }
    }
}
