//! Promise 12: all of the peer's bytes are reported, then its end, once. This includes urgent data:
//! a read stops at the urgent mark, so a short read does not mean that the queue is empty (tcp(7)).

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::relay::start_bulk_traffic;
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op};

pub(super) fn urgent_data_is_received_in_order<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    for _ in 0..20 {
        let (mut peer, connection) = test.connection(&address);
        test.until_quiet();
        // All three are queued before the driver reads.
        test.network.write(&mut peer, b"one");
        test.network.write_urgent(&mut peer);
        test.network.write(&mut peer, b"two");
        test.until("all bytes are received", |test| {
            test.received(connection) == b"one!two"
        });
    }
}

/// Writes all bytes as the peer, and reads echoed ones at the same time.
fn write_and_read<H: Harness>(
    test: &mut DriverTest<H>,
    peer: &mut H::Peer,
    bytes: &[u8],
    echoed: &mut Vec<u8>,
) {
    let mut written = 0;
    test.until("all bytes are written", |test| {
        written += test.network.write(peer, &bytes[written..]);
        test.network.read(peer, BUFFER_BYTES, echoed);
        written == bytes.len()
    });
}

pub(super) fn urgent_data_is_relayed_in_order<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    // Bytes before and after the urgent byte, and whether the peer then half-closes.
    for (before, behind, ends) in [
        (0, 4, false),
        (100_000, 4, false),
        (100_000, 100_000, true),
        (0, 0, true),
    ] {
        let (mut peer, connection) = test.connection(&address);
        start_bulk_traffic(&mut test, &mut peer, connection);
        let mut echoed = vec![];
        write_and_read(&mut test, &mut peer, &pattern(0, before), &mut echoed);
        test.network.write_urgent(&mut peer);
        write_and_read(&mut test, &mut peer, &pattern(7, behind), &mut echoed);
        if ends {
            test.network.half_close(&mut peer);
        }
        echoed.extend(test.read(&mut peer, before + 1 + behind - echoed.len()));
        assert!(echoed == [&pattern(0, before)[..], b"!", &pattern(7, behind)].concat());
        if ends {
            test.until_event(&Event::Ended(connection));
        }
        // After the mark relaying resumes, and the driver does not spin.
        test.until_quiet();
        if !ends {
            test.echo(&mut peer, &pattern(0, 1_000_000));
        }
    }
    test.assert_all_returned();
}

pub(super) fn the_end_is_reported_once_after_all_bytes<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    for size in [0, 1, 200_000] {
        let (mut peer, connection) = test.connection(&address);
        test.write_all(&mut peer, &pattern(0, size));
        test.network.half_close(&mut peer);
        test.until_event(&Event::Ended(connection));
        let last = test.events.iter().rfind(|event| event.is_about(connection));
        assert_eq!(last, Some(&Event::Ended(connection)));
        assert!(test.received(connection) == pattern(0, size));
        test.until_quiet();
        assert_eq!(test.count(|event| *event == Event::Ended(connection)), 1);
        assert_eq!(
            test.network.read(&mut peer, 1, &mut vec![]),
            None,
            "the driver closed its side as well"
        );
    }
}

pub(super) fn an_end_during_a_pause_is_reported_when_receiving_resumes<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.driver.submit(Op::Pause { connection });
    test.until_quiet();
    test.write_all(&mut peer, b"the end");
    test.network.half_close(&mut peer);
    test.until_quiet();
    assert!(!test.has(&Event::Ended(connection)));
    test.driver.submit(Op::Receive { connection });
    test.until_event(&Event::Ended(connection));
    assert_eq!(test.received(connection), b"the end");
}

pub(super) fn a_reset_is_reported_as_one_failed_and_no_end<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (peer, connection) = test.connection(&address);
    test.network.reset(peer);
    test.until_event(&Event::Failed(connection));
    test.until_quiet();
    let about = test.count(|event| matches!(event, Event::Failed(_) | Event::Ended(_)));
    assert_eq!(about, 1);
    test.close(connection, Closing::Now);
}

pub(super) fn after_shut_down_the_peer_sees_a_fin_and_is_still_received_from<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.write_all(&mut peer, b"half closed");
    test.until("all bytes are received", |test| {
        test.received(connection).len() == 11
    });
    test.driver.submit(Op::ShutDown { connection });
    assert_eq!(
        test.read_end(&mut peer),
        (b"half closed".to_vec(), End::Fin)
    );
    test.answer = Answer::Discard;
    test.write_all(&mut peer, b", received");
    test.until("the bytes are received", |test| {
        test.received(connection) == b"half closed, received"
    });
    test.network.half_close(&mut peer);
    test.until_event(&Event::Ended(connection));
    assert_eq!(test.count(|event| matches!(event, Event::Failed(_))), 0);
}
