//! The account over simulated time: everything that can become of a message, told apart and exact.

use proptest::prelude::*;

use super::*;
use crate::probe::compare::Expect;
use crate::probe::exchange::Account;
use crate::probe::payload::{Messages, Payload};
use crate::probe::report::Verdict;

const TIMEOUT: Duration = Duration::from_millis(100);

/// An account of messages, and a clock.
struct Desk {
    account: Account<Payload>,
    begin: Instant,
}

impl Desk {
    fn new(size: usize) -> Self {
        let payload = Payload::new(size, 0xfeed, Expect::Echo);
        Self {
            account: Account::new(payload, TIMEOUT),
            begin: Instant::now(),
        }
    }

    fn ledger(&mut self) -> &mut Ledger {
        &mut self.account.ledger
    }

    fn bytes(&self, number: u64) -> Vec<u8> {
        self.account.messages.bytes(number)
    }

    fn at(&self, millis: u64) -> Instant {
        self.begin + Duration::from_millis(millis)
    }

    fn send(&mut self, millis: u64) -> u64 {
        let now = self.at(millis);
        self.ledger().handle_due(now, 1);
        self.ledger().handle_sent(now)
    }

    fn comes(&mut self, millis: u64, bytes: &[u8], from_service: bool) -> AnswerKind {
        let now = self.at(millis);
        self.account.handle_time(now);
        let what = self.account.recognize(bytes, bytes.len());
        self.account
            .handle_answer(now, what, bytes, bytes.len(), from_service, None)
    }

    fn echo(&mut self, millis: u64, number: u64) -> AnswerKind {
        let bytes = self.bytes(number);
        self.comes(millis, &bytes, true)
    }

    /// What the account says; it adds up.
    fn sum(&self) -> String {
        let tally = self.account.ledger.tally();
        let ended = tally.received + tally.late + tally.lost + tally.corrupt;
        let outstanding = self.account.ledger.outstanding();
        assert_eq!(tally.sent, ended + outstanding, "it adds up");
        match tally.errors.is_empty() {
            true => tally.account(),
            false => format!("{}: {}", tally.account(), tally.errors),
        }
    }

    #[track_caller]
    fn assert_says(&self, meant: &str) {
        assert_eq!(self.sum(), meant);
    }
}

#[test]
fn lost_never_comes_back_and_late_comes_after_the_timeout() {
    let mut desk = Desk::new(64);
    let (lost, late, exact) = (desk.send(0), desk.send(1), desk.send(2));
    assert_eq!(desk.ledger().poll_timeout(), Some(desk.at(100)));
    assert_eq!(desk.echo(102, exact), AnswerKind::Received, "to the moment");
    desk.assert_says("3 sent, 1 received, 2 lost (66.7 %): 2 timed out");
    let patience = desk.ledger().poll_patience();
    assert_eq!(patience, Some(desk.at(202)), "of {lost}");
    assert_eq!(desk.echo(150, late), AnswerKind::Late);
    desk.assert_says("3 sent, 1 received, 1 lost (33.3 %), 1 late, 1 reordered: 1 timed out");
    assert_eq!(desk.ledger().tally().verdict(), Verdict::Flawed);
}

/// What had arrived in time and was read late is in time: the kernel's timestamp says so.
#[test]
fn what_was_given_up_too_soon_is_received_after_all() {
    let mut desk = Desk::new(64);
    let number = desk.send(0);
    let given_up = desk.at(100);
    assert_eq!(desk.ledger().handle_timeout(given_up), Some(number));
    let arrived = desk.at(99);
    let answer = desk
        .ledger()
        .handle_answer(arrived, Recognized::Whole(number), 64, true);
    assert_eq!(answer.kind, AnswerKind::Received);
    desk.assert_says("1 sent, 1 received, 0 lost (0 %)");
}

/// A silent service was waited for through a second timeout.
#[test]
fn silence_is_not_worth_more_than_one_timeout() {
    let mut desk = Desk::new(64);
    desk.send(0);
    let given_up = desk.at(100);
    assert!(desk.ledger().handle_timeout(given_up).is_some());
    assert_eq!(desk.ledger().poll_patience(), None);
    assert_eq!(desk.ledger().tally().verdict(), Verdict::Unreached);
}

