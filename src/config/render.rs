//! The whole configuration as TOML, in the canonical form of each key.
//!
//! What is rendered loads to an equal [`Config`].

use super::Config;
use super::table::Section;
use super::words::quote;

/// The effective configuration: every key that applies, with its value. A key whose value is its
/// absence is a comment.
#[must_use]
pub(crate) fn render(config: &Config) -> String {
    let mut text = String::new();
    for section in [Section::Daemon, Section::Control, Section::Log] {
        text += &format!("[{}]\n", section.name());
        for key in section.keys() {
            text += &match key.show(config) {
                Some(value) => format!("{} = {value}\n", key.name),
                None => format!("# {} is not set\n", key.name),
            };
        }
        text.push('\n');
    }
    for listener in config.listeners.values() {
        text += &format!("[listener.{}]\n", table_name(&listener.name));
        for key in Section::Listener.keys() {
            let Some(value) = key.show_of(listener) else {
                continue;
            };
            // To write it would override that of a socket unit.
            text += &if key.name == "backlog" && !listener.backlog_is_set {
                format!("# backlog is not set: {value}, or that of a .socket unit\n")
            } else {
                format!("{} = {value}\n", key.name)
            };
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A name with a dot in it needs quotes to be one name.
fn table_name(name: &str) -> String {
    if name.contains('.') {
        quote(name)
    } else {
        name.into()
    }
}
