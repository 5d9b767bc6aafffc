//! What became of a message, and what to do because of it.
//!
//! [`decide`] is pure, and the only place that decides; the pipeline makes the [`Outcome`], writes what the
//! [`Disposition`] says in the same transaction, and the consumer settles once that has committed.

use std::fmt;
use std::time::Duration;

use crate::guest::{Advice, Failure};
use crate::retry::RetryPolicy;

/// How often a member may meet deadlocks, serialization failures or lock time-outs in its own statements before that
/// counts as its fault.
pub const MAX_CONTENTIONS: u32 = 8;

/// How often the same message, alone, may meet an infrastructure failure while the server answers a probe, before that
/// counts as a failed attempt: an oversized packet would close the connection for ever.
pub const MAX_LONE_FAULTS: u32 = 5;

/// Why a message became a dead letter. The text is stable: operators filter by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The attempts are used up.
    Exhausted,
    /// The handler said that it never will.
    Permanent,
    /// Its statements kept losing against others.
    Contention,
    /// It killed its host too often.
    Crashed,
    /// Its compensation failed for good.
    CompensationFailed,
    /// No rule found a message id.
    NoId,
    /// A rule found one that cannot be used.
    BadId,
    /// The same id came with another body.
    IdConflict,
    /// A dead letter's copy came back, and the dead letter is gone.
    StaleCopy,
}

impl Reason {
    /// Every reason, in the order in which `--help` lists them.
    pub const ALL: [Self; 9] = [
        Self::Exhausted,
        Self::Permanent,
        Self::Contention,
        Self::Crashed,
        Self::CompensationFailed,
        Self::NoId,
        Self::BadId,
        Self::IdConflict,
        Self::StaleCopy,
    ];

    /// The reason as it is stored, filtered by and put into the headers of a copy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Permanent => "permanent",
            Self::Contention => "contention",
            Self::Crashed => "crashed",
            Self::CompensationFailed => "compensation-failed",
            Self::NoId => "no-id",
            Self::BadId => "bad-id",
            Self::IdConflict => "id-conflict",
            Self::StaleCopy => "stale-copy",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What became of one message of a batch.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The handler handled it.
    Completed,
    /// SQL already owns this id, with the same body.
    Duplicate,
    /// SQL already owns this id, with another body.
    Conflict,
    /// It has no id, or none that can be used: the reason, and what was tried.
    Unidentified(Reason, String),
    /// It was delivered before: the host that had it may have died of it.
    Redelivered,
    /// Its lock, or the claim on its id, is held by somebody else.
    Held,
    /// It was not reached within `batch.max_time`, or something before it in its lane must finish first.
    NotReached,
    /// The handler or the compensation failed: said so, trapped, ran out of time or memory.
    Failed(Failure),
    /// Its statements met a deadlock, a serialization failure or a lock time-out.
    Contended(String),
    /// The infrastructure failed under this very message, alone, while the server answered a probe.
    LoneFault(String),
    /// The compensation did what it had to.
    Compensated,
}

/// What the decision depends on, besides the outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Situation {
    /// Running its compensation, not its handler.
    pub compensating: bool,
    /// The module has a compensation.
    pub can_compensate: bool,
    /// Failed attempts before this one, in this phase.
    pub attempts: u32,
    /// Contentions of this member so far, this one included.
    pub contentions: u32,
    /// Lone infrastructure failures of this member so far, this one included.
    pub lone_faults: u32,
    /// The consumer is probing after a mass failure: nothing counts until one message succeeds.
    pub probing: bool,
    /// A number in 0..1 for the jitter.
    pub random: f64,
}

/// What to do with a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Disposition {
    /// Nothing to write: acknowledge, or delete the deferred row.
    Acknowledge,
    /// Record it as completed, with its effects, and acknowledge.
    Complete,
    /// Park it, to be run again after `delay`; `attempts` failed ones so far.
    Retry {
        /// Failed attempts, this one included where it counts.
        attempts: u32,
        /// How long until it is due.
        delay: Duration,
        /// The handler's last word, for operators; none when it was only put off.
        failure: Option<Failure>,
    },
    /// Store it as it came, to go through the claim again after `delay`.
    Defer(Duration),
    /// Park it in phase compensate, due now.
    Compensate(Reason, Failure),
    /// Record it as dead under its own id.
    Dead(Reason, Option<Failure>),
    /// Record a dead letter of its own, which leaves the inbox alone and never compensates.
    DeadApart(Reason, String),
    /// Record it as dead, its compensation having taken effect.
    DeadCompensated,
    /// Run it again alone, at once, uncounted.
    Again,
    /// Put it back where it was, uncounted.
    GiveBack,
}

