//! A configuration that needs more descriptors than there are: refused at once, with one reason and
//! nothing changed.

use std::fs;
use std::process::Command;

use crate::harness::{Daemon, ECHOD, after_shell_line, connect, eventually, exchange, run, text};

const HEAD: &str = "[daemon]\nworkers = 1\ndriver = \"epoll\"\n";
const MAIN: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

/// Listeners that need two descriptors each.
fn listeners(count: usize) -> String {
    let listeners = (0..count).map(|number| {
        format!(
            "[listener.l{number}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/s{number}\"\n"
        )
    });
    listeners.collect()
}

fn limit(command: &mut Command, descriptors: usize) {
    after_shell_line(command, &format!("ulimit -n {descriptors}"));
}

fn files(daemon: &Daemon) -> usize {
    (0..1000)
        .filter(|number| daemon.path(&format!("s{number}")).exists())
        .count()
}

#[test]
fn a_start_that_needs_too_many_descriptors_is_refused_before_anything_is_bound() {
    let mut daemon = Daemon::spawn(&format!("{HEAD}{}", listeners(500)), |command| {
        limit(command, 200);
    });
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    let line =
        "the listeners need at least 1000 descriptors, and the limit is 200: raise LimitNOFILE=";
    assert!(log.contains(line), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}

/// A check said that such a configuration was fine.
#[test]
fn a_check_refuses_what_needs_too_many_descriptors_in_the_words_of_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("echod.toml");
    let config = format!("{HEAD}{}", listeners(500));
    let config = config.replace("{dir}", &folder.path().display().to_string());
    fs::write(&file, config).expect("a configuration");
    let run_with = |more: &[&str], descriptors| {
        let mut command = Command::new(ECHOD);
        command.arg("--config").arg(&file).arg("--socket");
        command.arg(folder.path().join("control.sock")).args(more);
        limit(&mut command, descriptors);
        run(&mut command)
    };
    let checked = run_with(&["--check"], 200);
    assert_eq!(checked.status.code(), Some(78));
    let said = text(&checked.stderr);
    assert!(said.contains("need at least 1000 descriptors"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(text(&run_with(&[], 200).stderr), said);
    let checked = run_with(&["--check"], 1000);
    assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
}

#[test]
fn a_reload_that_needs_too_many_descriptors_is_rejected_with_one_error_and_changes_nothing() {
    let daemon = Daemon::start_with(&format!("{HEAD}{MAIN}{}", listeners(10)), |command| {
        limit(command, 200);
    });
    let address = daemon.address("main");
    let before = daemon.descriptors();
    // More than there are at all, and more than are left.
    for (count, reason) in [
        (
            150,
            "the listeners need at least 302 descriptors, and the limit is 200",
        ),
        (
            98,
            "no descriptor is left for it and all that follows: raise LimitNOFILE=",
        ),
    ] {
        let result = daemon.reload_with(&format!("{HEAD}{MAIN}{}", listeners(count)));
        assert_eq!(result["outcome"], "rejected", "{result}");
        let errors = result["errors"].as_array().unwrap();
        assert_eq!(errors.len(), 1, "{result}");
        let message = errors[0]["message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
        assert_eq!(files(&daemon), 10);
        eventually("nothing is left open", || daemon.descriptors() <= before);
    }
    assert_eq!(exchange(&mut connect(address), b"hello"), b"hello");
    let result = daemon.reload_with(&format!("{HEAD}{MAIN}{}", listeners(20)));
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(files(&daemon), 20);
}
