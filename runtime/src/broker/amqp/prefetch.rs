//! How many deliveries to ask for, so that their bodies take about so many bytes.
//!
//! AMQP has a limit in bytes; RabbitMQ refuses it, and knows a limit by number only. So the number follows the sizes
//! that are seen. It starts with what fits if every body were of [`ASSUMED_BODY`] bytes, grows as soon as the first
//! bodies show that more fit, and shrinks when they turn out larger.
//!
//! The limit in bytes is an aim, not a wall: a queue whose bodies jump from small to huge is ahead of us by what the
//! broker had already sent when the first huge one was seen.
//!
//! Changing the number means cancelling the consumer and starting another on the same channel. A quorum queue takes
//! back what it has on the way to a consumer that is cancelled, and delivers it again later, out of order. So it grows
//! only at a moment when nothing is on the way: when the broker has sent all that it may, and acknowledgements are held
//! back. Shrinking cannot wait for that; it is rare.

/// What a body is taken for before one has been seen: the largest that people commonly send.
const ASSUMED_BODY: u64 = 16 << 20;

/// What a body is taken for where the number cannot be changed later.
const ASSUMED_BODY_FIXED: u64 = 64 << 10;

/// What a delivery takes beside its body.
const OVERHEAD: u64 = 512;

/// The first number, at most: what is asked for before any size is known.
const FIRST: u16 = 16;

/// How fast old sizes are forgotten: each new one counts for one in so many.
const MEMORY: f64 = 16.0;

/// The prefetch count of a subscription.
#[derive(Debug, Clone)]
pub(super) struct Prefetch {
    max_messages: u16,
    max_bytes: u64,
    adaptive: bool,
    count: u16,
    mean: Option<f64>,
    seen_since_change: u32,
}

impl Prefetch {
    /// A count that follows the sizes that are seen.
    pub(super) fn adaptive(max_messages: u16, max_bytes: u64) -> Self {
        let count = fitting(max_messages.min(FIRST), max_bytes, ASSUMED_BODY);
        Self { max_messages, max_bytes, adaptive: true, count, mean: None, seen_since_change: 0 }
    }

    /// A count that stays: where changing it would hand the queue to another consumer.
    pub(super) fn fixed(max_messages: u16, max_bytes: u64) -> Self {
        let count = fitting(max_messages, max_bytes, ASSUMED_BODY_FIXED);
        Self { max_messages, max_bytes, adaptive: false, count, mean: None, seen_since_change: 0 }
    }

    /// The count to ask for now.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Takes note of a body, and says what should become of the count. It is the caller who changes it.
    pub(super) fn saw(&mut self, body: usize) -> Advice {
        if !self.adaptive {
            return Advice::Stay;
        }
        let size = (body as u64 + OVERHEAD) as f64;
        let mean = self.mean.map_or(size, |mean| mean + (size - mean) / MEMORY);
        self.mean = Some(mean);
        self.seen_since_change = self.seen_since_change.saturating_add(1);
        let target = fitting(self.max_messages, self.max_bytes, mean as u64);
        // Half or less: at once. Twice or more, or all that is allowed: when enough bodies were seen, and at most
        // sixteenfold. In between it stays, so that it does not change all the time.
        let worthwhile = target >= self.count.saturating_mul(2) || target == self.max_messages;
        if target <= self.count / 2 {
            Advice::Shrink(target)
        } else if target <= self.count || !worthwhile {
            Advice::Stay
        } else if self.seen_since_change >= u32::from(self.count.min(FIRST)) {
            Advice::Grow(target.min(self.count.saturating_mul(16)))
        } else {
            Advice::GrowSoon
        }
    }

    /// The count has changed.
    pub(super) fn changed(&mut self, count: u16) {
        self.count = count;
        self.seen_since_change = 0;
    }
}

/// What should become of the prefetch count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    /// It is right.
    Stay,
    /// It looks too small, and too little was seen to be sure.
    GrowSoon,
    /// More fit.
    Grow(u16),
    /// Too many come.
    Shrink(u16),
}

fn fitting(max_messages: u16, max_bytes: u64, body: u64) -> u16 {
    let count = max_bytes / body.max(1);
    u16::try_from(count).unwrap_or(u16::MAX).clamp(1, max_messages.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// Follows every advice; returns the counts on the way.
    fn follow(prefetch: &mut Prefetch, body: usize, times: usize) -> Vec<u16> {
        let step = |_| match prefetch.saw(body) {
            Advice::Grow(count) | Advice::Shrink(count) => {
                prefetch.changed(count);
                Some(count)
            }
            Advice::Stay | Advice::GrowSoon => None,
        };
        (0..times).filter_map(step).collect()
    }

    #[test]
    fn small_bodies_reach_the_full_count_in_a_few_steps() {
        assert_eq!(follow(&mut Prefetch::adaptive(1000, 64 * MIB), 100, 100), [64, 1000]);
        for max in 1..=300 {
            let mut prefetch = Prefetch::adaptive(max, 64 * MIB);
            assert!(follow(&mut prefetch, 100, 100).len() <= 2);
            assert_eq!(prefetch.count(), max);
        }
    }

    #[test]
    fn huge_bodies_keep_the_count_that_fits() {
        for (limit, fits) in [(64 * MIB, 3), (16 * MIB, 1), (1, 1)] {
            let mut prefetch = Prefetch::adaptive(1000, limit);
            let within = |prefetch: &Prefetch| u64::from(prefetch.count()) * 16 * MIB <= limit.max(16 * MIB);
            assert!(within(&prefetch));
            follow(&mut prefetch, 16 << 20, 50);
            assert!(prefetch.count() >= fits && within(&prefetch));
        }
    }

    #[test]
    fn the_first_huge_body_among_small_ones_shrinks_it_at_once() {
        let mut prefetch = Prefetch::adaptive(1000, 64 * MIB);
        follow(&mut prefetch, 100, 100);
        assert_eq!(prefetch.saw(16 << 20), Advice::Shrink(63));
    }

    #[test]
    fn a_fixed_count_stays() {
        let mut prefetch = Prefetch::fixed(1000, 16 * MIB);
        assert_eq!(prefetch.count(), 256);
        assert!(follow(&mut prefetch, 10, 100).is_empty());
    }

    proptest! {
        #[test]
        fn the_count_is_always_within_its_bounds(
            max in 1_u16..,
            bytes in 1_u64..,
            bodies in proptest::collection::vec(0_usize..1 << 30, 0..200),
        ) {
            let mut prefetch = Prefetch::adaptive(max, bytes);
            for body in bodies {
                let before = prefetch.count();
                let changed = !follow(&mut prefetch, body, 1).is_empty();
                prop_assert!((1..=max).contains(&prefetch.count()));
                prop_assert_eq!(changed, prefetch.count() != before);
            }
        }
    }
}
