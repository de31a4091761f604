//! What casts doubt on a measurement: reasons why it may tell less about the service than it seems.
//!
//! Knows what was measured, and never stops anything: it is said, and people decide.

use std::time::Duration;

use super::figures;
use super::measured::Measured;

/// From here on the client has nothing left to give.
const BUSY: f64 = 0.95;

/// Who answers less than this share of what was due does not keep up.
const KEPT_UP: f64 = 0.99;

/// A reason to doubt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Doubt {
    /// Less was answered than was due.
    Behind,
    /// The client's threads were busy for this share of the time.
    Busy(f64),
    /// The client did not run for so long at a time.
    Paused(Duration),
}

impl Doubt {
    /// In a sentence, with what to do.
    fn sentence(self) -> String {
        match self {
            Self::Behind => "the service, or this client, can't keep up".to_owned(),
            Self::Busy(share) => format!(
                "the client itself is the limit: its threads were busy {:.0} % of the time; \
                 try --threads or another machine",
                share * 100.0
            ),
            Self::Paused(time) => format!(
                "this process did not run for {} at a time: latencies up to that may be its own",
                figures::time(time.as_secs_f64() * 1e6)
            ),
        }
    }

    /// In a word or two, beside a row.
    #[must_use]
    pub(super) fn note(self) -> String {
        match self {
            Self::Behind => "can't keep up".to_owned(),
            Self::Busy(share) => format!("client {:.0} % busy", share * 100.0),
            Self::Paused(time) => {
                format!("paused {}", figures::time(time.as_secs_f64() * 1e6))
            }
        }
    }
}

/// All that casts doubt on one measurement.
#[must_use]
pub(super) fn of(measured: &Measured) -> Vec<Doubt> {
    [behind(measured), busy(measured), paused(measured)]
        .into_iter()
        .flatten()
        .collect()
}

/// The same in sentences, each kind once, with the rates that it was met at.
#[must_use]
pub(super) fn warnings(all: &[Measured]) -> Vec<String> {
    [behind, busy, paused]
        .into_iter()
        .filter_map(|kind| warning(all, kind))
        .collect()
}

fn warning(all: &[Measured], kind: fn(&Measured) -> Option<Doubt>) -> Option<String> {
    let met = || all.iter().filter_map(|one| Some((one.rate, kind(one)?)));
    let worst = met().map(|(_, doubt)| doubt).reduce(worse)?;
    let rates: Vec<String> = met()
        .filter_map(|(rate, _)| Some(format!("{}/s", rate?)))
        .collect();
    if all.len() < 2 || rates.is_empty() {
        return Some(worst.sentence());
    }
    Some(format!("at {}: {}", rates.join(", "), worst.sentence()))
}

/// Of two of a kind.
fn worse(one: Doubt, other: Doubt) -> Doubt {
    match (one, other) {
        (Doubt::Busy(share), Doubt::Busy(more)) => Doubt::Busy(share.max(more)),
        (Doubt::Paused(time), Doubt::Paused(longer)) => Doubt::Paused(time.max(longer)),
        _ => one,
    }
}

fn behind(measured: &Measured) -> Option<Doubt> {
    let due = measured.rate? as f64 * measured.duration.as_secs_f64();
    // What a network loses says nothing about the pace.
    let finished = (measured.finished + measured.lost) as f64;
    // One may be on the way when the time is over.
    (finished + 1.0 < due * KEPT_UP).then_some(Doubt::Behind)
}

fn busy(measured: &Measured) -> Option<Doubt> {
    (measured.busy >= BUSY).then_some(Doubt::Busy(measured.busy.min(1.0)))
}

fn paused(measured: &Measured) -> Option<Doubt> {
    let pause = measured.longest_pause;
    let counts = !measured.latencies.is_empty() && !pause.is_zero();
    (counts && pause * 2 >= measured.latencies.quantile(0.999)).then_some(Doubt::Paused(pause))
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn plain() -> Measured {
        sample::measured(sample::equal(1000, Duration::from_millis(1)))
    }

    #[test]
    fn a_measurement_that_went_well_is_not_doubted() {
        assert_eq!(of(&plain()), []);
        let open = Measured {
            rate: Some(100),
            ..plain()
        };
        assert_eq!(of(&open), []);
        assert_eq!(of(&Measured::default()), []);
    }

    #[test]
    fn who_answers_less_than_was_due_is_behind_and_who_loses_is_not() {
        let open = Measured {
            rate: Some(110),
            ..plain()
        };
        assert_eq!(of(&open), [Doubt::Behind]);
        let lossy = Measured { lost: 100, ..open };
        assert_eq!(of(&lossy), []);
        let slow = Measured {
            rate: Some(1),
            finished: 9,
            ..plain()
        };
        assert_eq!(of(&slow), [], "one was on the way");
    }

    #[test]
    fn the_client_doubts_itself() {
        let poor = Measured {
            busy: 1.004,
            longest_pause: Duration::from_micros(500),
            ..plain()
        };
        assert_eq!(
            warnings(&[poor]),
            [
                "the client itself is the limit: its threads were busy 100 % of the time; \
                 try --threads or another machine",
                "this process did not run for 500 µs at a time: latencies up to that may be its own",
            ]
        );
    }

    #[test]
    fn rates_are_named_where_there_are_several() {
        let all = sample::curve(8);
        assert_eq!(
            warnings(&all),
            ["at 128000/s: the service, or this client, can't keep up"]
        );
    }
}
