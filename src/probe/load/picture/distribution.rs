//! The picture of one measurement: how latencies are distributed, and what the slowest of ten, of a
//! hundred, of a thousand had to wait.

use super::canvas::{Anchor, Canvas, WIDTH};
use super::{
    CLASSES, Frame, MARGIN, latency_axis, microseconds, percentiles, rule, scale, ticks, title,
};
use crate::probe::load::axis::Axis;
use crate::probe::load::figures;
use crate::probe::load::histogram::PERCENTILES;
use crate::probe::load::measured::Measured;

/// For the labels at the left.
const LABELS_WIDTH: f64 = 52.0;

/// For what of the last label below is beyond the end, less what the margin has.
const HALF_LABEL_WIDTH: f64 = 6.0;

/// Of a label above the distribution: they stand on a stair, so that none can hide another.
const STEP: f64 = 16.0;

const BARS_HEIGHT: f64 = 190.0;
const BAR_WIDTH: f64 = 6.0;

/// What is there is seen.
const BAR_HEIGHT_MIN: f64 = 1.0;

const PERCENTILES_HEIGHT: f64 = 170.0;

/// Of fewer messages no percentile tells anything that the bars don't.
const PERCENTILES_FROM: u64 = 10;

/// Of the line through all percentiles.
const STEPS_PER_NINE: f64 = 50.0;

/// Nobody measures so many messages that more nines mean something.
const NINES_MAX: f64 = 7.0;

/// Draws it below this, and says where it ends.
pub(super) fn draw(canvas: &mut Canvas, measured: &Measured, top: f64) -> f64 {
    if measured.latencies.is_empty() {
        canvas.text("panel", (MARGIN, top), Anchor::Start, "Nothing came back");
        return top;
    }
    let bars_top = top + STEP * PERCENTILES.len() as f64 + 14.0;
    let frame = Frame {
        left: MARGIN + LABELS_WIDTH,
        right: WIDTH - MARGIN - HALF_LABEL_WIDTH,
        top: bars_top,
        bottom: bars_top + BARS_HEIGHT,
    };
    draw_distribution(canvas, measured, frame, top);
    if measured.latencies.len() < PERCENTILES_FROM {
        return frame.bottom + 22.0;
    }
    let below = frame.bottom + 54.0;
    let frame = Frame {
        top: below + 14.0,
        bottom: below + 14.0 + PERCENTILES_HEIGHT,
        ..frame
    };
    draw_percentiles(canvas, measured, frame, below);
    frame.bottom + 22.0
}

fn draw_distribution(canvas: &mut Canvas, measured: &Measured, frame: Frame, top: f64) {
    let ends = [0.0, 1.0].map(|share| microseconds(measured, share));
    let axis = latency_axis(&ends, (frame.left, frame.right));
    let width = figures::share(axis.growth(BAR_WIDTH) - 1.0);
    title(
        canvas,
        top,
        "Messages by latency",
        &format!("share of all, in bars {width} wide"),
    );
    let shares = bars(measured, &axis, frame);
    let most = shares.iter().copied().fold(0.0, f64::max);
    let heights = Axis::linear((0.0, most * 1.02), (frame.bottom, frame.top));
    rule(canvas, frame, &heights, 5, |share| {
        format!("{} %", figures::round_count(share * 100.0))
    });
    for (index, share) in shares.iter().enumerate().filter(|(_, share)| **share > 0.0) {
        let left = frame.left + index as f64 * BAR_WIDTH;
        let top = heights.place(*share).min(frame.bottom - BAR_HEIGHT_MIN);
        let right = (left + BAR_WIDTH - 1.0).min(frame.right);
        canvas.rectangle("bars", (left, top), (right, frame.bottom));
    }
    scale(canvas, frame, &ticks(&axis, 12, figures::round_time));
    draw_marks(canvas, measured, &axis, frame);
}

/// The share of messages in each bar: equal widths on the axis, so equal ratios of latency.
fn bars(measured: &Measured, axis: &Axis, frame: Frame) -> Vec<f64> {
    let count = ((frame.right - frame.left) / BAR_WIDTH).ceil() as usize;
    let mut bars = vec![0; count];
    let longest = microseconds(measured, 1.0);
    for value in measured.latencies.histogram().iter_recorded() {
        let time = (value.value_iterated_to() as f64 / 1e3).min(longest);
        let index = (axis.place(time) - frame.left) / BAR_WIDTH;
        bars[(index as usize).min(count - 1)] += value.count_at_value();
    }
    let all = measured.latencies.len() as f64;
    bars.into_iter().map(|bar: u64| bar as f64 / all).collect()
}

/// A line at each percentile, its label to the left of it and above those of shorter ones: so no line
/// crosses a label.
fn draw_marks(canvas: &mut Canvas, measured: &Measured, axis: &Axis, frame: Frame) {
    for (index, (name, class, time)) in percentiles(measured).into_iter().enumerate() {
        let x = axis.place(time);
        let y = frame.top - 10.0 - index as f64 * STEP;
        canvas.line(&format!("mark {class}"), (x, y - 10.0), (x, frame.bottom));
        let label = format!("{name} {}", figures::time(time));
        canvas.text(&format!("name {class}"), (x - 5.0, y), Anchor::End, &label);
    }
}

fn draw_percentiles(canvas: &mut Canvas, measured: &Measured, frame: Frame, top: f64) {
    let ends = [0.0, 1.0].map(|share| microseconds(measured, share));
    let heights = latency_axis(&ends, (frame.bottom, frame.top));
    title(canvas, top, "Latency by percentile", "");
    rule(canvas, frame, &heights, 6, figures::round_time);

    // Of a hundred messages, the slowest tells what 99 % had: more nines would be made up.
    let seen = (measured.latencies.len() as f64).log10().min(NINES_MAX);
    let nines = seen.ceil().max(1.0);
    let across = Axis::linear((0.0, nines), (frame.left, frame.right - 30.0));
    let labels: Vec<(f64, String)> = (0..=nines as i32)
        .map(|nines| (across.place(f64::from(nines)), percent(nines)))
        .collect();
    scale(canvas, frame, &labels);

    let place = |nines: f64, share: f64| {
        let time = microseconds(measured, share);
        (across.place(nines), heights.place(time))
    };
    let longest = place(seen, 1.0);
    let steps = (seen * STEPS_PER_NINE).ceil();
    let nines = (0..steps as u32).map(|step| seen * f64::from(step) / steps);
    let mut trace: Vec<_> = nines
        .map(|nines| place(nines, 1.0 - 10_f64.powf(-nines)))
        .collect();
    trace.push(longest);
    canvas.path("trace", &trace);
    for ((_, share), class) in PERCENTILES.iter().zip(CLASSES) {
        let nines = -(1.0 - share).log10();
        if nines <= seen {
            canvas.dot(class, place(nines, *share));
        }
    }
    canvas.dot("max", longest);
}

/// With so many nines: `0 %`, `90 %`, `99 %`, `99.9 %`.
fn percent(nines: i32) -> String {
    let digits = usize::try_from(nines - 2).unwrap_or(0);
    let percent = 100.0 - 100.0 * 10_f64.powi(-nines);
    format!("{percent:.digits$} %")
}
