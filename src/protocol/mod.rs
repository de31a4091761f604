//! The control protocol: what may be asked, and what the answer is.
//!
//! Knows requests, and what the daemon looked like when it took the [`Snapshot`]. Never does
//! anything: a request is answered from the snapshot, refused, or becomes an [`Effect`] that the
//! daemon carries out; everything that can be wrong with a request is found here. Read on in
//! `io.echod.Control.varlink` for the protocol as clients see it, in [`schema`] for its types, in
//! [`peers`] for how peers are chosen, and in [`wire`] for the bytes.
//!
//! To add a method: the interface text, a row of [`METHODS`] and its arm in [`handle`], the types
//! in `schema`; its effect in `daemon::control`, its table in `ctl::show`.

#![forbid(unsafe_code)]

pub mod peers;
pub mod schema;
pub mod wire;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub use peers::{Pages, PeerQuery, SortKey, pages};
use schema::{Listener, ReloadOutcome, ReloadResult, Status};
use wire::{Parameters, Reply, Request};

/// The name of our interface.
pub const INTERFACE: &str = "io.echod.Control";

/// The text of our interface.
pub const INTERFACE_TEXT: &str = include_str!("io.echod.Control.varlink");

/// The name of the interface that every Varlink service has.
pub const SERVICE: &str = "org.varlink.service";

/// The text of that interface.
pub const SERVICE_TEXT: &str = include_str!("org.varlink.service.varlink");

/// The error of a caller who may connect, but not do this.
pub const PERMISSION_DENIED: &str = "org.varlink.service.PermissionDenied";

/// The error of a configuration that has errors; its parameters are a [`schema::ReloadReply`].
pub const CONFIG_REJECTED: &str = "io.echod.Control.ConfigRejected";

/// The error of a name that no listener has.
pub const LISTENER_NOT_FOUND: &str = "io.echod.Control.ListenerNotFound";

/// The error of a number that is no backlog.
pub const INVALID_BACKLOG: &str = "io.echod.Control.InvalidBacklog";

/// The error of an upgrade that will not be.
pub const UPGRADE_REFUSED: &str = "io.echod.Control.UpgradeRefused";

/// The error of a parameter that is missing, unknown, or not what it should be.
pub const INVALID_PARAMETER: &str = "org.varlink.service.InvalidParameter";

/// The error of a method that there is not.
pub const METHOD_NOT_FOUND: &str = "org.varlink.service.MethodNotFound";

const INTERFACE_NOT_FOUND: &str = "org.varlink.service.InterfaceNotFound";

/// The largest backlog that `listen(2)` can be given.
const BACKLOG_MAX: i64 = i32::MAX as i64;

/// What a caller has to be for a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Anybody who can connect: may look.
    Reader,
    /// May change listeners and peers (`[control] operators`).
    Operator,
    /// May change the daemon (`[control] admins`).
    Admin,
}

/// A method that can be called.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its full name.
    pub name: &'static str,
    /// Who may call it.
    pub role: Role,
}

/// Every method, in the order of the interface texts.
pub const METHODS: &[Method] = &[
    method("org.varlink.service.GetInfo", Role::Reader),
    method("org.varlink.service.GetInterfaceDescription", Role::Reader),
    method("io.echod.Control.GetStatus", Role::Reader),
    method("io.echod.Control.ListListeners", Role::Reader),
    method("io.echod.Control.ListPeers", Role::Reader),
    method("io.echod.Control.SetBacklog", Role::Operator),
    method("io.echod.Control.ClosePeers", Role::Operator),
    method("io.echod.Control.Reload", Role::Admin),
    method("io.echod.Control.Upgrade", Role::Admin),
    method("io.echod.Control.HandOver", Role::Admin),
    method("io.echod.Control.GetConfig", Role::Reader),
    method("io.echod.Control.SetLogLevel", Role::Admin),
];

const fn method(name: &'static str, role: Role) -> Method {
    Method { name, role }
}

/// Who may call this method. What is no method anybody may call: the answer is that there is none.
#[must_use]
pub fn role(name: &str) -> Role {
    let known = METHODS.iter().find(|method| method.name == name);
    known.map_or(Role::Reader, |method| method.role)
}

/// The answer to a caller who has too small a role.
#[must_use]
pub fn permission_denied() -> Reply {
    Reply::error(PERMISSION_DENIED, Parameters::new())
}

/// The daemon as it is at the moment of a request.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// What `GetStatus` returns.
    pub status: Status,
    /// What `ListListeners` returns.
    pub listeners: Vec<Listener>,
    /// What `GetConfig` returns, TOML.
    pub config: String,
}

