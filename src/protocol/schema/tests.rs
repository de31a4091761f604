//! The types of `schema` against the interface text: same names, same order, same kinds.

use serde_json::json;

use super::*;
use crate::protocol::INTERFACE;

/// A member of the interface text: its kind, name and fields. A method has two: `Name` and
/// `NameReply`.
struct Member {
    kind: &'static str,
    name: String,
    fields: Vec<(String, String)>,
}

/// Reads interface text. It knows just enough of the language for ours.
fn members(text: &str) -> Vec<Member> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(|line| [line, " "])
        .collect();
    let mut rest = code
        .split_once(INTERFACE)
        .expect("the interface is named first")
        .1;
    let mut members = Vec::new();
    while let Some((keyword, after)) = rest.trim_start().split_once(' ') {
        let kind = match keyword {
            "type" => "type",
            "method" => "method",
            "error" => "error",
            other => panic!("{other:?} begins no member"),
        };
        let open = after.find('(').expect("a member has fields");
        let name = after[..open].trim().to_owned();
        let (fields, mut after) = parenthesized(&after[open..]);
        members.push(Member {
            kind,
            name: name.clone(),
            fields,
        });
        if kind == "method" {
            let reply = after.trim_start().strip_prefix("->").expect("a reply");
            let (fields, end) = parenthesized(reply.trim_start());
            let name = format!("{name}Reply");
            members.push(Member { kind, name, fields });
            after = end;
        }
        rest = after;
    }
    members
}

/// The fields within the parentheses that the text begins with, and what follows them.
fn parenthesized(text: &str) -> (Vec<(String, String)>, &str) {
    let mut depth = 0;
    let mut fields = Vec::new();
    let mut start = 1;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if (character == ',' && depth == 1) || (character == ')' && depth == 0) {
            if let Some((name, kind)) = text[start..at].split_once(':') {
                fields.push((name.trim().to_owned(), kind.trim().to_owned()));
            }
            start = at + 1;
        }
        if depth == 0 {
            return (fields, &text[at + 1..]);
        }
    }
    panic!("parentheses are closed");
}

