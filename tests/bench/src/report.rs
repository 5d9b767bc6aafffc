//! What a run found: medians, ratios and spread; as a table, as JSON, and as a page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::drain::Figures;
use crate::variant::Variant;

/// The baseline of the ratios.
pub(crate) const BASELINE: &str = "classic recipe, Rust, Postgres";
/// The ceiling of the ratios.
const CEILING: &str = "bare consumer, one ack a batch";
/// The ceiling without batched acknowledgements.
const EACH: &str = "bare consumer, each ack awaited";

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The command, the machine, the commit, the servers and their durability, a line each.
    pub(crate) about: Vec<String>,
    /// Messages of a drain.
    pub(crate) messages: u64,
    /// How often each variant ran.
    pub(crate) rounds: usize,
    /// By variant, in the order of the table.
    pub(crate) lines: Vec<Line>,
    /// Why the figures mean nothing, if they do not.
    pub(crate) void: Option<String>,
}

/// One variant's figures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Of a group of variants, the best of which stands here: which one it was.
    pub(crate) best: Option<String>,
    /// Messages a second: the median, and what lies farthest from it.
    pub(crate) rate: f64,
    pub(crate) slowest: f64,
    pub(crate) fastest: f64,
    /// To the classic recipe, and to the ceiling: medians of the ratios round by round.
    pub(crate) to_classic: f64,
    pub(crate) to_ceiling: f64,
    /// Microseconds of CPU a message: all together, and by process.
    pub(crate) cpu: f64,
    pub(crate) client_cpu: f64,
    pub(crate) broker_cpu: f64,
    pub(crate) database_cpu: f64,
    pub(crate) redis_cpu: f64,
    pub(crate) memory_mib: f64,
    pub(crate) start_millis: f64,
}

/// Figures by variant, one for each round.
pub(crate) type Rounds = BTreeMap<String, Vec<Figures>>;

impl Report {
    /// Works out the lines.
    pub(crate) fn new(about: Vec<String>, messages: u64, variants: &[Variant], rounds: &Rounds) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        let chosen = |name: &str| best_of(name, variants, rounds);
        let (classic, ceiling) = (chosen(BASELINE), chosen(CEILING));
        for variant in variants {
            let name = variant.group.unwrap_or(&variant.name);
            if lines.iter().any(|line| line.name == name) {
                continue;
            }
            let Some(best) = chosen(name) else { continue };
            let best_name = variant.group.is_some().then(|| best.clone());
            lines.push(line(name, best_name, &rounds[&best], figures(&classic, rounds), figures(&ceiling, rounds)));
        }
        let void = void(&lines);
        let rounds = rounds.values().map(Vec::len).max().unwrap_or(0);
        Self { about, messages, rounds, lines, void }
    }

    /// For people at a terminal.
    pub(crate) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header([
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
        ]);
        for line in &self.lines {
            table.add_row(cells(line));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let void = self.void.as_ref().map(|why| format!("\nVOID: {why}")).unwrap_or_default();
        format!("{table}\n{}{void}", self.legend())
    }

    /// For the repository.
    pub(crate) fn page(&self) -> String {
        let mut page = String::from("# Results\n\nWritten by `make bench`; not edited by hand.\n\n");
        for line in &self.about {
            let _ = writeln!(page, "- {line}");
        }
        if let Some(why) = &self.void {
            let _ = writeln!(page, "\n**This run is void**: {why}");
        }
        page.push_str("\n| variant | msg/s | range | × classic | % of ceiling | CPU µs/msg | client | broker | database | Redis | MiB | start ms |\n");
        page.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
        for line in &self.lines {
            let _ = writeln!(page, "| {} |", cells(line).join(" | "));
        }
        let _ = writeln!(page, "\n{}", self.legend());
        page
    }

    fn legend(&self) -> String {
        format!(
            "{} messages a drain, {} rounds, variants in alternation; medians. \"classic\" is the classic recipe in Rust on \
             Postgres at its best number of workers, \"ceiling\" a bare consumer that acknowledges in batches. CPU is that \
             of all processes, and of each.",
            self.messages, self.rounds
        )
    }
}

