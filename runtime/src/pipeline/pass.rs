//! One pass over the members of a transaction: how far it is, what is settled, and what a failing member undoes.
//!
//! A savepoint costs a round trip, and a failure undoes everything since the last one: those members run again, and the
//! one that failed then gets a savepoint of its own. So the more members fail, the closer together savepoints are; while
//! none does, there are none, and the whole transaction is the group.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::broker::Outgoing;
use crate::outcome::{Disposition, Outcome};
use crate::retry::RetryPolicy;

/// What a savepoint costs, in members: a third of what a plain member does, measured on Postgres with one UPDATE each.
const SAVEPOINT_COST: f64 = 0.3;

/// The same where members run ahead of the database: what waits has to be sent first, and a member alone is cheap.
const SAVEPOINT_COST_AHEAD: f64 = 4.0;

/// Members between savepoints if this share of them fails and takes others with it, 0 to 1. Of `g` members, one savepoint
/// costs `c`, and each of `p g` failures makes half of them run again: `c / g + p g / 2` a member is least where `g` is
/// `√(2 c / p)`.
pub(super) fn spacing(failing: f64, ahead: bool) -> usize {
    let cost = if ahead { SAVEPOINT_COST_AHEAD } else { SAVEPOINT_COST };
    ((2.0 * cost / failing.max(f64::EPSILON)).sqrt() as usize).max(1)
}

/// What became of one member inside the transaction.
pub(super) struct Settled {
    /// Which member of the batch.
    pub(super) index: usize,
    pub(super) outcome: Outcome,
    pub(super) disposition: Disposition,
    /// What its attempt published.
    pub(super) outbox: Vec<Outgoing>,
}

/// What a failed attempt undoes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Undo {
    /// The whole transaction.
    All,
    /// Its own work only: the last savepoint was set right before it.
    Own,
    /// Everything since a savepoint. Those members run again.
    Group,
}

/// The state of a pass.
pub(super) struct Pass {
    /// The place of the next member in the order of the run.
    pub(super) at: usize,
    pub(super) settled: Vec<Settled>,
    /// How many attempts were made, those undone included.
    pub(super) executed: usize,
    /// The member of the last attempt.
    pub(super) last: usize,
    /// Where the order counts: what comes now must wait.
    pub(super) stopped: bool,
    /// When it began, had it not spent time on what was undone.
    started: Instant,
    /// Attempts between savepoints; none: no savepoints but for members that failed among others.
    every: Option<usize>,
    /// Attempts since the last one.
    since: usize,
    savepoint: Option<Savepoint>,
    /// Members that have failed among others in this pass.
    isolated: HashSet<usize>,
}

/// Where a savepoint stands.
struct Savepoint {
    at: usize,
    settled: usize,
    stopped: bool,
    /// What the pass had spent until then.
    spent: Duration,
}

impl Pass {
    /// A pass over `members` members, with a savepoint for every `every` attempts. One for all of them is none: the
    /// transaction has a beginning of its own.
    pub(super) fn new(members: usize, every: usize) -> Self {
        Self {
            at: 0,
            settled: Vec::with_capacity(members),
            executed: 0,
            last: 0,
            stopped: false,
            started: Instant::now(),
            every: Some(every).filter(|&every| every < members),
            since: usize::MAX,
            savepoint: None,
            isolated: HashSet::new(),
        }
    }

    /// True if no further member may begin.
    pub(super) fn must_stop(&self, max_time: Duration, probing: bool) -> bool {
        let late = self.executed > 0 && self.started.elapsed() > max_time;
        late || self.stopped || (probing && self.executed > 0)
    }

    /// True if a savepoint must be set before the member that is next. `is_apart`: it has failed among others before.
    pub(super) fn wants_savepoint(&self, index: usize, is_apart: bool) -> bool {
        let stands_here = self.savepoint.as_ref().is_some_and(|savepoint| savepoint.at == self.at);
        !stands_here && (self.is_apart(index, is_apart) || self.every.is_some_and(|every| self.since >= every))
    }

    /// True for a member that has failed among others, in this pass or in an earlier one.
    pub(super) fn is_apart(&self, index: usize, before: bool) -> bool {
        before || self.isolated.contains(&index)
    }

    /// It was set.
    pub(super) fn savepoint_set(&mut self) {
        let (at, settled, stopped) = (self.at, self.settled.len(), self.stopped);
        self.savepoint = Some(Savepoint { at, settled, stopped, spent: self.started.elapsed() });
        self.since = 0;
    }

    /// An attempt begins; true if it is the first.
    pub(super) fn begins(&mut self, index: usize) -> bool {
        self.executed += 1;
        self.since = self.since.saturating_add(1);
        self.last = index;
        self.executed == 1
    }

    /// What has to be undone, now that the attempt that is at it has failed.
    pub(super) fn failed(&self) -> Undo {
        match &self.savepoint {
            Some(savepoint) if savepoint.at == self.at => Undo::Own,
            Some(_) => Undo::Group,
            None => Undo::All,
        }
    }

