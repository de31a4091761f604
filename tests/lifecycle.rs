//! From the start to the end: what is reported, what is left behind, and which peers may finish.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::harness::{
    Daemon, ECHOD, PATIENCE, after_shell_line, connect, eventually, exchange, free_port,
    not_tested, text, udp,
};

fn tcp(more: &str) -> String {
    format!("[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n{more}\n")
}

/// Reads to the end, which must be a FIN; returns what came before it.
fn read_to_fin(stream: &mut impl Read) -> Vec<u8> {
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .expect("a FIN and not a reset");
    rest
}

#[test]
fn queued_clients_are_served_before_the_end() {
    let mut daemon = Daemon::start(&format!(
        "[daemon]\ndrain-timeout = \"20s\"\n{}",
        tcp("max-connections = 1\nsockets = 1")
    ));
    let address = daemon.address("main");
    let mut inside = connect(address);
    exchange(&mut inside, b"inside");
    let mut queued: Vec<TcpStream> = (0..20).map(|_| connect(address)).collect();
    for client in &mut queued {
        client.write_all(b"queued").expect("sent");
    }
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    for mut client in queued {
        client.shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(read_to_fin(&mut client), b"queued");
    }
    // An established connection continues within the drain timeout.
    assert_eq!(exchange(&mut inside, b"still inside"), b"still inside");
    assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "draining");
    // No new connection is accepted.
    let refused = TcpStream::connect_timeout(&address, PATIENCE).expect_err("nothing listens");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    // It is too late for a reload.
    assert_eq!(daemon.ctl(&["reload"]).status.code(), Some(1));
    inside.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(read_to_fin(&mut inside), b"");
    assert!(daemon.wait().success());
    assert!(!daemon.path("control.sock").exists());
    let log = daemon.log();
    assert!(
        log.contains("may continue for 20s; a second signal ends at once"),
        "{log}"
    );
    assert!(log.contains("stopped after 21 connections"), "{log}");
    assert!(log.contains("; 0 cut"), "{log}");
}

#[test]
fn a_peer_that_does_not_finish_in_time_gets_a_fin_and_no_reset() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut daemon = Daemon::start(&format!(
            "[daemon]\ndrain-timeout = \"300ms\"\n{}[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/local.sock\"\n",
            tcp("")
        ));
        let mut peers: Vec<TcpStream> = (0..5).map(|_| daemon.connect("main")).collect();
        let mut local = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
        for peer in &mut peers {
            exchange(peer, b"hello");
        }
        exchange(&mut local, b"hello");
        let begun = Instant::now();
        daemon.signal(signal);
        for peer in &mut peers {
            assert_eq!(read_to_fin(peer), b"");
        }
        assert_eq!(read_to_fin(&mut local), b"");
        assert!(
            begun.elapsed() >= Duration::from_millis(300),
            "they had less time than they were promised"
        );
        drop((peers, local));
        assert!(daemon.wait().success(), "{signal}");
        let log = daemon.log();
        assert!(
            log.contains("6 connections did not finish in time, closed now"),
            "{log}"
        );
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut daemon = Daemon::start(&format!(
        "[daemon]\ndrain-timeout = \"10m\"\nshutdown-delay = \"10m\"\n{}",
        tcp("")
    ));
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
    daemon.signal(Signal::SIGTERM);
    eventually("it is leaving", || {
        daemon.ctl_json(&["status"])["status"]["state"] == "leaving"
    });
    daemon.signal(Signal::SIGINT);
    assert!(daemon.wait().success());
    // And while draining, too.
    let mut daemon = Daemon::start(&format!("[daemon]\ndrain-timeout = \"10m\"\n{}", tcp("")));
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    assert_eq!(exchange(&mut peer, b"draining"), b"draining");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(daemon.log().contains("; 1 cut"), "{}", daemon.log());
}

