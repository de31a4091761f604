//! What is measured, and how: what stands above every table and picture.
//!
//! Knows what was asked for and never what came of it.

use crate::cli::text;
use crate::probe::args::Sizes;
use crate::probe::target::Target;

/// A service, and the way it is loaded.
#[derive(Clone, Debug)]
pub(super) struct Header {
    /// Whom it is about.
    pub(super) target: Target,
    /// How many connections, or flows of datagrams.
    pub(super) connections: u32,
    /// How many messages may be on the way on each, for each follows the one before (closed loop);
    /// none: they are due at their times (open loop).
    pub(super) depth: Option<u32>,
    /// How large messages are.
    pub(super) sizes: Sizes,
    /// How many threads of ours.
    pub(super) threads: u32,
    /// The kernel's interface that they use.
    pub(super) driver: &'static str,
}

impl Header {
    /// The service, so that it cannot steer a terminal.
    #[must_use]
    pub(super) fn service(&self) -> String {
        text::escape(&self.target.to_string())
    }

    /// How it is loaded: `50 connections, depth 4, 64 B, 1 thread, io_uring`.
    #[must_use]
    pub(super) fn way(&self) -> String {
        let kind = if self.target.is_stream() {
            "connection"
        } else {
            "flow"
        };
        let pace = match self.depth {
            Some(depth) => format!("closed loop, depth {depth}"),
            None => "open loop".to_owned(),
        };
        format!(
            "{}, {pace}, {}, {}, {}",
            text::counted(self.connections.into(), kind),
            self.size(),
            text::counted(self.threads.into(), "thread"),
            self.driver,
        )
    }

    fn size(&self) -> String {
        let Sizes { least, most } = self.sizes;
        if least == most {
            return text::bytes(least as u64);
        }
        format!("{least} to {most} B")
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_way_is_told_in_the_words_of_the_command_line() {
        let closed = sample::header();
        assert_eq!(
            closed.way(),
            "50 connections, closed loop, depth 4, 64 B, 1 thread, io_uring"
        );
        let open = Header {
            target: "udp://[2001:db8::1]:7".parse().expect("a URL"),
            connections: 1,
            sizes: Sizes {
                least: 64,
                most: 1400,
            },
            threads: 2,
            depth: None,
            ..closed
        };
        assert_eq!(
            open.way(),
            "1 flow, open loop, 64 to 1400 B, 2 threads, io_uring"
        );
        assert_eq!(open.service(), "udp://[2001:db8::1]:7");
    }
}
