//! Values in, text out.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;
use crate::ctl::lists::{listeners, peers};
use crate::ctl::watch::Rates;
use crate::protocol::schema::Peer;

const PLAIN: Paint = Paint { colored: false };
const WHOLE: Screen = Screen {
    paint: PLAIN,
    width: None,
};

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
             "text": "lab: added on 127.0.0.1:7 (tcp)"},
            {"listener": "main", "action": "update", "keys": ["backlog"], "connections": 812,
             "text": "main: backlog 1024 → 4096 (live)"},
            {"listener": "dgram", "action": "keep", "keys": [], "connections": 0, "text": ""},
            {"action": "update", "keys": ["level"], "connections": 0, "text": "daemon: log level info → debug (live)"},
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
            NAME   PROTOCOL  ADDRESSES          STATE      CONNECTIONS  DATAGRAMS  REFUSED
            main   tcp       0.0.0.0:7, [::]:7  listening          812          -       12
            dgram  udp       0.0.0.0:7          paused               -          9        0
            2 listeners, 812 connections, 1.2 GiB received, 1.2 GiB sent
            7 more columns: --wide
        "#]],
    );
}

/// The terminal broke it anywhere.
#[test]
fn the_totals_fit_a_terminal_of_40_columns() {
    let width = Some(40);
    let screen = Screen { width, ..NARROW };
    check(
        listeners(&two_listeners(), None, screen).footer,
        expect![[r#"
            2 listeners, 812 connections,
              1.2 GiB received, 1.2 GiB sent
            10 more columns: --wide
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
            NAME   PROTOCOL  ADDRESSES       STATE           CONNECTIONS  DATAGRAMS  REFUSED
            main   tcp       0.0.0.0:7 +1    listening  10000/10000 full          -       12
            dgram  udp       0.0.0.0:7       retired                   -          9        0
            1 listener, 1 retired, 10000 connections, 1.2 GiB received, 1.2 GiB sent
            7 more columns: --wide
        "#]],
    );
}

/// At 80 columns there was no room for PROTOCOL.
#[test]
fn the_protocol_is_shown_on_a_narrow_terminal_however_long_the_names_are() {
    let mut long = two_listeners();
    long[0].name = "a-service-with-a-long-name".into();
    long[0].protocol = "unix-datagram".into();
    long[0].addresses = vec!["/run/a-service/with/a/long/path.sock".into()];
    long[0].connections = 10_000;
    let start = std::time::Instant::now();
    let mut rates = Rates::default();
    for (seconds, count) in [(0, 0), (1, 1_040_000_000)] {
        let name = long[0].name.clone();
        let at = start + Duration::from_secs(seconds);
        rates.update(at, [(name, [count, count])]);
    }
    check(
        listeners(&long, None, NARROW).whole(),
        expect![[r#"
            NAME                  PROTOCOL       ADDRESSES       STATE           CONNECTIONS
            a-service-with-a-lo…  unix-datagram  /run/a-servic…  listening  10000/10000 full
            dgram                 udp            0.0.0.0:7       paused                    -
            2 listeners, 10000 connections, 1.2 GiB received, 1.2 GiB sent
            9 more columns: --wide
        "#]],
    );
    check(
        listeners(&long, Some(&rates), NARROW).whole(),
        expect![[r#"
            NAME            PROTOCOL       STATE           CONNECTIONS       IN/S      OUT/S
            a-service-wit…  unix-datagram  listening  10000/10000 full  991.8 MiB  991.8 MiB
            dgram           udp            paused                    -          -          -
            2 listeners, 10000 connections, 1.2 GiB received, 1.2 GiB sent
            10 more columns: --wide
        "#]],
    );
    let peer = Peer {
        id: 4711,
        listener: long[0].name.clone(),
        protocol: "unix-stream".into(),
        address: "192.168.100.101:50000".into(),
        age_ms: 312_000,
        idle_ms: 312_000,
        ..Peer::default()
    };
    check(
        peers(&[peer], 1, None, NARROW).whole(),
        expect![[r#"
              ID  LISTENER                PROTOCOL     ADDRESS                   AGE    IDLE
            4711  a-service-with-a-long…  unix-stream  192.168.100.101:50000  5m 12s  5m 12s
            1 peer
            2 more columns: --wide
        "#]],
    );
}

#[test]
fn a_watched_list_has_rates() {
    let start = std::time::Instant::now();
    let mut rates = Rates::default();
    rates.update(start, [("main".to_owned(), [0, 0])]);
    let later = start + Duration::from_secs(1);
    rates.update(later, [("main".to_owned(), [2048, 1024])]);
    check(
        listeners(&two_listeners(), Some(&rates), NARROW).whole(),
        expect![[r#"
            NAME   PROTOCOL  ADDRESSES          STATE      CONNECTIONS     IN/S    OUT/S
            main   tcp       0.0.0.0:7, [::]:7  listening          812  2.0 KiB  1.0 KiB
            dgram  udp       0.0.0.0:7          paused               -        -        -
            2 listeners, 812 connections, 1.2 GiB received, 1.2 GiB sent
            9 more columns: --wide
        "#]],
    );
}

#[test]
fn one_listener_is_shown_in_full() {
    check(
        listener(&two_listeners()[0], None, PLAIN),
        expect![[r#"
            main, tcp, listening
              addresses      0.0.0.0:7
                             [::]:7
              reply          echo
              sockets        8
              backlog        8000 requested → 4096 effective
                             capped at 4096; raise it: sysctl -w net.core.somaxconn=8000
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
        listener(&two_listeners()[1], None, PLAIN),
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
        listener(&earlier, None, PLAIN),
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
          capped at 4096; raise it: sysctl -w net.core.somaxconn=8000
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
          capped when it was set; the limit is 65535 by now: set it again
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
    let text = |matched, closed, sources, dry_run| {
        let reply = ClosePeersReply {
            matched,
            closed,
            sources: (sources > 0).then_some(sources),
            peers: None,
        };
        kicked(&reply, dry_run, WHOLE)
    };
    assert_eq!(text(0, 0, 0, false), "no connection matches\n");
    assert_eq!(text(3, 0, 0, true), "would close 3 connections\n");
    assert_eq!(text(1, 1, 0, false), "closed 1 connection\n");
    assert_eq!(text(3, 2, 0, false), "closed 2 of 3 connections\n");
    assert_eq!(
        text(3, 3, 1, false),
        "closed 3 connections; 1 source has nothing to close: datagrams have no connection\n"
    );
    let listed = |closed| {
        let peer = Peer {
            id: 7,
            listener: "main".into(),
            address: "192.0.2.1:50000".into(),
            ..Peer::default()
        };
        let reply = ClosePeersReply {
            matched: closed,
            closed,
            sources: None,
            peers: Some(vec![peer]),
        };
        kicked(&reply, false, NARROW)
    };
    check(
        listed(1),
        expect![[r#"
            ID  LISTENER  ADDRESS          AGE  IDLE  RECEIVED  SENT
             7  main      192.0.2.1:50000  0ms   0ms       0 B   0 B
            closed 1 connection
        "#]],
    );
    let many = listed(300);
    assert!(
        many.ends_with("closed 300 connections; the first 1 are listed\n"),
        "{many}"
    );
}

#[test]
fn a_reload_lists_what_changed() {
    check(
        reload(&applied(), WHOLE),
        expect![[r#"
        applied, generation 3, in 1.25 ms, by the control socket, at 2026-01-02T03:04:05Z
        warning: /etc/echod/echod.toml:9:1: workers: needs a restart
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  added on 127.0.0.1:7 (tcp)
        update  main              812  backlog 1024 → 4096 (live)
        update  (daemon)            0  log level info → debug (live)
        3 changes, 1 kept as is
    "#]],
    );
    check(
        reload_plan(&applied(), WHOLE),
        expect![[r#"
        dry run, nothing has changed: the configuration would be applied
        warning: /etc/echod/echod.toml:9:1: workers: needs a restart
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  added on 127.0.0.1:7 (tcp)
        update  main              812  backlog 1024 → 4096 (live)
        update  (daemon)            0  log level info → debug (live)
        3 changes, 1 kept as is
    "#]],
    );
}

/// Each `GetStatus` had two megabytes about 18,000 listeners that a reload was to add.
#[test]
fn of_a_result_that_is_kept_the_first_changes_are_listed_and_all_are_counted() {
    let mut result = applied();
    let added = result.changes[0].clone();
    result.changes.extend(vec![added; 100]);
    let result = result.abridged();
    assert_eq!(result.changes.len(), 100);
    assert_eq!((result.kept, result.changes_omitted), (1, 3));
    let text = reload(&result, WHOLE);
    assert!(
        text.ends_with("\n... and 3 more\n103 changes, 1 kept as is\n"),
        "{text}"
    );
    // Once is enough.
    assert_eq!(result.clone().abridged(), result);
}

/// The terminal folded what is longer than a line at any letter.
#[test]
fn on_a_narrow_terminal_a_change_takes_several_lines() {
    let mut result = applied();
    result.warnings.clear();
    result.changes[1].text = "main: backlog 1024 → 4096 (live), idle-timeout 10m → 1h (live); \
                              812 connections stay"
        .into();
    check(
        reload(&result, NARROW),
        expect![[r#"
        applied, generation 3, in 1.25 ms, by the control socket,
          at 2026-01-02T03:04:05Z
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  added on 127.0.0.1:7 (tcp)
        update  main              812  backlog 1024 → 4096 (live), idle-timeout 10m → 1h
                                       (live); 812 connections stay
        update  (daemon)            0  log level info → debug (live)
        3 changes, 1 kept as is
    "#]],
    );
}

#[test]
fn the_errors_of_a_configuration_say_where() {
    check(
        errors(&rejected().errors, PLAIN).join("\n"),
        expect![[r#"
            /etc/echod/echod.toml:14:3: backlog "many": not a number: write 1 to 2147483647
            /etc/echod/echod.d/x.toml: evil \u{1b}[31m name"#]],
    );
}

#[test]
fn keys_that_wait_for_the_next_start_are_not_said_to_be_unchanged() {
    let mut result = applied();
    result.outcome = ReloadOutcome::Unchanged;
    let begins = |text: String, begin: &str| assert!(text.starts_with(begin), "{text}");
    begins(reload(&result, WHOLE), "unchanged before the next start, ");
    let plan = "dry run, nothing has changed: nothing would change before the next start\n";
    begins(reload_plan(&result, WHOLE), plan);
    result.changes.clear();
    begins(reload(&result, WHOLE), "unchanged, ");
}

#[test]
fn what_has_to_be_confirmed_and_what_has_been_is_said_and_the_last_line_sums_up() {
    let mut result = applied();
    result.warnings.clear();
    result.changes.truncate(1);
    result.summary = "3 listeners unchanged (812 connections kept), lab added".into();
    result.confirmed = Some(2);
    result.confirm_within_ms = Some(90_000);
    check(
        reload(&result, WHOLE),
        expect![[r#"
        applied, generation 3, in 1.25 ms, by the control socket, at 2026-01-02T03:04:05Z
        confirms reload 2
        rolled back in 1m 30s unless confirmed: echoctl confirm
        ACTION  LISTENER  CONNECTIONS  CHANGE
        add     lab                 0  added on 127.0.0.1:7 (tcp)
        3 listeners unchanged (812 connections kept), lab added
    "#]],
    );
    result.rollback = true;
    let plan = reload_plan(&result, WHOLE);
    let heading =
        "dry run, nothing has changed: the previous configuration would be in force again\n";
    assert!(plan.starts_with(heading), "{plan}");
    check(
        confirmed(&parse(json!({"id": 7}))),
        expect![["reload 7 is confirmed\n"]],
    );
}
