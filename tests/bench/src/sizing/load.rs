//! Latency for rates of messages, up to one that cannot be kept up with.

use anyhow::{Context as _, Result};

use super::variant;
use crate::extra::Run;
use crate::latency::{self, Load, P50, P99, at_rate, baseline, row_name};
use crate::report::{Row, Section};
use crate::stats::percentile;
use crate::variant::{Hapax, Variant, named, names};

/// Messages a second.
const RATES: [u64; 8] = [100, 500, 1000, 2000, 3000, 4500, 6000, 8000];
const RATES_QUICK: [u64; 4] = [100, 1000, 3000, 6000];

/// For how long.
const SECONDS: u64 = 6;
const SECONDS_QUICK: u64 = 5;

/// A median above this is a queue that grows: no batch takes that long.
const BEHIND_MILLIS: f64 = 100.0;
/// Below this share of a rate, it is the publisher that cannot keep up.
const PUBLISHED: f64 = 0.95;

/// The figure that says how much load there really was.
pub(crate) const LOAD: &str = "published/s";

/// Hapax as a config gets it that does not name lanes.
const DEFAULT: &str = "Hapax, Postgres, one lane (the default config)";

/// Who is put under load, in the order of the rows.
pub(crate) fn subjects() -> [String; 3] {
    [baseline(), DEFAULT.to_owned(), names::HAPAX.to_owned()]
}

/// The rates at which someone may have a row.
pub(crate) fn rates() -> [u64; 8] {
    RATES
}

/// Loads each with more and more, until it falls behind.
///
/// # Errors
/// When a program stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let (rates, seconds) = if run.quick { (&RATES_QUICK[..], SECONDS_QUICK) } else { (&RATES[..], SECONDS) };
    let postgres = latency::postgres().await?;
    let mut rows = Vec::new();
    for name in subjects() {
        let variant = subject(&name)?;
        for &rate in rates {
            let name = row_name(&name, rate);
            let Load { mut millis, published } =
                at_rate(run, &postgres, &variant, rate, seconds).await.with_context(|| name.clone())?;
            let (p50, p99) = (percentile(&mut millis, 50.0), percentile(&mut millis, 99.0));
            eprintln!("  {p50:8.2} ms, 99 % within {p99:.2} ms  {name}");
            rows.push(Row::new(name, vec![(LOAD, published.round()), (P50, p50), (P99, p99)]));
            if !keeps_up(rate, published, p50) {
                break;
            }
        }
    }
    Ok(Section {
        title,
        legend: format!(
            "Measured as in the section on latency, over {seconds} s at each rate. Rates rise until the median is above \
             {BEHIND_MILLIS} ms, or no more can be published: the last row of a variant may show how far it fell behind \
             in {seconds} s, which is no latency. The publisher shares the cores, so everyone falls behind at a lower \
             rate than that of a drain."
        ),
        rows,
    })
}

fn subject(name: &str) -> Result<Variant> {
    if name == DEFAULT { variant(name, Hapax::DEFAULT) } else { named(name) }
}

/// Is a higher rate worth trying?
fn keeps_up(rate: u64, published: f64, p50: f64) -> bool {
    p50 <= BEHIND_MILLIS && published >= PUBLISHED * rate as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_falls_behind_is_not_asked_for_more() {
        assert!(keeps_up(1000, 999.0, 2.0));
        assert!(!keeps_up(1000, 999.0, 101.0), "the queue grows");
        assert!(!keeps_up(1000, 900.0, 2.0), "the publisher is the bottleneck");
        assert!(!keeps_up(1000, f64::NAN, 2.0));
    }

    #[test]
    fn every_subject_is_a_variant_and_quick_rates_are_among_all() {
        assert!(subjects().iter().all(|name| subject(name).unwrap().name == *name));
        assert!(RATES_QUICK.iter().all(|rate| RATES.contains(rate)));
    }
}
