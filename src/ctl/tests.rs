//! What a command line means, and how refusals are reported.

use std::path::Path;

use clap::Parser;
use serde_json::json;

use super::args::Which;
use super::*;

fn path(option: Option<&str>, variables: &[(&str, &str)], root: bool, there: &[&str]) -> PathBuf {
    socket_path(
        option.map(PathBuf::from),
        |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        },
        root,
        |path| there.iter().any(|known| Path::new(known) == path),
    )
}

#[test]
fn the_socket_is_where_the_daemon_would_put_it() {
    let own = [("XDG_RUNTIME_DIR", "/run/user/1000")];
    let system = Path::new("/run/echod/control.sock");
    let users = Path::new("/run/user/1000/echod/control.sock");
    assert_eq!(path(None, &own, true, &[]), system);
    assert_eq!(path(None, &[], false, &[]), system);
    assert_eq!(path(None, &own, false, &[]), users);
    assert_eq!(
        path(None, &own, false, &["/run/echod/control.sock"]),
        system
    );
    let both = [
        "/run/echod/control.sock",
        "/run/user/1000/echod/control.sock",
    ];
    assert_eq!(path(None, &own, false, &both), users);
}

#[test]
fn a_named_socket_comes_first() {
    let all = [
        ("ECHOCTL_SOCKET", "/a/named.sock"),
        ("RUNTIME_DIRECTORY", "/run/one:/run/two"),
        ("XDG_RUNTIME_DIR", "/run/user/1000"),
    ];
    assert_eq!(path(Some("x.sock"), &all, true, &[]), Path::new("x.sock"));
    assert_eq!(path(None, &all, true, &[]), Path::new("/a/named.sock"));
    assert_eq!(
        path(None, &all[1..], true, &[]),
        Path::new("/run/one/control.sock")
    );
    let empty = [("ECHOCTL_SOCKET", "")];
    assert_eq!(
        path(None, &empty, true, &[]),
        Path::new("/run/echod/control.sock")
    );
}

fn selected(selector: &str) -> Value {
    let selector = Some(selector.to_owned());
    let args = KickArgs {
        selector,
        ..KickArgs::default()
    };
    serde_json::to_value(selection::closed(args).unwrap()).unwrap()
}

#[test]
fn a_selector_is_an_id_an_address_or_a_name() {
    assert_eq!(selected("4711"), json!({"id": 4711}));
    assert_eq!(selected("10.0.0.0/8"), json!({"address": "10.0.0.0/8"}));
    assert_eq!(selected("::1"), json!({"address": "::1"}));
    assert_eq!(selected("main"), json!({"listener": "main"}));
}

#[test]
fn a_selector_can_be_narrowed_down_and_not_contradicted() {
    let mut args = KickArgs {
        selector: Some("main".to_owned()),
        which: Which {
            idle: Some(Duration::from_secs(3600)),
            ..Which::default()
        },
        dry_run: true,
    };
    let asked = serde_json::to_value(selection::closed(args.clone()).unwrap()).unwrap();
    assert_eq!(
        asked,
        json!({"listener": "main", "idle_ms": 3_600_000, "dry_run": true})
    );
    args.which.listener = Some("lab".to_owned());
    let failure = selection::closed(args).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
}

#[test]
fn refusals_have_words_and_an_exit_status() {
    let reported = |name: &str, parameters: Value| {
        let Value::Object(parameters) = parameters else {
            panic!("parameters are an object");
        };
        let failure = refusal(name, &parameters);
        (failure.exit, failure.messages.join("\n"))
    };
    let (exit, text) = reported(protocol::LISTENER_NOT_FOUND, json!({"name": "x\u{1b}"}));
    assert_eq!(exit, Exit::Failed);
    assert_eq!(text, "listener \"x\\u001b\": there is none of this name");
    assert_eq!(
        reported(protocol::PERMISSION_DENIED, json!({})).0,
        Exit::NotPermitted
    );
    assert_eq!(
        reported(protocol::CONFIG_REJECTED, json!({})).0,
        Exit::Configuration
    );
    let (_, text) = reported(protocol::INVALID_PARAMETER, json!({"parameter": "sort"}));
    assert!(text.contains("idle"), "{text}");
    assert_eq!(reported("a.B", json!({"c": 1})).1, "a.B {\"c\":1}");
}

#[test]
fn an_interface_may_be_left_out() {
    assert_eq!(full_name("GetStatus"), "io.echod.Control.GetStatus");
    assert_eq!(
        full_name("org.varlink.service.GetInfo"),
        "org.varlink.service.GetInfo"
    );
}

/// The daemon may take longer to give up on a new program.
#[test]
fn an_upgrade_is_waited_for_until_the_daemon_has_an_answer() {
    let patience = |line: &str| {
        let words = line.split(' ');
        Cli::try_parse_from(words).expect("it is right").patience()
    };
    assert_eq!(patience("echoctl status"), Duration::from_secs(5));
    assert_eq!(patience("echoctl upgrade"), Duration::from_secs(40));
    assert_eq!(
        patience("echoctl upgrade --timeout 1s"),
        Duration::from_secs(1)
    );
}
