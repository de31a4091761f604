//! A service as typed: `tcp://HOST:PORT`, `udp://HOST:PORT`, `unix://PATH`, `unixgram://PATH`.
//!
//! Knows the words of a URL, and never a name server or a socket.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An echo service, ours or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    scheme: &'static str,
    /// A stream of bytes, or datagrams.
    pub transport: Transport,
    /// Where it is.
    pub place: Place,
}

/// Where a service is, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Over IP: a name or an address, one of IPv6 without its brackets; and the number of the port,
    /// or the name of the service there (services(5)).
    Inet(String, String),
    /// The path of a Unix socket; an abstract name begins with `@`.
    Unix(PathBuf),
}

/// A stream of bytes, or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP, or a Unix stream.
    Stream,
    /// UDP, or Unix datagrams.
    Datagram,
}

/// Their schemes, whether they are over IP, and how.
const SCHEMES: [(&str, bool, Transport); 4] = [
    ("tcp", true, Transport::Stream),
    ("udp", true, Transport::Datagram),
    ("unix", false, Transport::Stream),
    ("unixgram", false, Transport::Datagram),
];

impl Target {
    /// Whether it is a stream of bytes.
    pub(crate) fn is_stream(&self) -> bool {
        self.transport == Transport::Stream
    }

    /// Whether it is reached over IP.
    pub(crate) fn is_inet(&self) -> bool {
        matches!(self.place, Place::Inet(..))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme;
        match &self.place {
            Place::Inet(host, port) if host.contains(':') => {
                write!(f, "{scheme}://[{host}]:{port}")
            }
            Place::Inet(host, port) => write!(f, "{scheme}://{host}:{port}"),
            Place::Unix(path) => write!(f, "{scheme}://{}", path.display()),
        }
    }
}

/// What a URL has to look like.
const FORM: &str = "write tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH";

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("no URL: {FORM}"));
        };
        // Schemes are case-insensitive (RFC 3986, section 3.1).
        let scheme = scheme.to_ascii_lowercase();
        let found = SCHEMES.iter().find(|(name, ..)| *name == scheme);
        let Some(&(scheme, inet, transport)) = found else {
            return Err(format!("{scheme}: not a supported protocol: {FORM}"));
        };
        let place = match rest {
            _ if inet => host_and_port(scheme, rest)?,
            "" | "@" => return Err(format!("the path is missing: write {scheme}://PATH")),
            path => Place::Unix(path.into()),
        };
        Ok(Self {
            scheme,
            transport,
            place,
        })
    }
}

/// `HOST:PORT`, with an address of IPv6 in brackets.
fn host_and_port(scheme: &str, rest: &str) -> Result<Place, String> {
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let parts = match rest.strip_prefix('[') {
        Some(rest) => rest
            .split_once(']')
            .and_then(|(host, port)| Some((host, port.strip_prefix(':')?))),
        None => rest.rsplit_once(':'),
    };
    let Some((host, port)) = parts else {
        return Err(format!("the port is missing: write {scheme}://HOST:PORT"));
    };
    if host.is_empty() {
        return Err(format!("the host is missing: write {scheme}://HOST:PORT"));
    }
    if host.contains(':') && !rest.starts_with('[') {
        return Err(format!(
            "an IPv6 address stands in brackets: write {scheme}://[{host}]:{port}"
        ));
    }
    let is_name = port.starts_with(|first: char| first.is_ascii_alphabetic());
    match port.parse::<u16>() {
        Ok(1..) => Ok(Place::Inet(host.into(), port.into())),
        Err(_) if is_name => Ok(Place::Inet(host.into(), port.into())),
        _ => Err(format!(
            "port {port:?}: write a number from 1 to 65535, or the name of a service"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, shown: &str) {
        let target: Result<Target, String> = text.parse();
        let said = target.map_or_else(|error| error, |target| target.to_string());
        assert_eq!(said, shown, "of {text}");
    }

    #[test]
    fn urls_of_all_four_kinds_are_read_and_written_alike() {
        for url in [
            "tcp://127.0.0.1:7007",
            "udp://echo.example:7",
            "udp://echo.example:echo",
            "tcp://[::1]:7",
            "udp://[fe80::1%eth0]:7",
            "unix:///run/echod/echo.sock",
            "unixgram://@abstract",
        ] {
            check(url, url);
        }
        check("tcp://localhost:7/", "tcp://localhost:7");
        check("TCP://localhost:7", "tcp://localhost:7");
        check("UnixGram:///run/Echo", "unixgram:///run/Echo");
    }

    #[test]
    fn a_mistake_is_answered_with_what_to_write() {
        check("localhost:7", &format!("no URL: {FORM}"));
        let words = format!("http: not a supported protocol: {FORM}");
        check("http://a:1", &words);
        check("tcp://a", "the port is missing: write tcp://HOST:PORT");
        check("tcp://[::1]", "the port is missing: write tcp://HOST:PORT");
        check("udp://:7", "the host is missing: write udp://HOST:PORT");
        check(
            "tcp://::1:7",
            "an IPv6 address stands in brackets: write tcp://[::1]:7",
        );
        for port in ["0", "65536", "7x", ""] {
            let words =
                format!("port {port:?}: write a number from 1 to 65535, or the name of a service");
            check(&format!("tcp://a:{port}"), &words);
        }
        check("unix://", "the path is missing: write unix://PATH");
    }
}
