//! The tables of the page of results, made from the record.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{Row, Table};
use hapax::sabotage::Breach;

use super::plan::Job;
use super::{clean_runs, plan, runs};
use crate::record::{Found, Line, NAMING, Run};
use crate::recovery::{SUMMARY, summary};
use crate::report::align_numbers;

/// What stands between these is made from the record; the rest of the page is written by hand.
const BEGIN: &str = "<!-- made from campaign.jsonl -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// Puts the tables where the old ones are.
///
/// # Errors
/// When the page cannot be read or written, or does not say where they go.
pub(super) fn write(page: &Path, lines: &[Line]) -> Result<()> {
    let text = std::fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no {BEGIN:?} and {END:?}", page.display()))?;
    let text = format!("{before}{BEGIN}{}{END}{after}", tables(lines));
    std::fs::write(page, text).with_context(|| format!("writing {}", page.display()))
}

/// What one run came to.
pub(super) fn in_a_word(line: &Line) -> String {
    match &line.found {
        Found::Run(run) => {
            format!("{} orders, {} faults, {} violations", run.orders, run.faults(), run.violations)
        }
        Found::Recovery(_) => "measured".to_owned(),
    }
}

fn tables(lines: &[Line]) -> String {
    let of = lines.first().map_or("-", |line| &line.runtime);
    let dates: BTreeSet<&str> = lines.iter().map(|line| line.date.get(..10).unwrap_or_default()).collect();
    let dates: Vec<&str> = dates.into_iter().collect();
    let servers: BTreeSet<&str> = lines.iter().flat_map(|line| line.servers.split(", ")).collect();
    let servers: Vec<&str> = servers.into_iter().collect();
    format!(
        "Runtime `{of}`, {}; {}. The runtime's name is what this says:\n\n```sh\n{NAMING}\n```\n\n{}\n\n### Runs\n\n{}\n\n### Faults\n\n{}\n\n\
         ### Broken invariants\n\nViolations found, by seed.\n\n{}\n\n### Recovery\n\n{}\n\n### Soak\n\n{}\n",
        dates.join(", "),
        servers.join(", "),
        targets(lines),
        all_runs(lines),
        faults(lines),
        breaches(lines),
        recovery(lines),
        soak(lines),
    )
}

fn markdown(columns: impl Into<Row>, rows: impl IntoIterator<Item = impl Into<Row>>) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(columns);
    table.add_rows(rows);
    align_numbers(&mut table);
    table
}

fn targets(lines: &[Line]) -> Table {
    let mut rows: Vec<[String; 3]> = plan::targets(lines)
        .into_iter()
        .map(|(what, reached, wanted)| [what, thousands(reached), format!("≥ {}", thousands(wanted))])
        .collect();
    let violations: u64 = clean_runs(lines).map(|(_, run)| run.violations).sum();
    rows.push(["lost, doubled, stuck, left behind".to_owned(), violations.to_string(), "0".to_owned()]);
    let all = plan::breaches().count();
    let caught = runs(lines).filter(|(_, run)| run.breach.is_some() && run.violations > 0).count();
    rows.push(["broken invariants noticed".to_owned(), caught.to_string(), all.to_string()]);
    markdown(["what", "reached", "to reach"], rows)
}

fn all_runs(lines: &[Line]) -> Table {
    let rows = clean_runs(lines).map(|(line, run)| {
        [
            line.seed.to_string(),
            where_it_was(line, run),
            run.seconds.to_string(),
            thousands(run.orders),
            thousands(run.messages),
            thousands(run.copies),
            run.faults().to_string(),
            run.swaps.to_string(),
            run.violations.to_string(),
        ]
    });
    markdown(["seed", "on", "seconds", "orders", "messages", "copies besides", "faults", "swaps", "violations"], rows)
}

fn where_it_was(line: &Line, run: &Run) -> String {
    let soak = if run.soak.is_some() { ", soak" } else { "" };
    let disk = if run.small_disk { ", small disk" } else { "" };
    format!("{}, {}{disk}{soak}", line.database.title(), line.broker.title())
}

fn faults(lines: &[Line]) -> Table {
    let mut missed: BTreeMap<&str, u64> = BTreeMap::new();
    for (kind, times) in clean_runs(lines).flat_map(|(_, run)| &run.missed) {
        *missed.entry(kind).or_default() += times;
    }
    let rows = plan::felt(lines).into_iter().map(|(kind, felt)| {
        let missed = missed.get(kind.as_str()).copied().unwrap_or(0);
        [kind, felt.to_string(), missed.to_string()]
    });
    markdown(["fault", "took effect", "nobody felt it"], rows)
}

fn breaches(lines: &[Line]) -> Table {
    let seeds = plan::SEEDS_OF_BREACHES;
    let violations = |job: Job| match lines.iter().find(|line| job.is(line)).and_then(Line::run) {
        None => "-".to_owned(),
        Some(run) if run.violations == 0 => "none".to_owned(),
        Some(run) => thousands(run.violations),
    };
    let row = |breach: &Breach| {
        let cells = seeds.clone().map(|seed| violations(Job::Breach(*breach, seed)));
        std::iter::once(breach.name().to_owned()).chain(cells).collect::<Vec<_>>()
    };
    let columns = std::iter::once("broken".to_owned()).chain(seeds.clone().map(|seed| seed.to_string()));
    markdown(columns.collect::<Vec<_>>(), Breach::ALL.iter().map(row))
}

fn recovery(lines: &[Line]) -> Table {
    let mut rows = Vec::new();
    for line in lines {
        let Found::Recovery(found) = &line.found else { continue };
        for (what, seconds) in found {
            let [times, median, longest] = summary(seconds);
            let limit = format!("≤ {}", plan::limit(what));
            rows.push([format!("{what}, {}", line.database.title()), times, median, longest, limit]);
        }
    }
    let [times, median, longest] = SUMMARY;
    markdown(["killed", times, median, longest, "to reach"], rows)
}

fn soak(lines: &[Line]) -> String {
    let soaked = clean_runs(lines).filter_map(|(line, run)| {
        let soak = run.soak.as_ref()?;
        Some(format!("{} s, {} orders, {}: {soak}.", run.seconds, thousands(run.orders), where_it_was(line, run)))
    });
    let soaked: Vec<String> = soaked.collect();
    if soaked.is_empty() { "None yet.".to_owned() } else { soaked.join("\n") }
}

/// 1234567: `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group));
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record;

    #[test]
    fn the_page_says_what_the_record_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let lines = record::read(&folder.join("campaign.jsonl")).unwrap();
        let page = std::fs::read_to_string(folder.join("RESULTS.md")).unwrap();
        assert!(
            page.contains(&format!("{BEGIN}{}{END}", tables(&lines))),
            "the tables of RESULTS.md are of another record"
        );
    }

    #[test]
    fn figures_can_be_read() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