/// What comes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is the answer: the values, or the error.
    Reply(Reply),
    /// The daemon has to do something, and answers then.
    Effect(Effect),
}

/// Something for the daemon to do. Its values are checked: a listener that is named is there, and
/// has a backlog if one is to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Collect the peers; the answer is [`pages`] of what [`PeerQuery::select`] leaves of them.
    ListPeers(PeerQuery),
    /// Close the peers that [`PeerQuery::matches`]; the answer is a [`schema::ClosePeersReply`].
    ClosePeers {
        /// Which.
        query: PeerQuery,
        /// Only count them.
        dry_run: bool,
    },
    /// Give the listener's sockets this backlog; the answer is a [`schema::SetBacklogReply`].
    SetBacklog {
        /// The listener's name.
        listener: String,
        /// From 1 to `i32::MAX`.
        backlog: u32,
    },
    /// Read the configuration and apply it; the answer is [`reloaded`].
    Reload {
        /// Only plan.
        dry_run: bool,
    },
    /// Let the program that is now at our place go on; the answer is [`upgraded`] or
    /// [`upgrade_refused`].
    Upgrade,
    /// Leave everything to the next process; the answer is a [`schema::HandOverReply`] or
    /// [`upgrade_refused`].
    HandOver,
    /// Log this much; the answer is a [`schema::SetLogLevelReply`].
    SetLogLevel {
        /// How much.
        level: log::LevelFilter,
    },
}

/// Answers a request, refuses it, or says what is to be done.
#[must_use]
pub fn handle(request: &Request, snapshot: &Snapshot) -> Outcome {
    answer(request, snapshot).unwrap_or_else(|refusal| Outcome::Reply(*refusal))
}

/// An error reply on its way out.
type Refusal = Box<Reply>;

fn answer(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    if request.upgrade {
        return Err(invalid("upgrade"));
    }
    match request.method.as_str() {
        "org.varlink.service.GetInfo" => get_info(request, snapshot),
        "org.varlink.service.GetInterfaceDescription" => get_interface_description(request),
        "io.echod.Control.GetStatus" => {
            let schema::Nothing {} = read(request)?;
            Ok(replied(&schema::GetStatusReply {
                status: snapshot.status.clone(),
            }))
        }
        "io.echod.Control.ListListeners" => list_listeners(request, snapshot),
        "io.echod.Control.ListPeers" => list_peers(request, snapshot),
        "io.echod.Control.SetBacklog" => set_backlog(request, snapshot),
        "io.echod.Control.ClosePeers" => close_peers(request, snapshot),
        "io.echod.Control.Reload" => {
            let asked: schema::Reload = read(request)?;
            let dry_run = asked.dry_run.unwrap_or(false);
            Ok(Outcome::Effect(Effect::Reload { dry_run }))
        }
        "io.echod.Control.Upgrade" => {
            let schema::Nothing {} = read(request)?;
            Ok(Outcome::Effect(Effect::Upgrade))
        }
        "io.echod.Control.HandOver" => {
            let schema::Nothing {} = read(request)?;
            Ok(Outcome::Effect(Effect::HandOver))
        }
        "io.echod.Control.GetConfig" => {
            let schema::Nothing {} = read(request)?;
            Ok(replied(&schema::GetConfigReply {
                toml: snapshot.config.clone(),
            }))
        }
        "io.echod.Control.SetLogLevel" => {
            let asked: schema::SetLogLevel = read(request)?;
            let level = asked.level.and_then(|level| level.parse().ok());
            let level = level.ok_or_else(|| invalid("level"))?;
            Ok(Outcome::Effect(Effect::SetLogLevel { level }))
        }
        unknown => Err(not_found(unknown)),
    }
}

fn get_info(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(replied(&json!({
        "vendor": "echod",
        "product": "echod",
        "version": snapshot.status.version,
        "url": env!("CARGO_PKG_REPOSITORY"),
        "interfaces": [SERVICE, INTERFACE],
    })))
}

fn get_interface_description(request: &Request) -> Result<Outcome, Refusal> {
    if let Some(name) = request.parameters.keys().find(|name| *name != "interface") {
        return Err(invalid(name));
    }
    match request.parameters.get("interface").and_then(Value::as_str) {
        Some(INTERFACE) => Ok(replied(&json!({ "description": INTERFACE_TEXT }))),
        Some(SERVICE) => Ok(replied(&json!({ "description": SERVICE_TEXT }))),
        Some(unknown) => Err(interface_not_found(unknown)),
        None => Err(invalid("interface")),
    }
}

