//! THE PROMISES of a driver, each a test that runs on every driver.
//!
//! A promise is a function over a [`Harness`]: a driver and the peers at its other side. To bring a
//! driver under the list, give it a harness (for one over real sockets: `impl Opens`) and a line in
//! [`promises!`]. The numbers in the headings are those of the seam, in `driver/mod.rs`.
//!
//! Nothing here sleeps for luck: a [`Stage`] turns the driver until what is promised has happened,
//! or panics with what was seen instead. That something does *not* happen is watched for a while.

mod datagrams;
mod ends;
mod handover;
mod harness;
mod kernel;
mod listeners;
mod own;
mod relay;
mod stage;

use std::time::{Duration, Instant};

use self::datagrams::*;
use self::ends::*;
use self::handover::*;
use self::harness::{Harness, Place};
use self::listeners::*;
use self::own::*;
use self::relay::*;
use self::stage::{Answer, DEADLINE, Event, Stage, TURN, pattern};
use super::buffers::{BUFFER_BYTES, BUFFER_COUNT};
use super::sim::End;
use super::{Closing, Driver, Op};

/// How many connections make a crowd: more than there are buffers.
const CROWD: usize = BUFFER_COUNT as usize + 44;

/// More completions than this in one `wait` are work without a bound.
const COMPLETIONS_MAX: usize = BUFFER_COUNT as usize + 64;

/// So many waits may go by before a completion that is ready is said in the midst of a flood.
const WAITS_MAX: usize = 40;

/// Makes each promise a test of each driver.
macro_rules! promises {
    (drivers: $($driver:ident: $harness:ty),+; promises: $list:tt) => {
        $(promises!(@driver $driver, $harness, $list);)+
    };
    (@driver $driver:ident, $harness:ty, [$($promise:ident),+ $(,)?]) => {
        mod $driver {
            $(#[test]
            fn $promise() {
                use super::Harness as _;
                match <$harness>::refusal() {
                    None => super::$promise::<$harness>(),
                    Some(error) => eprintln!("NOT TESTED: this machine has no such driver: {error}"),
                }
            })+
        }
    };
}