#[test]
fn during_the_shutdown_delay_everything_is_still_served() {
    let mut daemon = Daemon::start(&format!(
        "[daemon]\nshutdown-delay = \"1h\"\n{}[listener.datagrams]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n",
        tcp("")
    ));
    let (address, datagrams) = (daemon.address("main"), daemon.address("datagrams"));
    daemon.signal(Signal::SIGTERM);
    eventually("it is leaving", || {
        daemon.ctl_json(&["status"])["status"]["state"] == "leaving"
    });
    // New ones too, for as long as the state is that.
    let mut new = connect(address);
    let socket = udp("127.0.0.1:0");
    socket.send_to(b"datagram", datagrams).expect("sent");
    assert_eq!(exchange(&mut new, b"new"), b"new");
    assert_eq!(socket.recv(&mut [0; 16]).expect("answered"), 8);
    // The second one ends it at once.
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let log = daemon.log();
    assert!(log.contains("serving on for 1h"), "{log}");
}

#[test]
fn after_the_shutdown_delay_it_stops_by_itself() {
    let config = format!("[daemon]\nshutdown-delay = \"100ms\"\n{}", tcp(""));
    let mut daemon = Daemon::start(&config);
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    assert!(daemon.wait().success());
    let log = daemon.log();
    assert!(log.contains("serving on for 100ms"), "{log}");
}

#[test]
fn datagrams_are_answered_until_the_last_connection_has_ended() {
    let mut daemon = Daemon::start(&format!(
        "{}[listener.datagrams]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n[listener.local]\nprotocol = \"unix-datagram\"\naddress = \"{{dir}}/datagrams.sock\"\n",
        tcp("")
    ));
    let datagrams = daemon.address("datagrams");
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    let socket = udp("127.0.0.1:0");
    let local = UnixDatagram::bind(daemon.path("peer.sock")).expect("bound");
    local.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for _ in 0..10 {
        socket.send_to(b"datagram", datagrams).expect("sent");
        assert_eq!(socket.recv(&mut [0; 16]).expect("answered"), 8);
        local
            .send_to(b"gram", daemon.path("datagrams.sock"))
            .expect("sent");
        assert_eq!(local.recv(&mut [0; 16]).expect("answered"), 4);
    }
    assert_eq!(exchange(&mut peer, b"still"), b"still");
    drop(peer);
    assert!(daemon.wait().success());
    assert!(!daemon.path("datagrams.sock").exists());
}

#[test]
fn nothing_is_left_behind_and_the_port_is_free_for_the_next() {
    let port = free_port();
    let config = format!(
        "[daemon]\ndrain-timeout = \"100ms\"\n\
         [listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n\
         [listener.datagrams]\nprotocol = \"udp\"\naddress = \"127.0.0.1:{port}\"\n\
         [listener.stream]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/stream.sock\"\n\
         [listener.datagram]\nprotocol = \"unix-datagram\"\naddress = \"{{dir}}/datagram.sock\"\n"
    );
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    for _ in 0..3 {
        let mut daemon = Daemon::start(&config);
        for file in ["control.sock", "stream.sock", "datagram.sock"] {
            assert!(daemon.path(file).exists(), "{file}");
        }
        let mut peers: Vec<TcpStream> = (0..3).map(|_| connect(address)).collect();
        for peer in &mut peers {
            exchange(peer, b"hello");
        }
        // The daemon closes first, so that the connections go into TIME_WAIT on its side.
        daemon.signal(Signal::SIGTERM);
        for peer in &mut peers {
            assert_eq!(read_to_fin(peer), b"");
        }
        drop(peers);
        assert!(daemon.wait().success());
        for file in ["control.sock", "stream.sock", "datagram.sock"] {
            assert!(!daemon.path(file).exists(), "{file}");
        }
    }
}

