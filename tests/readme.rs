//! The README as a newcomer follows it: each command that it shows with its output is run, in that
//! order, and says what the README says.
//!
//! A command has to succeed, unless `echo $?` behind it shows another exit status.
//!
//! What differs from run to run and from machine to machine is masked: numbers with and without a
//! unit, times, the driver. In the README a line `…` stands for any number of lines, and a line that
//! begins with `> ` is typed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::harness::{ECHOD, not_tested, repository, run, text};

/// A command of the README with what it prints there.
struct Sample {
    command: String,
    typed: String,
    output: Vec<String>,
}

/// All commands in blocks of the language `console`.
fn samples(readme: &str) -> Vec<Sample> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut is_console = false;
    for line in readme.lines() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if !is_console {
        } else if let Some(command) = line.strip_prefix("$ ") {
            samples.push(Sample {
                command: command.into(),
                typed: String::new(),
                output: Vec::new(),
            });
        } else {
            let sample = samples.last_mut().expect("a block begins with a command");
            match line.strip_prefix("> ") {
                Some(typed) => writeln!(sample.typed, "{typed}").expect("memory"),
                None => sample.output.push(line.into()),
            }
        }
    }
    samples
}

/// Shows the exit status of the command before it.
const STATUS: &str = "echo $?";

/// A shell script that runs them: what the one with this index prints goes to the file `INDEX`, and
/// its exit status to `INDEX.status`.
fn script(samples: &[Sample], folder: &Path) -> String {
    let programs = Path::new(ECHOD).parent().expect("a folder");
    let mut script = format!(
        "cd {folder}
unset RUNTIME_DIRECTORY ECHOCTL_SOCKET
# Where root finds a control socket, others do.
export XDG_RUNTIME_DIR=/run
PATH={programs}:$PATH
ready() {{ until grep -q 'is ready' \"$1\"; do kill -0 $! || exit 1; sleep 0.01; done; }}
end() {{ status=$?; trap - EXIT; for pid in $(jobs -p); do kill $pid; wait $pid || exit 1; done; exit $status; }}
trap end EXIT
echod > first 2>&1 & ready first
",
        folder = folder.display(),
        programs = programs.display(),
    );
    for (index, sample) in samples.iter().enumerate() {
        fs::write(folder.join(format!("{index}.typed")), &sample.typed).expect("a file");
        let line = match sample.command.strip_suffix('&') {
            Some(command) => format!("{command} > {index} 2>&1 & ready {index}"),
            None => format!("{{ {}; }} < {index}.typed > {index} 2>&1", sample.command),
        };
        let keep = format!("status=$?; echo $status > {index}.status; (exit $status)");
        writeln!(script, "{line}; {keep}").expect("memory");
    }
    script + "true\n"
}

/// Runs a script in a network and with a /run of its own: as the user of the tests, or as an ordinary
/// user. None where this machine allows no such thing.
fn run_isolated(script: &str, as_ordinary_user: bool) -> Option<Output> {
    // Root is enough for that outside containers; a user is root of a namespace.
    let namespaces = match nix::unistd::geteuid().is_root() {
        true => &["--net", "--mount"][..],
        false => &["--map-root-user", "--net", "--mount"],
    };
    let prepare = "set -eu
ip link set lo up
echo 4096 > /proc/sys/net/core/somaxconn
mount -t tmpfs tmpfs /run
if [ -e /etc/echod ]; then mount -t tmpfs tmpfs /etc/echod; fi
";
    let isolated = |commands: &str| {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["bash", "-c"]);
        command.arg(prepare.to_owned() + commands).arg("bash");
        command
    };
    // Without capabilities, and not 0 in the eyes of the programs.
    let user = "unshare --map-user=1000 --map-group=1000";
    let (trial, commands) = match as_ordinary_user {
        true => (
            format!("{user} true"),
            format!("exec {user} bash -c \"$1\""),
        ),
        false => ("true".into(), "exec bash -c \"$1\"".into()),
    };
    let tried = isolated(&trial).output();
    if !tried.is_ok_and(|output| output.status.success()) {
        return None;
    }
    Some(run(isolated(&commands).arg(script)))
}

/// A line without what differs from run to run.
fn mask(line: &str) -> String {
    const UNITS: [&str; 11] = [
        "ns", "µs", "ms", "s", "B", "KiB", "MiB", "GiB", "KiB/s", "MiB/s", "GiB/s",
    ];
    const BARS: [char; 8] = ['█', '▉', '▊', '▋', '▌', '▍', '▎', '▏'];
    // Behind a bar of a histogram are the percentiles that happen to be in this row.
    let line = line.split(BARS).next().unwrap_or_default();
    let mut masked: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        let bare = word.trim_matches(|sign: char| "(<),;:%".contains(sign));
        let number = bare.trim_end_matches(|sign: char| !sign.is_ascii_digit());
        let unit = &bare[number.len()..];
        let is_number = number.parse::<f64>().is_ok() && (unit.is_empty() || UNITS.contains(&unit));
        let is_time = bare.ends_with('Z') && bare.starts_with(|sign: char| sign.is_ascii_digit());
        match word {
            _ if is_number || is_time => masked.push("#"),
            _ if masked.last() == Some(&"#") && UNITS.contains(&bare) => {}
            "io_uring" | "epoll" => masked.push("DRIVER"),
            _ => masked.push(word),
        }
    }
    masked.join(" ")
}