promises! {
    drivers:
        epoll: crate::driver::conformance::harness::Loopback<crate::driver::epoll::Epoll>,
        uring: crate::driver::conformance::harness::Loopback<crate::driver::uring::Uring>,
        sim: crate::driver::conformance::harness::Simulated<false>,
        sim_with_faults: crate::driver::conformance::harness::Simulated<true>;
    promises: [
        submitting_alone_does_nothing,
        one_accept_and_one_receive_bring_many,
        every_send_has_one_completion_and_no_more,
        a_failed_connection_answers_its_sends_with_one_failed,
        a_send_that_waits_says_stalled_and_completes_when_all_is_taken,
        a_peer_that_reads_slowly_gets_every_byte,
        sends_keep_their_order_however_many_are_queued,
        long_streams_come_back_whole,
        unix_streams_come_back_whole,
        idle_connections_hold_no_buffer,
        without_buffers_receiving_waits_and_nothing_fails,
        without_buffers_a_connection_can_still_be_closed,
        datagrams_leave_buffers_to_streams,
        peers_that_do_not_read_starve_nobody,
        after_rest_nothing_new_arrives_until_receive,
        no_more_than_64_kib_is_held_for_a_peer_that_does_not_read,
        after_close_nothing_is_heard_but_closed,
        a_token_never_comes_back_and_its_use_is_nothing,
        close_now_is_a_fin_behind_all_that_was_sent,
        close_reset_is_seen_as_a_reset,
        a_close_amid_stalled_sends_brings_the_buffers_home,
        a_closed_listener_is_gone,
        a_listener_that_drains_accepts_all_who_are_queued_without_permits,
        a_datagram_socket_that_drains_receives_and_answers_who_is_queued,
        without_a_permit_a_listener_rests_and_goes_on_when_one_comes_back,
        new_permits_count_from_the_next_accept_on,
        out_of_descriptors_is_a_result_and_not_a_spin,
        a_peer_that_gave_up_in_the_queue_is_in_nobodys_way,
        a_flood_on_one_connection_hides_no_other,
        a_crowd_of_clients_hides_no_connection,
        a_flood_of_datagrams_hides_no_connection,
        urgent_data_is_received_in_its_place,
        urgent_data_amid_relaying_returns_in_its_place,
        the_end_comes_once_and_after_all_bytes,
        an_end_while_resting_is_said_when_receiving_goes_on,
        a_reset_is_one_failed_and_no_end,
        after_shut_down_the_peer_sees_the_end_and_is_still_heard,
        datagrams_of_every_size_come_back_whole,
        a_datagram_that_does_not_fit_says_how_long_it_was,
        an_answer_leaves_from_the_address_that_was_hit,
        ipv6_answers_leave_from_the_address_that_was_hit,
        a_datagram_peer_that_is_gone_ends_nothing,
        a_datagram_peer_that_does_not_read_holds_nobody_up,
        a_mixed_batch_comes_back_one_by_one_and_in_order,
        answers_of_a_batch_each_leave_from_the_address_that_was_hit,
        datagrams_that_were_sent_as_one_message_come_back_one_by_one,
        datagram_peers_that_are_gone_cost_nobody_an_answer,
        relayed_streams_come_back_whole,
        relayed_messages_of_every_size_come_back_exact,
        the_end_comes_once_and_after_all_relayed_bytes,
        a_half_close_behind_a_full_pipe_loses_nothing,
        a_relayed_peer_that_does_not_read_is_not_read_and_others_go_on,
        receive_ends_relaying_and_what_is_held_still_goes_out,
        rest_ends_relaying_until_it_is_asked_for_again,
        a_shut_down_waits_until_the_pipe_is_empty,
        a_close_discards_what_the_pipe_holds,
        a_reset_amid_relaying_is_one_failed,
        when_pipes_run_out_bytes_are_shown,
        without_descriptors_bytes_are_shown,
        pipes_at_home_make_room_for_a_client,
        descriptors_of_pipes_come_home,
        an_idle_connection_goes_on_in_another_driver,
        traffic_amid_many_hand_overs_comes_back_whole,
        a_crowd_leaves_amid_its_traffic,
        bulk_amid_many_hand_overs_comes_back_whole,
        what_a_pipe_holds_leaves_before_what_waits_behind_it,
        what_a_stalled_peer_is_owed_is_sent_first_and_once,
        what_is_received_later_is_sent_behind_what_is_owed,
        what_is_larger_than_a_buffer_is_handed_over_again_in_its_midst,
        what_is_submitted_until_it_is_taken_is_owed,
        the_end_of_a_half_closed_peer_is_said_by_who_goes_on,
        a_close_after_detach_is_heard_alone,
        who_fails_first_is_not_detached,
        nobody_is_taken_who_is_not_detached,
        what_is_leased_is_sent_on_a_stream,
        a_connection_is_received_from_while_a_send_waits,
        what_is_leased_leaves_as_datagrams_of_the_envelopes_size,
        leasing_leaves_buffers_to_those_who_receive,
        a_waker_wakes_from_another_thread_once,
        a_wait_ends_at_its_time_and_not_before,
        a_wait_whose_time_has_passed_still_says_what_is_ready,
        progress_is_seen_when_the_peer_reads,
        details_and_accepted_tell_the_addresses,
        buffers_come_home_in_every_case,
        a_driver_that_is_dropped_leaves_nothing_behind,
    ]
}

// 1. Submitting.

fn submitting_alone_does_nothing<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    let buffer = stage.buffer(&mut peer, b"later");
    stage.until_quiet();
    stage.send(connection, buffer);
    stage.driver.submit(Op::Close {
        token: connection,
        how: Closing::Now,
    });
    let mut bytes = vec![];
    for _ in 0..100 {
        assert_eq!(stage.net.read(&mut peer, usize::MAX, &mut bytes), None);
    }
    assert!(bytes.is_empty(), "nothing is sent before the wait");
    stage.until_event(&Event::Closed(connection));
}

// 2. Completions.

fn one_accept_and_one_receive_bring_many<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let mut connections: Vec<_> = (0..5).map(|_| stage.connection(&address)).collect();
    for round in 1..=5 {
        for (peer, connection) in &mut connections {
            stage.write_all(peer, b"hello");
            stage.until("it is received", |stage| {
                stage.received(*connection).len() == 5 * round
            });
        }
    }
    assert_eq!(stage.accepted().len(), 5);
}

fn every_send_has_one_completion_and_no_more<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    for size in [1, 10, 1000, 50_000, 3] {
        stage.echo(&mut peer, &pattern(0, size));
    }
    stage.until("all is sent", |stage| stage.owed[&connection] == 0);
    stage.until_quiet();
    let received = stage.count(|event| matches!(event, Event::Received(..)));
    let sent = stage.count(|event| matches!(event, Event::Sent(..)));
    assert_eq!(sent, received, "one Sent for each Send");
}

