//! The methods: a row for each, with its name, the role that it takes, and its handler.
//!
//! A handler reads the parameters and finds everything that can be wrong with them. It answers from
//! the [`View`], or returns an [`Effect`]; it never does anything itself.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::effects::Effect;
use super::peers::{self, PeerQuery, SortKey};
use super::schema;
use super::wire::Request;
use super::{
    INTERFACE, INTERFACE_TEXT, INVALID_BACKLOG, INVALID_DEADLINE, LISTENER_NOT_FOUND,
    NOTHING_TO_HOLD, Outcome, Refusal, Role, SERVICE, SERVICE_TEXT, View, interface_not_found,
    invalid, refused, reply,
};

/// The largest backlog that `listen(2)` can be given.
pub(crate) const BACKLOG_MAX: i64 = i32::MAX as i64;

/// How long a reload may wait to be confirmed.
pub(crate) const CONFIRM_WITHIN_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time that a drain can be given, in milliseconds: 1000 days, as every time.
pub(crate) const DEADLINE_MS_MAX: i64 = 1000 * 24 * 60 * 60 * 1000;

/// What can be logged, from nothing to everything.
pub(crate) const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

type Handler = fn(&Request, &dyn View) -> Result<Outcome, Refusal>;

/// A method that can be called.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// Its full name.
    pub name: &'static str,
    /// The least role that may call it.
    pub role: Role,
    /// What handles it.
    pub(super) handler: Handler,
}

/// Every method, in the order of the interface texts.
pub const METHODS: &[Method] = &[
    row("org.varlink.service.GetInfo", Role::Reader, get_info),
    row(
        "org.varlink.service.GetInterfaceDescription",
        Role::Reader,
        get_interface_description,
    ),
    row("io.echod.Control.GetStatus", Role::Reader, get_status),
    row(
        "io.echod.Control.ListListeners",
        Role::Reader,
        list_listeners,
    ),
    row("io.echod.Control.ListPeers", Role::Reader, list_peers),
    row("io.echod.Control.SetBacklog", Role::Operator, set_backlog),
    row(
        "io.echod.Control.PauseListener",
        Role::Operator,
        pause_listener,
    ),
    row(
        "io.echod.Control.ResumeListener",
        Role::Operator,
        resume_listener,
    ),
    row(
        "io.echod.Control.DrainListener",
        Role::Operator,
        drain_listener,
    ),
    row("io.echod.Control.ClosePeers", Role::Operator, close_peers),
    row("io.echod.Control.Reload", Role::Admin, reload),
    row("io.echod.Control.Confirm", Role::Admin, confirm),
    row("io.echod.Control.Rollback", Role::Admin, roll_back),
    row("io.echod.Control.Upgrade", Role::Admin, upgrade),
    row("io.echod.Control.HandOver", Role::Admin, hand_over),
    row("io.echod.Control.GetConfig", Role::Reader, get_config),
    row("io.echod.Control.SetLogLevel", Role::Admin, set_log_level),
];

const fn row(name: &'static str, role: Role, handler: Handler) -> Method {
    Method {
        name,
        role,
        handler,
    }
}

