//! The account over made-up time: everything that can become of a message, told apart and exact.

use super::*;
use crate::probe::args::Expect;

const TIMEOUT: Duration = Duration::from_millis(100);

/// A ledger, its messages and a clock.
struct Desk {
    ledger: Ledger,
    payload: Payload,
    begin: Instant,
}

impl Desk {
    fn new(size: usize) -> Self {
        let payload = Payload::new(size, 0xfeed, Expect::Echo);
        Self {
            ledger: Ledger::new(payload, TIMEOUT),
            payload,
            begin: Instant::now(),
        }
    }

    fn at(&self, millis: u64) -> Instant {
        self.begin + Duration::from_millis(millis)
    }

    fn send(&mut self, millis: u64) -> u64 {
        self.ledger.handle_sent(self.at(millis))
    }

    fn comes(&mut self, millis: u64, bytes: &[u8], from_peer: bool) -> Kind {
        let now = self.at(millis);
        while self.ledger.handle_timeout(now).is_some() {}
        let answer = self
            .ledger
            .handle_answer(now, bytes, bytes.len(), from_peer);
        answer.kind
    }

    fn echo(&mut self, millis: u64, number: u64) -> Kind {
        let bytes = self.payload.bytes(number);
        self.comes(millis, &bytes, true)
    }

    /// What the account says: `sent received late lost corrupt misaddressed`, then what is beside.
    fn says(&self) -> String {
        let tally = self.ledger.tally();
        let ended = tally.received + tally.late + tally.lost + tally.corrupt + tally.misaddressed;
        assert_eq!(tally.sent, ended + self.ledger.in_flight(), "it adds up");
        let mut text = format!("{} sent", tally.sent);
        for (count, what) in [
            (tally.received, "received"),
            (tally.late, "late"),
            (tally.lost, "lost"),
            (tally.corrupt, "corrupt"),
            (tally.misaddressed, "misaddressed"),
            (self.ledger.in_flight(), "in flight"),
            (tally.duplicates, "duplicates"),
            (tally.reordered, "reordered"),
        ] {
            if count > 0 {
                text += &format!(", {count} {what}");
            }
        }
        if !tally.errors.is_empty() {
            text += &format!(" ({})", tally.errors);
        }
        text
    }
}

#[test]
fn each_message_is_received_once_and_every_further_copy_is_a_duplicate() {
    let mut desk = Desk::new(64);
    let number = desk.send(0);
    assert_eq!(desk.says(), "1 sent, 1 in flight");
    assert_eq!(desk.echo(5, number), Kind::Received);
    assert_eq!(desk.echo(6, number), Kind::Duplicate);
    assert_eq!(desk.echo(900, number), Kind::Duplicate);
    assert_eq!(desk.says(), "1 sent, 1 received, 2 duplicates");
    assert_eq!(desk.ledger.tally().verdict(), Verdict::Good);
}

#[test]
fn lost_is_who_never_comes_and_late_who_comes_after_the_timeout() {
    let mut desk = Desk::new(64);
    let (lost, late, exact) = (desk.send(0), desk.send(1), desk.send(2));
    assert_eq!(desk.ledger.poll_timeout(), Some(desk.at(100)));
    assert_eq!(desk.echo(102, exact), Kind::Received, "to the moment");
    assert_eq!(desk.says(), "3 sent, 1 received, 2 lost (2 timed out)");
    assert_eq!(desk.ledger.poll_patience(), Some(desk.at(201)));
    assert_eq!(desk.echo(150, late), Kind::Late);
    assert_eq!(desk.ledger.poll_patience(), Some(desk.at(200)), "of {lost}");
    assert_eq!(
        desk.says(),
        "3 sent, 1 received, 1 late, 1 lost, 1 reordered (1 timed out)"
    );
    assert_eq!(desk.ledger.tally().verdict(), Verdict::Flawed);
}

/// What had arrived in time and was read late is in time: the kernel's stamp says so.
#[test]
fn who_was_given_up_too_soon_is_received_after_all() {
    let mut desk = Desk::new(64);
    let number = desk.send(0);
    assert_eq!(desk.ledger.handle_timeout(desk.at(100)), Some(number));
    let bytes = desk.payload.bytes(number);
    let arrived = desk.at(99);
    let answer = desk
        .ledger
        .handle_answer(arrived, &bytes, bytes.len(), true);
    assert_eq!(answer.kind, Kind::Received);
    assert_eq!(desk.says(), "1 sent, 1 received");
}

#[test]
fn reordered_is_who_comes_behind_a_later_one() {
    let mut desk = Desk::new(64);
    let numbers: Vec<u64> = (0..5).map(|millis| desk.send(millis)).collect();
    for index in [0, 2, 1, 4, 3] {
        desk.echo(10, numbers[index]);
    }
    assert_eq!(desk.says(), "5 sent, 5 received, 2 reordered");
}

#[test]
fn corrupt_is_who_has_other_bytes_and_it_is_not_lost_as_well() {
    let mut desk = Desk::new(64);
    let numbers: Vec<u64> = (0..4).map(|millis| desk.send(millis)).collect();
    let mut one_bit = desk.payload.bytes(numbers[0]);
    one_bit[40] ^= 1;
    let kind = desk.comes(5, &one_bit, true);
    let meant = Difference::Bytes {
        first: 40,
        count: 1,
    };
    assert_eq!(kind, Kind::Corrupt(meant));
    // Where the number is what was hit, the rest tells which one it is.
    let mut number_hit = desk.payload.bytes(numbers[1]);
    number_hit[0] ^= 2;
    let meant = Difference::Bytes { first: 0, count: 1 };
    assert_eq!(desk.comes(5, &number_hit, true), Kind::Corrupt(meant));
    let cut = desk.payload.bytes(numbers[2])[..20].to_vec();
    assert_eq!(
        desk.comes(5, &cut, true),
        Kind::Corrupt(Difference::Size(20))
    );
    let longer = [desk.payload.bytes(numbers[3]), vec![0]].concat();
    assert_eq!(
        desk.comes(5, &longer, true),
        Kind::Corrupt(Difference::Size(65))
    );
    assert_eq!(desk.says(), "4 sent, 4 corrupt (4 mismatch)");
    assert_eq!(desk.ledger.tally().verdict(), Verdict::Flawed);
}

