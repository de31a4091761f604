//! Values in, text out.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::ctl::lists::{Screen, listeners, peers};
use crate::ctl::watch::Rates;
use crate::protocol::schema::Peer;

const PLAIN: Paint = Paint { colored: false };
const WHOLE: Screen = Screen {
    paint: PLAIN,
    width: None,
};
const COLORED: Paint = Paint { colored: true };

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "snapshots are written in place"
)]
fn check(text: String, expected: Expect) {
    expected.assert_eq(&text);
}

fn rejected() -> ReloadResult {
    parse(json!({
        "id": 3, "generation": 2, "trigger": "signal", "outcome": "rejected",
        "at": "2026-01-02T03:04:05Z", "duration_us": 480,
        "errors": [
            {"file": "/etc/echod/echod.toml", "line": 14, "column": 3, "key": "backlog",
             "message": "backlog \"many\": not a number: write 1 to 2147483647"},
            {"file": "/etc/echod/echod.d/x.toml", "message": "evil \u{1b}[31m name"},
        ],
        "warnings": [], "changes": [],
    }))
}

fn applied() -> ReloadResult {
    parse(json!({
        "id": 4, "generation": 3, "trigger": "control", "outcome": "applied",
        "at": "2026-01-02T03:04:05Z", "duration_us": 1250, "errors": [],
        "warnings": [{"file": "/etc/echod/echod.toml", "line": 9, "column": 1,
                      "message": "workers: needs a restart"}],
        "changes": [
            {"listener": "lab", "action": "add", "keys": [], "connections": 0,
             "text": "listens on 127.0.0.1:7"},
            {"listener": "main", "action": "update", "keys": ["backlog"], "connections": 812,
             "text": "backlog 1024 → 4096"},
            {"listener": "dgram", "action": "keep", "keys": [], "connections": 0, "text": ""},
            {"action": "update", "keys": ["level"], "connections": 0, "text": "log level debug"},
        ],
    }))
}

fn two_listeners() -> Vec<Listener> {
    parse(json!([
        {"name": "main", "protocol": "tcp", "addresses": ["0.0.0.0:7", "[::]:7"], "reply": "echo",
         "state": "listening", "sockets": 8,
         "backlog": {"requested": 8000, "effective": 4096, "limit": 4096, "queued": 2,
                     "overflows": 12},
         "connections": 812, "max_connections": 10_000, "peak": 900, "accepted": 4711,
         "refused": {"denied": 10, "full": 2, "per-source": 0},
         "closed": {"finished": 3890, "idle": 7, "reset": 2, "failed": 0}, "faults": 3,
         "datagrams_received": 0, "datagrams_sent": 0, "bytes_received": 1_288_490_188,
         "bytes_sent": 1_288_490_188, "overridden": ["backlog"]},
        {"name": "dgram", "protocol": "udp", "addresses": ["0.0.0.0:7"], "reply": "upper",
         "state": "paused", "sockets": 4, "connections": 0, "max_connections": 0, "peak": 0,
         "accepted": 0, "refused": {}, "closed": {"finished": 0}, "faults": 0,
         "datagrams_received": 9, "datagrams_sent": 8, "bytes_received": 90, "bytes_sent": 80,
         "overridden": []},
    ]))
}

fn a_status(last_reload: &ReloadResult) -> Status {
    parse(json!({
        "version": "0.1.0", "pid": 4711, "uptime_ms": 190_800_000, "state": "serving",
        "driver": "io_uring", "workers": 4,
        "config": ["/etc/echod/echod.toml", "/etc/echod/echod.d/lab.toml"], "generation": 2,
        "last_reload": last_reload, "listeners": 2, "connections": 812,
        "bytes_received": 1_288_490_188, "bytes_sent": 1_288_490_188,
    }))
}

