//! What a reload would do, in the words of the plan.

use super::*;

fn check_plan(old: &str, new: &str, connections: &[(&str, u64)], expect: &Expect) {
    check_words(old, new, connections, Mood::Real, expect);
}

fn check_words(old: &str, new: &str, connections: &[(&str, u64)], mood: Mood, expect: &Expect) {
    let connections = connections
        .iter()
        .map(|(name, count)| ((*name).into(), *count))
        .collect();
    let plan = plan(&valid(old), &valid(new), &connections, mood);
    let line = |change: &Change| {
        format!(
            "{} {:?}\n    {}\n",
            change.action.name(),
            change.keys,
            change.text
        )
    };
    let mut words: String = plan.changes.iter().map(line).collect();
    if !plan.restart.is_empty() {
        let restart = plan.restart.iter();
        let restart: Vec<_> = restart
            .map(|key| format!("{}.{}", key.section.name(), key.name))
            .collect();
        words += &format!("at the next start: {}\n", restart.join(", "));
    }
    if plan.is_empty() {
        words += "nothing changes\n";
    }
    expect.assert_eq(&words);
}

#[test]
fn a_default_written_out_is_no_change() {
    check_plan(
        TCP,
        &format!("{}{TCP}", default_text()),
        &[("a", 812)],
        &expect![[r#"
            keep []
                a: unchanged; 812 connections stay
            nothing changes
        "#]],
    );
}

#[test]
fn new_values_take_effect_as_their_keys_say() {
    check_plan(
        TCP,
        &format!(
            "{TCP}backlog = 4096\nreply = \"upper\"\nallow = [\"10.0.0.0/8\"]\nmax-per-source = 3\n"
        ),
        &[("a", 812)],
        &expect![[r#"
            update ["reply", "backlog", "max-per-source", "allow"]
                a: reply echo → upper (new connections), backlog 1024 → 4096 (live), max-per-source off → 3 (live), allow [] → ["10.0.0.0/8"] (live); 812 connections stay
        "#]],
    );
}

#[test]
fn other_source_ports_are_refused_at_once() {
    let udp = TCP.replace("tcp", "udp");
    check_plan(
        &udp,
        &format!("{udp}refuse-source-ports = [7, 19]\n"),
        &[],
        &expect![[r#"
            update ["refuse-source-ports"]
                a: refuse-source-ports default → [7, 19] (live)
        "#]],
    );
    check_plan(
        &format!("{udp}refuse-source-ports = [19, 7]\n"),
        &format!("{udp}refuse-source-ports = [7, 19, 7]\n"),
        &[],
        &expect![[r#"
            keep []
                a: unchanged
            nothing changes
        "#]],
    );
}

#[test]
fn another_address_or_protocol_is_bound_anew() {
    check_plan(
        TCP,
        &TCP.replace(":7", ":8"),
        &[("a", 1)],
        &expect![[r#"
        rebind ["address"]
            a: address 127.0.0.1:7 → 127.0.0.1:8 (re-bind); the old queue is served; 1 connection stays
    "#]],
    );
    check_plan(
        &format!("{TCP}backlog = 3\n"),
        &TCP.replace("tcp", "udp"),
        &[("a", 2)],
        &expect![[r#"
        rebind ["protocol"]
            a: protocol tcp → udp (re-bind); the old queue is served; 2 connections stay
    "#]],
    );
    check_plan(
        TCP,
        &format!("{TCP}sockets = 2\nbacklog = 5\n"),
        &[],
        &expect![[r#"
        rebind ["sockets", "backlog"]
            a: sockets auto → 2 (re-bind), backlog 1024 → 5 (live); the old queue is served
    "#]],
    );
}

#[test]
fn the_order_of_addresses_and_networks_is_no_change() {
    let with = |address: &str, allow: &str| {
        format!("[listener.a]\nprotocol = \"tcp\"\naddress = {address}\nallow = {allow}\n")
    };
    check_plan(
        &with("[\"*:7\", \"*:8\"]", "[\"10.0.0.0/8\", \"11.0.0.0/8\"]"),
        &with("[\"*:8\", \"*:7\"]", "[\"11.0.0.0/8\", \"10.0.0.0/8\"]"),
        &[],
        &expect![[r#"
            keep []
                a: unchanged
            nothing changes
        "#]],
    );
}

#[test]
fn listeners_come_and_go_in_the_order_of_their_names() {
    let lab = "[listener.lab]\nprotocol = \"udp\"\naddress = [\"*:7\", \"*:8\"]\n";
    let old = "[listener.old]\nprotocol = \"tcp\"\naddress = \"*:8\"\n";
    check_plan(
        &format!("{old}{TCP}"),
        &format!("{lab}{TCP}"),
        &[("old", 3)],
        &expect![[r#"
        keep []
            a: unchanged
        add []
            lab: added on *:7, *:8 (udp)
        remove []
            old: removed; its queue is served, 3 connections stay until they end
    "#]],
    );
    check_plan(
        &format!("{lab}{TCP}"),
        &format!("{old}{TCP}"),
        &[],
        &expect![[r#"
        keep []
            a: unchanged
        remove []
            lab: removed
        add []
            old: added on *:8 (tcp)
    "#]],
    );
    check_plan(
        &format!("{old}{TCP}"),
        TCP,
        &[("old", 1), ("a", 1)],
        &expect![[r#"
        keep []
            a: unchanged; 1 connection stays
        remove []
            old: removed; its queue is served, 1 connection stays until it ends
    "#]],
    );
}

#[test]
fn the_daemon_says_what_needs_a_restart() {
    check_plan(
        TCP,
        &format!(
            "[daemon]\nworkers = 2\ndrain-timeout = \"1m\"\n[control]\ngroup = \"ops\"\n[log]\nlevel = \"debug\"\n{TCP}"
        ),
        &[],
        &expect![[r#"
            keep []
                a: unchanged
            update ["workers", "drain-timeout", "group", "level"]
                daemon: workers auto → 2 (needs a restart), drain-timeout 30s → 1m (live), control group not set → ops (needs a restart), log level info → debug (live)
            at the next start: daemon.workers, control.group
        "#]],
    );
}

#[test]
fn what_waits_for_the_next_start_changes_nothing() {
    let running = valid(TCP);
    let text = format!("[daemon]\nworkers = 2\n[control]\ngroup = \"ops\"\n{TCP}");
    check_plan(
        TCP,
        &text,
        &[],
        &expect![[r#"
            keep []
                a: unchanged
            update ["workers", "group"]
                daemon: workers auto → 2 (needs a restart), control group not set → ops (needs a restart)
            at the next start: daemon.workers, control.group
            nothing changes
        "#]],
    );
    let mut config = valid(&text);
    config.keep_restart_keys_of(&running);
    assert_eq!(config, running);
}

#[test]
fn a_dry_run_says_what_would_be() {
    let old = "[listener.old]\nprotocol = \"tcp\"\naddress = \"*:8\"\n";
    let lab = "[listener.lab]\nprotocol = \"tcp\"\naddress = \"*:9\"\n";
    let kept = "[listener.kept]\nprotocol = \"tcp\"\naddress = \"*:10\"\n";
    check_words(
        &format!("{old}{TCP}{kept}"),
        &format!("[log]\nlevel = \"debug\"\n{lab}{TCP}sockets = 2\n{kept}"),
        &[("a", 2), ("old", 1), ("kept", 1)],
        Mood::Conditional,
        &expect![[r#"
            rebind ["sockets"]
                a: would change: sockets auto → 2 (re-bind); the old queue would be served; 2 connections would stay
            keep []
                kept: would stay as it is; 1 connection would stay
            add []
                lab: would be added on *:9 (tcp)
            remove []
                old: would be removed; its queue would be served, 1 connection would stay until it ends
            update ["level"]
                daemon: would change: log level info → debug (live)
        "#]],
    );
}

/// The words of a summary, where the first listener of the old configuration has a connection, the
/// second two, and so on.
#[expect(clippy::needless_pass_by_value, reason = "values are written in place")]
fn check_summary(old: &str, new: &str, mood: Mood, expected: Expect) {
    let (old, new) = (valid(old), valid(new));
    let names = old.listeners.keys().cloned();
    let connections = names.zip(1..).collect();
    expected.assert_eq(&plan(&old, &new, &connections, mood).summary(mood));
}

#[test]
fn a_summary_says_what_becomes_of_listeners_and_connections() {
    let tcp = |name: &str, port: u16, more: &str| {
        format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"*:{port}\"\n{more}\n")
    };
    let old = ["a", "b", "c", "d"].into_iter().zip(7..);
    let old: String = old.map(|(name, port)| tcp(name, port, "")).collect();
    let new = [
        tcp("a", 7, ""),
        tcp("b", 8, "backlog = 5"),
        tcp("c", 19, ""),
        tcp("e", 20, ""),
    ]
    .concat();
    check_summary(
        &old,
        &new,
        Mood::Real,
        expect![
            "1 listener unchanged (1 connection kept), b updated (2 kept), c re-bound (3 kept), d removed (4 kept), e added"
        ],
    );
    check_summary(
        &old,
        &format!("{new}[log]\nlevel = \"debug\"\n[daemon]\nworkers = 2\n"),
        Mood::Conditional,
        expect![
            "1 listener would stay unchanged (1 connection kept), b would be updated (2 kept), c would be re-bound (3 kept), d would be removed (4 kept), e would be added, daemon would be updated"
        ],
    );
    check_summary(
        &old,
        &format!("{old}[daemon]\nworkers = 2\n"),
        Mood::Real,
        expect![
            "4 listeners unchanged (10 connections kept), daemon as it is until the next start"
        ],
    );
    let many: String = (0..9).map(|n| tcp(&format!("n{n}"), 100 + n, "")).collect();
    check_summary(
        &many,
        &tcp("n0", 100, ""),
        Mood::Real,
        expect![
            "1 listener unchanged (1 connection kept), n1 removed (2 kept), n2 removed (3 kept), n3 removed (4 kept), n4 removed (5 kept), n5 removed (6 kept), 3 more changed (24 kept)"
        ],
    );
    check_summary(
        &many,
        &old,
        Mood::Conditional,
        expect![
            "a would be added, b would be added, c would be added, d would be added, n0 would be removed (1 kept), 8 more would change (44 kept)"
        ],
    );
}
