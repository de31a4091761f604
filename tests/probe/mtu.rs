//! `echoprobe mtu`: what it finds out, and how it says so.
//!
//! Real paths are three network namespaces in a row: a client, a router and a server. They need
//! root and `ip`, so that `cargo test` leaves those tests out; the gate runs them with
//! `cargo test -- --ignored`, and there a missing program is a failure.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

use serde_json::{Value, json};

use super::{LISTENERS, assert_prints, ended, fault, interrupt, number};
use super::{printed_by, report_of, spawn_line, url};
use crate::harness::{Daemon, ECHOD, ECHOPROBE, eventually, has_ipv6, instead, run, text, udp};

#[test]
fn on_loopback_the_largest_datagram_there_is_passes_both_ways() {
    let daemon = Daemon::start(LISTENERS);
    let url = url(&daemon, "udp");
    assert_eq!(
        printed_by(&format!("mtu {url}")),
        "there: at least 65507 bytes: nothing on the way is smaller\n\
         back:  at least 65507 bytes: nothing on the way is smaller\n"
    );
    if has_ipv6() {
        let daemon = Daemon::start(&LISTENERS.replace("127.0.0.1:0\"\n", "[::1]:0\"\n"));
        let json = report_of(&format!("mtu udp://{}", daemon.address("udp")), 0);
        // The interface takes no more.
        let found = ["there", "back"].map(|way| number(&json[way], "mtu"));
        assert_eq!(found, [65_536; 2], "{json}");
    }
}

#[test]
fn a_service_that_cuts_off_is_not_taken_for_a_narrow_path() {
    let url = fault::udp(|socket, bytes, peer| {
        fault::send(socket, &bytes[..bytes.len().min(2048)], &peer);
    });
    let json = report_of(&format!("mtu {url}"), 0);
    assert_eq!(json["there"]["payload"], 65_507);
    let back = json!({"payload": 2048, "mtu": 2076, "at_least": true});
    assert_eq!(json["back"], back, "known by nothing");
    let words = "the service cuts off what is longer";
    assert_prints(&format!("mtu {url}"), 0, words);
}

#[test]
fn what_vanishes_silently_on_either_way_is_reported_as_that() {
    let url = fault::udp(|socket, bytes, peer| {
        if bytes.len() <= 65_506 {
            fault::send(socket, &bytes, &peer);
        }
    });
    let json = report_of(&format!("mtu {url} --timeout 2s --tries 2"), 1);
    let way = json!({"payload": 65_506, "mtu": 65_534, "at_least": true, "known_by": "silence"});
    assert_eq!(json["there"], way);
    assert_eq!(json["back"], way);
}

#[test]
fn an_answer_from_elsewhere_is_none_and_is_reported() {
    let other = udp("127.0.0.1:0");
    let from = other.local_addr().expect("an address").to_string();
    let url = fault::udp(move |_, bytes, peer| _ = fault::send(&other, &bytes, &peer));
    let words = format!("the answer came from {from}");
    assert_prints(&format!("mtu {url} --timeout 2s --tries 1"), 1, &words);
}

#[test]
fn where_no_service_answers_nothing_is_reached() {
    let url = fault::udp(|_, _, _| {});
    let json = report_of(&format!("mtu {url} --timeout 20ms --tries 2"), 3);
    assert_eq!(json["errors"], json!({"timed out": 1}));
}

#[test]
fn an_interrupt_ends_it_with_what_is_known_by_then() {
    let (tell, told) = mpsc::channel();
    let url = fault::udp(move |socket, bytes, peer| {
        if bytes.len() <= 100 {
            fault::send(socket, &bytes, &peer);
        } else {
            // The test may be over.
            let _ = tell.send(());
        }
    });
    let child = spawn_line(&format!("mtu {url} --timeout 1h --json"));
    told.recv().expect("it tries a large one");
    let (status, json) = ended(&interrupt(child));
    let known = json!({"payload": 32, "mtu": 60, "at_least": true, "at_most": 65_507});
    assert_eq!((status, &json["there"]), (1, &known));
}

/// A client, a router and a server, each in a network namespace of its own, with links of 1500
/// bytes between them. Whatever one changes, the host does not notice.
struct Path {
    name: String,
}

