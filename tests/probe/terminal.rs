//! A terminal with echoprobe on it, a keyboard and a screen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;

use super::patiently;
use crate::harness::{ECHOPROBE, PATIENCE, eventually};

/// Keys.
pub(crate) const CONTROL_C: &str = "\x03";
pub(crate) const CONTROL_D: &str = "\x04";

/// A pseudo-terminal: its keyboard, what is on its screen, and the side that programs have.
pub(crate) struct Screen {
    keyboard: File,
    shown: Arc<Mutex<Vec<u8>>>,
    line: OwnedFd,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let size = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let keyboard = File::from(pty.master);
        let mut output = keyboard.try_clone().expect("a descriptor");
        let shown = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&shown);
        // It ends when the other side is closed.
        thread::spawn(move || {
            let mut memory = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut memory) {
                seen.lock().expect("a screen").extend(&memory[..len]);
            }
        });
        Self {
            keyboard,
            shown,
            line: pty.slave,
        }
    }

    /// The side that a program has.
    pub(crate) fn line(&self) -> Stdio {
        Stdio::from(self.line.try_clone().expect("a descriptor"))
    }

    /// All that was ever shown.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("a screen")).into_owned()
    }

    fn mode(&self) -> Termios {
        tcgetattr(&self.line).expect("its mode")
    }
}

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
        let child = Command::new("setsid")
            .args(["--ctty", ECHOPROBE])
            .args(patiently(arguments))
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .stdin(screen.line())
            .stdout(screen.line())
            .stderr(screen.line())
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
        let typed = self.screen.keyboard.write_all(keys.as_bytes());
        typed.expect("typed");
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

    /// Waits for the prompt.
    pub(crate) fn read_to_prompt(&mut self) {
        self.read_to("> ");
    }

    /// Waits for the prompt, and types this.
    pub(crate) fn answer_prompt(&mut self, keys: &str) {
        self.read_to_prompt();
        self.type_in(keys);
    }

    /// Sends the program a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("it runs");
    }

    /// Waits for the end of the program, and sees that the terminal is as it was.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("echoprobe ends", || {
            status = self.child.try_wait().expect("a child of ours");
            status.is_some()
        });
        let mode = self.screen.mode();
        assert_eq!(mode, self.mode_before, "the terminal is as it was");
        status.expect("it has ended")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