/// One of each type, with every field there.
fn samples() -> Vec<(&'static str, Value)> {
    let text = || "text".to_owned();
    let backlog = Backlog::default();
    let diagnostic = Diagnostic {
        file: text(),
        line: Some(1),
        column: Some(2),
        key: Some(text()),
        message: text(),
    };
    let change = Change {
        listener: Some(text()),
        action: ChangeAction::Add,
        keys: vec![text()],
        connections: 0,
        text: text(),
    };
    let upgrade = UpgradeResult {
        from: text(),
        to: text(),
        listeners: 1,
        connections: 1,
        lost: 1,
        pause_us: 1,
        warnings: vec![diagnostic.clone()],
    };
    let result = ReloadResult {
        id: 1,
        generation: 1,
        trigger: Trigger::ConfirmExpired,
        outcome: ReloadOutcome::RolledBack,
        at: text(),
        duration_us: 1,
        errors: vec![diagnostic.clone()],
        warnings: vec![diagnostic.clone()],
        changes: vec![change.clone()],
        kept: 1,
        changes_omitted: 1,
        summary: text(),
        rollback: true,
        confirm_within_ms: Some(1),
        confirmed: Some(1),
    };
    let status = Status {
        version: text(),
        pid: 1,
        uptime_ms: 1,
        state: text(),
        driver: text(),
        workers: 1,
        config: vec![text()],
        generation: 1,
        last_reload: result.clone(),
        listeners: 1,
        connections: 1,
        bytes_received: 1,
        bytes_sent: 1,
        config_on_disk: Some(OnDisk::Unreadable),
        rejected_on_disk: Some(true),
        control_socket: Some(text()),
        log_level: text(),
        max_connections: 1,
        descriptors: Some(1),
        max_descriptors: Some(1),
        refused: BTreeMap::from([(text(), 1)]),
        closed: BTreeMap::from([(text(), 1)]),
        faults: 1,
        restart_required: vec![text()],
        confirm_in_ms: Some(1),
        listener_states: BTreeMap::from([(text(), 1)]),
    };
    let listener = Listener {
        name: text(),
        protocol: text(),
        addresses: vec![text()],
        reply: text(),
        state: ListenerState::Listening,
        sockets: 1,
        backlog: Some(backlog),
        connections: 1,
        max_connections: 1,
        peak: 1,
        accepted: 1,
        refused: BTreeMap::from([(text(), 1)]),
        closed: BTreeMap::from([(text(), 1)]),
        faults: 1,
        datagrams_received: 1,
        datagrams_sent: 1,
        bytes_received: 1,
        bytes_sent: 1,
        overridden: vec![text()],
    };
    let peer = Peer {
        via: Some(text()),
        rtt_us: Some(1),
        retransmits: Some(1),
        send_queue: Some(1),
        pid: Some(1),
        uid: Some(1),
        ..Peer::default()
    };
    let listeners = || {
        vec![StateChange {
            listener: text(),
            before: ListenerState::Listening,
            after: ListenerState::Paused,
            connections: 1,
        }]
    };
    fn value(sample: impl Serialize) -> Value {
        serde_json::to_value(sample).unwrap()
    }
    vec![
        ("Status", value(&status)),
        ("Listener", value(&listener)),
        ("StateChange", value(&listeners()[0])),
        ("Backlog", value(backlog)),
        ("Peer", value(&peer)),
        ("ReloadResult", value(&result)),
        ("UpgradeResult", value(&upgrade)),
        ("Diagnostic", value(diagnostic)),
        ("Change", value(change)),
        ("GetStatus", value(Nothing {})),
        ("GetStatusReply", value(GetStatusReply { status })),
        ("ListListeners", every_parameter::<ListListeners>()),
        (
            "ListListenersReply",
            value(ListListenersReply {
                listeners: vec![listener],
            }),
        ),
        ("ListPeers", every_parameter::<ListPeers>()),
        (
            "ListPeersReply",
            value(ListPeersReply {
                peers: vec![peer.clone()],
                total: 1,
            }),
        ),
        ("SetBacklog", every_parameter::<SetBacklog>()),
        (
            "SetBacklogReply",
            value(SetBacklogReply {
                before: backlog,
                after: backlog,
            }),
        ),
        ("PauseListener", every_parameter::<PauseListener>()),
        (
            "PauseListenerReply",
            value(PauseListenerReply {
                listeners: listeners(),
            }),
        ),
        ("ResumeListener", every_parameter::<ResumeListener>()),
        (
            "ResumeListenerReply",
            value(ResumeListenerReply {
                listeners: listeners(),
            }),
        ),
        ("DrainListener", every_parameter::<DrainListener>()),
        (
            "DrainListenerReply",
            value(DrainListenerReply {
                listeners: listeners(),
                connections: 1,
                left_ms: 1,
            }),
        ),
        ("ClosePeers", every_parameter::<ClosePeers>()),
        (
            "ClosePeersReply",
            value(ClosePeersReply {
                matched: 1,
                closed: 1,
                sources: Some(1),
                peers: Some(vec![peer]),
            }),
        ),
        ("Reload", every_parameter::<Reload>()),
        (
            "ReloadReply",
            value(ReloadReply {
                result: result.clone(),
            }),
        ),
        ("Confirm", value(Nothing {})),
        ("ConfirmReply", value(ConfirmReply { id: 1 })),
        ("Rollback", every_parameter::<Rollback>()),
        (
            "RollbackReply",
            value(ReloadReply {
                result: result.clone(),
            }),
        ),
        ("Upgrade", value(Nothing {})),
        ("UpgradeReply", value(UpgradeReply { result: upgrade })),
        ("HandOver", value(Nothing {})),
        (
            "HandOverReply",
            value(HandOverReply {
                listeners: 1,
                connections: 1,
            }),
        ),
        ("GetConfig", value(Nothing {})),
        ("GetConfigReply", value(GetConfigReply { toml: text() })),
        ("SetLogLevel", every_parameter::<SetLogLevel>()),
        (
            "SetLogLevelReply",
            value(SetLogLevelReply {
                before: text(),
                after: text(),
            }),
        ),
        ("ListenerNotFound", value(ListenerNotFound { name: text() })),
        ("ConfigRejected", value(ReloadReply { result })),
        ("ReloadRefused", value(ReloadRefused { reason: text() })),
        ("NothingToConfirm", json!({})),
        ("NothingToRollBack", json!({})),
        ("UpgradeRefused", value(UpgradeRefused { reason: text() })),
        ("InvalidBacklog", value(InvalidBacklog { backlog: 1 })),
        ("NothingToHold", value(NothingToHold { listener: text() })),
        ("InvalidDeadline", value(InvalidDeadline { deadline_ms: 1 })),
        ("RequestTooLarge", value(RequestTooLarge { bytes_max: 1 })),
    ]
}

