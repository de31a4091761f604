//! What the deciding code costs by itself, in nanoseconds: state machine, access lists, timers,
//! table of sources, configuration.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use divan::Bencher;
use ipnet::IpNet;

use echod::internals::{
    Access, Activity, ConfigSource, Destination, Reply, SocketId, Source, SourceEntry, SourceTable,
    Stream, Timeouts, Timers, load_config,
};

/// As many connections as one worker may well have.
const CONNECTIONS: u32 = 10_000;

/// Runs them all and prints a table.
pub(crate) fn main() {
    divan::Divan::default().run_benches();
}

/// A message through the state machine of a connection.
#[divan::bench]
fn stream_message(bencher: Bencher<'_, '_>) {
    let mut stream = Stream::new(Reply::Echo, false);
    let mut message = [b'm'; 64];
    _ = stream.poll_step();
    bencher.bench_local(|| {
        let answer = stream.handle_received(black_box(&mut message));
        stream.handle_sent(64);
        (answer, stream.poll_step())
    });
}

/// The same with a reply that touches every byte.
#[divan::bench]
fn stream_message_upper(bencher: Bencher<'_, '_>) {
    let mut stream = Stream::new(Reply::Upper, false);
    let mut message = [b'm'; 64];
    _ = stream.poll_step();
    bencher.bench_local(|| {
        let answer = stream.handle_received(black_box(&mut message));
        stream.handle_sent(64);
        (answer, stream.poll_step())
    });
}

/// Which peers may connect, with lists of this many networks.
#[divan::bench(args = [0, 10, 100, 1000])]
fn access_lookup(bencher: Bencher<'_, '_>, networks: u32) {
    let network = |number: u32| {
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8));
        IpNet::new(address.into(), 24).expect("24 is a prefix length")
    };
    let access = Access {
        allow: [].into(),
        deny: (0..networks).map(network).collect(),
    };
    let source = IpAddr::from(Ipv4Addr::new(192, 0, 2, 1));
    bencher.bench_local(|| access.permits(black_box(source)));
}

/// Whether a connection has been silent for too long.
#[divan::bench]
fn timeouts_check(bencher: Bencher<'_, '_>) {
    let now = Instant::now();
    let timeouts = Timeouts {
        idle: Some(Duration::from_secs(600)),
        lifetime: None,
        write_stall: Some(Duration::from_secs(30)),
    };
    let activity = Activity::new(now);
    bencher.bench_local(|| timeouts.check(black_box(now), &activity));
}

/// A timer moved among those of many connections.
#[divan::bench]
fn timer_set(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    let mut timers = Timers::new(start);
    for slot in 0..CONNECTIONS {
        timers.set(slot, start + Duration::from_millis(u64::from(slot)));
    }
    let mut slot = 0;
    bencher.bench_local(|| {
        slot = (slot + 1) % CONNECTIONS;
        timers.set(slot, start + Duration::from_secs(600));
    });
}

/// A turn in which no timer is due, with those of many connections set.
#[divan::bench]
fn timers_fire_nothing(bencher: Bencher<'_, '_>) {
    let start = Instant::now();
    let mut timers = Timers::new(start);
    for slot in 0..CONNECTIONS {
        timers.set(slot, start + Duration::from_secs(600));
    }
    let mut due = Vec::new();
    bencher.bench_local(|| timers.fire(black_box(start), &mut due));
}

/// The source of a datagram found again, among this many.
#[divan::bench(args = [1, 64, 1000])]
fn source_found(bencher: Bencher<'_, '_>, sources: u16) {
    let now = Instant::now();
    let source = |port: u16| Source::Inet(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let entry = |source: Source| SourceEntry {
        id: 1,
        source,
        destination: Destination {
            socket: SocketId(0),
            address: None,
        },
        first: now,
        last: now,
        bytes_received: 0,
        bytes_sent: 0,
    };
    let mut table = SourceTable::default();
    for port in 0..sources {
        table.entry(&source(port), || entry(source(port)));
    }
    let mut port = 0;
    bencher.bench_local(|| {
        port = (port + 1) % sources;
        let source = source(port);
        table.entry(&source, || entry(source)).bytes_received += 64;
    });
}

/// The shipped configuration, with every key.
#[divan::bench]
fn config_load(bencher: Bencher<'_, '_>) {
    let source = [ConfigSource {
        name: "echod.toml".into(),
        text: include_str!("../../etc/echod.toml").into(),
    }];
    bencher.bench_local(|| load_config(black_box(&source)).expect("it is shipped"));
}
