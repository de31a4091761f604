//! The control protocol: what may be asked, and what the answer is.
//!
//! Knows requests and replies. Never does anything: [`handle`] answers a request from a [`View`] of
//! the daemon, refuses it, or returns an [`Effect`] with its values checked, which `daemon::calls`
//! carries out. Read on in `io.echod.Control.varlink` for the protocol as clients see it, in
//! [`methods`] for the table of methods, in [`schema`] for its types, in [`peers`] for how peers are
//! chosen, and in [`wire`] for the bytes.
//!
//! To add a method: the interface text, its types in `schema`, its row and handler in `methods`; if
//! it changes something, a variant in `effects` and its arm in `daemon::calls`.

#![forbid(unsafe_code)]

mod diagnostic;
pub(crate) mod effects;
pub(crate) mod methods;
pub(crate) mod peers;
mod reload_result;
pub(crate) mod schema;
pub(crate) mod wire;

use serde::Serialize;
use serde_json::json;

pub(crate) use effects::Effect;
pub use methods::METHODS;
pub(crate) use peers::{PeerQuery, SortKey};
use schema::{Listener, ReloadOutcome, ReloadResult};
use wire::{Parameters, Reply, Request};

/// The name of our interface.
pub(crate) const INTERFACE: &str = "io.echod.Control";

/// The text of our interface.
pub(crate) const INTERFACE_TEXT: &str = include_str!("io.echod.Control.varlink");

/// The name of the interface that every Varlink service has.
pub(crate) const SERVICE: &str = "org.varlink.service";

/// The text of that interface.
pub(crate) const SERVICE_TEXT: &str = include_str!("org.varlink.service.varlink");

/// The error of a caller that may connect, but not call this method.
pub(crate) const PERMISSION_DENIED: &str = "org.varlink.service.PermissionDenied";

/// The error of a configuration that has errors; its parameters are a [`schema::ReloadReply`].
pub(crate) const CONFIG_REJECTED: &str = "io.echod.Control.ConfigRejected";

/// The error of a name that no listener has.
pub(crate) const LISTENER_NOT_FOUND: &str = "io.echod.Control.ListenerNotFound";

/// The error of a number that is no backlog.
pub(crate) const INVALID_BACKLOG: &str = "io.echod.Control.InvalidBacklog";

/// The error of a listener of datagrams that is to hold its clients.
pub(crate) const NOTHING_TO_HOLD: &str = "io.echod.Control.NothingToHold";

/// The error of a number that is no deadline.
pub(crate) const INVALID_DEADLINE: &str = "io.echod.Control.InvalidDeadline";

/// The error of an upgrade that does not take place.
pub(crate) const UPGRADE_REFUSED: &str = "io.echod.Control.UpgradeRefused";

/// The error of a reload that is not begun, since the daemon is stopping or hands over.
pub(crate) const RELOAD_REFUSED: &str = "io.echod.Control.ReloadRefused";

/// The error of a confirmation that no reload waits for.
pub(crate) const NOTHING_TO_CONFIRM: &str = "io.echod.Control.NothingToConfirm";

/// The error of a rollback where there is no previous configuration.
pub(crate) const NOTHING_TO_ROLL_BACK: &str = "io.echod.Control.NothingToRollBack";

/// The error of a request that is too long to be read.
pub(crate) const REQUEST_TOO_LARGE: &str = "io.echod.Control.RequestTooLarge";

/// The error of a parameter that is missing, unknown or invalid.
pub(crate) const INVALID_PARAMETER: &str = "org.varlink.service.InvalidParameter";

/// The error of a method that does not exist.
pub(crate) const METHOD_NOT_FOUND: &str = "org.varlink.service.MethodNotFound";

const INTERFACE_NOT_FOUND: &str = "org.varlink.service.InterfaceNotFound";

/// What a caller has to be for a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Every user that can connect: may look.
    Reader,
    /// May change listeners and peers: `[control] operators`.
    Operator,
    /// May also change the daemon: root, the daemon's own user, and `[control] admins`.
    Admin,
}

/// The daemon as it is at the moment of a request. A handler asks for what it returns and nothing
/// else: some of it takes system calls for each socket.
pub(crate) trait View {
    /// What `ListListeners` returns.
    fn listeners(&self) -> Vec<Listener>;

    /// One of them; none if no listener has this name.
    fn listener(&self, name: &str) -> Option<Listener>;

    /// Whether a listener has this name, or one that is removed and still has connections.
    fn has_listener(&self, name: &str) -> bool;