fn cells(line: &Line) -> Vec<String> {
    let name = match &line.best {
        Some(best) => best.clone(),
        None => line.name.clone(),
    };
    vec![
        name,
        format!("{:.0}", line.rate),
        format!("{:.0}–{:.0}", line.slowest, line.fastest),
        format!("{:.2}", line.to_classic),
        format!("{:.0}", line.to_ceiling * 100.0),
        format!("{:.0}", line.cpu),
        format!("{:.0}", line.client_cpu),
        format!("{:.0}", line.broker_cpu),
        format!("{:.0}", line.database_cpu),
        format!("{:.0}", line.redis_cpu),
        format!("{:.0}", line.memory_mib),
        format!("{:.0}", line.start_millis),
    ]
}

/// The variant of that name, or the fastest of the group of that name.
fn best_of(name: &str, variants: &[Variant], rounds: &Rounds) -> Option<String> {
    let members = variants.iter().filter(|variant| variant.group.unwrap_or(&variant.name) == name);
    let measured = members.filter_map(|variant| Some((median(rates(rounds.get(&variant.name)?)), &variant.name)));
    measured.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, name)| name.clone())
}

fn figures<'r>(name: &Option<String>, rounds: &'r Rounds) -> &'r [Figures] {
    name.as_ref().and_then(|name| rounds.get(name)).map_or(&[], Vec::as_slice)
}

fn rates(figures: &[Figures]) -> Vec<f64> {
    figures.iter().map(|figures| figures.rate).collect()
}

fn line(name: &str, best: Option<String>, own: &[Figures], classic: &[Figures], ceiling: &[Figures]) -> Line {
    let rates = rates(own);
    let of = |figure: fn(&Figures) -> f64| median(own.iter().map(figure).collect());
    // Round by round: what slows the machine down slows both.
    let ratio = |other: &[Figures]| median(own.iter().zip(other).map(|(own, other)| own.rate / other.rate).collect());
    Line {
        name: name.to_owned(),
        best,
        slowest: rates.iter().copied().fold(f64::INFINITY, f64::min),
        fastest: rates.iter().copied().fold(0.0, f64::max),
        rate: median(rates),
        to_classic: ratio(classic),
        to_ceiling: ratio(ceiling),
        cpu: of(|figures| figures.cpu.total()),
        client_cpu: of(|figures| figures.cpu.client),
        broker_cpu: of(|figures| figures.cpu.broker),
        database_cpu: of(|figures| figures.cpu.database),
        redis_cpu: of(|figures| figures.cpu.redis),
        memory_mib: of(|figures| figures.memory as f64) / f64::from(1 << 20),
        start_millis: of(|figures| figures.start_millis),
    }
}

/// A machine on which the classic recipe or the acknowledgements are slower than they should be compared with the
/// ceiling flatters whoever does less of them.
fn void(lines: &[Line]) -> Option<String> {
    let rate = |name: &str| lines.iter().find(|line| line.name == name).map(|line| line.rate);
    let (ceiling, each, classic) = (rate(CEILING)?, rate(EACH)?, rate(BASELINE)?);
    if classic < 0.05 * ceiling {
        return Some(format!(
            "the classic recipe reaches {:.1} % of the bare consumer; 5 % are expected",
            100.0 * classic / ceiling
        ));
    }
    if ceiling < 2.5 * each {
        return Some(format!(
            "the bare consumer is {:.1} times as fast as with each ack awaited; 2.5 are expected",
            ceiling / each
        ));
    }
    None
}

/// The value in the middle; NaN of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[odd / 2],
        even => f64::midpoint(values[even / 2 - 1], values[even / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!(median(vec![]).is_nan());
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
    }
}