/// A request with each parameter that its type takes, whatever its kind.
fn every_parameter<T: Serialize + serde::de::DeserializeOwned>() -> Value {
    let names = [
        "id",
        "name",
        "listener",
        "address",
        "older_ms",
        "idle_ms",
        "sort",
        "limit",
        "backlog",
        "level",
        "dry_run",
        "list",
        "confirm_within_ms",
        "all",
        "hold",
        "deadline_ms",
    ];
    let mut all = Parameters::new();
    for name in names {
        for value in [json!("text"), json!(1), json!(true)] {
            if serde_json::from_value::<T>(json!({ name: value })).is_ok() {
                all.insert(name.to_owned(), value);
            }
        }
    }
    let request: T = serde_json::from_value(Value::Object(all)).unwrap();
    serde_json::to_value(request).unwrap()
}

/// Whether a value is of the kind that the text says.
fn fits(value: &Value, kind: &str) -> bool {
    let kind = kind.trim_start_matches('?');
    if let Some(element) = kind.strip_prefix("[]") {
        return value
            .as_array()
            .is_some_and(|all| all.iter().all(|one| fits(one, element)));
    }
    if let Some(element) = kind.strip_prefix("[string]") {
        return value
            .as_object()
            .is_some_and(|all| all.values().all(|one| fits(one, element)));
    }
    if let Some(names) = kind.strip_prefix('(') {
        let mut names = names.trim_end_matches(')').split(", ");
        return value
            .as_str()
            .is_some_and(|value| names.any(|name| name == value));
    }
    match kind {
        "int" => value.is_i64() || value.is_u64(),
        "bool" => value.is_boolean(),
        "string" => value.is_string(),
        _ => value.is_object(),
    }
}

#[test]
fn the_types_are_those_of_the_interface_text() {
    let samples = samples();
    let members = members(crate::protocol::INTERFACE_TEXT);
    for Member { kind, name, fields } in &members {
        let (_, sample) = samples
            .iter()
            .find(|(known, _)| known == name)
            .unwrap_or_else(|| panic!("{kind} {name} has a type"));
        let sample = sample.as_object().unwrap();
        let meant: Vec<&String> = fields.iter().map(|(field, _)| field).collect();
        assert_eq!(sample.keys().collect::<Vec<_>>(), meant, "{kind} {name}");
        for (field, kind) in fields {
            assert!(fits(&sample[field], kind), "{name}.{field}: {kind}");
        }
    }
    assert_eq!(members.len(), samples.len(), "each type is in the text");
}

#[test]
fn the_methods_are_those_of_the_interface_text() {
    let members = members(crate::protocol::INTERFACE_TEXT);
    let in_text: Vec<String> = members
        .iter()
        .filter(|member| member.kind == "method" && !member.name.ends_with("Reply"))
        .map(|member| format!("{INTERFACE}.{}", member.name))
        .collect();
    let in_table: Vec<&str> = crate::protocol::METHODS
        .iter()
        .map(|method| method.name)
        .filter(|name| name.starts_with(INTERFACE))
        .collect();
    assert_eq!(in_table, in_text);
}

#[test]
fn optional_fields_are_left_out_when_there_is_nothing_to_say() {
    let peer = serde_json::to_string(&Peer::default()).unwrap();
    assert!(!peer.contains("null") && !peer.contains("rtt_us"), "{peer}");
}

#[test]
fn a_reply_may_have_fields_that_we_do_not_know() {
    let text = r#"{"matched": 1, "closed": 1, "postponed": 3}"#;
    assert!(serde_json::from_str::<ClosePeersReply>(text).is_ok());
}

#[test]
fn names_in_tables_are_those_on_the_wire() {
    use ChangeAction::{Add, Keep, Rebind, Remove, Update};
    use ListenerState::{Draining, Holding, Listening, Paused, Retired};
    for state in [Listening, Paused, Holding, Draining, Retired] {
        assert_eq!(serde_json::to_value(state).unwrap(), state.name());
    }
    for action in [Add, Keep, Update, Rebind, Remove] {
        assert_eq!(serde_json::to_value(action).unwrap(), action.name());
    }
}

#[test]
fn a_diagnostic_names_its_listener_by_key_or_by_text() {
    let check = |key: Option<&str>, message: &str, expected: Option<&str>| {
        let diagnostic = Diagnostic {
            key: key.map(Into::into),
            ..Diagnostic::general(message)
        };
        assert_eq!(diagnostic.listener(), expected);
    };
    check(Some("listener.main.backlog"), "not a number", Some("main"));
    check(Some("listener.a.b.backlog"), "not a number", Some("a.b"));
    check(Some("listener"), "not a name", None);
    check(Some("daemon.workers"), "not a number", None);
    let text = "listener \"main\": bind 127.0.0.1:7: address already in use";
    check(None, text, Some("main"));
    check(None, &text.replace("main", "a.b"), Some("a.b"));
    check(None, "the daemon is stopping: start it again instead", None);
}
