//! Which driver the workers get, and what is logged where the better one is unavailable.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use nix::errno::Errno;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::harness::{Daemon, ECHOD, asked_driver, exchange, not_tested, run, text};

fn config(driver: &str) -> String {
    format!(
        "[daemon]\nworkers = 2\ndriver = \"{driver}\"\n\
         [listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n"
    )
}

fn driver_in_status(daemon: &Daemon) -> String {
    let status = daemon.ctl_json(&["status"]);
    let driver = status["status"]["driver"].as_str();
    driver.expect("a word").to_owned()
}

/// `echod --check` with this driver.
fn check(driver: &str) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("echod.toml");
    std::fs::write(&file, config(driver)).expect("a configuration");
    run(Command::new(ECHOD).args(["--check", "--config"]).arg(&file))
}

/// Whether this machine allows io_uring; if not, reports that the test is skipped.
pub(crate) fn has_io_uring() -> bool {
    let refusal = text(&check("io_uring").stderr);
    if !refusal.is_empty() {
        not_tested(refusal.trim_end());
    }
    refusal.is_empty()
}

/// Does it where `io_uring_setup(2)` fails like this, as under a service manager or in a container.
pub(crate) fn where_io_uring_fails<T: Send>(errno: Errno, run: impl FnOnce() -> T + Send) -> T {
    where_a_call_fails(libc::SYS_io_uring_setup, errno, run)
}

/// Does it where this system call fails like this.
fn where_a_call_fails<T: Send>(
    call: libc::c_long,
    errno: Errno,
    run: impl FnOnce() -> T + Send,
) -> T {
    let rules = BTreeMap::from([(call, vec![])]);
    let architecture = std::env::consts::ARCH.try_into().expect("a known one");
    let fails = SeccompAction::Errno(errno as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, architecture)
        .expect("a filter without conflicts");
    let program: BpfProgram = filter.try_into().expect("a short program");
    std::thread::scope(|scope| {
        // A filter holds for the thread that takes it on and for what that starts, for good.
        let thread = scope.spawn(|| {
            seccompiler::apply_filter(&program).expect("any process may restrict itself");
            run()
        });
        thread.join().expect("it has ended well")
    })
}

#[test]
fn the_driver_that_the_tests_are_to_run_on_is_in_force() {
    let Some(asked) = asked_driver() else {
        eprintln!("ECHOD_TEST_DRIVER is not set: the tests run on the daemon's own choice");
        return;
    };
    let daemon = Daemon::start(&config("").replace("driver = \"\"\n", ""));
    assert_eq!(driver_in_status(&daemon), asked);
}

#[test]
fn the_driver_that_was_asked_for_is_in_force_and_announced() {
    let mut drivers = vec!["epoll"];
    if has_io_uring() {
        // It is also the one that is taken where there is a choice.
        drivers.extend(["io_uring", "auto"]);
    }
    for asked in drivers {
        let expected = asked.replace("auto", "io_uring");
        let daemon = Daemon::start(&config(asked));
        assert_eq!(driver_in_status(&daemon), expected);
        let announced = format!("is ready: 2 workers, driver {expected}, ");
        assert!(daemon.log().contains(&announced), "{}", daemon.log());
        assert!(!daemon.log().contains("instead of"), "{}", daemon.log());
        assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
        let checked = check(asked);
        assert_eq!(text(&checked.stderr), "");
        let foreseen = format!("driver {expected}\n");
        assert!(text(&checked.stdout).ends_with(&foreseen), "{checked:?}");
    }
}

#[test]
fn where_io_uring_is_refused_auto_serves_on_epoll_and_says_why_once() {
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let (daemon, checked) =
            where_io_uring_fails(errno, || (Daemon::start(&config("auto")), check("auto")));
        assert_eq!(driver_in_status(&daemon), "epoll");
        let log = daemon.log();
        let reasons: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("driver epoll instead of io_uring: "))
            .collect();
        assert_eq!(reasons.len(), 1, "{log}");
        assert!(reasons[0].contains("SystemCallFilter="), "{log}");
        assert!(log.contains("is ready: 2 workers, driver epoll"), "{log}");
        assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
        // The same is known before it is started.
        assert!(checked.status.success(), "{checked:?}");
        assert!(text(&checked.stdout).ends_with("driver epoll\n"));
        assert!(text(&checked.stderr).contains("driver epoll instead of io_uring: "));
    }
}