#[test]
fn who_comes_from_elsewhere_is_misaddressed_and_strangers_are_nobody() {
    let mut desk = Desk::new(64);
    let number = desk.send(0);
    assert_eq!(desk.comes(1, b"stranger", false), Kind::Stray);
    let bytes = desk.payload.bytes(number);
    assert_eq!(desk.comes(2, &bytes, false), Kind::Misaddressed);
    assert_eq!(desk.comes(3, b"who?", true), Kind::Stray, "nobody is out");
    assert_eq!(desk.says(), "1 sent, 1 misaddressed (1 mismatch)");
}

#[test]
fn who_was_sent_in_vain_is_lost_for_that_reason() {
    let mut desk = Desk::new(64);
    let (refused, other) = (desk.send(0), desk.send(1));
    assert!(desk.ledger.handle_failure(refused, Cause::Refused));
    assert!(!desk.ledger.handle_failure(refused, Cause::Refused));
    assert_eq!(desk.ledger.handle_end(&Cause::Reset), 1, "{other}");
    assert_eq!(desk.says(), "2 sent, 2 lost (1 refused, 1 reset)");
    assert_eq!(desk.ledger.poll_patience(), None, "nobody may still come");
    assert_eq!(desk.ledger.tally().verdict(), Verdict::Unreached);
}

#[test]
fn empty_datagrams_are_counted_in_order() {
    let mut desk = Desk::new(0);
    for millis in 0..3 {
        desk.send(millis);
    }
    assert_eq!(desk.comes(5, b"", true), Kind::Received);
    assert_eq!(desk.comes(5, b"", true), Kind::Received);
    assert_eq!(desk.comes(150, b"", true), Kind::Late);
    assert_eq!(desk.comes(151, b"", true), Kind::Duplicate);
    assert_eq!(desk.says(), "3 sent, 2 received, 1 late, 1 duplicates");
}

#[test]
fn one_byte_is_enough_to_tell_a_hundred_messages_apart() {
    let mut desk = Desk::new(1);
    for round in 0..10 {
        let numbers: Vec<u64> = (0..100).map(|_| desk.send(round * 10)).collect();
        for number in numbers.into_iter().filter(|number| number % 10 != 3) {
            assert_eq!(desk.echo(round * 10 + 1, number), Kind::Received);
        }
    }
    while desk.ledger.handle_timeout(desk.at(1000)).is_some() {}
    assert_eq!(
        desk.says(),
        "1000 sent, 900 received, 100 lost (100 timed out)"
    );
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut desk = Desk::new(16);
    let many = REMEMBERED_MAX as u64 + 10;
    for _ in 0..many {
        desk.send(0);
    }
    assert_eq!(desk.ledger.entries.len(), REMEMBERED_MAX);
    assert_eq!(desk.echo(1, 0), Kind::Stray, "too long ago");
    assert_eq!(desk.echo(1, many - 1), Kind::Received);
    assert_eq!(desk.ledger.tally().lost, 10);
    desk.says();
}

/// Fates by a seeded plan: the account says what the plan says.
#[test]
fn the_account_of_every_seed_is_its_plan() {
    for seed in 0..200 {
        let mut state: u64 = seed;
        let mut chance = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % 100
        };
        let mut desk = Desk::new(64);
        let mut plan = Tally::default();
        let mut held: Option<u64> = None;
        for step in 0..300 {
            let now = step * 10;
            let number = desk.send(now);
            plan.sent += 1;
            match chance() {
                0..10 => plan.lost += 1,
                10..20 => {
                    plan.received += 1;
                    plan.duplicates += 1;
                    desk.echo(now + 1, number);
                    desk.echo(now + 1, number);
                }
                20..30 => {
                    plan.corrupt += 1;
                    let mut bytes = desk.payload.bytes(number);
                    let at = chance() as usize % bytes.len();
                    bytes[at] ^= 1 << (chance() % 8);
                    desk.comes(now + 1, &bytes, true);
                }
                30..40 if held.is_none() => held = Some(number),
                _ => {
                    plan.received += 1;
                    desk.echo(now + 1, number);
                    if let Some(earlier) = held.take() {
                        plan.received += 1;
                        plan.reordered += 1;
                        // It was held for at most the timeout, or is late.
                        if desk.echo(now + 2, earlier) == Kind::Late {
                            plan.received -= 1;
                            plan.late += 1;
                        }
                    }
                }
            }
        }
        while desk.ledger.handle_timeout(desk.at(100_000)).is_some() {}
        plan.lost += u64::from(held.is_some());
        desk.says();
        let tally = desk.ledger.tally();
        let numbers = |tally: &Tally| {
            [
                tally.sent,
                tally.received,
                tally.late,
                tally.lost,
                tally.corrupt,
                tally.duplicates,
                tally.reordered,
            ]
        };
        assert_eq!(numbers(tally), numbers(&plan), "seed {seed}");
    }
}
