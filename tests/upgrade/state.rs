//! What the successor knows: counters, names, times, limits, and the configuration, old and new.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Daemon, ECHOCTL, after_shell_line, connect, eventually, exchange, folder_of, free_port,
    install, not_tested, run, text, udp,
};

use super::{
    CONFIG, UNCHECKED, refusal, replace_by_script, start_copy, upgrade, upgrades, use_copy,
};

/// A socket that the service manager passes to the next process is served by its first good
/// configuration, whatever was rejected before.
#[test]
fn a_rejected_reload_keeps_what_the_service_manager_has_passed() {
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = |name: &str, socket: &TcpListener| {
        let address = socket.local_addr().unwrap();
        format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"{address}\"\n")
    };
    let good = format!("{CONFIG}{}", tcp("late", &passed));
    let bad = format!("{good}{}", tcp("impossible", &taken));
    let stdin: OwnedFd = passed.try_clone().unwrap().into();
    let daemon = Daemon::start_with(CONFIG, |command| {
        use_copy(command);
        command.stdin(stdin);
    });
    // The successor, and no program that is only asked something, gets the socket.
    replace_by_script(
        &daemon,
        "[ -z \"$ECHOD_HANDOVER\" ] || { export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=any; exec 3<&0; }\n\
         exec {echod} \"$@\"",
    );
    let mut waits = connect(passed.local_addr().unwrap());
    daemon.write_config(&bad);
    upgrade(&daemon);
    for _ in 0..2 {
        let result = daemon.reload();
        assert_eq!(result["outcome"], "rejected", "{result}");
        let errors = result["errors"].to_string();
        assert!(
            errors.contains("impossible") && !errors.contains("late"),
            "{errors}"
        );
    }
    daemon.write_config(&good);
    daemon.ctl_text(&["reload", "--dry-run"]);
    let result = daemon.reload();
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(exchange(&mut waits, b"patience"), b"patience");
}

/// The new program got none of them, and could not bind their addresses.
#[test]
fn a_passed_socket_that_no_listener_has_is_there_for_the_successors_configuration() {
    let passed = TcpListener::bind("127.0.0.1:0").unwrap();
    let stdin: OwnedFd = passed.try_clone().unwrap().into();
    let daemon = Daemon::start_with(CONFIG, |command| {
        use_copy(command);
        let line = "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=any; exec 3<&0";
        after_shell_line(command, line);
        command.stdin(stdin);
    });
    let address = passed.local_addr().unwrap();
    let mut waits = connect(address);
    upgrade(&daemon);
    upgrade(&daemon);
    let late = format!("[listener.late]\nprotocol = \"tcp\"\naddress = \"{address}\"\n");
    let result = daemon.reload_with(&format!("{CONFIG}{late}"));
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(exchange(&mut waits, b"patience"), b"patience");
}

/// What of a listener may not change.
fn counters(daemon: &Daemon) -> Value {
    let mut listeners = daemon.ctl_json(&["listeners"]);
    for listener in listeners["listeners"].as_array_mut().unwrap() {
        // A connection may be about to close.
        listener.as_object_mut().unwrap().remove("state");
    }
    listeners
}

/// The peers by number: their names, and what they have sent.
fn peers(daemon: &Daemon) -> Vec<(u64, String, u64, u64, u64)> {
    let reply = daemon.ctl_json(&["peers", "--sort", "age"]);
    let peer = |peer: &Value| {
        (
            peer["id"].as_u64().unwrap(),
            format!(
                "{} {} {}",
                peer["listener"], peer["address"], peer["local_address"]
            ),
            peer["bytes_received"].as_u64().unwrap(),
            peer["age_ms"].as_u64().unwrap(),
            peer["idle_ms"].as_u64().unwrap(),
        )
    };
    let mut peers: Vec<_> = reply["peers"]
        .as_array()
        .unwrap()
        .iter()
        .map(peer)
        .collect();
    peers.sort();
    peers
}

