//! The deliveries of one subscription that are not settled at the broker yet, in the order they were delivered.
//!
//! Both back ends number their deliveries 1, 2, 3, … within a subscription, so the whole state is a queue whose front
//! has the number `first`. Nothing here talks to a broker.

use std::collections::VecDeque;

/// One delivery that the broker still counts as ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// What the back end knows it by (the row, for the embedded broker).
    key: i64,
    /// Size of its body.
    bytes: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The host has not decided.
    Open,
    /// The host settled it; the broker does not know.
    Settled,
    /// The broker was told, by itself, while an earlier delivery was still open.
    Told,
}

/// An acknowledgement to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ack {
    /// The delivery tag.
    pub(super) tag: u64,
    /// All earlier ones too.
    pub(super) multiple: bool,
}

/// The unsettled deliveries of a subscription. Its size is bounded by the prefetch count: a broker delivers no more
/// before something was settled.
#[derive(Debug)]
pub(super) struct Window {
    first: u64,
    entries: VecDeque<Entry>,
    open: usize,
    open_bytes: u64,
}

impl Window {
    /// An empty window; the first delivery will have tag 1.
    pub(super) fn new() -> Self {
        Self { first: 1, entries: VecDeque::new(), open: 0, open_bytes: 0 }
    }

    /// Notes the next delivery and returns its tag.
    pub(super) fn delivered(&mut self, key: i64, bytes: u64) -> u64 {
        self.entries.push_back(Entry { key, bytes, state: State::Open });
        self.open += 1;
        self.open_bytes += bytes;
        self.next_tag() - 1
    }

    /// The host has settled `tag`. Tags that were never delivered, or were settled before, change nothing.
    pub(super) fn settle(&mut self, tag: u64) {
        let Some(index) = tag.checked_sub(self.first).and_then(|index| usize::try_from(index).ok()) else { return };
        let Some(entry) = self.entries.get_mut(index) else { return };
        if entry.state == State::Open {
            entry.state = State::Settled;
            self.open -= 1;
            self.open_bytes -= entry.bytes;
        }
    }

    /// True if the broker was told of everything that it delivered.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many deliveries the host has not settled.
    pub(super) fn open(&self) -> usize {
        self.open
    }

    /// The sizes of their bodies, summed.
    pub(super) fn open_bytes(&self) -> u64 {
        self.open_bytes
    }

