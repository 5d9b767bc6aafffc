//! What a run found: medians, ratios and spread; as tables, as JSON, and as a page.

#[cfg(test)]
mod readme;
mod render;
mod rounds;
mod section;
mod targets;

use serde::Serialize;

use crate::drain::Figures;
use crate::stats::median;
use crate::variant::{Variant, names};

use targets::Target;

pub(crate) use rounds::Rounds;
pub(crate) use section::{Row, Section};

/// Everything that a run found.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The command, the machine, the commit, the servers and their durability, a line each.
    pub(crate) about: Vec<String>,
    /// Messages of a drain.
    pub(crate) messages: u64,
    /// How often each variant ran; of a group, those that might be the best.
    pub(crate) rounds: usize,
    /// By variant, in the order of the table.
    pub(crate) lines: Vec<Line>,
    /// What is no drain.
    pub(crate) sections: Vec<Section>,
    /// What is to be reached, and what was.
    pub(crate) targets: Vec<Target>,
    /// Why the figures mean nothing, if they do not.
    pub(crate) void: Option<String>,
    /// What could not be measured, or not in every round.
    pub(crate) failures: Vec<Failure>,
}

/// A variant or a section that failed; it was left alone from then on.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    pub(crate) name: String,
    /// What was measured, and what came in between, on one line.
    pub(crate) why: String,
}

/// One variant's figures. What is not known is null.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Line {
    pub(crate) name: String,
    /// Of a group of variants, the best of which stands here: which one it was.
    pub(crate) best: Option<String>,
    /// Messages of a drain, where some variants get fewer.
    pub(crate) messages: u64,
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
    /// Deadlocks that Postgres found, in all rounds together.
    pub(crate) deadlocks: Option<u64>,
}

impl Report {
    /// Works out the lines and the targets.
    pub(crate) fn new(
        about: Vec<String>,
        messages: u64,
        variants: &[Variant],
        rounds: &Rounds,
        sections: Vec<Section>,
        failures: Vec<Failure>,
    ) -> Self {
        let mut lines: Vec<Line> = Vec::new();
        for variant in variants {
            let name = variant.line();
            if lines.iter().all(|line| line.name != name) {
                lines.extend(line(name, rounds));
            }
        }
        let targets = targets::all(rounds, &sections);
        let void = void(&lines);
        Self { about, messages, rounds: rounds.count(), lines, sections, targets, void, failures }
    }
}

/// None if it was not measured.
fn line(name: &str, rounds: &Rounds) -> Option<Line> {
    let (best, own) = rounds.of(name)?;
    let rates: Vec<f64> = own.iter().map(|figures| figures.rate).collect();
    let of = |figure: fn(&Figures) -> f64| median(own.iter().map(figure).collect());
    Some(Line {
        name: name.to_owned(),
        messages: own.first().map_or(0, |figures| figures.messages),
        best: (best != name).then(|| best.to_owned()),
        slowest: rates.iter().copied().fold(f64::INFINITY, f64::min),
        fastest: rates.iter().copied().fold(0.0, f64::max),
        rate: median(rates),
        to_classic: rounds.ratio(name, names::CLASSIC, |figures| figures.rate),
        to_ceiling: rounds.ratio(name, names::CEILING, |figures| figures.rate),
        cpu: of(|figures| figures.cpu.total()),
        client_cpu: of(|figures| figures.cpu.client),
        broker_cpu: of(|figures| figures.cpu.broker),
        database_cpu: of(|figures| figures.cpu.database),
        redis_cpu: of(|figures| figures.cpu.redis),
        memory_mib: of(|figures| figures.memory as f64) / f64::from(1 << 20),
        start_millis: of(|figures| figures.start_millis),
        deadlocks: own.iter().map(|figures| figures.deadlocks).sum(),
    })
}

/// A machine on which the classic recipe or the acknowledgements are slower than they should be compared with the
/// ceiling flatters whoever does less of them.
fn void(lines: &[Line]) -> Option<String> {
    let rate = |name: &str| lines.iter().find(|line| line.name == name).map(|line| line.rate);
    let (ceiling, each, classic) = (rate(names::CEILING)?, rate(names::EACH_ACK)?, rate(names::CLASSIC)?);
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

/// With as many digits as say something; a dash for what is not known.
fn shown(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "–".to_owned(),
        0.0 => "0".to_owned(),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_has_as_many_digits_as_say_something() {
        let shown: Vec<String> = [f64::NAN, 0.0, 0.456, 9.5, 12.34, -123.4].into_iter().map(shown).collect();
        assert_eq!(shown, ["–", "0", "0.46", "9.50", "12.3", "-123"]);
    }

    #[test]
    fn a_run_is_void_where_the_classic_recipe_or_acknowledging_is_too_slow_or_too_fast() {
        let run = |ceiling, each, classic| {
            let rounds =
                Rounds::made_up(&[(names::CEILING, ceiling), (names::EACH_ACK, each), (names::CLASSIC, classic)]);
            void(&[names::CEILING, names::EACH_ACK, names::CLASSIC].map(|name| line(name, &rounds).unwrap()))
        };
        assert_eq!(run(60_000.0, 19_000.0, 3_500.0), None);
        assert!(run(60_000.0, 19_000.0, 2_000.0).unwrap().contains("3.3 %"));
        assert!(run(60_000.0, 30_000.0, 3_500.0).unwrap().contains("2.0 times"));
    }
}
