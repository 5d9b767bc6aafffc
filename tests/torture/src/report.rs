//! What a run has come to, for people and for the record of a campaign.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde_json::json;

use crate::run::{Task, Verdict};
use crate::stage::Setting;

/// Violations of which each is printed.
const SHOWN: usize = 50;

/// What a run is.
pub(crate) fn title(task: &Task) -> String {
    let Setting { database, broker, small_disk } = task.setting;
    let disk = if small_disk { ", a small disk" } else { "" };
    format!("seed {}: {database:?}, {broker:?}{disk}, {} s", task.seed, task.time.as_secs())
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
    let _ = writeln!(text, "{} VIOLATIONS, seed {}:", verdict.violations.len(), task.seed);
    for violation in verdict.violations.iter().take(SHOWN) {
        let _ = writeln!(text, "  {}: {}", violation.message.as_deref().unwrap_or("-"), violation.what);
    }
    let _ = writeln!(text, "What is known of the first of these messages:");
    for history in &verdict.histories {
        let _ = writeln!(text, "{history}");
    }
    text
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

/// Adds one line to the record.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn append(path: &Path, task: &Task, verdict: &Verdict) -> Result<()> {
    let line = json!({
        "seed": task.seed,
        "seconds": task.time.as_secs(),
        "database": format!("{:?}", task.setting.database).to_lowercase(),
        "broker": format!("{:?}", task.setting.broker).to_lowercase(),
        "small_disk": task.setting.small_disk,
        "breach": task.breach.map(hapax::sabotage::Breach::name),
        "servers": verdict.servers,
        "orders": verdict.orders,
        "copies": verdict.copies,
        "felt": verdict.tally.felt,
        "missed": verdict.tally.missed,
        "swaps": verdict.swaps,
        "soak": verdict.soak,
        "violations": verdict.violations.len(),
    });
    let file = std::fs::File::options().create(true).append(true).open(path);
    let mut file = file.with_context(|| format!("opening {}", path.display()))?;
    writeln!(file, "{line}").with_context(|| format!("writing {}", path.display()))
}