fn a_failed_connection_answers_its_sends_with_one_failed<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (peer, connection, _) = stage.stalled(&address);
    let sent = stage.count(|event| matches!(event, Event::Sent(..)));
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    stage.until_quiet();
    assert_eq!(stage.count(|event| matches!(event, Event::Failed(_))), 1);
    assert_eq!(
        stage.count(|event| matches!(event, Event::Sent(..))),
        sent,
        "what was not sent is not Sent"
    );
    stage.close(connection, Closing::Now);
    stage.assert_all_home();
}

// 3. Stalls.

fn a_send_that_waits_says_stalled_and_completes_when_all_is_taken<H: Harness>() {
    // Over a Unix socket, where no byte moves until the peer reads.
    let mut stage = Stage::<H>::new(Answer::Echo);
    let address = stage.listener_at(Place::Unix);
    let (mut peer, connection, written) = stage.stalled(&address);
    let owed = stage.owed[&connection];
    let stalls = stage.count(|event| matches!(event, Event::Stalled(_)));
    stage.until_quiet();
    assert_eq!(
        stage.owed[&connection], owed,
        "nothing is Sent that the peer has no room for"
    );
    assert_eq!(
        stage.count(|event| matches!(event, Event::Stalled(_))),
        stalls,
        "a stall is said once"
    );
    let back = stage.read(&mut peer, written);
    assert!(
        back == pattern(0, written),
        "the bytes are whole and in order"
    );
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
    let stalls = stage.count(|event| matches!(event, Event::Stalled(_)));
    assert!(
        stalls <= stage.count(|event| matches!(event, Event::Sent(..))),
        "no send stalls twice"
    );
}

fn a_peer_that_reads_slowly_gets_every_byte<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        let bytes = pattern(0, 300_000);
        let (mut written, mut back) = (0, vec![]);
        stage.until("all came back", |stage| {
            written += stage.net.write(&mut peer, &bytes[written..]);
            stage.net.read(&mut peer, 1000, &mut back);
            back.len() >= bytes.len()
        });
        assert!(
            back == bytes,
            "the bytes that came back are those that were sent"
        );
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        let stalls = stage.count(|event| matches!(event, Event::Stalled(_)));
        let sends = stage.count(|event| matches!(event, Event::Sent(..)));
        assert!(
            (1..=sends).contains(&stalls),
            "{stalls} stalls of {sends} sends"
        );
    }
}

// 4. Order.

fn sends_keep_their_order_however_many_are_queued<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    let mut expected = vec![];
    for number in 0..40 {
        // The first ones fill the socket, so that later ones wait behind them.
        let message = pattern(number * 7, if number < 20 { 60_000 } else { number });
        let before = stage.received(connection).len();
        stage.write_all(&mut peer, &message);
        stage.until("it is received", |stage| {
            stage.received(connection).len() == before + message.len()
        });
        expected.extend(message);
    }
    for (_, buffer) in std::mem::take(&mut stage.kept) {
        *stage.owed.entry(connection).or_default() += buffer.len();
        stage.driver.submit(Op::Send { connection, buffer });
    }
    stage.driver.submit(Op::ShutDown { connection });
    stage.until_quiet();
    let (bytes, end) = stage.read_end(&mut peer);
    assert!(
        bytes == expected,
        "{} of {} bytes, in order",
        bytes.len(),
        expected.len()
    );
    assert_eq!(end, End::Fin);
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
}

fn long_streams_come_back_whole<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    for _ in 0..3 {
        let (mut peer, _) = stage.connection(&address);
        stage.echo(&mut peer, &pattern(0, 200_000));
    }
}

fn unix_streams_come_back_whole<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let address = stage.listener_at(Place::Unix);
    let (mut peer, connection) = stage.connection(&address);
    stage.echo(&mut peer, &pattern(0, 200_000));
    stage.close(connection, Closing::Now);
    assert_eq!(stage.read_end(&mut peer).1, End::Fin);
}

// 5. Idle connections.

fn idle_connections_hold_no_buffer<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let mut crowd: Vec<_> = (0..CROWD).map(|_| stage.connection(&address)).collect();
    for (peer, connection) in crowd.iter_mut().take(20) {
        stage.write_all(peer, b"busy once");
        stage.until("it is received", |stage| {
            !stage.received(*connection).is_empty()
        });
    }
    stage.assert_all_home();
}

