//! Why a command did not work: what a refusal of the daemon means in words, with which status it ends
//! the program, and how a program reads it.
//!
//! Knows the errors of the protocol, and of a call no more than its method.

use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::text;
use crate::protocol;
use crate::protocol::Role;
use crate::protocol::wire::Parameters;

use super::client;

/// A failure, and the error that it came from.
#[derive(Debug)]
pub(super) struct Complaint {
    /// For people; without a message where everything is reported already.
    pub(super) failure: Failure,
    /// For programs: the daemon's error; none where it did not come from the daemon.
    error: Option<Box<DaemonError>>,
}

/// Its name and its parameters.
type DaemonError = (String, Parameters);

impl Complaint {
    /// What `--json` prints of it: the error's parameters, as of any reply, its name and what people
    /// would read. None where everything is reported already.
    pub(super) fn json(&self) -> Option<Value> {
        let Failure { exit, messages } = &self.failure;
        if messages.is_empty() {
            return None;
        }
        let own = || (own_name(*exit).to_owned(), Parameters::new());
        let (name, parameters) = self.error.as_deref().cloned().unwrap_or_else(own);
        let mut object = Parameters::new();
        object.insert("error".into(), name.into());
        object.extend(parameters);
        object.insert("messages".into(), json!(messages));
        object.insert("exit_status".into(), json!(*exit as u8));
        Some(Value::Object(object))
    }
}

/// What an error is called that is not the daemon's.
fn own_name(exit: Exit) -> &'static str {
    match exit {
        Exit::Usage => "echoctl.Usage",
        Exit::NotRunning => "echoctl.NotRunning",
        Exit::TimedOut => "echoctl.TimedOut",
        Exit::NotPermitted => "echoctl.NotPermitted",
        Exit::Configuration => "echoctl.ConfigRejected",
        Exit::Done | Exit::Failed | Exit::Unreached => "echoctl.Failed",
    }
}

impl From<Failure> for Complaint {
    fn from(failure: Failure) -> Self {
        Self {
            failure,
            error: None,
        }
    }
}

impl From<client::Error> for Complaint {
    fn from(error: client::Error) -> Self {
        use client::Error;
        let exit = match &error {
            Error::NotRunning { .. } => Exit::NotRunning,
            Error::NotPermitted { .. } => Exit::NotPermitted,
            Error::TimedOut { .. } => Exit::TimedOut,
            Error::Broken { .. } => Exit::Failed,
            Error::Refused {
                method,
                name,
                parameters,
            } => return refusal(method, name, parameters),
        };
        Failure::with(exit, text::escape(&error.to_string())).into()
    }
}

/// An error reply to this method in words.
pub(super) fn refusal(method: &str, name: &str, parameters: &Parameters) -> Complaint {
    let exit = match name {
        protocol::PERMISSION_DENIED => Exit::NotPermitted,
        protocol::CONFIG_REJECTED => Exit::Configuration,
        _ => Exit::Failed,
    };
    let parameter = |key| parameters.get(key).map_or(String::new(), Value::to_string);
    let named = |key| parameters.get(key).and_then(Value::as_str);
    // The protocol names what is wrong; a person also needs to know what to do about it.
    let message = match name {
        protocol::PERMISSION_DENIED => denied(method),
        protocol::LISTENER_NOT_FOUND => {
            format!("listener {}: there is none of this name", parameter("name"))
        }
        protocol::UPGRADE_REFUSED => format!("no successor: {}", named("reason").unwrap_or("?")),
        protocol::RELOAD_REFUSED => format!("no reload: {}", named("reason").unwrap_or("?")),
        protocol::NOTHING_TO_CONFIRM => {
            "nothing to confirm: no reload with --confirm waits for it".to_owned()
        }
        protocol::NOTHING_TO_ROLL_BACK => {
            "nothing to roll back to: no reload has changed anything since the start or the last \
             rollback"
                .to_owned()
        }
        protocol::CONFIG_REJECTED => "configuration rejected".to_owned(),
        protocol::REQUEST_TOO_LARGE => format!(
            "the request is too large: echod takes {} bytes at most",
            parameter("bytes_max")
        ),
        protocol::INVALID_BACKLOG => format!(
            "backlog {}: not possible: give a number from 1 to 2147483647",
            parameter("backlog")
        ),
        protocol::NOTHING_TO_HOLD => format!(
            "listener {}: datagrams can't be held: they have no backlog; pause it without --hold",
            parameter("listener")
        ),
        protocol::INVALID_DEADLINE => format!(
            "deadline of {} ms: not possible: give 0 to 86400000000, which are 1000 days",
            parameter("deadline_ms")
        ),
        // What the command line takes, this echoctl has checked.
        protocol::INVALID_PARAMETER => format!(
            "{}: missing, unknown to this echod, or not what it should be",
            named("parameter").unwrap_or_default()
        ),
        protocol::METHOD_NOT_FOUND => {
            format!("{}: this echod has no such method", parameter("method"))
        }
        _ => format!("{name} {}", Value::Object(parameters.clone())),
    };
    Complaint {
        failure: Failure::with(exit, text::escape(&message)),
        error: Some(Box::new((name.to_owned(), parameters.clone()))),
    }
}

/// The role that the method takes, and how to get it.
fn denied(method: &str) -> String {
    let user = nix::unistd::geteuid();
    let short = method.rsplit('.').next().unwrap_or(method);
    let key = match protocol::methods::find(method).map(|method| method.role) {
        Some(Role::Admin) => "admins",
        Some(Role::Operator) => "operators",
        Some(Role::Reader) | None => {
            return format!("permission denied: you are uid {user}, who may not call {short}");
        }
    };
    format!(
        "permission denied: you are uid {user}, and {short} is for {key}: ask as root, or have [control] {key} \
         name your user, or a group of yours as \"@group\", and the daemon reloaded"
    )
}

/// A configuration that the daemon has rejected: all that is wrong with it, as `messages` say.
pub(super) fn rejected(messages: Vec<String>, parameters: Parameters) -> Complaint {
    Complaint {
        failure: Failure::configuration(messages),
        error: Some(Box::new((protocol::CONFIG_REJECTED.to_owned(), parameters))),
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