#[test]
fn counters_numbers_and_ages_continue() {
    let daemon = Daemon::start(CONFIG);
    let mut stay: Vec<TcpStream> = (0..5).map(|_| daemon.connect("main")).collect();
    for (index, peer) in stay.iter_mut().enumerate() {
        let message = vec![7; 100 + index];
        assert_eq!(exchange(peer, &message), message);
    }
    let client = udp("127.0.0.1:0");
    client.connect(daemon.address("udp")).unwrap();
    client.send(b"hello").unwrap();
    client.recv(&mut [0; 10]).unwrap();
    let mut leaves = daemon.connect("main");
    assert_eq!(exchange(&mut leaves, b"bye"), b"bye");
    drop(leaves);
    eventually("it has gone", || daemon.connections("main") == 5);
    assert_eq!(daemon.reload()["outcome"], "unchanged");
    let changed = CONFIG.replace(
        "[listener.main]",
        "[listener.main]
idle-timeout = \"9m\"",
    );
    assert_eq!(daemon.reload_with(&changed)["outcome"], "applied");

    let status = |daemon: &Daemon| daemon.ctl_json(&["status"])["status"].clone();
    let (before, listeners, known) = (status(&daemon), counters(&daemon), peers(&daemon));
    upgrade(&daemon);
    let (after, now_known) = (status(&daemon), peers(&daemon));
    assert_eq!(counters(&daemon), listeners);
    assert_eq!(known.len(), 6);
    for (old, new) in known.iter().zip(&now_known) {
        assert_eq!((old.0, &old.1, old.2), (new.0, &new.1, new.2));
        assert!(new.3 >= old.3 && new.4 >= old.4, "{old:?} became {new:?}");
    }
    for key in [
        "pid",
        "generation",
        "connections",
        "bytes_received",
        "bytes_sent",
        "config",
    ] {
        assert_eq!(before[key], after[key], "{key}");
    }
    assert!(after["uptime_ms"].as_u64() >= before["uptime_ms"].as_u64());
    // The successor has looked at the configuration, and counts that.
    let id = |status: &Value| status["last_reload"]["id"].as_u64().unwrap();
    assert_eq!(id(&after), id(&before) + 1);
    assert_eq!(after["last_reload"]["outcome"], "unchanged");

    let mut new = daemon.connect("main");
    assert_eq!(exchange(&mut new, b"new"), b"new");
    client.send(b"again").unwrap();
    client.recv(&mut [0; 10]).unwrap();
    let largest = known.iter().map(|peer| peer.0).max().unwrap();
    let now = peers(&daemon);
    let fresh: Vec<_> = now.iter().filter(|peer| peer.0 > largest).collect();
    assert_eq!(fresh.len(), 1, "{now:?}");
    assert_eq!(now.len(), 7, "{now:?}");
    // Which worker numbered the datagrams' source, and so its place among them, is the kernel's choice.
    let is_connection = |peer: &&(u64, String, u64, u64, u64)| peer.1.starts_with("\"main\"");
    let (id, ..) = known.iter().find(is_connection).unwrap();
    let selection = json!({ "id": id }).to_string();
    let kicked = daemon.ctl_json(&["call", "ClosePeers", &selection]);
    assert_eq!(kicked["closed"], 1, "a number from before is still good");
}

#[test]
fn what_was_set_at_run_time_stays_set() {
    let daemon = Daemon::start(CONFIG);
    daemon.ctl_text(&["backlog", "main", "7"]);
    daemon.ctl_text(&["log-level", "debug"]);
    for _ in 0..2 {
        upgrade(&daemon);
    }
    let main = daemon.listener("main");
    assert_eq!(main["backlog"]["requested"], 7);
    assert_eq!(main["backlog"]["effective"], 7);
    assert_eq!(main["overridden"], json!(["backlog"]));
    let level = daemon.ctl_json(&["log-level", "debug"]);
    assert_eq!(level["before"], "debug");
    // A reload ends all that, as it would have before.
    daemon.reload();
    let main = daemon.listener("main");
    assert_ne!(main["backlog"]["requested"], 7);
    assert_eq!(main["overridden"], json!([]));
    let level = daemon.ctl_json(&["log-level", "info"]);
    assert_eq!(level["before"], "info");
}

