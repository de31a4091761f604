//! Promises of every picture: it is well-formed, all of it is within its edges, and no text hides
//! another.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::sample;
use super::*;
use crate::probe::cause::Cause;
use crate::probe::latency::Latencies;

/// An element, with the text that is directly in it.
#[derive(Debug, Default)]
struct Element {
    name: String,
    attributes: BTreeMap<String, String>,
    text: String,
}

impl Element {
    fn number(&self, name: &str) -> f64 {
        let text = &self.attributes[name];
        let number: f64 = text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text:?}: no number"));
        assert!(number.is_finite(), "{self:?}");
        number
    }

    fn size(&self) -> f64 {
        match self.attributes["class"].as_str() {
            "title" => 18.0,
            "panel" => 13.0,
            "tick" => 11.0,
            _ => 12.0,
        }
    }
}

/// All elements of a document, which is well-formed, or else this panics.
fn parse(svg: &str) -> Vec<Element> {
    let mut elements: Vec<Element> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut rest = svg;
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        let text = unescaped(text);
        if let Some(index) = open.last() {
            elements[*index].text += &text;
        } else {
            assert_eq!(text.trim(), "", "text outside of the document");
        }
        let end = tag.find('>').expect("a tag ends");
        let inside = &tag[1..end];
        rest = &tag[end + 1..];
        if let Some(name) = inside.strip_prefix('/') {
            let index = open.pop().expect("what ends has begun");
            assert_eq!(elements[index].name, name);
            continue;
        }
        if !inside.ends_with('/') {
            open.push(elements.len());
        }
        elements.push(element(inside.trim_end_matches('/')));
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{rest}");
    elements
}

fn element(tag: &str) -> Element {
    let (name, mut rest) = tag.split_once(' ').unwrap_or((tag, ""));
    let mut attributes = BTreeMap::new();
    while let Some((name, value)) = rest.split_once("=\"") {
        let (value, after) = value.split_once('"').expect("an attribute ends");
        let before = attributes.insert(name.trim().to_owned(), unescaped(value));
        assert_eq!(before, None, "{tag}");
        rest = after;
    }
    assert_eq!(rest.trim(), "", "{tag}");
    Element {
        name: name.to_owned(),
        attributes,
        text: String::new(),
    }
}

fn unescaped(text: &str) -> String {
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&amp;", "&"),
    ];
    let bare = entities.iter().fold(text.to_owned(), |text, (entity, _)| {
        text.replace(entity, "")
    });
    assert!(
        !bare.contains(['&', '<']) && !bare.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
    entities
        .iter()
        .fold(text.to_owned(), |text, (entity, letter)| {
            text.replace(entity, letter)
        })
}

/// Left, top, right, bottom.
type Box = [f64; 4];

fn text_box(element: &Element) -> Box {
    let (x, y, size) = (element.number("x"), element.number("y"), element.size());
    let width = canvas::text_width(&element.text, size);
    let anchor = element.attributes.get("text-anchor").map(String::as_str);
    let left = match anchor {
        None => x,
        Some("middle") => x - width / 2.0,
        Some("end") => x - width,
        Some(other) => panic!("{other}"),
    };
    [left, y - 0.75 * size, left + width, y + 0.2 * size]
}

fn shape_box(element: &Element) -> Option<Box> {
    let at = |name| element.number(name);
    Some(match element.name.as_str() {
        "text" => text_box(element),
        "line" => [
            at("x1").min(at("x2")),
            at("y1").min(at("y2")),
            at("x1").max(at("x2")),
            at("y1").max(at("y2")),
        ],
        "circle" => {
            let (x, y, r) = (at("cx"), at("cy"), at("r"));
            [x - r, y - r, x + r, y + r]
        }
        "rect" if element.attributes["class"] != "page" => {
            assert!(at("width") > 0.0 && at("height") > 0.0, "{element:?}");
            [
                at("x"),
                at("y"),
                at("x") + at("width"),
                at("y") + at("height"),
            ]
        }
        "path" => path_box(&element.attributes["d"]),
        _ => return None,
    })
}

fn path_box(data: &str) -> Box {
    let mut edges = [f64::MAX, f64::MAX, f64::MIN, f64::MIN];
    assert!(data.starts_with('M'), "{data}");
    for place in data.split(['M', 'L']).skip(1) {
        let (x, y) = place.split_once(' ').expect("two numbers");
        let (x, y): (f64, f64) = (x.parse().expect("a number"), y.parse().expect("a number"));
        edges = [
            edges[0].min(x),
            edges[1].min(y),
            edges[2].max(x),
            edges[3].max(y),
        ];
    }
    edges
}

/// What every picture promises. The text in it, for more.
fn check(header: &Header, all: &[Measured]) -> Vec<String> {
    let svg = svg(header, all);
    let elements = parse(&svg);
    let root = &elements[0];
    assert_eq!(root.attributes["role"], "img");
    assert!(!root.attributes["aria-label"].is_empty());
    let (width, height) = (root.number("width"), root.number("height"));
    assert_eq!(root.attributes["viewBox"], format!("0 0 {width} {height}"));

    let edges = [0.0, 0.0, width, height];
    for element in &elements {
        let Some([left, top, right, bottom]) = shape_box(element) else {
            continue;
        };
        let is_inside =
            left >= edges[0] && top >= edges[1] && right <= edges[2] && bottom <= edges[3];
        assert!(is_inside, "{element:?} is cut off");
    }
    let texts: Vec<&Element> = elements
        .iter()
        .filter(|element| element.name == "text")
        .collect();
    for (index, one) in texts.iter().enumerate() {
        for other in &texts[..index] {
            assert!(
                !overlap(text_box(one), text_box(other)),
                "{one:?} hides {other:?}"
            );
        }
    }
    texts.iter().map(|element| element.text.clone()).collect()
}

