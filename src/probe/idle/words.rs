//! What was found of silences, in words for people and fields for programs.
//!
//! Knows lengths of time and causes, and never how they came about.

use std::time::Duration;

use humantime::format_duration;
use serde::Serialize;

use super::super::cause::{Cause, Causes};
use super::super::report::milliseconds;
use super::super::target::Target;
use super::search::Search;

/// What became of one flow.
#[derive(Clone, Debug)]
pub(super) struct Silence {
    /// How long it was silent: until it was spoken on, or seen to end.
    pub(super) length: Duration,
    /// How it ended; none: it survived.
    pub(super) end: Option<End>,
    /// The other side has sent something meanwhile that is no data.
    pub(super) is_kept_alive: bool,
}

/// How a flow ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Why.
    pub(super) cause: Cause,
    /// It was seen while all was silent, not when it was spoken on.
    pub(super) is_witnessed: bool,
}

/// The result for programs.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    #[serde(skip_serializing_if = "Option::is_none")]
    survived_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failed_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<String>,
    /// The limit is known as exactly as was wanted, or there is none up to the longest.
    finished: bool,
    /// The other side has kept flows alive.
    kept_alive: bool,
    probes: Vec<Probe>,
    duration_ms: f64,
    errors: Causes,
}

/// One of the silences.
#[derive(Debug, Serialize)]
struct Probe {
    silence_ms: f64,
    survived: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

/// What was found, for programs.
pub(super) fn findings(
    search: &Search,
    silences: &[Silence],
    duration: Duration,
    errors: Causes,
) -> Findings {
    let probe = |silence: &Silence| Probe {
        silence_ms: milliseconds(silence.length),
        survived: silence.end.is_none(),
        cause: silence.end.as_ref().map(|end| end.cause.to_string()),
    };
    Findings {
        survived_ms: search.survived().map(milliseconds),
        failed_ms: search.failed().map(milliseconds),
        ended_by: ended_by(silences).map(|end| end.cause.to_string()),
        finished: search.next().is_none(),
        kept_alive: silences.iter().any(|silence| silence.is_kept_alive),
        probes: silences.iter().map(probe).collect(),
        duration_ms: milliseconds(duration),
        errors,
    }
}

/// How the flow ended that was silent for the shortest time of all that ended.
pub(super) fn ended_by(silences: &[Silence]) -> Option<&End> {
    let ended = silences.iter().filter(|silence| silence.end.is_some());
    let shortest = ended.min_by_key(|silence| silence.length)?;
    shortest.end.as_ref()
}

/// What was found, for people.
pub(super) fn sentence(search: &Search, silences: &[Silence]) -> String {
    let survived = search.survived().map(time);
    let failed = search.failed().map(time);
    let found = match (survived, failed) {
        (None, None) => "nothing is known yet".into(),
        (Some(survived), None) if search.next().is_none() => {
            format!("a silence of {survived} is survived, the longest that was to be tried")
        }
        (Some(survived), None) => format!("a silence of {survived} is survived"),
        (None, Some(failed)) => format!("no silence is survived, not even one of {failed}"),
        _ if search.failed() <= search.survived() => format!(
            "a silence of {} was survived, and one of {} was not: the limit is not always the same",
            time(search.survived().unwrap_or_default()),
            time(search.failed().unwrap_or_default())
        ),
        (Some(survived), Some(failed)) => {
            format!("a silence of {survived} is survived, one of {failed} is not")
        }
    };
    match ended_by(silences) {
        Some(end) => format!("{found}: {}\n", reason(end)),
        None => format!("{found}\n"),
    }
}

/// Who has ended it, as far as can be told.
fn reason(end: &End) -> String {
    match (&end.cause, end.is_witnessed) {
        (Cause::TimedOut, _) => "timed out: what is said then gets no answer; \
            a NAT or firewall on the way has forgotten the flow"
            .into(),
        (Cause::Reset, true) => "reset while all was silent: by the service, or a proxy or \
            firewall that ends flows that say nothing"
            .into(),
        (Cause::Reset, false) => "reset when it was spoken on: something on the way has forgotten \
            the flow and says so, or the service has"
            .into(),
        (Cause::Closed, _) => "closed: the service ends it, or a proxy before it, by an idle \
            timeout of its own; the path keeps it as long"
            .into(),
        (Cause::Mismatch, _) => {
            "mismatch: the service says something else than it was told, or unasked".into()
        }
        (cause, _) => cause.to_string(),
    }
}

/// What makes the result worth less than it seems.
pub(super) fn caveat(target: &Target, silences: &[Silence]) -> Option<&'static str> {
    if silences.iter().any(|silence| silence.is_kept_alive) {
        return Some(
            "the other side sends keepalives, and they keep a flow: \
             without them it may be forgotten sooner (echod: keepalive = \"off\")",
        );
    }
    match (target.is_stream(), target.is_inet()) {
        (true, _) => None,
        (false, true) => Some(
            "over UDP a NAT that has forgotten a flow makes a new one as soon as we speak: \
             that is not seen",
        ),
        (false, false) => Some(
            "datagrams on one host have no flow that could be forgotten: \
             only whether the service still answers is seen",
        ),
    }
}