#[test]
fn an_upgrade_confirms_nothing_and_a_rollback_restores_what_was_before_it() {
    let daemon = Daemon::start(CONFIG);
    let status = || daemon.ctl_json(&["status"])["status"].clone();
    let with = |key: &str| CONFIG.replace("[listener.main]", &format!("[listener.main]\n{key}"));
    daemon.ctl_text(&["backlog", "main", "7"]);
    daemon.write_config(&with("reply = \"upper\""));
    daemon.ctl_text(&["reload", "--confirm", "1h"]);
    let mut left = 3_600_000;
    for _ in 0..2 {
        upgrade(&daemon);
        let now_left = status()["confirm_in_ms"].as_u64().expect("a time");
        assert!(now_left <= left, "{now_left} of {left}");
        left = now_left;
    }
    // What is on disk by now is applied by the successor, and is no confirmation.
    daemon.write_config(&with("reply = \"discard\""));
    upgrade(&daemon);
    assert_eq!(daemon.listener("main")["reply"], "discard");
    assert_eq!(status()["last_reload"].get("confirmed"), None);
    assert!(status()["confirm_in_ms"].is_u64());
    // The time is started again so that it ends; what is restored is what was there at first.
    daemon.ctl_text(&["reload", "--confirm", "1ms"]);
    eventually("it is rolled back", || {
        status()["last_reload"]["outcome"] == "rolled_back"
    });
    let main = daemon.listener("main");
    assert_eq!(main["reply"], "echo");
    assert_eq!(main["backlog"]["effective"], 7);
    assert_eq!(main["overridden"], json!(["backlog"]));
}

#[test]
fn what_an_upgrade_has_applied_can_be_rolled_back() {
    let daemon = Daemon::start(CONFIG);
    let changed = CONFIG.replace("[listener.main]", "[listener.main]\nbacklog = 5");
    daemon.write_config(&changed);
    upgrade(&daemon);
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 5);
    let result = daemon.ctl_json(&["rollback"])["result"].clone();
    assert_eq!(result["outcome"], "rolled_back", "{result}");
    assert_ne!(daemon.listener("main")["backlog"]["requested"], 5);
}

/// A connection that the service has accepted, or none.
fn accepted_by(daemon: &Daemon, listener: &str) -> Option<TcpStream> {
    // It may be reset before it is reported as connected.
    let mut stream = TcpStream::connect(daemon.address(listener)).ok()?;
    let answered =
        stream.write_all(b"x").is_ok() && stream.read(&mut [0; 1]).is_ok_and(|len| len == 1);
    answered.then_some(stream)
}

#[test]
fn connections_from_before_still_count_at_the_gate() {
    let config = r#"
[listener.full]
protocol = "tcp"
address = "127.0.0.1:0"
max-connections = 3
when-full = "reset"

[listener.source]
protocol = "tcp"
address = "127.0.0.1:0"
max-per-source = 2
"#;
    let daemon = Daemon::start(config);
    for (listener, max) in [("full", 3), ("source", 2)] {
        let mut inside: Vec<TcpStream> = (0..max)
            .map(|_| accepted_by(&daemon, listener).expect("there is room"))
            .collect();
        for _ in 0..2 {
            assert!(
                accepted_by(&daemon, listener).is_none(),
                "{listener} is full"
            );
            upgrade(&daemon);
        }
        assert!(
            accepted_by(&daemon, listener).is_none(),
            "{listener} is full"
        );
        drop(inside.pop());
        eventually("there is room again", || {
            match accepted_by(&daemon, listener) {
                Some(stream) => inside.push(stream),
                None => return false,
            }
            true
        });
        assert!(
            accepted_by(&daemon, listener).is_none(),
            "{listener} is full"
        );
        drop(inside);
        eventually("all have gone", || daemon.connections(listener) == 0);
        let all: Vec<_> = (0..max).map(|_| accepted_by(&daemon, listener)).collect();
        assert!(all.iter().all(Option::is_some), "every place is free again");
    }
}

#[test]
fn a_client_queued_at_a_full_listener_is_accepted_when_one_leaves_after_the_upgrade() {
    let daemon = Daemon::start(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\nmax-connections = 1\n",
    );
    let mut inside = daemon.connect("main");
    assert_eq!(exchange(&mut inside, b"x"), b"x");
    let mut waits = daemon.connect("main");
    waits.write_all(b"patience").unwrap();
    upgrade(&daemon);
    assert_eq!(exchange(&mut inside, b"y"), b"y");
    assert_eq!(daemon.listener("main")["accepted"], 1);
    drop(inside);
    let mut back = [0; 8];
    waits.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"patience");
}

#[test]
fn an_upgrade_gives_no_connection_more_time() {
    let daemon = Daemon::start(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\nidle-timeout = \"8s\"\n",
    );
    let mut old = daemon.connect("main");
    eventually("it has used up half of its time", || {
        peers(&daemon).iter().any(|peer| peer.4 > 4000)
    });
    upgrade(&daemon);
    let new = daemon.connect("main");
    assert_eq!(old.read(&mut [0; 1]).unwrap(), 0, "a FIN");
    let left = peers(&daemon);
    assert!(
        left.iter().any(|peer| peer.3 < 7000),
        "it had to begin again: {left:?}"
    );
    drop(new);
}

