//! Sockets over a reload, as the kernel and its clients see them: a reload that is applied costs no
//! client a retransmission, one that is rejected leaves every option, file and queue as it was.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use echod::internals::socket::details;
use socket2::{Domain, Socket, Type};

use super::kernel_sockets;
use crate::harness::{
    Daemon, PATIENCE, StopAtEnd, connect, eventually, exchange, free_port, not_tested, read_twice,
    text, udp,
};

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn table(name: &str, protocol: &str, address: &str, more: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n{more}\n")
}

fn tcp(name: &str, address: &str, more: &str) -> String {
    table(name, "tcp", address, more)
}

fn assert_applied(daemon: &Daemon, config: &str) {
    let result = daemon.reload_with(config);
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(result["warnings"], serde_json::json!([]), "{result}");
}

fn assert_rejected(daemon: &Daemon, config: &str) {
    let result = daemon.reload_with(config);
    assert_eq!(result["outcome"], "rejected", "{result}");
}

/// Connects and exchanges a message; returns how many segments the client had to retransmit, its SYN
/// included.
fn retransmitted(address: SocketAddr) -> u32 {
    let mut stream = connect(address);
    assert_eq!(exchange(&mut stream, b"message"), b"message");
    details(stream.as_fd()).retransmits.expect("it is TCP")
}

#[test]
fn an_applied_reload_costs_no_client_a_retransmission() {
    const CLIENTS: usize = 40;
    let port = free_port();
    let local = at(port).to_string();
    let any = format!("0.0.0.0:{port}");
    let other = tcp("other", &at(free_port()).to_string(), "");
    let one = |name: &str, address: &str, sockets: usize| {
        tcp(name, address, &format!("sockets = {sockets}")) + &other
    };
    let steps = [
        // More and fewer sockets of the same address.
        one("a", &local, 2),
        one("a", &local, 1),
        one("a", &local, 4),
        one("a", &local, 3),
        one("a", &local, 1),
        // From one listener to another, in both orders of their names, with other numbers.
        one("b", &local, 1),
        one("a", &local, 2),
        one("b", &local, 1),
        // A wildcard address takes over from one that is part of it, and back.
        one("b", &any, 1),
        one("b", &local, 1),
        one("b", &any, 2),
        one("a", &local, 2),
        one("a", &local, 1),
    ];
    let daemon = Daemon::start(&one("a", &local, 1));
    let stop = AtomicBool::new(false);
    let (served, waited) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    waited.fetch_add(retransmitted(at(port)).into(), Relaxed);
                    served.fetch_add(1, Relaxed);
                }
            });
        }
        for step in &steps {
            let before = served.load(Relaxed);
            eventually("clients connect", || served.load(Relaxed) > before + 3);
            assert_applied(&daemon, step);
            for _ in 0..CLIENTS {
                assert_eq!(retransmitted(at(port)), 0, "after {step}");
            }
        }
        drop(ends);
    });
    assert_eq!(waited.load(Relaxed), 0);
    println!(
        "{} clients through {} reloads",
        served.load(Relaxed),
        steps.len()
    );
}

#[test]
fn a_socket_that_passes_to_another_listener_stays_the_same() {
    let (port, ours) = (free_port(), free_port());
    let config = |name: &str| {
        let address = at(port).to_string();
        [
            tcp(name, &address, "sockets = 1"),
            table(
                &format!("{name}-udp"),
                "udp",
                &at(ours).to_string(),
                "sockets = 1",
            ),
            table(&format!("{name}-unix"), "unix-stream", "{dir}/s", ""),
        ]
        .concat()
    };
    let daemon = Daemon::start(&config("a"));
    let before = view(&daemon, &[port, ours]);
    assert_applied(&daemon, &config("b"));
    assert_eq!(view(&daemon, &[port, ours]), before);
    // Each is served by the new listener.
    exchange(&mut connect(at(port)), b"x");
    let client = udp("127.0.0.1:0");
    client.send_to(b"x", at(ours)).expect("sent");
    client.recv(&mut [0; 8]).expect("answered");
    let mut local = UnixStream::connect(daemon.path("s")).expect("connected");
    exchange(&mut local, b"x");
    for (listener, count) in [
        ("b", "accepted"),
        ("b-udp", "datagrams_sent"),
        ("b-unix", "accepted"),
    ] {
        eventually("it is counted", || daemon.listener(listener)[count] == 1);
    }
}

