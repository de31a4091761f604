//! Requests in, outcomes out.

use std::cell::Cell;

use expect_test::{Expect, expect};
use serde_json::Value;

use super::*;
use crate::protocol::schema::{Backlog, ListenerState, Trigger};

fn result(outcome: ReloadOutcome) -> ReloadResult {
    ReloadResult {
        id: 1,
        generation: 1,
        trigger: Trigger::Start,
        outcome,
        at: "2026-01-02T03:04:05Z".to_owned(),
        duration_us: 900,
        errors: Vec::new(),
        warnings: Vec::new(),
        changes: Vec::new(),
        kept: 0,
        changes_omitted: 0,
        summary: String::new(),
        rollback: false,
        confirm_within_ms: None,
        confirmed: None,
    }
}

fn listener(name: &str, protocol: &str, backlog: Option<Backlog>) -> Listener {
    Listener {
        name: name.to_owned(),
        protocol: protocol.to_owned(),
        addresses: vec!["127.0.0.1:7007".to_owned()],
        reply: "echo".to_owned(),
        state: ListenerState::Listening,
        sockets: 1,
        backlog,
        connections: 0,
        max_connections: 0,
        peak: 0,
        accepted: 0,
        refused: [].into(),
        closed: [].into(),
        faults: 0,
        datagrams_received: 0,
        datagrams_sent: 0,
        bytes_received: 0,
        bytes_sent: 0,
        overridden: Vec::new(),
    }
}

/// A daemon with a listener of each kind. Counts what it is asked for.
#[derive(Default)]
struct Fixture {
    asked: Cell<usize>,
}

impl Fixture {
    fn count(&self) {
        self.asked.set(self.asked.get() + 1);
    }
}

impl View for Fixture {
    fn listeners(&self) -> Vec<Listener> {
        self.count();
        vec![
            listener("main", "tcp", Some(Backlog::default())),
            listener("dgram", "udp", None),
        ]
    }

    fn listener(&self, name: &str) -> Option<Listener> {
        let mut all = self.listeners().into_iter();
        all.find(|listener| listener.name == name)
    }

    fn has_listener(&self, name: &str) -> bool {
        ["main", "dgram", "removed"].contains(&name)
    }

    fn has_backlog(&self, name: &str) -> Option<bool> {
        match name {
            "main" => Some(true),
            "dgram" => Some(false),
            _ => None,
        }
    }

    fn config(&self) -> String {
        self.count();
        "[daemon]\n".to_owned()
    }
}

/// What comes of a request, written shortly.
fn outcome(method: &str, parameters: Value) -> String {
    let Value::Object(parameters) = parameters else {
        panic!("parameters are an object");
    };
    let request = Request {
        method: method.to_owned(),
        parameters,
        ..Request::default()
    };
    match handle(&request, Role::Admin, &Fixture::default()) {
        Outcome::Reply(reply) => {
            let error = reply.error.map_or(String::new(), |name| format!("{name} "));
            error + &Value::Object(reply.parameters).to_string()
        }
        Outcome::Denied => "denied".to_owned(),
        Outcome::Effect(effect) => format!("{effect:?}"),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "values are written in place")]
fn check(method: &str, parameters: Value, expected: Expect) {
    expected.assert_eq(&outcome(&format!("{INTERFACE}.{method}"), parameters));
}

