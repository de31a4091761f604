//! Where a listener listens: addresses and paths, and their short forms.
//!
//! Knows the syntax. Never asks a name server or the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use super::findings::Remarks;
use super::lists::show_texts;
use super::typed::{Typed, Value};
use super::words::quote;
use super::{Address, Protocol, value};

/// The longest path that a `sockaddr_un` has room for: unix(7).
const PATH_BYTES_MAX: usize = 107;

/// The value of `address`: one address, or a list. What is refused is left out.
pub(super) fn parse_all(
    protocol: Protocol,
    typed: &Typed,
    remarks: &mut Remarks<'_>,
) -> Vec<Address> {
    let mut all = Vec::new();
    if matches!(&typed.value, Value::List(items) if items.is_empty()) {
        remarks.refuse(typed, "an empty list: write at least one address");
    }
    for item in items(typed) {
        if let Some(addresses) = remarks.accept(item, parse(protocol, item)) {
            all.extend(addresses);
        }
    }
    all
}

/// The values that stand for one address each.
pub(super) fn items(typed: &Typed) -> &[Typed] {
    match &typed.value {
        Value::List(items) => items,
        _ => std::slice::from_ref(typed),
    }
}

/// The value of `address`, in its shortest form.
pub(super) fn show_all(addresses: &[Address]) -> String {
    match show(addresses).as_slice() {
        [only] => quote(only),
        several => show_texts(several),
    }
}

/// Reads an address as the protocol writes them; `*` and `localhost` are two.
pub(super) fn parse(protocol: Protocol, typed: &Typed) -> Result<Vec<Address>, String> {
    if protocol.is_unix() {
        let text = value::text(typed, "\"/run/echod/echo.sock\"")?;
        return parse_path(text).map(|path| vec![Address::Unix(path)]);
    }
    let text = value::text(typed, "\"localhost:7007\"")?;
    let pair = |v4: Ipv4Addr, v6: Ipv6Addr, port: u16| {
        vec![
            Address::Inet {
                address: SocketAddr::new(v4.into(), port),
                optional: false,
            },
            Address::Inet {
                address: SocketAddr::new(v6.into(), port),
                optional: true,
            },
        ]
    };
    // Neither has an address that a parser knows, and each means both address families.
    if let Some((host @ ("*" | "localhost"), port)) = text.rsplit_once(':') {
        let port = parse_port(port).ok_or("not a port: write 1 to 65535, or 0 for any")?;
        return Ok(match host {
            "*" => pair(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED, port),
            _ => pair(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST, port),
        });
    }
    let address: SocketAddr = text.parse().map_err(|_| advise(text))?;
    if let SocketAddr::V6(v6) = address {
        if let Some(v4) = v6.ip().to_ipv4_mapped() {
            return Err(format!(
                "an IPv4 address in an IPv6 one: write \"{v4}:{}\"",
                v6.port()
            ));
        }
        if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 {
            let port = v6.port();
            return Err(format!(
                "link-local, so it needs an interface: write \"[{}%INDEX]:{port}\", the index from \"ip link\"",
                v6.ip()
            ));
        }
    }
    Ok(vec![Address::Inet {
        address,
        optional: false,
    }])
}

/// The path of the control socket.
pub(super) fn parse_socket_path(typed: &Typed) -> Result<Option<PathBuf>, String> {
    parse_path(value::text(typed, "\"/run/echod/control.sock\"")?).map(Some)
}

/// The path of a socket file.
///
/// # Errors
/// Why it can't be one, and what to write.
pub(crate) fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.ends_with('/') {
        return Err("not the path of a file: write one, as in \"/run/echod/NAME.sock\"".into());
    }
    // So other programs write the name of a socket without a file.
    if text.starts_with('@') {
        return Err(
            "abstract sockets are not supported: write a path, as in \"/run/echod/NAME.sock\""
                .into(),
        );
    }
    if text.contains('\0') {
        return Err("a path with a NUL: remove it".into());
    }
    if text.len() > PATH_BYTES_MAX {
        let len = text.len();
        return Err(format!(
            "a path of {len} bytes: a socket's has at most {PATH_BYTES_MAX}: shorten it"
        ));
    }
    Ok(text.into())
}

/// A port in digits only: `u16` would also take a sign.
fn parse_port(text: &str) -> Option<u16> {
    let digits = text.chars().all(|digit| digit.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}

/// What is wrong with an address that is none, as far as can be seen.
fn advise(text: &str) -> String {
    const FORMS: &str = "write IP:PORT, [IPv6]:PORT, *:PORT or localhost:PORT";
    if text.is_empty() {
        return format!("empty: {FORMS}");
    }
    if text.contains('/') {
        return format!("a path: {FORMS}, or set protocol to \"unix-stream\" or \"unix-datagram\"");
    }
    // The last colon is taken for that of the port, as people mean it.
    if let Some((host, port)) = text.rsplit_once(':')
        && let (Ok(v6), Some(port)) = (host.parse::<Ipv6Addr>(), parse_port(port))
    {
        return format!("an IPv6 address needs brackets: write \"[{v6}]:{port}\"");
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let full = SocketAddr::new(ip, 7);
        return format!("a port is missing: write e.g. \"{full}\"");
    }
    if parse_port(text).is_some() {
        return format!(
            "an address is missing: write e.g. \"*:{text}\" for all, or \"localhost:{text}\""
        );
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return format!("not an address and port: {FORMS}");
    };
    if parse_port(port).is_none() {
        return format!("not a port: write 1 to 65535, or 0 for any; {FORMS}");
    }
    let numeric = host
        .chars()
        .all(|part| part.is_ascii_digit() || part == '.');
    if host.is_empty() {
        format!("an address is missing: write e.g. \"*:{port}\" for all, or \"localhost:{port}\"")
    } else if numeric || host.starts_with('[') {
        format!("not an IP address: {FORMS}")
    } else {
        format!("a host name: write its IP address, as in \"192.0.2.1:{port}\"")
    }
}

/// The addresses in their shortest forms: two halves of `*` or `localhost` are one again.
pub(super) fn show(addresses: &[Address]) -> Vec<String> {
    let mut shown = Vec::new();
    let mut rest = addresses;
    while let Some((first, more)) = rest.split_first() {
        let short = more.first().and_then(|second| short_form(first, second));
        rest = if short.is_some() { &more[1..] } else { more };
        shown.push(short.unwrap_or_else(|| first.to_string()));
    }
    shown
}

fn short_form(first: &Address, second: &Address) -> Option<String> {
    let (
        Address::Inet { address: v4, .. },
        Address::Inet {
            address: v6,
            optional: true,
        },
    ) = (first, second)
    else {
        return None;
    };
    let host = match (v4.ip(), v6.ip()) {
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => "*",
        (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)) => "localhost",
        _ => return None,
    };
    (v4.port() == v6.port()).then(|| format!("{host}:{}", v4.port()))
}
