//! Plots of what a run found, as SVG beside its page. White ground, so that they can be read on a dark page too.

mod axis;
mod bars;
mod lines;

use anyhow::{Context as _, Result};
use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext, MeshStyle, SeriesLabelPosition};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::drawing::DrawingArea;
use plotters::style::{BLACK, Color as _, RGBColor, WHITE};

use crate::extra::Extra;
use crate::latency::{P50, P99, row_name};
use crate::report::{Line, Report, Section};
use crate::sizing::batches::{self, Point};
use crate::sizing::{self, load};
use crate::variant::names;

use axis::Axis;
use bars::Bar;
use lines::Series;

/// What plots are drawn on.
type Ground<'svg> = DrawingArea<SVGBackend<'svg>, Shift>;
type Chart<'svg> = ChartContext<'svg, SVGBackend<'svg>, Cartesian2d<Axis, Axis>>;
type Mesh<'a, 'svg> = MeshStyle<'svg, 'a, Axis, Axis, SVGBackend<'svg>>;

/// The folder of plots, beside the page.
pub(crate) const FOLDER: &str = "plots";

/// Of every plot, in pixels.
const SIZE: (u32, u32) = (860, 480);

/// Colours that people with any colour vision can tell apart (Okabe and Ito's).
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const RED: RGBColor = RGBColor(0xd5, 0x5e, 0x00);

/// The lines whose CPU time is shown.
const MAIN: [&str; 9] = [
    names::CEILING,
    names::CLASSIC,
    names::CLASSIC_NODE,
    names::CLASSIC_PYTHON,
    names::HAPAX,
    names::HAPAX_QUORUM,
    names::HAPAX_ONE_LANE,
    names::HAPAX_MARIADB,
    names::HAPAX_SQLITE,
];

/// One file.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    /// The section that it belongs to; none for the table of variants.
    pub(crate) under: Option<&'static str>,
    pub(crate) svg: String,
}

/// Every plot for which a report has figures.
///
/// # Errors
/// When one cannot be drawn.
pub(crate) fn all(report: &Report) -> Result<Vec<Plot>> {
    let section = |extra: Extra| report.sections.iter().find(|section| section.title == extra.title());
    let plots =
        [cpu(&report.lines), section(Extra::Batches).and_then(throughput), section(Extra::Load).and_then(latency)];
    plots.into_iter().flatten().collect()
}

/// CPU time of a message, by process.
fn cpu(lines: &[Line]) -> Option<Result<Plot>> {
    let line = |name: &&str| lines.iter().find(|line| line.name == *name);
    let bars: Vec<Bar> = MAIN.iter().filter_map(line).map(bar).collect();
    let title = "CPU time of a message, by process";
    let parts = [("client", BLUE), ("broker", ORANGE), ("database", GREEN), ("Redis", RED)];
    plot("cpu.svg", title, None, !bars.is_empty(), || bars::draw(title, "µs of CPU a message", &parts, &bars))
}

fn bar(line: &Line) -> Bar {
    Bar { name: line.name.clone(), parts: vec![line.client_cpu, line.broker_cpu, line.database_cpu, line.redis_cpu] }
}