/// The method of this name.
#[must_use]
pub(crate) fn find(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

fn get_info(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(replied(&json!({
        "vendor": "echod",
        "product": "echod",
        "version": env!("CARGO_PKG_VERSION"),
        "url": env!("CARGO_PKG_REPOSITORY"),
        "interfaces": [SERVICE, INTERFACE],
    })))
}

fn get_interface_description(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
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

fn get_status(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(Outcome::Effect(Effect::GetStatus))
}

fn list_listeners(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::ListListeners = read(request)?;
    let listeners = match asked.name {
        Some(name) => vec![view.listener(&name).ok_or_else(|| no_listener(name))?],
        None => view.listeners(),
    };
    Ok(replied(&schema::ListListenersReply { listeners }))
}

fn list_peers(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::ListPeers = read(request)?;
    let sort = match asked.sort {
        Some(name) => SortKey::from_name(&name).ok_or_else(|| invalid("sort"))?,
        None => SortKey::default(),
    };
    let query = PeerQuery {
        id: None,
        listener: asked.listener,
        address: address(asked.address)?,
        older_ms: asked.older_ms,
        idle_ms: asked.idle_ms,
    };
    check_listener(&query, view)?;
    Ok(Outcome::Effect(Effect::ListPeers {
        query,
        sort,
        limit: asked.limit,
    }))
}

fn close_peers(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::ClosePeers = read(request)?;
    let query = PeerQuery {
        id: asked.id,
        listener: asked.listener,
        address: address(asked.address)?,
        older_ms: asked.older_ms,
        idle_ms: asked.idle_ms,
    };
    check_listener(&query, view)?;
    if !query.has_selector() {
        // No call closes all connections because a parameter was forgotten.
        return Err(invalid("id"));
    }
    Ok(Outcome::Effect(Effect::ClosePeers {
        query,
        dry_run: asked.dry_run.unwrap_or(false),
        list: asked.list.unwrap_or(false),
    }))
}

fn set_backlog(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::SetBacklog = read(request)?;
    let listener = asked.listener.ok_or_else(|| invalid("listener"))?;
    let backlog = asked.backlog.ok_or_else(|| invalid("backlog"))?;
    match view.has_backlog(&listener) {
        None => return Err(no_listener(listener)),
        Some(false) => return Err(invalid("listener")),
        Some(true) => {}
    }
    if !(1..=BACKLOG_MAX).contains(&backlog) {
        let values = schema::InvalidBacklog { backlog };
        return Err(refused(INVALID_BACKLOG, &values));
    }
    let backlog = u32::try_from(backlog).expect("the range was checked");
    Ok(Outcome::Effect(Effect::SetBacklog { listener, backlog }))
}

fn pause_listener(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::PauseListener = read(request)?;
    let listener = one_or_all(asked.listener, asked.all, view)?;
    let hold = asked.hold.unwrap_or(false);
    if let Some(name) = &listener
        && hold
        && view.has_backlog(name) == Some(false)
    {
        let listener = name.clone();
        return Err(refused(
            NOTHING_TO_HOLD,
            &schema::NothingToHold { listener },
        ));
    }
    Ok(Outcome::Effect(Effect::PauseListener { listener, hold }))
}

fn resume_listener(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::ResumeListener = read(request)?;
    let listener = one_or_all(asked.listener, asked.all, view)?;
    Ok(Outcome::Effect(Effect::ResumeListener { listener }))
}

fn drain_listener(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::DrainListener = read(request)?;
    let listener = one_or_all(asked.listener, asked.all, view)?;
    let invalid_deadline =
        |deadline_ms| refused(INVALID_DEADLINE, &schema::InvalidDeadline { deadline_ms });
    let deadline = asked.deadline_ms.map(|asked| {
        let possible = (0..=DEADLINE_MS_MAX).contains(&asked);
        let deadline = u64::try_from(asked).ok().filter(|_| possible);
        deadline
            .map(Duration::from_millis)
            .ok_or_else(|| invalid_deadline(asked))
    });
    let deadline = deadline.transpose()?;
    Ok(Outcome::Effect(Effect::DrainListener {
        listener,
        deadline,
    }))
}

fn reload(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::Reload = read(request)?;
    let dry_run = asked.dry_run.unwrap_or(false);
    let confirm_within = asked.confirm_within_ms.map(Duration::from_millis);
    // A dry run leaves nothing to be confirmed.
    let is_right = |within: Duration| !dry_run && !within.is_zero() && within <= CONFIRM_WITHIN_MAX;
    if !confirm_within.is_none_or(is_right) {
        return Err(invalid("confirm_within_ms"));
    }
    Ok(Outcome::Effect(Effect::Reload {
        dry_run,
        confirm_within,
    }))
}

fn confirm(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(Outcome::Effect(Effect::Confirm))
}

fn roll_back(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::Rollback = read(request)?;
    let dry_run = asked.dry_run.unwrap_or(false);
    Ok(Outcome::Effect(Effect::RollBack { dry_run }))
}

fn upgrade(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(Outcome::Effect(Effect::Upgrade))
}

fn hand_over(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(Outcome::Effect(Effect::HandOver))
}

fn get_config(request: &Request, view: &dyn View) -> Result<Outcome, Refusal> {
    let schema::Nothing {} = read(request)?;
    Ok(replied(&schema::GetConfigReply {
        toml: view.config(),
    }))
}

fn set_log_level(request: &Request, _: &dyn View) -> Result<Outcome, Refusal> {
    let asked: schema::SetLogLevel = read(request)?;
    let level = asked.level.and_then(|level| level.parse().ok());
    let level = level.ok_or_else(|| invalid("level"))?;
    Ok(Outcome::Effect(Effect::SetLogLevel { level }))
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

/// A listener that is named has to be there.
fn check_listener(query: &PeerQuery, view: &dyn View) -> Result<(), Refusal> {
    match &query.listener {
        Some(name) if !view.has_listener(name) => Err(no_listener(name.clone())),
        _ => Ok(()),
    }
}

/// The listener that is meant; none is all of them. Either is given: nothing happens to all listeners
/// because a parameter was forgotten.
fn one_or_all(
    listener: Option<String>,
    all: Option<bool>,
    view: &dyn View,
) -> Result<Option<String>, Refusal> {
    match (listener, all.unwrap_or(false)) {
        (Some(name), false) if view.has_backlog(&name).is_none() => Err(no_listener(name)),
        (Some(name), false) => Ok(Some(name)),
        (None, true) => Ok(None),
        (Some(_), true) => Err(invalid("all")),
        (None, false) => Err(invalid("listener")),
    }
}

fn no_listener(name: String) -> Refusal {
    refused(LISTENER_NOT_FOUND, &schema::ListenerNotFound { name })
}

fn address(text: Option<String>) -> Result<Option<ipnet::IpNet>, Refusal> {
    text.map(|text| peers::parse_network(&text).ok_or_else(|| invalid("address")))
        .transpose()
}

fn replied(values: &impl Serialize) -> Outcome {
    Outcome::Reply(reply(values))
}
