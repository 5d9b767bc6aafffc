//! How many deliveries to ask for, so that their bodies take about so many bytes.
//!
//! AMQP has a limit in bytes; RabbitMQ refuses it, and knows a limit by number only. So the number follows the sizes
//! that are seen. It starts with what fits if every body were of [`ASSUMED_BODY`] bytes, grows as soon as the first
//! bodies show that more fit, and shrinks when they turn out larger.
//!
//! The limit in bytes is an aim, not a wall: a queue whose bodies jump from small to huge is ahead of us by what the
//! broker had already sent when the first huge one was seen.

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

    /// Takes note of a body, and returns a new count if it is time for one.
    pub(super) fn saw(&mut self, body: usize) -> Option<u16> {
        if !self.adaptive {
            return None;
        }
        let size = (body as u64 + OVERHEAD) as f64;
        let mean = self.mean.map_or(size, |mean| mean + (size - mean) / MEMORY);
        self.mean = Some(mean);
        self.seen_since_change = self.seen_since_change.saturating_add(1);
        let target = fitting(self.max_messages, self.max_bytes, mean as u64);
        // Half or less: at once. Twice or more: when enough bodies were seen, and at most sixteenfold.
        let shrink = target <= self.count / 2;
        let enough = self.seen_since_change >= u32::from(self.count.min(FIRST));
        let grow = enough && (target >= self.count.saturating_mul(2) || (target > self.count && self.count < FIRST));
        if !shrink && !grow {
            return None;
        }
        self.count = target.min(self.count.saturating_mul(16));
        self.seen_since_change = 0;
        Some(self.count)
    }
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

    #[test]
    fn small_bodies_reach_the_full_count_in_a_few_steps() {
        let mut prefetch = Prefetch::adaptive(1000, 64 * MIB);
        let steps: Vec<u16> = (0..100).filter_map(|_| prefetch.saw(100)).collect();
        assert_eq!((prefetch.count(), steps), (1000, vec![64, 1000]));
    }

    #[test]
    fn huge_bodies_keep_the_count_that_fits() {
        for (limit, fits) in [(64 * MIB, 3), (16 * MIB, 1), (1, 1)] {
            let mut prefetch = Prefetch::adaptive(1000, limit);
            assert!(u64::from(prefetch.count()) * 16 * MIB <= limit.max(16 * MIB));
            for _ in 0..50 {
                prefetch.saw(16 << 20);
            }
            assert!(prefetch.count() >= fits && u64::from(prefetch.count()) * 16 * MIB <= limit.max(16 * MIB));
        }
    }

    #[test]
    fn the_first_huge_body_among_small_ones_shrinks_it_at_once() {
        let mut prefetch = Prefetch::adaptive(1000, 64 * MIB);
        assert!((0..100).filter_map(|_| prefetch.saw(100)).count() > 0);
        assert_eq!(prefetch.saw(16 << 20), Some(63));
    }

    #[test]
    fn a_fixed_count_stays() {
        let mut prefetch = Prefetch::fixed(1000, 16 * MIB);
        assert_eq!(prefetch.count(), 256);
        assert!((0..100).all(|_| prefetch.saw(10).is_none()));
    }

    proptest! {
        #[test]
        fn the_count_is_always_within_its_bounds(max in 1_u16.., bytes in 1_u64.., bodies in proptest::collection::vec(0_usize..1 << 30, 0..200)) {
            let mut prefetch = Prefetch::adaptive(max, bytes);
            for body in bodies {
                let before = prefetch.count();
                let changed = prefetch.saw(body);
                prop_assert!((1..=max).contains(&prefetch.count()));
                prop_assert_eq!(changed.is_some(), prefetch.count() != before);
            }
        }
    }
}
