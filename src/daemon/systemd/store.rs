//! Listening sockets that the service manager keeps for our successor, also after a crash
//! (`sd_pid_notify_with_fds(3)`, `FileDescriptorStoreMax=`).
//!
//! The manager's list follows ours: what is bound is kept, what a reload removes is dropped, so
//! that it never comes back. Each socket has a name of its own there, for the manager drops by name.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::cli::text::cause;
use crate::daemon::listeners::bind::Bound;
use crate::daemon::listeners::survivors::{stored_name, stored_number};

use super::notify::{Manager, SendResult};

/// What the manager keeps.
#[derive(Debug)]
pub(crate) struct Store {
    kept: BTreeSet<String>,
    last: u64,
    // Of the messages that store a socket, read at the next update.
    results: Receiver<SendResult>,
    sender: Sender<SendResult>,
}

impl Default for Store {
    fn default() -> Self {
        let (sender, results) = channel();
        Self {
            kept: BTreeSet::new(),
            last: 0,
            results,
            sender,
        }
    }
}

impl Store {
    /// The manager keeps what has these names.
    pub(crate) fn know(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.last = self.last.max(stored_number(&name).unwrap_or(0));
            self.kept.insert(name);
        }
    }

    /// Has it keep these sockets, and nothing else. Whatever was not sent is sent by the next update.
    pub(crate) fn update<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a mut Bound>,
        manager: &Manager,
    ) {
        for SendResult { name, result } in self.results.try_iter() {
            if result.is_err() {
                self.kept.remove(&name);
            }
        }
        let mut wanted = BTreeSet::new();
        for socket in sockets {
            let name = socket.stored.get_or_insert_with(|| {
                self.last += 1;
                stored_name(self.last)
            });
            wanted.insert(name.clone());
            if self.kept.contains(name) {
                continue;
            }
            match socket.fd.try_clone() {
                Ok(fd) => {
                    manager.keep(name, vec![fd], &self.sender);
                    self.kept.insert(name.clone());
                }
                Err(error) => log::warn!(
                    "{}: not kept over a crash: {}",
                    socket.address,
                    cause(&error)
                ),
            }
        }
        // A name whose removal was dropped is still kept.
        self.kept
            .retain(|name| wanted.contains(name) || !manager.remove_stored(name));
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use crate::config::Address;
    use crate::worker::mailbox::SocketKind;

    use super::*;

    /// It was taken for kept, and was lost in a crash.
    #[test]
    fn a_socket_that_was_not_sent_is_sent_by_the_next_update() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = Manager::at(&path);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bound = Bound {
            address: Address::Inet {
                address: listener.local_addr().unwrap(),
                optional: false,
            },
            kind: SocketKind::Stream,
            local: listener.local_addr().ok(),
            fd: listener.into(),
            handles: vec![],
            file: None,
            stored: None,
            passed: None,
        };
        let mut store = Store::default();
        store.update([&mut bound].into_iter(), &manager);
        // Messages are sent in order: with this one, that of the socket has failed as well.
        let (sender, results) = channel();
        manager.keep("last", vec![], &sender);
        assert!(results.recv().unwrap().result.is_err());

        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        store.update([&mut bound].into_iter(), &manager);
        let mut message = [0; 100];
        let len = socket.recv(&mut message).expect("it is sent again");
        let text = String::from_utf8_lossy(&message[..len]);
        assert!(text.contains("FDNAME=echod-socket-1\n"), "{text}");
        assert!(store.kept.contains("echod-socket-1"));
    }
}