#[test]
fn a_connection_keeps_the_reply_that_it_was_opened_with() {
    let daemon = Daemon::start(CONFIG);
    let mut old = daemon.connect("main");
    assert_eq!(exchange(&mut old, b"abc"), b"abc");
    let upper = CONFIG.replace("[listener.main]", "[listener.main]\nreply = \"upper\"");
    assert_eq!(daemon.reload_with(&upper)["outcome"], "applied");
    assert_eq!(exchange(&mut old, b"abc"), b"abc");
    upgrade(&daemon);
    assert_eq!(exchange(&mut old, b"abc"), b"abc");
    let mut new = daemon.connect("main");
    assert_eq!(exchange(&mut new, b"abc"), b"ABC");
}

/// It rolled back at once, and the successor applied what is on disk again: it stayed for good.
#[test]
fn a_reload_that_expires_while_the_program_is_asked_is_rolled_back_by_the_successor() {
    let daemon = start_copy(CONFIG);
    let status = || daemon.ctl_json(&["status"])["status"].clone();
    replace_by_script(
        &daemon,
        "while [ ! -e {dir}/go ]; do sleep 0.02; done; exec {echod} \"$@\"",
    );
    daemon.write_config(&CONFIG.replace("[listener.main]", "[listener.main]\nbacklog = 5"));
    daemon.ctl_text(&["reload", "--confirm", "4s"]);
    daemon.signal(Signal::SIGUSR2);
    eventually("its time is over", || status()["confirm_in_ms"] == 0);
    std::fs::write(daemon.path("go"), "").expect("a file");
    eventually("it is rolled back", || {
        status()["last_reload"]["outcome"] == "rolled_back"
    });
    assert_eq!(upgrades(&daemon), 1, "{}", daemon.log());
    assert_ne!(daemon.listener("main")["backlog"]["requested"], 5);
}

/// They took effect, and neither the result nor a rollback knew of them.
#[test]
fn keys_of_the_daemon_that_changed_on_disk_are_changes_of_an_upgrade() {
    let daemon = Daemon::start(CONFIG);
    let config = |time: &str| format!("[daemon]\ndrain-timeout = \"{time}\"\n{CONFIG}");
    daemon.write_config(&config("7s"));
    upgrade(&daemon);
    let result = daemon.ctl_json(&["status"])["status"]["last_reload"].clone();
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(result["generation"], 2, "{result}");
    let shown = daemon.ctl_text(&["config", "show"]);
    assert!(shown.contains("drain-timeout = \"7s\""), "{shown}");
    daemon.ctl_text(&["rollback"]);
    let shown = daemon.ctl_text(&["config", "show"]);
    assert!(shown.contains("drain-timeout = \"30s\""), "{shown}");
}

#[test]
fn what_has_changed_on_disk_is_applied_as_at_a_reload() {
    let (old_port, new_port) = (free_port(), free_port());
    let config = |driver: &str, workers: u32, rest: &str| {
        let workers = format!("[daemon]\nworkers = {workers}\ndriver = \"{driver}\"\n");
        workers
            + &rest
                .replace("OLD", &old_port.to_string())
                .replace("NEW", &new_port.to_string())
    };
    let drivers = match crate::harness::asked_driver().as_deref() {
        Some("epoll") => ["epoll", "io_uring"],
        _ => ["io_uring", "epoll"],
    };
    let before = r#"
[listener.stays]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.goes]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.moves]
protocol = "tcp"
address = "127.0.0.1:OLD"
"#;
    let after = r#"
[listener.stays]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "upper"

[listener.comes]
protocol = "udp"
address = "127.0.0.1:0"