// 6. Famine.

/// Takes every buffer there is.
fn starve<H: Harness>(stage: &mut Stage<H>, peer: &mut H::Peer) {
    stage.answer = Answer::Keep;
    for count in 1..=H::BUFFERS {
        stage.write_all(peer, b".");
        stage.until("a buffer is leased", |stage| stage.kept.len() == count);
    }
}

fn without_buffers_receiving_waits_and_nothing_fails<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage.listener(None);
    let (mut greedy, _) = stage.connection(&address);
    let mut others: Vec<_> = (0..3).map(|_| stage.connection(&address)).collect();
    starve(&mut stage, &mut greedy);
    let before = stage.events.len();
    for (peer, _) in &mut others {
        stage.write_all(peer, b"patience");
    }
    // A driver may come back empty-handed from finding that out, but not again and again.
    stage.until_quiet();
    let mut done = vec![];
    for _ in 0..5 {
        let until = stage.driver.now() + TURN;
        stage
            .driver
            .wait(Some(until), &mut done)
            .expect("famine is no failure");
        assert!(stage.driver.now() >= until, "it waits and does not spin");
    }
    assert!(
        done.is_empty() && stage.events.len() == before,
        "nothing arrives and nothing fails: {done:?}"
    );
    stage.answer = Answer::Discard;
    for (_, buffer) in std::mem::take(&mut stage.kept) {
        stage.driver.recycle(buffer);
    }
    for (_, connection) in others {
        stage.until("it is received", |stage| {
            stage.received(connection) == b"patience"
        });
    }
    assert_eq!(
        stage.count(|event| matches!(event, Event::Failed(_) | Event::Ended(_))),
        0
    );
    stage.assert_all_home();
}

fn without_buffers_a_connection_can_still_be_closed<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage.listener(None);
    let (mut greedy, greedy_connection) = stage.connection(&address);
    let (mut peer, connection) = stage.connection(&address);
    starve(&mut stage, &mut greedy);
    stage.write_all(&mut peer, b"unheard");
    stage.until_quiet();
    stage.close(connection, Closing::Now);
    let (_, buffer) = stage.kept.pop_front().expect("all are kept");
    stage.send(greedy_connection, buffer);
    assert_eq!(stage.read(&mut greedy, 1), b".");
    for (_, buffer) in std::mem::take(&mut stage.kept) {
        stage.driver.recycle(buffer);
    }
    stage.until_quiet();
    assert!(stage.received(connection).is_empty());
    stage.assert_all_home();
}

fn datagrams_leave_buffers_to_streams<H: Harness>() {
    for place in [Place::V4, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Keep);
        let (_, address) = stage.listener(None);
        let (mut peer, connection) = stage.connection(&address);
        let (_, there) = stage.datagrams(place).expect("every machine has it");
        // Two, so that their datagrams come in a buffer each.
        let mut clients = [(); 2].map(|()| stage.net.client(&there));
        // The user keeps what it gets, as a driver does whose network takes no answers.
        let mut sent = 0;
        let is_datagram = |event: &Event| matches!(event, Event::Datagram(..));
        while stage.count(is_datagram) == sent && sent < usize::from(BUFFER_COUNT) {
            stage.net.send(&mut clients[sent % 2], &there, None, b"kept");
            sent += 1;
            stage.turn();
            if stage.count(is_datagram) < sent {
                stage.until_quiet();
            }
        }
        assert!(stage.count(is_datagram) < sent, "some have to wait");
        let mut done = vec![];
        for _ in 0..5 {
            let until = stage.driver.now() + TURN;
            stage
                .driver
                .wait(Some(until), &mut done)
                .expect("famine is no failure");
            assert!(stage.driver.now() >= until, "it waits and does not spin");
        }
        assert!(done.is_empty(), "{done:?}");
        // Streams are served as ever, also with messages of several buffers.
        let kept = std::mem::take(&mut stage.kept);
        stage.answer = Answer::Echo;
        for size in [1, 300_000] {
            stage.echo(&mut peer, &pattern(0, size));
        }
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        for (_, buffer) in kept {
            stage.driver.recycle(buffer);
        }
        stage.until("the others are received", |stage| {
            stage.count(is_datagram) == sent
        });
        stage.assert_all_home();
    }
}

