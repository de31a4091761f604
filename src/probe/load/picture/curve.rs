//! The picture of several rates: latency by load, and below it what was achieved of what was asked.

use super::canvas::{Anchor, Canvas, Place, WIDTH};
use super::{Frame, MARGIN, latency_axis, percentiles, rule, scale, ticks, title};
use crate::probe::load::axis::Axis;
use crate::probe::load::doubts::{self, Doubt};
use crate::probe::load::figures;
use crate::probe::load::measured::Measured;

const LABELS_WIDTH: f64 = 52.0;

/// For the names at the ends of the lines, at the right.
const NAMES_WIDTH: f64 = 58.0;

/// Names are at least so far apart.
const NAME_HEIGHT: f64 = 15.0;

const LATENCY_HEIGHT: f64 = 260.0;
const ACHIEVED_HEIGHT: f64 = 140.0;

/// Rates further apart than this lie on a logarithmic axis: the lower ones would all be at its start.
const WIDE: f64 = 10.0;

/// Draws it below this, and says where it ends.
pub(super) fn draw(canvas: &mut Canvas, all: &[Measured], top: f64) -> f64 {
    let mut all: Vec<&Measured> = all.iter().collect();
    all.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
    let answered: Vec<&Measured> = all
        .iter()
        .copied()
        .filter(|one| !one.latencies.is_empty())
        .collect();
    if answered.is_empty() {
        canvas.text("panel", (MARGIN, top), Anchor::Start, "Nothing came back");
        return top;
    }
    let frame = Frame {
        left: MARGIN + LABELS_WIDTH,
        right: WIDTH - MARGIN - NAMES_WIDTH,
        top: top + 16.0,
        bottom: top + 16.0 + LATENCY_HEIGHT,
    };
    let across = rate_axis(all.iter().map(|one| rate(one)), (frame.left, frame.right));
    title(canvas, top, "Latency by messages/s asked for", "");
    if all.iter().any(|one| is_behind(one)) {
        draw_legend(canvas, (frame.right, top));
    }
    draw_latencies(canvas, &answered, &across, frame);

    let below = frame.bottom + 54.0;
    let frame = Frame {
        top: below + 16.0,
        bottom: below + 16.0 + ACHIEVED_HEIGHT,
        ..frame
    };
    title(canvas, below, "Messages/s achieved", "dashed: asked for");
    draw_achieved(canvas, &all, &across, frame);
    frame.bottom + 22.0
}

/// What a hollow dot means.
fn draw_legend(canvas: &mut Canvas, (right, y): Place) {
    let text = "can't keep up";
    let x = right - super::canvas::text_width(text, super::NOTE_SIZE);
    canvas.dot("hollow key", (x - 8.0, y - 4.0));
    canvas.text("note", (x, y), Anchor::Start, text);
}

fn draw_latencies(canvas: &mut Canvas, all: &[&Measured], across: &Axis, frame: Frame) {
    let curves: Vec<[(&str, &str, f64); 5]> = all.iter().map(|one| percentiles(one)).collect();
    let times: Vec<f64> = curves.iter().flatten().map(|(_, _, time)| *time).collect();
    let heights = latency_axis(&times, (frame.bottom, frame.top));
    rule(canvas, frame, &heights, 8, figures::round_time);
    scale(canvas, frame, &ticks(across, 9, figures::round_count));

    let mut ends = Vec::new();
    for index in 0..curves[0].len() {
        let (name, class, _) = curves[0][index];
        let places: Vec<Place> = all
            .iter()
            .zip(&curves)
            .map(|(one, curve)| (across.place(rate(one)), heights.place(curve[index].2)))
            .collect();
        canvas.path(&format!("curve {class}"), &places);
        for (one, place) in all.iter().zip(&places) {
            canvas.dot(&dot(one, class), *place);
        }
        ends.push((name, class, places[places.len() - 1]));
    }
    draw_names(canvas, &ends, frame);
}

/// The name of each line at its end, moved up where it would hide the one below.
fn draw_names(canvas: &mut Canvas, ends: &[(&str, &str, Place)], frame: Frame) {
    let mut lowest = frame.bottom + 4.0;
    let mut heights = Vec::new();
    for (_, _, (_, y)) in ends {
        let y = (y + 4.0).min(lowest);
        lowest = y - NAME_HEIGHT;
        heights.push(y);
    }
    // What was moved up beyond the top comes down again, all of it.
    let above = (frame.top + 4.0 - lowest - NAME_HEIGHT).max(0.0);
    for ((name, class, _), y) in ends.iter().zip(heights) {
        let class = format!("name {class}");
        canvas.text(&class, (frame.right + 10.0, y + above), Anchor::Start, name);
    }
}

fn draw_achieved(canvas: &mut Canvas, all: &[&Measured], across: &Axis, frame: Frame) {
    let rates = all.iter().flat_map(|one| [rate(one), one.throughput()]);
    let heights = rate_axis(rates, (frame.bottom, frame.top));
    rule(canvas, frame, &heights, 5, figures::round_count);
    scale(canvas, frame, &ticks(across, 9, figures::round_count));
    let asked = |one: &&Measured| (across.place(rate(one)), heights.place(rate(one)));
    let asked: Vec<Place> = all.iter().map(asked).collect();
    canvas.path("asked", &asked);
    let achieved: Vec<Place> = all
        .iter()
        .map(|one| (across.place(rate(one)), heights.place(one.throughput())))
        .collect();
    canvas.path("curve p50", &achieved);
    for (one, place) in all.iter().zip(&achieved) {
        canvas.dot(&dot(one, "p50"), *place);
    }
}

fn dot(measured: &Measured, class: &str) -> String {
    if is_behind(measured) {
        return format!("hollow {class}");
    }
    class.to_owned()
}

fn is_behind(measured: &Measured) -> bool {
    doubts::of(measured).contains(&Doubt::Behind)
}

/// What was asked for; without that, what was achieved.
fn rate(measured: &Measured) -> f64 {
    measured
        .rate
        .map_or_else(|| measured.throughput(), |rate| rate as f64)
}

/// An axis for all these rates.
fn rate_axis(rates: impl Iterator<Item = f64>, places: (f64, f64)) -> Axis {
    let rates: Vec<f64> = rates.filter(|rate| *rate > 0.0).collect();
    let high = rates.iter().copied().fold(1e-3, f64::max);
    let low = rates.iter().copied().fold(high, f64::min);
    if high / low > WIDE {
        return Axis::logarithmic((low / 1.2, high * 1.2), places);
    }
    Axis::linear((0.0, high * 1.05), places)
}
