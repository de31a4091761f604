//! The command line, read by the crate `clap`. Help, versions and mistakes are printed as all else;
//! values that several programs take are read here.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::exit::{self, Exit, print_or_end};
use crate::cli::terminal::{Color, complain};

const NOT_A_TIME: &str = "not a time: write e.g. 250ms, 30s or 10m";

/// The command line of a program.
///
/// # Errors
/// The exit status of [`report`].
pub(crate) fn parse<C: Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| report(&error, C::command().get_name()))
}

/// Prints the help that the command line of the program of this name asks for, or what is wrong with
/// it. Returns the exit status.
#[must_use]
pub(crate) fn report(error: &clap::Error, name: &str) -> ExitCode {
    let text = |is_terminal| {
        let text = error.render();
        if Color::Auto.paint(is_terminal).colored {
            text.ansi().to_string()
        } else {
            text.to_string()
        }
    };
    if error.use_stderr() {
        complain(&text(io::stderr().is_terminal()));
        return Exit::Usage.into();
    }
    let printed = print_or_end(text(io::stdout().is_terminal()).as_bytes());
    exit::end(name, printed)
}

/// A whole number in this range.
///
/// # Errors
/// The range.
pub(crate) fn parse_number<T: TryFrom<u64>, const LEAST: u64, const MOST: u64>(
    text: &str,
) -> Result<T, String> {
    let number = text.parse().ok();
    let number = number.filter(|number| (LEAST..=MOST).contains(number));
    // A limit that only the type sets means nothing to people.
    let limit = match MOST {
        0..=0x1_0000 => format!("from {LEAST} to {MOST}"),
        _ => format!("from {LEAST} on"),
    };
    let number = number.and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| format!("write a whole number {limit}"))
}

/// A time that is waited for.
///
/// # Errors
/// That it is none.
pub(crate) fn above_zero(time: Duration) -> Result<Duration, String> {
    match time.is_zero() {
        true => Err("no time at all: write e.g. 250ms, 30s or 10m".into()),
        false => Ok(time),
    }
}

/// `250ms`, `30s`, `1h 30m`.
///
/// # Errors
/// What to write instead.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit()) {
        // No example is made of it: not every time may be zero.
        if text.trim_matches('0').is_empty() {
            return Err(NOT_A_TIME.into());
        }
        return Err(format!(
            "a number without a unit: write e.g. {text}s or {text}m"
        ));
    }
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|_| NOT_A_TIME.into())
}

/// `250ms`, `1m 30s`; a number alone is seconds.
///
/// # Errors
/// What to write instead.
pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    match text.parse().map(Duration::try_from_secs_f64) {
        Ok(Ok(seconds)) => Ok(seconds),
        Ok(Err(_)) => Err(NOT_A_TIME.into()),
        Err(_) => parse_duration(text),
    }
}

/// The same, and more than none.
///
/// # Errors
/// What to write instead.
pub(crate) fn parse_span(text: &str) -> Result<Duration, String> {
    parse_time(text).and_then(above_zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_seconds_and_no_time_is_refused() {
        assert_eq!(
            ["1", "0.5", "250ms", "1m 30s", "-1"].map(|text| parse_time(text).ok()),
            [Some(1000), Some(500), Some(250), Some(90_000), None]
                .map(|millis| millis.map(Duration::from_millis))
        );
        assert!(parse_time("0").is_ok());
        assert!(parse_span("0").is_err());
    }

    /// "0s" was proposed to `--interval`, which refuses that as well.
    #[test]
    fn a_number_without_a_unit_is_refused_with_a_proposal_that_is_taken() {
        let proposal = "a number without a unit: write e.g. 10s or 10m";
        assert_eq!(parse_duration("10"), Err(proposal.to_owned()));
        assert_eq!(parse_duration("0"), Err(NOT_A_TIME.to_owned()));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    /// "64 is not in 0..64" and "invalid digit found in string" stood there.
    #[test]
    fn a_number_out_of_its_range_is_refused_in_words() {
        assert_eq!(parse_number::<u8, 0, 63>("63"), Ok(63));
        for wrong in ["64", "-1", "x", ""] {
            let error = Err("write a whole number from 0 to 63".to_owned());
            assert_eq!(parse_number::<u8, 0, 63>(wrong), error);
        }
        let error = Err("write a whole number from 1 on".to_owned());
        assert_eq!(parse_number::<u64, 1, { u64::MAX }>("0"), error);
    }
}