#[test]
fn status_is_one_screen() {
    check(
        status(&a_status(&applied()), PLAIN),
        expect![[r#"
            echod 0.1.0, serving, up 2d 5h
              process        pid 4711, 4 workers, io_uring
              configuration  generation 2: /etc/echod/echod.toml, /etc/echod/echod.d/lab.toml
              last reload    applied, generation 3, in 1.25 ms, by the control socket, at 2026-01-02T03:04:05Z
                             /etc/echod/echod.toml:9:1: workers: needs a restart
              listeners      2
              connections    812
              received       1.2 GiB
              sent           1.2 GiB
        "#]],
    );
}

#[test]
fn status_shows_a_rejected_reload_in_red() {
    check(
        status(&a_status(&rejected()), COLORED).replace('\x1b', "ESC"),
        expect![[r#"
            ESC[1mechod 0.1.0ESC[0m, serving, up 2d 5h
              process        pid 4711, 4 workers, io_uring
              configuration  generation 2: /etc/echod/echod.toml, /etc/echod/echod.d/lab.toml
              last reload    ESC[31mrejectedESC[0m, generation 2, in 480 µs, by signal, at 2026-01-02T03:04:05Z
                             ESC[31m/etc/echod/echod.toml:14:3: backlog "many": not a number: write 1 to 2147483647ESC[0m
                             ESC[31m/etc/echod/echod.d/x.toml: evil \u{1b}[31m nameESC[0m
              listeners      2
              connections    812
              received       1.2 GiB
              sent           1.2 GiB
        "#]],
    );
}

#[test]
fn listeners_are_a_table() {
    check(
        listeners(&two_listeners(), None, WHOLE).whole(),
        expect![[r#"
            NAME   PROTOCOL  ADDRESSES          REPLY  STATE      SOCKETS  BACKLOG  QUEUED  CONNECTIONS  ACCEPTED  DATAGRAMS  REFUSED  RECEIVED     SENT
            main   tcp       0.0.0.0:7, [::]:7  echo   listening        8     4096       2          812      4711          -       12   1.2 GiB  1.2 GiB
            dgram  udp       0.0.0.0:7          upper  paused           4        -       -            -         -          9        0      90 B     80 B
            2 listeners, 812 connections, 1.2 GiB received, 1.2 GiB sent
        "#]],
    );
}

/// 80 columns, as terminals have them by default.
const NARROW: Screen = Screen {
    paint: PLAIN,
    width: Some(80),
};

#[test]
fn on_a_narrow_terminal_less_important_columns_are_left_out() {
    check(
        listeners(&two_listeners(), None, NARROW).whole(),
        expect![[r#"
            NAME   PROTOCOL  ADDRESSES          STATE      QUEUED  CONNECTIONS  REFUSED
            main   tcp       0.0.0.0:7, [::]:7  listening       2          812       12
            dgram  udp       0.0.0.0:7          paused          -            -        0
            2 listeners, 812 connections, 1.2 GiB received, 1.2 GiB sent
            7 more columns: --wide
        "#]],
    );
}

/// One that refuses clients looked like any other.
#[test]
fn a_full_listener_says_so_and_a_retired_one_is_counted_apart() {
    let mut full = two_listeners();
    full[0].connections = 10_000;
    full[1].state = ListenerState::Retired;
    check(
        listeners(&full, None, NARROW).whole(),
        expect![[r#"
            NAME   PROTOCOL  ADDRESSES          STATE      QUEUED       CONNECTIONS  REFUSED
            main   tcp       0.0.0.0:7, [::]:7  listening       2  10000/10000 full       12
            dgram  udp       0.0.0.0:7          retired         -                 -        0
            1 listener, 1 retired, 10000 connections, 1.2 GiB received, 1.2 GiB sent
            7 more columns: --wide
        "#]],
    );
}

#[test]
fn a_watched_list_has_rates() {
    let start = std::time::Instant::now();
    let mut rates = Rates::default();
    rates.update(start, [("main".to_owned(), [0, 0])]);
    let later = start + std::time::Duration::from_secs(1);
    rates.update(later, [("main".to_owned(), [2048, 1024])]);
    check(
        listeners(&two_listeners(), Some(&rates), NARROW).whole(),
        expect![[r#"
            NAME   ADDRESSES          STATE      QUEUED  CONNECTIONS     IN/S    OUT/S
            main   0.0.0.0:7, [::]:7  listening       2          812  2.0 KiB  1.0 KiB
            dgram  0.0.0.0:7          paused          -            -        -        -
            2 listeners, 812 connections, 1.2 GiB received, 1.2 GiB sent
            9 more columns: --wide
        "#]],
    );
}

#[test]
fn one_listener_is_shown_in_full() {
    check(
        listener(&two_listeners()[0], PLAIN),
        expect![[r#"
            main, tcp, listening
              addresses      0.0.0.0:7
                             [::]:7
              reply          echo
              sockets        8
              backlog        8000 requested → 4096 effective
                             capped by net.core.somaxconn = 4096; raise it with sysctl -w net.core.somaxconn=8000
                             2 queued now, 12 overflows so far
              connections    812 of 10000, 900 at the peak
              accepted       4711
              refused        12: 10 denied, 2 full
              closed         3899: 3890 finished, 7 idle, 2 reset
              faults         3
              received       1.2 GiB
              sent           1.2 GiB
              overridden     backlog
        "#]],
    );
    check(
        listener(&two_listeners()[1], PLAIN),
        expect![[r#"
            dgram, udp, paused
              addresses      0.0.0.0:7
              reply          upper
              sockets        4
              datagrams      9 datagrams received, 8 sent
              refused        0
              received       90 B
              sent           80 B
        "#]],
    );
}

#[test]
fn a_listener_of_an_earlier_daemon_is_shown_without_what_that_does_not_report() {
    let earlier = parse(json!(
        {"name": "main", "protocol": "tcp", "addresses": [], "reply": "echo", "state": "listening",
         "sockets": 0,
         "backlog": {"requested": 1, "effective": 1, "limit": 4096, "queued": 0, "overflows": 0},
         "connections": 812, "accepted": 4711, "refused": {}, "datagrams_received": 0,
         "datagrams_sent": 0, "bytes_received": 1, "bytes_sent": 1, "overridden": []}
    ));
    check(
        listener(&earlier, PLAIN),
        expect![[r#"
            main, tcp, listening
              reply          echo
              sockets        0
              backlog        1 requested → 1 effective
                             0 queued now, 0 overflows so far
              connections    812
              accepted       4711
              refused        0
              received       1 B
              sent           1 B
        "#]],
    );
}

#[test]
fn peers_are_a_table_without_empty_columns() {
    let listed: Vec<Peer> = parse(json!([
        {"id": 7, "listener": "main", "protocol": "tcp", "address": "192.0.2.1:50000",
         "local_address": "192.0.2.9:7", "age_ms": 312_000, "idle_ms": 20,
         "bytes_received": 90, "bytes_sent": 1536, "rtt_us": 85, "retransmits": 0,
         "send_queue": 0},
        {"id": 4711, "listener": "local\u{1b}[2J", "protocol": "unix-stream", "address": "",
         "local_address": "/run/echo.sock", "age_ms": 5000, "idle_ms": 4000,
         "bytes_received": 0, "bytes_sent": 0, "pid": 99, "uid": 1000},
    ]));
    check(
        peers(&listed, 2, None, WHOLE).whole(),
        expect![[r#"
              ID  LISTENER        PROTOCOL     ADDRESS          LOCAL              AGE  IDLE  RECEIVED     SENT    RTT  RETRANSMITS  UNSENT  PID   UID
               7  main            tcp          192.0.2.1:50000  192.0.2.9:7     5m 12s  20ms      90 B  1.5 KiB  85 µs            0     0 B    -     -
            4711  local\u{1b}[2J  unix-stream  -                /run/echo.sock      5s    4s       0 B      0 B      -            -       -   99  1000
            2 peers
        "#]],
    );
    check(
        peers(&listed[..1], 812, None, WHOLE).whole(),
        expect![[r#"
            ID  LISTENER  PROTOCOL  ADDRESS          LOCAL           AGE  IDLE  RECEIVED     SENT    RTT  RETRANSMITS  UNSENT
             7  main      tcp       192.0.2.1:50000  192.0.2.9:7  5m 12s  20ms      90 B  1.5 KiB  85 µs            0     0 B
            1 of 812 peers
        "#]],
    );
    check(
        peers(&[], 0, None, WHOLE).whole(),
        expect![[r#"
        0 peers
    "#]],
    );
}

#[test]
fn a_backlog_says_when_the_kernel_capped_it() {
    let capped = two_listeners()[0].backlog.unwrap();
    check(
        backlog("main", &capped, PLAIN),
        expect![[r#"
        main: backlog 8000 requested → 4096 effective
          capped by net.core.somaxconn = 4096; raise it with sysctl -w net.core.somaxconn=8000
          2 queued now, 12 overflows so far
    "#]],
    );
    let raised = Backlog {
        limit: 65_535,
        ..capped
    };
    check(
        backlog("main", &raised, PLAIN),
        expect![[r#"
        main: backlog 8000 requested → 4096 effective
          capped when it was set; net.core.somaxconn = 65535 by now: set it again
          2 queued now, 12 overflows so far
    "#]],
    );
    let before = Backlog {
        requested: 1024,
        effective: 1024,
        overflows: 1,
        ..capped
    };
    let reply = SetBacklogReply {
        before: capped,
        after: before,
    };
    check(
        backlog_set("main", &reply, PLAIN),
        expect![[r#"
        main: backlog 1024 requested → 1024 effective
          2 queued now, 1 overflow so far
          before: 8000 requested → 4096 effective
    "#]],
    );
}

#[test]
fn kick_counts() {
    let text = |matched, closed, dry_run| kicked(&ClosePeersReply { matched, closed }, dry_run);
    assert_eq!(text(0, 0, false), "no connection matches\n");
    assert_eq!(text(3, 0, true), "would close 3 connections\n");
    assert_eq!(text(1, 1, false), "closed 1 connection\n");
    assert_eq!(text(3, 2, false), "closed 2 of 3 connections\n");
}

#[test]
fn a_reload_lists_what_changed() {
    check(
        reload(&applied(), PLAIN),
        expect![[r#"
        applied, generation 3, in 1.25 ms, by the control socket, at 2026-01-02T03:04:05Z
        warning: /etc/echod/echod.toml:9:1: workers: needs a restart
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  listens on 127.0.0.1:7
        update  main              812  backlog 1024 → 4096
        update  (daemon)            0  log level debug
        3 changes, 1 kept as is
    "#]],
    );
    check(
        reload_plan(&applied(), PLAIN),
        expect![[r#"
        dry run, nothing has changed: the configuration would be applied
        warning: /etc/echod/echod.toml:9:1: workers: needs a restart
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  listens on 127.0.0.1:7
        update  main              812  backlog 1024 → 4096
        update  (daemon)            0  log level debug
        3 changes, 1 kept as is
    "#]],
    );
}

#[test]
fn the_errors_of_a_configuration_say_where() {
    check(
        errors(&rejected().errors, PLAIN),
        expect![[r#"
        echoctl: /etc/echod/echod.toml:14:3: backlog "many": not a number: write 1 to 2147483647
        echoctl: /etc/echod/echod.d/x.toml: evil \u{1b}[31m name
    "#]],
    );
}

#[test]
fn keys_that_wait_for_the_next_start_are_not_said_to_be_unchanged() {
    let mut result = applied();
    result.outcome = ReloadOutcome::Unchanged;
    let begins = |text: String, begin: &str| assert!(text.starts_with(begin), "{text}");
    begins(reload(&result, PLAIN), "unchanged before the next start, ");
    let plan = "dry run, nothing has changed: nothing would change before the next start\n";
    begins(reload_plan(&result, PLAIN), plan);
    result.changes.clear();
    begins(reload(&result, PLAIN), "unchanged, ");
}