/// What the kernel shows of these ports and of the test's folder: inodes of sockets, and of files
/// with their modes. Connections are left out.
fn view(daemon: &Daemon, ports: &[u16]) -> BTreeSet<String> {
    let sockets = kernel_sockets(ports).into_iter();
    let sockets = sockets.map(|socket| format!("{socket:?}"));
    let mut view: BTreeSet<String> = sockets.collect();
    for entry in std::fs::read_dir(daemon.path(".")).expect("a folder") {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("it is there");
        let (inode, mode) = (metadata.ino(), metadata.mode());
        view.insert(format!("{} {inode} {mode:o}", entry.file_name().display()));
    }
    view
}

/// What the kernel shows of the listening and UDP sockets of these ports: their backlogs and buffers;
/// nothing where ss is missing.
pub(super) fn options(ports: &[u16]) -> BTreeSet<String> {
    if Command::new("ss").arg("--version").output().is_err() {
        not_tested("the buffers of sockets, for there is no ss (iproute2)");
        return BTreeSet::new();
    }
    read_twice(|| shown_options(ports))
}

fn shown_options(ports: &[u16]) -> BTreeSet<String> {
    let ss = Command::new("ss").args(["-HOlntum"]).output();
    let output = ss.expect("ss runs");
    let of_port = |row: &&str| {
        let local = row.split_whitespace().nth(4);
        ports
            .iter()
            .any(|port| local.is_some_and(|local| local.ends_with(&format!(":{port}"))))
    };
    let shown = text(&output.stdout);
    let rows = shown.lines().filter(of_port).map(|row| {
        let row: Vec<&str> = row.split_whitespace().collect();
        // Of a listening socket the send queue is the backlog (ss(8)); memory in use may differ.
        let memory = row.iter().find_map(|part| part.strip_prefix("skmem:("));
        let limits = memory.into_iter().flat_map(|memory| memory.split(','));
        let limits = limits.filter(|part| part.starts_with("rb") || part.starts_with("tb"));
        let limits: Vec<&str> = limits.collect();
        format!("{} {} {} {limits:?}", row[0], row[3], row[4])
    });
    rows.collect()
}

/// Whether the kernel's end of this connection, served or not, has a timer for keepalive.
fn is_kept_alive(client: &TcpStream) -> bool {
    let end = |address: SocketAddr| {
        let port = address.port();
        move |text: &str| text.ends_with(&format!(":{port:04X}"))
    };
    let is_server = end(client.peer_addr().expect("connected"));
    let is_client = end(client.local_addr().expect("connected"));
    read_twice(|| {
        let text = std::fs::read_to_string("/proc/net/tcp").expect("a table");
        let mut rows = text.lines().map(|row| row.split_whitespace().collect());
        let row = rows.find(|row: &Vec<&str>| is_server(row[1]) && is_client(row[2]));
        // sl local rem st tx:rx tr:when (proc(5), /proc/net/tcp)
        row.map(|row| row[5].starts_with("02:"))
    })
    .expect("it is there")
}

/// Whether another process of this user could bind the port and get a part of the clients.
fn can_be_shared(kind: Type, address: SocketAddr) -> bool {
    let socket = Socket::new(Domain::for_address(address), kind, None).expect("a socket");
    if address.is_ipv6() {
        socket.set_only_v6(true).expect("an option");
    }
    socket.set_reuse_port(true).expect("an option");
    // Only of TCP does this permit nothing that is not permitted anyway.
    socket
        .set_reuse_address(kind == Type::STREAM)
        .expect("an option");
    socket.bind(&address.into()).is_ok() && (kind == Type::DGRAM || socket.listen(1).is_ok())
}