fn peers_that_do_not_read_starve_nobody<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let mut crowd: Vec<_> = (0..CROWD).map(|_| stage.connection(&address)).collect();
    let bytes = pattern(0, BUFFER_BYTES);
    stage.until("nobody in the crowd can write any more", |stage| {
        let written: usize = crowd
            .iter_mut()
            .map(|(peer, _)| stage.net.write(peer, &bytes))
            .sum();
        written == 0 && {
            stage.until_quiet();
            crowd
                .iter()
                .all(|(_, connection)| stage.owed.get(connection).is_some_and(|&owed| owed > 0))
        }
    });
    let (mut peer, connection) = stage.connection(&address);
    stage.echo(&mut peer, &pattern(0, 200_000));
    assert_eq!(stage.owed[&connection], 0);
    for (peer, connection) in crowd {
        drop(peer);
        stage.driver.submit(Op::Close {
            token: connection,
            how: Closing::Now,
        });
    }
    stage.until("all are Closed", |stage| {
        stage.count(|event| matches!(event, Event::Closed(_))) == CROWD
    });
    stage.assert_all_home();
}

// 7. Resting.

fn after_rest_nothing_new_arrives_until_receive<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.write_all(&mut peer, b"one ");
    stage.until("it is received", |stage| {
        stage.received(connection) == b"one "
    });
    stage.driver.submit(Op::Pause { connection });
    stage.until_quiet();
    stage.write_all(&mut peer, b"two");
    stage.until_quiet();
    assert_eq!(stage.received(connection), b"one ");
    stage.driver.submit(Op::Receive { connection });
    stage.until("it is received", |stage| {
        stage.received(connection) == b"one two"
    });
}

fn no_more_than_64_kib_is_held_for_a_peer_that_does_not_read<H: Harness>() {
    for answer in [Answer::Echo, Answer::Relay] {
        for place in [Place::V4, Place::Wide, Place::Unix] {
            for size in [1000, 3000, 5000, BUFFER_BYTES, 4 * BUFFER_BYTES] {
                let mut stage = Stage::<H>::new(answer);
                // Unlike a worker, the stage leaves it to the driver when to stop.
                stage.pauses = false;
                let address = stage.listener_at(place);
                let (mut peer, connection) = stage.connection(&address);
                let mut quiet = 0;
                stage.until("nothing can be written any more", |stage| {
                    // Often in one turn, so that much is there at once and in pieces of this size.
                    let bytes = pattern(0, size);
                    let written: usize = (0..64).map(|_| stage.net.write(&mut peer, &bytes)).sum();
                    quiet = if written > 0 { 0 } else { quiet + 1 };
                    stage.until_quiet();
                    quiet == 2
                });
                let held = detach(&mut stage, connection).unsent.len();
                assert!(
                    (1..=H::held_bytes_max()).contains(&held),
                    "{answer:?}, {place:?}, {size} bytes at a time: {held} bytes are held"
                );
            }
        }
    }
}

// 8. Closing.

fn after_close_nothing_is_heard_but_closed<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    for _ in 0..20 {
        let (mut peer, connection) = stage.connection(&address);
        for piece in 0..10 {
            stage.net.write(&mut peer, &pattern(piece, 1000));
        }
        stage.net.half_close(&mut peer);
        stage.turn();
        stage.driver.submit(Op::Close {
            token: connection,
            how: Closing::Now,
        });
        let before = stage.events.len();
        stage.until_event(&Event::Closed(connection));
        stage.until_quiet();
        let after: Vec<_> = stage.events[before..]
            .iter()
            .filter(|event| event.is_about(connection))
            .collect();
        assert_eq!(after, [&Event::Closed(connection)]);
    }
    stage.assert_all_home();
}

fn a_token_never_comes_back_and_its_use_is_nothing<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    H::forgive(&mut stage.driver);
    let (_, address) = stage.listener(None);
    let (mut peer, old) = stage.connection(&address);
    let buffer = stage.buffer(&mut peer, b"for a connection that is no more");
    stage.close(old, Closing::Now);
    let (mut peer, new) = stage.connection(&address);
    assert_ne!(old, new, "the slot has another generation");
    stage.driver.submit(Op::Send {
        connection: old,
        buffer,
    });
    stage.driver.submit(Op::ShutDown { connection: old });
    stage.driver.submit(Op::Pause { connection: old });
    stage.driver.submit(Op::Receive { connection: old });
    stage.driver.submit(Op::Close {
        token: old,
        how: Closing::Reset,
    });
    let before = stage.events.len();
    stage.until_quiet();
    assert!(
        !stage.events[before..]
            .iter()
            .any(|event| event.is_about(old)),
        "{}",
        stage.seen()
    );
    stage.answer = Answer::Echo;
    stage.echo(&mut peer, b"untouched");
    stage.until("it is Sent", |stage| stage.owed[&new] == 0);
    assert_eq!(stage.driver.progress(old), 0);
    stage.assert_all_home();
}

