//! What Hapax is to reach, in ratios of one run, and what it reached.

use serde::Serialize;

use super::section::Section;
use super::{Rounds, shown};
use crate::drain::Figures;
use crate::extra::Extra;
use crate::stats::median;
use crate::variant::{Program, all as all_variants, names};
use crate::workload::Ids;
use crate::{consumers, guest, inbox, latency};

/// One target.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Target {
    pub(crate) what: String,
    /// Null if it was not measured.
    pub(crate) measured: f64,
    /// What it is measured in.
    pub(crate) unit: &'static str,
    /// What is to be reached, and what would be better still; empty where there is no target.
    pub(crate) reach: &'static str,
    pub(crate) aim: &'static str,
}

impl Target {
    /// As a row of a table.
    pub(super) fn cells(&self) -> Vec<String> {
        vec![self.what.clone(), with_unit(self.measured, self.unit), self.reach.to_owned(), self.aim.to_owned()]
    }
}

/// A figure in the words of the tables.
pub(super) fn with_unit(figure: f64, unit: &str) -> String {
    if figure.is_nan() { shown(figure) } else { format!("{} {unit}", shown(figure)).trim_end().to_owned() }
}

/// Every target, in the order in which people ask.
pub(super) fn all(rounds: &Rounds, sections: &[Section]) -> Vec<Target> {
    let found = Found { rounds, sections };
    [found.throughput(), found.languages(), found.duplicates_and_failures(), found.large_inbox(), found.small_things()]
        .concat()
}

struct Found<'r> {
    rounds: &'r Rounds,
    sections: &'r [Section],
}

