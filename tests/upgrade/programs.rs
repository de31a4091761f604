//! Which program continues: the one that is now where this one was started from. If it can't, the
//! caller gets the reason and nothing else has changed.

use std::os::unix::fs::{PermissionsExt, symlink};

use crate::harness::{Daemon, ECHOD, after_shell_line, folder_of, install, instead};

use super::{CONFIG, Crowd, refusal, replace_by_script, start_copy, upgrade, upgrades};

/// Talks on all connections while the upgrade is refused, and afterwards; then the program is put back
/// and there is one.
fn refused_with(replace: impl FnOnce(&Daemon), reason: &str) {
    let daemon = start_copy(CONFIG);
    let mut crowd = Crowd::new();
    crowd.some(&daemon);
    crowd.wait_for_all();
    let before = daemon.descriptors();
    replace(&daemon);
    let said = refusal(&daemon);
    assert!(said.contains(reason), "{said}");
    assert!(said.starts_with("echoctl: no "), "{said}");
    assert!(daemon.log().contains(reason), "{}", daemon.log());
    crowd.wait_for_all();
    assert_eq!(upgrades(&daemon), 0);
    // Connections that come and go make it a few more or less.
    let after = daemon.descriptors();
    assert!(after < before + 10, "{before} became {after}");

    replace_by_script(&daemon, "exec {echod} \"$@\"");
    upgrade(&daemon);
    crowd.wait_for_all();
    crowd.end();
}

#[test]
fn a_file_that_is_no_program_is_never_executed() {
    refused_with(
        |daemon| {
            let beside = daemon.path("text");
            std::fs::write(&beside, "not a program").unwrap();
            let mode = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(&beside, mode).unwrap();
            std::fs::rename(beside, daemon.path("echod")).unwrap();
        },
        "ermission denied",
    );
}

#[test]
fn a_program_that_says_yes_to_everything_and_is_no_echod_is_never_executed() {
    refused_with(
        |daemon| {
            let beside = daemon.path("true");
            symlink("/bin/true", &beside).unwrap();
            std::fs::rename(beside, daemon.path("echod")).unwrap();
        },
        "is not echod",
    );
}

#[test]
fn a_program_that_does_not_know_this_record_is_never_executed() {
    refused_with(
        |daemon| {
            replace_by_script(
                daemon,
                "echo 'echod: records of version 1 are old' >&2; exit 1",
            );
        },
        "can't take over: records of version 1 are old",
    );
}

#[test]
fn a_program_that_is_gone_is_reported_as_gone() {
    refused_with(
        |daemon| std::fs::remove_file(daemon.path("echod")).unwrap(),
        "no such file or directory",
    );
}

#[test]
fn the_output_of_a_program_that_prints_a_lot_is_read_to_its_end() {
    refused_with(
        |daemon| {
            replace_by_script(daemon, "yes echod: no | head -n 100000 >&2; exit 1");
        },
        "can't take over: no; no",
    );
}

#[test]
#[ignore = "takes as long as a new program may take: ten seconds"]
fn a_program_that_does_not_answer_is_given_up_after_ten_seconds() {
    refused_with(
        |daemon| {
            replace_by_script(daemon, "exec sleep 1000");
        },
        "no answer within 10 s",
    );
}

#[test]
fn when_the_program_vanishes_after_its_yes_every_client_is_still_served() {
    refused_with(
        |daemon| {
            replace_by_script(
                daemon,
                "case \"$*\" in *--check*) rm {dir}/echod; exit 0;; esac\nexec {echod} \"$@\"",
            );
        },
        "no such file or directory",
    );
}

/// A daemon that a shell has started as `name`, with this PATH, from the first of two releases in
/// the test's folder, `{dir}`, where the link `current` leads to it.
fn start_release(path: &str, name: &str) -> Daemon {
    Daemon::start_with(CONFIG, |command| {
        let folder = folder_of(command);
        for release in ["1", "2"] {
            std::fs::create_dir(folder.join(release)).unwrap();
            install(ECHOD, &folder.join(release).join("echod"));
        }
        symlink("1", folder.join("current")).unwrap();
        let here = |text: &str| text.replace("{dir}", &folder.display().to_string());
        let arguments = command.get_args().map(Into::into).collect();
        *command = instead(command, &here(name), arguments);
        after_shell_line(command, &here(&format!("PATH={path}:$PATH")));
    })
}

/// Makes the link lead to this release, upgrades, and wants this release to run.
fn upgrade_to_release(daemon: &Daemon, release: &str) {
    symlink(release, daemon.path("next")).unwrap();
    std::fs::rename(daemon.path("next"), daemon.path("current")).unwrap();
    upgrade(daemon);
    let runs = std::fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
    assert_eq!(runs, daemon.path(release).join("echod"));
}

#[test]
fn an_upgrade_executes_the_release_that_a_link_leads_to_now() {
    for (path, name) in [
        ("/nonexistent", "{dir}/current/echod"),
        ("/nonexistent:{dir}/current", "echod"),
    ] {
        let daemon = start_release(path, name);
        // Each successor finds its own in the same way.
        for release in ["2", "1", "2"] {
            upgrade_to_release(&daemon, release);
        }
    }
}

#[test]
fn a_program_that_may_not_be_executed_is_not_reported_as_missing() {
    let daemon = start_release("{dir}/current", "echod");
    let path = daemon.path("current/echod");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refusal(&daemon);
    let words = format!("{}: not executable", path.display());
    assert!(said.contains(&words), "{said}");
}

#[test]
fn a_name_that_is_in_no_folder_of_the_path_any_more_is_named() {
    let daemon = start_release("{dir}/current", "echod");
    std::fs::remove_file(daemon.path("current")).unwrap();
    let said = refusal(&daemon);
    assert!(said.contains("echod: not found in $PATH"), "{said}");
}
