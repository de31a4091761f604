//! `echoctl completions` in the shells that are there.

use std::io::Write;
use std::process::{Command, Stdio};

use super::code;
use crate::harness::{ECHOCTL, text};

#[test]
fn completions_are_scripts_that_the_shells_take_and_know_the_command_lines() {
    for (program, words) in [
        // It asks for what it knows: see `completion`.
        ("echoctl", &["echoctl", "COMPLETE"][..]),
        ("echod", &["config", "print-config", "listen"][..]),
        ("echoprobe", &["ping", "load", "proxy", "flows"][..]),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let output = Command::new(ECHOCTL)
                .args(["completions", shell, program])
                .output()
                .expect("echoctl runs");
            assert!(output.status.success());
            let script = text(&output.stdout);
            for word in words {
                assert!(script.contains(word), "{word} for {shell}");
            }
            // Where there is no such shell, they are of no use.
            let Ok(mut reader) = Command::new(shell)
                .args(["-n", "/dev/stdin"])
                .stdin(Stdio::piped())
                .spawn()
            else {
                continue;
            };
            let mut stdin = reader.stdin.take().expect("a pipe");
            stdin.write_all(script.as_bytes()).expect("written");
            drop(stdin);
            let status = reader.wait().expect("it ends");
            assert!(status.success(), "{program} for {shell}");
        }
    }
}

#[test]
fn completions_of_a_program_that_is_not_ours_are_refused() {
    let output = Command::new(ECHOCTL)
        .args(["completions", "bash", "cat"])
        .output()
        .expect("echoctl runs");
    assert_eq!(code(&output), Some(2));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("use echod, echoprobe or echoctl"),
        "{stderr}"
    );
}