impl Found<'_> {
    fn throughput(&self) -> Vec<Target> {
        let cpu = self.rounds.ratio(names::HAPAX, names::CLASSIC, |figures| figures.cpu.total());
        vec![
            self.times(
                "Postgres, Redis lock, partitioned, against the classic recipe",
                HAPAX_TO_CLASSIC,
                "4.2 ×",
                "6 ×",
            ),
            self.percent("the same against the bare consumer", (names::HAPAX, names::CEILING), "22 %", "30 %"),
            target("CPU a message, against the classic recipe", cpu, "×", "≤ 0.25 ×", "≤ 0.18 ×"),
            self.times("hot row, against the classic recipe", (names::HAPAX_HOT, names::CLASSIC_HOT), "8 ×", "10 ×"),
            self.times(
                "MariaDB, against the classic recipe on it",
                (names::HAPAX_MARIADB, names::CLASSIC_MARIADB),
                "4.4 ×",
                "6 ×",
            ),
            self.times(
                "SQLite, against the classic recipe on it",
                (names::HAPAX_SQLITE, names::CLASSIC_SQLITE),
                "10 ×",
                "14 ×",
            ),
            self.times("two hosts on one queue, against one", (names::HAPAX_TWO_HOSTS, names::HAPAX), "", ""),
        ]
    }

    fn languages(&self) -> Vec<Target> {
        vec![
            self.times("against the classic recipe in Node", (names::HAPAX, names::CLASSIC_NODE), "6 ×", "8 ×"),
            self.times("against the classic recipe in Python", (names::HAPAX, names::CLASSIC_PYTHON), "11 ×", "15 ×"),
            self.times(
                "Python handler, against the classic recipe in Python",
                (names::HAPAX_PYTHON, names::CLASSIC_PYTHON),
                "3 ×",
                "5 ×",
            ),
            self.times(
                "TypeScript handler, against the classic recipe in Node",
                (names::HAPAX_TYPESCRIPT, names::CLASSIC_NODE),
                "3 ×",
                "5 ×",
            ),
        ]
    }

    fn duplicates_and_failures(&self) -> Vec<Target> {
        let without = (names::HAPAX_FEW_GOODS, names::CLASSIC_FEW_GOODS);
        vec![
            self.times(
                "100 % duplicates, handled by another process, against one look-up a message",
                (names::HAPAX_COLD, names::LOOK_UP),
                "3 ×",
                "4 ×",
            ),
            self.times(
                "100 % duplicates, handled by the same process, against the same",
                (names::HAPAX_WARM, names::LOOK_UP),
                "",
                "",
            ),
            self.percent(
                "one outbox message an order, against none",
                (names::HAPAX_TOLD, names::HAPAX),
                "60 %",
                "75 %",
            ),
            self.percent(
                "1 % of first attempts fail, against none",
                (names::HAPAX_FAILING_1, names::HAPAX),
                "75 %",
                "90 %",
            ),
            self.percent("20 % of first attempts fail, against none", (names::HAPAX_FAILING_20, names::HAPAX), "", ""),
            target("deadlocks with partition_by, one host", self.deadlocks(), "", "0", "0"),
            self.times("100 goods, 4 lanes without partition_by, against the classic recipe", without, "1 ×", "2 ×"),
        ]
    }

    fn large_inbox(&self) -> Vec<Target> {
        let figure = |row: String, what| self.figure(Extra::Inbox, &row, what);
        let mut targets = Vec::new();
        for (ids, reach) in [(Ids::TimeOrdered, "85 %"), (Ids::Random, "75 %")] {
            let full = inbox::full(ids);
            let to_empty = figure(full.clone(), inbox::TO_EMPTY);
            targets.push(target(format!("large inbox against an empty one, {full}"), to_empty, "%", reach, "95 %"));
        }
        for ids in [Ids::TimeOrdered, Ids::Random] {
            let row = inbox::forgetting(ids);
            let (rate, kept) = (figure(row.clone(), inbox::FORGOTTEN_RATE), figure(row.clone(), inbox::TO_KEPT));
            targets.push(target(format!("large inbox, {row}: rows"), rate, "rows/s", "20,000 rows/s", ""));
            targets.push(target(format!("large inbox, {row}: messages, against without"), kept, "%", "80 %", "90 %"));
        }
        targets
    }

    fn small_things(&self) -> Vec<Target> {
        let four = |what| self.figure(Extra::Consumers, consumers::ONE_LANE, what);
        let start = self.median(names::HAPAX, |figures| figures.start_millis);
        let mut targets = vec![target(
            "guest code and the wasm boundary, of the client's CPU time",
            self.guest_share(),
            "%",
            "≤ 10 %",
            "≤ 5 %",
        )];
        for rate in latency::RATES {
            let millis = |variant: &str, what| self.figure(Extra::Latency, &latency::row_name(variant, rate), what);
            let (own, classic) = (names::HAPAX, latency::baseline());
            let later = millis(own, latency::P50) - millis(&classic, latency::P50);
            let slower = millis(own, latency::P99) / millis(&classic, latency::P99);
            let what = format!("publish to commit at {rate} msg/s, against the classic recipe");
            targets.push(target(format!("{what}: p50"), later, "ms", "≤ +0.5 ms", "≤ 0 ms"));
            targets.push(target(format!("{what}: p99"), slower, "×", "≤ 1.2 ×", "≤ 1 ×"));
        }
        targets.extend([
            target("peak memory, four consumers", four(consumers::PEAK), "MiB", "≤ 76 MiB", "≤ 48 MiB"),
            target("idle CPU, four consumers", four(consumers::IDLE), "%", "≤ 0.5 %", "~ 0 %"),
            target("start to first message handled", start, "ms", "≤ 300 ms", "≤ 100 ms"),
        ]);
        targets
    }

    fn times(&self, what: &str, (line, to): (&str, &str), reach: &'static str, aim: &'static str) -> Target {
        target(what, self.rounds.ratio(line, to, |figures| figures.rate), "×", reach, aim)
    }

    fn percent(&self, what: &str, (line, to): (&str, &str), reach: &'static str, aim: &'static str) -> Target {
        target(what, self.rounds.ratio(line, to, |figures| figures.rate) * 100.0, "%", reach, aim)
    }

    fn median(&self, line: &str, figure: fn(&Figures) -> f64) -> f64 {
        self.rounds.of(line).map_or(f64::NAN, |(_, own)| median(own.iter().map(figure).collect()))
    }

    fn figure(&self, section: Extra, row: &str, what: &str) -> f64 {
        let section = self.sections.iter().find(|found| found.title == section.title());
        section.and_then(|section| section.figure(row, what)).unwrap_or(f64::NAN)
    }

    /// The time in the guest of a reused call, of the client's CPU time for each message of the usual drain, in percent.
    fn guest_share(&self) -> f64 {
        let in_guest = self.figure(Extra::Guest, guest::RUST, guest::IN_GUEST);
        in_guest / self.median(names::HAPAX, |figures| figures.cpu.client) * 100.0
    }

    /// Of all lines whose lanes share no rows.
    fn deadlocks(&self) -> f64 {
        let variants = all_variants(false);
        let partitioned = variants.iter().filter(
            |variant| matches!(&variant.program, Program::Hapax(hapax) if hapax.partitioned && hapax.hosts == 1),
        );
        let measured = partitioned.filter_map(|variant| self.rounds.of(&variant.name));
        let counts: Vec<u64> =
            measured.flat_map(|(_, figures)| figures).filter_map(|figures| figures.deadlocks).collect();
        if counts.is_empty() { f64::NAN } else { counts.iter().sum::<u64>() as f64 }
    }
}

