//! Standard input through a service and back, compared while it flows.
//!
//! How a stream is sent is in [`stream`], how datagrams are in [`datagrams`]. Never holds more than
//! what is on the way.

mod datagrams;
mod stream;

use super::args::SendArgs;
use super::console::{self, Stop};
use super::printable::Printable;
use super::report::Verdict;
use super::session::Session;

/// Does what the command line says.
pub(super) fn run(session: &Session, args: &SendArgs) -> Result<Verdict, Stop> {
    let input = console::input()?;
    let mut text = Printable::default();
    let ended = match args.url.is_stream() {
        true => stream::run(session, args, &input, &mut text),
        false => datagrams::run(session, args, &input, &mut text),
    };
    // What was begun and is not completed.
    let ended = ended.and_then(|verdict| {
        session.console.say(&text.rest())?;
        Ok(verdict)
    });
    match ended {
        // The reader of the output may stop: that ends it, and is no failure.
        Err(Stop::Unread) => Ok(Verdict::Good),
        other => other,
    }
}
