//! Where ticks are, and where values lie between them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// Ticks that a scale from zero has at most.
const TICKS: f64 = 8.0;

/// One axis: a coordinate of the library.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) label: &'static str,
    ticks: Vec<f64>,
    ends: Range<f64>,
    logarithmic: bool,
}

impl Axis {
    /// Rows of equal height, from 0 up, with a tick in the middle of each.
    pub(super) fn rows(count: usize) -> Self {
        let ticks = (0..count).map(|row| row as f64 + 0.5).collect();
        Self { label: "", ticks, ends: 0.0..count as f64, logarithmic: false }
    }

    /// A logarithmic one, with a tick at each of these values, which are in order.
    pub(super) fn of_values(label: &'static str, values: &[f64]) -> Self {
        Self::from_tick_to_tick(label, values.to_vec(), true)
    }

    /// A logarithmic one that has room for all of these values: ticks at 1, 2 and 5 of each power of ten.
    pub(super) fn logarithmic(label: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite() && *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 1.0) };
        let steps: Vec<f64> = decades(low, high).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * power)).collect();
        let first = steps.iter().rposition(|step| *step <= low).unwrap_or(0);
        let last = steps.iter().position(|step| *step > high).unwrap_or(steps.len() - 1);
        Self::from_tick_to_tick(label, steps[first..=last].to_vec(), true)
    }

    /// A linear one, from zero to at least `high`.
    pub(super) fn from_zero(label: &'static str, high: f64) -> Self {
        let high = if high.is_finite() && high > 0.0 { high } else { 1.0 };
        let power = 10_f64.powf((high / TICKS).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power).into_iter().find(|step| high / step <= TICKS);
        let step = step.unwrap_or(high);
        let ticks = (0..=(high / step).ceil() as u32).map(|tick| f64::from(tick) * step).collect();
        Self::from_tick_to_tick(label, ticks, false)
    }

    fn from_tick_to_tick(label: &'static str, ticks: Vec<f64>, logarithmic: bool) -> Self {
        let end = |tick: Option<&f64>| tick.copied().unwrap_or(1.0);
        let ends = end(ticks.first())..end(ticks.last());
        Self { label, ticks, ends, logarithmic }
    }

    /// How far along the axis a value is, as the ruler has it.
    fn ruler(&self, value: f64) -> f64 {
        if self.logarithmic { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        let share = (self.ruler(*value) - self.ruler(start)) / (self.ruler(end) - self.ruler(start));
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.ends.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    /// With as many digits as the 1, 2 or 5 of a tick needs.
    fn format(value: &f64) -> String {
        let digits = if *value >= 1.0 || *value == 0.0 { 0 } else { -value.log10().floor() as usize };
        format!("{value:.digits$}")
    }
}

/// The powers of ten that begin the decades of these values, and the one after.
fn decades(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let exponent = |value: f64| value.log10().floor() as i32;
    (exponent(low)..=exponent(high) + 1).map(|exponent| 10_f64.powi(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(Axis::format).collect()
    }

    #[test]
    fn a_linear_axis_has_few_round_ticks_and_room_for_the_highest_value() {
        assert_eq!(
            texts(&Axis::from_zero("", 13_459.0)),
            ["0", "2000", "4000", "6000", "8000", "10000", "12000", "14000"]
        );
        assert_eq!(texts(&Axis::from_zero("", 1_136.0)), ["0", "200", "400", "600", "800", "1000", "1200"]);
        assert_eq!(Axis::from_zero("", 8.0).ticks.len(), 9);
        for nothing in [0.0, f64::NAN] {
            assert!((Axis::from_zero("", nothing).range().end - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn a_logarithmic_axis_has_ticks_around_its_values() {
        let axis = Axis::logarithmic("", [0.79, f64::NAN, 42.0, 0.0].into_iter());
        assert_eq!(texts(&axis), ["0.5", "1", "2", "5", "10", "20", "50"]);
        assert!(axis.range().contains(&0.79) && axis.range().contains(&42.0));
        assert_eq!(texts(&Axis::logarithmic("", [100.0, 100.0].into_iter())), ["100", "200"]);
        assert_eq!(texts(&Axis::logarithmic("", std::iter::empty())), ["1", "2"]);
    }

    #[test]
    fn a_value_lies_where_its_scale_has_it() {
        let places = |axis: Axis, values: [f64; 3]| values.map(|value| axis.map(&value, (50, 250)));
        assert_eq!(places(Axis::from_zero("", 8.0), [0.0, 2.0, 8.0]), [50, 100, 250]);
        assert_eq!(places(Axis::of_values("", &[1.0, 100.0]), [1.0, 10.0, 100.0]), [50, 150, 250]);
        assert_eq!(places(Axis::rows(4), [0.0, 0.5, 4.0]), [50, 75, 250]);
    }

    #[test]
    fn ticks_may_be_the_values_themselves() {
        assert_eq!(texts(&Axis::of_values("", &[1.0, 8.0, 512.0])), ["1", "8", "512"]);
    }
}
