//! Where lines come from: an editor on a terminal, anything else as it is.
//!
//! Knows what was typed, and never what becomes of it.

use std::io::{self, IsTerminal, Read, Stdin};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::editor::Editor;
use crate::cli::exit::Failure;
use crate::probe::interrupt::Interrupt;
use crate::probe::{Console, route};

/// A line that is longer comes in pieces: a stream does not know the difference, and no datagram is
/// so large.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What stands before each line on a terminal.
pub(super) const PROMPT: &str = "> ";

/// What the user says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// A line, without its end.
    Line(Vec<u8>),
    /// No more.
    End,
    /// To stop at once.
    Interrupt,
}

/// Where lines come from.
pub(super) enum Input {
    Plain(Plain),
    Edited(Editor),
}

impl Input {
    /// Lines are edited where a person types them and sees what they do.
    pub(super) fn open(console: &Console) -> Result<Self, Failure> {
        let talks = console.terminal && !console.json && io::stdin().is_terminal();
        if talks && let Some(editor) = Editor::open()? {
            return Ok(Self::Edited(editor));
        }
        Ok(Self::Plain(Plain {
            stdin: io::stdin(),
            lines: Lines::default(),
            prompt: talks.then_some(*console),
        }))
    }

    /// The next line is wanted.
    pub(super) fn ask(&mut self) -> Result<(), Failure> {
        match self {
            Self::Edited(editor) => editor.ask(),
            Self::Plain(plain) => {
                if let Some(console) = plain.prompt {
                    console.say(PROMPT)?;
                }
            }
        }
        Ok(())
    }

    /// What can be read as soon as there is something to [`Self::take`].
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(plain) => plain.stdin.as_fd(),
            Self::Edited(editor) => editor.fd(),
        }
    }

    /// What has been said since it was asked for; none: nothing yet.
    pub(super) fn take(&mut self) -> Result<Option<Said>, Failure> {
        match self {
            Self::Plain(plain) => plain.take(),
            Self::Edited(editor) => editor.take(),
        }
    }

    /// Shows a text above the line that is being typed. False: none is, so print it yourself.
    pub(super) fn show_aside(&self, text: &str) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Edited(editor) => editor.show_aside(text),
        }
    }

    /// No line is wanted any more, also if one is being typed: leaves the terminal as it was.
    pub(super) fn close(&mut self, interrupt: &Interrupt) {
        match self {
            Self::Plain(_) => {}
            Self::Edited(editor) => editor.close(interrupt),
        }
    }
}

/// Standard input as it is.
pub(super) struct Plain {
    stdin: Stdin,
    lines: Lines,
    /// Where to ask for a line, on a terminal that is too simple for an editor.
    prompt: Option<Console>,
}

impl Plain {
    fn take(&mut self) -> Result<Option<Said>, Failure> {
        loop {
            if let Some(said) = self.lines.next() {
                return Ok(Some(said));
            }
            let trouble = |error| Failure::new(format!("standard input: {error}"));
            let ready = route::wait(self.stdin.as_fd(), false, Duration::ZERO).map_err(trouble)?;
            if !ready.input {
                return Ok(None);
            }
            let mut memory = vec![0; 64 * 1024];
            match self.stdin.lock().read(&mut memory) {
                Ok(len) => self.lines.add(&memory[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(trouble(error)),
            }
        }
    }
}

/// Bytes on their way to be lines.
#[derive(Debug, Default)]
struct Lines {
    bytes: Vec<u8>,
    has_ended: bool,
}

impl Lines {
    /// More bytes, or the end.
    fn add(&mut self, bytes: &[u8]) {
        self.has_ended = bytes.is_empty();
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, or the end; none: more bytes are needed.
    fn next(&mut self) -> Option<Said> {
        let within = &self.bytes[..self.bytes.len().min(LINE_BYTES_MAX)];
        if let Some(end) = within.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
            line.pop();
            return Some(Said::Line(line));
        }
        if within.len() == LINE_BYTES_MAX || (self.has_ended && !within.is_empty()) {
            let piece = self.bytes.drain(..within.len()).collect();
            return Some(Said::Line(piece));
        }
        self.has_ended.then_some(Said::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &[u8]) -> Option<Said> {
        Some(Said::Line(text.into()))
    }

    #[test]
    fn lines_come_whole_however_their_bytes_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.next(), None);
        lines.add(b"one\n\ntw");
        assert_eq!(lines.next(), line(b"one"));
        assert_eq!(lines.next(), line(b""));
        assert_eq!(lines.next(), None);
        lines.add(b"o\xff\r\nlast");
        assert_eq!(lines.next(), line(b"two\xff\r"));
        assert_eq!(lines.next(), None);
        lines.add(b"");
        assert_eq!(lines.next(), line(b"last"));
        assert_eq!(lines.next(), Some(Said::End));
        assert_eq!(lines.next(), Some(Said::End));
    }

    #[test]
    fn what_never_ends_is_cut_into_pieces() {
        let mut lines = Lines::default();
        lines.add(&vec![7; LINE_BYTES_MAX + 3]);
        lines.add(b"\n");
        assert_eq!(lines.next(), line(&vec![7; LINE_BYTES_MAX]));
        assert_eq!(lines.next(), line(&[7; 3]));
        assert_eq!(lines.next(), None);
    }
}
