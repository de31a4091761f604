//! Completion as people have it: in the real shells, on a terminal, with a running daemon.
//!
//! A key is pressed in the middle of a word, and the line is then run: what the daemon answers shows
//! what the shell has made of it.

use std::path::Path;
use std::process::{Child, Command};
use std::thread;

use crate::harness::{Daemon, ECHOCTL, eventually, not_tested};
use crate::terminal::Screen;

/// A shell, how it starts without the settings of its user, and how it takes the script.
struct Kind {
    name: &'static str,
    arguments: &'static [&'static str],
    load: &'static str,
}

const BASH: Kind = Kind {
    name: "bash",
    arguments: &["--noprofile", "--norc", "-i"],
    load: "source <(echoctl completions bash)",
};

const ZSH: Kind = Kind {
    name: "zsh",
    arguments: &["-f", "-i"],
    load: "autoload -U compinit; compinit -u -D; source <(echoctl completions zsh)",
};

const FISH: Kind = Kind {
    name: "fish",
    arguments: &["--no-config", "-i"],
    load: "echoctl completions fish | source",
};

/// A shell on a terminal, of which all output is kept.
struct Shell {
    child: Child,
    screen: Screen,
}

impl Shell {
    /// None where there is no such shell, which is reported.
    fn start(kind: &Kind, daemon: &Daemon) -> Option<Self> {
        let found = Command::new(kind.name).arg("--version").output();
        if found.is_err() {
            not_tested(format!("this machine has no {}", kind.name));
            return None;
        }
        let screen = Screen::of_size(200, 50);
        let programs = Path::new(ECHOCTL).parent().expect("a folder");
        let path = std::env::var("PATH").unwrap_or_default();
        let child = screen
            .command(kind.name)
            .args(kind.arguments)
            .current_dir(daemon.folder.path())
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("HOME", daemon.folder.path())
            .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
            .env("LC_ALL", "C.UTF-8")
            .spawn()
            .expect("it runs");
        Some(Self { child, screen })
    }

    /// Presses these keys, and waits for what comes of them.
    fn type_line(&self, keys: &str, expected: &str) {
        let before = self.screen.text().len();
        self.screen.type_in(keys);
        let shown = || self.screen.text()[before..].contains(expected);
        eventually(&format!("{expected:?} after {keys:?}"), shown);
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- on the screen ---\n{}", self.screen.text());
        }
    }
}

fn completes(kind: &Kind) {
    let daemon = Daemon::start(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n\
         [listener.other]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n",
    );
    let Some(shell) = Shell::start(kind, &daemon) else {
        return;
    };
    // What is typed is on the screen as well, in which this sum is not.
    let load = format!("{}; echo loaded-$(expr 40 + 2)\r", kind.load);
    let load = match kind.name {
        "fish" => load.replace("$(", "("),
        _ => load,
    };
    shell.type_line(&load, "loaded-42");
    // Of the running daemon.
    shell.type_line("echoctl backlog mai\t\r", "main: backlog 1024 requested");
    shell.type_line("echoctl listeners oth\t\r", "other, tcp, listening");
    shell.type_line("echoctl peers --listener oth\t\r", "0 peers");
    shell.type_line("echoctl kick mai\t --dry-run\r", "no connection matches");
    shell.type_line("echoctl pause mai\t --ho\t\r", "main: listening → holding");
    shell.type_line("echoctl drain mai\t\r", "no connection is left");
    shell.type_line("echoctl resume mai\t\r", "main: draining → listening");
    // Of the daemon that the line names; elsewhere there is none.
    if kind.name != "fish" {
        shell.type_line("export ECHOCTL_SOCKET=/nowhere\r", "");
        shell.type_line(
            "echoctl --socket=control.sock backlog mai\t\r",
            "main: backlog 1024 requested",
        );
        shell.type_line(
            "echoctl --socket ~/'control.sock' listeners oth\t\r",
            "other, tcp, listening",
        );
        shell.type_line("export ECHOCTL_SOCKET=$PWD/control.sock\r", "");
    }
    // Words that are known.
    shell.type_line("echoctl log-l\t deb\t\r", "info → debug");
    shell.type_line("echoctl peers --sort rec\t --lim\t 7\r", "0 peers");
    // Files.
    shell.type_line("echoctl check ./echod.t\t\r", "fine; 2 listeners");
}

#[test]
fn bash_completes_listeners_keys_levels_and_files() {
    completes(&BASH);
}

#[test]
fn zsh_completes_listeners_keys_levels_and_files() {
    completes(&ZSH);
}

#[test]
fn fish_completes_listeners_keys_levels_and_files() {
    completes(&FISH);
}
