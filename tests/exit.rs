//! How the programs end: the exit statuses of echod, and outputs that are closed or full. Those of
//! echoctl are in `control`.

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};

use echod::internals::exit::{self, Exit};

use crate::harness::{Daemon, ECHOCTL, ECHOD, ECHOPROBE, not_tested, repository, text};

const MAIN: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

/// The numbers in a manual's table of exit statuses.
fn documented(page: &str) -> BTreeSet<u8> {
    let page = std::fs::read_to_string(repository(page)).expect("a page");
    let sections = page.split("\n.Sh ");
    let mut tables = sections.filter(|section| section.starts_with("EXIT STATUS"));
    let lines = tables.next().expect("a section").lines();
    let numbers = lines.filter_map(|line| line.strip_prefix(".It "));
    numbers.map(|text| text.parse().expect(text)).collect()
}

fn statuses(exits: &[Exit]) -> BTreeSet<u8> {
    exits.iter().map(|exit| *exit as u8).collect()
}

#[test]
fn the_manuals_have_every_exit_status() {
    assert_eq!(documented("docs/man/echod.8"), statuses(exit::ECHOD));
    assert_eq!(documented("docs/man/echoctl.1"), statuses(exit::ECHOCTL));
    assert_eq!(
        documented("docs/man/echoprobe.1"),
        statuses(exit::ECHOPROBE)
    );
}

#[test]
fn the_help_has_every_exit_status() {
    for (program, exits) in [(ECHOD, exit::ECHOD), (ECHOCTL, exit::ECHOCTL)] {
        let help = Command::new(program).arg("--help").output();
        let help = text(&help.expect("it runs").stdout);
        let (_, list) = help.split_once("Exit status: ").expect("a list");
        let (list, _) = list.split_once(".\n").expect("an end of it");
        let words = list.split(|sign: char| !sign.is_ascii_digit());
        let numbers: BTreeSet<u8> = words.filter_map(|word| word.parse().ok()).collect();
        assert_eq!(numbers, statuses(exits), "{list}");
    }
}

fn is(exit: Exit) -> Option<i32> {
    Some(exit as i32)
}

#[test]
fn echod_ends_as_its_manual_says() {
    let daemon = Daemon::start(MAIN);
    let right = daemon.path("echod.toml").display().to_string();
    let wrong = daemon.path("wrong.toml").display().to_string();
    std::fs::write(&wrong, "[listener.main]\nprotocol = \"tpc\"\n").expect("written");
    let taken = format!("tcp://{}", daemon.address("main"));
    let socket = daemon.path("other.sock").display().to_string();
    for (arguments, exit) in [
        (&["--check", "--config", &right][..], Exit::Done),
        (&["--print-config", "--config", &right], Exit::Done),
        (&["--listen", &taken, "--socket", &socket], Exit::Failed),
        (&["--can-take-over", "4000000000"], Exit::Failed),
        (&["--no-option"], Exit::Usage),
        (&["--listen", "http://localhost"], Exit::Usage),
        (&["--check", "--config", &wrong], Exit::Configuration),
        (&["--config", &wrong], Exit::Configuration),
    ] {
        let output = Command::new(ECHOD).args(arguments).output();
        let output = output.expect("echod runs");
        assert_eq!(output.status.code(), is(exit), "{arguments:?}");
        let is_silent = output.stderr.is_empty();
        assert_eq!(is_silent, exit == Exit::Done, "{arguments:?}");
    }
}

/// The end of a pipe that is closed at the other one.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().expect("a pipe");
    writer.into()
}

/// A device that is full; none where there is no such device.
fn full() -> Option<Stdio> {
    let device = std::fs::OpenOptions::new().write(true).open("/dev/full");
    if device.is_err() {
        not_tested("this machine has no /dev/full");
    }
    device.ok().map(Into::into)
}