#[test]
fn a_rejected_reload_leaves_options_files_and_queues_as_they_were() {
    let [stream, datagram, taken] = [(); 3].map(|()| free_port());
    let _other_process = TcpListener::bind(at(taken)).expect("a listener of another process");
    let full = "sockets = 1\nmax-connections = 1\nbacklog = 77\nkeepalive = \"1m\"\nreceive-buffer = 65536\nsend-buffer = 65536";
    let before = [
        tcp("a", &at(stream).to_string(), full),
        table("u", "udp", &at(datagram).to_string(), "sockets = 1"),
        table("s", "unix-stream", "{dir}/s", "mode = \"0600\""),
    ]
    .concat();
    let daemon = Daemon::start(&before);
    let mut inside = connect(at(stream));
    exchange(&mut inside, b"inside");
    let mut queued: Vec<TcpStream> = (0..5).map(|_| connect(at(stream))).collect();
    for client in &mut queued {
        client.write_all(b"queued").expect("sent");
    }
    let queue = || daemon.listener("a")["backlog"]["queued"] == 5;
    eventually("they are queued", queue);
    let unchanged = view(&daemon, &[stream, datagram]);
    let options_before = options(&[stream, datagram]);
    assert!(queued.iter().all(is_kept_alive), "it was inherited");
    let check = || {
        assert_eq!(view(&daemon, &[stream, datagram]), unchanged);
        assert_eq!(options(&[stream, datagram]), options_before);
        assert!(
            !can_be_shared(Type::STREAM, at(stream)),
            "the TCP port is open to others"
        );
        assert!(
            !can_be_shared(Type::DGRAM, at(datagram)),
            "the UDP port is open to others"
        );
        assert!(queue());
    };
    check();
    let refused = tcp("z", &at(taken).to_string(), "");
    for others in [
        // More sockets, at the same listener and at another.
        [
            tcp("a", &at(stream).to_string(), "sockets = 2"),
            table("u", "udp", &at(datagram).to_string(), "sockets = 2"),
            table("s", "unix-stream", "{dir}/s", "mode = \"0666\""),
        ],
        [
            tcp("b", &at(stream).to_string(), "sockets = 2"),
            table("v", "udp", &at(datagram).to_string(), "sockets = 2"),
            table("t", "unix-datagram", "{dir}/s", ""),
        ],
        // Other options of the same sockets.
        [
            tcp(
                "a",
                &at(stream).to_string(),
                "sockets = 1\nbacklog = 5\nkeepalive = \"off\"\nno-delay = false\n\
                 receive-buffer = 9000\nsend-buffer = 9000",
            ),
            table(
                "u",
                "udp",
                &at(datagram).to_string(),
                "sockets = 1\nreceive-buffer = 9000\nsend-buffer = 9000",
            ),
            table("s", "unix-stream", "{dir}/s", "backlog = 5"),
        ],
        // Wildcards.
        [
            tcp("a", &format!("0.0.0.0:{stream}"), ""),
            table("u", "udp", &format!("0.0.0.0:{datagram}"), ""),
            table("s", "unix-datagram", "{dir}/s", ""),
        ],
    ] {
        assert_rejected(&daemon, &(others.concat() + &refused));
        check();
    }
    // One that is found to be impossible at the last moment: the wildcard address of a port that
    // another process has at another address.
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], stream));
    let _elsewhere = TcpListener::bind(elsewhere).expect("a listener of another process");
    let last = [
        table("a-unix", "unix-datagram", "{dir}/s", ""),
        table("u", "udp", &at(datagram).to_string(), "sockets = 1"),
        tcp("z", &format!("0.0.0.0:{stream}"), ""),
    ];
    let with_socket = unchanged.clone();
    assert_rejected(&daemon, &last.concat());
    let now = view(&daemon, &[stream, datagram]);
    assert!(with_socket.is_subset(&now), "{with_socket:?}, {now:?}");
    assert_eq!(
        now.len(),
        with_socket.len() + 1,
        "except the one elsewhere: {now:?}"
    );
    assert!(!can_be_shared(Type::STREAM, at(stream)));
    let mut local = UnixStream::connect(daemon.path("s")).expect("it is a stream as before");
    exchange(&mut local, b"still here");
    // What is connected now inherits what the listening socket has.
    queued.push(connect(at(stream)));
    // The client knows of the connection before the kernel's other end does.
    eventually("keepalive is on as before", || is_kept_alive(&queued[5]));
    queued[5].write_all(b"queued").expect("sent");
    // The queue is served in the end.
    drop(inside);
    for mut client in queued {
        let mut answer = [0; 6];
        client.read_exact(&mut answer).expect("served");
    }
}