fn close_now_is_a_fin_behind_all_that_was_sent<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.write_all(&mut peer, &pattern(0, 5000));
    stage.until("all is Sent", |stage| {
        stage.received(connection).len() == 5000 && stage.owed[&connection] == 0
    });
    stage.close(connection, Closing::Now);
    let (bytes, end) = stage.read_end(&mut peer);
    assert_eq!(end, End::Fin);
    assert!(bytes == pattern(0, 5000));
}

fn close_reset_is_seen_as_a_reset<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.close(connection, Closing::Reset);
    assert_eq!(stage.read_end(&mut peer).1, End::Reset);
}

fn a_close_amid_stalled_sends_brings_the_buffers_home<H: Harness>() {
    for how in [Closing::Now, Closing::Reset] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let (_, address) = stage.listener(None);
        let (_peer, connection, _) = stage.stalled(&address);
        stage.close(connection, how);
        stage.until_quiet();
        assert_eq!(stage.events.last(), Some(&Event::Closed(connection)));
        stage.assert_all_home();
    }
}

fn a_closed_listener_is_gone<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (listener, address) = stage.listener(None);
    let (mut peer, _) = stage.connection(&address);
    stage.close(listener, Closing::Now);
    assert!(
        stage.net.connect(&address).is_err(),
        "nobody listens any more"
    );
    stage.echo(&mut peer, b"its connections stay");
}

// 11. Bounded work.

/// Counts the waits until something has happened that is ready now.
fn waits_until<H: Harness>(
    stage: &mut Stage<H>,
    what: &str,
    mut holds: impl FnMut(&mut Stage<H>) -> bool,
) {
    for _ in 0..WAITS_MAX {
        let count = stage.turn();
        assert!(count <= COMPLETIONS_MAX, "{count} completions in one wait");
        if holds(stage) {
            return;
        }
    }
    panic!("not within {WAITS_MAX} waits: {what}; {}", stage.seen());
}

fn a_flood_on_one_connection_hides_no_other<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (mut flood, flooded) = stage.connection(&address);
    let (mut peer, connection) = stage.connection(&address);
    let bytes = pattern(0, BUFFER_BYTES);
    for round in 1..=5 {
        while stage.net.write(&mut flood, &bytes) > 0 {}
        stage.write_all(&mut peer, b"x");
        waits_until(&mut stage, "the other is heard", |stage| {
            stage.net.write(&mut flood, &bytes);
            stage.received(connection).len() == round
        });
    }
    assert!(stage.received(flooded).len() > BUFFER_BYTES);
}

fn a_crowd_of_clients_hides_no_connection<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (socket, crowded) = stage.net.listen(Place::V4).expect("every machine has IPv4");
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    let crowd: Vec<_> = (0..CROWD + 100).map(|_| stage.connect(&crowded)).collect();
    stage.net.write(&mut peer, b"x");
    let listener = stage.driver.add_listener(socket, None);
    stage.driver.submit(Op::Accept { listener });
    waits_until(&mut stage, "the other is heard", |stage| {
        !stage.received(connection).is_empty()
    });
    stage.until("all are accepted", |stage| {
        stage.accepted().len() == crowd.len() + 1
    });
}

fn a_flood_of_datagrams_hides_no_connection<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    let (_, flooded) = stage.datagrams(Place::V4).expect("every machine has IPv4");
    let mut flood = stage.net.client(&flooded);
    (0..200).for_each(|_| stage.net.send(&mut flood, &flooded, None, b"flood"));
    stage.net.write(&mut peer, b"x");
    waits_until(&mut stage, "the other is heard", |stage| {
        stage.net.send(&mut flood, &flooded, None, b"flood");
        !stage.received(connection).is_empty()
    });
    stage.until("the flood is over", |stage| {
        stage.count(|event| matches!(event, Event::Datagram(..))) > 200
    });
}

// Time, the waker, and what can be asked.