/// What became of one silence, as soon as it is known.
pub(super) fn step(silence: &Silence) -> String {
    let length = time(silence.length);
    match &silence.end {
        None => format!("silent for {length}: survived"),
        Some(End {
            cause,
            is_witnessed: true,
        }) => format!("silent for {length}: {cause} just then"),
        Some(End { cause, .. }) => format!("silent for {length}: {cause}"),
    }
}

/// How long it may take.
pub(super) fn announcement(search: &Search, timeout: Duration) -> String {
    let (silences, count) = search.longest();
    let longest = time(silences + timeout * count);
    format!("this may take up to {longest}; ^C ends it and tells what is known by then")
}

/// What is going on.
pub(super) fn progress(search: &Search, silence: Duration, left: Duration) -> String {
    let survived = search.survived().map(time);
    let failed = search.failed().map(time);
    let bounds = match (survived, failed) {
        (None, None) => String::new(),
        (Some(survived), None) => format!("; {survived} is survived"),
        (None, Some(failed)) => format!("; {failed} is not survived"),
        (Some(survived), Some(failed)) => format!("; {survived} is survived, {failed} is not"),
    };
    let (silence, left) = (time(silence), time(left));
    format!("silent for {silence}, {left} to go{bounds}")
}

/// With the digits that mean something: `1h 4m`, `2m 30s`, `1s 250ms`.
fn time(time: Duration) -> String {
    let unit = match time.as_secs() {
        0..10 => Duration::from_millis(1),
        10..3600 => Duration::from_secs(1),
        _ => Duration::from_secs(60),
    };
    let units = (time.as_nanos() + unit.as_nanos() / 2) / unit.as_nanos();
    format_duration(unit * units as u32).to_string()
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn silence(length: Duration, end: Option<(Cause, bool)>) -> Silence {
        Silence {
            length,
            end: end.map(|(cause, is_witnessed)| End {
                cause,
                is_witnessed,
            }),
            is_kept_alive: false,
        }
    }

    /// A search from 15 s to 2 h that has met a limit of so long.
    fn search(limit: Duration, cause: &Cause) -> (Search, Vec<Silence>) {
        let mut search = Search::new(15 * SECOND, 7200 * SECOND, None);
        let mut silences = Vec::new();
        while let Some(length) = search.next() {
            if length < limit {
                search.handle_survival(length);
                silences.push(silence(length, None));
            } else {
                search.handle_end(length, false);
                silences.push(silence(length, Some((cause.clone(), false))));
            }
        }
        (search, silences)
    }

    #[test]
    fn the_limit_is_told_with_who_has_set_it() {
        let mut said = String::new();
        for cause in [Cause::TimedOut, Cause::Reset, Cause::Closed, Cause::Refused] {
            let (search, silences) = search(350 * SECOND, &cause);
            said += &sentence(&search, &silences);
        }
        let (all, silences) = search(8000 * SECOND, &Cause::TimedOut);
        said += &sentence(&all, &silences);
        let (none, silences) = search(Duration::ZERO, &Cause::Closed);
        said += &sentence(&none, &silences);
        let unfinished = Search::new(15 * SECOND, 7200 * SECOND, None);
        said += &sentence(&unfinished, &[]);
        expect![[r#"
            a silence of 5m 30s is survived, one of 6m is not: timed out: what is said then gets no answer; a NAT or firewall on the way has forgotten the flow
            a silence of 5m 30s is survived, one of 6m is not: reset when it was spoken on: something on the way has forgotten the flow and says so, or the service has
            a silence of 5m 30s is survived, one of 6m is not: closed: the service ends it, or a proxy before it, by an idle timeout of its own; the path keeps it as long
            a silence of 5m 30s is survived, one of 6m is not: refused
            a silence of 2h is survived, the longest that was to be tried
            no silence is survived, not even one of 1ms: closed: the service ends it, or a proxy before it, by an idle timeout of its own; the path keeps it as long
            nothing is known yet
        "#]].assert_eq(&said);
    }

    #[test]
    fn programs_get_the_same() {
        let (search, silences) = search(100 * SECOND, &Cause::Reset);
        let mut errors = Causes::default();
        errors.count(Cause::Reset);
        let json = serde_json::to_string_pretty(&findings(&search, &silences, SECOND, errors));
        expect![[r#"
            {
              "survived_ms": 97500.0,
              "failed_ms": 105000.0,
              "ended_by": "reset",
              "finished": true,
              "kept_alive": false,
              "probes": [
                {
                  "silence_ms": 15000.0,
                  "survived": true
                },
                {
                  "silence_ms": 30000.0,
                  "survived": true
                },
                {
                  "silence_ms": 60000.0,
                  "survived": true
                },
                {
                  "silence_ms": 120000.0,
                  "survived": false,
                  "cause": "reset"
                },
                {
                  "silence_ms": 90000.0,
                  "survived": true
                },
                {
                  "silence_ms": 105000.0,
                  "survived": false,
                  "cause": "reset"
                },
                {
                  "silence_ms": 97500.0,
                  "survived": true
                }
              ],
              "duration_ms": 1000.0,
              "errors": {
                "reset": 1
              }
            }"#]]
        .assert_eq(&json.expect("numbers"));
    }

    #[test]
    fn what_goes_on_is_said_while_it_does() {
        let mut search = Search::new(15 * SECOND, 7200 * SECOND, None);
        let mut said = announcement(&search, 5 * SECOND) + "\n";
        said += &(progress(&search, 15 * SECOND, SECOND / 2) + "\n");
        search.handle_survival(240 * SECOND);
        search.handle_end(480 * SECOND, false);
        said += &(progress(&search, 360 * SECOND, 75 * SECOND) + "\n");
        for one in [
            silence(240 * SECOND, None),
            silence(480 * SECOND, Some((Cause::TimedOut, false))),
            silence(Duration::from_millis(61_234), Some((Cause::Closed, true))),
        ] {
            said += &(step(&one) + "\n");
        }
        expect![[r#"
            this may take up to 9h 20m; ^C ends it and tells what is known by then
            silent for 15s, 500ms to go
            silent for 6m, 1m 15s to go; 4m is survived, 8m is not
            silent for 4m: survived
            silent for 8m: timed out
            silent for 1m 1s: closed just then
        "#]]
        .assert_eq(&said);
    }

    #[test]
    fn times_have_no_more_digits_than_they_mean() {
        let times = [
            0, 1, 999, 1250, 9999, 10_000, 10_499, 90_600, 3_599_600, 4_000_000,
        ];
        let said = times.map(|millis| time(Duration::from_millis(millis)));
        expect!["0s, 1ms, 999ms, 1s 250ms, 9s 999ms, 10s, 10s, 1m 31s, 1h, 1h 7m"]
            .assert_eq(&said.join(", "));
    }

    #[test]
    fn what_the_result_is_not_is_said() {
        let caveat = |url: &str, silences: &[Silence]| {
            let target = url.parse().expect("a URL");
            caveat(&target, silences).unwrap_or("none").to_owned() + "\n"
        };
        let mut kept = silence(SECOND, None);
        kept.is_kept_alive = true;
        let said = caveat("tcp://a:7", &[])
            + &caveat("udp://a:7", &[])
            + &caveat("unixgram:///a", &[])
            + &caveat("tcp://a:7", &[kept]);
        expect![[r#"
            none
            over UDP a NAT that has forgotten a flow makes a new one as soon as we speak: that is not seen
            datagrams on one host have no flow that could be forgotten: only whether the service still answers is seen
            the other side sends keepalives, and they keep a flow: without them it may be forgotten sooner (echod: keepalive = "off")
        "#]].assert_eq(&said);
    }
}