    /// Whether the listener has a backlog; none if no listener has this name.
    fn has_backlog(&self, name: &str) -> Option<bool>;

    /// What `GetConfig` returns, TOML.
    fn config(&self) -> String;
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This is the answer: the values, or the error.
    Reply(Reply),
    /// The caller has too small a role; the answer is [`permission_denied`].
    Denied,
    /// The daemon has to do something, and answers then.
    Effect(Effect),
}

/// Answers a request of a caller with this role, refuses it, or says what is to be done.
#[must_use]
pub(crate) fn handle(request: &Request, role: Role, view: &dyn View) -> Outcome {
    let Some(method) = methods::find(&request.method) else {
        return Outcome::Reply(*not_found(&request.method));
    };
    if role < method.role {
        return Outcome::Denied;
    }
    if request.upgrade {
        return Outcome::Reply(*invalid("upgrade"));
    }
    let outcome = (method.handler)(request, view);
    outcome.unwrap_or_else(|refusal| Outcome::Reply(*refusal))
}

/// An error reply that a handler ends with.
type Refusal = Box<Reply>;

fn not_found(method: &str) -> Refusal {
    match method.rsplit_once('.') {
        Some((INTERFACE | SERVICE, _)) => refused(METHOD_NOT_FOUND, &json!({ "method": method })),
        Some((interface, _)) => interface_not_found(interface),
        None => invalid("method"),
    }
}

fn interface_not_found(interface: &str) -> Refusal {
    refused(INTERFACE_NOT_FOUND, &json!({ "interface": interface }))
}

fn invalid(parameter: &str) -> Refusal {
    refused(INVALID_PARAMETER, &json!({ "parameter": parameter }))
}

fn refused(name: &str, values: &impl Serialize) -> Refusal {
    Box::new(Reply::error(name, schema::parameters(values)))
}

/// The answer to an effect that was carried out.
#[must_use]
pub(crate) fn reply(values: &impl Serialize) -> Reply {
    Reply::done(schema::parameters(values))
}

/// One page of a list of peers; another one follows if it `continues`.
#[must_use]
pub(crate) fn page(page: &schema::ListPeersReply, continues: bool) -> Reply {
    Reply {
        continues,
        ..reply(page)
    }
}

/// One of several answers to one call: others follow.
#[must_use]
pub(crate) fn continued(values: &impl Serialize) -> Reply {
    Reply {
        continues: true,
        ..reply(values)
    }
}

/// The answer to a caller with too small a role.
#[must_use]
pub(crate) fn permission_denied() -> Reply {
    Reply::error(PERMISSION_DENIED, Parameters::new())
}

/// The answer to a request that is too long to be read.
#[must_use]
pub(crate) fn request_too_large() -> Reply {
    let bytes_max = wire::REQUEST_BYTES_MAX as u64;
    *refused(REQUEST_TOO_LARGE, &schema::RequestTooLarge { bytes_max })
}

/// The answer to a reload, or a dry run of one: a configuration with errors is an error.
#[must_use]
pub(crate) fn reloaded(result: ReloadResult) -> Reply {
    let rejected = result.outcome == ReloadOutcome::Rejected;
    let values = schema::ReloadReply { result };
    if rejected {
        *refused(CONFIG_REJECTED, &values)
    } else {
        reply(&values)
    }
}

/// The answer to a reload that does not take place.
#[must_use]
pub(crate) fn reload_refused(reason: String) -> Reply {
    *refused(RELOAD_REFUSED, &schema::ReloadRefused { reason })
}

/// The answer to a confirmation that no reload waits for.
#[must_use]
pub(crate) fn nothing_to_confirm() -> Reply {
    Reply::error(NOTHING_TO_CONFIRM, Parameters::new())
}

/// The answer to a rollback where there is no previous configuration.
#[must_use]
pub(crate) fn nothing_to_roll_back() -> Reply {
    Reply::error(NOTHING_TO_ROLL_BACK, Parameters::new())
}

/// The answer to an upgrade, given by the successor.
#[must_use]
pub(crate) fn upgraded(result: schema::UpgradeResult) -> Reply {
    reply(&schema::UpgradeReply { result })
}

/// The answer to an upgrade that does not take place.
#[must_use]
pub(crate) fn upgrade_refused(reason: String) -> Reply {
    *refused(UPGRADE_REFUSED, &schema::UpgradeRefused { reason })
}

#[cfg(test)]
mod tests;
