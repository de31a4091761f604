//! What came of a load as a picture for a report: SVG, light or dark as the viewer prefers.
//!
//! One measurement is a distribution and, below it, its percentiles; several rates are the latency by
//! load and, below it, what was achieved. All is measured and placed here, and nothing is drawn that
//! was not measured: no curve is fitted. The text has no date, so that equal results are equal files.

mod canvas;
mod curve;
mod distribution;
#[cfg(test)]
mod tests;

use super::axis::Axis;
use super::doubts;
use super::figures;
use super::header::Header;
use super::histogram::PERCENTILES;
use super::measured::Measured;
use super::show;
use crate::cli::text;
use crate::probe::cause::Causes;

use canvas::{Anchor, Canvas, WIDTH};

const MARGIN: f64 = 20.0;

/// Of a line of text below another.
const LINE: f64 = 17.0;

/// The sizes of letters, as in the style.
const TITLE_SIZE: f64 = 18.0;
const PANEL_SIZE: f64 = 13.0;
const NOTE_SIZE: f64 = 12.0;

/// An axis of latencies reaches over this ratio at least.
const RATIO_MIN: f64 = 1.27;

/// The classes of the percentiles, in the order of their colors.
const CLASSES: [&str; 5] = ["p50", "p90", "p99", "p999", "max"];

/// Where something is drawn within.
#[derive(Clone, Copy, Debug)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

/// The picture as an SVG document.
#[must_use]
pub(super) fn svg(header: &Header, all: &[Measured]) -> String {
    let mut canvas = Canvas::default();
    let title = format!("Echo latency of {}", header.service());
    let mut y = MARGIN + TITLE_SIZE;
    let shown = canvas::shortened(&title, WIDTH - 2.0 * MARGIN, TITLE_SIZE);
    canvas.text("title", (MARGIN, y), Anchor::Start, &shown);
    y += 6.0;
    y = lines(&mut canvas, "note", y, &header.way());
    y = lines(&mut canvas, "note", y, &result(header, all));
    let bottom = match all {
        [one] => distribution::draw(&mut canvas, one, y + 30.0),
        several => curve::draw(&mut canvas, several, y + 30.0),
    };
    y = bottom + 8.0;
    for warning in doubts::warnings(all) {
        y = lines(&mut canvas, "warning", y, &warning);
    }
    canvas.finish(y + MARGIN, &format!("{title}: {}", result(header, all)))
}

/// Writes a text below this, over as many lines as it takes, and says where the last of them is.
fn lines(canvas: &mut Canvas, class: &str, mut y: f64, text: &str) -> f64 {
    for line in canvas::wrapped(text, WIDTH - 2.0 * MARGIN, NOTE_SIZE) {
        y += LINE;
        canvas.text(class, (MARGIN, y), Anchor::Start, &line);
    }
    y
}

/// What came of it, in a line.
fn result(header: &Header, all: &[Measured]) -> String {
    let [one] = all else {
        return results(header, all);
    };
    let mut parts = vec![show::messages(one), show::throughput(one)];
    parts.extend(flaws(header, all));
    parts.join("; ")
}

fn results(header: &Header, all: &[Measured]) -> String {
    let messages: u64 = all.iter().map(|one| one.messages).sum();
    let times: Vec<f64> = all.iter().map(|one| one.duration.as_secs_f64()).collect();
    let longest = times.iter().copied().fold(0.0, f64::max);
    let mut parts = vec![format!(
        "{} messages, {} of {}",
        figures::count(messages as f64),
        text::counted(all.len() as u64, "rate"),
        figures::time(longest * 1e6),
    )];
    parts.extend(flaws(header, all));
    parts.join("; ")
}

/// `0 lost, 3 corrupt`: what can be lost is told also where nothing was.
fn flaws(header: &Header, all: &[Measured]) -> Option<String> {
    let each: Vec<_> = all.iter().map(|one| show::flaws(header, one)).collect();
    let mut parts = Vec::new();
    for (index, (name, _)) in each.first()?.iter().enumerate() {
        let count: u64 = each.iter().map(|flaws| flaws[index].1).sum();
        if count > 0 || index == 0 {
            parts.push(format!("{count} {name}"));
        }
    }
    let mut errors = Causes::default();
    for one in all {
        errors.merge(&one.errors);
    }
    if !errors.is_empty() {
        parts.push(text::escape(&errors.to_string()));
    }
    Some(parts.join(", "))
}

/// An axis of latencies, with room at both ends, from the shortest to the longest of these; there are
/// some.
fn latency_axis(times: &[f64], places: (f64, f64)) -> Axis {
    let low = times.iter().copied().fold(f64::MAX, f64::min);
    let high = times.iter().copied().fold(0.0, f64::max);
    // What is all alike is a line in the middle; what is nearly alike is not drawn larger than the
    // histogram can tell apart.
    let ratio = high / low;
    let margin = ratio.powf(0.06).max((RATIO_MIN / ratio).sqrt());
    Axis::logarithmic((low / margin, high * margin), places)
}

/// The percentiles of one measurement with their classes, microseconds.
fn percentiles(measured: &Measured) -> [(&'static str, &'static str, f64); 5] {
    let mut classes = CLASSES.iter();
    PERCENTILES.map(|(name, share)| {
        let class = classes.next().expect("as many as percentiles");
        (name, *class, microseconds(measured, share))
    })
}

/// So long took this share of the messages at most.
fn microseconds(measured: &Measured, share: f64) -> f64 {
    let time = measured.latencies.quantile(share).as_secs_f64() * 1e6;
    // A nanosecond at least: the logarithm of nothing lies nowhere.
    time.max(1e-3)
}

/// What is drawn below it, and what else one has to know to read that.
fn title(canvas: &mut Canvas, y: f64, text: &str, note: &str) {
    canvas.text("panel", (MARGIN, y), Anchor::Start, text);
    if !note.is_empty() {
        let x = MARGIN + canvas::text_width(text, PANEL_SIZE) + 12.0;
        canvas.text("note", (x, y), Anchor::Start, note);
    }
}

/// Lines across a frame at round values, each with its label at the left.
fn rule(canvas: &mut Canvas, frame: Frame, axis: &Axis, most: usize, label: fn(f64) -> String) {
    for value in axis.ticks(most) {
        let y = axis.place(value);
        canvas.line("grid", (frame.left, y), (frame.right, y));
        canvas.text(
            "tick",
            (frame.left - 6.0, y + 4.0),
            Anchor::End,
            &label(value),
        );
    }
}

/// The line below a frame, with a label at each of these places.
fn scale(canvas: &mut Canvas, frame: Frame, ticks: &[(f64, String)]) {
    canvas.line(
        "axis",
        (frame.left, frame.bottom),
        (frame.right, frame.bottom),
    );
    for (x, label) in ticks {
        canvas.line("axis", (*x, frame.bottom), (*x, frame.bottom + 4.0));
        canvas.text("tick", (*x, frame.bottom + 17.0), Anchor::Middle, label);
    }
}

fn ticks(axis: &Axis, most: usize, label: fn(f64) -> String) -> Vec<(f64, String)> {
    let tick = |value| (axis.place(value), label(value));
    axis.ticks(most).into_iter().map(tick).collect()
}
