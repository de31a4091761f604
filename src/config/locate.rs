//! Where a value was typed that turned out to be impossible only when it was put to use.

use super::address;
use super::file::File;
use super::findings::position_of;
use super::table::Table;
use super::typed::{Place, Value};
use super::{Diagnostic, Loaded, Source};

impl Loaded {
    /// Adds to each diagnostic about a key the place of the value that counts; of a list that of the
    /// item which the message quotes. `sources` are those that this was loaded from.
    pub(crate) fn locate(&self, sources: &[Source], diagnostics: &mut [Diagnostic]) {
        for diagnostic in diagnostics {
            let Some(place) = place(&self.file, diagnostic) else {
                continue;
            };
            let (source, offset) = (&sources[place.source], place.offset.unwrap_or_default());
            let (line, column) = position_of(&source.text, offset);
            diagnostic.file.clone_from(&source.name);
            (diagnostic.line, diagnostic.column) = (Some(line), Some(column));
        }
    }
}

fn place(file: &File, diagnostic: &Diagnostic) -> Option<Place> {
    let (table, key) = Table::of_path(diagnostic.key.as_deref()?)?;
    let typed = file.tables.get(&table)?.get(key)?.last()?;
    let is_quoted = |value: &Value| match value {
        Value::Text(text) => diagnostic.message.contains(&format!(" {text}: ")),
        _ => false,
    };
    let mut items = address::items(typed).iter();
    let item = items.find(|item| is_quoted(&item.value));
    Some(item.unwrap_or(typed).place)
}