/// The words of a text without what differs from run to run. Where lines are broken depends on the
/// length of numbers.
fn words(text: &str) -> Vec<String> {
    let lines: Vec<String> = text.lines().map(mask).collect();
    let words = lines.iter().flat_map(|line| line.split_whitespace());
    words.map(String::from).collect()
}

/// Whether the words are those that are shown, where `…` stands for any number of them.
fn is_as_shown(shown: &[String], words: &[String]) -> bool {
    match shown.split_first() {
        None => words.is_empty(),
        Some((first, rest)) if first == "…" => {
            (0..=words.len()).any(|skipped| is_as_shown(rest, &words[skipped..]))
        }
        Some((first, rest)) => words
            .split_first()
            .is_some_and(|(word, others)| word == first && is_as_shown(rest, others)),
    }
}

/// Runs all commands, and compares what they print and how they end with what the README shows.
fn compare_with_the_readme(as_ordinary_user: bool) {
    let readme = fs::read_to_string(repository("README.md")).expect("it is there");
    let samples = samples(&readme);
    assert!(samples.len() > 8, "{} commands", samples.len());
    let folder = tempfile::tempdir().expect("a folder");
    let Some(output) = run_isolated(&script(&samples, folder.path()), as_ordinary_user) else {
        return not_tested("port 7007 in a network of its own needs unshare and ip");
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    let read = |name: String| fs::read_to_string(folder.path().join(name)).expect("a file");
    let mut wrong = String::new();
    for (index, sample) in samples.iter().enumerate() {
        let Sample {
            command, output, ..
        } = sample;
        let shown_output = output.join("\n");
        let printed = read(index.to_string());
        let mut shown = words(&shown_output);
        if command.ends_with('&') {
            // A daemon's first lines depend on the user, and it logs what follows.
            shown.insert(0, "…".into());
            shown.push("…".into());
        }
        let is_right = match command == STATUS {
            // Not masked, as numbers are elsewhere.
            true => printed.trim() == shown_output,
            false => is_as_shown(&shown, &words(&printed)),
        };
        if !is_right {
            writeln!(
                wrong,
                "$ {command}\nshown:\n{shown_output}\nprinted:\n{printed}"
            )
            .expect("memory");
        }
        let status = read(format!("{index}.status"));
        let next = samples.get(index + 1);
        if status.trim() != "0" && next.is_none_or(|next| next.command != STATUS) {
            writeln!(
                wrong,
                "$ {command}\nexit status {status}printed:\n{printed}"
            )
            .expect("memory");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_commands_of_the_readme_print_what_it_shows_and_end_as_it_shows() {
    compare_with_the_readme(false);
}

#[test]
fn the_commands_of_the_readme_do_so_for_an_ordinary_user() {
    compare_with_the_readme(true);
}

#[test]
fn only_what_differs_from_run_to_run_is_masked() {
    let same = |one, other| assert_eq!(mask(one), mask(other));
    same("up 1s", "up 996ms");
    same(
        "in 3.26 ms, at start, at 2026-11-27T14:43:54.239Z",
        "in 900 µs, at start, at 2030-01-01T00:00:00.000Z",
    );
    same("driver io_uring", "driver epoll");
    same(" 26.3 µs  38757  41.3 %  ███▌  p50", " 30 µs  7  <0.1 %  ▏");
    let differ = |one, other| assert_ne!(mask(one), mask(other));
    differ("tcp on 127.0.0.1:7007", "tcp on 127.0.0.1:7008");
    differ("applied, generation 2", "rejected, generation 2");
    let is_as_shown = |shown, printed| is_as_shown(&words(shown), &words(printed));
    assert!(is_as_shown("a\n…\nd", "a\nb\nc d"));
    assert!(!is_as_shown("a\n…\nd", "a\nb\nc"));
    assert!(!is_as_shown("a", "a\nb"));
}
