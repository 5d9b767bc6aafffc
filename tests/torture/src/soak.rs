//! A long run at a moderate load: does a host that is never killed keep what it uses?

use std::time::{Duration, Instant};

use anyhow::Result;
use hapax_tests::usage::{descriptors, resident_memory};

/// What growth is counted by, and how far apart the measurements are that are told; in seconds.
const TEN_MINUTES: f64 = 600.0;

/// How often it is measured.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// What comes before is warm-up: the nemesis goes through all kinds of faults once, the last ids that hosts remember
/// fill up, plans are made, connections are open that are opened when they are first needed.
const WARM_UP: f64 = 2.0 * TEN_MINUTES;

/// How long nothing strikes at first.
pub(crate) const CALM: Duration = Duration::from_secs(60);

/// How much memory may grow in ten minutes, in bytes.
const GROWTH: f64 = 1e6;

/// By how much the number of descriptors may differ between the first ten minutes after warm-up and the last ten: in the
/// median, for connections that the nemesis has just cut are away.
const DESCRIPTORS: usize = 2;

/// What a host used at some time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Seconds since the start.
    at: f64,
    memory: u64,
    descriptors: usize,
}

/// The measurements of one host.
pub(crate) struct Soak {
    began: Instant,
    samples: Vec<Sample>,
}

impl Soak {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), samples: Vec::new() }
    }

    /// Measures.
    ///
    /// # Errors
    /// When the host is gone, or the system does not say.
    pub(crate) fn measure(&mut self, pid: u32) -> Result<()> {
        let at = self.began.elapsed().as_secs_f64();
        self.samples.push(Sample { at, memory: resident_memory(pid)?, descriptors: descriptors(pid)? });
        Ok(())
    }

    /// Judges. Returns what was found in words, and whether it may be.
    pub(crate) fn judge(&self) -> (String, bool) {
        let warm: Vec<Sample> = self.samples.iter().copied().filter(|sample| sample.at >= WARM_UP).collect();
        let growth = slope(&warm) * TEN_MINUTES;
        let end = self.samples.last().map_or(0.0, |last| last.at);
        let open = |from: f64| {
            let then = warm.iter().filter(|sample| (from..=from + TEN_MINUTES).contains(&sample.at));
            median(then.map(|sample| sample.descriptors))
        };
        let (before, after) = (open(WARM_UP), open(end - TEN_MINUTES));
        let words = format!(
            "In the host that was never killed, MB of memory (median of each 10 minutes): {}; after {:.0} minutes of \
             warm-up {:+.2} in 10 minutes; descriptors: {before} in the 10 minutes after that, {after} in the last 10",
            self.told(),
            WARM_UP / 60.0,
            growth / 1e6,
        );
        (words, growth <= GROWTH && before.abs_diff(after) <= DESCRIPTORS)
    }

    /// Memory by the clock, in megabytes.
    fn told(&self) -> String {
        let number = |sample: &Sample| (sample.at / TEN_MINUTES) as u64;
        let parts = self.samples.chunk_by(|one, other| number(one) == number(other));
        let median = parts.map(|part| median(part.iter().map(|sample| sample.memory)) as f64 / 1e6);
        median.map(|megabytes| format!("{megabytes:.0}")).collect::<Vec<_>>().join(", ")
    }
}

/// The value in the middle; zero of none.
fn median<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// By how much memory grows in a second: the straight line that fits best (least squares).
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    if count < 2.0 {
        return 0.0;
    }
    let mean = |value: fn(&Sample) -> f64| samples.iter().map(value).sum::<f64>() / count;
    let (at, memory) = (mean(|sample| sample.at), mean(|sample| sample.memory as f64));
    let (mut above, mut below) = (0.0, 0.0);
    for sample in samples {
        above += (sample.at - at) * (sample.memory as f64 - memory);
        below += (sample.at - at).powi(2);
    }
    if below > 0.0 { above / below } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A soak of an hour that measured this, by the second.
    fn hour(memory: impl Fn(u64) -> u64, descriptors: impl Fn(u64) -> usize) -> Soak {
        let sample = |s: u64| Sample { at: s as f64, memory: memory(s), descriptors: descriptors(s) };
        Soak { began: Instant::now(), samples: (0..3600).step_by(5).map(sample).collect() }
    }

    #[test]
    fn what_grows_only_while_it_warms_up_may_be() {
        let warming = |s: u64| 50_000_000 + s.min(1200) * 50_000;
        let (words, may_be) = hour(warming, |s| if s < 1200 { 30 } else { 39 + usize::from(s % 7 == 0) * 5 }).judge();
        assert!(may_be, "{words}");
        assert!(words.contains(": 65, 95, 110, 110, 110, 110;"), "{words}");
        assert!(words.contains("39 in the 10 minutes after that, 39 in the last 10"), "{words}");
    }

    #[test]
    fn a_leak_is_found_through_noise() {
        let leaking = |s: u64| 100_000_000 + s * 2000 + s % 2 * 9_000_000;
        assert!(!hour(leaking, |_| 39).judge().1);
        let (words, may_be) = hour(|_| 100_000_000, |s| 39 + (s / 600) as usize).judge();
        assert!(!may_be, "{words}");
    }

    #[test]
    fn a_line_is_found_through_noise() {
        let noisy = |n: u64| Sample { at: n as f64, memory: 1000 + 3 * n + (n % 2) * 10, descriptors: 0 };
        let samples: Vec<Sample> = (0..100).map(noisy).collect();
        assert!((slope(&samples) - 3.0).abs() < 0.01, "{}", slope(&samples));
        assert_eq!(slope(&samples[..1]), 0.0);
        assert_eq!(slope(&[]), 0.0);
    }
}
