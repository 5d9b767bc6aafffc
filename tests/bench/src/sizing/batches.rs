//! Throughput for numbers of lanes and sizes of batches.

use anyhow::Result;

use super::drained;
use crate::extra::Run;
use crate::report::Section;
use crate::variant::Hapax;

/// Numbers of lanes, each with every size of batches.
pub(crate) const LANES: [u16; 4] = [1, 2, 4, 8];
/// Sizes of batches, the last one for one lane alone: what several commit is together as much with half of it.
pub(crate) const BATCHES: [u16; 5] = [1, 8, 64, 256, 512];

/// One setup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) lanes: u16,
    pub(crate) batch: u16,
}

/// Every setup, lane by lane.
pub(crate) fn points() -> impl Iterator<Item = Point> {
    let of = |lanes| BATCHES.into_iter().map(move |batch| Point { lanes, batch });
    LANES.into_iter().flat_map(of).filter(|point| point.lanes == 1 || point.batch <= 256)
}

impl Point {
    /// The name of its row.
    pub(crate) fn row_name(self) -> String {
        let Self { lanes, batch } = self;
        let plural = if lanes == 1 { "" } else { "s" };
        format!("{lanes} lane{plural}, batches of {batch}")
    }

    fn hapax(self) -> Hapax {
        Hapax { lanes: self.lanes, batch: self.batch, partitioned: self.lanes > 1, ..Hapax::USUAL }
    }

    /// Messages of a drain, of those of a run's drains: some seconds for everyone, and small transactions are slow.
    fn messages(self, all: u64) -> u64 {
        let lanes = u64::from(self.lanes);
        let wanted = match self.batch {
            1 => all * lanes / 50,
            2..=8 => all * lanes / 10,
            _ => all / 2,
        };
        wanted.min(all / 2).max(1)
    }
}

/// Drains once with each.
///
/// # Errors
/// When Hapax stops, gets stuck, or has not done exactly what it should.
pub(crate) async fn measure(run: &Run<'_>, title: &'static str) -> Result<Section> {
    let mut rows = Vec::new();
    for point in points() {
        rows.push(drained(run, point.row_name(), point.hapax(), point.messages(run.messages)).await?);
    }
    Ok(Section {
        title,
        legend: format!(
            "One drain each of Hapax on Postgres with the Rust handler and Redis, {} messages at most (fewer with small \
             batches, which take long). `concurrency` is the number of lanes, `batch.max_messages` the size of batches; \
             several lanes have `partition_by`. Prefetch is the default, four batches a lane. CPU is that of all \
             processes, MiB the client's peak. [SIZING.md](SIZING.md) says what to make of it.",
            run.messages / 2
        ),
        rows,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_number_of_lanes_meets_every_size_but_the_largest() {
        let points: Vec<Point> = points().collect();
        let names: HashSet<String> = points.iter().map(|point| point.row_name()).collect();
        assert_eq!((points.len(), names.len()), (17, 17));
        assert!(names.contains("1 lane, batches of 512") && !names.contains("2 lanes, batches of 512"));
        assert!(points.iter().all(|point| point.hapax().partitioned == (point.lanes > 1)));
    }

    #[test]
    fn small_transactions_get_fewer_messages_and_none_gets_more_than_half() {
        let messages = |lanes, batch| Point { lanes, batch }.messages(200_000);
        assert_eq!((messages(1, 1), messages(8, 1)), (4_000, 32_000));
        assert_eq!((messages(1, 8), messages(8, 8)), (20_000, 100_000));
        assert_eq!((messages(1, 512), messages(8, 64)), (100_000, 100_000));
        assert_eq!(Point { lanes: 1, batch: 1 }.messages(10), 1);
    }
}