#[test]
fn an_answer_from_elsewhere_is_a_loss_until_the_service_answers() {
    let mut desk = Desk::new(64);
    let number = desk.send(0);
    assert_eq!(desk.comes(1, b"stranger", false), AnswerKind::Stray);
    let bytes = desk.bytes(number);
    assert_eq!(desk.comes(2, &bytes, false), AnswerKind::Misaddressed);
    desk.assert_says("1 sent, 0 received, 1 lost (100 %), 1 misaddressed, 1 stray: 1 mismatch");
    assert_eq!(desk.echo(3, number), AnswerKind::Received);
    assert_eq!(desk.comes(4, b"what?", true), AnswerKind::Stray);
    desk.assert_says("1 sent, 1 received, 0 lost (0 %), 1 misaddressed, 2 strays: 1 mismatch");
    assert_eq!(desk.ledger().tally().verdict(), Verdict::Flawed);
}

#[test]
fn what_was_sent_in_vain_is_lost_for_that_reason() {
    let mut desk = Desk::new(64);
    let (refused, other) = (desk.send(0), desk.send(1));
    assert!(desk.ledger().handle_failure(refused, &Cause::Refused));
    assert!(!desk.ledger().handle_failure(refused, &Cause::Refused));
    assert_eq!(desk.ledger().handle_end(&Cause::Reset), 1, "{other}");
    desk.assert_says("2 sent, 0 received, 2 lost (100 %): 1 refused, 1 reset");
    let patience = desk.ledger().poll_patience();
    assert_eq!(patience, None, "nothing may still come");
    assert_eq!(desk.ledger().tally().verdict(), Verdict::Unreached);
}

#[test]
fn empty_datagrams_are_counted_in_order() {
    let mut desk = Desk::new(0);
    for millis in 0..3 {
        desk.send(millis);
    }
    assert_eq!(desk.comes(5, b"", true), AnswerKind::Received);
    assert_eq!(desk.comes(5, b"", true), AnswerKind::Received);
    assert_eq!(desk.comes(150, b"", true), AnswerKind::Late);
    assert_eq!(desk.comes(151, b"", true), AnswerKind::Duplicate);
    desk.assert_says("3 sent, 2 received, 0 lost (0 %), 1 late, 1 duplicate");
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut desk = Desk::new(16);
    desk.send(0);
    desk.account.handle_time(desk.at(100));
    for _ in 0..REMEMBERED_MAX + 10 {
        let number = desk.send(200);
        assert_eq!(desk.echo(201, number), AnswerKind::Received);
    }
    assert!(desk.ledger().entries.len() <= REMEMBERED_MAX);
    assert_eq!(desk.ledger().tally().lost, 1);
    desk.sum();
}

#[test]
fn what_could_not_be_sent_is_due_again() {
    let mut desk = Desk::new(16);
    let number = desk.send(0);
    desk.ledger().handle_unsent(1);
    assert_eq!(desk.ledger().unsent(), 1);
    assert_eq!(desk.ledger().poll_timeout(), None);
    let later = desk.at(7);
    assert_eq!(desk.ledger().handle_sent(later), number);
    assert_eq!(desk.ledger().poll_timeout(), Some(desk.at(107)));
    assert_eq!(desk.echo(8, number), AnswerKind::Received);
    let rtt = desk.ledger().tally().latencies.max();
    assert_eq!(rtt, Duration::from_millis(8), "since it was due");
    assert_eq!(desk.ledger().tally().delayed, 1, "and that was our delay");
}

/// A load counted answers outside of the time that it measures: 10 of 0 were corrupt.
#[test]
fn only_messages_that_were_due_in_the_window_count() {
    let mut desk = Desk::new(64);
    desk.account.ledger = Ledger::new(TIMEOUT, Some(desk.at(100)..desk.at(200)));
    let numbers: Vec<u64> = [99, 100, 199, 200].map(|millis| desk.send(millis)).into();
    for number in &numbers {
        desk.echo(250, *number);
        desk.echo(251, *number);
    }
    {
        let tally = desk.ledger().tally();
        assert_eq!((tally.sent, tally.whole(), tally.bytes), (2, 2, 128));
        assert_eq!((tally.late, tally.latencies.len()), (1, 2));
    }
    let (refused, corrupt) = (desk.send(300), desk.send(300));
    desk.ledger().handle_failure(refused, &Cause::Refused);
    let mut bytes = desk.bytes(corrupt);
    bytes[40] ^= 1;
    desk.comes(301, &bytes, true);
    desk.sum();
}

