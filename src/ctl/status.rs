//! `echoctl status`: the daemon as a whole, on one screen of 80 columns and 24 lines.
//!
//! What is wrong comes first. A list of any length is cut, with where to see the rest.

use crate::cli::table::{COMMA, shortened, wrapped};
use crate::cli::text::{Paint, age, bytes, counted, escape};
use crate::protocol::schema::{Diagnostic, OnDisk, ReloadOutcome, Status};

use super::lists::Screen;
use super::show::{by_reason, field, outcome};

/// The screen has room for this number of lines of each list.
const ERRORS_MAX: usize = 3;
const FILES_MAX: usize = 2;
const WARNINGS_MAX: usize = 2;

/// The width of a value, beside its name.
const VALUE_WIDTH: usize = 62;

/// Beside the width of a value: two blanks, the name and what is between them.
const NAME_WIDTH: usize = 17;

/// All of it.
pub(super) fn status(status: &Status, screen: Screen) -> String {
    let paint = screen.paint;
    let is_rejected = is_rejected(status);
    let mut text = String::new();
    if is_rejected {
        text += &rejection(status, screen);
    }
    let title = paint.bold(&format!("echod {}", escape(&status.version)));
    let state = escape(&status.state);
    let on_trial = on_trial(status, paint);
    text += &format!("{title}, {state}, up {}{on_trial}\n", age(status.uptime_ms));
    let mut lines = |name: &str, values: Vec<String>| {
        for (index, value) in values.iter().enumerate() {
            text += &field(if index == 0 { name } else { "" }, value);
        }
    };
    lines("process", vec![process(status)]);
    lines("configuration", configuration(status));
    // A rollback is not from there.
    let is_rejected_on_disk = is_rejected && !status.last_reload.rollback;
    lines("on disk", on_disk(status, is_rejected_on_disk, paint));
    lines("last reload", last_reload(status, is_rejected, screen));
    lines("restart", Vec::from_iter(restart(status, paint)));
    let socket = status.control_socket.as_deref().map(escape);
    lines("control socket", Vec::from_iter(socket));
    lines("listeners", vec![listeners(status, paint)]);
    let of_max = |count: u64, max: u64| match max {
        // A daemon of an earlier version does not say.
        0 => count.to_string(),
        _ => format!("{count} of {max}"),
    };
    let connections = of_max(status.connections, status.max_connections);
    lines("connections", vec![connections]);
    let max = status.max_descriptors.unwrap_or(0);
    let descriptors = status.descriptors.map(|count| of_max(count, max));
    lines("descriptors", Vec::from_iter(descriptors));
    if !status.closed.is_empty() {
        lines("refused", in_lines(&by_reason(&status.refused)));
        lines("closed", in_lines(&closed(status)));
    }
    let (received, sent) = (bytes(status.bytes_received), bytes(status.bytes_sent));
    lines("traffic", vec![format!("{received} received, {sent} sent")]);
    text
}

/// Whether the files as they are now were refused, as far as is known. Repaired ones are as good as
/// never broken.
fn is_rejected(status: &Status) -> bool {
    let result = &status.last_reload;
    let is_repaired =
        status.config_on_disk == Some(OnDisk::Same) || status.rejected_on_disk == Some(false);
    result.outcome == ReloadOutcome::Rejected && (result.rollback || !is_repaired)
}

/// A rejected reload is why many look here at all.
fn rejection(status: &Status, screen: Screen) -> String {
    let result = &status.last_reload;
    let what = if result.rollback {
        "rollback"
    } else {
        "configuration"
    };
    let heading = format!(
        "{what} rejected: {}; generation {} stays in force",
        result.error_count(),
        status.generation
    );
    let paint = screen.paint;
    let mut text = paint.red(&heading) + "\n";
    // The line about a restart needs its room.
    let max = ERRORS_MAX - usize::from(!status.restart_required.is_empty());
    for line in diagnostics(&result.errors, max, "error", screen, "  ".len()) {
        text += &format!("  {}\n", paint.red(&line));
    }
    text
}

/// All of these, or the first and in the last line how many more there are, and where.
fn cut(mut lines: Vec<String>, max: usize, noun: &str, place: &str) -> Vec<String> {
    if lines.len() > max {
        let more = lines.len() - (max - 1);
        lines.truncate(max - 1);
        let more = counted(more as u64, &format!("more {noun}"));
        lines.push(format!("{more}: {place}"));
    }
    lines
}

