//! Bars of parts, one below the other.

use anyhow::Result;
use plotters::backend::SVGBackend;
use plotters::chart::SeriesLabelPosition;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::{EmptyElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color as _, IntoTextStyle as _, RGBColor};

use super::axis::Axis;
use super::{SIZE, chart, legend, mesh};

/// Free space above and below a bar, and before the number at its end, in pixels.
const GAP: u32 = 6;

/// One bar.
pub(super) struct Bar {
    pub(super) name: String,
    /// In the order of the names of parts.
    pub(super) parts: Vec<f64>,
}

impl Bar {
    fn total(&self) -> f64 {
        self.parts.iter().sum()
    }

    /// Where a part begins, and where it ends.
    fn part(&self, number: usize) -> (f64, f64) {
        let begin: f64 = self.parts.iter().take(number).sum();
        (begin, begin + self.parts.get(number).copied().unwrap_or(0.0))
    }
}

/// The first bar is at the top; at the end of each stands how long it is.
pub(super) fn draw(title: &str, label: &'static str, parts: &[(&str, RGBColor)], bars: &[Bar]) -> Result<String> {
    // Room for the number at the end of the longest.
    let x = Axis::from_zero(label, bars.iter().map(Bar::total).fold(0.0, f64::max) * 1.05);
    let bottom = |bar: usize| (bars.len() - 1 - bar) as f64;
    let middle = |bar: usize| bottom(bar) + 0.5;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = chart(&root, title, 300, &x, &Axis::rows(bars.len()))?;
        mesh(&mut chart.configure_mesh())
            .disable_y_mesh()
            .x_desc(x.label)
            .y_label_formatter(&|tick| {
                let bar = (0..bars.len()).find(|bar| middle(*bar) == *tick);
                bar.map_or_else(String::new, |bar| bars[bar].name.clone())
            })
            .draw()?;
        for (number, (name, colour)) in parts.iter().enumerate() {
            let (name, colour) = (*name, *colour);
            let boxes = bars.iter().enumerate().map(|(at, bar)| {
                let (begin, end) = bar.part(number);
                let corners = [(begin, bottom(at)), (end, bottom(at) + 1.0)];
                let mut part = Rectangle::new(corners, colour.filled());
                part.set_margin(GAP, GAP, 0, 0);
                part
            });
            let sample = move |(x, y)| Rectangle::new([(x, y - 6), (x + 12, y + 6)], colour.filled());
            chart.draw_series(boxes)?.label(name).legend(sample);
        }
        let style = ("sans-serif", 15).into_text_style(&root).pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series(bars.iter().enumerate().map(|(at, bar)| {
            let number = Text::new(format!("{:.0}", bar.total()), (GAP.cast_signed(), 0), style.clone());
            EmptyElement::at((bar.total(), middle(at))) + number
        }))?;
        legend(&mut chart, SeriesLabelPosition::LowerRight)?;
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_follow_each_other() {
        let bar = Bar { name: String::new(), parts: vec![1.0, 2.0, 4.0] };
        assert_eq!([0, 1, 2, 3].map(|part| bar.part(part)), [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0), (7.0, 7.0)]);
        assert!((bar.total() - 7.0).abs() < f64::EPSILON);
    }
}
