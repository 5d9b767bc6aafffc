//! Sabotage: a host that dies or freezes at a named step of a message's path, or that breaks an invariant.
//!
//! They are for the torture (`tests/torture`), and compiled in only with the feature `sabotage`; without it every function
//! here is empty. What it is, the environment says:
//!
//! - `HAPAX_SABOTAGE=kill@committed:3`: the process kills itself when it reaches the step for the third time;
//!   `stop@committed:3`: it freezes (SIGSTOP) there, and goes on when somebody lets it.
//! - `HAPAX_BREACH=claim-left-in`: that invariant is broken all the time.

/// An enum whose values have names.
macro_rules! named {
    ($(#[$doc:meta])* $kind:ident { $($(#[$about:meta])* $value:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $kind { $($(#[$about])* $value,)* }

        impl $kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$value),*];

            /// Its name in the environment variable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$value => $name,)* }
            }

            /// The one of that name.
            pub fn of(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|known| known.name() == name)
            }
        }
    };
}

named! {
    /// A place on the path of a message, or of the work beside it.
    Step {
        /// A lane has taken deliveries.
        Received = "received",
        /// Their ids are locked.
        Locked = "locked",
        /// The transaction is open.
        Begun = "begun",
        /// The parked rows of the batch are locked in it.
        Owned = "owned",
        /// The ids are claimed.
        Claimed = "claimed",
        /// A handler has returned.
        Handled = "handled",
        /// A compensation has returned.
        Compensated = "compensated",
        /// Parked rows are written, the rest of the records is not.
        Parking = "parking",
        /// Everything is written; COMMIT is not sent.
        Committing = "committing",
        /// COMMIT is sent; its answer has not come.
        CommitSent = "commit-sent",
        /// The answer has come.
        Committed = "committed",
        /// Deliveries are about to be acknowledged.
        Acknowledging = "acknowledging",
        /// Their acknowledgements are on their way.
        Acknowledged = "acknowledged",
        /// Due rows are taken: running, by this host, and not locked yet.
        Taken = "taken",
        /// Rows of a lost host are changed; not committed.
        Rescuing = "rescuing",
        /// A dead letter is changed to run again; not committed.
        Redriving = "redriving",
        /// Outbox rows have committed, and are about to be published.
        Publishing = "publishing",
        /// They are published; no confirm has come.
        Published = "published",
        /// They are confirmed; their rows are still there.
        Confirmed = "confirmed",
        /// Old ids are deleted; not committed.
        Forgetting = "forgetting",
        /// A new module is loaded, and not current yet.
        Swapping = "swapping",
        /// The tables are about to be made or upgraded, under their lock.
        Migrating = "migrating",
    }
}

named! {
    /// An invariant, broken. Each must be caught by the torture, or the torture proves nothing.
    Breach {
        /// Deliveries are acknowledged before their transaction commits.
        AcknowledgeFirst = "acknowledge-first",
        /// A delivery is acknowledged because somebody else holds its lock.
        AcknowledgeHeld = "acknowledge-held",
        /// A claim that finds a row counts as new, as if there were no unique key.
        NoUniqueKey = "no-unique-key",
        /// The claim of a member that is given back stays in the commit.
        ClaimLeftIn = "claim-left-in",
        /// After a failed statement further ones are sent, and the attempt may succeed.
        StatementAfterError = "statement-after-error",
        /// What a handler publishes is published without a row in the transaction.
        OutboxOutside = "outbox-outside",
        /// A lock is renewed and released by its key alone.
        LockWithoutToken = "lock-without-token",
        /// A COMMIT whose answer was lost counts as done.
        AmbiguousTrusted = "ambiguous-trusted",
        /// An infrastructure failure counts as a failed attempt.
        InfrastructureCounted = "infrastructure-counted",
        /// An outbox message has a new id each time that it is published.
        OutboxIdsUnstable = "outbox-ids-unstable",
        /// A guest's SQL is sent as it is.
        SqlUnguarded = "sql-unguarded",
        /// A module replaces another without being checked.
        ModuleUnchecked = "module-unchecked",
        /// Attempts that a stop interrupts count as failed.
        ShutdownCounted = "shutdown-counted",
        /// Attempts have no time limit.
        Endless = "endless",
        /// As many deliveries as the broker has are taken in hand.
        PrefetchUnlimited = "prefetch-unlimited",
        /// Message ids may be of any length and hold anything.
        IdsUnchecked = "ids-unchecked",
        /// The verdict of a failed member counts, whatever of its transaction was undone.
        VerdictKept = "verdict-kept",
        /// A dead letter's compensation runs in a transaction apart from its record.
        CompensationApart = "compensation-apart",
    }
}

/// Does what the environment says, if this is the place.
#[inline]
pub(crate) fn at(step: Step) {
    #[cfg(feature = "sabotage")]
    armed::reach(step);
    #[cfg(not(feature = "sabotage"))]
    let _ = step;
}

/// Waits for a request that has been sent, with `step` between the two: a future's first poll sends.
#[inline]
pub(crate) async fn midway<T>(step: Step, request: impl Future<Output = T>) -> T {
    #[cfg(feature = "sabotage")]
    {
        let mut request = std::pin::pin!(request);
        if let std::task::Poll::Ready(done) = futures::poll!(request.as_mut()) {
            return done;
        }
        armed::reach(step);
        request.await
    }
    #[cfg(not(feature = "sabotage"))]
    {
        let _ = step;
        request.await
    }
}

/// Whether this invariant is broken.
#[inline]
pub(crate) fn broken(breach: Breach) -> bool {
    #[cfg(feature = "sabotage")]
    return armed::breach() == Some(breach);
    #[cfg(not(feature = "sabotage"))]
    {
        let _ = breach;
        false
    }
}

#[cfg(feature = "sabotage")]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Breach, Step};

    struct Armed {
        signal: Signal,
        step: Step,
        /// How often the step is still passed.
        left: AtomicU64,
    }

    static ARMED: LazyLock<Option<Armed>> = LazyLock::new(|| {
        let order = std::env::var("HAPAX_SABOTAGE").ok()?;
        Some(parse(&order).unwrap_or_else(|| panic!("HAPAX_SABOTAGE={order}: it reads kill@STEP:N or stop@STEP:N")))
    });

    static BREACH: LazyLock<Option<Breach>> = LazyLock::new(|| {
        let name = std::env::var("HAPAX_BREACH").ok()?;
        Some(Breach::of(&name).unwrap_or_else(|| panic!("HAPAX_BREACH={name} is no breach")))
    });

    fn parse(order: &str) -> Option<Armed> {
        let (signal, place) = order.split_once('@')?;
        let (step, times) = place.split_once(':')?;
        let signal = match signal {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return None,
        };
        Some(Armed { signal, step: Step::of(step)?, left: AtomicU64::new(times.parse().ok()?) })
    }

    pub(super) fn reach(step: Step) {
        if let Some(armed) = &*ARMED
            && armed.step == step
            && armed.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1)
        {
            // It cannot fail: a process may always signal itself.
            let _ = kill_process(getpid(), armed.signal);
        }
    }

    pub(super) fn breach() -> Option<Breach> {
        *BREACH
    }
}
