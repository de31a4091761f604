//! Tables of aligned columns that fit the terminal.
//!
//! Knows strings and widths only. A cell is never folded: where there is too little room, columns are
//! left out by their rank, and long names are shortened. Libraries for tables, such as comfy-table, fold
//! or cut cells instead, and leave out no column.

#![forbid(unsafe_code)]

use unicode_width::UnicodeWidthStr;

use super::text::Paint;

/// What is between two columns.
const GAP: &str = "  ";

/// A column of names is not made narrower than this while others can be left out.
const SHORTENED_WIDTH: usize = 14;

/// What is between the items of a list.
pub(crate) const COMMA: &str = ", ";

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    header: &'static str,
    align: Align,
    room: Room,
    rank: u8,
}

/// What becomes of cells for which there is too little room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// They are never shortened.
    Whole,
    /// Their ends are cut off.
    Shortened,
    /// Their last items are counted only.
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

impl Column {
    /// What stands at its head.
    #[cfg(test)]
    pub(crate) const fn header(&self) -> &'static str {
        self.header
    }

    /// A column of names. Where there is too little room, the columns with the highest rank are left
    /// out first, those of rank 0 never.
    #[must_use]
    pub(crate) const fn names(header: &'static str, rank: u8) -> Self {
        Self {
            header,
            align: Align::Left,
            room: Room::Shortened,
            rank,
        }
    }

    /// A column of names that are not shortened, because their ends tell them apart.
    #[must_use]
    pub(crate) const fn whole(header: &'static str, rank: u8) -> Self {
        Self {
            room: Room::Whole,
            ..Self::names(header, rank)
        }
    }

    /// A column of lists, whose items are joined by [`COMMA`].
    #[must_use]
    pub(crate) const fn lists(header: &'static str, rank: u8) -> Self {
        Self {
            room: Room::List,
            ..Self::names(header, rank)
        }
    }

    /// A column of numbers, which are never shortened.
    #[must_use]
    pub(crate) const fn numbers(header: &'static str, rank: u8) -> Self {
        Self {
            align: Align::Right,
            ..Self::whole(header, rank)
        }
    }
}

/// A table under construction. A column without any content is left out.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A table as text.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// Its lines, each ended.
    pub text: String,
    /// How many columns with content there was no room for.
    pub left_out: usize,
}