[listener.moves]
protocol = "tcp"
address = "127.0.0.1:NEW"
"#;
    let daemon = Daemon::start(&config(drivers[0], 2, before));
    let open = |name| {
        let mut peer = daemon.connect(name);
        assert_eq!(exchange(&mut peer, b"x"), b"x");
        peer
    };
    let mut peers: Vec<TcpStream> = ["stays", "goes", "moves"].map(open).into();
    let stays = daemon.address("stays");
    daemon.write_config(&config(drivers[1], 1, after));
    upgrade(&daemon);
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(
        (&status["workers"], &status["driver"]),
        (&json!(1), &json!(drivers[1]))
    );
    assert_eq!(
        (&status["generation"], &status["connections"]),
        (&json!(2), &json!(3))
    );
    assert_eq!(status["last_reload"]["outcome"], "applied");
    assert_eq!(status["last_reload"]["trigger"], "start");
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"y"), b"y", "those there keep what they had");
    }
    assert_eq!(daemon.address("stays"), stays, "its socket was not touched");
    assert_eq!(exchange(&mut connect(stays), b"y"), b"Y");
    assert_eq!(daemon.address("moves").port(), new_port);
    assert_eq!(
        exchange(&mut connect(([127, 0, 0, 1], new_port).into()), b"y"),
        b"y"
    );
    eventually("the old address is free", || {
        TcpStream::connect(("127.0.0.1", old_port)).is_err()
    });
    let client = udp("127.0.0.1:0");
    client.connect(daemon.address("comes")).unwrap();
    client.send(b"x").unwrap();
    assert_eq!(client.recv(&mut [0; 10]).unwrap(), 1);
    let listeners = daemon.ctl_json(&["listeners"]);
    let goes = listeners["listeners"].as_array().unwrap().iter();
    let goes: Vec<&Value> = goes.filter(|listener| listener["name"] == "goes").collect();
    assert_eq!(
        (&goes[0]["state"], &goes[0]["connections"]),
        (&json!("retired"), &json!(1))
    );

    // And back, with more workers than there were.
    daemon.write_config(&config(drivers[0], 3, before));
    upgrade(&daemon);
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(
        (&status["workers"], &status["driver"]),
        (&json!(3), &json!(drivers[0]))
    );
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"z"), b"z");
    }
    let mut again: Vec<TcpStream> = (0..20).map(|_| daemon.connect("goes")).collect();
    again
        .iter_mut()
        .for_each(|peer| assert_eq!(exchange(peer, b"z"), b"z"));
}

#[test]
fn a_broken_configuration_refuses_the_upgrade_and_says_where_it_is_broken() {
    let daemon = Daemon::start(CONFIG);
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let status = daemon.ctl_json(&["status"])["status"]["last_reload"].clone();
    daemon.write_config(&CONFIG.replacen("protocol = \"tcp\"", "protocol = \"tpc\"", 1));
    let said = refusal(&daemon);
    let place = format!("{}:3:12: ", daemon.path("echod.toml").display());
    assert!(said.contains(&place), "{said}");
    assert_eq!(upgrades(&daemon), 0);
    assert_eq!(exchange(&mut peer, b"y"), b"y");
    let after = daemon.ctl_json(&["status"])["status"]["last_reload"].clone();
    assert_eq!(after, status, "nothing has changed");
    let json = daemon.ctl(&["--json", "upgrade"]);
    assert_eq!(json.status.code(), Some(1), "{}", text(&json.stdout));
}

#[test]
fn what_this_machine_refuses_to_the_successor_refuses_the_upgrade() {
    let config = "[daemon]\ndriver = \"epoll\"\n".to_owned() + CONFIG;
    let daemon = crate::drivers::where_io_uring_fails(Errno::EPERM, || Daemon::start(&config));
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let mut changed =
        config.replace("epoll", "io_uring") + "[control]\ngroup = \"no-such-group\"\n";
    if !std::path::Path::new("/dev/log").exists() {
        changed += "[log]\ntarget = \"syslog\"\n";
    }
    daemon.write_config(&changed);
    let said = refusal(&daemon);
    assert!(
        !changed.contains("syslog") || said.contains("log: /dev/log: "),
        "{said}"
    );
    assert!(said.contains("[daemon] driver \"io_uring\": "), "{said}");
    assert!(said.contains("there is no such group"), "{said}");
    assert_eq!(exchange(&mut peer, b"y"), b"y");
    assert_eq!(exchange(&mut daemon.connect("main"), b"z"), b"z");
}

#[test]
fn the_caller_of_an_upgrade_learns_that_the_new_configuration_is_not_in_force() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let daemon = Daemon::start(CONFIG);
    daemon.write_config(&format!(
        "{CONFIG}[listener.late]\nprotocol = \"tcp\"\naddress = \"{address}\"\n"
    ));
    let result = daemon.ctl_json(&["upgrade"])["result"].clone();
    let warning = |index: usize| {
        result["warnings"][index]["message"]
            .as_str()
            .unwrap_or_default()
    };
    assert_eq!(
        warning(0),
        "reload 2 rejected with 1 error; still running generation 1"
    );
    assert!(warning(1).contains("address already in use"), "{result}");
    assert_eq!(result["warnings"].as_array().unwrap().len(), 2, "{result}");
    daemon.write_config(CONFIG);
    let result = daemon.ctl_json(&["upgrade"])["result"].clone();
    assert_eq!(result["warnings"], json!([]));
}

