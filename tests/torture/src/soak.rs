//! A long run at a moderate load: does a host that is never killed keep what it uses?

use std::time::{Duration, Instant};

use anyhow::Result;
use hapax_tests::usage::{descriptors, resident_memory};

/// How often it is measured.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// What comes before is warm-up: caches fill, plans are made, every kind of fault has been met.
const WARM_UP: f64 = 600.0;

/// How much memory may grow in ten minutes, in bytes.
const GROWTH: f64 = 1e6;

/// By how much the number of descriptors may differ between the calm before and the calm after.
const DESCRIPTORS: usize = 2;

/// What a host used at some time.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Seconds since the start.
    at: f64,
    memory: u64,
}

/// The measurements of one host.
pub(crate) struct Soak {
    began: Instant,
    samples: Vec<Sample>,
    /// Open before the first fault.
    descriptors: usize,
}

impl Soak {
    /// Begins, while everything is calm.
    ///
    /// # Errors
    /// When the host is gone, or the system does not say.
    pub(crate) fn begin(pid: u32) -> Result<Self> {
        Ok(Self { began: Instant::now(), samples: Vec::new(), descriptors: descriptors(pid)? })
    }

    /// Measures.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) fn measure(&mut self, pid: u32) -> Result<()> {
        self.samples.push(Sample { at: self.began.elapsed().as_secs_f64(), memory: resident_memory(pid)? });
        Ok(())
    }

    /// Judges, when everything is calm again. Returns what was found in words, and whether it may be.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub(crate) fn judge(&self, pid: u32) -> Result<(String, bool)> {
        let now = descriptors(pid)?;
        let warm: Vec<Sample> = self.samples.iter().copied().filter(|sample| sample.at >= WARM_UP).collect();
        let growth = slope(&warm) * 600.0;
        let memory = warm.last().map_or(0, |sample| sample.memory) as f64 / 1e6;
        let words = format!(
            "memory of the host that was never killed: {memory:.0} MB at the end, {:+.2} MB in 10 minutes; descriptors: {} \
             before, {now} after",
            growth / 1e6,
            self.descriptors,
        );
        Ok((words, growth <= GROWTH && now.abs_diff(self.descriptors) <= DESCRIPTORS))
    }
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

    #[test]
    fn a_line_is_found_through_noise() {
        let noisy = |n: u64| Sample { at: n as f64, memory: 1000 + 3 * n + (n % 2) * 10 };
        let samples: Vec<Sample> = (0..100).map(noisy).collect();
        assert!((slope(&samples) - 3.0).abs() < 0.01, "{}", slope(&samples));
        assert_eq!(slope(&samples[..1]), 0.0);
    }
}