impl Table {
    /// With these columns.
    #[must_use]
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: a cell for each column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        self.rows.push(cells);
    }

    /// The table as text, in lines of at most `width` columns where that is given and can be.
    #[must_use]
    pub(crate) fn render(&self, paint: Paint, width: Option<usize>) -> Rendered {
        let mut shown: Vec<usize> = (0..self.columns.len())
            .filter(|&column| self.has_content(column))
            .collect();
        let with_content = shown.len();
        // Numbers are never shortened, and names only down to a least width. What is then still too
        // wide has to do without a column: the last one of the highest rank.
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|column| self.width(column))
            .collect();
        if let Some(width) = width {
            while self.total(&shown, &widths, Self::least_width) > width {
                let ranked = shown.iter().enumerate();
                let last = ranked.max_by_key(|(_, column)| self.columns[**column].rank);
                match last {
                    Some((place, &column)) if self.columns[column].rank > 0 => shown.remove(place),
                    _ => break,
                };
            }
            self.shorten(&shown, &mut widths, width);
        }
        let headers = shown.iter().map(|&column| self.columns[column].header);
        let headers = self.line(&shown, &widths, headers);
        let mut text = paint.bold(headers.trim_end()) + "\n";
        for row in &self.rows {
            let cells = shown.iter().map(|&column| row[column].as_str());
            text += self.line(&shown, &widths, cells).trim_end();
            text.push('\n');
        }
        Rendered {
            text,
            left_out: with_content - shown.len(),
        }
    }

    fn has_content(&self, column: usize) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| !row[column].is_empty())
    }

    /// The width of the widest cell, the header included.
    fn width(&self, column: usize) -> usize {
        let header = self.columns[column].header.width();
        let cells = self.rows.iter().map(|row| row[column].width());
        cells.fold(header, usize::max)
    }

    /// The width that a column has at least.
    fn least_width(&self, column: usize, width: usize) -> usize {
        match self.columns[column].room {
            Room::Whole => width,
            Room::Shortened | Room::List => width.min(SHORTENED_WIDTH),
        }
    }

    /// The width of a line, where each column has the width that `of` says.
    fn total(
        &self,
        shown: &[usize],
        widths: &[usize],
        of: impl Fn(&Self, usize, usize) -> usize,
    ) -> usize {
        let columns = shown.iter().map(|&column| of(self, column, widths[column]));
        columns.sum::<usize>() + GAP.len() * shown.len().saturating_sub(1)
    }

    /// Gives the columns of names the room that there is, the most important ones first.
    fn shorten(&self, shown: &[usize], widths: &mut [usize], width: usize) {
        let mut spare = width.saturating_sub(self.total(shown, widths, Self::least_width));
        let mut names: Vec<usize> = shown.to_vec();
        names.sort_by_key(|&column| self.columns[column].rank);
        for column in names {
            let least = self.least_width(column, widths[column]);
            let more = spare.min(widths[column] - least);
            spare -= more;
            widths[column] = least + more;
        }
    }

    fn line<'a>(
        &self,
        shown: &[usize],
        widths: &[usize],
        cells: impl Iterator<Item = &'a str>,
    ) -> String {
        let mut line = String::new();
        for (&column, cell) in shown.iter().zip(cells) {
            if !line.is_empty() {
                line += GAP;
            }
            // A gap would shift the columns for a program that splits the line.
            let cell = if cell.is_empty() { "-" } else { cell };
            let cell = match self.columns[column].room {
                Room::List => shortened_list(cell, widths[column]),
                Room::Whole | Room::Shortened => shortened(cell, widths[column]),
            };
            let padding = " ".repeat(widths[column].saturating_sub(cell.width()));
            match self.columns[column].align {
                Align::Left => line.extend([cell.as_str(), &padding]),
                Align::Right => line.extend([padding.as_str(), &cell]),
            }
        }
        line
    }
}

/// The text in at most this width, its end replaced by `…` where it is longer.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for character in text.chars() {
        short.push(character);
        if short.width() >= width {
            short.pop();
            break;
        }
    }
    short + "…"
}

/// A list in at most this width: `a, b +2` where two of its items are left out.
fn shortened_list(list: &str, width: usize) -> String {
    let items: Vec<&str> = list.split(COMMA).collect();
    let with = |count: usize| match items.len() - count {
        0 => list.to_owned(),
        more => format!("{} +{more}", items[..count].join(COMMA)),
    };
    let counts = (1..=items.len()).rev();
    let fitting = counts.map(with).find(|text| text.width() <= width);
    fitting.unwrap_or_else(|| match items.len() - 1 {
        0 => shortened(list, width),
        more => {
            let more = format!(" +{more}");
            shortened(items[0], width.saturating_sub(more.len())) + &more
        }
    })
}

/// A text in lines of at most this width where that can be, broken at its blanks. All but the first
/// are indented.
pub(crate) fn folded(text: &str, width: usize) -> String {
    const INDENTATION: &str = "  ";
    let mut lines = wrapped(text.split_inclusive(' '), width);
    let rest = lines.split_off(lines.len().min(1)).join(" ");
    let width = width.saturating_sub(INDENTATION.len());
    let rest = wrapped(rest.split_inclusive(' '), width);
    lines.extend(rest.iter().map(|line| INDENTATION.to_owned() + line));
    lines.join("\n")
}

