//! All at once against one daemon, while it is asked and reloaded: as long as
//! `ECHOD_TEST_MIXTURE_SECONDS` says, else for a few seconds.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::address_of;
use super::crowd::{Answer, Crowd, Ending, Plan, Service, Sizes, Tally, wait_until_all_are_gone};
use super::flows::Flows;
use super::pattern;
use crate::harness::{Daemon, allow_many_descriptors};

const EVERYTHING: &str = r#"
[daemon]
workers = 2

[log]
target = "stderr"
level = "error"

[defaults]
write-stall-timeout = "off"

[listener.echo]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.upper]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "upper"

[listener.discard]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "discard"

[listener.once]
protocol = "tcp"
address = "127.0.0.1:0"
one-shot = true

[listener.unix]
protocol = "unix-stream"
address = "{dir}/stream"

[listener.rough]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.udp]
protocol = "udp"
address = "127.0.0.1:0"

[listener.datagram]
protocol = "unix-datagram"
address = "{dir}/datagram"
"#;

/// What a reload adds to [`EVERYTHING`] and takes away again, and other limits for all.
const MORE: &str = r#"
[listener.more]
protocol = "tcp"
address = "127.0.0.1:0"
"#;
const LIMITS: [&str; 2] = [
    "write-stall-timeout = \"off\"",
    "write-stall-timeout = \"10m\"\nidle-timeout = \"5m\"\nbacklog = 512",
];

/// The streams. No peer of `rough` ends as a peer should.
const STREAMS: [(&str, Answer); 6] = [
    ("echo", Answer::Echo),
    ("upper", Answer::Upper),
    ("discard", Answer::Nothing),
    ("once", Answer::First),
    ("unix", Answer::Echo),
    ("rough", Answer::Echo),
];
const ROUGH: usize = 5;

/// The number of peers of streams at a time, for each of two threads.
const CROWD: usize = 100;