/// Runs a program that prints to this.
fn run(program: &str, arguments: &[&str], stdout: Stdio) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(stdout);
    let child = command.stderr(Stdio::piped()).spawn();
    let output = child.expect("it runs").wait_with_output();
    output.expect("a child of ours")
}

#[test]
fn a_closed_output_is_a_quiet_end_and_a_full_one_a_failure() {
    let daemon = Daemon::start(MAIN);
    let config = daemon.path("echod.toml").display().to_string();
    let socket = daemon.path("control.sock").display().to_string();
    let version = echod_version();
    for (program, arguments) in [
        (ECHOD, &["--help"][..]),
        (ECHOD, &["--version"]),
        (ECHOD, &["--print-config", "--config", &config]),
        (ECHOD, &["--check", "--config", &config]),
        (ECHOD, &["--can-take-over", &version]),
        (ECHOCTL, &["--help"]),
        (ECHOCTL, &["peers", "--help"]),
        (ECHOCTL, &["--version"]),
        (ECHOCTL, &["completions", "bash", "echod"]),
        (ECHOCTL, &["check", &config]),
        (ECHOCTL, &["--socket", &socket, "status"]),
        (ECHOCTL, &["--socket", &socket, "--json", "peers"]),
        (ECHOCTL, &["--socket", &socket, "config", "show"]),
        (ECHOPROBE, &["--help"]),
        (ECHOPROBE, &["ping", "--help"]),
        (ECHOPROBE, &["--version"]),
    ] {
        let output = run(program, arguments, closed());
        let stderr = text(&output.stderr);
        assert_eq!(
            (output.status.code(), &*stderr),
            (Some(0), ""),
            "{arguments:?}"
        );
        let Some(full) = full() else { continue };
        let output = run(program, arguments, full);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains(": standard output: "), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

/// The version of the record that this echod writes for its successor.
fn echod_version() -> String {
    let answers = |version: &u32| {
        let version = version.to_string();
        let output = Command::new(ECHOD)
            .args(["--can-take-over", &version])
            .output();
        output.expect("echod runs").status.success()
    };
    let version = (1..100).find(answers);
    version.expect("a version that it reads").to_string()
}

#[test]
fn what_is_wrong_is_wrong_whether_or_not_it_can_be_printed() {
    let daemon = Daemon::start(MAIN);
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let config = daemon.path("echod.toml").display().to_string();
    let socket = daemon.path("control.sock").display().to_string();
    let missing = daemon.path("missing.sock").display().to_string();
    for (program, arguments, exit) in [
        (ECHOD, &["--no-option"][..], Exit::Usage),
        (ECHOD, &["--config", &config], Exit::Configuration),
        (
            ECHOD,
            &["--check", "--config", &config],
            Exit::Configuration,
        ),
        (ECHOCTL, &["check", &config], Exit::Configuration),
        (
            ECHOCTL,
            &["--socket", &socket, "reload"],
            Exit::Configuration,
        ),
        (
            ECHOCTL,
            &["--socket", &socket, "--json", "reload"],
            Exit::Configuration,
        ),
        (
            ECHOCTL,
            &["--socket", &socket, "reload", "--last"],
            Exit::Configuration,
        ),
        (ECHOCTL, &["--socket", &missing, "status"], Exit::NotRunning),
        (ECHOCTL, &["no-command"], Exit::Usage),
        (ECHOPROBE, &["no-url"], Exit::Usage),
    ] {
        let outputs = [Some(closed()), full(), Some(closed()), full()];
        for (index, output) in outputs.into_iter().enumerate() {
            let Some(output) = output else { continue };
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null());
            // Nothing can be printed, or errors only.
            if index < 2 {
                command.stdout(output).stderr(closed());
            } else {
                command.stdout(output).stderr(Stdio::piped());
            }
            let ended = command.spawn().expect("it runs").wait_with_output();
            let ended = ended.expect("a child of ours");
            let stderr = text(&ended.stderr);
            assert_eq!(ended.status.code(), is(exit), "{arguments:?}: {stderr}");
            assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        }
    }
}