/// A driver that was only set up would end the service at its first wait.
#[test]
fn where_a_ring_can_be_made_and_not_used_auto_serves_on_epoll_and_says_why() {
    for call in [libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        let (daemon, checked) = where_a_call_fails(call, Errno::EPERM, || {
            (Daemon::start(&config("auto")), check("auto"))
        });
        assert_eq!(driver_in_status(&daemon), "epoll");
        let log = daemon.log();
        assert!(log.contains("driver epoll instead of io_uring: "), "{log}");
        assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
        assert!(text(&checked.stdout).ends_with("driver epoll\n"));
        // Where io_uring is refused altogether, that is the reason.
        if has_io_uring() {
            assert!(
                log.contains("io_uring_enter(2)") && log.contains("io_uring_register(2)"),
                "{log}"
            );
        }
    }
}

#[test]
fn where_io_uring_is_refused_but_asked_for_the_start_ends_with_cause_and_cure() {
    for errno in [Errno::EPERM, Errno::ENOSYS] {
        let (mut daemon, checked) = where_io_uring_fails(errno, || {
            let daemon = Daemon::spawn(&config("io_uring"), |_| {});
            (daemon, check("io_uring"))
        });
        // So that the service manager does not try again.
        assert_eq!(daemon.wait().code(), Some(78));
        let log = daemon.log();
        // The same is known before it is started.
        assert_eq!(checked.status.code(), Some(78));
        let (_, refusal) = log.split_once(":10: ").expect("its place");
        assert!(
            refusal.starts_with("[daemon] driver \"io_uring\": "),
            "{log}"
        );
        let checked = text(&checked.stderr);
        assert!(checked.ends_with(refusal), "{checked}");
        assert!(
            log.contains("SystemCallFilter=") && log.contains("driver = \"auto\""),
            "{log}"
        );
        assert_eq!(log.lines().count(), 1, "{log}");
    }
}

/// There may be memory a moment later.
#[test]
fn a_start_without_memory_for_io_uring_is_worth_another_try() {
    let mut daemon =
        where_io_uring_fails(Errno::ENOMEM, || Daemon::spawn(&config("io_uring"), |_| {}));
    assert_eq!(daemon.wait().code(), Some(1));
    let log = daemon.log();
    assert!(log.contains("no memory for the rings and buffers"), "{log}");
}

#[test]
fn where_io_uring_is_refused_a_daemon_on_epoll_logs_nothing_of_it() {
    let (daemon, checked) = where_io_uring_fails(Errno::EPERM, || {
        (Daemon::start(&config("epoll")), check("epoll"))
    });
    assert!(!daemon.log().contains("io_uring"), "{}", daemon.log());
    assert_eq!(text(&checked.stderr), "");
}

#[test]
fn workers_that_would_spin_on_each_others_cpus_are_warned_of_and_serve() {
    let cpus = std::thread::available_parallelism().expect("a number");
    let many = format!("workers = {}", cpus.get() + 1);
    let text = config("auto").replace("workers = 2", &format!("{many}\nbusy-poll = \"50us\""));
    let daemon = Daemon::start(&text);
    let status = daemon.ctl_json(&["status"])["status"].clone();
    let warning = status["last_reload"]["warnings"][0]["message"].as_str();
    let warning = warning.expect("a warning");
    assert!(
        warning.starts_with("[daemon] busy-poll: ") && warning.contains(&format!("on {cpus} CPU")),
        "{warning}"
    );
    assert!(daemon.log().contains(warning), "{}", daemon.log());
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");

    let one = text.replace(&many, "workers = 1");
    let daemon = Daemon::start(&one);
    assert!(!daemon.log().contains("busy-poll"), "{}", daemon.log());
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
}
