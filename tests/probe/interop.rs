//! echoprobe with echo services and proxies of other people: socat, ncat, xinetd and haproxy.
//!
//! These tests need those programs, so that `cargo test` leaves them out; the gate runs them with
//! `cargo test -- --ignored`, and there a missing program is a failure.

use std::net::{TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::probe_with;
use crate::harness::{Daemon, eventually, free_port, noise, text};
use crate::interop::{Haproxy, free_address};

/// A program of another project. Ended with the test.
struct Service(Child);

impl Service {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for_tcp(port: u16) {
    eventually("it accepts", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
}

/// All comes back, and a conversation is possible.
#[track_caller]
fn assert_echoes(url: &str, input: &[u8]) {
    assert_returns(&["send", url], input);
    assert_returns(&["send", url, "--expect", "any"], input);
    assert_talks(url);
}

/// What comes back is this.
#[track_caller]
fn assert_returns(arguments: &[&str], input: &[u8]) {
    let output = probe_with(arguments, input);
    let (said, count) = (text(&output.stderr), output.stdout.len());
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert!(output.stdout == input, "{arguments:?}: {count} bytes");
}

/// A conversation is possible.
#[track_caller]
fn assert_talks(url: &str) {
    let output = probe_with(&[url], b"hello\nworld\n");
    let said = text(&output.stderr);
    assert_eq!(text(&output.stdout), "hello\nworld\n", "{said}");
    assert!(output.status.success(), "{url}: {}: {said}", output.status);
}

#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn socat_echoes_what_we_send_on_every_kind_of_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (tcp, udp) = (free_port(), free_port());
    let (stream, datagram) = (at("stream"), at("datagram"));
    // Streams through cat, which gets its time; its own pipe would block when it is full.
    let streams = [
        format!("TCP-LISTEN:{tcp},bind=127.0.0.1,reuseaddr,fork"),
        format!("UNIX-LISTEN:{stream},fork"),
    ]
    .map(|listen| Service::start("socat", &["-t", "20", &listen, "EXEC:cat"]));
    // Datagrams of one client, and of the other kind just one: with more it may lose its way.
    let datagrams = [
        format!("UDP-LISTEN:{udp},bind=127.0.0.1"),
        format!("UNIX-RECVFROM:{datagram}"),
    ]
    .map(|listen| Service::start("socat", &[&listen, "PIPE"]));
    wait_for_tcp(tcp);
    eventually("its port is taken", || {
        UdpSocket::bind(("127.0.0.1", udp)).is_err()
    });
    eventually("it accepts", || UnixStream::connect(&stream).is_ok());
    eventually("it is there", || Path::new(&datagram).exists());
    let much = noise(3_000_000, 21);
    assert_echoes(&format!("tcp://127.0.0.1:{tcp}"), &much);
    assert_echoes(&format!("unix://{stream}"), &much);
    assert_returns(
        &["send", &format!("udp://127.0.0.1:{udp}")],
        &much[..10_000],
    );
    assert_returns(&["send", &format!("unixgram://{datagram}")], &much[..1000]);
    drop((streams, datagrams));
}

#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn ncat_with_cat_behind_it_talks_to_us() {
    let port = free_port();
    let listen = ["-l", "-k", "127.0.0.1", &port.to_string(), "-e", "/bin/cat"];
    let _ncat = Service::start("ncat", &listen);
    wait_for_tcp(port);
    // With any client, it loses what is on the way when that half-closes: so lines, and no more.
    assert_talks(&format!("tcp://127.0.0.1:{port}"));
}

#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn the_echo_service_of_xinetd_echoes_what_we_send() {
    let folder = tempfile::tempdir().expect("a folder");
    // Not that over UDP: it loses every other datagram of any client.
    let port = free_port();
    let service = format!(
        "service echo\n{{\n  type = INTERNAL UNLISTED\n  id = echo-stream\n  \
         socket_type = stream\n  protocol = tcp\n  wait = no\n  user = root\n  \
         bind = 127.0.0.1\n  port = {port}\n}}\n"
    );
    let file = folder.path().join("xinetd.conf");
    std::fs::write(&file, service).expect("a configuration");
    let (file, pid) = (file.display(), folder.path().join("pid"));
    let pid = pid.display().to_string();
    let arguments = ["-dontfork", "-f", &file.to_string(), "-pidfile", &pid];
    let _xinetd = Service::start("xinetd", &arguments);
    wait_for_tcp(port);
    assert_echoes(&format!("tcp://127.0.0.1:{port}"), &noise(3_000_000, 23));
}

/// The client that a server behind haproxy sees is the one of our header.
#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn haproxy_takes_our_proxy_headers() {
    let daemon = Daemon::start(super::LISTENERS);
    let server = daemon.address("tcp");
    let front = free_address();
    let _haproxy = Haproxy::start(&format!(
        "listen echo\n  bind {front} accept-proxy\n  acl ours src 192.0.2.1 2001:db8::1 127.0.0.1\n  \
         tcp-request content reject unless ours\n  server one {server}\n"
    ));
    let much = noise(300_000, 24);
    let url = format!("tcp://{front}");
    let addresses: [&[&str]; 3] = [
        &[],
        &["--proxy-source", "192.0.2.1:258"],
        &["--proxy-source", "[2001:db8::1]:258"],
    ];
    for version in ["v1", "v2"] {
        for address in addresses {
            let options = [&["send", &url, "--proxy", version], address].concat();
            let output = probe_with(&options, &much);
            let said = text(&output.stderr);
            assert!(output.status.success(), "{options:?}: {said}");
            assert!(output.stdout == much, "{options:?}");
        }
        // Another client is turned away.
        let other = ["--proxy", version, "--proxy-source", "192.0.2.9:258"];
        let output = probe_with(&[&["send", &url][..], &other].concat(), b"hello");
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    }
    // Without a header no client is accepted.
    let output = probe_with(&["send", &url], b"hello");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
}