fn duration() -> Duration {
    let seconds = std::env::var("ECHOD_TEST_MIXTURE_SECONDS");
    let seconds = seconds.map(|seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Connects another peer to one of the streams.
fn add(crowd: &mut Crowd) {
    let service = crowd.random.below(STREAMS.len() as u64) as usize;
    let mut plan = Plan::random(&mut crowd.random);
    if service == ROUGH {
        plan.deaf = crowd.random.one_in(3);
        plan.ending = *crowd
            .random
            .one_of(&[Ending::Reset, Ending::Close, Ending::Stay]);
    }
    if STREAMS[service].1 == Answer::First {
        // What it sends later than two seconds behind the answer is not read.
        plan = Plan {
            total: plan.total % 50_000,
            sizes: Sizes::Small,
            pauses: false,
            ..plan
        };
    }
    crowd.add(service, plan);
}

fn stream_peers(seed: u64, services: &[Service], first_stream: u32, until: Instant) -> Vec<Tally> {
    let mut crowd = Crowd::new(seed, services, first_stream);
    while Instant::now() < until {
        while crowd.len() < CROWD {
            add(&mut crowd);
        }
        crowd.turn(Duration::from_millis(10));
        if crowd.random.one_in(200) {
            crowd.kill_one_in(2, ROUGH);
        }
    }
    crowd.kill(ROUGH);
    crowd.finish();
    crowd.tallies().to_vec()
}

fn datagram_peers(mut flows: Flows, until: Instant) -> Tally {
    while Instant::now() < until {
        flows.turn(true);
    }
    while flows.under_way() > 0 {
        flows.turn(false);
    }
    flows.tally
}

/// Asks for all that there is, and reloads.
fn control(daemon: &Daemon, until: Instant) {
    let more = EVERYTHING.replace(LIMITS[0], LIMITS[1]) + MORE;
    let mut control = daemon.control();
    for round in 0.. {
        for question in ["GetStatus", "ListListeners", "ListPeers"] {
            let reply = control.ask(question, &json!({})).expect("a reply");
            assert!(reply["error"].is_null(), "{question}: {reply}");
        }
        if Instant::now() >= until {
            return;
        }
        let config = if round % 2 == 0 { &*more } else { EVERYTHING };
        let result = daemon.reload_with(config);
        assert_eq!(result["outcome"], "applied", "{result}");
        // Its share of the processor is for the others.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mixture_of_everything() {
    allow_many_descriptors();
    let seed = pattern::seed();
    let daemon = Daemon::start(EVERYTHING);
    let services = STREAMS.map(|(name, answer)| Service::of(&daemon, name, answer));
    let flows = |name, first_stream, count| {
        let folder = daemon.folder.path();
        Flows::new(
            name,
            seed,
            &address_of(&daemon, name),
            folder,
            first_stream,
            count,
        )
    };
    let (udp, datagram) = (flows("udp", 1, 8), flows("datagram", 101, 4));
    let until = Instant::now() + duration();
    let (tallies, datagrams) = std::thread::scope(|scope| {
        let peers = [1, 2].map(|crowd: u32| {
            let services = &services;
            scope.spawn(move || stream_peers(seed, services, crowd << 22, until))
        });
        let datagrams =
            [udp, datagram].map(|flows| scope.spawn(move || datagram_peers(flows, until)));
        control(&daemon, until);
        let mut tallies = [Tally::default(); STREAMS.len()];
        for peers in peers {
            let of_one = peers.join().expect("no peer failed");
            tallies
                .iter_mut()
                .zip(of_one)
                .for_each(|(all, one)| *all += one);
        }
        (
            tallies,
            datagrams.map(|flows| flows.join().expect("no flow failed")),
        )
    });

    for (service, tally) in services.iter().zip(&tallies) {
        let name = &service.name;
        wait_until_all_are_gone(&daemon, name);
        let listener = daemon.listener(name);
        let counted = count(&listener, "accepted");
        assert_eq!(counted.connected, tally.connected, "seed {seed}: {name}");
        assert!(
            tally.connected > 0 && tally.sent > 0,
            "seed {seed}: {name}: no peer connected"
        );
        // What was under way to the rough ones is unknown. What comes behind an answer of the one-shot
        // listener is read for two seconds and no longer, which may be too short on a busy machine.
        let (all_is_sent, all_is_received) = match name.as_str() {
            "rough" => (false, false),
            "once" => (true, false),
            _ => (true, true),
        };
        let sent_right = !all_is_sent || counted.sent == tally.received;
        let received_right = !all_is_received || counted.received == tally.sent;
        assert!(
            sent_right
                && received_right
                && counted.sent <= counted.received
                && counted.received <= tally.sent,
            "seed {seed}: {name}: {counted:?}, {tally:?}"
        );
    }
    for (name, tally) in ["udp", "datagram"].into_iter().zip(datagrams) {
        let listener = daemon.listener(name);
        assert_eq!(
            count(&listener, "datagrams_received"),
            swapped(tally),
            "seed {seed}: {name}"
        );
        assert_eq!(
            listener["datagrams_sent"], tally.connected,
            "seed {seed}: {name}"
        );
    }
    let status = daemon.ctl_json(&["status"])["status"].clone();
    let listeners = daemon.ctl_json(&["listeners"])["listeners"].clone();
    for key in ["connections", "bytes_received", "bytes_sent"] {
        let listeners = listeners.as_array().expect("a list");
        let sum: u64 = listeners
            .iter()
            .map(|listener| number(&listener[key]))
            .sum();
        assert_eq!(status[key], sum, "seed {seed}: {key}");
    }
    assert_eq!(daemon.log(), "", "seed {seed}: errors were logged");
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a number")
}

/// What a listener counted.
fn count(listener: &Value, peers: &str) -> Tally {
    Tally {
        connected: number(&listener[peers]),
        sent: number(&listener["bytes_sent"]),
        received: number(&listener["bytes_received"]),
    }
}

/// The same from the other side.
fn swapped(tally: Tally) -> Tally {
    Tally {
        sent: tally.received,
        received: tally.sent,
        ..tally
    }
}
