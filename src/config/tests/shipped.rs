//! The files that come with echod keep what they promise: they load, and leave no key out.

use super::*;

const SHIPPED: &str = include_str!("../../../etc/echod.toml");
const MANUAL: &str = include_str!("../../../docs/man/echod.toml.5");

const EXAMPLES: [(&str, &str); 7] = [
    (
        "one-message.toml",
        include_str!("../../../etc/examples/one-message.toml"),
    ),
    ("loop.toml", include_str!("../../../etc/examples/loop.toml")),
    (
        "one-at-a-time.toml",
        include_str!("../../../etc/examples/one-at-a-time.toml"),
    ),
    (
        "udp-upper.toml",
        include_str!("../../../etc/examples/udp-upper.toml"),
    ),
    (
        "hundreds.toml",
        include_str!("../../../etc/examples/hundreds.toml"),
    ),
    ("ipv6.toml", include_str!("../../../etc/examples/ipv6.toml")),
    ("unix.toml", include_str!("../../../etc/examples/unix.toml")),
];

fn loaded(name: &str, text: &str) -> Config {
    let loaded = load(&[Source {
        name: name.into(),
        text: text.into(),
    }]);
    let loaded = loaded.unwrap_or_else(|errors| panic!("{}", errors[0]));
    assert_eq!(loaded.warnings, [], "{name}");
    loaded.config
}

/// The lines of the tables in which keys of this section are documented.
fn lines(section: Section) -> Vec<&'static str> {
    let table = |line: &str| match line.trim_matches(['[', ']']) {
        "daemon" => Some(Section::Daemon),
        "control" => Some(Section::Control),
        "log" => Some(Section::Log),
        _ => Some(Section::Listener),
    };
    let mut current = None;
    let mut lines = Vec::new();
    for line in SHIPPED.lines() {
        if line.starts_with('[') {
            current = table(line);
        } else if current == Some(section) {
            lines.push(line);
        }
    }
    lines
}

#[test]
fn the_shipped_file_serves_port_7_with_every_value_at_its_default() {
    let minimal = "[listener.tcp]\nprotocol = \"tcp\"\naddress = \"*:7\"\n\
                   [listener.udp]\nprotocol = \"udp\"\naddress = \"*:7\"\n";
    assert_eq!(loaded("echod.toml", SHIPPED), loaded("minimal", minimal));
}

#[test]
fn the_shipped_file_shows_every_key_with_its_default_and_effect() {
    for key in KEYS {
        let lines = lines(key.section);
        let at = lines.iter().position(|line| match key.default {
            // What is required has no default, but a value here.
            "" => line
                .trim_start_matches("# ")
                .starts_with(&format!("{} = ", key.name)),
            // What holds only where it is written is shown in a comment.
            default => line.trim_start_matches("# ") == format!("{} = {default}", key.name),
        });
        let at = at.unwrap_or_else(|| panic!("{} is missing in etc/echod.toml", key.name));
        let effect = format!("({})", key.effect.name());
        assert!(
            lines[at - 1].ends_with(&effect),
            "{}: {effect} is missing above it",
            key.name
        );
    }
}

#[test]
fn every_example_loads() {
    for (name, text) in EXAMPLES {
        let config = loaded(name, text);
        for listener in config.listeners.values() {
            // Tests put another address in its place.
            let shown = address::show_all(&listener.addresses);
            assert!(
                text.contains(&format!("address = {shown}\n")),
                "{name}: one plain address"
            );
        }
    }
}

#[test]
fn the_manual_has_an_entry_for_every_key_with_its_default_and_effect() {
    for key in KEYS {
        let head = format!(".It Ic {}\n", key.name);
        // `mode` is in two sections: the entry counts that stands below the right heading.
        let heading = match key.section {
            Section::Listener => ".Sh LISTENERS".into(),
            section => format!(".Sh {}", section.name().to_uppercase()),
        };
        let section = MANUAL
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{heading} is missing"))
            .1;
        let section = section.split("\n.Sh ").next().unwrap_or_default();
        let entry = section.split_once(&head);
        let entry = entry
            .unwrap_or_else(|| panic!("{} is missing in echod.toml.5", key.name))
            .1;
        let entry = entry.split("\n.It ").next().unwrap_or_default();
        let effect = format!("Reload: {}.", key.effect.name());
        assert!(
            entry.contains(&effect),
            "{}: {effect} is missing in echod.toml.5",
            key.name
        );
        let default = match key.default {
            "" => "Default: ".into(),
            default => format!("Default: {default}."),
        };
        assert!(
            key.default.is_empty() || entry.contains(&default),
            "{}: {default} is missing",
            key.name
        );
    }
}
