//! What happens to each item of the queue: a line is written, and lines that were lost are reported
//! as soon as the output takes lines again.
//!
//! Knows nothing of threads and of what the output is.

use std::io;

use super::line::Line;
use super::queue::Item;

/// Takes lines, one at a time. May wait for as long as it likes.
pub(super) trait Write {
    /// # Errors
    /// When the line is lost.
    fn write(&mut self, line: &Line) -> io::Result<()>;
}

/// See the module.
pub(super) struct Writer<O> {
    output: O,
    /// Lines lost and not yet reported.
    lost: u64,
}

impl<O: Write> Writer<O> {
    pub(super) fn new(output: O) -> Self {
        Self { output, lost: 0 }
    }

    /// Writes an item, or counts it.
    pub(super) fn write(&mut self, item: Item<Line>) {
        match item {
            Item::Lost(count) => {
                self.lost += count;
                self.report_lost();
            }
            Item::Line(line) => {
                if !self.report_lost() || self.output.write(&line).is_err() {
                    self.lost += 1;
                }
            }
        }
    }

    /// Says whether the output takes lines.
    fn report_lost(&mut self) -> bool {
        if self.lost > 0 {
            if self.output.write(&Line::lost(self.lost)).is_err() {
                return false;
            }
            self.lost = 0;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that fails while this is set.
    #[derive(Default)]
    struct Output {
        is_failing: bool,
        written: Vec<String>,
    }

    impl Write for Output {
        fn write(&mut self, line: &Line) -> io::Result<()> {
            if self.is_failing {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.written.push(line.text().to_owned());
            Ok(())
        }
    }

    fn line(text: &str) -> Item<Line> {
        Item::Line(Line::of(
            &log::Record::builder().args(format_args!("{text}")).build(),
        ))
    }

    #[test]
    fn lost_lines_are_reported_in_their_place() {
        let mut writer = Writer::new(Output::default());
        for item in [line("one"), Item::Lost(1), line("two"), Item::Lost(12)] {
            writer.write(item);
        }
        assert_eq!(
            writer.output.written,
            [
                "one",
                "1 line of the log is lost: the output did not take it in time",
                "two",
                "12 lines of the log are lost: the output did not take them in time",
            ]
        );
    }

    #[test]
    fn lines_that_fail_are_reported_once_the_output_works_again() {
        let mut writer = Writer::new(Output::default());
        writer.output.is_failing = true;
        for item in [line("one"), Item::Lost(5), line("two")] {
            writer.write(item);
        }
        assert!(writer.output.written.is_empty());
        writer.output.is_failing = false;
        writer.write(line("three"));
        writer.write(line("four"));
        assert_eq!(
            writer.output.written,
            [
                "7 lines of the log are lost: the output did not take them in time",
                "three",
                "four"
            ]
        );
    }
}
