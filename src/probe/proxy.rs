//! The header of the PROXY protocol, with which a proxy tells a service who the client is
//! (haproxy's `proxy-protocol.txt`, sections 2.1 and 2.2).
//!
//! Knows its bytes and never a connection.

use std::net::{IpAddr, SocketAddr};

use super::args::ProxyVersion;

/// What every header of version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY: on behalf of another.
const PROXY: u8 = 0x21;
/// Address family and protocol.
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;

/// The header that names this client, and the address that it has connected to; without addresses,
/// as on a Unix socket, one that says that they are not known.
#[must_use]
pub(super) fn header(
    version: ProxyVersion,
    addresses: Option<(SocketAddr, SocketAddr)>,
) -> Vec<u8> {
    let addresses = addresses.map(|(source, destination)| of_one_family(source, destination));
    match version {
        ProxyVersion::V1 => text(addresses).into_bytes(),
        ProxyVersion::V2 => binary(addresses),
    }
}

fn text(addresses: Option<(SocketAddr, SocketAddr)>) -> String {
    let Some((source, destination)) = addresses else {
        return "PROXY UNKNOWN\r\n".into();
    };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
}

fn binary(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(PROXY);
    let mut body = Vec::new();
    let family = match addresses {
        None => UNSPECIFIED,
        Some((source, destination)) => {
            for address in [source, destination] {
                match address.ip() {
                    IpAddr::V4(ip) => body.extend(ip.octets()),
                    IpAddr::V6(ip) => body.extend(ip.octets()),
                }
            }
            body.extend(source.port().to_be_bytes());
            body.extend(destination.port().to_be_bytes());
            if source.is_ipv4() {
                TCP_OVER_IPV4
            } else {
                TCP_OVER_IPV6
            }
        }
    };
    header.push(family);
    let len = u16::try_from(body.len()).expect("two addresses and two ports");
    header.extend(len.to_be_bytes());
    header.extend(body);
    header
}

/// A header has one family for both: where they differ, IPv4 is written as IPv6 has it.
fn of_one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    (mapped(source), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(source: &str, destination: &str) -> Option<(SocketAddr, SocketAddr)> {
        let address = |text: &str| text.parse().expect("an address");
        Some((address(source), address(destination)))
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        let check = |addresses, line: &str| {
            let header = header(ProxyVersion::V1, addresses);
            assert_eq!(String::from_utf8_lossy(&header), line);
        };
        check(
            addresses("127.0.0.1:37708", "127.0.0.1:17201"),
            "PROXY TCP4 127.0.0.1 127.0.0.1 37708 17201\r\n",
        );
        check(
            addresses("[2001:db8::1]:5", "[::1]:7"),
            "PROXY TCP6 2001:db8::1 ::1 5 7\r\n",
        );
        check(
            addresses("192.0.2.1:5", "[::1]:7"),
            "PROXY TCP6 ::ffff:192.0.2.1 ::1 5 7\r\n",
        );
        check(None, "PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_binary() {
        let v4 = header(ProxyVersion::V2, addresses("192.0.2.1:258", "127.0.0.1:7"));
        assert_eq!(v4.len(), 28);
        assert_eq!(&v4[..12], SIGNATURE);
        assert_eq!(
            v4[12..],
            [0x21, 0x11, 0, 12, 192, 0, 2, 1, 127, 0, 0, 1, 1, 2, 0, 7]
        );
        let v6 = header(ProxyVersion::V2, addresses("[::1]:1", "[::2]:2"));
        assert_eq!((v6.len(), &v6[12..16]), (52, &[0x21, 0x21, 0, 36][..]));
        let unknown = header(ProxyVersion::V2, None);
        assert_eq!(unknown[12..], [0x21, 0x00, 0, 0]);
    }
}
