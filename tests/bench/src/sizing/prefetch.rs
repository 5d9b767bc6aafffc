//! Throughput for prefetch counts set by hand.

use anyhow::Result;

use super::drained;
use crate::extra::Run;
use crate::report::Section;
use crate::variant::Hapax;

/// From a quarter of a batch, of which the host warns, to four times the default.
const COUNTS: [u16; 5] = [16, 64, 256, DEFAULT, 4096];

/// What the host takes by itself: four batches for each lane.
const DEFAULT: u16 = 4 * Hapax::USUAL.lanes * Hapax::USUAL.batch;

/// Drains once with each.
///
/// # Errors
/// When Hapax stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let mut rows = Vec::new();
    for count in COUNTS {
        let hapax = Hapax { prefetch: Some(count), ..Hapax::USUAL };
        rows.push(drained(run, row_name(count), hapax, run.messages / 2).await?);
    }
    Ok(Section {
        title,
        legend: format!(
            "One drain each of {} messages by Hapax on Postgres with {} lanes, batches of {} and Redis. \
             `prefetch.messages` is how many deliveries are on their way or in work at a time.",
            run.messages / 2,
            Hapax::USUAL.lanes,
            Hapax::USUAL.batch
        ),
        rows,
    })
}

fn row_name(count: u16) -> String {
    let default = if count == DEFAULT { " (the default)" } else { "" };
    format!("prefetch of {count}{default}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_among_the_counts_and_says_so() {
        let names = COUNTS.map(row_name);
        assert_eq!(names.iter().filter(|name| name.ends_with("(the default)")).count(), 1);
        assert!(COUNTS.is_sorted());
    }
}