/// A line for each, which ends where the terminal does, of whose columns there are all but these. A
/// single one may take two.
fn diagnostics(
    all: &[Diagnostic],
    max: usize,
    noun: &str,
    screen: Screen,
    except: usize,
) -> Vec<String> {
    let lines = all.iter().map(|one| escape(&one.to_string()));
    let lines = cut(lines.collect(), max, noun, "echoctl reload --last");
    let Some(width) = screen.width.map(|width| width.saturating_sub(except)) else {
        return lines;
    };
    let lines = match lines.as_slice() {
        [single] => {
            let mut lines = wrapped(single.split_inclusive(' '), width);
            let rest = lines.split_off(1).join(" ");
            lines.extend((!rest.is_empty()).then(|| format!("  {rest}")));
            lines
        }
        _ => lines,
    };
    lines.iter().map(|line| shortened(line, width)).collect()
}

fn process(status: &Status) -> String {
    let workers = counted(status.workers.into(), "worker");
    let mut text = format!("pid {}, {workers}, {}", status.pid, escape(&status.driver));
    if !status.log_level.is_empty() {
        text += &format!(", log level {}", escape(&status.log_level));
    }
    text
}

/// The generation, and the files that it came from.
fn configuration(status: &Status) -> Vec<String> {
    let files = status.config.iter().map(|file| escape(file));
    let mut lines = cut(files.collect(), FILES_MAX, "file", "see --json");
    let generation = format!("generation {}", status.generation);
    match lines.first_mut() {
        Some(first) => *first = format!("{generation}: {first}"),
        None => lines.push(generation),
    }
    lines
}

/// What the next reload would read.
fn on_disk(status: &Status, is_rejected: bool, paint: Paint) -> Vec<String> {
    // The built-in configuration and arguments are not on disk, and are not looked for there.
    let mut files = status.config.iter();
    if !files.any(|file| file.starts_with('/')) || status.log_level.is_empty() {
        return Vec::new();
    }
    let words = match status.config_on_disk {
        Some(OnDisk::Same) => return vec![paint.green("same as in force")],
        Some(_) if is_rejected => "not in force: see above",
        Some(OnDisk::Changed) if status.rejected_on_disk == Some(false) => {
            "changed since the rejection: see echoctl reload --dry-run"
        }
        Some(OnDisk::Changed) => "changed and not in force: see echoctl reload --dry-run",
        Some(OnDisk::Missing) => "a file is missing: the next reload will be rejected",
        Some(OnDisk::Unreadable) => "not readable: the next reload will be rejected",
        None => "unknown: the files could not be compared",
    };
    vec![paint.yellow(words)]
}

fn last_reload(status: &Status, is_rejected: bool, screen: Screen) -> Vec<String> {
    let paint = screen.paint;
    let result = &status.last_reload;
    let words = outcome(result.outcome, result.outcome.words(), paint);
    let trigger = result.trigger.words();
    let line = format!("{words} {trigger}, {}", escape(&result.at));
    let mut lines = vec![line];
    // Those of a configuration that is not in force come after its errors.
    if !is_rejected {
        let warnings = diagnostics(
            &result.warnings,
            WARNINGS_MAX,
            "warning",
            screen,
            NAME_WIDTH,
        );
        lines.extend(warnings.iter().map(|warning| paint.yellow(warning)));
    }
    lines
}

/// That the configuration in force has to be confirmed.
fn on_trial(status: &Status, paint: Paint) -> String {
    let left = status.confirm_in_ms.map(age);
    left.map_or_else(String::new, |left| {
        let words = format!("rolled back in {left} unless confirmed");
        format!("; {}", paint.yellow(&words))
    })
}

/// The keys that wait for the next start.
fn restart(status: &Status, paint: Paint) -> Option<String> {
    if status.restart_required.is_empty() {
        return None;
    }
    let keys = escape(&status.restart_required.join(", "));
    let words = shortened(&format!("needed for {keys}"), VALUE_WIDTH);
    Some(paint.yellow(&words))
}