const HAPAX_TO_CLASSIC: (&str, &str) = (names::HAPAX, names::CLASSIC);

fn target(
    what: impl Into<String>,
    measured: f64,
    unit: &'static str,
    reach: &'static str,
    aim: &'static str,
) -> Target {
    Target { what: what.into(), measured, unit, reach, aim }
}

#[cfg(test)]
mod tests {
    use super::super::section::Row;
    use super::*;

    fn sections() -> Vec<Section> {
        let latency = latency::RATES.into_iter().flat_map(|rate| {
            [names::HAPAX.to_owned(), latency::baseline()]
                .map(|name| Row::new(latency::row_name(&name, rate), vec![(latency::P50, 2.0), (latency::P99, 4.0)]))
        });
        let inbox = [Ids::TimeOrdered, Ids::Random].into_iter().flat_map(|ids| {
            let more = vec![(inbox::TO_KEPT, 90.0), (inbox::FORGOTTEN_RATE, 20_000.0)];
            [Row::new(inbox::full(ids), vec![(inbox::TO_EMPTY, 90.0)]), Row::new(inbox::forgetting(ids), more)]
        });
        let four = vec![(consumers::PEAK, 70.0), (consumers::IDLE, 0.1)];
        [
            (Extra::Latency, latency.collect()),
            (Extra::Inbox, inbox.collect()),
            (Extra::Consumers, vec![Row::new(consumers::ONE_LANE, four)]),
            (Extra::Guest, vec![Row::new(guest::RUST, vec![(guest::IN_GUEST, 5.0)])]),
        ]
        .map(|(extra, rows)| Section { title: extra.title(), legend: String::new(), rows })
        .into()
    }

    #[test]
    fn every_target_finds_its_figures() {
        let variants = all_variants(false);
        let rates: Vec<(&str, f64)> = variants.iter().map(|variant| (variant.line(), 1_000.0)).collect();
        for target in all(&Rounds::made_up(&rates), &sections()) {
            assert!(!target.measured.is_nan(), "{}", target.what);
        }
    }

    #[test]
    fn what_was_not_measured_is_a_dash() {
        let targets = all(&Rounds::default(), &[]);
        assert!(targets.iter().all(|target| target.cells()[1] == "–"));
        let rounds = Rounds::made_up(&[(names::HAPAX, 15_000.0), (names::CLASSIC, 3_000.0)]);
        assert_eq!(all(&rounds, &[])[0].cells()[1], "5.00 ×");
    }

    #[test]
    fn the_guests_share_is_of_the_clients_time() {
        // 1e6 / 20,000 = 50 µs a message, of which a call takes 5.
        let rounds = Rounds::made_up(&[(names::HAPAX, 20_000.0)]);
        let sections = sections();
        assert!((Found { rounds: &rounds, sections: &sections }.guest_share() - 10.0).abs() < 1e-9);
    }
}