/// What the kernel closes later, behind the back of a process that has ended, would still be in the
/// way.
#[test]
fn a_restart_amid_connections_finds_its_ports_free_at_once() {
    let port = free_port();
    let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    let config = format!(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"{address}\"\n\
         [listener.datagrams]\nprotocol = \"udp\"\naddress = \"{address}\"\n"
    );
    for round in 0..20 {
        let mut daemon = Daemon::start(&config);
        let mut peers: Vec<TcpStream> = (0..8).map(|_| connect(address)).collect();
        for peer in &mut peers {
            exchange(peer, b"hello");
        }
        let client = udp("127.0.0.1:0");
        client.send_to(b"hello", address).expect("sent");
        client.recv(&mut [0; 5]).expect("answered");
        daemon.signal(Signal::SIGTERM);
        daemon.wait_for_notification("STOPPING=1");
        if round % 2 == 0 {
            // The second one ends it amid its connections.
            daemon.signal(Signal::SIGTERM);
        } else {
            drop(peers);
        }
        assert!(daemon.wait().success(), "{}", daemon.log());
    }
}

#[test]
fn a_unix_socket_of_a_daemon_that_was_killed_is_taken_over() {
    let config = "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n";
    let mut killed = Daemon::start(config);
    killed.signal(Signal::SIGKILL);
    assert!(!killed.wait().success());
    assert!(killed.path("local.sock").exists());
    // The kernel may free the sockets of a killed process after it has reported its end.
    eventually("no process has it", || {
        UnixStream::connect(killed.path("local.sock")).is_err()
    });
    let folder = killed.folder.path();
    let _next = Daemon::start(&config.replace("{dir}", &folder.display().to_string()));
    let mut peer = UnixStream::connect(killed.path("local.sock")).expect("a connection");
    assert_eq!(exchange(&mut peer, b"next"), b"next");
}

#[test]
fn without_a_journal_lines_begin_with_the_name_and_peers_faults_are_none() {
    let daemon = Daemon::start(&format!("[log]\ntarget = \"stderr\"\n{}", tcp("")));
    let address = daemon.address("main");
    for round in 0..20 {
        let mut peer = connect(address);
        exchange(&mut peer, b"hello");
        if round % 2 == 0 {
            peer.write_all(&vec![b'x'; 100_000]).expect("sent");
        }
        socket2::SockRef::from(&peer)
            .set_linger(Some(Duration::ZERO))
            .expect("set");
    }
    eventually("all are gone", || {
        let listener = daemon.listener("main");
        listener["accepted"] == 20 && listener["connections"] == 0
    });
    let log = daemon.log();
    assert!(log.lines().all(|line| line.starts_with("echod: ")), "{log}");
    // What is in force, the listener, and that it is ready.
    assert_eq!(log.lines().count(), 3, "{log}");
}

#[test]
fn under_the_journal_lines_have_their_priority_and_no_name() {
    let config = format!("[log]\ntarget = \"stderr\"\n{}", tcp(""));
    let daemon = Daemon::start_with(&config, |command| {
        // The log file is the only thing known of the standard error here.
        let notify = command
            .get_envs()
            .find(|(name, _)| *name == "NOTIFY_SOCKET")
            .and_then(|(_, path)| path.map(std::path::PathBuf::from))
            .expect("a path");
        let log = std::fs::metadata(notify.with_file_name("log")).expect("a log file");
        command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    });
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    assert_eq!(daemon.reload()["outcome"], "rejected");
    daemon.ctl_text(&["log-level", "debug"]);
    eventually("the end of a control client is a line", || {
        daemon.log().contains("closed by the client")
    });
    let log = daemon.log();
    let priority = |part: &str| {
        let line = log.lines().find(|line| line.contains(part));
        let line = line.unwrap_or_else(|| panic!("no {part:?} in {log}"));
        line.get(..3).expect("a prefix").to_owned()
    };
    assert_eq!(priority("is ready"), "<6>");
    assert_eq!(priority("echod.toml:2:12: "), "<3>");
    assert_eq!(priority("reload 2 rejected with"), "<3>");
    assert_eq!(priority("closed by the client"), "<7>");
    assert!(
        log.lines()
            .all(|line| line.starts_with('<') && !line.contains("echod: ")),
        "{log}"
    );
}

