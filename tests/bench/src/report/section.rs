//! Figures that are no drain's: a table of their own below that of the drains.

use serde::{Serialize, Serializer};

use super::shown;
use crate::stats::median;

/// One table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    /// What the figures are, for readers.
    pub(crate) legend: String,
    pub(crate) rows: Vec<Row>,
}

/// Figures by name: units are in the names.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    #[serde(serialize_with = "as_map")]
    pub(crate) figures: Vec<(&'static str, f64)>,
}

impl Row {
    pub(crate) fn new(name: impl Into<String>, figures: Vec<(&'static str, f64)>) -> Self {
        Self { name: name.into(), figures }
    }

    fn figure(&self, what: &str) -> Option<f64> {
        self.figures.iter().find(|(name, _)| *name == what).map(|(_, value)| *value)
    }
}

impl Section {
    /// Medians of the same section of several rounds; none of no round.
    pub(crate) fn median_of(rounds: &[Self]) -> Option<Self> {
        let mut section = rounds.last()?.clone();
        for row in &mut section.rows {
            for (what, value) in &mut row.figures {
                *value = median(rounds.iter().filter_map(|round| round.figure(&row.name, what)).collect());
            }
        }
        Some(section)
    }

    /// One figure; none if there is no such row, or it has no such figure.
    pub(crate) fn figure(&self, row: &str, what: &str) -> Option<f64> {
        self.rows.iter().find(|found| found.name == row)?.figure(what)
    }

    /// Names of figures, in the order in which they first turn up.
    pub(super) fn columns(&self) -> Vec<&'static str> {
        let mut columns = Vec::new();
        for (what, _) in self.rows.iter().flat_map(|row| &row.figures) {
            if !columns.contains(what) {
                columns.push(*what);
            }
        }
        columns
    }

    /// The cells of a row, its name first.
    pub(super) fn cells(&self, row: &Row) -> Vec<String> {
        let figures = self.columns().into_iter().map(|what| row.figure(what).map_or_else(|| "–".to_owned(), shown));
        std::iter::once(row.name.clone()).chain(figures).collect()
    }
}

fn as_map<S: Serializer>(figures: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(figures.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(rows: Vec<Row>) -> Section {
        Section { title: "a section", legend: String::new(), rows }
    }

    #[test]
    fn rounds_come_down_to_their_medians() {
        let round = |value| section(vec![Row::new("a", vec![("ms", value)])]);
        let median = Section::median_of(&[round(1.0), round(9.0), round(2.0)]).unwrap();
        assert!((median.figure("a", "ms").unwrap() - 2.0).abs() < f64::EPSILON);
        assert!(Section::median_of(&[]).is_none());
    }

    #[test]
    fn rows_need_not_have_the_same_figures() {
        let rows = vec![Row::new("a", vec![("x", 1.0)]), Row::new("b", vec![("x", 2.0), ("y", 3.0)])];
        let section = section(rows);
        assert_eq!(section.columns(), ["x", "y"]);
        assert_eq!(section.cells(&section.rows[0]), ["a", "1.00", "–"]);
        let json = serde_json::to_value(&section).unwrap();
        assert_eq!(json["rows"][1]["figures"], serde_json::json!({ "x": 2.0, "y": 3.0 }));
    }
}
