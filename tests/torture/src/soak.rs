//! A long run at a moderate load: does a host that is never killed keep what it uses?

use std::time::{Duration, Instant};

use anyhow::Result;
use hapax_tests::usage::{descriptors, resident_memory};

/// What growth is counted by, and how far apart the measurements are that are told; in seconds.
const TEN_MINUTES: f64 = 600.0;

/// How often it is measured.
pub(crate) const EVERY: Duration = Duration::from_secs(5);

/// What comes before is warm-up: caches fill, plans are made, every kind of fault has been met.
const WARM_UP: f64 = TEN_MINUTES;

/// How long nothing strikes at first: connections that are opened when they are first needed are open then.
pub(crate) const CALM: Duration = Duration::from_secs(60);

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
    /// Open at the end of the calm before the first fault.
    descriptors: usize,
}

impl Soak {
    pub(crate) fn begin() -> Self {
        Self { began: Instant::now(), samples: Vec::new(), descriptors: 0 }
    }

    /// Measures.
    ///
    /// # Errors
    /// When the host is gone, or the system does not say.
    pub(crate) fn measure(&mut self, pid: u32) -> Result<()> {
        if self.began.elapsed() < CALM {
            self.descriptors = descriptors(pid)?;
        }
        self.samples.push(Sample { at: self.began.elapsed().as_secs_f64(), memory: resident_memory(pid)? });
        Ok(())
    }

    /// Judges, when everything is calm again. Returns what was found in words, and whether it may be.
    ///
    /// # Errors
    /// As [`measure`](Self::measure).
    pub(crate) fn judge(&self, pid: u32) -> Result<(String, bool)> {
        let now = descriptors(pid)?;
        let warm: Vec<Sample> = self.samples.iter().copied().filter(|sample| sample.at >= WARM_UP).collect();
        let growth = slope(&warm) * TEN_MINUTES;
        let words = format!(
            "MB of memory of the host that was never killed, every 10 minutes: {}; after the first 10, {:+.2} in 10 minutes; \
             descriptors: {} before the first fault, {now} at the end",
            self.told(),
            growth / 1e6,
            self.descriptors,
        );
        Ok((words, growth <= GROWTH && now.abs_diff(self.descriptors) <= DESCRIPTORS))
    }

    /// Some of the measurements, in megabytes.
    fn told(&self) -> String {
        let (mut told, mut next) = (Vec::new(), CALM.as_secs_f64());
        for sample in &self.samples {
            if sample.at >= next {
                told.push(format!("{:.0}", sample.memory as f64 / 1e6));
                next = ((sample.at / TEN_MINUTES).floor() + 1.0) * TEN_MINUTES;
            }
        }
        told.extend(self.samples.last().map(|last| format!("{:.0} at the end", last.memory as f64 / 1e6)));
        told.join(", ")
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
