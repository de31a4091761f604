//! Requests in, outcomes out.

use expect_test::{Expect, expect};

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

fn snapshot() -> Snapshot {
    Snapshot {
        status: Status {
            version: "0.1.0".to_owned(),
            pid: 1,
            uptime_ms: 2,
            state: "serving".to_owned(),
            driver: "epoll".to_owned(),
            workers: 3,
            config: Vec::new(),
            generation: 1,
            last_reload: result(ReloadOutcome::Applied),
            listeners: 2,
            connections: 0,
            bytes_received: 0,
            bytes_sent: 0,
        },
        listeners: vec![
            listener("main", "tcp", Some(Backlog::default())),
            listener("dgram", "udp", None),
        ],
        config: "[daemon]\n".to_owned(),
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
    match handle(&request, &snapshot()) {
        Outcome::Reply(reply) => {
            let error = reply.error.map_or(String::new(), |name| format!("{name} "));
            error + &Value::Object(reply.parameters).to_string()
        }
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
fn every_method_of_the_table_is_answered() {
    for method in METHODS {
        let outcome = outcome(method.name, json!({}));
        assert!(!outcome.contains("NotFound"), "{}: {outcome}", method.name);
    }
}

#[test]
fn what_changes_something_is_not_for_everybody() {
    assert_eq!(role("io.echod.Control.ListPeers"), Role::Reader);
    assert_eq!(role("io.echod.Control.ClosePeers"), Role::Operator);
    assert_eq!(role("io.echod.Control.Reload"), Role::Admin);
    assert!(Role::Reader < Role::Operator && Role::Operator < Role::Admin);
}

#[test]
fn an_upgrade_is_refused() {
    let request = Request {
        method: "io.echod.Control.GetStatus".to_owned(),
        upgrade: true,
        ..Request::default()
    };
    let Outcome::Reply(reply) = handle(&request, &snapshot()) else {
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
        json!({"name": "nobody"}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"nobody"}"#]],
    );
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
            r#"ListPeers(PeerQuery { id: None, listener: None, address: Some(10.0.0.7/32), older_ms: None, idle_ms: None, streams_only: false, sort: Idle, limit: Some(3) })"#
        ]],
    );
    check(
        "ListPeers",
        json!({"listener": "nobody"}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"nobody"}"#]],
    );
}

#[test]
fn nobody_closes_all_connections_by_accident() {
    check(
        "ClosePeers",
        json!({"dry_run": false}),
        expect![[r#"org.varlink.service.InvalidParameter {"parameter":"id"}"#]],
    );
    check(
        "ClosePeers",
        json!({"listener": "main", "dry_run": true}),
        expect![[
            r#"ClosePeers { query: PeerQuery { id: None, listener: Some("main"), address: None, older_ms: None, idle_ms: None, streams_only: true, sort: Id, limit: None }, dry_run: true }"#
        ]],
    );
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
        json!({"listener": "nobody", "backlog": 5}),
        expect![[r#"io.echod.Control.ListenerNotFound {"name":"nobody"}"#]],
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
