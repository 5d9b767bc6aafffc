//! What a run has come to, for people and for the record of a campaign.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::checker::Violation;
use crate::run::{Task, Verdict};
use crate::stage::Setting;

/// Violations of which each is printed.
const SHOWN: usize = 50;

/// Characters of a violation by which its kind is told.
const KIND_WIDTH: usize = 80;

/// What a run is.
pub(crate) fn title(task: &Task) -> String {
    let Setting { database, broker, small_disk } = task.setting;
    let disk = if small_disk { ", a small disk" } else { "" };
    format!("seed {}: {}, {}{disk}, {} s", task.seed, database.title(), broker.title(), task.time.as_secs())
}

/// The report of a run.
pub(crate) fn text(task: &Task, verdict: &Verdict) -> String {
    let mut text = format!("\n{}\n{}\n", verdict.servers, faults(verdict));
    let _ = writeln!(
        text,
        "{} orders to 2 consumers, {} copies besides, {} faults that took effect, {} that nobody felt, {} swaps with \
         attempts in flight.",
        verdict.orders,
        verdict.copies,
        verdict.tally.felt.values().sum::<u64>(),
        verdict.tally.missed.values().sum::<u64>(),
        verdict.swaps,
    );
    if let Some(soak) = &verdict.soak {
        let _ = writeln!(text, "{soak}");
    }
    if verdict.violations.is_empty() {
        let _ = writeln!(text, "Nothing lost, nothing doubled, nothing stuck, nothing left behind.");
        return text;
    }
    let _ = writeln!(text, "VIOLATIONS: {}, seed {}", verdict.violations.len(), task.seed);
    for (kind, count) in kinds(&verdict.violations) {
        let _ = writeln!(text, "  {count:6} × {kind}");
    }
    let _ = writeln!(text, "The first of them:");
    for violation in verdict.violations.iter().take(SHOWN) {
        let _ = writeln!(text, "  {violation}");
    }
    if let Some(logs) = &verdict.logs {
        let _ = writeln!(text, "The whole logs of hosts and servers are in {}.", logs.display());
    }
    let _ = writeln!(text, "What is known of the first of these messages:");
    for history in &verdict.histories {
        let _ = writeln!(text, "{history}");
    }
    text
}

/// How many violations read the same but for their numbers and ids; the most frequent first.
fn kinds(violations: &[Violation]) -> Vec<(String, usize)> {
    let mut counts = BTreeMap::<String, usize>::new();
    for violation in violations {
        let line = violation.what.lines().next().unwrap_or_default();
        let is_number = |word: &str| word.contains(|letter: char| letter.is_ascii_digit());
        let words = line.split_whitespace().map(|word| if is_number(word) { "#" } else { word });
        let kind = words.collect::<Vec<_>>().join(" ").chars().take(KIND_WIDTH).collect();
        *counts.entry(kind).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| Reverse(*count));
    counts.truncate(SHOWN);
    counts
}

fn faults(verdict: &Verdict) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["fault", "felt", "not felt"]);
    let tally = &verdict.tally;
    let kinds: BTreeSet<&String> = tally.felt.keys().chain(tally.missed.keys()).collect();
    for kind in kinds {
        let count = |found: Option<&u64>| found.map_or(String::new(), u64::to_string);
        table.add_row([kind.clone(), count(tally.felt.get(kind)), count(tally.missed.get(kind))]);
    }
    align_numbers(&mut table);
    table
}

/// Puts what stands in all columns but the first to the right.
pub(crate) fn align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_that_differ_in_numbers_and_ids_only_are_counted_together() {
        let of = |what: &str| Violation { message: None, what: what.to_owned() };
        let found = kinds(&[of("row 17 is locked"), of("stuck: 5 left\nand its logs"), of("row 4 is locked")]);
        assert_eq!(found, [("row # is locked".to_owned(), 2), ("stuck: # left".to_owned(), 1)]);
        let ids = [of("told twice: [\"52689793-4a9e\"]"), of("told twice: [\"ba1d3f85-0fd2\"]")];
        assert_eq!(kinds(&ids), [("told twice: #".to_owned(), 2)]);
    }
}
