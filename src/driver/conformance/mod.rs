//! The promises of a driver, each a test that runs on every driver.
//!
//! A test is a function that is generic over a [`Harness`]: a driver and the peers that it talks
//! to. To add a driver, implement a harness (for a driver on real sockets: `impl SocketDriver`) and
//! add a line to [`promises!`]. To add a test, write it in the module of its subject and add its
//! name to the list. The numbers in the headings are those of the promises in `driver/mod.rs`.
//!
//! No test relies on sleeping. A `DriverTest` calls `wait` until the expected event is reported, or
//! panics with the last events. To check that something does *not* happen, it waits until several
//! waits in a row have reported nothing.

mod closing;
mod datagrams;
mod driver_test;
mod ends;
mod exhaustion;
mod fairness;
mod handover;
mod harness;
mod kernel;
mod leasing;
mod listeners;
mod loopback;
mod relay;
mod simulated;
mod streams;
mod time;

use self::closing::*;
use self::datagrams::*;
use self::ends::*;
use self::exhaustion::*;
use self::fairness::*;
use self::handover::*;
use self::harness::Harness;
use self::leasing::*;
use self::listeners::*;
use self::relay::*;
use self::streams::*;
use self::time::*;
use super::buffers::BUFFER_COUNT;

/// More clients than there are buffers.
const CLIENT_COUNT: usize = BUFFER_COUNT as usize + 44;

/// A `wait` that reports more completions than this is unbounded (promise 11).
const COMPLETIONS_MAX: usize = BUFFER_COUNT as usize + 64;

/// Under load, a completion that is ready must be reported within this number of waits.
const WAITS_MAX: usize = 40;

/// Defines one test for each pair of a promise and a driver.
macro_rules! promises {
    (drivers: $($driver:ident: $harness:ty),+; promises: $list:tt) => {
        $(promises!(@driver $driver, $harness, $list);)+
    };
    (@driver $driver:ident, $harness:ty, [$($promise:ident),+ $(,)?]) => {
        mod $driver {
            $(#[test]
            fn $promise() {
                use super::Harness as _;
                match <$harness>::unavailable() {
                    None => super::$promise::<$harness>(),
                    Some(error) => eprintln!("NOT TESTED: the driver is unavailable on this machine: {error}"),
                }
            })+
        }
    };
}