    /// The tag of the next delivery.
    pub(super) fn next_tag(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// How many deliveries from `tag` on the broker was not told about.
    pub(super) fn untold_from(&self, tag: u64) -> usize {
        let skipped = usize::try_from(tag.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.entries.iter().skip(skipped).filter(|entry| entry.state != State::Told).count()
    }

    /// Takes the settled prefix off the window and returns the one acknowledgement that covers it.
    ///
    /// It names the last delivery of the prefix that was not told before: RabbitMQ looks the named tag up among the
    /// unacknowledged ones and closes the channel if it is not there, `multiple` or not.
    pub(super) fn take_prefix(&mut self) -> Option<Ack> {
        let mut last = None;
        let mut untold = 0_usize;
        while let Some(entry) = self.entries.front() {
            match entry.state {
                State::Open => break,
                State::Settled => {
                    last = Some(self.first);
                    untold += 1;
                }
                State::Told => {}
            }
            self.entries.pop_front();
            self.first += 1;
        }
        last.map(|tag| Ack { tag, multiple: untold > 1 })
    }

    /// How much that is settled the broker does not know. After [`take_prefix`](Self::take_prefix): how much waits behind
    /// an open delivery.
    pub(super) fn held_back(&self) -> usize {
        self.entries.iter().filter(|entry| entry.state == State::Settled).count()
    }

    /// Single acknowledgements for what is settled behind an open delivery. Call after [`take_prefix`](Self::take_prefix).
    pub(super) fn take_past_gap(&mut self) -> Vec<Ack> {
        let first = self.first;
        let tell = |(index, entry): (usize, &mut Entry)| {
            (entry.state == State::Settled).then(|| {
                entry.state = State::Told;
                Ack { tag: first + index as u64, multiple: false }
            })
        };
        self.entries.iter_mut().enumerate().filter_map(tell).collect()
    }

    /// The keys of everything settled and not told, as inclusive ranges with no open delivery inside; they count as
    /// told from now on.
    pub(super) fn take_runs(&mut self) -> Vec<(i64, i64)> {
        let mut runs: Vec<(i64, i64)> = Vec::new();
        let mut extend = false;
        for entry in &mut self.entries {
            match (entry.state, runs.last_mut()) {
                (State::Open, _) => extend = false,
                (State::Told, _) => {}
                (State::Settled, Some(run)) if extend => run.1 = entry.key,
                (State::Settled, _) => {
                    runs.push((entry.key, entry.key));
                    extend = true;
                }
            }
            if entry.state == State::Settled {
                entry.state = State::Told;
            }
        }
        while self.entries.front().is_some_and(|entry| entry.state == State::Told) {
            self.entries.pop_front();
            self.first += 1;
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(count: u64) -> Window {
        let mut window = Window::new();
        for number in 1..=count {
            assert_eq!(window.delivered(number as i64 * 10, 5), number);
        }
        window
    }

    #[test]
    fn a_contiguous_prefix_is_one_multiple_ack() {
        let mut window = window(5);
        for tag in [2, 1, 3] {
            window.settle(tag);
        }
        assert_eq!(window.take_prefix(), Some(Ack { tag: 3, multiple: true }));
        assert_eq!(window.take_prefix(), None);
        assert_eq!((window.open(), window.open_bytes()), (2, 10));
    }

    #[test]
    fn past_a_gap_acks_are_single_and_never_named_twice() {
        let mut window = window(5);
        window.settle(3);
        window.settle(4);
        assert_eq!(window.take_prefix(), None);
        assert_eq!(window.held_back(), 2);
        assert_eq!(window.take_past_gap(), [Ack { tag: 3, multiple: false }, Ack { tag: 4, multiple: false }]);
        window.settle(1);
        window.settle(2);
        assert_eq!(window.take_prefix(), Some(Ack { tag: 2, multiple: true }));
        assert_eq!((window.untold_from(1), window.untold_from(6), window.next_tag()), (1, 0, 6));
        window.settle(5);
        assert_eq!((window.untold_from(1), window.untold_from(5)), (1, 1));
        assert_eq!(window.take_prefix(), Some(Ack { tag: 5, multiple: false }));
    }

    #[test]
    fn foreign_and_repeated_tags_change_nothing() {
        let mut window = window(2);
        for tag in [0, 3, u64::MAX, 1, 1] {
            window.settle(tag);
        }
        assert_eq!(window.take_prefix(), Some(Ack { tag: 1, multiple: false }));
        window.settle(1);
        assert_eq!((window.take_prefix(), window.open()), (None, 1));
    }

    #[test]
    fn runs_never_cover_an_open_delivery() {
        let mut window = window(7);
        for tag in [1, 2, 4, 6, 7] {
            window.settle(tag);
        }
        assert_eq!(window.take_runs(), [(10, 20), (40, 40), (60, 70)]);
        assert_eq!(window.take_runs(), []);
        window.settle(3);
        window.settle(5);
        assert_eq!(window.take_runs(), [(30, 50)]); // 40 was told before
        assert_eq!(window.open(), 0);
    }

    proptest! {
        /// A broker that checks every acknowledgement as RabbitMQ does is satisfied, and ends up with exactly the
        /// deliveries that are open.
        #[test]
        fn every_settled_delivery_is_told_once(order in Just((1_u64..=60).collect::<Vec<_>>()).prop_shuffle(),
                                               settled in 0_usize..=60, flush_every in 1_usize..9) {
            let mut window = window(60);
            let mut unacked: std::collections::BTreeSet<u64> = (1..=60).collect();
            let mut tell = |ack: Ack| {
                prop_assert!(unacked.contains(&ack.tag), "unknown delivery tag {}", ack.tag);
                if ack.multiple { unacked.retain(|tag| *tag > ack.tag) } else { unacked.remove(&ack.tag); }
                Ok(())
            };
            for (index, tag) in order.iter().take(settled).enumerate() {
                window.settle(*tag);
                if index % flush_every == 0 {
                    if let Some(ack) = window.take_prefix() { tell(ack)?; }
                    if index % 2 == 0 { for ack in window.take_past_gap() { tell(ack)?; } }
                }
            }
            if let Some(ack) = window.take_prefix() { tell(ack)?; }
            for ack in window.take_past_gap() { tell(ack)?; }
            let open: std::collections::BTreeSet<u64> = order.iter().skip(settled).copied().collect();
            prop_assert_eq!(unacked, open);
        }
    }
}
