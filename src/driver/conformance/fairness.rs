//! Promise 11: the work of one `wait` is bounded, so that a flood on one socket does not starve
//! others.

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::{CLIENT_COUNT, COMPLETIONS_MAX, WAITS_MAX};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::{Driver, Op};

// 11. Bounded work.

/// Waits until a condition holds, and panics if that takes more than `WAITS_MAX` waits. Whatever it
/// waits for must be ready already.
fn waits_until<H: Harness>(
    test: &mut DriverTest<H>,
    what: &str,
    mut condition: impl FnMut(&mut DriverTest<H>) -> bool,
) {
    for _ in 0..WAITS_MAX {
        let count = test.turn();
        assert!(
            count <= COMPLETIONS_MAX,
            "{count} completions in one wait, more than {COMPLETIONS_MAX}"
        );
        if condition(test) {
            return;
        }
    }
    panic!(
        "not within {WAITS_MAX} waits: {what}; {}",
        test.recent_events()
    );
}

pub(super) fn a_flood_on_one_connection_does_not_starve_another<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (mut flood, flooded) = test.connection(&address);
    let (mut peer, connection) = test.connection(&address);
    let bytes = pattern(0, BUFFER_BYTES);
    for round in 1..=5 {
        while test.network.write(&mut flood, &bytes) > 0 {}
        test.write_all(&mut peer, b"x");
        waits_until(&mut test, "the other connection is received from", |test| {
            test.network.write(&mut flood, &bytes);
            test.received(connection).len() == round
        });
    }
    assert!(test.received(flooded).len() > BUFFER_BYTES);
}

pub(super) fn a_flood_of_clients_does_not_starve_a_connection<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (socket, flooded) = test
        .network
        .listen(SocketKind::Ipv4)
        .expect("IPv4 is available");
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let clients: Vec<_> = (0..CLIENT_COUNT + 100)
        .map(|_| test.connect(&flooded))
        .collect();
    test.network.write(&mut peer, b"x");
    let listener = test.driver.add_listener(socket, None);
    test.driver.submit(Op::Accept { listener });
    waits_until(&mut test, "the other connection is received from", |test| {
        !test.received(connection).is_empty()
    });
    test.until("all clients are accepted", |test| {
        test.accepted().len() == clients.len() + 1
    });
}

pub(super) fn a_flood_of_datagrams_does_not_starve_a_connection<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let (_, flooded) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let mut flood = test.network.client(&flooded);
    (0..200).for_each(|_| test.network.send(&mut flood, &flooded, None, b"flood"));
    test.network.write(&mut peer, b"x");
    waits_until(&mut test, "the other connection is received from", |test| {
        test.network.send(&mut flood, &flooded, None, b"flood");
        !test.received(connection).is_empty()
    });
    test.until("all flooding datagrams are received", |test| {
        test.count(|event| matches!(event, Event::Datagram(..))) > 200
    });
}