promises! {
    drivers:
        epoll: crate::driver::conformance::loopback::Loopback<crate::driver::epoll::Epoll>,
        uring: crate::driver::conformance::loopback::Loopback<crate::driver::uring::Uring>,
        uring_without_limits: crate::driver::conformance::loopback::Loopback<
            crate::driver::conformance::loopback::UringWithoutLimits,
        >,
        sim: crate::driver::conformance::simulated::Simulated<false>,
        sim_with_faults: crate::driver::conformance::simulated::Simulated<true>;
    promises: [
        submit_has_no_effect_before_the_next_wait,
        one_accept_and_one_receive_repeat_until_they_are_ended,
        the_first_bytes_of_several_clients_all_arrive,
        each_send_has_exactly_one_completion,
        all_sends_of_a_failed_connection_complete_with_one_failed,
        a_stalled_send_is_reported_once_and_completes_when_all_bytes_are_sent,
        a_peer_that_reads_slowly_receives_every_byte,
        queued_sends_keep_their_order,
        long_streams_are_echoed_intact,
        unix_streams_are_echoed_intact,
        idle_connections_hold_no_buffer,
        without_buffers_receiving_waits_and_no_connection_fails,
        without_buffers_a_connection_can_still_be_closed,
        datagrams_leave_enough_buffers_for_streams,
        buffers_returned_right_after_they_ran_out_are_received_into,
        a_hang_up_without_buffers_does_not_spin,
        peers_that_do_not_read_leave_buffers_to_datagrams,
        peers_that_do_not_read_do_not_starve_others,
        after_pause_nothing_new_is_received_until_receive,
        at_most_64_kib_are_held_for_a_peer_that_does_not_read,
        after_close_only_closed_is_reported,
        a_closed_token_is_never_reused_and_operations_on_it_are_ignored,
        close_now_sends_a_fin_after_all_sent_bytes,
        close_reset_resets_the_connection,
        close_returns_the_buffers_of_stalled_sends,
        a_closed_listener_refuses_clients_and_keeps_its_connections,
        a_draining_listener_accepts_every_queued_client_even_without_permits,
        a_draining_datagram_socket_answers_every_queued_datagram,
        a_flood_of_datagrams_does_not_keep_a_drain_from_ending,
        a_flood_of_clients_does_not_keep_a_drain_from_ending,
        without_a_permit_a_listener_pauses_and_resumes_when_one_is_returned,
        new_permits_apply_from_the_next_accept,
        without_descriptors_accept_reports_one_error_and_does_not_spin,
        a_client_that_was_reset_in_the_queue_does_not_block_the_next,
        a_flood_on_one_connection_does_not_starve_another,
        a_flood_of_clients_does_not_starve_a_connection,
        a_flood_of_datagrams_does_not_starve_a_connection,
        urgent_data_is_received_in_order,
        urgent_data_is_relayed_in_order,
        the_end_is_reported_once_after_all_bytes,
        an_end_during_a_pause_is_reported_when_receiving_resumes,
        a_reset_is_reported_as_one_failed_and_no_end,
        after_shut_down_the_peer_sees_a_fin_and_is_still_received_from,
        datagrams_of_every_size_are_echoed_intact,
        a_truncated_datagram_is_reported_with_its_original_size,
        a_reply_is_sent_from_the_address_that_received_the_datagram,
        an_ipv6_reply_is_sent_from_the_address_that_received_the_datagram,
        a_reply_to_a_closed_peer_does_not_end_the_datagram_socket,
        a_datagram_peer_that_does_not_read_does_not_delay_others,
        a_mixed_batch_of_datagrams_is_echoed_one_by_one_and_in_order,
        each_reply_of_a_batch_is_sent_from_the_address_that_received_its_datagram,
        datagrams_sent_as_one_message_are_echoed_one_by_one,
        closed_datagram_peers_cost_no_other_peer_its_reply,
        relayed_streams_are_echoed_intact,
        relayed_messages_of_every_size_are_echoed_intact,
        the_end_is_reported_once_after_all_relayed_bytes,
        a_half_close_behind_a_full_pipe_loses_no_bytes,
        a_relayed_peer_that_does_not_read_stalls_and_does_not_delay_others,
        receive_ends_relaying_and_held_bytes_are_still_sent,
        pause_ends_relaying_until_it_is_requested_again,
        a_shut_down_waits_until_the_pipe_is_empty,
        close_discards_the_bytes_in_the_pipe,
        a_reset_during_relaying_is_reported_as_one_failed,
        without_free_pipes_bytes_are_delivered,
        without_descriptors_for_pipes_bytes_are_delivered,
        unused_pipes_are_closed_to_accept_a_client,
        closing_relayed_connections_leaks_no_descriptors,
        an_idle_connection_continues_in_another_driver,
        traffic_during_many_handovers_is_echoed_intact,
        many_connections_are_handed_over_during_traffic,
        bulk_traffic_during_many_handovers_is_echoed_intact,
        a_handover_keeps_bytes_in_a_pipe_ahead_of_queued_sends,
        after_a_handover_unsent_bytes_are_sent_first_and_once,
        after_a_handover_received_bytes_are_sent_behind_unsent_ones,
        unsent_bytes_larger_than_a_buffer_are_handed_over_repeatedly,
        sends_submitted_before_take_are_handed_over,
        after_a_handover_the_end_of_a_half_closed_peer_is_reported,
        close_after_detach_reports_only_closed,
        a_failed_connection_is_not_detached,
        only_a_detached_connection_can_be_taken,
        leased_buffers_are_sent_on_a_stream,
        receiving_continues_while_a_send_is_stalled,
        a_leased_buffer_is_sent_as_datagrams_of_the_envelopes_size,
        leasing_leaves_enough_buffers_for_receiving,
        a_waker_wakes_from_another_thread_and_once_per_wait,
        a_wait_ends_at_its_deadline_and_not_before,
        a_wait_past_its_deadline_still_reports_ready_completions,
        progress_changes_when_the_peer_reads,
        accepted_and_details_report_the_addresses,
        buffers_are_returned_however_a_connection_ends,
        a_dropped_driver_closes_its_sockets,
    ]
}
