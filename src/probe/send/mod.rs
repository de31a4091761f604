//! Standard input through a service and back, compared while it flows.
//!
//! How a stream is sent is in [`stream`], how datagrams are in [`datagrams`]; both print to an
//! [`output`]. Never holds more than what is on the way.

mod datagrams;
mod output;
mod stream;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use super::args::SendArgs;
use super::console::Stop;
use super::report::Verdict;
use super::session::Session;
use output::Output;

/// Does what the command line says.
pub(super) fn run(session: &Session, args: &SendArgs) -> Result<Verdict, Stop> {
    let input = own_descriptor(io::stdin(), "standard input")?;
    let output = Output::open(&session.console)?;
    let ended = match args.url.is_stream() {
        true => stream::run(session, args, &input, output),
        false => datagrams::run(session, args, &input, output),
    };
    match ended {
        // The reader of the output may stop: that ends it, and is no failure.
        Err(Stop::Unread) => Ok(Verdict::Good),
        other => other,
    }
}

/// A descriptor of our own for a standard stream, without the buffer in front of it.
fn own_descriptor(fd: impl AsFd, name: &str) -> Result<File, Stop> {
    let own = fd.as_fd().try_clone_to_owned();
    own.map(File::from).map_err(|error| Stop::of(name, &error))
}
