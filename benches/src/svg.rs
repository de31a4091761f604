//! The figures as a picture: a bar for each server in each scenario, whiskers for the quartiles.
//!
//! Written by hand, in two columns of panels. Each panel has a scale of its own, because one
//! scenario's gain is a tenth and another's tenfold; the line at 1.00 is tokio. Colors follow the
//! viewer's preference for light or dark.

use std::fmt::Write;

use crate::contender::Contender;
use crate::measure::Outcome;
use crate::scenario::Metric;
use crate::statistics::Figure;

const WIDTH: f64 = 980.0;
const MARGIN: f64 = 20.0;
const COLUMNS: usize = 2;
const GUTTER: f64 = 30.0;

/// Of a panel: room for the title and the line below it, for the names, and for the figures.
const TITLE_HEIGHT: f64 = 40.0;
const NAMES_WIDTH: f64 = 138.0;
const FIGURES_WIDTH: f64 = 42.0;

const BAR_HEIGHT: f64 = 12.0;
const ROW_HEIGHT: f64 = 18.0;
const PANEL_GAP: f64 = 24.0;

/// Above the panels.
const HEAD_HEIGHT: f64 = 64.0;

/// The scale of a panel reaches at least this far, for tokio's line to be well inside.
const SCALE_MIN: f64 = 1.25;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:12px;fill:#24292f}
.page{fill:#ffffff}
.title{font-size:18px;font-weight:600}
.panel{font-size:13px;font-weight:600}
.note{font-size:11px;fill:#57606a}
.ours{fill:#0969da}
.base{fill:#57606a}
.other{fill:#afb8c1}
.whisker{stroke:#24292f;stroke-width:1.2}
.one{stroke:#57606a;stroke-width:1;stroke-dasharray:3 3}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}
.page{fill:#0d1117}
.note{fill:#8d96a0}
.ours{fill:#4493f8}
.base{fill:#9198a1}
.other{fill:#484f58}
.whisker{stroke:#e6edf3}
.one{stroke:#9198a1}
}";

/// One bar.
struct Bar {
    contender: &'static Contender,
    figure: Figure,
}

/// The picture as an SVG document.
pub(crate) fn picture(outcomes: &[Outcome], place: &str) -> String {
    let panels: Vec<(&Outcome, Vec<Bar>)> = outcomes
        .iter()
        .map(|outcome| (outcome, bars(outcome)))
        .filter(|(_, bars)| !bars.is_empty())
        .collect();
    let mut body = String::new();
    let panel_width = (WIDTH - 2.0 * MARGIN - GUTTER) / COLUMNS as f64;
    let mut top = HEAD_HEIGHT;
    for row in panels.chunks(COLUMNS) {
        let mut height: f64 = 0.0;
        for (column, (outcome, bars)) in row.iter().enumerate() {
            let left = MARGIN + column as f64 * (panel_width + GUTTER);
            draw_panel(&mut body, left, top, panel_width, outcome, bars);
            height = height.max(TITLE_HEIGHT + bars.len() as f64 * ROW_HEIGHT);
        }
        top += height + PANEL_GAP;
    }
    let head_y = MARGIN + 12.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top:.0}\" \
         width=\"{WIDTH}\" height=\"{top:.0}\" role=\"img\" aria-label=\"echod and its peers, tokio = 1.00\">\n\
         <style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"{MARGIN}\" y=\"{head_y}\">echod and its peers, tokio = 1.00</text>\n\
         <text class=\"note\" x=\"{MARGIN}\" y=\"{}\">median and quartiles; longer is better but for memory; \
         every byte verified; {}</text>\n{body}</svg>\n",
        head_y + 18.0,
        escaped(place),
    )
}

fn bars(outcome: &Outcome) -> Vec<Bar> {
    let bar = |entry: &crate::measure::Entry| {
        Some(Bar {
            contender: entry.contender,
            figure: outcome.figure(entry, outcome.scenario.headline)?,
        })
    };
    outcome.entries.iter().filter_map(bar).collect()
}

fn draw_panel(svg: &mut String, left: f64, top: f64, width: f64, outcome: &Outcome, bars: &[Bar]) {
    let scenario = outcome.scenario;
    let is_ratio = scenario.headline != Metric::Memory;
    let unit = match scenario.headline {
        Metric::Throughput => "messages per second",
        Metric::Cpu => "messages per CPU second",
        Metric::Memory => "KiB per idle connection, less is better",
    };
    let title_y = top + 12.0;
    let note_y = top + 28.0;
    writeln!(
        svg,
        "<g><title>{}</title>\
         <text class=\"panel\" x=\"{left:.1}\" y=\"{title_y:.1}\">{}</text>\
         <text class=\"note\" x=\"{left:.1}\" y=\"{note_y:.1}\">{unit}</text></g>",
        escaped(scenario.about),
        escaped(scenario.name),
    )
    .expect("a string takes it");

    let start = left + NAMES_WIDTH;
    let room = width - NAMES_WIDTH - FIGURES_WIDTH;
    let least = if is_ratio { SCALE_MIN } else { 0.0 };
    let most = bars.iter().map(|bar| bar.figure.high).fold(least, f64::max);
    let scale = |value: f64| if most > 0.0 { value / most * room } else { 0.0 };
    for (index, bar) in bars.iter().enumerate() {
        let y = top + TITLE_HEIGHT + index as f64 * ROW_HEIGHT;
        draw_bar(svg, bar, left, start, y, scale);
    }
    if is_ratio {
        let x = start + scale(1.0);
        let first = top + TITLE_HEIGHT - 4.0;
        let last = top + TITLE_HEIGHT + bars.len() as f64 * ROW_HEIGHT - 2.0;
        writeln!(
            svg,
            "<line class=\"one\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{first:.1}\" y2=\"{last:.1}\"/>"
        )
        .expect("a string takes it");
    }
}

fn draw_bar(
    svg: &mut String,
    bar: &Bar,
    left: f64,
    start: f64,
    y: f64,
    scale: impl Fn(f64) -> f64,
) {
    let Figure { median, low, high } = bar.figure;
    let class = if bar.contender.is_ours() {
        "ours"
    } else if bar.contender.name == crate::contender::BASE {
        "base"
    } else {
        "other"
    };
    let text_y = y + 10.0;
    let middle = y + BAR_HEIGHT / 2.0;
    let (from, to) = (start + scale(low), start + scale(high));
    let length = scale(median).max(0.5);
    let (cap_top, cap_bottom) = (middle - 3.0, middle + 3.0);
    let figure_x = to.max(start + length) + 6.0;
    writeln!(
        svg,
        "<text x=\"{left:.1}\" y=\"{text_y:.1}\">{}</text>\
         <rect class=\"{class}\" x=\"{start:.1}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" rx=\"1.5\"/>\
         <path class=\"whisker\" fill=\"none\" d=\"M{from:.1} {cap_top:.1}V{cap_bottom:.1}M{from:.1} {middle:.1}H{to:.1}M{to:.1} {cap_top:.1}V{cap_bottom:.1}\"/>\
         <text class=\"note\" x=\"{figure_x:.1}\" y=\"{text_y:.1}\">{median:.2}</text>",
        escaped(bar.contender.name),
    )
    .expect("a string takes it");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