/// How soon a deferred message goes through the claim again.
pub const DEFER_DELAY: Duration = Duration::from_secs(1);

/// Turns what happened into what is done about it.
pub fn decide(outcome: &Outcome, situation: &Situation, policy: &RetryPolicy) -> Disposition {
    match outcome {
        Outcome::Completed => Disposition::Complete,
        Outcome::Compensated => Disposition::DeadCompensated,
        Outcome::Duplicate => Disposition::Acknowledge,
        Outcome::Conflict => {
            Disposition::DeadApart(Reason::IdConflict, "the same id came before with another body".into())
        }
        Outcome::Unidentified(reason, tried) => Disposition::DeadApart(*reason, tried.clone()),
        Outcome::Redelivered => {
            Disposition::Retry { attempts: situation.attempts, delay: Duration::ZERO, failure: None }
        }
        Outcome::Held => Disposition::Defer(DEFER_DELAY),
        Outcome::NotReached => Disposition::GiveBack,
        Outcome::Failed(failure) => failed(failure, situation, policy),
        Outcome::Contended(_) if situation.contentions < MAX_CONTENTIONS => Disposition::Again,
        Outcome::Contended(message) => {
            let failure = spoken_for("contention", message);
            finish(Reason::Contention, failure, situation)
        }
        Outcome::LoneFault(_) if situation.lone_faults < MAX_LONE_FAULTS => Disposition::GiveBack,
        Outcome::LoneFault(message) => failed(&spoken_for("infrastructure", message), situation, policy),
    }
}

/// A failed attempt: once more, or never again.
fn failed(failure: &Failure, situation: &Situation, policy: &RetryPolicy) -> Disposition {
    if failure.advice == Advice::Never {
        return finish(Reason::Permanent, failure.clone(), situation);
    }
    let advised = match failure.advice {
        Advice::After(delay) => Some(delay),
        Advice::ByPolicy | Advice::Never => None,
    };
    if situation.probing {
        let delay = policy.next_delay(1, advised, situation.random).unwrap_or(policy.initial_interval);
        return Disposition::Retry { attempts: situation.attempts, delay, failure: Some(failure.clone()) };
    }
    let attempts = situation.attempts + 1;
    match policy.next_delay(attempts, advised, situation.random) {
        Some(delay) => Disposition::Retry { attempts, delay, failure: Some(failure.clone()) },
        None => finish(Reason::Exhausted, failure.clone(), situation),
    }
}

/// No further attempt in this phase.
fn finish(reason: Reason, failure: Failure, situation: &Situation) -> Disposition {
    match (situation.compensating, situation.can_compensate) {
        (true, _) => Disposition::Dead(Reason::CompensationFailed, Some(failure)),
        (false, true) => Disposition::Compensate(reason, failure),
        (false, false) => Disposition::Dead(reason, Some(failure)),
    }
}

