//! The percentile plot: latency over percentile, drawn by `plotters` as SVG.
//!
//! The horizontal axis is logarithmic in what is beyond a percentile, so that 99 % and 99.9 % are as
//! far apart as 90 % and 99 %.

use plotters::prelude::*;

use crate::probe::figures;
use crate::probe::latency::Latencies;

/// The size of the picture.
const SIZE: (u32, u32) = (800, 480);

/// The points of the line, from the first percentile to the last.
const POINTS: u32 = 400;

/// A picture with this heading.
pub(super) fn svg(heading: &str, latencies: &Latencies) -> String {
    let mut text = String::new();
    // A picture in memory does not fail.
    let drawn = draw(heading, latencies, &mut text);
    debug_assert!(drawn.is_ok(), "{drawn:?}");
    text
}

fn draw(
    heading: &str,
    latencies: &Latencies,
    text: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = points(latencies);
    let decades = points.last().map_or(1.0, |(decades, _)| decades.max(1.0));
    let times = points.iter().map(|(_, micros)| *micros);
    let least = times.clone().fold(f64::INFINITY, f64::min);
    let most = times.fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(heading, ("sans-serif", 16))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..decades, (least * 0.8..most * 1.25).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("percentile")
        .y_desc("latency")
        // One line for each decade: 0 %, 90 %, 99 %, 99.9 %.
        .x_labels(decades.ceil() as usize + 1)
        .x_label_formatter(&|decades| percentile(*decades))
        .y_label_formatter(&|micros| figures::time(*micros))
        .light_line_style(WHITE)
        .label_style(("sans-serif", 13))
        .draw()?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

/// `99.9 %` at three decades.
fn percentile(decades: f64) -> String {
    let percent = 100.0 - 100.0 / 10_f64.powf(decades);
    let digits = (decades - 2.0).max(0.0).ceil() as usize;
    format!("{percent:.digits$} %")
}

/// Decades of what is beyond a percentile, and the latency there in microseconds: up to where a
/// single message is beyond.
fn points(latencies: &Latencies) -> Vec<(f64, f64)> {
    let most = (latencies.len().max(10) as f64).log10();
    let steps = (0..=POINTS).map(|step| most * f64::from(step) / f64::from(POINTS));
    steps
        .map(|decades| {
            let share = 1.0 - 10_f64.powf(-decades);
            let micros = latencies.quantile(share).as_secs_f64() * 1e6;
            (decades, micros.max(0.001))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_have_as_many_digits_as_they_need() {
        let shown = [0.0, 1.0, 2.0, 3.0, 4.0].map(percentile);
        assert_eq!(shown, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
    }

    #[test]
    fn a_picture_has_a_heading_axes_and_a_line() {
        let latencies = Latencies::of(1..=1000);
        let picture = svg("tcp://[::1]:7 <&>", &latencies);
        assert!(picture.starts_with("<svg "), "{picture}");
        for part in ["tcp://[::1]:7 &lt;&amp;&gt;", "99.9 %", "µs", "<polyline"] {
            assert!(picture.contains(part), "{part}: {picture}");
        }
        let ends = points(&latencies);
        assert_eq!((ends[0].1, ends[ends.len() - 1].0), (1.0, 3.0));
        // A single latency is a picture, too.
        let one = svg("one", &Latencies::of([85]));
        assert!(one.contains("<polyline"));
    }
}
