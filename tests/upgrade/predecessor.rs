//! What a successor finds that was left by a predecessor, when it is not what it should be.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use echod::internals::{put_into_carriers, store};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::{
    Control, Daemon, ECHOD, after_shell_line, asked_driver, close_unix, connect, exchange,
    folder_of, instead, text, udp,
};

use super::upgrade;

/// Starts echod as a predecessor would that has left this at descriptor 3.
fn start_with_carrier(config: &str, carrier: OwnedFd, variable: &str) -> Daemon {
    Daemon::start_with(config, |command| {
        let line = format!("export ECHOD_HANDOVER='{variable}'; exec 3<&0 </dev/null");
        after_shell_line(command, &line);
        command.stdin(Stdio::from(carrier));
    })
}

fn carrier(descriptors: &[impl AsFd]) -> OwnedFd {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    put_into_carriers(&descriptors).unwrap().pop().unwrap()
}

/// Sockets as a daemon with two workers has: each address twice.
fn shared(kind: socket2::Type, address: std::net::SocketAddr) -> OwnedFd {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    if kind == socket2::Type::STREAM {
        socket.listen(100).unwrap();
    } else {
        // As every socket of a predecessor: what comes is queued with where it came in.
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)
            .unwrap();
    }
    socket.into()
}

fn local(socket: &OwnedFd) -> std::net::SocketAddr {
    socket2::SockRef::from(socket)
        .local_addr()
        .unwrap()
        .as_socket()
        .unwrap()
}

#[test]
fn when_the_record_can_not_be_read_queued_clients_are_served_all_the_same() {
    let any = "127.0.0.1:0".parse().unwrap();
    let first = shared(socket2::Type::STREAM, any);
    let tcp = local(&first);
    // A connection whose bytes are unknown.
    let mut lost = connect(tcp);
    let (accepted, _) = TcpListener::from(first.try_clone().unwrap())
        .accept()
        .unwrap();
    let second = shared(socket2::Type::STREAM, tcp);
    let datagrams = shared(socket2::Type::DGRAM, any);
    let udp_address = local(&datagrams);

    // Some of them wait at each of the two sockets.
    let mut queued: Vec<TcpStream> = (0..20).map(|_| connect(tcp)).collect();
    for stream in &mut queued {
        stream.write_all(b"patience").unwrap();
    }
    let client = udp("127.0.0.1:0");
    client.connect(udp_address).unwrap();
    client.send(b"hello").unwrap();

    let record = store("test", &[b"echod handover 1\nwhich is cut"]).unwrap();
    let config = format!(
        "[daemon]\nworkers = 2\n{}\n[listener.main]\nprotocol = \"tcp\"\naddress = \"{tcp}\"\n\
         [listener.udp]\nprotocol = \"udp\"\naddress = \"{udp_address}\"\n",
        asked_driver().map_or(String::new(), |driver| format!("driver = \"{driver}\"")),
    );
    let mut daemon = Daemon::start_with(&config, |command| {
        // The predecessor had a control socket.
        let control = UnixListener::bind(folder_of(command).join("control.sock")).unwrap();
        let all = [
            record,
            first,
            second,
            datagrams,
            accepted.into(),
            control.into(),
        ];
        after_shell_line(command, "export ECHOD_HANDOVER=3; exec 3<&0 </dev/null");
        command.stdin(Stdio::from(carrier(&all)));
    });
    let log = daemon.log();
    assert!(
        log.contains("what the predecessor left can't be read"),
        "{log}"
    );
    for stream in &mut queued {
        let mut back = [0; 8];
        std::io::Read::read_exact(stream, &mut back).unwrap();
        assert_eq!(&back, b"patience");
    }
    assert_eq!(client.recv(&mut [0; 10]).unwrap(), 5);
    assert!(
        std::io::Read::read(&mut lost, &mut [0; 1]).map_or(true, |len| len == 0),
        "what can't be continued is closed"
    );
    let mut peers: Vec<TcpStream> = (0..20).map(|_| connect(tcp)).collect();
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"new"), b"new");
    }
    upgrade(&daemon);
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"new"), b"new");
    }
    drop((peers, queued));
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!daemon.path("control.sock").exists());
}

const SIMPLE: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

fn starts_all_the_same(carrier: OwnedFd, variable: &str) {
    let daemon = start_with_carrier(SIMPLE, carrier, variable);
    let log = daemon.log();
    assert!(
        log.contains("what the predecessor left can't be read"),
        "{variable}: {log}"
    );
    assert_eq!(exchange(&mut daemon.connect("main"), b"x"), b"x");
    upgrade(&daemon);
    assert_eq!(exchange(&mut daemon.connect("main"), b"x"), b"x");
}

#[test]
fn a_carrier_with_nothing_in_it_is_logged_and_the_start_is_a_normal_one() {
    starts_all_the_same(carrier(&[] as &[OwnedFd]), "3");
}

#[test]
fn a_descriptor_that_is_no_carrier_is_logged_and_the_start_is_a_normal_one() {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    for variable in [
        "3",
        "77",
        "3 77",
        "",
        "three",
        "-1",
        "0",
        "1",
        "99999999999",
        "3 3",
    ] {
        starts_all_the_same(null(), variable);
    }
}

