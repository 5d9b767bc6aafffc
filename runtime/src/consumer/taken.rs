//! The runs of parked rows that a consumer's lanes are at: what is not among them, and looks like theirs, is nobody's.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ledger::parked::RunToken;

/// Runs that lanes have taken and not finished.
#[derive(Default)]
pub(super) struct Taken(Mutex<HashSet<RunToken>>);

impl Taken {
    /// A lane has taken rows.
    pub(super) fn hold(&self, run: RunToken) {
        self.runs().insert(run);
    }

    /// Nothing of that run is left in a lane.
    pub(super) fn let_go(&self, run: RunToken) {
        self.runs().remove(&run);
    }

    /// True for a run that a lane is at.
    pub(super) fn holds(&self, run: RunToken) -> bool {
        self.runs().contains(&run)
    }

    /// True if no lane is at any.
    pub(super) fn is_empty(&self) -> bool {
        self.runs().is_empty()
    }

    /// All of them, for the last time: their lanes have ended.
    pub(super) fn take_all(&self) -> HashSet<RunToken> {
        std::mem::take(&mut self.runs())
    }

    fn runs(&self) -> MutexGuard<'_, HashSet<RunToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
