//! How many members may share a transaction. The more rows a transaction holds, the likelier it is to meet another one
//! that holds some of them and wants others: a deadlock. Where lanes are parted by the rows they touch that does not
//! happen, and transactions are as large as batches. Where it happens, they are halved, and grow again while it does not.

use std::time::Duration;

/// How long a statement waits for a lock in a transaction of several members, if its limit is not shorter anyway. Well
/// above what a transaction takes, well below the second after which Postgres looks for deadlocks. What waits in vain
/// then waits alone, as long as its limit allows.
pub(super) const CROWDED_LOCK_WAIT: Duration = Duration::from_millis(100);

/// Full transactions without contention after which they may have a quarter more members.
const QUIET: u32 = 16;

/// The size of a lane's transactions.
#[derive(Debug)]
pub(super) struct Sizing {
    /// Far above any batch while no contention has been met.
    limit: usize,
    quiet: u32,
}

impl Sizing {
    /// No contention has been met.
    pub(super) fn new() -> Self {
        Self { limit: usize::MAX, quiet: 0 }
    }

    /// Members that a transaction may have.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// A transaction of so many members met somebody else's locks.
    pub(super) fn contended(&mut self, members: usize) {
        if members > 1 {
            self.limit = (members.min(self.limit) / 2).max(1);
            self.quiet = 0;
        }
    }

    /// A transaction of so many members has committed. Past the size of batches none is full, and the limit stays.
    pub(super) fn committed(&mut self, members: usize) {
        if members < self.limit {
            return;
        }
        self.quiet += 1;
        if self.quiet == QUIET {
            self.quiet = 0;
            self.limit += (self.limit / 4).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_halved_by_contention_and_grow_again_without() {
        let mut sizing = Sizing::new();
        assert_eq!(sizing.limit(), usize::MAX);
        sizing.contended(1);
        assert_eq!(sizing.limit(), usize::MAX, "one member is as few as can be");
        sizing.contended(64);
        sizing.contended(32);
        assert_eq!(sizing.limit(), 16);
        sizing.contended(3);
        assert_eq!(sizing.limit(), 1);
        let mut transactions = 0;
        while sizing.limit() < 64 {
            sizing.committed(sizing.limit());
            transactions += 1;
        }
        assert!((100..1000).contains(&transactions), "{transactions}");
    }

    #[test]
    fn a_transaction_that_was_not_full_says_nothing() {
        let mut sizing = Sizing::new();
        sizing.contended(64);
        for _ in 0..1000 {
            sizing.committed(31);
        }
        assert_eq!(sizing.limit(), 32);
    }
}
