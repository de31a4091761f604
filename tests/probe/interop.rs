//! echoprobe with echo services and proxies of other people: socat, ncat, xinetd and haproxy.
//!
//! These tests need those programs, so that `cargo test` leaves them out; the gate runs them with
//! `cargo test -- --ignored`, and there a missing program is a failure.

use std::net::UdpSocket;
use std::os::unix::net::UnixStream;

use super::{assert_returns, probe_with};
use crate::harness::{Daemon, eventually, noise, text};
use crate::interop::servers::Server;
use crate::interop::{Haproxy, free_address};

/// All comes back, and a conversation is possible.
#[track_caller]
fn assert_echoes(url: &str, input: &[u8]) {
    assert_returns(&["send", url], input, input);
    assert_returns(&["send", url, "--expect", "any"], input, input);
    assert_talks(url);
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
    let much = noise(3_000_000, 21);
    // Streams through cat, which gets its time; its own pipe would block when it is full.
    let tcp = Server::of_tcp("socat -t 20 TCP-LISTEN:PORT,bind=127.0.0.1,reuseaddr,fork EXEC:cat");
    assert_echoes(&format!("tcp://127.0.0.1:{}", tcp.port), &much);
    let unix = Server::start("socat -t 20 UNIX-LISTEN:{dir}/stream,fork EXEC:cat");
    let path = unix.folder.path().join("stream");
    eventually("it accepts", || UnixStream::connect(&path).is_ok());
    assert_echoes(&format!("unix://{}", path.display()), &much);
    // Datagrams of one client, and of the other kind just one: with more it may lose its way.
    let udp = Server::start("socat UDP-LISTEN:PORT,bind=127.0.0.1 PIPE");
    eventually("its port is taken", || {
        UdpSocket::bind(("127.0.0.1", udp.port)).is_err()
    });
    let url = format!("udp://127.0.0.1:{}", udp.port);
    assert_returns(&["send", &url], &much[..10_000], &much[..10_000]);
    let unixgram = Server::start("socat UNIX-RECVFROM:{dir}/datagram PIPE");
    let path = unixgram.folder.path().join("datagram");
    eventually("it is there", || path.exists());
    let url = format!("unixgram://{}", path.display());
    assert_returns(&["send", &url], &much[..1000], &much[..1000]);
}

#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn ncat_with_cat_behind_it_talks_to_us() {
    let ncat = Server::of_tcp("ncat -l -k 127.0.0.1 PORT -e /bin/cat");
    // With any client, it loses what is on the way when that half-closes: so lines, and no more.
    assert_talks(&format!("tcp://127.0.0.1:{}", ncat.port));
}

/// Not over UDP: it loses every other datagram of any client.
#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn the_echo_service_of_xinetd_echoes_what_we_send() {
    let xinetd = Server::xinetd();
    let url = format!("tcp://127.0.0.1:{}", xinetd.port);
    assert_echoes(&url, &noise(3_000_000, 23));
}

/// The client that haproxy sees is the one of our header.
#[test]
#[ignore = "needs socat, ncat, xinetd and haproxy: run by .ci/run"]
fn haproxy_takes_our_proxy_headers() {
    // The end of the stream, or a reset where haproxy left something unread.
    let is_turned_away = |options: &[&str]| {
        let output = probe_with(options, b"hello");
        let status = output.status.code();
        assert!(matches!(status, Some(1 | 3)), "{}", text(&output.stderr));
    };
    let daemon = Daemon::start(super::LISTENERS);
    let server = daemon.address("tcp");
    let front = free_address();
    let _haproxy = Haproxy::start(&format!(
        "listen echo\n  bind {front} accept-proxy\n  acl ours src 127.0.0.2\n  \
         tcp-request content reject unless ours\n  server one {server}\n"
    ));
    let much = noise(300_000, 24);
    let url = format!("tcp://{front}");
    for version in ["v1", "v2"] {
        let options = ["send", &url, "--proxy", version, "--source", "127.0.0.2"];
        assert_returns(&options, &much, &much);
        // Another client is turned away.
        let other = ["--proxy", version, "--source", "127.0.0.3"];
        is_turned_away(&[&["send", &url][..], &other].concat());
    }
    // Without a header no client is accepted.
    is_turned_away(&["send", &url]);
}
