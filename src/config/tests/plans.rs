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
