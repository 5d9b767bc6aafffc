//! Lines through points.

use anyhow::Result;
use plotters::backend::SVGBackend;
use plotters::chart::SeriesLabelPosition;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::{Circle, EmptyElement, PathElement};
use plotters::series::{DashedLineSeries, LineSeries};
use plotters::style::{Color as _, RGBColor};

use super::axis::Axis;
use super::{SIZE, chart, legend, mesh};

/// One line.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) colour: RGBColor,
    pub(super) dashed: bool,
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    /// What it has along the one axis.
    pub(super) fn xs(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.0)
    }

    /// And along the other.
    pub(super) fn ys(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|point| point.1)
    }
}

/// The largest value of all.
pub(super) fn highest(series: &[Series]) -> f64 {
    series.iter().flat_map(Series::ys).fold(0.0, f64::max)
}

/// Lines from left to right, and what each stands for in the upper left corner.
pub(super) fn draw(title: &str, x: &Axis, y: &Axis, series: &[Series]) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = chart(&root, title, 72, x, y)?;
        mesh(&mut chart.configure_mesh()).x_desc(x.label).y_desc(y.label).draw()?;
        for Series { label, colour, dashed, points } in series {
            let style = colour.stroke_width(2);
            let line = if *dashed {
                chart.draw_series(DashedLineSeries::new(points.clone(), 6, 5, style))?
            } else {
                chart.draw_series(LineSeries::new(points.clone(), style))?
            };
            let gap = if *dashed { 8..12 } else { 10..10 };
            line.label(label).legend(move |at| {
                let part = |from, to| PathElement::new(vec![(from, 0), (to, 0)], style);
                EmptyElement::at(at) + part(0, gap.start) + part(gap.end, 20)
            });
            chart.draw_series(points.iter().map(|point| Circle::new(*point, 4, colour.filled())))?;
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        root.present()?;
    }
    Ok(svg)
}
