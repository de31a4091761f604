//! The journal's own protocol (systemd: "Native Journal Protocol"): a datagram of `NAME=value`
//! lines, so that priorities and fields arrive as such.
//!
//! Waits while the journal's queue is full.

use std::fmt::Write;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::line::Line;

/// Where the journal listens.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// A connection to the journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    facility: u8,
    socket: UnixDatagram,
}

impl Journal {
    /// The facility is its number in `syslog(3)`, not shifted.
    pub(super) fn connect(path: &Path, facility: u8) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self {
            path: path.into(),
            facility,
            socket,
        })
    }

    /// # Errors
    /// When there is no journal.
    pub(super) fn write(&self, line: &Line) -> io::Result<()> {
        let message = self.message(line);
        if self.socket.send(message.as_bytes()).is_err() {
            // A journal that was restarted has another socket.
            self.socket.connect(&self.path)?;
            self.socket.send(message.as_bytes())?;
        }
        Ok(())
    }

    /// No value of a [`Line`] has a newline, so the form with a length is never needed.
    fn message(&self, line: &Line) -> String {
        let mut message = format!(
            "PRIORITY={}\nSYSLOG_FACILITY={}\nSYSLOG_IDENTIFIER=echod\n",
            line.priority(),
            self.facility
        );
        let mut add = |name: &str, value: &dyn std::fmt::Display| {
            // A String takes everything.
            let _ = writeln!(message, "{name}={value}");
        };
        if let Some((file, number)) = line.place() {
            add("CODE_FILE", &file);
            add("CODE_LINE", &number);
        }
        for (name, value) in line.fields() {
            add(name, &value);
        }
        add("MESSAGE", &line.text());
        message
    }
}

#[cfg(test)]
mod tests {
    use log::{Level, Record};

    use super::*;

    fn line(text: &str) -> Line {
        Line::of(
            &Record::builder()
                .args(format_args!("{text}"))
                .level(Level::Error)
                .file_static(Some("src/place.rs"))
                .line(Some(12))
                .key_values(&[("listener", "main"), ("peer", "/a\nb")])
                .build(),
        )
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut message = [0; 1024];
        let len = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_line_arrives_with_its_priority_and_fields_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path, 3).unwrap();
        journal.write(&line("a text\nPRIORITY=7")).unwrap();
        let expect = expect_test::expect![[r"
            PRIORITY=3
            SYSLOG_FACILITY=3
            SYSLOG_IDENTIFIER=echod
            CODE_FILE=src/place.rs
            CODE_LINE=12
            ECHOD_LISTENER=main
            ECHOD_PEER=/a\x0ab
            MESSAGE=a text\x0aPRIORITY=7
        "]];
        expect.assert_eq(&receive(&socket));
    }

    #[test]
    fn a_journal_that_comes_back_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let socket = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::connect(&path, 3).unwrap();
        drop(socket);
        std::fs::remove_file(&path).unwrap();
        assert!(journal.write(&line("lost: there is no journal")).is_err());
        let socket = UnixDatagram::bind(&path).unwrap();
        journal.write(&line("back again")).unwrap();
        let message = receive(&socket);
        assert!(message.ends_with("\nMESSAGE=back again\n"), "{message}");
    }
}