fn list_listeners(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    let asked: schema::ListListeners = read(request)?;
    let listeners = match asked.name {
        Some(name) => vec![find(snapshot, &name)?.clone()],
        None => snapshot.listeners.clone(),
    };
    Ok(replied(&schema::ListListenersReply { listeners }))
}

fn list_peers(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    let asked: schema::ListPeers = read(request)?;
    if let Some(name) = &asked.listener {
        find(snapshot, name)?;
    }
    let sort = match asked.sort {
        Some(name) => SortKey::from_name(&name).ok_or_else(|| invalid("sort"))?,
        None => SortKey::default(),
    };
    Ok(Outcome::Effect(Effect::ListPeers(PeerQuery {
        listener: asked.listener,
        address: address(asked.address)?,
        older_ms: asked.older_ms,
        idle_ms: asked.idle_ms,
        sort,
        limit: asked.limit,
        ..PeerQuery::default()
    })))
}

fn close_peers(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    let asked: schema::ClosePeers = read(request)?;
    if let Some(name) = &asked.listener {
        find(snapshot, name)?;
    }
    let query = PeerQuery {
        id: asked.id,
        listener: asked.listener,
        address: address(asked.address)?,
        older_ms: asked.older_ms,
        idle_ms: asked.idle_ms,
        streams_only: true,
        ..PeerQuery::default()
    };
    if !query.has_selector() {
        // Nobody closes all connections by leaving something out.
        return Err(invalid("id"));
    }
    let dry_run = asked.dry_run.unwrap_or(false);
    Ok(Outcome::Effect(Effect::ClosePeers { query, dry_run }))
}

fn set_backlog(request: &Request, snapshot: &Snapshot) -> Result<Outcome, Refusal> {
    let asked: schema::SetBacklog = read(request)?;
    let name = asked.listener.ok_or_else(|| invalid("listener"))?;
    let backlog = asked.backlog.ok_or_else(|| invalid("backlog"))?;
    let listener = find(snapshot, &name)?;
    if listener.backlog.is_none() {
        return Err(invalid("listener"));
    }
    if !(1..=BACKLOG_MAX).contains(&backlog) {
        let values = schema::InvalidBacklog { backlog };
        return Err(refused(INVALID_BACKLOG, &values));
    }
    let backlog = u32::try_from(backlog).expect("the range was checked");
    Ok(Outcome::Effect(Effect::SetBacklog {
        listener: name,
        backlog,
    }))
}

/// The parameters of a request as its type has them.
fn read<T: DeserializeOwned>(request: &Request) -> Result<T, Refusal> {
    let parameters = &request.parameters;
    serde_json::from_value(Value::Object(parameters.clone())).map_err(|_| {
        // Which one was it? Each parameter may be absent, so that each can be tried alone.
        let culprit = parameters
            .iter()
            .find(|(name, value)| serde_json::from_value::<T>(json!({ *name: value })).is_err());
        invalid(culprit.map_or("", |(name, _)| name))
    })
}

fn find<'a>(snapshot: &'a Snapshot, name: &str) -> Result<&'a Listener, Refusal> {
    let mut all = snapshot.listeners.iter();
    all.find(|listener| listener.name == name).ok_or_else(|| {
        let name = name.to_owned();
        refused(LISTENER_NOT_FOUND, &schema::ListenerNotFound { name })
    })
}

fn address(text: Option<String>) -> Result<Option<ipnet::IpNet>, Refusal> {
    text.map(|text| peers::parse_network(&text).ok_or_else(|| invalid("address")))
        .transpose()
}

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

fn replied(values: &impl Serialize) -> Outcome {
    Outcome::Reply(reply(values))
}

/// The answer to an effect that was done.
#[must_use]
pub fn reply(values: &impl Serialize) -> Reply {
    Reply::done(schema::parameters(values))
}

/// The answer to a reload: of a dry run too, a configuration with errors is an error.
#[must_use]
pub fn reloaded(result: ReloadResult) -> Reply {
    let rejected = result.outcome == ReloadOutcome::Rejected;
    let values = schema::ReloadReply { result };
    if rejected {
        Reply::error(CONFIG_REJECTED, schema::parameters(&values))
    } else {
        reply(&values)
    }
}

/// The answer to an upgrade, of the successor.
#[must_use]
pub fn upgraded(result: schema::UpgradeResult) -> Reply {
    reply(&schema::UpgradeReply { result })
}

/// The answer to an upgrade that will not be.
#[must_use]
pub fn upgrade_refused(reason: String) -> Reply {
    let values = schema::UpgradeRefused { reason };
    Reply::error(UPGRADE_REFUSED, schema::parameters(&values))
}

#[cfg(test)]
mod tests;