#[test]
fn a_socket_of_the_service_manager_is_taken_once() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(7).unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let config = format!("[listener.main]\nprotocol = \"tcp\"\naddress = \"{address}\"\n");
    let mut daemon = Daemon::start_with(&config, |command| {
        let pass = "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&0 </dev/null";
        after_shell_line(command, pass);
        command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    });
    let mut peer = connect(address);
    for _ in 0..3 {
        assert_eq!(exchange(&mut peer, b"x"), b"x");
        upgrade(&daemon);
        let listener = daemon.listener("main");
        assert_eq!(listener["sockets"], 1);
        assert_eq!(listener["backlog"]["effective"], 7);
    }
    assert_eq!(exchange(&mut connect(address), b"y"), b"y");
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    // The manager has it still, as it was.
    let mut waits = connect(address);
    waits.write_all(b"x").unwrap();
    drop(socket);
}

#[test]
fn a_control_socket_whose_file_was_removed_is_made_again_and_the_caller_is_answered() {
    let daemon = Daemon::start(super::CONFIG);
    let mut caller = daemon.control();
    std::fs::remove_file(daemon.path("control.sock")).unwrap();
    let reply = caller.ask("Upgrade", &json!({})).expect("an answer");
    let result = &reply["parameters"]["result"];
    assert_eq!(result["listeners"], 4, "{reply}");
    let warning = format!(
        "control socket: {}: the socket's file was gone and is made anew",
        daemon.path("control.sock").display()
    );
    assert_eq!(
        result["warnings"],
        json!([{ "file": "", "message": warning }])
    );
    assert!(text(&daemon.ctl(&["status"]).stdout).contains("serving"));
}

/// The successor had no control socket at all then, and its caller no answer.
#[test]
fn a_successor_whose_control_socket_another_process_has_taken_answers_its_clients() {
    let daemon = Daemon::start(super::CONFIG);
    let path = daemon.path("control.sock");
    let mut caller = daemon.control();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    let reply = caller.ask("Upgrade", &json!({})).expect("an answer");
    let warnings = reply["parameters"]["result"]["warnings"].to_string();
    assert!(warnings.contains("already running"), "{reply}");
    assert!(daemon.log().contains("already running"), "{}", daemon.log());
    close_unix(other, &path);
    // When the path is free again, the next reload takes it.
    let reply = caller.ask("Reload", &json!({})).expect("an answer");
    let warnings = reply["parameters"]["result"]["warnings"].to_string();
    assert!(warnings.contains("is made anew"), "{reply}");
    assert!(text(&daemon.ctl(&["status"]).stdout).contains("serving"));
}

#[test]
fn a_control_socket_that_is_configured_elsewhere_moves_with_its_clients() {
    let config = |name: &str| {
        format!(
            "[control]\nsocket = \"{{dir}}/{name}.sock\"\n{}",
            super::CONFIG
        )
    };
    let mut daemon = Daemon::start_with(&config("one"), |command| {
        // Without --socket, which would come first.
        let arguments = command.get_args().take(2).map(Into::into).collect();
        *command = instead(command, ECHOD, arguments);
    });
    let mut idle = Control::connect(&daemon.path("one.sock"));
    assert!(idle.ask("GetStatus", &json!({})).is_some());
    let mut caller = Control::connect(&daemon.path("one.sock"));
    daemon.write_config(&config("two"));
    let reply = caller.ask("Upgrade", &json!({})).expect("an answer");
    assert_eq!(reply["parameters"]["result"]["listeners"], 4, "{reply}");
    assert!(!daemon.path("one.sock").exists());
    let mut new = Control::connect(&daemon.path("two.sock"));
    for client in [&mut idle, &mut caller, &mut new] {
        let reply = client.ask("GetStatus", &json!({})).expect("an answer");
        assert_eq!(reply["parameters"]["status"]["state"], "serving");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!daemon.path("two.sock").exists());
}

/// The folder of the new one does not exist.
#[test]
fn a_control_socket_that_can_not_be_moved_stays() {
    let daemon = Daemon::start_with(super::CONFIG, |command| {
        let arguments = command.get_args().take(2).map(Into::into).collect();
        *command = instead(command, ECHOD, arguments);
        command.env("RUNTIME_DIRECTORY", folder_of(command));
    });
    let moved = format!(
        "[control]\nsocket = \"{{dir}}/a/b/control.sock\"\n{}",
        super::CONFIG
    );
    daemon.write_config(&moved);
    let result = daemon.ctl_json(&["upgrade"])["result"].clone();
    let warnings = result["warnings"].as_array().expect("a list");
    assert_eq!(warnings.len(), 1, "{result}");
    let warning = warnings[0]["message"].as_str().expect("a text");
    assert!(
        warning.starts_with("control socket: ") && warning.contains("no such directory"),
        "{warning}"
    );
    assert!(daemon.log().contains(warning), "{}", daemon.log());
    let said = daemon.ctl_text(&["upgrade"]);
    assert!(said.contains(&format!("warning: {warning}\n")), "{said}");
    assert!(text(&daemon.ctl(&["status"]).stdout).contains("serving"));
}