/// Pieces of a text, joined to lines of at most this width where that can be. A piece has its own end,
/// such as a blank.
pub(crate) fn wrapped<'a>(pieces: impl Iterator<Item = &'a str>, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for piece in pieces {
        match lines.last_mut() {
            Some(line) if line.width() + piece.trim_end().width() <= width => *line += piece,
            _ => lines.push(piece.to_owned()),
        }
    }
    let trimmed = lines.iter().map(|line| line.trim_end().to_owned());
    trimmed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Paint = Paint { colored: false };

    fn table() -> Table {
        let mut table = Table::new(&[
            Column::names("NAME", 0),
            Column::names("VIA", 1),
            Column::lists("ADDRESSES", 2),
            Column::numbers("N", 3),
            Column::numbers("BYTES", 4),
        ]);
        let cells = |cells: [&str; 5]| cells.map(String::from).to_vec();
        table.row(cells(["a", "", "127.0.0.1:7007, [::1]:7007", "1", "90 B"]));
        table.row(cells(["grüße", "", "", "1000", "1.5 KiB"]));
        table
    }

    fn lines(width: Option<usize>) -> Vec<String> {
        let rendered = table().render(PLAIN, width);
        rendered.text.lines().map(String::from).collect()
    }

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let all = [
            "NAME   ADDRESSES                      N    BYTES",
            "a      127.0.0.1:7007, [::1]:7007     1     90 B",
            "grüße  -                           1000  1.5 KiB",
        ];
        assert_eq!(lines(None), all);
        assert_eq!(lines(Some(48)), all);
        assert_eq!(table().render(PLAIN, None).left_out, 0);
    }

    #[test]
    fn long_names_are_shortened_before_a_column_is_left_out() {
        let shortened = [
            "NAME   ADDRESSES             N    BYTES",
            "a      127.0.0.1:7007 +1     1     90 B",
            "grüße  -                  1000  1.5 KiB",
        ];
        assert_eq!(lines(Some(39)), shortened);
    }

    #[test]
    fn columns_are_left_out_by_rank_and_counted() {
        let fewer = [
            "NAME   ADDRESSES             N",
            "a      127.0.0.1:7007 +1     1",
            "grüße  -                  1000",
        ];
        assert_eq!(lines(Some(30)), fewer);
        assert_eq!(table().render(PLAIN, Some(30)).left_out, 1);
        assert_eq!(lines(Some(1)), ["NAME", "a", "grüße"]);
        assert_eq!(table().render(PLAIN, Some(1)).left_out, 3);
    }

    #[test]
    fn no_line_is_longer_than_the_width() {
        for width in 5..60 {
            for line in lines(Some(width)) {
                assert!(line.width() <= width, "{width}: {line:?}");
            }
        }
    }

    /// "0.0.0.0:7, [:…" stood for three addresses.
    #[test]
    fn a_list_is_cut_between_its_items_and_the_rest_counted() {
        let list = "0.0.0.0:7, [::]:7, 192.0.2.1:7";
        assert_eq!(shortened_list(list, 30), list);
        assert_eq!(shortened_list(list, 29), "0.0.0.0:7, [::]:7 +1");
        assert_eq!(shortened_list(list, 20), "0.0.0.0:7, [::]:7 +1");
        assert_eq!(shortened_list(list, 19), "0.0.0.0:7 +2");
        assert_eq!(shortened_list(list, 10), "0.0.0.… +2");
        assert_eq!(shortened_list("/run/echod/a.sock", 9), "/run/ech…");
    }

    /// The terminal broke them anywhere.
    #[test]
    fn a_long_line_is_broken_at_its_blanks_and_indented() {
        let text = "echod.toml:3:1: foo: unknown key: write one of these";
        assert_eq!(folded(text, 80), text);
        assert_eq!(
            folded(text, 25),
            "echod.toml:3:1: foo:\n  unknown key: write one\n  of these"
        );
        assert_eq!(folded("", 9), "");
        assert_eq!(
            folded("a/path/of/some/length is kept", 10),
            "a/path/of/some/length\n  is kept"
        );
    }

    #[test]
    fn characters_of_double_width_are_counted_as_such() {
        assert_eq!(shortened("日本語", 6), "日本語");
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("日本語", 4), "日…");
    }
}