#[test]
fn a_rejected_reload_loses_no_datagram() {
    const SOURCES: usize = 16;
    const ROUNDS: usize = 20;
    let [port, taken] = [(); 2].map(|()| free_port());
    let _other_process = TcpListener::bind(at(taken)).expect("a listener of another process");
    let config = |sockets: usize| {
        table(
            "main",
            "udp",
            &at(port).to_string(),
            &format!("sockets = {sockets}"),
        )
    };
    let daemon = Daemon::start(&config(1));
    // Enough others that the failure comes long after the new sockets would have been bound.
    let others = (0..150).map(|number| tcp(&format!("n{number}"), "127.0.0.1:0", ""));
    let others: String = others.collect();
    let refused = tcp("z", &at(taken).to_string(), "");
    daemon.write_config(&(config(2) + &others + &refused));
    let stop = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..SOURCES {
            scope.spawn(|| {
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    // Of each new source the kernel chooses the socket anew.
                    let socket = udp("127.0.0.1:0");
                    number += 1;
                    let message = number.to_be_bytes();
                    socket.send_to(&message, at(port)).expect("sent");
                    let mut answer = [0; 8];
                    socket.recv(&mut answer).expect("answered");
                    assert_eq!(answer, message);
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        for _ in 0..ROUNDS {
            let before = answered.load(Relaxed);
            assert_eq!(daemon.reload()["outcome"], "rejected");
            eventually("sources are answered", || {
                answered.load(Relaxed) > before + SOURCES as u64
            });
        }
        drop(ends);
    });
}

#[test]
fn what_the_kernel_caps_is_the_same_warning_however_a_socket_gets_it() {
    let port = free_port();
    let address = at(port).to_string();
    let config = |more: &str| tcp("main", &address, more);
    let large = "backlog = 1000000000";
    let expected = "listener \"main\": backlog 1000000000 is capped to ";
    let of = |result: &serde_json::Value| {
        let warnings = result["warnings"].as_array().expect("a list").clone();
        let texts = warnings
            .iter()
            .map(|warning| warning["message"].as_str().expect("a text").to_owned());
        texts.collect::<Vec<String>>()
    };
    // Bound at the start.
    let daemon = Daemon::start(&config(large));
    let at_start = of(&daemon.ctl_json(&["status"])["status"]["last_reload"]);
    assert!(
        at_start.len() == 1 && at_start[0].starts_with(expected),
        "{at_start:?}"
    );
    // Changed on a socket in service.
    assert_applied(&daemon, &config("backlog = 5"));
    assert_eq!(of(&daemon.reload_with(&config(large))), at_start);
    // Taken over by another number of sockets.
    assert_applied(&daemon, &config("backlog = 5\nsockets = 2"));
    let rebound = format!("{large}\nsockets = 1");
    assert_eq!(of(&daemon.reload_with(&config(&rebound))), at_start);
    // Not again where it does not change.
    assert_eq!(of(&daemon.reload()), Vec::<String>::new());
}

/// A path of the test's folder that is as long as a Unix socket's can be.
fn longest_path(folder: &Path) -> String {
    let folder = folder.display().to_string();
    let name = "x".repeat(106 - folder.len());
    format!("{folder}/{name}")
}

#[test]
fn a_unix_path_changes_hands_whatever_its_length_and_its_neighbors() {
    let daemon = Daemon::start(&table("first", "unix-stream", "{dir}/first", ""));
    let path = longest_path(daemon.folder.path());
    let config = |name: &str, protocol: &str| {
        let neighbor = daemon.path("short~").display().to_string();
        [
            table(name, protocol, &path, ""),
            table(&format!("{name}-short"), protocol, "{dir}/short", ""),
            table("neighbor", "unix-stream", &neighbor, ""),
        ]
        .concat()
    };
    let echoes = || {
        for path in [path.as_ref(), daemon.path("short").as_path()] {
            let mut stream = UnixStream::connect(path).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            assert_eq!(exchange(&mut stream, b"stream"), b"stream");
        }
    };
    assert_applied(&daemon, &config("a", "unix-stream"));
    echoes();
    assert_applied(&daemon, &config("b", "unix-stream"));
    echoes();
    // To the other kind, and back.
    assert_applied(&daemon, &config("b", "unix-datagram"));
    let short = daemon.path("short");
    let client = std::os::unix::net::UnixDatagram::bind(daemon.path("client")).expect("bound");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client.send_to(b"datagram", &short).expect("sent");
    let (_, from) = client.recv_from(&mut [0; 16]).expect("answered");
    assert_eq!(from.as_pathname(), Some(short.as_path()));
    assert_applied(&daemon, &config("a", "unix-stream"));
    echoes();
    let names = std::fs::read_dir(daemon.path(".")).expect("a folder");
    let left = names.filter_map(|entry| entry.expect("an entry").file_name().into_string().ok());
    let left: Vec<_> = left.filter(|name| name.starts_with(".echod-")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// An address was left open to others after it was bound beside a socket that was then retired, and
/// after it had had several sockets: the kernel asks for more than the option.
#[test]
fn no_other_process_can_take_clients_once_a_reload_leaves_one_socket() {
    let [stream, datagram] = [(); 2].map(|()| free_port());
    let config = |ip: &str, sockets: usize| {
        let more = format!("sockets = {sockets}");
        tcp("a", &format!("{ip}:{stream}"), &more)
            + &table("u", "udp", &format!("{ip}:{datagram}"), &more)
    };
    let daemon = Daemon::start(&config("0.0.0.0", 1));
    for (ip, sockets) in [
        ("127.0.0.1", 1),
        ("0.0.0.0", 1),
        ("127.0.0.1", 2),
        ("127.0.0.1", 1),
        ("*", 1),
        ("127.0.0.1", 1),
    ] {
        assert_applied(&daemon, &config(ip, sockets));
        for (kind, port) in [(Type::STREAM, stream), (Type::DGRAM, datagram)] {
            let can_be_taken = || can_be_shared(kind, at(port));
            match sockets {
                1 => eventually("its address is its own", || !can_be_taken()),
                _ => assert!(can_be_taken(), "the user's own processes may share it"),
            }
        }
    }
}

/// The addresses of a port at which the kernel lets other processes listen beside the daemon.
pub(super) fn open_addresses(port: u16) -> Vec<&'static str> {
    let mut all = vec!["0.0.0.0", "127.0.0.1", "::", "::1"];
    all.retain(|ip| {
        let ip: IpAddr = ip.parse().expect("an IP address");
        can_be_shared(Type::STREAM, (ip, port).into())
    });
    all
}

/// Beside a wildcard and an address of the other family, and beside both wildcards, the port
/// stayed shared.
#[test]
fn no_address_of_a_port_stays_open_to_other_processes_after_a_reload() {
    let port = free_port();
    let config = |ips: &[&str], sockets: usize| {
        let addresses: Vec<String> = ips.iter().map(|ip| format!("\"{ip}:{port}\"")).collect();
        let addresses = addresses.join(", ");
        format!("[listener.a]\nprotocol = \"tcp\"\naddress = [{addresses}]\nsockets = {sockets}\n")
    };
    let daemon = Daemon::start(&config(&["127.0.0.1", "[::1]"], 1));
    for ips in [
        ["0.0.0.0", "[::1]"],
        ["127.0.0.1", "[::1]"],
        ["127.0.0.1", "[::]"],
        ["0.0.0.0", "[::]"],
        ["0.0.0.0", "[::1]"],
        ["127.0.0.1", "[::]"],
    ] {
        for sockets in [1, 2, 1] {
            assert_applied(&daemon, &config(&ips, sockets));
            if sockets == 1 {
                eventually("each address is its own", || {
                    open_addresses(port).is_empty()
                });
            }
        }
    }
    // Also from one socket and both wildcards to the same with other addresses.
    assert_applied(&daemon, &config(&["*"], 1));
    eventually("each address is its own", || {
        open_addresses(port).is_empty()
    });
    connect(at(port));
}