const CLIENT: &str = "c";
const ROUTER: &str = "r";
const SERVER: &str = "s";

impl Path {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = Self {
            name: format!("echoprobe-{}-{count}", std::process::id()),
        };
        for place in [CLIENT, ROUTER, SERVER] {
            ip(&format!("netns add {}", path.namespace(place)));
            path.ip(place, "link set lo up");
            // Addresses are good at once, not after a second without objections.
            path.set(place, "ipv6/conf/all/accept_dad", 0);
            path.set(place, "ipv6/conf/default/accept_dad", 0);
        }
        path.link([(CLIENT, "c0", 1), (ROUTER, "r0", 2)], 1);
        path.link([(ROUTER, "r1", 2), (SERVER, "s0", 1)], 2);
        path.ip(CLIENT, "route add default via 10.1.0.2");
        path.ip(CLIENT, "-6 route add default via fd00:1::2");
        path.ip(SERVER, "route add default via 10.2.0.2");
        path.ip(SERVER, "-6 route add default via fd00:2::2");
        path.set(ROUTER, "ipv4/ip_forward", 1);
        path.set(ROUTER, "ipv6/conf/all/forwarding", 1);
        path
    }

    /// Sets a key of the kernel's at this place.
    fn set(&self, place: &str, key: &str, value: u8) {
        let line = format!("echo {value} > /proc/sys/net/{key}");
        let output = run(self.command(place, "sh").args(["-c", &line]));
        assert!(output.status.success(), "{key}: {}", text(&output.stderr));
    }

    fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.name)
    }

    /// Links two places, each with its device and the last number of its addresses in this network.
    fn link(&self, ends: [(&str, &str, u8); 2], network: u8) {
        let [(one, device, _), (other, peer, _)] = ends;
        let (one, other) = (self.namespace(one), self.namespace(other));
        ip(&format!(
            "link add {device} netns {one} type veth peer name {peer} netns {other}"
        ));
        for (place, device, number) in ends {
            let v4 = format!("10.{network}.0.{number}/24");
            self.ip(place, &format!("addr add {v4} dev {device}"));
            let v6 = format!("fd00:{network}::{number}/64");
            self.ip(place, &format!("addr add {v6} dev {device} nodad"));
            self.ip(place, &format!("link set {device} up"));
        }
        // The kernel takes a moment to notice that both ends are up, and then gives each an address
        // of the link, without which routers don't find their neighbors.
        for (place, device, _) in ends {
            eventually(&format!("{device} is up"), || {
                let shown = self.ip(place, &format!("-6 addr show dev {device} scope link"));
                shown.contains("inet6 fe80") && !shown.contains("tentative")
            });
        }
    }

    /// Has `ip` do something at this place, and returns what it prints.
    fn ip(&self, place: &str, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.namespace(place)))
    }

    /// A program to run at this place.
    fn command(&self, place: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        let namespace = self.namespace(place);
        command.args(["netns", "exec", &namespace, program]);
        command
    }

    /// Starts echod at the server.
    fn serve(&self) -> Daemon {
        let config = "[listener.udp]\nprotocol = \"udp\"\naddress = \"*:7\"\n";
        Daemon::start_with(config, |command| {
            let namespace = self.namespace(SERVER);
            let mut arguments: Vec<_> = ["netns", "exec", &namespace, ECHOD].map(Into::into).into();
            arguments.extend(command.get_args().map(Into::into));
            *command = instead(command, "ip", arguments);
        })
    }

    /// What echoprobe says at the client of the way to the server.
    fn probe(&self, server: &str) -> (i32, Value) {
        let mut command = self.command(CLIENT, ECHOPROBE);
        let url = format!("udp://{server}:7");
        ended(&run(command.args(["mtu", &url, "--json", "--tries", "2"])))
    }

    /// The same; it must find these packet sizes, known by this.
    fn assert_finds(&self, server: &str, status: i32, there: (u64, &str), back: (u64, &str)) {
        let (ended, json) = self.probe(server);
        let found = |way: &str| {
            let known_by = json[way]["known_by"].as_str().expect("a reason");
            (json[way]["mtu"].as_u64().expect("a size"), known_by)
        };
        assert_eq!((found("there"), found("back")), (there, back), "{json}");
        assert_eq!(ended, status, "{json}");
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        for place in [CLIENT, ROUTER, SERVER] {
            // It may not have reached that.
            let _ = Command::new("ip")
                .args(["netns", "del", &self.namespace(place)])
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn ip(arguments: &str) -> String {
    let output = run(Command::new("ip").args(arguments.split(' ')));
    let said = text(&output.stderr) + " (this test needs root)";
    assert!(output.status.success(), "ip {arguments}: {said}");
    text(&output.stdout)
}

const SERVER_V4: &str = "10.2.0.1";
const SERVER_V6: &str = "[fd00:2::1]";

#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn our_own_interface_is_the_limit_of_a_path_that_is_as_wide() {
    let path = Path::new();
    let _daemon = path.serve();
    for server in [SERVER_V4, SERVER_V6] {
        path.assert_finds(server, 0, (1500, "interface"), (1500, "interface"));
    }
}

#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn a_report_of_a_router_before_a_narrow_link_is_used() {
    let path = Path::new();
    path.ip(ROUTER, "link set r1 mtu 1400");
    path.ip(SERVER, "link set s0 mtu 1400");
    let _daemon = path.serve();
    for (server, router) in [(SERVER_V4, "10.1.0.2"), (SERVER_V6, "fd00:1::2")] {
        path.assert_finds(server, 0, (1400, "icmp"), (1400, "fragments"));
        let (_, json) = path.probe(server);
        assert_eq!(json["there"]["told_by"], router);
    }
}

