//! What a command line means, and how refusals are reported.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{Selector, Which};
use super::location::Reason;
use super::*;

fn path(option: Option<&str>, variables: &[(&str, &str)], root: bool, there: &[&str]) -> PathBuf {
    location(option, variables, None, root, there).path
}

fn location(
    option: Option<&str>,
    variables: &[(&str, &str)],
    configured: Option<&str>,
    root: bool,
    there: &[&str],
) -> Location {
    location::socket_path(
        option.map(PathBuf::from),
        |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.into())
        },
        || configured.map(PathBuf::from),
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

/// `systemctl reload` ran echoctl, which did not find a socket that was moved by the configuration.
#[test]
fn a_configured_socket_comes_after_what_is_said_and_before_the_defaults() {
    let of = |variables: &[(&str, &str)], option| {
        let found = location(option, variables, Some("/srv/c.sock"), true, &[]);
        (found.path.display().to_string(), found.reason)
    };
    let runtime = ("RUNTIME_DIRECTORY", "/run/echod");
    let configured = ("/srv/c.sock".to_owned(), Reason::Configuration);
    assert_eq!(of(&[], None), configured);
    assert_eq!(of(&[runtime], None), configured);
    let variable = [runtime, ("ECHOCTL_SOCKET", "/a.sock")];
    assert_eq!(of(&variable, None), ("/a.sock".into(), Reason::Variable));
    assert_eq!(of(&variable, Some("o")), ("o".into(), Reason::Option));
    // The daemon that runs may have been started before the configuration named a socket.
    let otherwise = |path| {
        let found = location(None, &[runtime], Some(path), true, &[]);
        found.otherwise.map(|default| default.path)
    };
    let default = "/run/echod/control.sock";
    assert_eq!(otherwise("/srv/c.sock"), Some(default.into()));
    assert_eq!(otherwise(default), None);
    let default = location(None, &[], None, true, &[]);
    assert_eq!(default.reason, Reason::System);
    let own = [("XDG_RUNTIME_DIR", "/run/user/1000")];
    assert_eq!(location(None, &own, None, false, &[]).reason, Reason::User);
}

fn selected(selector: &str) -> Value {
    let line = Cli::try_parse_from(["echoctl", "kick", selector]).unwrap();
    let Command::Kick(args) = line.command else {
        panic!("not a kick")
    };
    serde_json::to_value(selection::closed(args).unwrap()).unwrap()
}

#[test]
fn a_selector_is_an_id_an_address_or_a_name() {
    assert_eq!(selected("4711"), json!({"id": 4711}));
    assert_eq!(selected("10.0.0.0/8"), json!({"address": "10.0.0.0/8"}));
    assert_eq!(selected("::1"), json!({"address": "::1"}));
    for name in ["main", "v1.2", "10.0.0.0a"] {
        assert_eq!(selected(name), json!({ "listener": name }));
    }
}

/// "there is none of this name" was the answer to a typing error in a network.
#[test]
fn a_selector_that_looks_like_an_address_and_is_none_is_a_usage_error() {
    let ipv4 = "not a network: the prefix of an IPv4 address has 0 to 32 bits";
    let ipv6 = "not a network: the prefix of an IPv6 address has 0 to 128 bits";
    let address = "not an address: write e.g. 192.0.2.1 or 192.0.2.0/24";
    for (selector, expected) in [
        ("10.0.0.0/33", ipv4),
        ("1.2.3.4/", ipv4),
        ("1.2.3.4/x", ipv4),
        ("::1/129", ipv6),
        ("10.0.0.256", address),
        ("10.0.0.256/8", address),
        ("10.0.0", address),
        (
            "10.0.0.1:7",
            "not an address: no port belongs to it: write 10.0.0.1, or the id",
        ),
        (
            "[::1]:7",
            "not an address: no port belongs to it: write ::1, or the id",
        ),
        ("main/8", address),
        ("[::1]", address),
        ("fe80::1%lo", address),
        ("99999999999999999999", "not an id: the largest is "),
        ("my listener", "not a listener's name: these are 1 to 64 "),
        ("", "not a listener's name: "),
    ] {
        let error = Cli::try_parse_from(["echoctl", "kick", selector]).expect_err(selector);
        let text = error.to_string();
        assert_eq!(error.exit_code(), Exit::Usage as i32, "{selector}");
        let quoted = format!("'{selector}'");
        assert!(text.contains(&quoted) && text.contains(expected), "{text}");
    }
}

