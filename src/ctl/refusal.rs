//! What a refusal of the daemon means in words, and with which status it ends the program.
//!
//! Knows the errors of the protocol; never which call was refused.

use serde_json::Value;

use crate::cli::exit::{Exit, Failure};
use crate::cli::text;
use crate::protocol;
use crate::protocol::wire::Parameters;

use super::client;

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        use client::Error;
        let exit = match &error {
            Error::NotRunning { .. } => Exit::NotRunning,
            Error::NotPermitted { .. } => Exit::NotPermitted,
            Error::TimedOut { .. } => Exit::TimedOut,
            Error::Broken { .. } => Exit::Failed,
            Error::Refused { name, parameters } => return refusal(name, parameters),
        };
        Self::with(exit, text::escape(&error.to_string()))
    }
}

/// An error reply in words.
pub(super) fn refusal(name: &str, parameters: &Parameters) -> Failure {
    let exit = match name {
        protocol::PERMISSION_DENIED => Exit::NotPermitted,
        protocol::CONFIG_REJECTED => Exit::Configuration,
        _ => Exit::Failed,
    };
    let parameter = |key| parameters.get(key).map_or(String::new(), Value::to_string);
    let named = |key| parameters.get(key).and_then(Value::as_str);
    // The protocol names what is wrong; a person also needs to know what to do about it.
    let message = match name {
        protocol::PERMISSION_DENIED => format!(
            "permission denied: you are uid {}; only root and the daemon's own user may change the daemon itself",
            nix::unistd::geteuid()
        ),
        protocol::LISTENER_NOT_FOUND => {
            format!("listener {}: there is none of this name", parameter("name"))
        }
        protocol::UPGRADE_REFUSED => format!("no successor: {}", named("reason").unwrap_or("?")),
        protocol::RELOAD_REFUSED => format!("no reload: {}", named("reason").unwrap_or("?")),
        protocol::CONFIG_REJECTED => "configuration rejected".to_owned(),
        protocol::REQUEST_TOO_LARGE => format!(
            "the request is too large: echod takes {} bytes at most",
            parameter("bytes_max")
        ),
        protocol::INVALID_BACKLOG => format!(
            "backlog {}: not possible: give a number from 1 to 2147483647",
            parameter("backlog")
        ),
        protocol::INVALID_PARAMETER => invalid_parameter(named("parameter").unwrap_or_default()),
        protocol::METHOD_NOT_FOUND => {
            format!("{}: this echod has no such method", parameter("method"))
        }
        _ => format!("{name} {}", Value::Object(parameters.clone())),
    };
    Failure::with(exit, text::escape(&message))
}

/// What a parameter should be that the daemon did not accept.
fn invalid_parameter(key: &str) -> String {
    match key {
        "sort" => {
            let names = protocol::SortKey::ALL.map(protocol::SortKey::name);
            format!("sort: not a key: use one of {}", names.join(", "))
        }
        "level" => "level: not one: use off, error, warn, info, debug or trace".to_owned(),
        "address" => "address: not one: write 192.0.2.1 or 192.0.2.0/24".to_owned(),
        key => format!("{key}: missing, unknown, or not what it should be"),
    }
}

/// Whether this is the parameter that an error complains about.
pub(super) fn is_parameter(parameters: &Parameters, name: &str) -> bool {
    parameters.get("parameter").and_then(Value::as_str) == Some(name)
}

pub(super) fn no_backlog(listener: &str) -> Failure {
    let message = format!("listener {listener:?}: datagrams have no backlog");
    Failure::new(text::escape(&message))
}
