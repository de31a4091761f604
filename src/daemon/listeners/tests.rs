//! Listeners with real sockets, and workers that serve them. Each test has addresses of its own, below
//! 127.77.0.0/16.

use std::collections::BTreeMap;
use std::time::Duration;

use socket2::Type;

use crate::config::{Config, Mood, Source, plan};
use crate::sys::process::Passed;
use crate::sys::socket::Binding;
use crate::worker::mailbox::Report;

use super::*;

const PORT: u16 = 17_007;

/// What a daemon has of its listeners.
struct Service {
    config: Config,
    listeners: Listeners,
    workers: Workers,
}

fn load(text: &str) -> Config {
    let source = Source {
        name: "test".into(),
        text: format!("[daemon]\ndriver = \"epoll\"\nworkers = 1\n{text}"),
    };
    config::load(&[source]).unwrap().config
}

fn tcp(name: &str, address: &str, more: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"{address}:{PORT}\"\n{more}\n")
}

impl Service {
    fn start(text: &str) -> Self {
        let mut service = Self {
            config: Config {
                listeners: BTreeMap::new(),
                ..load(text)
            },
            listeners: Listeners::default(),
            workers: Workers::start(1, &load(text).daemon).unwrap(),
        };
        service.reload(text).unwrap();
        service
    }

    fn prepare(&self, new: &Config, mood: Mood) -> Result<Prepared, Vec<String>> {
        let changes = plan(&self.config, new, &BTreeMap::new(), mood).changes;
        let passed = passed::Sockets::sort(Vec::<Passed>::new(), new);
        self.listeners.prepare(new, &changes, 1, passed, mood)
    }

    fn reload(&mut self, text: &str) -> Result<(), Vec<String>> {
        let new = load(text);
        let prepared = self.prepare(&new, Mood::Real)?;
        let changes = plan(&self.config, &new, &BTreeMap::new(), Mood::Real).changes;
        let (workers, now) = (&self.workers, Instant::now());
        let warnings = self
            .listeners
            .commit(prepared, &new, &changes, workers, now)?;
        assert_eq!(warnings, [""; 0]);
        self.config = new;
        Ok(())
    }