fn a_waker_wakes_from_another_thread_once<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    for round in 1..=3 {
        let waker = stage.driver.waker();
        let thread = std::thread::spawn(move || (0..5).for_each(|_| waker.wake()));
        stage.until("it is woken", |stage| stage.has(&Event::Woken));
        thread.join().expect("waking does not fail");
        stage.until_quiet();
        // The five may fall into different waits.
        let woken = stage.events.len();
        assert!((round..=5 * round).contains(&woken), "{}", stage.seen());
        let waker = stage.driver.waker();
        (0..5).for_each(|_| waker.wake());
        stage.until_quiet();
        assert_eq!(
            stage.events.len(),
            woken + 1,
            "any number of calls before a wait are one"
        );
    }
}

fn a_wait_ends_at_its_time_and_not_before<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (_peer, connection) = stage.connection(&address);
    stage.until_quiet();
    for time in [
        Duration::from_micros(100),
        Duration::from_millis(3),
        Duration::from_millis(60),
    ] {
        let before = stage.driver.now();
        let mut done = vec![];
        stage
            .driver
            .wait(Some(before + time), &mut done)
            .expect("the driver goes on");
        let waited = stage.driver.now() - before;
        assert!(
            done.is_empty(),
            "nothing happens on {connection:?}: {done:?}"
        );
        assert!(
            waited >= time && waited < time + Duration::from_secs(5),
            "{waited:?} instead of {time:?}"
        );
    }
}

fn a_wait_whose_time_has_passed_still_says_what_is_ready<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    stage.until_quiet();
    stage.write_all(&mut peer, b"now");
    let mut passed = stage.driver.now();
    let deadline = Instant::now() + DEADLINE;
    while stage.received(connection) != b"now" {
        assert!(Instant::now() < deadline, "{}", stage.seen());
        let mut done = vec![];
        stage
            .driver
            .wait(Some(passed), &mut done)
            .expect("the driver goes on");
        done.into_iter()
            .for_each(|completion| stage.handle(completion));
        // What takes virtual time to arrive does not arrive in none.
        passed += Duration::from_millis(1);
    }
}

fn progress_is_seen_when_the_peer_reads<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection, _) = stage.stalled(&address);
    let mut before = 0;
    stage.until("nothing is read and nothing changes", |stage| {
        before = stage.driver.progress(connection);
        stage.until_quiet();
        stage.driver.progress(connection) == before
    });
    let mut bytes = vec![];
    stage.until("progress is made", |stage| {
        stage.net.read(&mut peer, usize::MAX, &mut bytes);
        stage.driver.progress(connection) != before
    });
    assert!(!bytes.is_empty());
}

fn details_and_accepted_tell_the_addresses<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (listener, address) = stage.listener(None);
    let (peer, connection) = stage.connection(&address);
    let expected = stage.net.address(&peer);
    assert!(
        stage.has(&Event::Accepted(listener, connection, expected)),
        "{}",
        stage.seen()
    );
    assert_eq!(stage.driver.details(connection).local, H::inet(&address));
    stage.close(connection, Closing::Now);
    assert_eq!(stage.driver.details(connection).local, None);
}

fn buffers_come_home_in_every_case<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (listener, address) = stage.listener(None);
    for round in 1..=4 {
        let mut crowd: Vec<_> = (0..40).map(|_| stage.connection(&address)).collect();
        for (peer, _) in &mut crowd {
            stage.net.write(peer, &pattern(0, 2000));
        }
        // Some of it has been received and some not, some of that was said and some not.
        stage.turn();
        for (_, connection) in crowd {
            stage.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
        }
        stage.until("all are Closed", |stage| {
            stage.count(|event| matches!(event, Event::Closed(_))) == 40 * round
        });
    }
    let mut crowd: Vec<_> = (0..20).map(|_| stage.connection(&address)).collect();
    for (mut peer, connection) in crowd.drain(..10) {
        stage.net.half_close(&mut peer);
        stage.until_event(&Event::Ended(connection));
        stage.close(connection, Closing::Now);
    }
    for (peer, connection) in crowd.drain(..5) {
        stage.net.reset(peer);
        stage.until_event(&Event::Failed(connection));
        stage.close(connection, Closing::Reset);
    }
    stage.close(listener, Closing::Reset);
    for (_, connection) in &crowd {
        stage.close(*connection, Closing::Now);
    }
    stage.assert_all_home();
}
