//! Where a value was typed that turned out to be impossible only when it was put to use.

use super::address;
use super::file::{self, File};
use super::findings::{Findings, position_of};
use super::table::Table;
use super::typed::{Place, Value};
use super::{Diagnostic, Source};

/// Adds to each diagnostic about a listener's key the place of the value that counts; of a list that of
/// the item which the message quotes.
pub(crate) fn locate(sources: &[Source], diagnostics: &mut [Diagnostic]) {
    let file = file::read(sources, &mut Findings::default());
    for diagnostic in diagnostics {
        let Some(place) = place(&file, diagnostic) else {
            continue;
        };
        let (source, offset) = (&sources[place.source], place.offset.unwrap_or_default());
        let (line, column) = position_of(&source.text, offset);
        diagnostic.file.clone_from(&source.name);
        (diagnostic.line, diagnostic.column) = (Some(line), Some(column));
    }
}

fn place(file: &File, diagnostic: &Diagnostic) -> Option<Place> {
    let (_, key) = diagnostic.key.as_deref()?.rsplit_once('.')?;
    let typed = file
        .tables
        .get(&Table::Listener(diagnostic.listener()?.into()))?
        .get(key)?
        .last()?;
    let is_quoted = |value: &Value| match value {
        Value::Text(text) => diagnostic.message.contains(&format!(" {text}: ")),
        _ => false,
    };
    let mut items = address::items(typed).iter();
    let item = items.find(|item| is_quoted(&item.value));
    Some(item.unwrap_or(typed).place)
}