#[test]
fn the_service_says_what_it_is() {
    let info = outcome("org.varlink.service.GetInfo", json!({}));
    let interfaces = r#""interfaces":["org.varlink.service","io.echod.Control"]"#;
    assert!(
        info.contains(r#""product":"echod""#) && info.contains(interfaces),
        "{info}"
    );
}

#[test]
fn interfaces_are_described_by_their_text() {
    let method = "org.varlink.service.GetInterfaceDescription";
    for (name, text) in [(INTERFACE, INTERFACE_TEXT), (SERVICE, SERVICE_TEXT)] {
        let expected = json!({ "description": text }).to_string();
        assert_eq!(outcome(method, json!({ "interface": name })), expected);
    }
    let unknown = outcome(method, json!({ "interface": "a.b" }));
    expect![[r#"org.varlink.service.InterfaceNotFound {"interface":"a.b"}"#]].assert_eq(&unknown);
    let missing = outcome(method, json!({}));
    expect![[r#"org.varlink.service.InvalidParameter {"parameter":"interface"}"#]]
        .assert_eq(&missing);
}

/// Nothing happens to all listeners because a parameter was forgotten.
#[test]
fn one_listener_or_all_of_them_are_paused_resumed_and_drained() {
    for method in ["PauseListener", "ResumeListener", "DrainListener"] {
        for (parameters, parameter) in [
            (json!({}), "listener"),
            (json!({ "all": false }), "listener"),
            (json!({ "listener": "main", "all": true }), "all"),
            (json!({ "listener": 5 }), "listener"),
            (json!({ "all": true, "later": true }), "later"),
        ] {
            let expected =
                format!(r#"org.varlink.service.InvalidParameter {{"parameter":"{parameter}"}}"#);
            let found = outcome(&format!("{INTERFACE}.{method}"), parameters);
            assert_eq!(found, expected, "{method}");
        }
        // One that was removed has nothing to pause, and can't be resumed.
        for name in ["nobody", "removed"] {
            let expected = format!(r#"{LISTENER_NOT_FOUND} {{"name":"{name}"}}"#);
            let found = outcome(
                &format!("{INTERFACE}.{method}"),
                json!({ "listener": name }),
            );
            assert_eq!(found, expected, "{method}");
        }
    }
    check(
        "PauseListener",
        json!({ "listener": "main", "all": false }),
        expect![[r#"PauseListener { listener: Some("main"), hold: false }"#]],
    );
    check(
        "PauseListener",
        json!({ "all": true, "hold": true }),
        expect!["PauseListener { listener: None, hold: true }"],
    );
    check(
        "ResumeListener",
        json!({ "all": true }),
        expect!["ResumeListener { listener: None }"],
    );
}

#[test]
fn datagrams_can_not_be_held() {
    check(
        "PauseListener",
        json!({ "listener": "dgram", "hold": true }),
        expect![[r#"io.echod.Control.NothingToHold {"listener":"dgram"}"#]],
    );
    check(
        "PauseListener",
        json!({ "listener": "dgram", "hold": false }),
        expect![[r#"PauseListener { listener: Some("dgram"), hold: false }"#]],
    );
}

#[test]
fn a_deadline_of_nonsense_is_named() {
    let drain = |deadline_ms: Value| {
        let parameters = json!({ "listener": "main", "deadline_ms": deadline_ms });
        outcome(&format!("{INTERFACE}.DrainListener"), parameters)
    };
    for nonsense in [-1, i64::MIN, 86_400_000_001, i64::MAX] {
        let expected = format!(r#"{INVALID_DEADLINE} {{"deadline_ms":{nonsense}}}"#);
        assert_eq!(drain(nonsense.into()), expected);
    }
    for no_number in [json!("30s"), json!(1.5), json!(u64::MAX)] {
        let expected = r#"org.varlink.service.InvalidParameter {"parameter":"deadline_ms"}"#;
        assert_eq!(drain(no_number), expected);
    }
    for (deadline_ms, deadline) in [
        (json!(null), "None"),
        (json!(0), "Some(0ns)"),
        (json!(86_400_000_000_u64), "Some(86400000s)"),
    ] {
        let expected =
            format!(r#"DrainListener {{ listener: Some("main"), deadline: {deadline} }}"#);
        assert_eq!(drain(deadline_ms), expected);
    }
}

#[test]
fn unknown_methods_and_interfaces_are_told_apart() {
    let check = |method: &str, expected: Expect| expected.assert_eq(&outcome(method, json!({})));
    check(
        "io.echod.Control.Fly",
        expect![[r#"org.varlink.service.MethodNotFound {"method":"io.echod.Control.Fly"}"#]],
    );
    check(
        "io.echod.Contro.GetStatus",
        expect![[r#"org.varlink.service.InterfaceNotFound {"interface":"io.echod.Contro"}"#]],
    );
    check(
        "GetStatus",
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"method"}"#]],
    );
}

#[test]
fn every_method_is_answered_to_the_roles_that_may_call_it() {
    for method in METHODS {
        let request = Request {
            method: method.name.to_owned(),
            ..Request::default()
        };
        for role in [Role::Reader, Role::Operator, Role::Admin] {
            let outcome = handle(&request, role, &Fixture::default());
            let is_denied = outcome == Outcome::Denied;
            assert_eq!(is_denied, role < method.role, "{}: {role:?}", method.name);
            let unknown = format!("{outcome:?}").contains("NotFound");
            assert!(!unknown, "{}: {outcome:?}", method.name);
        }
    }
}

#[test]
fn a_method_that_changes_something_is_no_readers() {
    for method in METHODS {
        let request = Request {
            method: method.name.to_owned(),
            parameters: schema::parameters(&json!({
                "listener": "main", "backlog": 5, "level": "info", "older_ms": 0,
            })),
            ..Request::default()
        };
        // A method is asked with the parameters that it knows.
        let mut request = request;
        let outcome = loop {
            let outcome = handle(&request, Role::Admin, &Fixture::default());
            let Outcome::Reply(reply) = &outcome else {
                break outcome;
            };
            let parameter = reply.parameters.get("parameter").and_then(Value::as_str);
            match parameter.and_then(|name| request.parameters.remove(name)) {
                Some(_) => {}
                None => break outcome,
            }
        };
        if let Outcome::Effect(effect) = outcome {
            let changes = effect.changes_something();
            assert_eq!(changes, method.role > Role::Reader, "{}", method.name);
        } else {
            assert_eq!(method.role, Role::Reader, "{}", method.name);
        }
    }
}

#[test]
fn a_method_asks_for_what_it_returns_and_nothing_else() {
    let check = |method: &str, parameters: Value, expected: usize| {
        let Value::Object(parameters) = parameters else {
            panic!("parameters are an object");
        };
        let request = Request {
            method: method.to_owned(),
            parameters,
            ..Request::default()
        };
        let fixture = Fixture::default();
        let _ = handle(&request, Role::Admin, &fixture);
        assert_eq!(fixture.asked.get(), expected, "{method}");
    };
    check("io.echod.Control.Fly", json!({}), 0);
    check("org.varlink.service.GetInfo", json!({}), 0);
    check("io.echod.Control.GetStatus", json!({}), 0);
    check("io.echod.Control.ListListeners", json!({"name": "main"}), 1);
    let listener = json!({"listener": "main"});
    check("io.echod.Control.ListPeers", listener.clone(), 0);
    check("io.echod.Control.ClosePeers", listener, 0);
    let backlog = json!({"listener": "main", "backlog": 5});
    check("io.echod.Control.SetBacklog", backlog, 0);
    check("io.echod.Control.Reload", json!({}), 0);
}

#[test]
fn an_upgrade_is_refused() {
    let request = Request {
        method: "io.echod.Control.GetStatus".to_owned(),
        upgrade: true,
        ..Request::default()
    };
    let outcome = handle(&request, Role::Admin, &Fixture::default());
    let Outcome::Reply(reply) = outcome else {
        panic!("it is answered");
    };
    assert_eq!(reply.error.as_deref(), Some(INVALID_PARAMETER));
}

#[test]
fn a_listener_is_found_by_its_name() {
    assert!(outcome("io.echod.Control.ListListeners", json!({})).contains("dgram"));
    let one = outcome("io.echod.Control.ListListeners", json!({"name": "main"}));
    assert!(one.contains("main") && !one.contains("dgram"), "{one}");
    check(
        "ListListeners",
        json!({"name": "absent"}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"absent"}"#]],
    );
}

/// Its connections could be listed and closed by everything but its name.
#[test]
fn the_peers_of_a_removed_listener_are_found_by_its_name() {
    for method in ["ListPeers", "ClosePeers"] {
        let method = format!("io.echod.Control.{method}");
        let said = outcome(&method, json!({"listener": "removed"}));
        assert!(said.contains(r#"listener: Some("removed")"#), "{said}");
        let said = outcome(&method, json!({"listener": "absent"}));
        assert!(said.contains("ListenerNotFound"), "{said}");
    }
}

#[test]
fn a_parameter_that_is_not_known_or_not_of_its_type_is_named() {
    check(
        "GetStatus",
        json!({"verbose": true}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"verbose"}"#]],
    );
    check(
        "ListPeers",
        json!({"listener": "main", "older": 5}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"older"}"#]],
    );
    check(
        "ListPeers",
        json!({"listener": "main", "older_ms": -5}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"older_ms"}"#]],
    );
    check(
        "ListPeers",
        json!({"limit": "many"}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"limit"}"#]],
    );
    check(
        "ListPeers",
        json!({"address": "10.0.0.0/33"}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"address"}"#]],
    );
    check(
        "ListPeers",
        json!({"sort": "size"}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"sort"}"#]],
    );
    check(
        "SetLogLevel",
        json!({"level": "loud"}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"level"}"#]],
    );
}

#[test]
fn peers_are_asked_for_as_meant() {
    check(
        "ListPeers",
        json!({"address": "10.0.0.7", "sort": "idle", "limit": 3, "idle_ms": null}),
        expect![[
            r#"ListPeers { query: PeerQuery { id: None, listener: None, address: Some(10.0.0.7/32), older_ms: None, idle_ms: None }, sort: Idle, limit: Some(3) }"#
        ]],
    );
    check(
        "ListPeers",
        json!({"listener": "absent"}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"absent"}"#]],
    );
}

#[test]
fn a_call_without_a_selector_closes_nothing() {
    check(
        "ClosePeers",
        json!({"dry_run": false}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"id"}"#]],
    );
    check(
        "ClosePeers",
        json!({"listener": "main", "dry_run": true}),
        expect![[
            r#"ClosePeers { query: PeerQuery { id: None, listener: Some("main"), address: None, older_ms: None, idle_ms: None }, dry_run: true, list: false }"#
        ]],
    );
}

#[test]
fn a_time_to_confirm_is_checked_before_anything_is_read() {
    let (accepted, refused) = (
        |ms: u64| format!("Reload {{ dry_run: false, confirm_within: Some({ms}ms) }}"),
        r#"org.varlink.service.InvalidParameter {"parameter":"confirm_within_ms"}"#,
    );
    let reload = |parameters| outcome("io.echod.Control.Reload", parameters);
    assert_eq!(reload(json!({"confirm_within_ms": 1})), accepted(1));
    check(
        "Reload",
        json!({"confirm_within_ms": 86_400_000}),
        expect!["Reload { dry_run: false, confirm_within: Some(86400s) }"],
    );
    for wrong in [json!(0), json!(86_400_001), json!(-1), json!("60s")] {
        assert_eq!(reload(json!({"confirm_within_ms": wrong})), refused);
    }
    // A dry run has nothing to be confirmed.
    let both = json!({"dry_run": true, "confirm_within_ms": 60_000});
    assert_eq!(reload(both), refused);
}

#[test]
fn a_backlog_is_checked_before_it_is_set() {
    check(
        "SetBacklog",
        json!({"listener": "main", "backlog": 2_147_483_647}),
        expect![[r#"SetBacklog { listener: "main", backlog: 2147483647 }"#]],
    );
    check(
        "SetBacklog",
        json!({"listener": "main", "backlog": 0}),
        expect![[r#"io.echod.Control.InvalidBacklog {"backlog":0}"#]],
    );
    check(
        "SetBacklog",
        json!({"listener": "main", "backlog": 2_147_483_648_i64}),
        expect![[r#"io.echod.Control.InvalidBacklog {"backlog":2147483648}"#]],
    );
    check(
        "SetBacklog",
        json!({"listener": "dgram", "backlog": 5}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"listener"}"#]],
    );
    check(
        "SetBacklog",
        json!({"listener": "main"}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"backlog"}"#]],
    );
    check(
        "SetBacklog",
        json!({"listener": "absent", "backlog": 5}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"absent"}"#]],
    );
}

#[test]
fn a_rejected_configuration_is_an_error_and_any_other_is_not() {
    let reply = reloaded(result(ReloadOutcome::Rejected));
    assert_eq!(reply.error.as_deref(), Some(CONFIG_REJECTED));
    assert_eq!(reply.parameters["result"]["outcome"], "rejected");
    for outcome in [
        ReloadOutcome::Applied,
        ReloadOutcome::Unchanged,
        ReloadOutcome::RolledBack,
    ] {
        assert_eq!(reloaded(result(outcome)).error, None);
    }
}