/// They were a stray each, and the message was lost.
#[test]
fn wrong_bytes_of_a_stream_are_those_of_the_oldest_message() {
    let mut desk = Desk::new(64);
    desk.send(0);
    desk.send(1);
    let (now, wrong) = (desk.at(2), [0; 64]);
    let is_known = desk.account.handle_piece(now, &wrong);
    assert!(!is_known, "where is the next?");
    desk.ledger().handle_end(&Cause::Mismatch);
    desk.assert_says("2 sent, 0 received, 1 lost (50 %), 1 corrupt: 2 mismatch");
    assert!(!desk.account.handle_piece(now, &wrong));
    // Nothing is outstanding.
    desk.assert_says("2 sent, 0 received, 1 lost (50 %), 1 corrupt, 1 stray: 3 mismatch");
}

/// A copy of a message: how long it takes, and the bit that is turned in it, or all from 512 on.
type Copy = (u64, Option<usize>);

proptest! {
    /// Every mixture of loss, delay, duplication, reordering and corruption: the account is the
    /// plan, and adds up.
    #[test]
    fn the_account_of_every_mixture_is_its_plan(
        plan in prop::collection::vec(
            prop::collection::vec((1_u64..250, prop::option::of(0_usize..520)), 0..4),
            1..200,
        ),
    ) {
        let mut desk = Desk::new(64);
        let mut model = Tally::default();
        let mut events: Vec<(u64, usize, Option<Copy>)> = Vec::new();
        for (index, copies) in plan.iter().enumerate() {
            let sent = 10 * index as u64;
            events.push((sent, index, None));
            events.extend(copies.iter().map(|copy| (sent + copy.0, index, Some(*copy))));
        }
        // Stable: copies of the same moment keep their order, behind what is sent then.
        events.sort_by_key(|(time, _, copy)| (*time, copy.is_some()));
        let mut came = vec![false; plan.len()];
        let mut latest = None;
        for (time, index, copy) in events {
            let Some((delay, bit)) = copy else {
                desk.send(time);
                model.sent += 1;
                continue;
            };
            let mut bytes = desk.bytes(index as u64);
            if let Some(bit) = bit {
                match bytes.get_mut(bit / 8) {
                    Some(byte) => *byte ^= 1 << (bit % 8),
                    None => bytes.iter_mut().for_each(|byte| *byte ^= 0xff),
                }
            }
            let kind = desk.comes(time, &bytes, true);
            let meant = match (came[index], bit, delay) {
                // With all its bytes changed it is no message that is known.
                (_, Some(512..), _) => AnswerKind::Stray,
                (true, ..) => AnswerKind::Duplicate,
                (false, Some(_), _) => AnswerKind::Corrupt,
                (false, None, 0..=100) => AnswerKind::Received,
                (false, None, _) => AnswerKind::Late,
            };
            prop_assert_eq!(kind, meant, "message {} at {}", index, time);
            match meant {
                AnswerKind::Duplicate => model.duplicates += 1,
                AnswerKind::Corrupt => model.corrupt += 1,
                AnswerKind::Received => model.received += 1,
                AnswerKind::Stray => {
                    model.strays += 1;
                    continue;
                }
                _ => model.late += 1,
            }
            if matches!(meant, AnswerKind::Received | AnswerKind::Late) {
                model.reordered += u64::from(latest > Some(index));
                latest = latest.max(Some(index));
            }
            came[index] = true;
        }
        desk.account.handle_time(desk.at(100_000));
        model.lost = came.iter().filter(|came| !**came).count() as u64;
        desk.sum();
        prop_assert_eq!(desk.ledger().tally().account(), model.account());
    }
}
