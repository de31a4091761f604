//! An SVG document as it grows: shapes, text, and the style that they share.
//!
//! Knows how things are written, and never what they mean.

use std::fmt::Write;

pub(super) const WIDTH: f64 = 800.0;

/// A letter is about so wide, of its size; wider fonts are rare.
const LETTER: f64 = 0.6;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;font-size:12px;fill:#24292f}
.page{fill:#ffffff}
.title{font-size:18px;font-weight:600}
.panel{font-size:13px;font-weight:600}
.note,.tick{fill:#57606a}
.tick{font-size:11px}
.warning{fill:#9a6700}
.name{fill:currentColor}
.grid{stroke:#d8dee4}
.axis{stroke:#57606a}
.bars{fill:#54aeff}
.trace{fill:none;stroke:#0969da;stroke-width:2;stroke-linejoin:round}
.asked{fill:none;stroke:#57606a;stroke-dasharray:4 4}
.mark,.curve,.dot{stroke:currentColor;stroke-width:1.5}
.curve{fill:none;stroke-linejoin:round}
.dot{fill:currentColor}
.hollow{fill:#ffffff}
.p50{color:#0969da}
.p90{color:#1a7f37}
.p99{color:#9a6700}
.p999{color:#bc4c00}
.max{color:#cf222e}
.key{color:#57606a}
@media(prefers-color-scheme:dark){
text{fill:#e6edf3}
.page,.hollow{fill:#0d1117}
.note,.tick{fill:#8d96a0}
.warning{fill:#d29922}
.name{fill:currentColor}
.grid{stroke:#30363d}
.axis,.asked{stroke:#8d96a0}
.bars{fill:#1f6feb}
.trace{stroke:#4493f8}
.p50{color:#4493f8}
.p90{color:#3fb950}
.p99{color:#d29922}
.p999{color:#f0883e}
.max{color:#f85149}
.key{color:#8d96a0}
}";

/// Which end of a text is at its place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    /// It begins there.
    Start,
    /// It is centered there.
    Middle,
    /// It ends there.
    End,
}

/// x and y.
pub(super) type Place = (f64, f64);

/// What has been drawn.
#[derive(Debug, Default)]
pub(super) struct Canvas {
    body: String,
}

impl Canvas {
    /// Text at a place of its baseline.
    pub(super) fn text(&mut self, class: &str, (x, y): Place, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let text = escaped(text);
        self.put(format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{anchor}>{text}</text>"
        ));
    }

    /// From one place to another.
    pub(super) fn line(&mut self, class: &str, (x1, y1): Place, (x2, y2): Place) {
        self.put(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// A rectangle, by two of its corners.
    pub(super) fn rectangle(&mut self, class: &str, (left, top): Place, (right, bottom): Place) {
        let (width, height) = (right - left, bottom - top);
        self.put(format_args!(
            "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    /// A small disc.
    pub(super) fn dot(&mut self, class: &str, (x, y): Place) {
        self.put(format_args!(
            "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>"
        ));
    }

    /// A line through all these.
    pub(super) fn path(&mut self, class: &str, places: &[Place]) {
        let mut data = String::new();
        for (index, (x, y)) in places.iter().enumerate() {
            let step = if index == 0 { 'M' } else { 'L' };
            write!(data, "{step}{x:.1} {y:.1}").expect("a string takes all");
        }
        self.put(format_args!("<path class=\"{class}\" d=\"{data}\"/>"));
    }

    /// The document, so high, which says this to those who don't see it.
    #[must_use]
    pub(super) fn finish(self, height: f64, label: &str) -> String {
        let label = escaped(label);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             width=\"{WIDTH}\" height=\"{height:.0}\" role=\"img\" aria-label=\"{label}\">\n\
             <style>{STYLE}</style>\n\
             <rect class=\"page\" width=\"100%\" height=\"100%\"/>\n{}</svg>\n",
            self.body
        )
    }

    fn put(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.body, "{element}").expect("a string takes all");
    }
}

/// How wide a text is at most, about.
#[must_use]
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * LETTER
}

/// A text that fits in so much room; what is cut out is in its middle, for both ends of an address
/// matter.
#[must_use]
pub(super) fn shortened(text: &str, room: f64, size: f64) -> String {
    let most = (room / (size * LETTER)) as usize;
    let letters: Vec<char> = text.chars().collect();
    if letters.len() <= most {
        return text.to_owned();
    }
    let end = most / 2;
    let start = most.saturating_sub(end + 1);
    let mut short: String = letters[..start].iter().collect();
    short.push('…');
    short.extend(&letters[letters.len() - end..]);
    short
}

/// A text in lines that fit in so much room.
#[must_use]
pub(super) fn wrapped(text: &str, room: f64, size: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), size) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shortened(word, room, size)),
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
