//! Loops over UDP: a forged datagram must not make two services answer each other without end.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use serde_json::Value;

use crate::harness::{Daemon, eventually, free_port, text, udp};

use super::{UDP, assert_answered, assert_source_port_refused};

/// A UDP listener at this port of an address of loopback.
fn listener(name: &str, host: &str, port: u16) -> String {
    format!("[listener.{name}]\nprotocol = \"udp\"\naddress = \"{host}:{port}\"\n")
}

/// A client with the port number of a service, at an address that no daemon of these tests has.
fn client_at(port: u16) -> UdpSocket {
    udp(&format!("127.0.0.3:{port}"))
}

/// Sends a datagram that claims to come from another address of this host, at the client's own port
/// (`IP_PKTINFO`, ip(7)).
fn send_forged(client: &UdpSocket, source: Ipv4Addr, to: SocketAddrV4) {
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: in_addr {
            s_addr: u32::from_ne_bytes(source.octets()),
        },
        ipi_addr: in_addr { s_addr: 0 },
    };
    sendmsg(
        client.as_raw_fd(),
        &[IoSlice::new(b"forged")],
        &[ControlMessage::Ipv4PacketInfo(&info)],
        MsgFlags::empty(),
        Some(&SockaddrIn::from(to)),
    )
    .expect("sent");
}

fn action(result: &Value, listener: &str) -> Value {
    let changes = result["changes"].as_array().expect("a list");
    let change = changes.iter().find(|change| change["listener"] == listener);
    change.expect("it is in the plan")["action"].clone()
}

/// Two daemons on one port had answered one datagram 76,000 times each after two seconds.
#[test]
fn two_daemons_on_one_port_do_not_answer_each_other() {
    let port = free_port();
    let first = Daemon::start(&listener("udp", "127.0.0.1", port));
    let second = Daemon::start(&listener("udp", "127.0.0.2", port));
    let client = client_at(port);
    let (one, other) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
    for (daemon, source, destination) in [(&second, one, other), (&first, other, one)] {
        send_forged(&client, source, SocketAddrV4::new(destination, port));
        // Whatever is answered is sent before this is counted.
        eventually("it is refused", || {
            daemon.refused("udp", "source-port") == 1
        });
    }
    for daemon in [&first, &second] {
        let listener = daemon.listener("udp");
        assert_eq!(listener["datagrams_received"], 1);
        assert_eq!(listener["datagrams_sent"], 0);
        assert_answered(&udp("127.0.0.1:0"), daemon.address("udp"));
    }
}

#[test]
fn a_port_that_the_kernel_has_chosen_is_refused_too() {
    let daemon = Daemon::start(UDP);
    let client = client_at(daemon.address("udp").port());
    assert_source_port_refused(&client, &daemon);
}

#[test]
fn a_listener_that_did_not_change_refuses_the_ports_that_a_reload_adds() {
    let daemon = Daemon::start(UDP);
    let server = daemon.address("udp");
    let (port, other_port) = (free_port(), free_port());
    let (client, other_client) = (client_at(port), client_at(other_port));
    assert_answered(&client, server);

    let added = daemon.reload_with(&format!("{UDP}{}", listener("more", "127.0.0.1", port)));
    assert_eq!(action(&added, "more"), "add");
    assert_eq!(action(&added, "udp"), "keep");
    assert_source_port_refused(&client, &daemon);
    assert_answered(&other_client, server);

    let moved = format!("{UDP}{}", listener("more", "127.0.0.1", other_port));
    let moved = daemon.reload_with(&moved);
    assert_eq!(action(&moved, "more"), "rebind");
    assert_eq!(action(&moved, "udp"), "keep");
    assert_source_port_refused(&other_client, &daemon);
    assert_answered(&client, server);

    let removed = daemon.reload_with(UDP);
    assert_eq!(action(&removed, "more"), "remove");
    assert_eq!(action(&removed, "udp"), "keep");
    assert_answered(&other_client, server);
    assert_source_port_refused(&client_at(server.port()), &daemon);
}

#[test]
fn a_rejected_reload_leaves_the_refused_ports_as_they_were() {
    let daemon = Daemon::start(UDP);
    let port = free_port();
    let client = client_at(port);
    let unavailable = listener("other", "127.0.0.3", port);
    daemon.write_config(&format!(
        "{UDP}{}{unavailable}",
        listener("more", "127.0.0.1", port)
    ));
    assert_eq!(daemon.reload()["outcome"], "rejected");
    assert_answered(&client, daemon.address("udp"));
    assert_source_port_refused(&client_at(daemon.address("udp").port()), &daemon);
}

#[test]
fn a_list_and_none_are_taken_as_written() {
    let daemon = Daemon::start(UDP);
    let server = daemon.address("udp");
    let client = client_at(server.port());
    assert_source_port_refused(&client, &daemon);
    for written in ["[7]", "\"none\""] {
        daemon.reload_with(&format!("{UDP}refuse-source-ports = {written}\n"));
        assert_answered(&client, server);
    }
    daemon.reload_with(UDP);
    assert_source_port_refused(&client, &daemon);
    let shown = daemon.ctl_text(&["config", "show"]);
    assert!(
        shown.contains("refuse-source-ports = \"default\""),
        "{shown}"
    );
}

#[test]
fn the_ports_of_this_daemon_are_refused_after_an_upgrade() {
    let port = free_port();
    let config = format!("{UDP}{}", listener("more", "127.0.0.1", port));
    let daemon = Daemon::start(&config);
    let server = daemon.address("udp");
    let clients = [client_at(port), client_at(server.port())];
    for _ in 0..2 {
        for client in &clients {
            assert_source_port_refused(client, &daemon);
        }
        daemon.forget_notifications();
        let output = daemon.ctl(&["upgrade"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(daemon.address("udp"), server);
    }
    for client in &clients {
        assert_source_port_refused(client, &daemon);
    }
}