/// `3899: 3890 finished, 9 reset; 9 by a fault`
fn closed(status: &Status) -> String {
    let closed = by_reason(&status.closed);
    match status.faults {
        0 => closed,
        faults => format!("{closed}; {faults} by a fault"),
    }
}

fn in_lines(text: &str) -> Vec<String> {
    wrapped(text.split_inclusive(", "), VALUE_WIDTH)
}

/// How many there are: `5, 2 paused, 1 draining`.
fn listeners(status: &Status, paint: Paint) -> String {
    let states = status.listener_states.iter();
    let states = states.map(|(state, count)| format!("{count} {}", escape(state)));
    let states = states.collect::<Vec<_>>().join(COMMA);
    match states.is_empty() {
        true => status.listeners.to_string(),
        false => format!("{}, {}", status.listeners, paint.yellow(&states)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::{Value, json};
    use unicode_width::UnicodeWidthStr;

    use super::*;

    const PLAIN: Screen = Screen {
        paint: Paint { colored: false },
        width: Some(80),
    };

    fn sample() -> Value {
        json!({
            "version": "0.1.0", "pid": 4711, "uptime_ms": 190_800_000, "state": "serving",
            "driver": "io_uring", "workers": 1,
            "config": ["/etc/echod/echod.toml", "/etc/echod/echod.d/lab.toml"], "generation": 2,
            "last_reload": {
                "id": 4, "generation": 2, "trigger": "control", "outcome": "applied",
                "at": "2026-01-02T03:04:05.678Z", "duration_us": 1250, "errors": [],
                "warnings": [{"file": "/etc/echod/echod.toml", "line": 9, "column": 1,
                              "message": "workers: needs a restart"}],
                "changes": [],
            },
            "listeners": 2, "connections": 812,
            "bytes_received": 1_288_490_188, "bytes_sent": 1_288_490_188,
            "config_on_disk": "same", "control_socket": "/run/echod/control.sock",
            "log_level": "info", "max_connections": 20_000,
            "descriptors": 840, "max_descriptors": 524_288,
            "refused": {"denied": 10, "full": 2, "per-source": 0},
            "closed": {"finished": 3890, "idle": 7, "reset": 2, "failed": 0}, "faults": 3,
        })
    }

    fn parse(value: &Value) -> Status {
        serde_json::from_value(value.clone()).unwrap()
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "snapshots are written in place"
    )]
    fn check(value: &Value, expected: Expect) {
        expected.assert_eq(&status(&parse(value), PLAIN));
    }

    #[test]
    fn status_says_what_is_in_force_and_how_much_there_is_and_may_be() {
        check(
            &sample(),
            expect![[r#"
            echod 0.1.0, serving, up 2d 5h
              process        pid 4711, 1 worker, io_uring, log level info
              configuration  generation 2: /etc/echod/echod.toml
                             /etc/echod/echod.d/lab.toml
              on disk        same as in force
              last reload    applied by the control socket, 2026-01-02T03:04:05.678Z
                             /etc/echod/echod.toml:9:1: workers: needs a restart
              control socket /run/echod/control.sock
              listeners      2
              connections    812 of 20000
              descriptors    840 of 524288
              refused        12: 10 denied, 2 full
              closed         3899: 3890 finished, 7 idle, 2 reset; 3 by a fault
              traffic        1.2 GiB received, 1.2 GiB sent
        "#]],
        );
    }

    /// It was below ten other lines, with the path of the file as it was typed.
    #[test]
    fn a_rejected_configuration_comes_first() {
        let mut value = sample();
        let error = |line| {
            json!({"file": "/etc/echod/echod.toml", "line": line, "column": 3,
                   "message": "backlog \"many\": not a number\u{1b}"})
        };
        value["config_on_disk"] = "changed".into();
        value["last_reload"]["outcome"] = "rejected".into();
        value["last_reload"]["warnings"] = json!([]);
        value["last_reload"]["errors"] = (1..=5).map(error).collect();
        check(
            &value,
            expect![[r#"
            configuration rejected: 5 errors; generation 2 stays in force
              /etc/echod/echod.toml:1:3: backlog "many": not a number\u{1b}
              /etc/echod/echod.toml:2:3: backlog "many": not a number\u{1b}
              3 more errors: echoctl reload --last
            echod 0.1.0, serving, up 2d 5h
              process        pid 4711, 1 worker, io_uring, log level info
              configuration  generation 2: /etc/echod/echod.toml
                             /etc/echod/echod.d/lab.toml
              on disk        not in force: see above
              last reload    rejected by the control socket, 2026-01-02T03:04:05.678Z
              control socket /run/echod/control.sock
              listeners      2
              connections    812 of 20000
              descriptors    840 of 524288
              refused        12: 10 denied, 2 full
              closed         3899: 3890 finished, 7 idle, 2 reset; 3 by a fault
              traffic        1.2 GiB received, 1.2 GiB sent
        "#]],
        );
        let paint = Paint { colored: true };
        let red = status(&parse(&value), Screen { paint, ..PLAIN });
        assert!(
            red.starts_with("\u{1b}[31mconfiguration rejected: "),
            "{red}"
        );
        // Changed since then, its errors are those of a text that is gone.
        for (on_disk, words) in [
            (
                "changed",
                "changed since the rejection: see echoctl reload --dry-run",
            ),
            (
                "missing",
                "a file is missing: the next reload will be rejected",
            ),
        ] {
            value["config_on_disk"] = on_disk.into();
            value["rejected_on_disk"] = false.into();
            let text = status(&parse(&value), PLAIN);
            assert!(text.starts_with("echod 0.1.0, serving"), "{text}");
            assert!(
                text.contains(&format!("  on disk        {words}\n")),
                "{text}"
            );
            assert!(text.contains("  last reload    rejected by"), "{text}");
            value["rejected_on_disk"] = true.into();
            let text = status(&parse(&value), PLAIN);
            assert!(text.starts_with("configuration rejected: "), "{text}");
        }
        // Repaired, it is as good as never broken.
        value["config_on_disk"] = "same".into();
        let text = status(&parse(&value), PLAIN);
        assert!(text.starts_with("echod 0.1.0, serving"), "{text}");
    }

    /// The terminal folded it, so that a long one took the screen.
    #[test]
    fn an_error_takes_two_lines_of_a_terminal_and_is_whole_elsewhere() {
        let mut value = sample();
        let message = "foo: unknown key: the keys are protocol, address, reply, one-shot, sockets, \
                       backlog, max-connections, when-full, max-per-source, idle-timeout";
        value["config_on_disk"] = "changed".into();
        value["last_reload"]["outcome"] = "rejected".into();
        value["last_reload"]["errors"] =
            json!([{"file": "/etc/echod/echod.toml", "line": 6, "column": 1, "message": message}]);
        let lines = |screen| {
            let text = status(&parse(&value), screen);
            let lines = text.lines().skip(1).take(3);
            lines.map(String::from).collect::<Vec<_>>()
        };
        let on_terminal = lines(PLAIN);
        assert_eq!(
            on_terminal[..2],
            [
                "  /etc/echod/echod.toml:6:1: foo: unknown key: the keys are protocol, address,",
                "    reply, one-shot, sockets, backlog, max-connections, when-full, max-per-sour…",
            ]
        );
        assert!(on_terminal[2].starts_with("echod 0.1.0"), "{on_terminal:?}");
        let elsewhere = lines(Screen {
            width: None,
            ..PLAIN
        });
        assert_eq!(
            elsewhere[0],
            format!("  /etc/echod/echod.toml:6:1: {message}")
        );
    }

    #[test]
    fn what_is_on_trial_and_what_waits_for_a_start_is_said() {
        let mut value = sample();
        value["confirm_in_ms"] = 42_900.into();
        value["restart_required"] = json!(["daemon.workers", "control.mode"]);
        value["last_reload"]["warnings"] = json!([]);
        let text = status(&parse(&value), PLAIN);
        let heading = "echod 0.1.0, serving, up 2d 5h; rolled back in 42s unless confirmed\n";
        assert!(text.starts_with(heading), "{text}");
        let lines = "\
  last reload    applied by the control socket, 2026-01-02T03:04:05.678Z
  restart        needed for daemon.workers, control.mode
  control socket /run/echod/control.sock
";
        assert!(text.contains(lines), "{text}");
    }

    /// A rollback that can't be bound is not about the files, which are in force.
    #[test]
    fn a_rejected_rollback_comes_first_whatever_is_on_disk() {
        let mut value = sample();
        value["last_reload"]["outcome"] = "rejected".into();
        value["last_reload"]["trigger"] = "confirm_expired".into();
        value["last_reload"]["rollback"] = true.into();
        value["last_reload"]["warnings"] = json!([]);
        value["last_reload"]["errors"] = json!([{"file": "", "message": "listener \"a\": bind"}]);
        let text = status(&parse(&value), PLAIN);
        let heading =
            "rollback rejected: 1 error; generation 2 stays in force\n  listener \"a\": bind\n";
        assert!(text.starts_with(heading), "{text}");
        assert!(
            text.contains("  on disk        same as in force\n"),
            "{text}"
        );
        let words = "  last reload    rejected after no confirmation, 2026";
        assert!(text.contains(words), "{text}");
    }

    #[test]
    fn what_became_of_the_files_is_said() {
        let on_disk = |value: Value| {
            let mut sample = sample();
            sample["config_on_disk"] = value;
            let text = status(&parse(&sample), PLAIN);
            let line = text.lines().find_map(|line| line.strip_prefix("  on disk"));
            line.map(|line| line.trim().to_owned())
        };
        let check = |value: Value, expected: &str| {
            assert_eq!(on_disk(value).as_deref(), Some(expected));
        };
        check(
            "changed".into(),
            "changed and not in force: see echoctl reload --dry-run",
        );
        let refused = "the next reload will be rejected";
        check("missing".into(), &format!("a file is missing: {refused}"));
        check("unreadable".into(), &format!("not readable: {refused}"));
        check(Value::Null, "unknown: the files could not be compared");
        let mut built_in = sample();
        built_in["config"] = json!(["built-in"]);
        assert!(!status(&parse(&built_in), PLAIN).contains("on disk"));
    }

    #[test]
    fn status_of_an_earlier_daemon_is_shown_without_what_that_does_not_report() {
        let mut value = sample();
        let earlier = value.as_object_mut().unwrap();
        for field in [
            "config_on_disk",
            "control_socket",
            "log_level",
            "max_connections",
            "descriptors",
            "max_descriptors",
            "refused",
            "closed",
            "faults",
        ] {
            earlier.remove(field);
        }
        check(
            &value,
            expect![[r#"
            echod 0.1.0, serving, up 2d 5h
              process        pid 4711, 1 worker, io_uring
              configuration  generation 2: /etc/echod/echod.toml
                             /etc/echod/echod.d/lab.toml
              last reload    applied by the control socket, 2026-01-02T03:04:05.678Z
                             /etc/echod/echod.toml:9:1: workers: needs a restart
              listeners      2
              connections    812
              traffic        1.2 GiB received, 1.2 GiB sent
        "#]],
        );
    }

    #[test]
    fn status_is_never_more_than_one_screen() {
        let mut value = sample();
        let many = |name: &str| -> Value {
            let one = json!({"file": "/etc/echod/echod.toml", "line": 4_294_967_295_u32,
                             "column": 80, "message": name.to_owned() + &" and more words".repeat(20)});
            vec![one; 100].into()
        };
        value["last_reload"]["outcome"] = "rejected".into();
        value["last_reload"]["errors"] = many("error");
        value["last_reload"]["warnings"] = many("warning");
        value["confirm_in_ms"] = 86_400_000.into();
        value["restart_required"] = vec!["control.operators"; 20].into();
        value["config"] = vec!["/etc/echod/echod.d/a-name-of-some-length.toml"; 50].into();
        value["config_on_disk"] = "changed".into();
        let largest = |names: Vec<&str>| -> Value {
            let counts = names
                .into_iter()
                .map(|name| (name.to_owned(), json!(1_000_000_000)));
            Value::Object(counts.collect())
        };
        value["refused"] = largest(vec![
            "denied",
            "full",
            "no-address",
            "not-unicast",
            "oversize",
            "per-source",
            "source-port",
        ]);
        value["closed"] = largest(vec![
            "drained", "failed", "finished", "idle", "kicked", "lifetime", "reset", "stalled",
        ]);
        value["faults"] = 1_000_000_000.into();
        let text = status(&parse(&value), PLAIN);
        // A line is for the prompt.
        assert!(text.lines().count() <= 23, "{text}");
        for line in text.lines() {
            assert!(line.width() <= 80, "{line}");
        }
    }
}
