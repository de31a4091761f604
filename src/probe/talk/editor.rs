//! A line editor with a history, in a thread of its own: it waits for keys, and the conversation
//! goes on.
//!
//! While a line is typed the terminal is in raw mode and belongs to the editor. What is to be shown
//! meanwhile is handed to it, and it shows that above the line. A third thread does the handing
//! over, for the editor takes one text at a time and, once the line has ended, none until the next.
//!
//! The editor can be told to stop in one way only: by a SIGINT, for which it has a handler while a
//! line is typed. Should it not hear that, the terminal is put back into its normal mode all the
//! same, and the thread is left to the end of the process.

use std::io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor, ExternalPrinter};

use super::input::{PROMPT, Said};
use crate::cli::exit::Failure;
use crate::cli::terminal;
use crate::probe::interrupt::Interrupt;

/// How long the editor may take to show what it was given, and to begin with a line, before nobody
/// waits for it any more. It takes microseconds.
const EDITOR_TIME_MAX: Duration = Duration::from_millis(500);

/// A text that the editor shows and nobody sees: a line up, a line down.
const NOTHING: &str = "\x1b[A\n";

/// A line editor.
pub(super) struct Editor {
    ask: Sender<()>,
    typed: Receiver<Result<Said, String>>,
    /// Has a byte for each line that was typed.
    bell: PipeReader,
    asides: Sender<Aside>,
    /// The mode of the terminal outside of the editor.
    normal: Termios,
    /// Whether a line is being typed.
    is_asked: bool,
}

/// What the third thread is given.
enum Aside {
    Text(String),
    /// Tell when all before it is shown.
    Flush(Sender<()>),
}

impl Editor {
    /// Starts it; none where the terminal is too simple for one.
    pub(super) fn open() -> Result<Option<Self>, Failure> {
        let trouble = |what: &dyn std::fmt::Display| Failure::new(format!("terminal: {what}"));
        let normal = tcgetattr(io::stdin()).map_err(|error| trouble(&error))?;
        // Pasted lines are lines, each with its answer.
        let config = Config::builder().bracketed_paste(false).build();
        let editor = DefaultEditor::with_config(config);
        let mut editor = editor.map_err(|error| trouble(&error))?;
        // Exists only where lines can be edited.
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        let (bell, ringer) = io::pipe().map_err(|error| trouble(&error))?;
        let (ask, asked) = channel();
        let (answer, typed) = channel();
        let (asides, texts) = channel();
        thread::spawn(move || edit(editor, &asked, &answer, ringer));
        thread::spawn(move || hand_over(printer, &texts));
        Ok(Some(Self {
            ask,
            typed,
            bell,
            asides,
            normal,
            is_asked: false,
        }))
    }

    /// Begins with the next line.
    pub(super) fn ask(&mut self) {
        // If its thread is gone, there will be no answer, and that is told there.
        self.is_asked = self.ask.send(()).is_ok();
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Call it when its descriptor can be read.
    pub(super) fn take(&mut self) -> Result<Option<Said>, Failure> {
        let typed = match self.typed.try_recv() {
            Ok(typed) => typed,
            Err(TryRecvError::Empty) => return Ok(None),
            Err(TryRecvError::Disconnected) => Err("the line editor has ended".into()),
        };
        self.is_asked = false;
        // The bell is rung after the line is handed over.
        let _ = self.bell.read(&mut [0]);
        let trouble = |what| Failure::new(format!("terminal: {what}"));
        typed.map(Some).map_err(trouble)
    }

    pub(super) fn show_aside(&self, text: &str) -> bool {
        self.is_asked && self.asides.send(Aside::Text(text.into())).is_ok()
    }

    pub(super) fn close(&mut self, interrupt: &Interrupt) {
        if !std::mem::take(&mut self.is_asked) || !self.has_begun() {
            return;
        }
        let (flushed, is_flushed) = channel();
        if self.asides.send(Aside::Flush(flushed)).is_ok() {
            // It also ends if the user ends the line in this moment: what is left of the texts comes
            // out with the next line, and there is none.
            let _ = is_flushed.recv_timeout(EDITOR_TIME_MAX);
        }
        if self.typed.try_recv().is_ok() {
            return;
        }
        // Once the end was asked for, a signal that does not find the editor is the end at once.
        if !interrupt.is_requested() {
            let _ = raise(Signal::SIGINT);
            if self.typed.recv_timeout(EDITOR_TIME_MAX).is_ok() {
                return;
            }
        }
        // The thread is left to the end of the process.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.normal);
        let _ = terminal::print(b"\n");
    }

    /// Waits until the editor has either begun with the line that it was asked for, and will not
    /// change the mode of the terminal again, or has ended it; says whether it has begun.
    fn has_begun(&self) -> bool {
        let deadline = Instant::now() + EDITOR_TIME_MAX;
        while self.typed.try_recv().is_err() && Instant::now() < deadline {
            if tcgetattr(io::stdin()).is_ok_and(|mode| mode != self.normal) {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    }
}

/// Edits a line whenever it is asked to.
fn edit(
    mut editor: DefaultEditor,
    asked: &Receiver<()>,
    answer: &Sender<Result<Said, String>>,
    mut ringer: PipeWriter,
) {
    while asked.recv().is_ok() {
        if answer.send(edit_line(&mut editor)).is_err() || ringer.write_all(b"!").is_err() {
            break;
        }
    }
}

fn edit_line(editor: &mut DefaultEditor) -> Result<Said, String> {
    loop {
        return match editor.readline(PROMPT) {
            Ok(line) => {
                // What can't be remembered is still said.
                let _ = editor.add_history_entry(&line);
                Ok(Said::Line(line.into_bytes()))
            }
            Err(ReadlineError::Eof) => Ok(Said::End),
            Err(ReadlineError::Interrupted) => Ok(Said::Interrupt),
            // A key that is no character of UTF-8 costs the line and not the conversation.
            Err(ReadlineError::Io(error)) if error.kind() == ErrorKind::InvalidData => continue,
            Err(error) => Err(error.to_string()),
        };
    }
}

/// Hands texts to the editor, and waits until it has room for each.
fn hand_over(mut printer: impl ExternalPrinter, texts: &Receiver<Aside>) {
    while let Ok(aside) = texts.recv() {
        match aside {
            // Nobody is left to be told if that fails.
            Aside::Text(text) => _ = printer.print(text),
            Aside::Flush(flushed) => {
                // There is room for one: it is taken when the one before is shown.
                for _ in 0..2 {
                    let _ = printer.print(NOTHING.into());
                }
                let _ = flushed.send(());
            }
        }
    }
}
