//! What a connection does with each event, and which states can follow which.

use proptest::prelude::*;

use super::*;

fn open(one_shot: bool) -> Stream {
    let mut stream = Stream::new(Reply::Echo, one_shot);
    let first = if one_shot { Step::Receive } else { Step::Relay };
    assert_eq!(stream.poll_step(), Some(first));
    assert_eq!(stream.poll_step(), None);
    stream
}

#[test]
fn echoes_until_the_peer_half_closes_then_closes() {
    let mut stream = open(false);
    for _ in 0..3 {
        assert_eq!(stream.handle_received(&mut [1; 10]), Answer::Send);
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(10);
        assert_eq!(stream.poll_step(), None);
    }
    stream.handle_end();
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn after_a_half_close_pending_output_is_sent_before_the_close() {
    let mut stream = open(false);
    stream.handle_received(&mut [1; 10]);
    stream.handle_end();
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(4);
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(6);
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn a_peer_that_does_not_read_is_no_longer_read() {
    let mut stream = open(false);
    stream.handle_received(&mut vec![1; HELD_BYTES_MAX as usize]);
    assert_eq!(stream.poll_step(), None);
    stream.handle_received(&mut [1]);
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(1);
    stream.handle_sent(HELD_BYTES_MAX / 2);
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(HELD_BYTES_MAX / 4);
    assert_eq!(stream.poll_step(), Some(Step::Relay));
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn a_stalled_send_pauses_receiving_until_the_peer_has_read() {
    let mut stream = open(false);
    stream.handle_received(&mut [1; 10]);
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    assert_eq!(
        stream.poll_step(),
        None,
        "few bytes are unsent, but none was read"
    );
    stream.handle_relayed(0, 0);
    assert_eq!(stream.poll_step(), None, "no byte was read");
    stream.handle_sent(4);
    assert_eq!(stream.poll_step(), Some(Step::Relay));
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn after_a_stall_receiving_resumes_when_few_bytes_are_unsent() {
    let mut stream = open(false);
    stream.handle_received(&mut vec![1; 2 * RESUME_BYTES as usize]);
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    stream.handle_sent(RESUME_BYTES - 1);
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(1);
    assert_eq!(stream.poll_step(), Some(Step::Relay));
}

#[test]
fn relaying_that_stalls_pauses_and_resumes() {
    let mut stream = open(false);
    stream.handle_relayed(100, 30);
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    assert_eq!(stream.poll_step(), None);
    stream.handle_relayed(0, 10);
    assert_eq!(stream.poll_step(), Some(Step::Relay));
    // The bytes that are still unsent may stall again.
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), Some(Step::Pause));
}

#[test]
fn a_stall_pauses_the_discarding_of_input_too_and_delays_the_shutdown() {
    let mut stream = open(false);
    stream.handle_received(&mut [1; 10]);
    stream.finish();
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(10);
    assert_eq!(stream.poll_step(), Some(Step::ShutDown));
    assert_eq!(stream.poll_step(), Some(Step::Receive));
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn a_stall_after_the_peer_has_finished_changes_nothing() {
    let mut stream = open(false);
    stream.handle_received(&mut [1; 10]);
    stream.handle_end();
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(10);
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn a_stall_with_nothing_unsent_pauses_nothing() {
    let mut stream = open(false);
    stream.handle_stalled();
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn one_shot_answers_the_first_read_then_shuts_down_and_lingers() {
    let mut stream = open(true);
    assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Send);
    assert_eq!(stream.poll_step(), None);
    assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Drop);
    stream.handle_sent(5);
    assert_eq!(stream.poll_step(), Some(Step::ShutDown));
    assert!(stream.is_lingering());
    assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Drop);
    assert_eq!(stream.poll_step(), None);
    stream.handle_end();
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn finishing_sends_pending_output_first_and_shuts_down_once() {
    let mut stream = open(false);
    stream.handle_received(&mut [1; 5]);
    stream.finish();
    assert_eq!(stream.poll_step(), Some(Step::Receive));
    assert_eq!(stream.poll_step(), None);
    stream.handle_sent(5);
    assert_eq!(stream.poll_step(), Some(Step::ShutDown));
    stream.finish();
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn discard_leaves_nothing_to_send() {
    let mut stream = Stream::new(Reply::Discard, false);
    assert_eq!(stream.handle_received(&mut [1; 50]), Answer::Drop);
    assert_eq!(stream.unsent(), 0);
    stream.handle_end();
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn only_unchanged_answers_are_relayed() {
    for (reply, one_shot) in [
        (Reply::Upper, false),
        (Reply::Discard, false),
        (Reply::Echo, true),
    ] {
        let step = Stream::new(reply, one_shot).poll_step();
        assert_eq!(step, Some(Step::Receive), "{reply:?} {one_shot}");
    }
}

#[test]
fn relayed_bytes_are_unsent_until_the_driver_reports_them_as_sent() {
    let mut stream = open(false);
    stream.handle_relayed(10, 4);
    assert_eq!(stream.unsent(), 6);
    stream.handle_end();
    assert_eq!(stream.poll_step(), None);
    stream.handle_relayed(0, 6);
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn a_connection_that_finishes_stops_relaying_before_it_shuts_down() {
    let mut stream = open(false);
    stream.finish();
    assert_eq!(stream.poll_step(), Some(Step::Receive));
    assert_eq!(stream.poll_step(), Some(Step::ShutDown));
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn bytes_relayed_while_the_fin_was_requested_are_still_sent() {
    let mut stream = open(false);
    stream.finish();
    while stream.poll_step().is_some() {}
    assert!(stream.is_lingering());
    stream.handle_relayed(100, 30);
    assert_eq!((stream.unsent(), stream.poll_step()), (70, None));
    assert!(!stream.is_lingering());
    stream.handle_end();
    assert_eq!(stream.poll_step(), None);
    stream.handle_relayed(0, 70);
    assert_eq!(stream.poll_step(), Some(Step::Close));
}

#[test]
fn a_relayed_peer_that_does_not_read_is_paused_and_relayed_again() {
    let mut stream = open(false);
    stream.handle_relayed(HELD_BYTES_MAX + 1, 0);
    assert_eq!(stream.poll_step(), Some(Step::Pause));
    stream.handle_relayed(0, HELD_BYTES_MAX + 1 - RESUME_BYTES);
    assert_eq!(stream.poll_step(), Some(Step::Relay));
    assert_eq!(stream.poll_step(), None);
}

#[test]
fn a_resumed_connection_does_what_the_previous_one_would_have_done() {
    let resume = |stream: &Stream, unsent| Stream::resume(stream.progress(), unsent);
    let mut stream = open(false);
    stream.handle_received(&mut [1; 10]);
    let mut resumed = resume(&stream, 10);
    assert_eq!(resumed.poll_step(), None);
    resumed.handle_sent(6);
    assert_eq!(resumed.poll_step(), Some(Step::Relay));
    resumed.handle_end();
    assert_eq!(resumed.poll_step(), None);
    let mut resumed = resume(&resumed, 4);
    assert_eq!(resumed.poll_step(), None);
    resumed.handle_sent(4);
    assert_eq!(resumed.poll_step(), Some(Step::Close));

    stream.handle_sent(10);
    stream.finish();
    while stream.poll_step().is_some() {}
    let mut resumed = resume(&stream, 0);
    assert!(resumed.is_lingering());
    assert_eq!(resumed.poll_step(), Some(Step::Receive));
    assert_eq!(resumed.handle_received(&mut [1; 5]), Answer::Drop);
    resumed.handle_end();
    assert_eq!(resumed.poll_step(), Some(Step::Close));
}

/// The states of the table at the top of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Flushing,
    Lingering,
    Trailing,
    Ending,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Received,
    Relayed,
    Sent,
    Stalled,
    Ended,
    Finished,
    HandedOver,
    Stepped(Step),
}

/// Every transition to another state: the second table at the top of the file.
const TRANSITIONS: [(State, Event, State); 11] = [
    (State::Open, Event::Received, State::Flushing),
    (State::Open, Event::Finished, State::Flushing),
    (
        State::Flushing,
        Event::Stepped(Step::ShutDown),
        State::Lingering,
    ),
    (State::Lingering, Event::Relayed, State::Trailing),
    (State::Trailing, Event::Relayed, State::Lingering),
    // Bytes that were relayed are sent like any other after a hand-over.
    (State::Trailing, Event::Sent, State::Lingering),
    (State::Open, Event::Ended, State::Ending),
    (State::Flushing, Event::Ended, State::Ending),
    (State::Lingering, Event::Ended, State::Ending),
    (State::Trailing, Event::Ended, State::Ending),
    (State::Ending, Event::Stepped(Step::Close), State::Closed),
];

fn state(stream: &Stream) -> State {
    match (stream.input, stream.shut_down, stream.unsent) {
        (Input::Answered, false, _) => State::Open,
        (Input::Ignored, false, _) => State::Flushing,
        (Input::Ignored, true, 0) => State::Lingering,
        (Input::Ignored, true, _) => State::Trailing,
        (Input::Finished, _, _) => State::Ending,
        (Input::Answered, true, _) => panic!("no state: {stream:?}"),
    }
}

/// A stream beside a driver that does what the steps say, a little late.
struct History {
    stream: Stream,
    state: State,
    // The last of `Receive`, `Relay` and `Pause`.
    asked: Step,
    // Bytes that the driver relayed and has not reported.
    unreported: u32,
    // Receiving has to be paused.
    stalled: bool,
    // The driver is another one by now, which has been given what was unsent.
    was_handed_over: bool,
    transitions: Vec<(State, Event, State)>,
}

impl History {
    fn new(reply: Reply, one_shot: bool) -> Self {
        let mut history = Self {
            stream: Stream::new(reply, one_shot),
            state: State::Open,
            asked: Step::Pause,
            unreported: 0,
            stalled: false,
            was_handed_over: false,
            transitions: Vec::new(),
        };
        history.run_steps();
        history
    }

    fn enter(&mut self, event: Event, next: State) {
        let transition = (self.state, event, next);
        if self.state != next {
            assert!(
                TRANSITIONS.contains(&transition),
                "not in the table: {transition:?}"
            );
            self.transitions.push(transition);
        }
        self.state = next;
    }

    fn run_steps(&mut self) {
        while let Some(step) = self.stream.poll_step() {
            match step {
                Step::Receive | Step::Relay | Step::Pause => {
                    assert_ne!(self.state, State::Ending, "{step:?} after the peer's end");
                    self.asked = step;
                }
                Step::ShutDown | Step::Close => assert_eq!(self.stream.unsent(), 0),
            }
            let next = match step {
                Step::Close => State::Closed,
                _ => state(&self.stream),
            };
            self.enter(Event::Stepped(step), next);
            if step == Step::Close {
                break;
            }
        }
    }

    fn handle(&mut self, event: Event, size: u32) {
        let unsent = self.stream.unsent();
        let mut sent = 0;
        match event {
            // Bytes that were taken before a pause may still arrive after it, but not many.
            Event::Received if self.asked != Step::Pause => {
                self.stream.handle_received(&mut vec![0; size as usize]);
            }
            Event::Relayed if self.asked == Step::Relay && self.unreported == 0 => {
                self.unreported = size;
            }
            Event::Relayed if self.stream.may_relay() => {
                let received = size.min(self.unreported);
                self.unreported -= received;
                sent = (unsent + received).min(size / 2);
                self.stream.handle_relayed(received, sent);
            }
            // A driver reports as sent only what it was given, which is never after a shutdown.
            Event::Sent if !self.stream.is_shut_down() || self.was_handed_over => {
                sent = unsent.min(size);
                self.stream.handle_sent(sent);
            }
            Event::Stalled => {
                self.stream.handle_stalled();
                self.stalled = unsent > 0;
            }
            Event::Ended => {
                self.stream.handle_relayed_if_any(&mut self.unreported);
                self.enter(Event::Relayed, state(&self.stream));
                self.stream.handle_end();
            }
            Event::Finished => self.stream.finish(),
            // What the driver has relayed is reported before it is left.
            Event::HandedOver => {
                self.stream.handle_relayed_if_any(&mut self.unreported);
                self.enter(Event::Relayed, state(&self.stream));
                let unsent = self.stream.unsent();
                self.stream = Stream::resume(self.stream.progress(), unsent);
                self.asked = Step::Pause;
                self.stalled = unsent > 0;
                self.was_handed_over = true;
            }
            _ => return,
        }
        self.enter(event, state(&self.stream));
        if sent > 0 && self.stream.unsent() <= RESUME_BYTES {
            self.stalled = false;
        }
        self.run_steps();
    }

    fn check(&self) {
        assert!(self.stream.unsent() < HELD_BYTES_MAX + 80_000);
        assert!(
            self.stream.is_answering() || self.asked != Step::Relay,
            "ignored bytes are not relayed"
        );
        assert!(
            !self.stalled || self.asked == Step::Pause,
            "receiving is paused while a send is stalled"
        );
        let must_wait = self.stalled || self.stream.unsent() > RESUME_BYTES;
        assert!(
            must_wait || self.asked != Step::Pause,
            "receiving resumes when few bytes are unsent"
        );
    }

    /// The peer half-closes and reads everything.
    fn end(&mut self) {
        self.handle(Event::Ended, 0);
        if self.state != State::Closed {
            self.stream.handle_sent(self.stream.unsent());
            self.run_steps();
        }
        assert_eq!(self.state, State::Closed);
    }
}

impl Stream {
    fn handle_relayed_if_any(&mut self, received: &mut u32) {
        if *received > 0 {
            self.handle_relayed(std::mem::take(received), 0);
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Received),
        6 => Just(Event::Relayed),
        4 => Just(Event::Sent),
        2 => Just(Event::Stalled),
        1 => Just(Event::Finished),
        1 => Just(Event::HandedOver),
    ]
}

proptest! {
    /// Whatever happens in whatever order: the state changes only as the table says, the unsent
    /// bytes are bounded by what was under way beyond the limit, receiving is paused while a send
    /// is stalled and resumes when few bytes are unsent, and the end is always reached.
    #[test]
    fn every_history_follows_the_table_and_ends_in_a_close(
        (reply, one_shot) in prop_oneof![
            4 => Just((Reply::Echo, false)),
            1 => Just((Reply::Echo, true)),
            1 => Just((Reply::Upper, false)),
            1 => Just((Reply::Discard, false)),
        ],
        events in proptest::collection::vec((event(), 1..40_000u32), 0..200),
    ) {
        let mut history = History::new(reply, one_shot);
        for (event, size) in events {
            history.handle(event, size);
            history.check();
        }
        history.end();
    }
}

#[test]
fn every_transition_of_the_table_happens() {
    let mut seen = Vec::new();
    let mut record = |one_shot, events: &[(Event, u32)]| {
        let mut history = History::new(Reply::Echo, one_shot);
        for (event, size) in events {
            history.handle(*event, *size);
        }
        history.end();
        seen.append(&mut history.transitions);
    };
    record(false, &[]);
    record(true, &[(Event::Received, 10), (Event::Sent, 10)]);
    record(false, &[(Event::Received, 10), (Event::Finished, 0)]);
    // The driver relays 100 bytes, which it reports in parts after the FIN was requested.
    let trails = [
        (Event::Relayed, 100),
        (Event::Finished, 0),
        (Event::Relayed, 99),
    ];
    record(false, &trails);
    record(
        false,
        &[trails.as_slice(), &[(Event::Relayed, 1000)]].concat(),
    );
    let after = [(Event::HandedOver, 0), (Event::Sent, 1000)];
    record(false, &[trails.as_slice(), &after].concat());
    for transition in TRANSITIONS {
        assert!(seen.contains(&transition), "never seen: {transition:?}");
    }
}