    /// Goes back to the last savepoint; `index`, which has failed, gets one of its own this time. The clock goes back too:
    /// were there no time left to run what was undone, nothing would come of the whole pass, nor of the next one. Each
    /// member sets it back once at most: the second time it undoes only itself.
    pub(super) fn go_back(&mut self, index: usize) {
        if let Some(savepoint) = &self.savepoint {
            self.at = savepoint.at;
            self.settled.truncate(savepoint.settled);
            self.stopped = savepoint.stopped;
            self.started += self.started.elapsed().saturating_sub(savepoint.spent);
        }
        self.since = 0;
        self.isolated.insert(index);
    }

    /// The member that was next is gone.
    pub(super) fn skip(&mut self) {
        self.at += 1;
    }

    /// Notes what became of the member that was next. `undone`: the savepoint stands after it as well as before it.
    pub(super) fn settle(&mut self, settled: Settled, undone: bool, retry: &RetryPolicy) {
        use Disposition as D;
        let waits = matches!(settled.disposition, D::Retry { .. } | D::Compensate(..) | D::Defer(_) | D::GiveBack);
        self.stopped |= waits && retry.keeps_order();
        self.settled.push(settled);
        self.at += 1;
        if undone {
            self.savepoint_set();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::RetryPolicy;

    #[test]
    fn the_more_fails_the_closer_savepoints_are() {
        assert_eq!(spacing(1.0, false), 1);
        assert_eq!(spacing(0.2, false), 1);
        assert_eq!(spacing(0.01, false), 7);
        assert!(spacing(0.0001, false) > 64);
        assert!(spacing(0.0, true) > 1_000_000);
        assert!(spacing(0.01, true) > spacing(0.01, false));
    }

    /// Runs members until all are settled; the first time that each of `failing` is tried, and every time after, it
    /// fails. Returns what was sent to the database, and the settled members with how often each was tried.
    fn run(members: usize, every: usize, failing: &[usize]) -> (String, Vec<(usize, usize)>) {
        let mut pass = Pass::new(members, every);
        let (mut sent, mut tried) = (String::new(), vec![0; members]);
        while pass.at < members {
            let index = pass.at;
            if pass.wants_savepoint(index, false) {
                sent.push('S');
                pass.savepoint_set();
            }
            let first = pass.begins(index);
            tried[index] += 1;
            sent.push_str(&index.to_string());
            let failed = failing.contains(&index);
            if failed {
                match pass.failed() {
                    Undo::All => {
                        sent.push_str(if first { "!first" } else { "!" });
                        break;
                    }
                    Undo::Group => {
                        sent.push('<');
                        pass.go_back(index);
                        continue;
                    }
                    Undo::Own => sent.push('<'),
                }
            }
            let (outcome, disposition) = (Outcome::Completed, Disposition::Complete);
            let settled = Settled { index, outcome, disposition, outbox: Vec::new() };
            pass.settle(settled, failed, &RetryPolicy::default());
        }
        (sent, pass.settled.iter().map(|settled| (settled.index, tried[settled.index])).collect())
    }

    #[test]
    fn while_nothing_fails_there_are_only_the_savepoints_that_were_asked_for() {
        assert_eq!(run(4, usize::MAX, &[]).0, "0123");
        assert_eq!(run(4, 4, &[]).0, "0123");
        assert_eq!(run(4, 2, &[]).0, "S01S23");
        assert_eq!(run(3, 1, &[]).0, "S0S1S2");
    }

    #[test]
    fn without_a_savepoint_a_failure_undoes_everything() {
        assert_eq!(run(4, usize::MAX, &[2]).0, "012!");
        assert_eq!(run(4, usize::MAX, &[0]).0, "0!first");
    }

    #[test]
    fn a_failure_undoes_its_group_and_is_then_apart() {
        let (sent, settled) = run(6, 3, &[4]);
        assert_eq!(sent, "S012S34<3S4<5");
        assert_eq!(settled, [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 1)]);
    }

    #[test]
    fn time_spent_on_what_is_undone_does_not_count() {
        const LIMIT: Duration = Duration::from_secs(600);
        let mut pass = Pass::new(4, 2);
        pass.savepoint_set();
        pass.begins(0);
        pass.begins(1);
        pass.started = pass.started.checked_sub(2 * LIMIT).unwrap();
        assert!(pass.must_stop(LIMIT, false));
        pass.go_back(1);
        assert!(!pass.must_stop(LIMIT, false), "there must be time to run 0 again, and 1 apart");
        pass.started = pass.started.checked_sub(2 * LIMIT).unwrap();
        assert!(pass.must_stop(LIMIT, false));
        pass.savepoint_set();
        pass.go_back(1);
        assert!(pass.must_stop(LIMIT, false), "what was spent before the savepoint is not undone");
    }

    #[test]
    fn the_savepoint_of_one_that_failed_serves_the_next() {
        assert_eq!(run(4, 1, &[0, 1, 2]).0, "S0<1<2<3");
        assert_eq!(run(3, 2, &[1, 2]).0, "S01<0S1<2<");
    }
}
