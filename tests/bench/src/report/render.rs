//! A report for people: at a terminal, and on a page of the repository.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::{Failure, Line, Report, shown};
use crate::plots::{self, Plot};

const COLUMNS: [&str; 12] = [
    "variant",
    "msg/s",
    "range",
    "× classic",
    "% of ceiling",
    "CPU µs/msg",
    "client",
    "broker",
    "database",
    "Redis",
    "MiB",
    "start ms",
];

const TARGET_COLUMNS: [&str; 4] = ["what", "measured", "to reach", "aim"];

const TARGETS: &str = "against the targets";

const SIZING: &str = "How to choose lanes, batches and prefetch for work of your own: [SIZING.md](SIZING.md).";

impl Report {
    /// For people at a terminal.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{}\n{}\n", table(&COLUMNS, self.lines.iter().map(cells)), self.legend());
        for section in &self.sections {
            let rows = section.rows.iter().map(|row| section.cells(row));
            let columns = [&[""][..], &section.columns()].concat();
            let _ = writeln!(text, "\n{}\n{}\n{}", section.title, table(&columns, rows), section.legend);
        }
        let targets = self.targets.iter().map(super::Target::cells);
        let _ = writeln!(text, "\n{TARGETS}\n{}\n{}", table(&TARGET_COLUMNS, targets), targets_legend());
        if let Some(why) = &self.void {
            let _ = writeln!(text, "\nVOID: {why}");
        }
        for Failure { why, .. } in &self.failures {
            let _ = writeln!(text, "\nFAILED: {why}");
        }
        text
    }

    /// For the repository, with these plots beside it.
    pub(crate) fn page(&self, plots: &[Plot]) -> String {
        let mut page = String::from("# Results\n\nWritten by `make bench`; not edited by hand.\n\n");
        for line in &self.about {
            let _ = writeln!(page, "- {line}");
        }
        if let Some(why) = &self.void {
            let _ = writeln!(page, "\n**This run is void**: {why}");
        }
        for Failure { why, .. } in &self.failures {
            let _ = writeln!(page, "\n**Failed**, and was left alone from then on: {why}");
        }
        let _ = writeln!(page, "\n{}\n{}", markdown(&COLUMNS, self.lines.iter().map(cells)), self.legend());
        page.push_str(&images(plots, None));
        let _ = writeln!(page, "\n{SIZING}");
        for section in &self.sections {
            let rows = section.rows.iter().map(|row| section.cells(row));
            let columns = [&[""][..], &section.columns()].concat();
            let (title, table) = (sentence_case(section.title), markdown(&columns, rows));
            let _ = writeln!(page, "\n## {title}\n{table}\n{}", section.legend);
            page.push_str(&images(plots, Some(section.title)));
        }
        let targets = markdown(&TARGET_COLUMNS, self.targets.iter().map(super::Target::cells));
        let _ = writeln!(page, "\n## {}\n{targets}\n{}", sentence_case(TARGETS), targets_legend());
        page
    }

    fn legend(&self) -> String {
        let fewer = match self.lines.iter().any(|line| line.messages < self.messages) {
            true => {
                " (half to an eighth of them where a variant is slow, as those written by hand are: fewer show the same rate)"
            }
            false => "",
        };
        format!(
            "{} messages a drain{fewer}, {} rounds, variants in alternation; medians. Of a group that differs only in its \
             number of workers, the best stands here, and the best two ran in every round. \"classic\" is the classic \
             recipe in Rust on Postgres at its best number of workers, \"ceiling\" a bare consumer that acknowledges in \
             batches. CPU is that of all processes, and of each. First attempts that fail are tried again after 200 ms, \
             and their drains end with the last effect.",
            self.messages, self.rounds
        )
    }
}

fn targets_legend() -> &'static str {
    "Ratios are medians of the ratios round by round. The guest's share is sampled by the clock, in the section \
     \"the guest alone\": time from entering the guest to its return, less that inside the host's functions for SQL, by \
     the client's CPU time a message in the drain \"Hapax, Postgres\". Deadlocks are of all rounds together."
}

fn cells(line: &Line) -> Vec<String> {
    let range = format!("{:.0}–{:.0}", line.slowest, line.fastest);
    let name = line.best.as_ref().unwrap_or(&line.name).clone();
    let whole = |value: f64| if value.is_nan() { shown(value) } else { format!("{value:.0}") };
    let figures = [
        line.to_ceiling * 100.0,
        line.cpu,
        line.client_cpu,
        line.broker_cpu,
        line.database_cpu,
        line.redis_cpu,
        line.memory_mib,
        line.start_millis,
    ];
    let mut cells = vec![name, whole(line.rate), range, shown(line.to_classic)];
    cells.extend(figures.map(whole));
    cells
}

fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(columns);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn markdown(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|---|{}\n", columns.join(" | "), "--:|".repeat(columns.len() - 1));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// The plots that belong under a section's table; `None` is the table of variants.
fn images(plots: &[Plot], under: Option<&str>) -> String {
    let own = plots.iter().filter(|plot| plot.under == under);
    own.map(|plot| format!("\n![{}]({}/{})\n", plot.title, plots::FOLDER, plot.file)).collect()
}

fn sentence_case(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::super::{Rounds, Row, Section};
    use super::*;
    use crate::variant::{all, names};

    #[test]
    fn a_page_has_every_part_and_dashes_for_what_was_not_measured() {
        let section =
            Section { title: "latency", legend: "Here.".to_owned(), rows: vec![Row::new("a", vec![("ms", 1.5)])] };
        let rounds = Rounds::made_up(&[(names::HAPAX, 15_000.0)]);
        let failure =
            Failure { name: names::CLASSIC.to_owned(), why: "measuring the classic recipe: stuck".to_owned() };
        let report = Report::new(vec!["2 cores".to_owned()], 20, &all(true), &rounds, vec![section], vec![failure]);
        let plot = |file, under| Plot { file, title: "a plot", under, svg: String::new() };
        let page = report.page(&[plot("a.svg", None), plot("b.svg", Some("latency"))]);
        for part in [
            "- 2 cores\n",
            "| Hapax, Postgres | 15000 | 15000–15000 | – | – | 67 |",
            "20 messages a drain (half to an eighth of them where a variant is slow, as those written by hand are: fewer show the same rate)",
            "last effect.\n\n![a plot](plots/a.svg)\n",
            "## Latency\n|  | ms |\n|---|--:|\n| a | 1.50 |\n\nHere.\n\n![a plot](plots/b.svg)\n",
            "**Failed**, and was left alone from then on: measuring the classic recipe: stuck\n",
            "## Against the targets\n| what | measured | to reach | aim |\n",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let table = report.table();
        assert!(
            table.contains("latency")
                && table.contains(TARGETS)
                && table.contains("FAILED: measuring the classic recipe")
        );
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["lines"][0]["to_classic"].is_null() && json["lines"][0]["deadlocks"] == 1);
    }
}