/// Throughput against the size of batches.
fn throughput(section: &Section) -> Option<Result<Plot>> {
    let colours = batches::LANES.into_iter().zip([RED, ORANGE, GREEN, BLUE]);
    let series: Vec<Series> = colours
        .map(|(lanes, colour)| {
            let own = batches::points().filter(|point| point.lanes == lanes);
            let at = |point: Point| Some((f64::from(point.batch), section.figure(&point.row_name(), sizing::RATE)?));
            let label = format!("{lanes} lane{}", if lanes == 1 { "" } else { "s" });
            Series { label, colour, dashed: false, points: own.filter_map(at).collect() }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    let title = "Throughput by lanes and size of batches";
    plot("throughput.svg", title, Some(section.title), !series.is_empty(), || {
        let x = Axis::of_values("batch.max_messages", &batches::BATCHES.map(f64::from));
        lines::draw(title, &x, &Axis::from_zero("messages/s", lines::highest(&series)), &series)
    })
}

/// Latency against load.
fn latency(section: &Section) -> Option<Result<Plot>> {
    let colours = load::subjects().into_iter().zip([RED, GREEN, BLUE]);
    let series: Vec<Series> = colours
        .flat_map(|(name, colour)| {
            [(P50, false), (P99, true)].map(|(what, dashed)| (name.clone(), colour, what, dashed))
        })
        .map(|(name, colour, what, dashed)| {
            let at = |rate| {
                let row = row_name(&name, rate);
                Some((section.figure(&row, load::LOAD)?, section.figure(&row, what)?))
            };
            let label = format!("{name}: {}", what.trim_end_matches(" ms"));
            Series { label, colour, dashed, points: load::rates().into_iter().filter_map(at).collect() }
        })
        .filter(|series| !series.points.is_empty())
        .collect();
    let title = "Latency under load, publish to commit";
    plot("latency.svg", title, Some(section.title), !series.is_empty(), || {
        let x = Axis::logarithmic("messages/s published", series.iter().flat_map(Series::xs));
        let y = Axis::logarithmic("milliseconds", series.iter().flat_map(Series::ys));
        lines::draw(title, &x, &y, &series)
    })
}

/// A plot, if there is anything to draw.
fn plot(
    file: &'static str,
    title: &'static str,
    under: Option<&'static str>,
    has_figures: bool,
    draw: impl FnOnce() -> Result<String>,
) -> Option<Result<Plot>> {
    has_figures.then(|| Ok(Plot { file, title, under, svg: draw().with_context(|| format!("drawing {file}"))? }))
}

/// An empty plot, its rows or its axis labelled in so many pixels at the left.
fn chart<'svg>(root: &Ground<'svg>, title: &str, left: u32, x: &Axis, y: &Axis) -> Result<Chart<'svg>> {
    root.fill(&WHITE)?;
    let chart = ChartBuilder::on(root)
        .margin(16)
        .margin_right(32)
        .caption(title, ("sans-serif", 22))
        .x_label_area_size(48)
        .y_label_area_size(left)
        .build_cartesian_2d(x.clone(), y.clone())?;
    Ok(chart)
}

/// How every plot's grid and labels look.
fn mesh<'m, 'a, 'svg>(style: &'m mut Mesh<'a, 'svg>) -> &'m mut Mesh<'a, 'svg> {
    style
        .light_line_style(WHITE)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
}

/// What each colour stands for.
fn legend(chart: &mut Chart<'_>, position: SeriesLabelPosition) -> Result<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Rounds, Row};
    use crate::variant::all as variants;

    fn report(sections: Vec<Section>) -> Report {
        let rounds = Rounds::made_up(&MAIN.map(|name| (name, 10_000.0)));
        Report::new(Vec::new(), 20, &variants(false), &rounds, sections, Vec::new())
    }

    fn section(extra: Extra, rows: Vec<Row>) -> Section {
        Section { title: extra.title(), legend: String::new(), rows }
    }

    #[test]
    fn there_is_a_plot_for_whatever_was_measured() {
        let batches = batches::points().map(|point| Row::new(point.row_name(), vec![(sizing::RATE, 1_000.0)]));
        let figures = |rate| vec![(load::LOAD, rate as f64), (P50, 0.9), (P99, 12.0)];
        let loads = load::subjects().into_iter().map(|name| Row::new(row_name(&name, 100), figures(100)));
        let sections = vec![section(Extra::Batches, batches.collect()), section(Extra::Load, loads.collect())];
        let plots = all(&report(sections)).unwrap();
        let files: Vec<_> = plots.iter().map(|plot| (plot.file, plot.under.is_some())).collect();
        assert_eq!(files, [("cpu.svg", false), ("throughput.svg", true), ("latency.svg", true)]);
        assert!(plots.iter().all(|plot| plot.svg.starts_with("<svg") && plot.svg.contains(plot.title)));
        assert!(plots[1].svg.contains("8 lanes") && plots[2].svg.contains("p99"));
    }

    #[test]
    fn there_is_none_of_what_was_not() {
        let empty = Report::new(Vec::new(), 20, &variants(true), &Rounds::default(), Vec::new(), Vec::new());
        assert!(all(&empty).unwrap().is_empty());
        assert_eq!(all(&report(vec![section(Extra::Load, Vec::new())])).unwrap().len(), 1);
    }
}