#[test]
fn another_processs_journal_is_none_of_ours() {
    let daemon = Daemon::start_with(&tcp(""), |command| {
        command.env("JOURNAL_STREAM", "1:2");
    });
    assert!(daemon.log().starts_with("echod: "), "{}", daemon.log());
}

#[test]
fn the_limit_of_descriptors_is_raised_to_the_hard_one() {
    let daemon = Daemon::start_with(&tcp(""), |command| {
        after_shell_line(command, "ulimit -S -n 128");
    });
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", daemon.pid()));
    let limits = limits.expect("a table");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .expect("a line");
    let mut values = line.split_whitespace();
    let (soft, hard) = (values.next(), values.next());
    assert!(soft.is_some() && soft == hard, "{line}");
}

/// Of each thread: its name, and the processors that it may use.
fn threads(pid: i32) -> Vec<(String, String)> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let thread = |path: std::path::PathBuf| {
        // None of one that has ended since.
        let status = std::fs::read_to_string(path.join("status")).ok()?;
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.expect("a line").trim().to_owned()
        };
        Some((value("Name:"), value("Cpus_allowed_list:")))
    };
    let mut threads: Vec<_> = tasks
        .filter_map(|task| thread(task.expect("a thread").path()))
        .collect();
    threads.sort();
    threads
}

#[test]
fn workers_are_named_and_each_has_a_processor_of_its_own() {
    let daemon = Daemon::start(&format!("[daemon]\nworkers = 2\n{}", tcp("")));
    let workers: Vec<_> = threads(daemon.pid())
        .into_iter()
        .filter(|(name, _)| name.starts_with("worker-"))
        .collect();
    let names: Vec<_> = workers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["worker-0", "worker-1"]);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus > 1 {
        assert!(
            workers.iter().all(|(_, list)| list.parse::<u32>().is_ok()),
            "{workers:?}"
        );
        assert_ne!(workers[0].1, workers[1].1);
    } else {
        not_tested("this machine has one processor");
    }
}

/// Runs echod with a configuration that it must refuse; its exit status and what it says.
fn refused(config: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("echod.toml");
    std::fs::write(&file, config).expect("written");
    let output = Command::new(ECHOD)
        .arg("--config")
        .arg(&file)
        .args(arguments)
        .current_dir(folder.path())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .output()
        .expect("echod runs");
    assert!(output.stdout.is_empty());
    (output.status.code(), text(&output.stderr))
}

