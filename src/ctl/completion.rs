//! What a shell offers while a command line is typed: echoctl completes its own, and asks the daemon
//! which listeners there are; the other programs have scripts that know their options.
//!
//! While a completion is asked for nothing is reported: what is not known is not offered.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::CommandFactory;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use crate::protocol::schema::{self, ListListenersReply};
use crate::protocol::{self};

use super::client::Client;
use super::location;

/// A shell waits while the daemon is asked.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The variable with which a shell asks; its value is the shell's name.
const VARIABLE: &str = "COMPLETE";

/// Answers a shell, if that is what this process was started for.
pub(super) fn answer<C: CommandFactory>() -> bool {
    let directory = std::env::current_dir().ok();
    let environment = CompleteEnv::with_factory(C::command).var(VARIABLE);
    let answered = environment.try_complete(std::env::args_os(), directory.as_deref());
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

/// The listeners of the running daemon; none where it can't be asked.
pub(super) fn listeners() -> Vec<CompletionCandidate> {
    let location = location::of_this_process(typed_socket(std::env::args_os()));
    let named = |listener: schema::Listener| {
        CompletionCandidate::new(listener.name).help(Some(listener.addresses.join(", ").into()))
    };
    let listeners = ask(&location.path).unwrap_or_default().into_iter();
    listeners.map(named).collect()
}

fn ask(socket: &std::path::Path) -> Option<Vec<schema::Listener>> {
    let mut client = Client::connect(socket, TIMEOUT).ok()?;
    let method = format!("{}.ListListeners", protocol::INTERFACE);
    let reply = client
        .call(&method, protocol::wire::Parameters::new())
        .ok()?;
    let reply: ListListenersReply = serde_json::from_value(reply.into()).ok()?;
    Some(reply.listeners)
}

/// The socket that the command line names which is being completed.
fn typed_socket(words: impl Iterator<Item = OsString>) -> Option<PathBuf> {
    let mut words = words.skip_while(|word| word != "--").skip(1);
    while let Some(word) = words.next() {
        if word == "--socket" {
            return words.next().map(PathBuf::from);
        }
        if let Some(path) = word
            .to_str()
            .and_then(|word| word.strip_prefix("--socket="))
        {
            return Some(path.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_the_line_that_is_typed_is_asked() {
        let typed = |line: &str| typed_socket(line.split(' ').map(OsString::from));
        let expected = Some(PathBuf::from("a.sock"));
        assert_eq!(typed("echoctl -- echoctl --socket a.sock kick m"), expected);
        assert_eq!(typed("echoctl -- echoctl kick --socket=a.sock m"), expected);
        assert_eq!(typed("echoctl -- echoctl kick m"), None);
        assert_eq!(typed("echoctl -- echoctl --socket"), None);
    }
}
