//! echoprobe on a terminal.

use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::termios::Termios;

use super::patiently;
use crate::harness::{ECHOPROBE, PATIENCE};
use crate::terminal::Screen;

/// echoprobe on a terminal of its own.
pub(crate) struct Terminal {
    child: Child,
    screen: Screen,
    /// How much of the screen has been read.
    read: usize,
    mode_before: Termios,
}

impl Terminal {
    /// Starts it, so that ^C reaches it where that is a signal.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let screen = Screen::new();
        let mode_before = screen.mode();
        let child = screen
            .command(ECHOPROBE)
            .args(patiently(arguments))
            .spawn()
            .expect("setsid(1) runs");
        Self {
            child,
            read: 0,
            mode_before,
            screen,
        }
    }

    pub(crate) fn type_in(&mut self, keys: &str) {
        self.screen.type_in(keys);
    }

    /// Reads up to the end of this text, which has to come.
    pub(crate) fn read_to(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.screen.text();
            let unread = shown.get(self.read..).expect("whole characters are read");
            if let Some(at) = unread.find(text) {
                self.read += at + text.len();
                return;
            }
            assert!(Instant::now() < deadline, "no {text:?} in {unread:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the prompt, and types this.
    pub(crate) fn answer_prompt(&mut self, keys: &str) {
        self.read_to("> ");
        self.type_in(keys);
    }

    /// Sends the program a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        super::signal(&self.child, signal);
    }

    /// Waits for the end of the program, and sees that the terminal is as it was.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = super::end_of(&mut self.child, "echoprobe ends");
        let (before, after) = (&self.mode_before, &self.screen.mode());
        assert_eq!(before, after, "the terminal is as it was");
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
