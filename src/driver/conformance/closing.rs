//! Promise 8: closing listeners and connections, what the peer sees of it, and that every buffer is
//! returned. Draining (9) is in `listeners` and `datagrams`.

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::Harness;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op};

// 8. Closing.

pub(super) fn after_close_only_closed_is_reported<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    for _ in 0..20 {
        let (mut peer, connection) = test.connection(&address);
        // Bytes and a FIN are ready, and some of them may have been received, when the Close is
        // submitted.
        for piece in 0..10 {
            test.network.write(&mut peer, &pattern(piece, 1000));
        }
        test.network.half_close(&mut peer);
        test.turn();
        test.driver.submit(Op::Close {
            token: connection,
            how: Closing::Now,
        });
        let before = test.events.len();
        test.until_event(&Event::Closed(connection));
        test.until_quiet();
        let after: Vec<_> = test.events[before..]
            .iter()
            .filter(|event| event.is_about(connection))
            .collect();
        assert_eq!(after, [&Event::Closed(connection)]);
    }
    test.assert_all_returned();
}

pub(super) fn a_closed_token_is_never_reused_and_operations_on_it_are_ignored<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    H::allow_closed_tokens(&mut test.driver);
    let (_, address) = test.listener(None);
    let (mut peer, old) = test.connection(&address);
    let buffer = test.buffer(&mut peer, b"for a closed connection");
    test.close(old, Closing::Now);
    let (mut peer, new) = test.connection(&address);
    assert_ne!(old, new, "the token of a closed connection was reused");
    // Every operation on the old token is ignored, although its slot is in use again.
    test.driver.submit(Op::Send {
        connection: old,
        buffer,
    });
    test.driver.submit(Op::ShutDown { connection: old });
    test.driver.submit(Op::Pause { connection: old });
    test.driver.submit(Op::Receive { connection: old });
    test.driver.submit(Op::Close {
        token: old,
        how: Closing::Reset,
    });
    let before = test.events.len();
    test.until_quiet();
    assert!(
        !test.events[before..]
            .iter()
            .any(|event| event.is_about(old)),
        "{}",
        test.recent_events()
    );
    test.answer = Answer::Echo;
    test.echo(&mut peer, b"unaffected");
    test.until("the send completes", |test| test.unsent[&new] == 0);
    assert_eq!(test.driver.peer_progress(old), 0);
    test.assert_all_returned();
}

pub(super) fn close_now_sends_a_fin_after_all_sent_bytes<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.write_all(&mut peer, &pattern(0, 5000));
    test.until("every send completes", |test| {
        test.received(connection).len() == 5000 && test.unsent[&connection] == 0
    });
    test.close(connection, Closing::Now);
    let (bytes, end) = test.read_end(&mut peer);
    assert_eq!(end, End::Fin);
    assert!(bytes == pattern(0, 5000));
}

pub(super) fn close_reset_resets_the_connection<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.close(connection, Closing::Reset);
    assert_eq!(test.read_end(&mut peer).1, End::Reset);
}

pub(super) fn close_returns_the_buffers_of_stalled_sends<H: Harness>() {
    for how in [Closing::Now, Closing::Reset] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let (_, address) = test.listener(None);
        let (_peer, connection, _) = test.stalled(&address);
        test.close(connection, how);
        test.until_quiet();
        assert_eq!(test.events.last(), Some(&Event::Closed(connection)));
        test.assert_all_returned();
    }
}

pub(super) fn a_closed_listener_refuses_clients_and_keeps_its_connections<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (listener, address) = test.listener(None);
    let (mut peer, _) = test.connection(&address);
    test.close(listener, Closing::Now);
    assert!(
        test.network.connect(&address).is_err(),
        "a closed listener still accepts connections"
    );
    test.echo(&mut peer, b"still connected");
}

pub(super) fn buffers_are_returned_however_a_connection_ends<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (listener, address) = test.listener(None);
    // Close while bytes are being received and echoed.
    for round in 1..=4 {
        let mut clients: Vec<_> = (0..40).map(|_| test.connection(&address)).collect();
        for (peer, _) in &mut clients {
            test.network.write(peer, &pattern(0, 2000));
        }
        // After one turn some bytes are unreceived, some received but unreported, and some
        // reported.
        test.turn();
        for (_, connection) in clients {
            test.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
        }
        test.until("all connections are closed", |test| {
            test.count(|event| matches!(event, Event::Closed(_))) == 40 * round
        });
    }
    // Close after a FIN, after a reset, and without either.
    let mut clients: Vec<_> = (0..20).map(|_| test.connection(&address)).collect();
    for (mut peer, connection) in clients.drain(..10) {
        test.network.half_close(&mut peer);
        test.until_event(&Event::Ended(connection));
        test.close(connection, Closing::Now);
    }
    for (peer, connection) in clients.drain(..5) {
        test.network.reset(peer);
        test.until_event(&Event::Failed(connection));
        test.close(connection, Closing::Reset);
    }
    test.close(listener, Closing::Reset);
    for (_, connection) in &clients {
        test.close(*connection, Closing::Now);
    }
    test.assert_all_returned();
}
