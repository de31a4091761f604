//! How long a NAT or firewall keeps a silent flow.
//!
//! Is silent for as long as [`search`] says, on a new flow each time, and tells it whether the flow
//! was still there. That a new flow works is what tells a forgotten one from a service that is gone.

mod flow;
mod search;
mod words;

use std::time::{Duration, Instant};

use super::args::{IdleArgs, Path};
use super::cause::Causes;
use super::interrupt::Interrupt;
use super::report::Verdict;
use super::route::{self, Route};
use super::{Console, Trouble, progress};
use crate::cli::exit::Failure;
use crate::cli::terminal::complain;
use flow::{Flow, Heard, Spoken};
use search::Search;
use words::{End, Silence};

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &IdleArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    if args.from.is_zero() {
        return Err(route::usage("--from: no silence at all: write e.g. 15s"));
    }
    if args.from > args.to {
        return Err(route::usage("--from: is longer than --to"));
    }
    if path.source.is_some_and(|source| source.port != 0) {
        return Err(route::usage(
            "--source: each silence needs a flow of its own: write an address without a port",
        ));
    }
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    let mut watch = Watch {
        route,
        timeout: args.timeout,
        interrupt,
        console,
        search: Search::new(args.from, args.to, args.resolution),
        silences: Vec::new(),
    };
    let began = Instant::now();
    let stopped = match watch.greet() {
        Ok(flow) => watch.search(flow).err(),
        Err(Stop::Gone(trouble)) => return console.unreached(&trouble),
        Err(interrupted) => Some(interrupted),
    };
    watch.tell(stopped, began.elapsed())
}

/// Why a search ends before its end.
#[derive(Debug)]
enum Stop {
    /// The user has asked for it.
    Interrupted,
    /// A new flow does not work, either.
    Gone(Trouble),
}

/// The search while it goes on.
struct Watch<'a> {
    route: Route,
    timeout: Duration,
    interrupt: &'a Interrupt,
    console: &'a Console,
    search: Search,
    silences: Vec<Silence>,
}

impl Watch<'_> {
    /// Searches, with a flow that has just been spoken on.
    fn search(&mut self, flow: Flow) -> Result<(), Stop> {
        let announcement = words::announcement(&self.search, self.timeout);
        complain(&format!("{announcement}\n"));
        let mut fresh = Some(flow);
        while let Some(length) = self.search.next() {
            let mut flow = match fresh.take() {
                Some(flow) => flow,
                None => self.greet()?,
            };
            let silence = self.be_silent(&mut flow, length)?;
            match &silence.end {
                None => self.search.handle_survival(length),
                Some(end) => {
                    // Only if a new one works has the silence ended this one.
                    fresh = Some(self.greet()?);
                    self.search.handle_end(silence.length, end.is_witnessed);
                }
            }
            complain(&format!("{}\n", words::step(&silence)));
            self.silences.push(silence);
        }
        Ok(())
    }

    /// Opens a flow and speaks on it once.
    fn greet(&self) -> Result<Flow, Stop> {
        let mut flow = Flow::open(&self.route, self.timeout).map_err(Stop::Gone)?;
        match flow.speak(self.timeout, self.interrupt) {
            Spoken::Answered => Ok(flow),
            Spoken::Interrupted => Err(Stop::Interrupted),
            Spoken::Failed(cause) => Err(Stop::Gone(Trouble::new(
                self.route.target().to_string(),
                cause,
            ))),
        }
    }

    /// Is silent for so long, and speaks again.
    fn be_silent(&self, flow: &mut Flow, length: Duration) -> Result<Silence, Stop> {
        let line = progress::spinner(self.console);
        let show = |left| {
            line.set_message(words::progress(&self.search, length, left));
            line.tick();
        };
        let began = Instant::now();
        let heard = flow.listen(length, self.interrupt, show);
        let ended = |cause, is_witnessed| {
            Some(End {
                cause,
                is_witnessed,
            })
        };
        let silent = began.elapsed();
        let end = match heard {
            Heard::Interrupted => return Err(Stop::Interrupted),
            Heard::End(cause) => ended(cause, true),
            Heard::Nothing => match flow.speak(self.timeout, self.interrupt) {
                Spoken::Answered => None,
                Spoken::Interrupted => return Err(Stop::Interrupted),
                Spoken::Failed(cause) => ended(cause, false),
            },
        };
        Ok(Silence {
            // It has survived as much at least, and has not survived as much at most.
            length: if end.is_none() { length } else { silent },
            // An end is no sign of life.
            is_kept_alive: end.is_none() && flow.is_kept_alive(),
            end,
        })
    }

    /// Tells what was found, and why no more was.
    fn tell(self, stopped: Option<Stop>, duration: Duration) -> Result<Verdict, Failure> {
        let Self {
            search,
            silences,
            console,
            ..
        } = self;
        let ends = silences.iter().filter_map(|silence| silence.end.as_ref());
        let mut errors = Causes::default();
        ends.for_each(|end| errors.count(end.cause.clone()));
        if let Some(Stop::Gone(trouble)) = &stopped {
            errors.count(trouble.cause.clone());
        }
        console.report(&words::findings(&search, &silences, duration, errors))?;
        console.say(&words::sentence(&search, &silences))?;
        if let Some(caveat) = words::caveat(self.route.target(), &silences) {
            console.warn(caveat);
        }
        match stopped {
            None => return Ok(Verdict::Good),
            Some(Stop::Interrupted) => {}
            Some(Stop::Gone(trouble)) => console.warn(&format!(
                "{trouble}: no new flow works, though one did before: the service, or the way to \
                 it, is gone, and the search ends here"
            )),
        }
        Ok(Verdict::Flawed)
    }
}