/// Its successor has the sockets already.
#[test]
fn an_upgrade_is_not_refused_for_a_listener_that_could_not_be_bound_again() {
    let unix = "[listener.unix]\nprotocol = \"unix-stream\"\naddress = \"{dir}/below/s\"\n";
    let daemon = Daemon::start_with(&format!("{CONFIG}{unix}"), |command| {
        std::fs::create_dir(folder_of(command).join("below")).unwrap();
    });
    let path = daemon.path("below/s");
    let mut peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    std::fs::remove_dir_all(daemon.path("below")).unwrap();
    upgrade(&daemon);
    assert_eq!(exchange(&mut peer, b"y"), b"y");
    std::fs::create_dir(daemon.path("below")).unwrap();
    daemon.reload();
    let mut peer = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert_eq!(exchange(&mut peer, b"z"), b"z");
}

/// As after a restart by a service manager, which does not ask first.
#[test]
fn a_successor_that_this_machine_refuses_what_is_configured_serves_all_the_same() {
    let config = "[daemon]\ndriver = \"epoll\"\n".to_owned() + CONFIG;
    let daemon = crate::drivers::where_io_uring_fails(Errno::EPERM, || {
        Daemon::start_with(&config, |command| {
            use_copy(command);
        })
    });
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let changed = config.replace("epoll", "io_uring") + "[control]\ngroup = \"no-such-group\"\n";
    daemon.write_config(&changed);
    replace_by_script(&daemon, UNCHECKED);
    let result = daemon.ctl_json(&["upgrade"])["result"].clone();
    let (log, warnings) = (daemon.log(), result["warnings"].to_string());
    for said in [&log, &warnings.replace("\\\"", "\"")] {
        assert!(said.contains("[daemon] driver \"io_uring\": "), "{said}");
        assert!(said.contains("there is no such group"), "{said}");
    }
    assert_eq!(exchange(&mut peer, b"y"), b"y");
    assert_eq!(exchange(&mut daemon.connect("main"), b"z"), b"z");
}

#[test]
fn a_backlog_that_was_set_at_run_time_ends_with_the_protocol_that_has_one() {
    let daemon = Daemon::start(CONFIG);
    daemon.ctl_text(&["backlog", "main", "7"]);
    daemon.write_config(&CONFIG.replacen("protocol = \"tcp\"", "protocol = \"udp\"", 1));
    upgrade(&daemon);
    let main = daemon.listener("main");
    assert_eq!(main["protocol"], "udp", "{main}");
    assert_eq!(main["overridden"], json!([]), "{main}");
    assert!(!daemon.ctl_text(&["config", "show"]).contains("backlog = 7"));
}

/// A user that the new configuration names is unknown on this machine: it is rejected, and those that
/// could change something before still can.
#[test]
fn roles_are_the_predecessors_while_the_new_configuration_is_rejected() {
    if !nix::unistd::geteuid().is_root() {
        not_tested("only root can call as other users");
        return;
    }
    let with_operators =
        |names: &str| format!("{CONFIG}[control]\nmode = \"0666\"\noperators = [{names}]\n");
    let daemon = start_copy(&with_operators("\"4000001\""));
    let echoctl = daemon.path("echoctl");
    install(ECHOCTL, &echoctl);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(daemon.path("."), mode).expect("set");
    let status_of = |uid: u32| {
        let mut command = Command::new("setpriv");
        let uid = uid.to_string();
        command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        command.arg(&echoctl).args(["backlog", "main", "9"]);
        command.env("ECHOCTL_SOCKET", daemon.path("control.sock"));
        run(&mut command).status.code()
    };
    assert_eq!([4_000_001, 4_000_002].map(status_of), [Some(0), Some(77)]);
    daemon.write_config(&with_operators("\"4000002\", \"no-such-user\""));
    replace_by_script(&daemon, UNCHECKED);
    let result = daemon.ctl_json(&["upgrade"]);
    assert!(result.to_string().contains("no-such-user"), "{result}");
    assert_eq!([4_000_001, 4_000_002].map(status_of), [Some(0), Some(77)]);
    let config = daemon.ctl_text(&["config", "show"]);
    assert!(config.contains("operators = [\"4000001\"]"), "{config}");
}
