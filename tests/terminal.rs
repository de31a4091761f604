//! A terminal with a program on it: a keyboard and a screen.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{Termios, tcgetattr};

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
    /// Of 80 columns and 24 rows, as terminals are by default.
    pub(crate) fn new() -> Self {
        Self::of_size(80, 24)
    }

    pub(crate) fn of_size(columns: u16, rows: u16) -> Self {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
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

    /// A program whose terminal this is, so that ^C reaches it where that is a signal; these tests may
    /// have been started with the signal ignored.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "env", "--default-signal", program])
            .env("TERM", "xterm")
            .env("NO_COLOR", "1")
            .stdin(self.line())
            .stdout(self.line())
            .stderr(self.line());
        command
    }

    pub(crate) fn type_in(&self, keys: &str) {
        (&self.keyboard).write_all(keys.as_bytes()).expect("typed");
    }

    /// All that was ever shown.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().expect("a screen")).into_owned()
    }

    pub(crate) fn mode(&self) -> Termios {
        tcgetattr(&self.line).expect("its mode")
    }
}
