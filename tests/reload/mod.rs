//! One configuration becomes another under clients that must not notice.
//!
//! Listeners have ports found free just before, so that they can be handed around.

mod addresses;
mod churn;
mod dry_run;
mod files;
mod histories;
mod live_keys;
mod rejected;
mod reports;
mod rollback;
mod sockets;
mod while_loading;

use std::io::{ErrorKind, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::harness::{PATIENCE, exchange, read_twice};

/// A listener's table.
fn tcp(name: &str, address: &str, more: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = {address}\n{more}\n")
}

/// One loopback address as TOML.
fn local(port: u16) -> String {
    format!("\"127.0.0.1:{port}\"")
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The change of one listener in a result.
fn change<'a>(result: &'a Value, listener: &str) -> &'a Value {
    let changes = result["changes"].as_array().expect("a list");
    let found = changes.iter().find(|change| change["listener"] == listener);
    found.unwrap_or_else(|| panic!("no change of {listener}: {result}"))
}

fn assert_applied(result: &Value) {
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(result["errors"], json!([]), "{result}");
}

/// No socket listens there. One that is being retired drops what comes, so that a client of
/// it waits for a second before it is refused; here it waits for as long as it takes.
fn refuses(address: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
        Err(error) => panic!("{address}: {error}"),
    }
}

/// Whether a client is accepted only to be reset, which it may notice before `connect` returns.
fn is_reset(address: SocketAddr) -> bool {
    let end = TcpStream::connect_timeout(&address, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0])
    });
    match end {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{address}: {error}"),
    }
}

fn still_echoes(peers: &mut [TcpStream], message: &[u8]) {
    for peer in peers {
        assert_eq!(exchange(peer, message), message);
    }
}

/// A TCP socket that listens, or a UDP socket that is not connected.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct KernelSocket {
    table: &'static str,
    /// As the kernel writes it: `0100007F:0007`.
    local: String,
    inode: String,
}

/// Those of these ports over IPv4, as the kernel has them.
fn kernel_sockets(ports: &[u16]) -> Vec<KernelSocket> {
    let read = |table: &'static str| {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).expect("a table");
        let rows = text.lines().skip(1).filter_map(move |row| {
            // sl local rem st tx:rx tr:when retrnsmt uid timeout inode (proc(5), /proc/net/tcp)
            let row: Vec<&str> = row.split_whitespace().collect();
            let (local, peer, state, inode) = (row[1], row[2], row[3], row[9]);
            let port = local.split(':').nth(1).expect("a port");
            let port = u16::from_str_radix(port, 16).expect("a port");
            let serves = match table {
                "tcp" => state == "0A",
                _ => peer.ends_with(":0000"),
            };
            (ports.contains(&port) && serves).then(|| KernelSocket {
                table,
                local: local.into(),
                inode: inode.into(),
            })
        });
        rows.collect::<Vec<_>>()
    };
    read_twice(|| {
        let mut found: Vec<_> = ["tcp", "udp"].into_iter().flat_map(read).collect();
        found.sort();
        found
    })
}

/// The inodes of the sockets that listen on an IPv4 address.
fn listening_inodes(address: SocketAddr) -> Vec<String> {
    let SocketAddr::V4(address) = address else {
        panic!("IPv4 only");
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{ip:08X}:{:04X}", address.port());
    let sockets = kernel_sockets(&[address.port()]).into_iter();
    let listening = sockets.filter(|socket| socket.table == "tcp" && socket.local == local);
    listening.map(|socket| socket.inode).collect()
}
