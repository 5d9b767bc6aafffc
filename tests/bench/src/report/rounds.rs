//! Figures round by round, and comparisons within each round: what slows the machine down slows both sides.

use std::collections::BTreeMap;

use crate::drain::Figures;
use crate::stats::median;
use crate::variant::Variant;

/// Of a group, those many run again after the first round.
const FINALISTS: usize = 2;

/// Figures by variant, one for each round.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    figures: BTreeMap<String, Vec<Figures>>,
    /// Variants by their line: several in a group.
    lines: BTreeMap<String, Vec<String>>,
}

impl Rounds {
    /// Adds what a variant came to.
    pub(crate) fn add(&mut self, variant: &Variant, figures: Figures) {
        self.figures.entry(variant.name.clone()).or_default().push(figures);
        let members = self.lines.entry(variant.line().to_owned()).or_default();
        if !members.contains(&variant.name) {
            members.push(variant.name.clone());
        }
    }

    /// The largest number of rounds that a variant had.
    pub(crate) fn count(&self) -> usize {
        self.figures.values().map(Vec::len).max().unwrap_or(0)
    }

    /// How many drains so many rounds of these variants are.
    pub(crate) fn planned(variants: &[Variant], rounds: u16) -> usize {
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        for variant in variants {
            *lines.entry(variant.line()).or_default() += 1;
        }
        let again: usize = lines.values().map(|members| (*members).min(FINALISTS)).sum();
        variants.len() + again * usize::from(rounds.saturating_sub(1))
    }

    /// Whether another round of a variant could change anything: of a group, only those count that are near the best.
    pub(crate) fn is_worth_another(&self, variant: &Variant) -> bool {
        let Some(members) = self.lines.get(variant.line()) else { return true };
        let better = |name: &&String| self.rate(name) > self.rate(&variant.name);
        members.iter().filter(better).count() < FINALISTS
    }

    /// The figures of a line, and which variant's they are: of a group, those of the best. None if it was not measured.
    pub(crate) fn of(&self, line: &str) -> Option<(&str, &[Figures])> {
        let members = self.lines.get(line)?;
        let best = members.iter().max_by(|one, other| self.rate(one).total_cmp(&self.rate(other)))?;
        Some((best, self.figures.get(best)?))
    }

    /// The median, over the rounds, of a figure of one line to that of another; NaN if one was not measured.
    pub(crate) fn ratio(&self, line: &str, to: &str, figure: fn(&Figures) -> f64) -> f64 {
        let (Some((_, own)), Some((_, other))) = (self.of(line), self.of(to)) else { return f64::NAN };
        median(own.iter().zip(other).map(|(own, other)| figure(own) / figure(other)).collect())
    }

    fn rate(&self, variant: &str) -> f64 {
        let figures = self.figures.get(variant).map_or(&[][..], Vec::as_slice);
        median(figures.iter().map(|figures| figures.rate).collect())
    }
}

#[cfg(test)]
impl Rounds {
    /// One round in which these lines had these rates.
    pub(crate) fn made_up(rates: &[(&str, f64)]) -> Self {
        let mut rounds = Self::default();
        for variant in crate::variant::all(false) {
            if let Some((_, rate)) = rates.iter().find(|(line, _)| *line == variant.line()) {
                rounds.add(&variant, figures(*rate));
            }
        }
        rounds
    }
}

#[cfg(test)]
fn figures(rate: f64) -> Figures {
    let cpu = crate::progress::Cpu { client: 1e6 / rate, ..Default::default() };
    Figures { messages: 10, rate, seconds: 1.0, cpu, memory: 1 << 20, start_millis: 100.0, deadlocks: Some(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::{all, names};

    #[test]
    fn of_a_group_the_best_counts_and_only_those_near_it_run_again() {
        let group: Vec<Variant> = all(false).into_iter().filter(|variant| variant.line() == names::CLASSIC).collect();
        let mut rounds = Rounds::default();
        assert!(group.iter().all(|variant| rounds.is_worth_another(variant)));
        for (variant, rate) in group.iter().zip([100.0, 300.0, 400.0, 200.0]) {
            rounds.add(variant, figures(rate));
        }
        let again: Vec<bool> = group.iter().map(|variant| rounds.is_worth_another(variant)).collect();
        assert_eq!(again, [false, true, true, false]);
        assert_eq!(rounds.of(names::CLASSIC).unwrap().0, group[2].name);
    }

    #[test]
    fn a_group_is_planned_whole_for_the_first_round_and_at_its_best_for_the_others() {
        let of = |line| all(false).into_iter().filter(move |variant| variant.line() == line);
        let variants: Vec<Variant> = of(names::CLASSIC).chain(of(names::HAPAX)).collect();
        assert_eq!(variants.len(), 5);
        assert_eq!([1, 3].map(|rounds| Rounds::planned(&variants, rounds)), [5, 5 + 2 * 3]);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let variants = all(false);
        let variant = |name| variants.iter().find(|variant| variant.name == name).unwrap();
        let mut rounds = Rounds::default();
        for (hapax, ceiling) in [(10.0, 100.0), (1.0, 10.0), (20.0, 100.0)] {
            rounds.add(variant(names::HAPAX), figures(hapax));
            rounds.add(variant(names::CEILING), figures(ceiling));
        }
        let ratio = rounds.ratio(names::HAPAX, names::CEILING, |figures| figures.rate);
        assert!((ratio - 0.1).abs() < f64::EPSILON);
        assert!(rounds.ratio(names::HAPAX, names::CLASSIC, |figures| figures.rate).is_nan());
    }
}