fn overlap(one: Box, other: Box) -> bool {
    one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3]
}

fn single(latencies: Latencies) -> Vec<String> {
    check(&sample::header(), &[sample::measured(latencies)])
}

#[test]
fn one_measurement_shows_its_distribution_and_percentiles() {
    let texts = single(sample::latencies(100_000, Duration::from_micros(85), 0.4));
    for text in [
        "Echo latency of tcp://127.0.0.1:7007",
        "50 connections, closed loop, depth 4, 64 B, 1 thread, io_uring",
        "p50 84.9 µs",
        "p99.9 292 µs",
        "99.9 %",
        "100 µs",
    ] {
        assert!(
            texts.iter().any(|shown| shown == text),
            "{text}: {texts:#?}"
        );
    }
}

#[test]
fn any_spread_is_a_picture() {
    for median in [1, 850, 85_000, 3_000_000, 40_000_000_000].map(Duration::from_nanos) {
        for spread in [0.0, 1e-4, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 3.0] {
            single(sample::latencies(3000, median, spread));
        }
    }
}

#[test]
fn few_messages_are_a_picture_and_none_are_told() {
    for count in [1, 2, 9, 10, 11, 100] {
        single(sample::latencies(count, Duration::from_micros(85), 0.5));
        single(sample::equal(count, Duration::from_micros(85)));
    }
    single(sample::equal(1, Duration::ZERO));
    single(sample::equal(3, Duration::from_secs(100_000)));
    let texts = single(Latencies::default());
    assert!(texts.contains(&"Nothing came back".to_owned()), "{texts:?}");
    check(&sample::header(), &[]);
}

#[test]
fn two_humps_are_a_picture() {
    for far in [60, 200, 5_000, 40_000, 10_000_000] {
        let mut latencies = sample::latencies(9_500, Duration::from_micros(50), 0.2);
        latencies.merge(&sample::latencies(500, Duration::from_micros(far), 0.05));
        single(latencies);
    }
}

#[test]
fn several_rates_show_each_percentile_and_what_was_too_much() {
    let texts = check(&sample::header(), &sample::curve(8));
    for text in ["p50", "p90", "p99", "p99.9", "max", "can't keep up", "100k"] {
        assert!(
            texts.iter().any(|shown| shown == text),
            "{text}: {texts:#?}"
        );
    }
    for rates in 2..=17 {
        check(&sample::header(), &sample::curve(rates));
    }
}

#[test]
fn rates_of_any_kind_are_a_picture() {
    let curve = |rates: &[u64]| {
        let measured = |rate: &u64| Measured {
            rate: Some(*rate),
            ..sample::measured(sample::latencies(1000, Duration::from_micros(85), 0.3))
        };
        let all: Vec<Measured> = rates.iter().map(measured).collect();
        check(&sample::header(), &all)
    };
    curve(&[1, 2]);
    curve(&[5000, 5000]);
    curve(&[80_000, 10_000, 40_000]);
    curve(&[1, 1_000_000_000]);
    curve(&[99_000, 100_000, 101_000]);
    curve(&[1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]);
}

#[test]
fn rates_at_which_nothing_came_back_have_no_latency() {
    let nothing = Measured {
        rate: Some(100_000),
        duration: Duration::from_secs(10),
        ..Measured::default()
    };
    let mut all = sample::curve(3);
    all.push(nothing.clone());
    check(&sample::header(), &all);
    let texts = check(&sample::header(), &[nothing.clone(), nothing]);
    assert!(texts.contains(&"Nothing came back".to_owned()), "{texts:?}");
}

#[test]
fn all_that_went_wrong_is_told_and_fits() {
    let header = Header {
        target: "udp://[2001:db8::1234:5678]:65535".parse().expect("a URL"),
        connections: u32::MAX,
        depth: None,
        threads: 256,
        ..sample::header()
    };
    let mut poor = sample::measured(sample::latencies(1000, Duration::from_millis(1), 0.3));
    poor.rate = Some(1_000_000_000_000);
    (poor.messages, poor.bytes) = (1_000_000_000_000, u64::MAX);
    poor.finished = poor.messages;
    (poor.lost, poor.late) = (123_456_789, 123_456_789);
    (poor.duplicates, poor.corrupt) = (123_456_789, 123_456_789);
    (poor.busy, poor.longest_pause) = (1.0, Duration::from_secs(3));
    poor.errors.add(Cause::Refused, 1_000_000);
    poor.errors
        .add(Cause::Other("words\u{1b}[31m <&> \"".repeat(20)), 1);
    let texts = check(&header, &[poor.clone()]).join(" ");
    for text in [
        "123456789 lost",
        "1000000 refused",
        "100 % of the time",
        "can't keep up",
    ] {
        assert!(texts.contains(text), "{text}: {texts}");
    }
    check(&header, &vec![poor; 12]);
}

#[test]
fn a_name_can_be_anything() {
    let header = Header {
        target: format!("unix:///{}\u{1b}<&>\"'", "a folder & another/".repeat(20))
            .parse()
            .expect("a URL"),
        ..sample::header()
    };
    let measured = sample::measured(sample::equal(10, Duration::from_micros(85)));
    let texts = check(&header, &[measured]);
    let title = &texts[0];
    assert!(
        title.starts_with("Echo latency of unix:///a folder &"),
        "{title}"
    );
    assert!(
        title.contains('…') && title.ends_with("\\u{1b}<&>\"'"),
        "{title}"
    );
}