#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn a_narrower_way_back_is_distinguished_from_the_way_there() {
    let path = Path::new();
    path.ip(SERVER, "route replace default via 10.2.0.2 mtu lock 1300");
    path.ip(
        SERVER,
        "-6 route replace default via fd00:2::2 mtu lock 1300",
    );
    let _daemon = path.serve();
    for server in [SERVER_V4, SERVER_V6] {
        path.assert_finds(server, 0, (1500, "interface"), (1300, "fragments"));
    }
}

/// That was reported as "unreachable".
#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn a_ttl_that_is_used_up_is_reported_with_the_router() {
    let path = Path::new();
    let _daemon = path.serve();
    for (server, router) in [(SERVER_V4, "10.1.0.2"), (SERVER_V6, "fd00:1::2")] {
        let mut command = path.command(CLIENT, ECHOPROBE);
        let line = format!("ping udp://{server}:7 -c 1 --ttl 1");
        let output = run(command.args(line.split(' ')));
        let said = text(&output.stdout);
        let words = format!("1: TTL exceeded, reported by {router}\n");
        assert!(said.contains(&words), "{said}");
        assert_eq!(output.status.code(), Some(3), "{said}");
    }
}

/// The router has a way to the client only for what comes from the server, so that it can't
/// report anything.
#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn a_router_that_says_nothing_is_found_by_what_it_fragments() {
    let path = Path::new();
    path.ip(ROUTER, "route add 10.2.0.1 dev r1 mtu 1300");
    path.ip(ROUTER, "route add 10.1.0.0/24 dev r0 table 100");
    path.ip(ROUTER, "rule add iif r1 lookup 100");
    path.ip(ROUTER, "route del 10.1.0.0/24 dev r0");
    let _daemon = path.serve();
    path.assert_finds(SERVER_V4, 0, (1300, "silence"), (1500, "interface"));
}

/// A link that takes more at one end than at the other: the kernel drops what the receiving end
/// is not made for, with 4 bytes of grace for a VLAN's tag.
#[test]
#[ignore = "needs root and ip: run by .ci/run"]
fn a_link_that_drops_answers_leaves_a_doubt() {
    let path = Path::new();
    path.ip(ROUTER, "link set r1 mtu 1400");
    path.ip(ROUTER, "route add 10.2.0.1 dev r1 mtu lock 1500");
    let _daemon = path.serve();
    let (status, json) = path.probe(SERVER_V4);
    assert_eq!((status, &json["back"]["mtu"]), (1, &json!(1404)), "{json}");
    assert_eq!(json["back"]["known_by"], "silence");
}