#[test]
fn a_selector_can_be_narrowed_down_and_not_contradicted() {
    let mut args = KickArgs {
        selector: Some(Selector::Listener("main".to_owned())),
        which: Which {
            idle: Some(Duration::from_secs(3600)),
            ..Which::default()
        },
        dry_run: true,
        verbose: false,
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
        let method = "io.echod.Control.SetBacklog";
        let failure = refusal::refusal(method, name, &parameters).failure;
        (failure.exit, failure.messages.join("\n"))
    };
    let (exit, text) = reported(protocol::LISTENER_NOT_FOUND, json!({"name": "x\u{1b}"}));
    assert_eq!(exit, Exit::Failed);
    assert_eq!(text, "listener \"x\\u001b\": there is none of this name");
    let (exit, text) = reported(protocol::PERMISSION_DENIED, json!({}));
    assert_eq!(exit, Exit::NotPermitted);
    let expected = format!(
        "permission denied: you are uid {}, and SetBacklog is for operators: ask as root, or have [control] \
         operators name your user, or a group of yours as \"@group\", and the daemon reloaded",
        nix::unistd::geteuid()
    );
    assert_eq!(text, expected);
    assert_eq!(
        reported(protocol::CONFIG_REJECTED, json!({})).0,
        Exit::Configuration
    );
    let (_, text) = reported(protocol::INVALID_PARAMETER, json!({"parameter": "via"}));
    assert!(
        text.starts_with("via: missing, unknown to this echod"),
        "{text}"
    );
    assert_eq!(reported("a.B", json!({"c": 1})).1, "a.B {\"c\":1}");
}

#[test]
fn an_error_is_one_object_for_programs() {
    let Value::Object(parameters) = json!({"name": "x"}) else {
        unreachable!("it is an object");
    };
    let refused = refusal::refusal("", protocol::LISTENER_NOT_FOUND, &parameters);
    assert_eq!(
        refused.json(),
        Some(json!({
            "error": "io.echod.Control.ListenerNotFound",
            "name": "x",
            "messages": ["listener \"x\": there is none of this name"],
            "exit_status": 1,
        }))
    );
    let own = Complaint::from(Failure::with(Exit::TimedOut, "late"));
    assert_eq!(
        own.json(),
        Some(json!({
            "error": "echoctl.TimedOut",
            "messages": ["late"],
            "exit_status": 75,
        }))
    );
    // The reply has said it already.
    assert_eq!(Complaint::from(Failure::quiet(Exit::Failed)).json(), None);
}

/// Exit status 1 and "not one", without the value, were all that one learned.
#[test]
fn a_wrong_value_is_a_usage_error_that_quotes_it_and_says_what_would_be_right() {
    for (line, value, right) in [
        (
            "log-level loud",
            "'loud'",
            "possible values: off, error, warn, info, debug, trace",
        ),
        (
            "peers --sort size",
            "'size'",
            "possible values: id, listener, address, age",
        ),
        (
            "peers --address main",
            "'main'",
            "write e.g. 192.0.2.1 or 192.0.2.0/24",
        ),
        (
            "kick --address 1.2.3.4/33",
            "'1.2.3.4/33'",
            "the prefix of an IPv4 address has 0 to 32 bits",
        ),
        (
            "peers --older soon",
            "'soon'",
            "write e.g. 250ms, 30s or 10m",
        ),
        (
            "kick --idle 90",
            "'90'",
            "a number without a unit: write e.g. 90s or 90m",
        ),
        ("peers --limit many", "'many'", "write e.g. 20"),
        ("backlog main -1", "'-1'", "a number from 1 to 2147483647"),
        ("backlog main 0", "'0'", "a number from 1 to 2147483647"),
        (
            "listeners --watch --interval 1ms",
            "'1ms'",
            "100ms at least",
        ),
        ("status --timeout 1", "'1'", "write e.g. 1s or 1m"),
        ("status --timeout 0s", "'0s'", "no time at all"),
        ("peers --limit -1", "'-1'", "write e.g. 20"),
        ("peers --older -1s", "'-1s'", "write e.g. 250ms"),
    ] {
        let words = std::iter::once("echoctl").chain(line.split(' '));
        let error = Cli::try_parse_from(words).expect_err(line);
        let text = error.to_string();
        assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
        assert!(text.contains(value) && text.contains(right), "{text}");
    }
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