/// The host speaks where the handler could not.
fn spoken_for(code: &str, message: &str) -> Failure {
    Failure { advice: Advice::ByPolicy, code: Some(code.to_owned()), message: message.to_owned(), detail: None }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::retry::{MAX_ADVICE, RetryMode};

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 3,
            initial_interval: Duration::from_secs(3),
            multiplier: 1.0,
            max_interval: Duration::from_secs(10),
            jitter: 0.0,
            mode: RetryMode::Delayed,
        }
    }

    fn situation() -> Situation {
        Situation {
            compensating: false,
            can_compensate: false,
            attempts: 0,
            contentions: 1,
            lone_faults: 1,
            probing: false,
            random: 0.5,
        }
    }

    fn failure(advice: Advice) -> Failure {
        Failure { advice, code: Some("x".into()), message: "no".into(), detail: None }
    }

    fn decided(outcome: &Outcome, situation: &Situation) -> Disposition {
        decide(outcome, situation, &policy())
    }

    #[test]
    fn the_first_failure_is_parked_with_the_policys_delay() {
        let failed = failure(Advice::ByPolicy);
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &situation()),
            Disposition::Retry { attempts: 1, delay: Duration::from_secs(3), failure: Some(failed) }
        );
    }

    #[test]
    fn the_guests_advice_replaces_the_policys_delay_but_not_its_limit() {
        let failed = failure(Advice::After(Duration::from_millis(7)));
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &Situation { attempts: 1, ..situation() }),
            Disposition::Retry { attempts: 2, delay: Duration::from_millis(7), failure: Some(failed.clone()) }
        );
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &Situation { attempts: 2, ..situation() }),
            Disposition::Dead(Reason::Exhausted, Some(failed))
        );
    }

    #[test]
    fn a_permanent_failure_is_compensated_where_the_module_can_and_dead_where_not() {
        let failed = failure(Advice::Never);
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &situation()),
            Disposition::Dead(Reason::Permanent, Some(failed.clone()))
        );
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &Situation { can_compensate: true, ..situation() }),
            Disposition::Compensate(Reason::Permanent, failed)
        );
    }

    #[test]
    fn a_compensation_that_fails_for_good_is_dead_and_never_compensated_again() {
        let compensating = Situation { compensating: true, can_compensate: true, ..situation() };
        let failed = failure(Advice::ByPolicy);
        assert!(matches!(
            decided(&Outcome::Failed(failed.clone()), &compensating),
            Disposition::Retry { attempts: 1, .. }
        ));
        assert_eq!(
            decided(&Outcome::Failed(failed.clone()), &Situation { attempts: 2, ..compensating }),
            Disposition::Dead(Reason::CompensationFailed, Some(failed))
        );
    }

    #[test]
    fn what_is_not_the_handlers_fault_is_not_counted() {
        let twice = Situation { attempts: 2, ..situation() };
        assert_eq!(decided(&Outcome::Held, &twice), Disposition::Defer(DEFER_DELAY));
        assert_eq!(decided(&Outcome::NotReached, &twice), Disposition::GiveBack);
        assert_eq!(decided(&Outcome::Contended("deadlock".into()), &twice), Disposition::Again);
        assert_eq!(decided(&Outcome::LoneFault("reset".into()), &twice), Disposition::GiveBack);
        assert_eq!(
            decided(&Outcome::Redelivered, &twice),
            Disposition::Retry { attempts: 2, delay: Duration::ZERO, failure: None }
        );
    }

    #[test]
    fn contention_and_lone_faults_are_bounded_by_counters_of_their_own() {
        let worn = Situation { contentions: MAX_CONTENTIONS, ..situation() };
        assert!(matches!(
            decided(&Outcome::Contended("deadlock".into()), &worn),
            Disposition::Dead(Reason::Contention, Some(_))
        ));
        let worn = Situation { lone_faults: MAX_LONE_FAULTS, ..situation() };
        assert!(matches!(decided(&Outcome::LoneFault("reset".into()), &worn), Disposition::Retry { attempts: 1, .. }));
    }

    #[test]
    fn while_probing_nothing_is_counted_except_a_permanent_failure() {
        let probing = Situation { probing: true, attempts: 2, ..situation() };
        assert!(matches!(
            decided(&Outcome::Failed(failure(Advice::ByPolicy)), &probing),
            Disposition::Retry { attempts: 2, .. }
        ));
        assert!(matches!(
            decided(&Outcome::Failed(failure(Advice::Never)), &probing),
            Disposition::Dead(Reason::Permanent, _)
        ));
    }

    #[test]
    fn conflicts_and_missing_ids_die_apart_and_are_never_compensated() {
        let able = Situation { can_compensate: true, ..situation() };
        assert!(matches!(decided(&Outcome::Conflict, &able), Disposition::DeadApart(Reason::IdConflict, _)));
        assert!(matches!(
            decided(&Outcome::Unidentified(Reason::NoId, "no property".into()), &able),
            Disposition::DeadApart(Reason::NoId, _)
        ));
    }

    #[test]
    fn a_duplicate_is_acknowledged_and_writes_nothing() {
        assert_eq!(decided(&Outcome::Duplicate, &situation()), Disposition::Acknowledge);
    }

    fn failures() -> impl Strategy<Value = Failure> {
        let advice = prop_oneof![
            Just(Advice::ByPolicy),
            Just(Advice::Never),
            any::<u64>().prop_map(|milliseconds| Advice::After(Duration::from_millis(milliseconds))),
        ];
        advice.prop_map(failure)
    }

    fn outcomes() -> impl Strategy<Value = Outcome> {
        prop_oneof![
            Just(Outcome::Completed),
            Just(Outcome::Duplicate),
            Just(Outcome::Conflict),
            prop::sample::select(&[Reason::NoId, Reason::BadId, Reason::StaleCopy][..])
                .prop_map(|reason| Outcome::Unidentified(reason, "none".into())),
            Just(Outcome::Redelivered),
            Just(Outcome::Held),
            Just(Outcome::NotReached),
            failures().prop_map(Outcome::Failed),
            Just(Outcome::Contended("deadlock".into())),
            Just(Outcome::LoneFault("reset".into())),
            Just(Outcome::Compensated),
        ]
    }

    prop_compose! {
        fn situations()(
            compensating: bool,
            can_compensate: bool,
            attempts in 0..20_u32,
            contentions in 1..=MAX_CONTENTIONS,
            lone_faults in 1..=MAX_LONE_FAULTS,
            probing: bool,
            random in 0.0..1.0_f64,
        ) -> Situation {
            Situation { compensating, can_compensate, attempts, contentions, lone_faults, probing, random }
        }
    }

    prop_compose! {
        fn policies()(
            max_attempts in 1..20_u32,
            initial_ms in 0..10_000_u64,
            more_ms in 0..10_000_u64,
            multiplier in 1.0..10.0_f64,
            jitter in 0.0..=1.0_f64,
            blocking: bool,
        ) -> RetryPolicy {
            let mode = if blocking { RetryMode::Blocking } else { RetryMode::Delayed };
            let initial_interval = Duration::from_millis(initial_ms);
            let max_interval = initial_interval + Duration::from_millis(more_ms);
            RetryPolicy { max_attempts, initial_interval, multiplier, max_interval, jitter, mode }
        }
    }

    /// Whether the outcome is of somebody else's making, as far as anybody can tell yet.
    fn is_nobodys_fault(outcome: &Outcome, situation: &Situation) -> bool {
        match outcome {
            Outcome::Redelivered | Outcome::Held | Outcome::NotReached => true,
            Outcome::Contended(_) => situation.contentions < MAX_CONTENTIONS,
            Outcome::LoneFault(_) => situation.lone_faults < MAX_LONE_FAULTS,
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn what_is_nobodys_fault_costs_no_attempt_and_kills_nobody(
            outcome in outcomes(), situation in situations(), policy in policies(),
        ) {
            prop_assume!(is_nobodys_fault(&outcome, &situation));
            match decide(&outcome, &situation, &policy) {
                Disposition::Retry { attempts, failure, .. } => {
                    prop_assert_eq!((attempts, failure), (situation.attempts, None));
                }
                Disposition::Defer(_) | Disposition::GiveBack | Disposition::Again => {}
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn no_attempt_is_made_past_the_policys_limit(
            outcome in outcomes(), situation in situations(), policy in policies(),
        ) {
            if let Disposition::Retry { attempts, .. } = decide(&outcome, &situation, &policy) {
                let counted = attempts - situation.attempts;
                prop_assert!(counted <= 1);
                prop_assert!(counted == 0 || attempts < policy.max_attempts);
                let may_be_uncounted = situation.probing || is_nobodys_fault(&outcome, &situation);
                prop_assert!(counted == 1 || may_be_uncounted, "a failure was not counted");
            }
        }

        #[test]
        fn only_advice_puts_a_message_off_for_longer_than_the_policy(
            outcome in outcomes(), situation in situations(), policy in policies(),
        ) {
            let advised = match &outcome {
                Outcome::Failed(Failure { advice: Advice::After(delay), .. }) => Some((*delay).min(MAX_ADVICE)),
                _ => None,
            };
            if let Disposition::Retry { delay, .. } = decide(&outcome, &situation, &policy) {
                match advised {
                    // While probing even the only attempt is made again, for which the policy has no delay.
                    Some(advised) => {
                        prop_assert!(delay == advised || (situation.probing && policy.max_attempts == 1));
                    }
                    None => prop_assert!(delay <= policy.max_interval),
                }
            }
        }

        #[test]
        fn a_compensation_is_never_compensated_and_its_message_never_handled_again(
            outcome in outcomes(), situation in situations(), policy in policies(),
        ) {
            let compensating = Situation { compensating: true, ..situation };
            match decide(&outcome, &compensating, &policy) {
                Disposition::Compensate(..) => prop_assert!(false, "a compensation of a compensation"),
                Disposition::Dead(reason, _) => prop_assert_eq!(reason, Reason::CompensationFailed),
                _ => {}
            }
        }

        #[test]
        fn a_message_that_the_handler_gives_up_never_runs_again(
            situation in situations(), policy in policies(),
        ) {
            let given_up = Outcome::Failed(failure(Advice::Never));
            let ended = matches!(
                decide(&given_up, &situation, &policy),
                Disposition::Dead(Reason::Permanent | Reason::CompensationFailed, _)
                    | Disposition::Compensate(Reason::Permanent, _)
            );
            prop_assert!(ended);
        }

        #[test]
        fn effects_are_recorded_for_what_succeeded_and_for_nothing_else(
            outcome in outcomes(), situation in situations(), policy in policies(),
        ) {
            let disposition = decide(&outcome, &situation, &policy);
            prop_assert_eq!(disposition == Disposition::Complete, outcome == Outcome::Completed);
            prop_assert_eq!(disposition == Disposition::DeadCompensated, outcome == Outcome::Compensated);
            prop_assert_eq!(disposition == Disposition::Acknowledge, outcome == Outcome::Duplicate);
        }
    }
}
