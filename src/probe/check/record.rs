//! What was found, line by line: for people and for programs.
//!
//! Knows words and never how anything was found. The names of the fields are fixed.

use std::time::Duration;

use serde::Serialize;

use super::judgement::{Finding, Stop};
use crate::cli::text::{Paint, counted, escape};
use crate::probe::cause::Causes;
use crate::probe::report::{self, milliseconds};

/// What was found of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    name: &'static str,
    verdict: Verdict,
    seen: String,
    why: &'static str,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Pass,
    Fail,
    NotApplicable,
}

impl Verdict {
    /// In a column of four characters.
    fn words(self, paint: Paint) -> String {
        match self {
            Self::Pass => paint.green("pass"),
            Self::Fail => paint.red("fail"),
            Self::NotApplicable => paint.yellow("n/a "),
        }
    }
}

impl Row {
    /// For people: a line, and for what has failed another one that says why it matters.
    pub(super) fn lines(&self, width: usize, paint: Paint) -> String {
        let verdict = self.verdict.words(paint);
        let line = format!("{:width$}  {verdict}  {}\n", self.name, escape(&self.seen));
        match self.verdict {
            Verdict::Fail => format!("{line}{:width$}        {}\n", "", self.why),
            _ => line,
        }
    }
}

/// What was found of all.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Record {
    checks: Vec<Row>,
    passed: u64,
    failed: u64,
    not_applicable: u64,
    /// Whether the user ended it before its end.
    #[serde(skip_serializing_if = "is_not")]
    interrupted: bool,
    duration_ms: f64,
    errors: Causes,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_not(flag: &bool) -> bool {
    !flag
}

impl Record {
    /// One more check has ended so.
    pub(super) fn add(&mut self, name: &'static str, why: &'static str, finding: Finding) -> &Row {
        let (verdict, seen, cause) = match finding {
            Ok(seen) => (Verdict::Pass, seen, None),
            Err(Stop::Failed { seen, cause }) => (Verdict::Fail, seen, cause),
            Err(Stop::NotApplicable(seen)) => (Verdict::NotApplicable, seen, None),
            Err(Stop::Unreached(trouble)) => (
                Verdict::Fail,
                trouble.cause.to_string(),
                Some(trouble.cause),
            ),
            Err(Stop::Interrupted) => unreachable!("it has not ended"),
        };
        cause.into_iter().for_each(|cause| self.errors.count(cause));
        *match verdict {
            Verdict::Pass => &mut self.passed,
            Verdict::Fail => &mut self.failed,
            Verdict::NotApplicable => &mut self.not_applicable,
        } += 1;
        self.checks.push(Row {
            name,
            verdict,
            seen,
            why,
        });
        self.checks.last().expect("just added")
    }

    /// The user does not want the rest.
    pub(super) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// It is over.
    pub(super) fn end(&mut self, took: Duration) {
        self.duration_ms = milliseconds(took);
    }

    /// For people: the sum.
    pub(super) fn summary(&self, paint: Paint) -> String {
        let checks = counted(self.checks.len() as u64, "check");
        let mut line = format!("{checks}: {} passed", self.passed);
        if self.failed > 0 {
            line += &paint.red(&format!(", {} failed", self.failed));
        }
        if self.not_applicable > 0 {
            line += &format!(", {} not applicable", self.not_applicable);
        }
        if self.interrupted {
            line += "; interrupted";
        }
        line + "\n"
    }

    /// How it ends.
    pub(super) fn verdict(&self) -> report::Verdict {
        match self.failed {
            0 => report::Verdict::Good,
            _ => report::Verdict::Flawed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::cause::Cause;

    fn record() -> Record {
        let mut record = Record::default();
        record.add("echo", "It is what it is for.", Ok("5 bytes".into()));
        let closed = Stop::failed("2 of 5 bytes", Cause::Closed);
        record.add("half-close", "Clients do it.", Err(closed));
        let looks = Stop::NotApplicable("it is a Unix socket".into());
        record.add("loop-guard", "Loops.", Err(looks));
        record
    }

    #[test]
    fn people_read_a_line_for_each_and_why_a_failed_one_matters() {
        let paint = Paint { colored: false };
        let record = record();
        let lines: String = record
            .checks
            .iter()
            .map(|row| row.lines(10, paint))
            .collect();
        assert_eq!(
            lines,
            "echo        pass  5 bytes\n\
             half-close  fail  2 of 5 bytes\n                  Clients do it.\n\
             loop-guard  n/a   it is a Unix socket\n"
        );
        assert_eq!(
            record.summary(paint),
            "3 checks: 1 passed, 1 failed, 1 not applicable\n"
        );
        assert_eq!(record.verdict(), report::Verdict::Flawed);
    }

    #[test]
    fn programs_get_an_object_with_fixed_names() {
        let mut record = record();
        record.end(Duration::from_millis(3));
        let json = serde_json::to_value(&record).expect("numbers and words");
        assert_eq!(
            json,
            serde_json::json!({
                "checks": [
                    {"name": "echo", "verdict": "pass", "seen": "5 bytes",
                     "why": "It is what it is for."},
                    {"name": "half-close", "verdict": "fail", "seen": "2 of 5 bytes",
                     "why": "Clients do it."},
                    {"name": "loop-guard", "verdict": "not_applicable",
                     "seen": "it is a Unix socket", "why": "Loops."},
                ],
                "passed": 1, "failed": 1, "not_applicable": 1,
                "duration_ms": 3.0, "errors": {"closed": 1},
            })
        );
    }

    #[test]
    fn what_was_found_before_an_interruption_stands() {
        let mut record = Record::default();
        record.add("echo", "", Ok("5 bytes".into()));
        record.interrupt();
        let paint = Paint { colored: false };
        assert_eq!(record.summary(paint), "1 check: 1 passed; interrupted\n");
        assert_eq!(record.verdict(), report::Verdict::Good);
        let json = serde_json::to_value(&record).expect("numbers and words");
        assert_eq!(json["interrupted"], true);
    }
}
