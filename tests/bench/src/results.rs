//! What a run has found so far. What fails is noted and left alone from then on; the rest of the run goes on.

use std::time::Instant;

use anyhow::{Context as _, Error, Result};

use crate::drain::{self, Figures};
use crate::extra::{Extra, Run};
use crate::repeats;
use crate::report::{Failure, Report, Rounds, Section};
use crate::variant::{Scene, Variant};

/// What a run is to measure, and what it has found of it.
pub(crate) struct Results {
    began: Instant,
    about: Vec<String>,
    variants: Vec<Variant>,
    rounds: Rounds,
    /// Each with what it came to in the rounds that it belongs into.
    extras: Vec<(Extra, Vec<Section>)>,
    failures: Vec<Failure>,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn new(about: Vec<String>, variants: Vec<Variant>, extras: Vec<Extra>) -> Self {
        let extras = extras.into_iter().map(|extra| (extra, Vec::new())).collect();
        Self { began: Instant::now(), about, variants, rounds: Rounds::default(), extras, failures: Vec::new() }
    }

    /// Measures everything that belongs into a round.
    pub(crate) async fn measure_round(&mut self, run: &Run<'_>, round: u16, of: u16) {
        for variant in self.variants.clone() {
            if self.has_failed(&variant.name) || !self.rounds.is_worth_another(&variant) {
                continue;
            }
            match one(run, &variant).await {
                Ok(figures) => {
                    let minutes = self.minutes();
                    eprintln!("{minutes}, round {round}/{of}: {:8.0} msg/s  {}", figures.rate, variant.name);
                    self.rounds.add(&variant, figures);
                }
                Err(error) => self.failed(&variant.name, &error),
            }
        }
        for at in 0..self.extras.len() {
            let extra = self.extras[at].0;
            if self.has_failed(extra.title()) || !extra.is_in_round(round, run.quick) {
                continue;
            }
            eprintln!("{}, round {round}/{of}: {}", self.minutes(), extra.title());
            match extra.measure(run).await {
                Ok(section) => self.extras[at].1.push(section),
                Err(error) => self.failed(extra.title(), &error),
            }
        }
    }

    /// What there is so far, of drains of so many messages.
    pub(crate) fn report(&self, messages: u64) -> Report {
        let sections = self.extras.iter().filter_map(|(_, found)| Section::median_of(found)).collect();
        let (about, failures) = (self.about.clone(), self.failures.clone());
        Report::new(about, messages, &self.variants, &self.rounds, sections, failures)
    }

    /// Figures of rounds are compared one by one, so whoever has missed one is in none that follows.
    fn has_failed(&self, name: &str) -> bool {
        self.failures.iter().any(|failure| failure.name == name)
    }

    fn failed(&mut self, name: &str, error: &Error) {
        eprintln!("{}, FAILED: {error:#}", self.minutes());
        self.failures.push(Failure { name: name.to_owned(), why: first_line(&format!("{error:#}")) });
    }

    fn minutes(&self) -> String {
        format!("{:3} min", self.began.elapsed().as_secs() / 60)
    }
}

/// Logs follow on the lines below, and are at the terminal.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Measures a variant once.
async fn one(run: &Run<'_>, variant: &Variant) -> Result<Figures> {
    let messages = variant.messages(run.messages, run.quick);
    let figures = match variant.scene {
        Scene::Drain => drain::drain(run.stage, variant, messages, run.programs).await,
        Scene::Repeats(remembered) => repeats::drain(run.stage, variant, remembered, messages, run.programs).await,
    };
    figures.with_context(|| format!("measuring {:?}", variant.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::variant::{all, names};

    #[test]
    fn what_has_failed_is_in_the_report_on_one_line_and_the_rest_too() {
        let mut results = Results::new(Vec::new(), all(true), vec![Extra::Latency]);
        results.rounds = Rounds::made_up(&[(names::HAPAX, 15_000.0)]);
        let error = Error::msg("it is stuck at 3 of 5\nlog\nlog").context("measuring it");
        results.failed(names::CEILING, &error);
        assert!(results.has_failed(names::CEILING) && !results.has_failed(names::HAPAX));
        let report = results.report(20);
        assert_eq!(report.failures[0].why, "measuring it: it is stuck at 3 of 5");
        assert_eq!(report.lines.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), [names::HAPAX]);
    }
}
