//! What was found, line by line: for people and for programs.
//!
//! Knows words and never how anything was found. The names of the fields are fixed.

use serde::Serialize;

use super::finding::{Finding, Halt};
use crate::cli::text::{Paint, counted, escape};
use crate::probe::cause::{Cause, Causes};
use crate::probe::figures;
use crate::probe::report;

/// What was found of one check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    name: &'static str,
    verdict: Verdict,
    seen: String,
    /// Why it matters, in short; only of one that has failed.
    hint: Option<&'static str>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Pass,
    Fail,
    NotApplicable,
    NotRun,
}

impl Verdict {
    /// In a column of seven characters.
    fn words(self, paint: Paint) -> String {
        match self {
            Self::Pass => paint.green("pass   "),
            Self::Fail => paint.red("fail   "),
            Self::NotApplicable => paint.yellow("n/a    "),
            Self::NotRun => paint.yellow("not run"),
        }
    }
}

impl Row {
    /// For people: a line, and for a failed check another one that says why it matters.
    pub(super) fn lines(&self, width: usize, paint: Paint) -> String {
        let verdict = self.verdict.words(paint);
        let line = format!("{:width$}  {verdict}  {}", self.name, escape(&self.seen));
        let line = line.trim_end();
        match self.hint {
            Some(hint) => format!("{line}\n{:width$}           {hint}\n", ""),
            None => format!("{line}\n"),
        }
    }
}

/// Why a check matters, in a few words; in full in `docs/echo-servers.md`.
pub(super) fn hint(check: &str) -> &'static str {
    match check {
        "echo" => "nothing else is worth a check",
        "binary" => "files hold every byte value",
        "half-close" => "clients read to the end",
        "empty-half-close" => "health checks connect and leave",
        "split-message" => "networks deliver in any pieces",
        "pipelining" => "clients send without waiting",
        "megabyte" => "unsent bytes are lost at the half-close",
        "several-clients" => "one client keeps out all others",
        "slow-reader" => "one client can fill its memory, or loses data",
        "beside-a-slow-reader" => "one stalled client stops all others",
        "reset" => "clients crash",
        "empty-datagram" => "an empty datagram is a datagram",
        "sizes" => "it looks like a fault of the network",
        "burst" => "it looks like a loss in the network",
        "order" => "it looks like reordering in the network",
        "reply-address" => "firewalls and NATs drop such answers",
        "gone-client" => "clients vanish",
        "loop-guard" => "two such services can be made to answer each other for ever",
        _ => "",
    }
}

/// What was found of all.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Record {
    checks: Vec<Row>,
    passed: u64,
    failed: u64,
    not_applicable: u64,
    not_run: u64,
    /// Whether the user, or the deadline, has ended it before its end, and which of them.
    pub(super) interrupted: bool,
    #[serde(skip)]
    pub(super) end: Option<Cause>,
    pub(super) duration_ms: f64,
    errors: Causes,
}

impl Record {
    /// A check has ended with this finding.
    pub(super) fn add(&mut self, name: &'static str, finding: Finding) -> &Row {
        // Why an answer matters explains nothing where there is none.
        let is_answered = !matches!(finding, Err(Halt::Unreached(_)));
        let (verdict, seen, cause) = match finding {
            Ok(seen) => (Verdict::Pass, seen, None),
            Err(Halt::Failed(seen, cause)) => (Verdict::Fail, seen, cause),
            Err(Halt::NotApplicable(seen)) => (Verdict::NotApplicable, seen, None),
            Err(Halt::Interrupted | Halt::NotRun) => (Verdict::NotRun, String::new(), None),
            Err(Halt::Unreached(trouble)) => (
                Verdict::Fail,
                trouble.cause.to_string(),
                Some(trouble.cause),
            ),
        };
        cause.into_iter().for_each(|cause| self.errors.count(cause));
        *match verdict {
            Verdict::Pass => &mut self.passed,
            Verdict::Fail => &mut self.failed,
            Verdict::NotApplicable => &mut self.not_applicable,
            Verdict::NotRun => &mut self.not_run,
        } += 1;
        self.checks.push(Row {
            name,
            verdict,
            seen,
            hint: (verdict == Verdict::Fail && is_answered).then(|| hint(name)),
        });
        self.checks.last().expect("just added")
    }

    /// For people: the sum.
    pub(super) fn summary(&self, paint: Paint) -> String {
        let checks = counted(self.checks.len() as u64, "check");
        let mut line = format!("{checks}: {} passed", self.passed);
        if self.failed > 0 {
            line += &paint.red(&format!(", {} failed", self.failed));
        }
        line += &figures::counts(&[
            (self.not_applicable, "not applicable"),
            (self.not_run, "not run"),
        ]);
        if let Some(cause) = &self.end {
            line += &format!("; {cause}");
        }
        line + "\n"
    }

    /// How it ends.
    pub(super) fn verdict(&self) -> report::Verdict {
        match self.failed == 0 && !self.interrupted {
            true => report::Verdict::Good,
            false => report::Verdict::Flawed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::cause::Trouble;

    const PLAIN: Paint = Paint { colored: false };

    fn record() -> Record {
        let mut record = Record::default();
        record.add("echo", Ok("5 bytes".into()));
        let closed = Halt::failed("2 of 5 bytes", Cause::Closed);
        record.add("half-close", Err(closed));
        let other = Halt::NotApplicable("it is a Unix socket".into());
        record.add("loop-guard", Err(other));
        let gone = Halt::Unreached(Trouble::new("", Cause::TimedOut));
        let lines = Record::default().add("reset", Err(gone)).lines(5, PLAIN);
        assert_eq!(lines, "reset  fail     timed out\n");
        record.add("reset", Err(Halt::NotRun));
        record
    }

    #[test]
    fn people_read_a_line_for_each_and_why_a_failed_one_matters() {
        let (paint, record) = (PLAIN, record());
        let lines = record.checks.iter().map(|row| row.lines(10, paint));
        let text = lines.collect::<String>() + &record.summary(paint);
        assert_eq!(
            text,
            "echo        pass     5 bytes\n\
             half-close  fail     2 of 5 bytes\n                     clients read to the end\n\
             loop-guard  n/a      it is a Unix socket\n\
             reset       not run\n\
             4 checks: 1 passed, 1 failed, 1 not applicable, 1 not run\n"
        );
        assert_eq!(record.verdict(), report::Verdict::Flawed);
        let colored = record.checks[0].lines(10, Paint { colored: true });
        assert!(colored.contains("\x1b[32mpass   \x1b[0m  "), "{colored}");
    }

    #[test]
    fn programs_get_an_object_with_fixed_names() {
        let record = record();
        let json = serde_json::to_value(&record).expect("numbers and words");
        assert_eq!(json["checks"][1]["name"], "half-close");
        let hints = [0, 1].map(|index: usize| json["checks"][index]["hint"].as_str());
        assert_eq!(hints, [None, Some("clients read to the end")]);
        let verdicts = [0, 1, 2, 3].map(|index: usize| json["checks"][index]["verdict"].clone());
        assert_eq!(verdicts, ["pass", "fail", "not_applicable", "not_run"]);
        assert_eq!(json["errors"], serde_json::json!({"closed": 1}));
        assert_eq!(json["interrupted"], false);
    }
}
