//! The message for each kind of mistake.

use super::*;

#[test]
fn all_errors_of_all_files_come_at_once_in_order_of_place() {
    let main = "[daemon]\nworkers = 0\n\n[listener.main]\nprotocol = \"tpc\"\naddress = \"10.0.0.1:7\"\n\
                backlog = \"many\"\n[listener.web]\nprotocol = \"tcp\"\naddress = \"10.0.0.1:7\"\n";
    let drop_in = "[log]\nlevel = \"loud\"\n[listener.lab]\nprotocol = \"tcp\"\naddress = \"10.0.0.1:7\"\n\
                   max-conections = 5\n";
    let sources = sources(&[("echod.toml", main), ("echod.d/10.toml", drop_in)]);
    expect![[r#"
        echod.toml:2:11: daemon: workers 0: out of range: write 1 to 256, or "auto"
        echod.toml:5:12: listener "main": protocol "tpc": unknown: did you mean "tcp"?
        echod.toml:7:11: listener "main": backlog "many": not an integer: write 1 to 2147483647
        echod.d/10.toml:2:9: log: level "loud": unknown: write "off", "error", "warn", "info", "debug" or "trace"
        echod.d/10.toml:5:11: listener "lab": address "10.0.0.1:7": already used by listener "web" (echod.toml:10)
        echod.d/10.toml:6:1: listener "lab": max-conections: unknown key: did you mean max-connections?
    "#]].assert_eq(&report(&sources));
}

#[test]
fn a_mistyped_name_gets_a_suggestion_or_the_list() {
    check(
        "workers = 2\n[dameon]\n[listeners.a]\n[metrics]\naddress = \"127.0.0.1:1\"\n[xyz]\n[daemon]\nworker = 2\n\
         backlog = 3\nfrobnicate = 1\n[defaults]\naddress = \"*:7\"\nmax_connections = 3\n\
         rate = \"off\"\n",
        &expect![[r#"
            echod.toml:1:1: workers: stands outside of a table: move it to [daemon]
            echod.toml:2:2: dameon: unknown table: did you mean [daemon]?
            echod.toml:3:2: listeners: unknown table: did you mean [listener.NAME]?
            echod.toml:4:2: metrics: not available in this version: remove it
            echod.toml:6:2: xyz: unknown table: the tables are [daemon], [control], [log], [defaults] and [listener.NAME]
            echod.toml:8:1: daemon: worker: unknown key: did you mean workers?
            echod.toml:9:1: daemon: backlog: does not belong here: move it to [listener.NAME] or [defaults]
            echod.toml:10:1: daemon: frobnicate: unknown key: the keys are workers, driver, drain-timeout, shutdown-delay, busy-poll, user, group
            echod.toml:12:1: defaults: address: each listener has its own: move it to [listener.NAME]
            echod.toml:13:1: defaults: max_connections: unknown key: did you mean max-connections?
            echod.toml:14:1: defaults: rate: not available in this version: remove it
        "#]],
    );
}

#[test]
fn a_table_where_none_belongs_and_the_other_way_round() {
    check(
        "log = \"info\"\nlistener = 3\n",
        &expect![[r#"
        echod.toml:1:1: log: is a table: write a line [log], with its keys below
        echod.toml:2:1: listener: each one has a name: write [listener.NAME]
    "#]],
    );
    check(
        "[listener]\nprotocol = \"tcp\"\n[listener.\"a b\"]\n",
        &expect![[r#"
        echod.toml:2:1: listener: protocol: stands outside of a listener: put it below a line [listener.NAME]
        echod.toml:3:11: listener "a b": not a name: use up to 64 letters, digits, "-", "_" and "."
    "#]],
    );
    check(
        "[[listener]]\nprotocol = \"tcp\"\n",
        &expect![[r#"
        echod.toml:1:3: listener: each one has a name: write [listener.NAME]
    "#]],
    );
    check(
        "[listener.a]\nprotocol = \"tcp\"\naddress = { port = 7 }\n",
        &expect![[r#"
        echod.toml:3:11: listener "a": address { port = 7 }: not a text: write it in quotes, as in "localhost:7007"
    "#]],
    );
}

#[test]
fn a_wrong_type_says_which_one_is_needed() {
    check_listener(
        "tcp",
        "reply = 3\none-shot = \"yes\"\nsockets = \"2\"\nbacklog = 1.5\nmax-connections = 0\nwhen-full = \"drop\"\n\
         max-per-source = \"none\"\nidle-timeout = 0\nmax-lifetime = 30\nwrite-stall-timeout = \"30\"\nno-delay = 1\n\
         keepalive = true\nreceive-buffer = \"64KB\"\nsend-buffer = 1\nallow = \"10.0.0.0/8\"\n\
         deny = [\"10.0.0.0/33\", 5, \"example.org\"]",
        &expect![[r#"
            echod.toml:4:9: listener "a": reply 3: not a text: write "echo", "upper" or "discard", in quotes
            echod.toml:5:12: listener "a": one-shot "yes": not a truth value: write true or false, without quotes
            echod.toml:6:11: listener "a": sockets "2": a text, not a number: leave out the quotes; write 1 to 256, or "auto"
            echod.toml:7:11: listener "a": backlog 1.5: not an integer: write 1 to 2147483647
            echod.toml:8:19: listener "a": max-connections 0: out of range: write 1 to 10000000
            echod.toml:9:13: listener "a": when-full "drop": unknown: write "wait" or "reset"
            echod.toml:10:18: listener "a": max-per-source "none": not an integer: write 1 to 10000000, or "off"
            echod.toml:11:16: listener "a": idle-timeout 0: not a duration: write "off" for none
            echod.toml:12:16: listener "a": max-lifetime 30: a number without a unit: write e.g. "30s", or "off"
            echod.toml:13:23: listener "a": write-stall-timeout "30": a number without a unit: write e.g. "30s", or "off"
            echod.toml:14:12: listener "a": no-delay 1: not a truth value: write true or false, without quotes
            echod.toml:15:13: listener "a": keepalive true: not a duration: write e.g. "30s" or "5m", or "off"
            echod.toml:16:18: listener "a": receive-buffer "64KB": not a size: write e.g. "64KiB", "1MiB" or 4096 (bytes), or "auto"
            echod.toml:17:15: listener "a": send-buffer 1: out of range: write "1KiB" to "1GiB", or "auto"
            echod.toml:18:9: listener "a": allow "10.0.0.0/8": not a list: write e.g. ["192.0.2.0/24", "2001:db8::/32"]
            echod.toml:19:9: listener "a": deny "10.0.0.0/33": not a network: write e.g. "192.0.2.0/24" or "2001:db8::/32"
            echod.toml:19:24: listener "a": deny 5: not a text: write it in quotes, as in "192.0.2.0/24"
            echod.toml:19:27: listener "a": deny "example.org": not a network: write e.g. "192.0.2.0/24" or "2001:db8::/32"
        "#]],
    );
}

#[test]
fn durations_have_limits_of_their_own() {
    check_listener(
        "tcp",
        "idle-timeout = \"0s\"\nmax-lifetime = \"1001d\"\nwrite-stall-timeout = \"5 parsecs\"\nkeepalive = \"12h\"",
        &expect![[r#"
            echod.toml:4:16: listener "a": idle-timeout "0s": too short: write more than 0, or "off"
            echod.toml:5:16: listener "a": max-lifetime "1001d": too long: write at most "1000d", or "off"
            echod.toml:6:23: listener "a": write-stall-timeout "5 parsecs": not a duration: write e.g. "250ms", "30s" or "10m30s", or "off"; the units are ns, us, ms, s, m, h, d and w
            echod.toml:7:13: listener "a": keepalive "12h": too long: the kernel takes at most 32767s: write "9h" or less, or "off"
        "#]],
    );
    check_listener(
        "tcp",
        "keepalive = \"1500ms\"\nidle-timeout = \"\"",
        &expect![[r#"
        echod.toml:4:13: listener "a": keepalive "1500ms": not whole seconds: the kernel takes no fraction: write e.g. "60s", or "off"
        echod.toml:5:16: listener "a": idle-timeout "": not a duration: write e.g. "250ms", "30s" or "10m30s", or "off"; the units are ns, us, ms, s, m, h, d and w
    "#]],
    );
    check_listener(
        "tcp",
        "keepalive = \"10ms\"\nidle-timeout = \"99999999999999999999s\"",
        &expect![[r#"
        echod.toml:4:13: listener "a": keepalive "10ms": too short: write at least "1s", or "off"
        echod.toml:5:16: listener "a": idle-timeout "99999999999999999999s": not a duration: write e.g. "250ms", "30s" or "10m30s", or "off"; the units are ns, us, ms, s, m, h, d and w
    "#]],
    );
}

#[test]
fn only_the_units_that_the_manual_names_are_taken() {
    let others = [
        ("idle-timeout", "1y"),
        ("max-lifetime", "2months"),
        ("write-stall-timeout", "1M"),
        ("keepalive", "1m 30sec"),
    ];
    let keys = others.map(|(key, value)| format!("{key} = \"{value}\"\n"));
    let errors = report(&sources(&[(
        "echod.toml",
        &(TCP.to_owned() + &keys.concat()),
    )]));
    for (error, (key, value)) in errors.lines().zip(others) {
        assert!(
            error.contains(&format!("{key} \"{value}\": not a duration: "))
                && error.ends_with("the units are ns, us, ms, s, m, h, d and w"),
            "{error}"
        );
    }
    assert_eq!(errors.lines().count(), others.len(), "{errors}");
    let documented = "idle-timeout = \"1w 2d 3h 4m 5s 6ms 7us 8ns\"\nmax-lifetime = \"1.5h\"";
    check_listener("tcp", documented, &expect![]);
}

#[test]
fn an_abstract_socket_is_refused_and_no_file_is_named_so() {
    let refused =
        "abstract sockets are not supported: write a path, as in \"/run/echod/NAME.sock\"";
    let listener = "[listener.a]\nprotocol = \"unix-stream\"\naddress = [\"@echo\", \"./@echo\"]\n";
    let errors = report(&sources(&[(
        "echod.toml",
        &format!("[control]\nsocket = \"@echod\"\n{listener}"),
    )]));
    assert_eq!(
        errors,
        format!(
            "echod.toml:2:10: control: socket \"@echod\": {refused}\n\
             echod.toml:5:12: listener \"a\": address \"@echo\": {refused}\n"
        )
    );
}

#[test]
fn the_values_of_the_daemon_are_judged_too() {
    check(
        &format!(
            "[daemon]\nworkers = 257\ndriver = \"io-uring\"\nbusy-poll = \"2s\"\ndrain-timeout = \"off\"\nshutdown-delay = 5\n\
             [control]\nsocket = \"\"\nmode = 660\ngroup = \"a b\"\n\
             [log]\ntarget = \"stdout\"\nlevel = \"warning\"\nfacility = \"lokal0\"\n{TCP}"
        ),
        &expect![[r#"
            echod.toml:2:11: daemon: workers 257: out of range: write 1 to 256, or "auto"
            echod.toml:3:10: daemon: driver "io-uring": unknown: did you mean "io_uring"?
            echod.toml:4:13: daemon: busy-poll "2s": too long: a worker would hardly ever sleep: write at most "1s", e.g. "50us", or "off"
            echod.toml:5:17: daemon: drain-timeout "off": not a duration: write e.g. "250ms", "30s" or "10m30s"; the units are ns, us, ms, s, m, h, d and w
            echod.toml:6:18: daemon: shutdown-delay 5: a number without a unit: write e.g. "5s"
            echod.toml:8:10: control: socket "": not the path of a file: write one, as in "/run/echod/NAME.sock"
            echod.toml:9:8: control: mode 660: not a text: write the octal digits in quotes, as in "0660"
            echod.toml:10:9: control: group "a b": not a group: write its name, as in "echod", or leave the key out
            echod.toml:12:10: log: target "stdout": unknown: write "auto", "syslog" or "stderr"
            echod.toml:13:9: log: level "warning": unknown: did you mean "warn"?
            echod.toml:14:12: log: facility "lokal0": unknown: did you mean "local0"?
        "#]],
    );
    check(
        &format!("[daemon]\ndriver = \"poll\"\nbusy-poll = \"0s\"\n{TCP}"),
        &expect![[r#"
            echod.toml:2:10: daemon: driver "poll": unknown: did you mean "epoll"?
            echod.toml:3:13: daemon: busy-poll "0s": too short: write more than 0, or "off"
        "#]],
    );
    check(
        &format!("[daemon]\nuser = \"a b\"\ngroup = \"netops\"\n{TCP}"),
        &expect![[r#"
            echod.toml:2:8: daemon: user "a b": not a user: write its name, as in "echod", or ""
            echod.toml:3:9: daemon: group "netops": goes with a user only: write user too, or leave it empty
        "#]],
    );
    check(
        &format!("[daemon]\nbusy-poll = 50\n{TCP}"),
        &expect![[r#"
            echod.toml:2:13: daemon: busy-poll 50: a number without a unit: write e.g. "50us", or "off"
        "#]],
    );
    check(
        &format!("[control]\nmode = \"0888\"\n[daemon]\nworkers = 1e3\n{TCP}"),
        &expect![[r#"
        echod.toml:2:8: control: mode "0888": not permissions: write octal digits from "0000" to "0777", as in "0660"
        echod.toml:4:11: daemon: workers 1e3: not an integer: write 1 to 256, or "auto"
    "#]],
    );
}

#[test]
fn an_address_that_is_none_gets_the_likely_cure() {
    let addresses = [
        "example.org:7",
        "10.0.0.1",
        "7",
        ":7",
        "::1:7",
        "fe80::1",
        "[fe80::1]:7",
        "[::ffff:10.0.0.1]:7",
        "10.0.0.256:7",
        "*:70000",
        "*",
        "*:+7",
        "/run/a.sock",
        "[::1:7",
        "",
    ];
    let list: Vec<_> = addresses.iter().map(|address| quote(address)).collect();
    check(
        &format!(
            "[listener.a]\nprotocol = \"tcp\"\naddress = [\n{},\n7]\n",
            list.join(",\n")
        ),
        &expect![[r#"
            echod.toml:4:1: listener "a": address "example.org:7": a host name: write its IP address, as in "192.0.2.1:7"
            echod.toml:5:1: listener "a": address "10.0.0.1": a port is missing: write e.g. "10.0.0.1:7"
            echod.toml:6:1: listener "a": address "7": an address is missing: write e.g. "*:7" for all, or "localhost:7"
            echod.toml:7:1: listener "a": address ":7": an address is missing: write e.g. "*:7" for all, or "localhost:7"
            echod.toml:8:1: listener "a": address "::1:7": an IPv6 address needs brackets: write "[::1]:7"
            echod.toml:9:1: listener "a": address "fe80::1": a port is missing: write e.g. "[fe80::1]:7"
            echod.toml:10:1: listener "a": address "[fe80::1]:7": link-local, so it needs an interface: write "[fe80::1%INDEX]:7", the index from "ip link"
            echod.toml:11:1: listener "a": address "[::ffff:10.0.0.1]:7": an IPv4 address in an IPv6 one: write "10.0.0.1:7"
            echod.toml:12:1: listener "a": address "10.0.0.256:7": not an IP address: write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT
            echod.toml:13:1: listener "a": address "*:70000": not a port: write 1 to 65535, or 0 for any
            echod.toml:14:1: listener "a": address "*": not an address and port: write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT
            echod.toml:15:1: listener "a": address "*:+7": not a port: write 1 to 65535, or 0 for any
            echod.toml:16:1: listener "a": address "/run/a.sock": a path: write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT, or set protocol to "unix-stream" or "unix-datagram"
            echod.toml:17:1: listener "a": address "[::1:7": not an IP address: write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT
            echod.toml:18:1: listener "a": address "": empty: write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT
            echod.toml:19:1: listener "a": address 7: not a text: write it in quotes, as in "localhost:7007"
        "#]],
    );
    check(
        "[listener.a]\nprotocol = \"udp\"\naddress = []\n",
        &expect![[r#"
        echod.toml:3:11: listener "a": address []: an empty list: write at least one address
    "#]],
    );
}

#[test]
fn roles_are_lists_of_users_and_groups() {
    check(
        "[control]\noperators = \"alice\"\nadmins = [\"bob\", 7, \"@\", \"\", \"a b\", \"@x\"]\n",
        &expect![[r#"
            echod.toml: nothing to serve: add a [listener.NAME] table
            echod.toml:2:13: control: operators "alice": not a list: write e.g. ["alice", "@echod"]
            echod.toml:3:18: control: admins 7: not a text: write it in quotes, as in "alice" or "@echod"
            echod.toml:3:21: control: admins "@": not a user or group: write e.g. "alice", or "@echod" for a group
            echod.toml:3:26: control: admins "": not a user or group: write e.g. "alice", or "@echod" for a group
            echod.toml:3:30: control: admins "a b": not a user or group: write e.g. "alice", or "@echod" for a group
        "#]],
    );
}

#[test]
fn a_path_must_fit_into_a_socket_address() {
    let long = "x".repeat(108);
    check(
        &format!(
            "[listener.a]\nprotocol = \"unix-stream\"\naddress = [\"{long}\", \"\", \"/run/\", \"a\\u0000b\"]\n"
        ),
        &expect![[r#"
            echod.toml:3:12: listener "a": address "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…: a path of 108 bytes: a socket's has at most 107: shorten it
            echod.toml:3:124: listener "a": address "": not the path of a file: write one, as in "/run/echod/NAME.sock"
            echod.toml:3:128: listener "a": address "/run/": not the path of a file: write one, as in "/run/echod/NAME.sock"
            echod.toml:3:137: listener "a": address "a\u0000b": a path with a NUL: remove it
        "#]],
    );
    let most = "x".repeat(107);
    check(
        &format!("[listener.a]\nprotocol = \"unix-stream\"\naddress = \"{most}\"\n"),
        &expect![],
    );
}

#[test]
fn addresses_that_overlap_are_refused_where_the_second_stands() {
    let listener = |name: &str, protocol: &str, address: &str| {
        format!("[listener.{name}]\nprotocol = \"{protocol}\"\naddress = {address}\n")
    };
    let check = |listeners: &[String], expect| check(&listeners.concat(), expect);
    check(
        &[
            listener("z", "tcp", "[\"*:7\", \"0.0.0.0:8\"]"),
            listener("b", "tcp", "\"10.0.0.1:7\""),
            listener("c", "tcp", "\"localhost:8\""),
            listener(
                "d",
                "tcp",
                "[\"[::]:9\", \"[::1]:9\", \"127.0.0.1:9\", \"127.0.0.1:9\"]",
            ),
            listener("e", "udp", "\"*:7\""),
        ],
        &expect![[r#"
            echod.toml:6:11: listener "b": address "10.0.0.1:7": overlaps "*:7" of listener "z" (line 3): keep one of the two
            echod.toml:9:11: listener "c": address "localhost:8": overlaps "0.0.0.0:8" of listener "z" (line 3): keep one of the two
            echod.toml:12:22: listener "d": address "[::1]:9": overlaps "[::]:9" of this listener (line 12): keep one of the two
            echod.toml:12:48: listener "d": address "127.0.0.1:9": already used by this listener (line 12)
        "#]],
    );
    check(
        &[
            listener("a", "tcp", "\"*:0\""),
            listener("b", "tcp", "[\"*:0\", \"127.0.0.1:0\"]"),
        ],
        &expect![],
    );
    check(
        &[
            listener("a", "tcp", "\"[fe80::1%2]:7\""),
            listener("b", "tcp", "\"[fe80::1%3]:7\""),
        ],
        &expect![],
    );
    check(
        &[
            listener("a", "unix-stream", "\"/run//a\""),
            listener("b", "unix-datagram", "\"/run/./a\""),
        ],
        &expect![[r#"
            echod.toml:6:11: listener "b": address "/run/./a": already used by listener "a" (line 3)
        "#]],
    );
    check(
        &[
            "[control]\nsocket = \"/run/a\"\n".into(),
            listener("a", "unix-stream", "\"/run/a\""),
        ],
        &expect![[r#"
            echod.toml:5:11: listener "a": address "/run/a": already used by the control socket (line 2)
        "#]],
    );
}

#[test]
fn a_key_without_meaning_is_refused_where_it_was_written_for_the_listener() {
    check_listener(
        "udp",
        "backlog = 5\none-shot = true\nmode = \"0660\"\nno-delay = true\nreply = \"upper\"",
        &expect![[r#"
        echod.toml:4:11: listener "a": backlog 5: has no meaning for udp: remove it
        echod.toml:5:12: listener "a": one-shot true: has no meaning for udp: remove it
        echod.toml:6:8: listener "a": mode "0660": has no meaning for udp: remove it
        echod.toml:7:12: listener "a": no-delay true: has no meaning for udp: remove it
    "#]],
    );
    check_listener(
        "unix-stream",
        "keepalive = \"off\"\nallow = []\nsockets = 2\nmode = \"0600\"\nbacklog = 2",
        &expect![[r#"
        echod.toml:4:13: listener "a": keepalive "off": has no meaning for unix-stream: remove it
        echod.toml:5:9: listener "a": allow []: has no meaning for unix-stream: remove it
        echod.toml:6:11: listener "a": sockets 2: has no meaning for unix-stream: remove it
    "#]],
    );
    check_listener(
        "unix-datagram",
        "sockets = 1\nsend-buffer = \"64KiB\"",
        &expect![],
    );
}

#[test]
fn what_is_missing_is_said() {
    check(
        "",
        &expect![[r#"
        echod.toml: nothing to serve: add a [listener.NAME] table
    "#]],
    );
    check(
        "[daemon]\nworkers = 0\n",
        &expect![[r#"
        echod.toml: nothing to serve: add a [listener.NAME] table
        echod.toml:2:11: daemon: workers 0: out of range: write 1 to 256, or "auto"
    "#]],
    );
    check(
        "[listener.a]\n",
        &expect![[r#"
        echod.toml:1:11: listener "a": address: is missing: add e.g. address = "localhost:7007", or a path for a Unix socket
        echod.toml:1:11: listener "a": protocol: is missing: add protocol = "tcp", "udp", "unix-stream" or "unix-datagram"
    "#]],
    );
    expect![[r#"
        nothing to serve: add a [listener.NAME] table
    "#]]
    .assert_eq(&report(&[]));
}

#[test]
fn columns_count_characters_also_behind_tabs_and_umlauts() {
    check(
        "[daemon]\n\t\tworkers\t=\t0 # two tabs\n[listener.a]\n\"prötocol\" = 1\n",
        &expect![[r#"
        echod.toml:2:13: daemon: workers 0: out of range: write 1 to 256, or "auto"
        echod.toml:3:11: listener "a": address: is missing: add e.g. address = "localhost:7007", or a path for a Unix socket
        echod.toml:3:11: listener "a": protocol: is missing: add protocol = "tcp", "udp", "unix-stream" or "unix-datagram"
        echod.toml:4:1: listener "a": prötocol: unknown key: did you mean protocol?
    "#]],
    );
    check(
        "\u{feff}workers = 3",
        &expect![[r#"
        echod.toml: nothing to serve: add a [listener.NAME] table
        echod.toml:1:1: workers: stands outside of a table: move it to [daemon]
    "#]],
    );
    check(
        "daemon = { \"ö\" = 1, workers = 0 }\r\nlog = { level = \"é\" }\r\n",
        &expect![[r#"
            echod.toml: nothing to serve: add a [listener.NAME] table
            echod.toml:1:12: daemon: ö: unknown key: the keys are workers, driver, drain-timeout, shutdown-delay, busy-poll, user, group
            echod.toml:1:31: daemon: workers 0: out of range: write 1 to 256, or "auto"
            echod.toml:2:17: log: level "é": unknown: write "off", "error", "warn", "info", "debug" or "trace"
        "#]],
    );
}

#[test]
fn a_syntax_error_is_one_message_and_hides_no_other_table() {
    check(
        "[daemon]\nworkers = 2x\ndriver = 3\n[log]\nlevel = 4\n[listener.a\nprotocol = \"tcp\"\n",
        &expect![[r#"
        echod.toml:2:11: 2x: not a value: put quotes around a text, as in "5m"
        echod.toml:5:9: log: level 4: not a text: write "off", "error", "warn", "info", "debug" or "trace", in quotes
        echod.toml:6:12: not TOML: unclosed table, expected `]`: end the table's name with ]
    "#]],
    );
    check(
        "[listener.a]\nprotocol = \"tcp\naddress = \"*:7\"\n",
        &expect![[r#"
        echod.toml:2:16: not TOML: invalid basic string, expected `"`: end the text with the quote that began it
    "#]],
    );
    check(
        "[daemon]\nworkers = 1\nworkers = 2\n[daemon]\ndriver = \"x\"\n",
        &expect![[r#"
            echod.toml:3:1: workers stands here twice: remove one of the two
            echod.toml:4:2: daemon stands here twice: remove one of the two
            echod.toml:5:10: daemon: driver "x": unknown: write "auto", "io_uring" or "epoll"
        "#]],
    );
    check(
        "[control]\nmode = 0660\nworkers\n",
        &expect![[r#"
        echod.toml:2:8: not TOML: unexpected leading zero, expected nothing: write a number without it, and permissions in quotes, as in "0660"
        echod.toml:3:8: not TOML: key with no value, expected `=`: write KEY = VALUE
    "#]],
    );
    check(
        "[listener.a]\naddress = [\"*:7\",\nprotocol = \"tcp\"\n",
        &expect![[r#"
        echod.toml:3:1: protocol: not a value: put quotes around a text, as in "5m"
    "#]],
    );
    check(
        "a = \"\"\"x\n[daemon]",
        &expect![[r#"
        echod.toml:1:1: a: unknown table: the tables are [daemon], [control], [log], [defaults] and [listener.NAME]
        echod.toml:2:9: not TOML: invalid multi-line basic string, expected `"`: end the text with the quote that began it
    "#]],
    );
}

#[test]
fn what_is_odd_but_possible_is_a_warning() {
    check_listener(
        "tcp",
        "sockets = 2\nmax-connections = 1\nallow = [\"10.0.0.1/8\"]",
        &expect![[r#"
            warning: echod.toml:4:11: listener "a": sockets 2 with max-connections 1: clients wait in 2 queues and are not served in order: write sockets = 1
            warning: echod.toml:6:10: listener "a": allow "10.0.0.1/8": has bits beyond its prefix: it means "10.0.0.0/8": write that
        "#]],
    );
    check_listener("tcp", "sockets = 1\nmax-connections = 1", &expect![]);
}

#[test]
fn a_source_port_that_is_none_is_refused_where_it_stands() {
    check_listener(
        "udp",
        "refuse-source-ports = [7, 70000, -1, \"7\", \"echo\", \"1-\", \"19-7\", \"1-70000\", \"+1-2\", true]",
        &expect![[r#"
            echod.toml:4:27: listener "a": refuse-source-ports 70000: out of range: write ports from 0 to 65535
            echod.toml:4:34: listener "a": refuse-source-ports -1: out of range: write ports from 0 to 65535
            echod.toml:4:38: listener "a": refuse-source-ports "7": a text, not a number: leave out the quotes
            echod.toml:4:43: listener "a": refuse-source-ports "echo": not a port: write e.g. 7, or "1-1023" for a range
            echod.toml:4:51: listener "a": refuse-source-ports "1-": not a port: write e.g. 7, or "1-1023" for a range
            echod.toml:4:57: listener "a": refuse-source-ports "19-7": backwards: write "7-19"
            echod.toml:4:65: listener "a": refuse-source-ports "1-70000": out of range: write ports from 0 to 65535
            echod.toml:4:76: listener "a": refuse-source-ports "+1-2": not a port: write e.g. 7, or "1-1023" for a range
            echod.toml:4:84: listener "a": refuse-source-ports true: not a port: write e.g. 7, or "1-1023" for a range
        "#]],
    );
    check_listener(
        "udp",
        "refuse-source-ports = 7",
        &expect![[r#"
        echod.toml:4:23: listener "a": refuse-source-ports 7: not a list: write "default", "none" or a list, e.g. [7, 19, "1024-2047"]
    "#]],
    );
    check_listener(
        "udp",
        "refuse-source-ports = \"defaults\"",
        &expect![[r#"
            echod.toml:4:23: listener "a": refuse-source-ports "defaults": unknown: did you mean "default"?
        "#]],
    );
    check_listener(
        "udp",
        "refuse-source-ports = \"1-1023\"",
        &expect![[r#"
        echod.toml:4:23: listener "a": refuse-source-ports "1-1023": unknown: write "default", "none" or a list, e.g. [7, 19, "1024-2047"]
    "#]],
    );
    check_listener(
        "tcp",
        "refuse-source-ports = \"none\"",
        &expect![[r#"
        echod.toml:4:23: listener "a": refuse-source-ports "none": has no meaning for tcp: remove it
    "#]],
    );
    check_listener(
        "unix-datagram",
        "refuse-source-ports = [7]",
        &expect![[r#"
            echod.toml:4:23: listener "a": refuse-source-ports [7]: has no meaning for unix-datagram: remove it
        "#]],
    );
}

#[test]
fn to_answer_every_source_port_is_a_warning_where_anything_is_answered() {
    check_listener(
        "udp",
        "refuse-source-ports = \"none\"",
        &expect![[r#"
        warning: echod.toml:4:23: listener "a": refuse-source-ports "none": one forged datagram can make it and another echo service answer each other for ever: write "default", or the ports of such services
    "#]],
    );
    check_listener(
        "udp",
        "refuse-source-ports = []",
        &expect![[r#"
        warning: echod.toml:4:23: listener "a": refuse-source-ports []: one forged datagram can make it and another echo service answer each other for ever: write "default", or the ports of such services
    "#]],
    );
    check_listener(
        "udp",
        "refuse-source-ports = \"none\"\nreply = \"discard\"",
        &expect![],
    );
    let defaults = "[defaults]\nrefuse-source-ports = \"none\"\n";
    let udp = TCP.replace("tcp", "udp");
    check(
        &format!("{defaults}{udp}"),
        &expect![[r#"
        warning: echod.toml:2:23: listener "a": refuse-source-ports "none": one forged datagram can make it and another echo service answer each other for ever: write "default", or the ports of such services
    "#]],
    );
    check(&format!("{defaults}{TCP}"), &expect![]);
    check(
        &format!("{defaults}{udp}refuse-source-ports = [7]\n"),
        &expect![],
    );
}

#[test]
fn a_diagnostic_names_its_key() {
    let errors = load(&sources(&[(
        "a.toml",
        "[listener.b]\nprotocol = \"tcp\"\naddress = 3\n",
    )]))
    .unwrap_err();
    assert_eq!(errors[0].key.as_deref(), Some("listener.b.address"));
    assert_eq!((errors[0].line, errors[0].column), (Some(3), Some(11)));
}

#[test]
fn a_buffer_that_a_unix_socket_would_not_use_is_refused() {
    check_listener(
        "unix-stream",
        "receive-buffer = \"8KiB\"\nsend-buffer = \"8KiB\"",
        &expect![[r#"
            echod.toml:4:18: listener "a": receive-buffer "8KiB": has no meaning for unix-stream: remove it
            echod.toml:5:15: listener "a": send-buffer "8KiB": has no meaning for unix-stream: remove it
        "#]],
    );
}
