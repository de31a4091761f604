//! The promises of 12: all of the peer's bytes, also those behind urgent data, before which a read
//! stops however much there is; then its end, once.

use super::harness::{Harness, Place};
use super::relay::get_into_bulk;
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op};

pub(super) fn urgent_data_is_received_in_its_place<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    for _ in 0..20 {
        let (mut peer, connection) = stage.connection(&address);
        stage.until_quiet();
        // All of it is there before the driver looks.
        stage.net.write(&mut peer, b"one");
        stage.net.write_urgent(&mut peer);
        stage.net.write(&mut peer, b"two");
        stage.until("all is received", |stage| {
            stage.received(connection) == b"one!two"
        });
    }
}

/// Writes all of this, and reads what comes back while it does.
fn write_and_read<H: Harness>(
    stage: &mut Stage<H>,
    peer: &mut H::Peer,
    bytes: &[u8],
    back: &mut Vec<u8>,
) {
    let mut written = 0;
    stage.until("all is written", |stage| {
        written += stage.net.write(peer, &bytes[written..]);
        stage.net.read(peer, BUFFER_BYTES, back);
        written == bytes.len()
    });
}

pub(super) fn urgent_data_amid_relaying_returns_in_its_place<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let address = stage.listener_at(Place::Wide);
    for (before, behind, ends) in [
        (0, 4, false),
        (100_000, 4, false),
        (100_000, 100_000, true),
        (0, 0, true),
    ] {
        let (mut peer, connection) = stage.connection(&address);
        get_into_bulk(&mut stage, &mut peer, connection);
        let mut back = vec![];
        write_and_read(&mut stage, &mut peer, &pattern(0, before), &mut back);
        stage.net.write_urgent(&mut peer);
        write_and_read(&mut stage, &mut peer, &pattern(7, behind), &mut back);
        if ends {
            stage.net.half_close(&mut peer);
        }
        back.extend(stage.read(&mut peer, before + 1 + behind - back.len()));
        assert!(back == [&pattern(0, before)[..], b"!", &pattern(7, behind)].concat());
        if ends {
            stage.until_event(&Event::Ended(connection));
        }
        // What the mark had stopped is relayed again, and nothing spins.
        stage.until_quiet();
        if !ends {
            stage.echo(&mut peer, &pattern(0, 1_000_000));
        }
    }
    stage.assert_all_home();
}

pub(super) fn the_end_comes_once_and_after_all_bytes<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    for size in [0, 1, 200_000] {
        let (mut peer, connection) = stage.connection(&address);
        stage.write_all(&mut peer, &pattern(0, size));
        stage.net.half_close(&mut peer);
        stage.until_event(&Event::Ended(connection));
        let last = stage
            .events
            .iter()
            .rfind(|event| event.is_about(connection));
        assert_eq!(last, Some(&Event::Ended(connection)));
        assert!(stage.received(connection) == pattern(0, size));
        stage.until_quiet();
        assert_eq!(stage.count(|event| *event == Event::Ended(connection)), 1);
        assert_eq!(
            stage.net.read(&mut peer, 1, &mut vec![]),
            None,
            "our side is still open"
        );
    }
}

pub(super) fn an_end_while_resting_is_said_when_receiving_goes_on<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.driver.submit(Op::Pause { connection });
    stage.until_quiet();
    stage.write_all(&mut peer, b"the end");
    stage.net.half_close(&mut peer);
    stage.until_quiet();
    assert!(!stage.has(&Event::Ended(connection)));
    stage.driver.submit(Op::Receive { connection });
    stage.until_event(&Event::Ended(connection));
    assert_eq!(stage.received(connection), b"the end");
}

pub(super) fn a_reset_is_one_failed_and_no_end<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (peer, connection) = stage.connection(&address);
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    stage.until_quiet();
    let about = stage.count(|event| matches!(event, Event::Failed(_) | Event::Ended(_)));
    assert_eq!(about, 1);
    stage.close(connection, Closing::Now);
}

pub(super) fn after_shut_down_the_peer_sees_the_end_and_is_still_heard<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.write_all(&mut peer, b"last words");
    stage.until("all is received", |stage| {
        stage.received(connection).len() == 10
    });
    stage.driver.submit(Op::ShutDown { connection });
    assert_eq!(
        stage.read_end(&mut peer),
        (b"last words".to_vec(), End::Fin)
    );
    stage.answer = Answer::Discard;
    stage.write_all(&mut peer, b", heard");
    stage.until("it is received", |stage| {
        stage.received(connection) == b"last words, heard"
    });
    stage.net.half_close(&mut peer);
    stage.until_event(&Event::Ended(connection));
    assert_eq!(stage.count(|event| matches!(event, Event::Failed(_))), 0);
}
