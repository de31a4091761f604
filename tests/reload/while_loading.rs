//! While a configuration is loaded, which may take as long as its file system does: the control
//! plane does everything else, and further requests wait for their turn.
//!
//! The thread that loads is stopped with ptrace(2) when it begins, so that the load lasts until the
//! test lets it end.

use std::io::Write;

use nix::sys::ptrace::{self, Event};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::json;

use super::tcp;
use crate::harness::{Control, Daemon, eventually, exchange, text};

/// A thread that was stopped when it began.
struct Held(Pid);

/// Waits until the thread stops or ends.
fn next_stop(thread: Pid) -> WaitStatus {
    let mut status = WaitStatus::StillAlive;
    eventually("a thread that is traced stops", || {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        status = waitpid(thread, Some(flags)).expect("it is traced");
        status != WaitStatus::StillAlive
    });
    status
}

impl Held {
    /// Stops the next thread that the daemon starts, which `cause` brings about.
    fn next_thread(daemon: &Daemon, cause: impl FnOnce()) -> Self {
        let main = Pid::from_raw(daemon.pid());
        ptrace::seize(main, ptrace::Options::PTRACE_O_TRACECLONE).expect("it may be traced");
        cause();
        let thread = loop {
            match next_stop(main) {
                WaitStatus::PtraceEvent(_, _, event)
                    if event == Event::PTRACE_EVENT_CLONE as i32 =>
                {
                    let thread = ptrace::getevent(main).expect("the new thread");
                    break Pid::from_raw(i32::try_from(thread).expect("a thread id"));
                }
                WaitStatus::Stopped(_, signal) => {
                    ptrace::cont(main, signal).expect("it takes its signal");
                }
                other => panic!("{other:?}"),
            }
        };
        // It is traced from its first instruction on, and stops there.
        next_stop(thread);
        ptrace::detach(main, None).expect("it was traced");
        Self(thread)
    }

    /// Takes note of the end of the thread, which its process can't come to an end without.
    fn wait(&self) {
        next_stop(self.0);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // It may have ended with its process.
        let _ = ptrace::detach(self.0, None);
    }
}

fn daemon(more: &str) -> Daemon {
    Daemon::start_with(&config(more), |command| {
        command.env("WATCHDOG_USEC", "400000");
    })
}

fn config(more: &str) -> String {
    format!(
        "[daemon]\nworkers = 1\n{}",
        tcp("main", "\"127.0.0.1:0\"", more)
    )
}

/// Asks for a reload over this connection, without waiting for the answer.
fn ask_for_reload(control: &mut Control, dry_run: bool) {
    let request = json!({
        "method": "io.echod.Control.Reload",
        "parameters": { "dry_run": dry_run },
    });
    write!(control.stream, "{request}\0").expect("sent");
}

#[test]
fn status_watchdog_and_peers_are_served_while_a_configuration_is_loaded() {
    let mut daemon = daemon("");
    daemon.write_config(&config("backlog = 7"));
    let held = Held::next_thread(&daemon, || daemon.signal(Signal::SIGHUP));
    daemon.wait_for_notification("RELOADING=1");
    for _ in 0..3 {
        daemon.wait_for_notification("WATCHDOG=1");
        let status = daemon.ctl_json(&["status"])["status"].clone();
        assert_eq!(status["generation"], 1);
        assert_eq!(status["last_reload"]["trigger"], "start");
    }
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
    drop(held);
    daemon.wait_for_notification("READY=1");
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 7);
}

#[test]
fn a_stop_does_not_wait_for_a_configuration() {
    let mut daemon = daemon("");
    let held = Held::next_thread(&daemon, || daemon.signal(Signal::SIGHUP));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    held.wait();
    assert!(daemon.wait().success());
}

#[test]
fn requests_during_a_reload_wait_and_signals_become_one() {
    let mut daemon = daemon("");
    let mut callers = [(); 3].map(|()| daemon.control());
    let held = Held::next_thread(&daemon, || ask_for_reload(&mut callers[0], false));
    daemon.wait_for_notification("RELOADING=1");
    // What the reload under way may have read already is read again for these.
    for _ in 0..3 {
        daemon.signal(Signal::SIGHUP);
        // The main thread has seen the signal when it answers.
        daemon.ctl_json(&["status"]);
    }
    ask_for_reload(&mut callers[1], true);
    ask_for_reload(&mut callers[2], false);
    daemon.ctl_json(&["status"]);
    daemon.write_config(&config("backlog = 9"));
    drop(held);
    let results = callers
        .each_mut()
        .map(|caller| caller.reply().expect("an answer")["parameters"]["result"].clone());
    // The first one, the signals together, and the other callers, one after the other.
    let of = |key: &str| results.each_ref().map(|result| result[key].clone());
    assert_eq!(of("id"), [json!(2), json!(3), json!(4)]);
    assert_eq!(
        of("outcome"),
        [json!("applied"), json!("unchanged"), json!("unchanged")]
    );
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["last_reload"]["id"], 4);
    assert_eq!(status["generation"], 2);
}

/// A stop was called a wrong configuration, to scripts by the exit status.
#[test]
fn a_reload_while_the_daemon_is_stopping_is_refused_and_not_rejected() {
    let mut daemon = daemon("");
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let mut caller = daemon.control();
    let held = Held::next_thread(&daemon, || ask_for_reload(&mut caller, false));
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    // One that comes too late, and one that had begun.
    drop(held);
    let reply = caller.reply().expect("an answer");
    assert_eq!(reply["error"], "io.echod.Control.ReloadRefused", "{reply}");
    for arguments in [&["reload"][..], &["reload", "--dry-run"]] {
        let output = daemon.ctl(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            text(&output.stderr),
            "echoctl: no reload: the daemon is stopping: start it again instead\n"
        );
    }
    let last = daemon.ctl_json(&["status"])["status"]["last_reload"].clone();
    assert_eq!(last["outcome"], "applied", "{last}");
    drop(peer);
    assert!(daemon.wait().success());
}