    /// Handles reports of the workers until a listener that was retired is forgotten.
    fn wait_until_forgotten(&mut self) {
        let mut ready = [nix::poll::PollFd::new(
            self.workers.control().as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        nix::poll::poll(&mut ready, 20_000u16).unwrap();
        for report in self.workers.take_reports() {
            match report {
                Report::ListenerRetired { listener } => {
                    self.listeners.handle_listener_retired(listener);
                }
                Report::Retired { id, .. } => self.listeners.handle_retired(id, &self.workers),
                other => panic!("{other:?}"),
            }
        }
        self.listeners.sweep(&self.workers, Instant::now());
        if !self.listeners.retired.is_empty() {
            self.wait_until_forgotten();
        }
    }

    fn socket(&self, name: &str) -> &Socket {
        let listener = &self.listeners.in_service[name];
        self.listeners.sockets_of(listener).next().unwrap()
    }
}

#[test]
fn twice_as_many_listeners_are_twice_as_much_to_look_at() {
    // The sockets that are looked at when all listeners change, pass to others, and go.
    let visited = |net: u8, count: u8| {
        let all = |prefix: &str, more: &str| -> String {
            let listeners = (1..=count).map(|host| {
                let address = format!("127.77.{net}.{host}");
                tcp(&format!("{prefix}{host}"), &address, more)
            });
            listeners.collect()
        };
        let mut service = Service::start(&all("a", "sockets = 1"));
        let before = service.socket("a1").id;
        for text in [
            all("b", "sockets = 1"),
            all("b", "sockets = 2"),
            all("b", "sockets = 1"),
        ] {
            service.reload(&text).unwrap();
        }
        assert_eq!(service.socket("b1").id, before, "it stays, whoever has it");
        service.reload(&tcp("last", "127.77.10.250", "")).unwrap();
        let visited = service.listeners.sockets.visited.get();
        service.workers.stop();
        visited
    };
    let (some, more) = (visited(10, 40), visited(11, 80));
    assert!(more <= 2 * some, "{some} sockets, then {more}");
}

/// A port alone decided: another process's socket of the same user was shared.
#[test]
fn an_address_is_shared_with_retired_sockets_of_that_address_alone() {
    let mut service = Service::start(&tcp("old", "127.77.1.1", ""));
    let other = "127.77.1.2:17007".parse().unwrap();
    let others = socket::bind_inet(Type::STREAM, other, Binding::Shared).unwrap();
    socket::listen(others.as_fd(), 1).unwrap();
    service.reload(&tcp("kept", "127.77.1.3", "")).unwrap();
    assert!(!service.listeners.all_retired());
    let kept = tcp("kept", "127.77.1.3", "");
    let with = |address| format!("{kept}{}", tcp("new", address, ""));
    let refused = service.reload(&with("127.77.1.2")).unwrap_err();
    assert!(refused[0].contains("address already in use"), "{refused:?}");
    drop(others);
    service.reload(&with("127.77.1.1")).unwrap();
    service.workers.stop();
}

#[test]
fn more_sockets_of_one_address_leave_those_of_another_alone() {
    let text = |sockets: &str| {
        let more = tcp("more", "127.77.2.1", sockets);
        more + &tcp("other", "127.77.2.2", "sockets = 1")
    };
    let mut service = Service::start(&text("sockets = 1"));
    service.reload(&text("sockets = 2")).unwrap();
    let is_shared = |name| socket::is_shared(service.socket(name).bound.fd.as_fd());
    assert!(is_shared("more"));
    assert!(!is_shared("other"), "any process could share it");
    service.workers.stop();
}

#[test]
fn what_is_only_tried_does_not_listen() {
    let service = Service::start(&tcp("old", "127.77.3.1", ""));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s").display().to_string();
    let unix = format!("[listener.u]\nprotocol = \"unix-stream\"\naddress = \"{path}\"\n");
    let new = load(&(tcp("new", "127.77.3.2", "") + &unix));
    for (mood, listens) in [(Mood::Conditional, false), (Mood::Real, true)] {
        let prepared = service.prepare(&new, mood).unwrap();
        let bound: Vec<&Bound> = prepared.bound().collect();
        assert_eq!(bound.len(), 2);
        for bound in bound {
            assert_eq!(socket::is_listening(bound.fd.as_fd()), listens);
        }
        assert_eq!(
            std::os::unix::net::UnixStream::connect(&path).is_ok(),
            listens
        );
    }
    service.workers.stop();
}

#[test]
fn a_port_that_the_kernel_has_chosen_stays_with_its_listener() {
    let text = |name: &str, more: &str| {
        format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.77.4.1:0\"\n{more}\n")
    };
    let mut service = Service::start(&text("main", "sockets = 1"));
    let local = service.socket("main").bound.local;
    service.reload(&text("main", "sockets = 2")).unwrap();
    let listener = &service.listeners.in_service["main"];
    let sockets = service.listeners.sockets_of(listener);
    let locals: Vec<_> = sockets.map(|socket| socket.bound.local).collect();
    assert_eq!(locals, [local, local]);
    service.reload(&text("other", "sockets = 1")).unwrap();
    assert_ne!(service.socket("other").bound.local, local);
    service.workers.stop();
}

#[test]
fn the_configuration_in_force_has_what_was_set_at_run_time_until_the_next_reload() {
    let text = tcp("main", "127.77.5.1", "backlog = 7");
    let mut service = Service::start(&text);
    let daemon = Config {
        listeners: BTreeMap::new(),
        ..load(&text)
    };
    assert_eq!(service.listeners.complete(&daemon), load(&text));
    service.listeners.set_backlog("main", 5).unwrap();
    let in_force = service.listeners.complete(&daemon);
    assert_eq!(in_force.listeners["main"].backlog, 5);
    service.config = in_force;
    service.reload(&text).unwrap();
    assert_eq!(service.listeners.complete(&daemon), load(&text));
    service.workers.stop();
}

/// The reply said that nothing had changed, and the sockets before the one that failed had changed.
#[test]
fn a_backlog_that_one_socket_refuses_is_changed_at_none() {
    let text = tcp("main", "127.77.7.1", "backlog = 7\nsockets = 2");
    let mut service = Service::start(&text);
    let sockets = &mut service.listeners.sockets;
    // As one of which the kernel refuses it.
    let (connected, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let last = sockets.bound_mut().last().unwrap();
    (last.fd, last.local) = (connected.into(), None);
    assert!(service.listeners.set_backlog("main", 5).is_err());
    let first = service.listeners.sockets.iter().next().unwrap();
    let queue = socket::queue(first.bound.fd.as_fd()).unwrap();
    assert_eq!(queue.effective, 7);
    assert_eq!(service.listeners.in_service["main"].config.backlog, 7);
    service.workers.stop();
}

/// A client that was accepted in that moment was never answered.
#[test]
fn a_listener_is_forgotten_when_the_workers_know_that_its_sockets_have_passed_to_another() {
    let mut service = Service::start(&tcp("before", "127.77.6.1", ""));
    service.reload(&tcp("after", "127.77.6.1", "")).unwrap();
    assert!(service.listeners.all_retired(), "its socket has passed");
    let much_later = Instant::now() + Duration::from_secs(10);
    service.listeners.sweep(&service.workers, much_later);
    assert_eq!(service.listeners.retired.len(), 1, "not confirmed yet");
    service.wait_until_forgotten();
    assert!(service.listeners.unconfirmed.is_empty());
    service.workers.stop();
}
