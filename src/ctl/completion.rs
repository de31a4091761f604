//! What a shell offers while a command line is typed: echoctl completes its own, and asks the daemon
//! which listeners there are; the other programs have scripts that know their options.
//!
//! While a completion is asked for nothing is reported: what is not known is not offered.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Command, CommandFactory};
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use crate::protocol::schema::{self, ListListenersReply};
use crate::protocol::wire::Parameters;

use super::calls::full_name;
use super::location::{self, Location};

/// A shell waits while the daemon is asked.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The variable with which a shell asks; its value is the shell's name.
const VARIABLE: &str = "COMPLETE";

/// The variable in which bash says which of the words is being completed.
const CURRENT: &str = "_CLAP_COMPLETE_INDEX";

/// Answers a shell, if that is what this process was started for.
pub(super) fn answer<C: CommandFactory>() -> bool {
    let directory = std::env::current_dir().ok();
    let environment = CompleteEnv::with_factory(C::command).var(VARIABLE);
    let answered = environment.try_complete(typed_words(), directory.as_deref());
    // An error message would end up within the line that is being typed.
    answered.unwrap_or(true)
}

/// The script that has a shell ask echoctl.
pub(super) fn script(shell: Shell) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    if let Some(shell) = Shells::builtins().completer(&shell.to_string()) {
        shell.write_registration(VARIABLE, "echoctl", "echoctl", "echoctl", &mut script)?;
    }
    Ok(script)
}

/// The script of a program that is not asked. What its help hides is not offered either.
pub(super) fn script_of(command: &Command, program: &str, shell: Shell) -> Vec<u8> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut offered = Command::new("program")
        .version(env!("CARGO_PKG_VERSION"))
        .args(shown.cloned())
        .subcommands(command.get_subcommands().cloned());
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut offered, program, &mut script);
    script
}

/// The listeners of the running daemon; none where it can't be asked. A name that looks like an option
/// can't be typed as an argument.
pub(super) fn listeners() -> Vec<CompletionCandidate> {
    let home = std::env::home_dir().unwrap_or_default();
    let socket = typed_socket(typed_words().into_iter(), &home);
    let location = location::of_this_process(socket);
    let named = |listener: schema::Listener| {
        CompletionCandidate::new(listener.name).help(Some(listener.addresses.join(", ").into()))
    };
    let listeners = ask(&location).unwrap_or_default().into_iter();
    let offered = listeners.filter(|listener| !listener.name.starts_with('-'));
    offered.map(named).collect()
}

fn ask(location: &Location) -> Option<Vec<schema::Listener>> {
    let mut client = location.connect(TIMEOUT).ok()?;
    let reply = client.call(&full_name("ListListeners"), Parameters::new());
    let reply: ListListenersReply = serde_json::from_value(reply.ok()?.into()).ok()?;
    Some(reply.listeners)
}

/// The words of this process, of which the shell's follow `--`.
fn typed_words() -> Vec<OsString> {
    let current = std::env::var(CURRENT).ok();
    let current = current.and_then(|index| index.parse().ok()).unwrap_or(0);
    joined(std::env::args_os().collect(), current)
}

/// Joins what bash takes apart: `--socket=PATH` are three words for it. Each of them becomes the whole,
/// since bash has counted them; the word that is being completed stays as it is.
fn joined(mut words: Vec<OsString>, current: usize) -> Vec<OsString> {
    let first = words.iter().position(|word| word == "--");
    let first = first.map_or(words.len(), |at| at + 1);
    let end = (first + current).min(words.len());
    for at in first..end.saturating_sub(2) {
        if words[at].as_encoded_bytes().starts_with(b"--") && words[at + 1] == "=" {
            let whole = [words[at].as_os_str(), "=".as_ref(), &words[at + 2]];
            let whole: OsString = whole.into_iter().collect();
            words[at..at + 3].fill(whole);
        }
    }
    words
}

/// The socket that the command line names which is being completed.
fn typed_socket(words: impl Iterator<Item = OsString>, home: &Path) -> Option<PathBuf> {
    let mut words = words.skip_while(|word| word != "--").skip(1);
    while let Some(word) = words.next() {
        if word == "--socket" {
            let word = words.next()?;
            // Only at the beginning of a word is it the shell's.
            return match word.to_str().and_then(|word| word.strip_prefix("~/")) {
                Some(rest) => Some(home.join(unquoted(rest.as_ref()))),
                None => Some(unquoted(&word)),
            };
        }
        let path = word
            .to_str()
            .and_then(|word| word.strip_prefix("--socket="));
        if let Some(path) = path {
            return Some(unquoted(path.as_ref()));
        }
    }
    None
}

/// The path that a word means, which bash and zsh pass as it was typed.
fn unquoted(word: &OsStr) -> PathBuf {
    match word.to_str().and_then(shlex::split).as_deref() {
        Some([path]) => path.into(),
        // Without quotes it is several words: fish has removed them.
        _ => word.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &[&str]) -> Vec<OsString> {
        let all = ["echoctl", "--", "echoctl"].iter().chain(line);
        all.map(OsString::from).collect()
    }

    #[test]
    fn the_socket_of_the_line_that_is_typed_is_asked() {
        for (line, expected) in [
            (&["--socket", "a.sock", "kick", "m"][..], Some("a.sock")),
            (&["kick", "--socket=a.sock", "m"], Some("a.sock")),
            (&["kick", "m"], None),
            (&["--socket"], None),
            // As it is typed in bash and zsh, and as fish passes it.
            (&["--socket", "'/a b.sock'", ""], Some("/a b.sock")),
            (&["--socket=/a\\ b.sock", ""], Some("/a b.sock")),
            (&["--socket", "/a b.sock", ""], Some("/a b.sock")),
            (&["--socket", "~/'a b'", ""], Some("/x/a b")),
            (&["--socket", "'~/a'", ""], Some("~/a")),
        ] {
            let found = typed_socket(words(line).into_iter(), Path::new("/x"));
            assert_eq!(found, expected.map(PathBuf::from), "{line:?}");
        }
    }

    /// bash offered no listener after `--socket=PATH`.
    #[test]
    fn what_bash_takes_apart_is_joined_and_counts_as_before() {
        let typed = words(&["--socket", "=", "a", "kick", ""]);
        let whole = "--socket=a";
        let expected = words(&[whole, whole, whole, "kick", ""]);
        assert_eq!(joined(typed.clone(), 5), expected);
        // The path itself is being completed.
        assert_eq!(joined(typed.clone(), 3), typed);
        assert_eq!(joined(typed.clone(), 0), typed);
    }

    #[test]
    fn an_option_that_the_help_hides_is_not_offered() {
        let hidden = clap::Arg::new("inner").long("inner-option").hide(true);
        let shown = clap::Arg::new("outer").long("outer-option");
        let command = Command::new("echod").args([hidden, shown]);
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script_of(&command, "echod", shell)).expect("text");
            assert!(script.contains("outer-option"), "{script}");
            assert!(!script.contains("inner-option"), "{script}");
        }
    }
}