#[test]
fn a_start_and_a_check_refuse_a_group_that_does_not_exist() {
    let config = format!("[control]\ngroup = \"no-such-group\"\n{}", tcp(""));
    for arguments in [["--socket", "control.sock"].as_slice(), &["--check"]] {
        let (status, errors) = refused(&config, arguments);
        assert_eq!(status, Some(78), "{errors}");
        let end = "echod.toml:2:9: [control] group \"no-such-group\": there is no such group: \
                   groupadd --system no-such-group\n";
        assert!(errors.ends_with(end), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn a_check_names_everything_that_a_start_as_root_would_refuse() {
    let config = format!(
        "[daemon]\nuser = \"root\"\ngroup = \"daemon\"\n[control]\ngroup = \"no-such-group\"\n{}",
        tcp("")
    );
    let (status, errors) = refused(&config, &["--check"]);
    assert_eq!(status, Some(78), "{errors}");
    assert!(
        errors.contains("user \"root\": root stays root"),
        "{errors}"
    );
    assert!(errors.contains("no-such-group"), "{errors}");
    assert_eq!(errors.lines().count(), 2, "{errors}");
}

#[test]
fn a_second_daemon_does_not_take_the_control_socket_of_the_first() {
    let first = Daemon::start(&tcp(""));
    let socket = first.path("control.sock").display().to_string();
    let (status, told) = refused(&tcp(""), &["--socket", &socket]);
    assert_eq!(status, Some(1), "{told}");
    assert!(
        told.contains(&format!(
            "control socket: {socket}: already running: a daemon listens there; stop it, or use another --socket"
        )),
        "{told}"
    );
    assert_eq!(first.ctl_json(&["status"])["status"]["state"], "serving");
}

#[test]
fn a_second_daemon_does_not_share_the_port_of_the_first() {
    let port = free_port();
    let config = format!(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:{port}\"\nsockets = 2\n"
    );
    let first = Daemon::start(&config);
    let socket = first.path("second.sock").display().to_string();
    let (status, told) = refused(&config, &["--socket", &socket]);
    assert_eq!(status, Some(1), "{told}");
    assert!(told.contains("address already in use"), "{told}");
    assert!(!first.path("second.sock").exists());
}

#[test]
fn a_service_manager_that_does_not_listen_stops_nothing() {
    let config = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let mut daemon = Daemon::start(config);
    // Each tells it twice, and its queue holds about ten messages (net.unix.max_dgram_qlen).
    for _ in 0..50 {
        assert!(daemon.ctl(&["reload"]).status.success());
    }
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn a_service_manager_at_an_abstract_name_is_notified() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr as UnixAddress;

    let name = format!("echod-test-{}", std::process::id());
    let address = UnixAddress::from_abstract_name(&name).expect("a short name");
    let manager = UnixDatagram::bind_addr(&address).expect("a name of its own");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut daemon = Daemon::spawn(&tcp(""), |command| {
        command.env("NOTIFY_SOCKET", format!("@{name}"));
    });
    let next = || {
        let mut message = [0; 4096];
        let len = manager.recv(&mut message).expect("a message");
        text(&message[..len])
    };
    while !next().lines().any(|line| line == "READY=1") {}
    daemon.signal(Signal::SIGTERM);
    while !next().lines().any(|line| line == "STOPPING=1") {}
    assert!(daemon.wait().success());
}

/// The log had no line about why `systemctl start` did not return.
#[test]
fn a_service_manager_that_does_not_read_its_messages_is_one_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("manager");
    let manager = UnixDatagram::bind(&path).expect("bound");
    let other = UnixDatagram::unbound().expect("a socket");
    other.set_nonblocking(true).expect("nonblocking");
    while other.send_to(b"of another service", &path).is_ok() {}
    let mut daemon = Daemon::spawn(&tcp(""), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let warning = "the service manager does not read its messages";
    eventually("there is a warning", || daemon.log().contains(warning));
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
    // It still gets the message once it reads.
    let mut message = [0; 4096];
    let mut next = || {
        let len = manager.recv(&mut message).expect("a message");
        text(&message[..len])
    };
    while !next().lines().any(|line| line == "READY=1") {}
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    assert_eq!(daemon.log().matches(warning).count(), 1);
}

#[test]
fn a_service_manager_that_can_not_be_notified_is_a_warning() {
    for address in [
        "/nonexistent/notify",
        "@no-such-name",
        "vsock:2:7",
        "notify",
    ] {
        let mut daemon = Daemon::spawn(&tcp(""), |command| {
            command.env("NOTIFY_SOCKET", address);
        });
        eventually("there is a warning", || {
            let log = daemon.log();
            log.contains("the service manager can't be notified: NOTIFY_SOCKET")
                && log.contains("is ready")
        });
        let mut peer = daemon.connect("main");
        assert_eq!(exchange(&mut peer, b"hello"), b"hello");
        drop(peer);
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success(), "{}", daemon.log());
    }
}

#[test]
fn it_ends_in_time_also_when_a_queue_can_not_be_emptied_for_want_of_descriptors() {
    let config = "[daemon]\nworkers = 1\ndrain-timeout = \"100ms\"\n\
                  [listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let mut daemon =
        Daemon::start_with(config, |command| after_shell_line(command, "ulimit -n 64"));
    let address = daemon.address("main");
    // More than there are descriptors, and none of them leaves.
    let _peers: Vec<_> = (0..80).map(|_| connect(address)).collect();
    eventually("it is out of descriptors", || {
        daemon.log().contains("clients wait in the backlog")
    });
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}
