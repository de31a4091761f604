//! `echoctl listeners` and `echoctl peers`: a list once, or again and again in the same place.

use std::thread;
use std::time::Instant;

use serde::de::DeserializeOwned;
use terminal_size::{Height, Width, terminal_size};

use crate::cli::exit::print_or_end;
use crate::protocol::schema;
use crate::protocol::wire::Parameters;

use super::args::{PeersArgs, WatchArgs};
use super::calls::decode;
use super::lists::{self, Screen};
use super::refusal::Complaint;
use super::watch::{self, List, Rates};
use super::{Session, selection, show};

impl Session {
    pub(super) fn listeners(
        &self,
        name: Option<String>,
        watch: WatchArgs,
    ) -> Result<(), Complaint> {
        let single = name.is_some();
        let asked = schema::ListListeners { name };
        self.list(watch, |rates| {
            let reply = self.call("ListListeners", &asked)?;
            self.listed(reply, |reply: schema::ListListenersReply| {
                let counts = reply.listeners.iter().map(|listener| {
                    let counts = [listener.bytes_received, listener.bytes_sent];
                    (listener.name.clone(), counts)
                });
                rates.update(Instant::now(), counts);
                match reply.listeners.as_slice() {
                    [listener] if single => List {
                        table: show::listener(listener, rates_of(rates, watch), self.paint),
                        ..List::default()
                    },
                    listeners => lists::listeners(listeners, rates_of(rates, watch), self.screen()),
                }
            })
        })
    }

    pub(super) fn peers(&self, args: &PeersArgs) -> Result<(), Complaint> {
        let asked = selection::listed(args);
        self.list(args.watch, |rates| {
            let reply = self.all_pages("ListPeers", &asked)?;
            self.listed(reply, |reply: schema::ListPeersReply| {
                let counts = reply.peers.iter().map(|peer| {
                    let counts = [peer.bytes_received, peer.bytes_sent];
                    (peer.id.to_string(), counts)
                });
                rates.update(Instant::now(), counts);
                let rates = rates_of(rates, args.watch);
                lists::peers(&reply.peers, reply.total, rates, self.screen())
            })
        })
    }

    /// Prints a list once, or again and again in the same place.
    fn list(
        &self,
        watch: WatchArgs,
        mut look: impl FnMut(&mut Rates) -> Result<List, Complaint>,
    ) -> Result<(), Complaint> {
        let mut rates = Rates::default();
        let mut is_first = true;
        loop {
            let list = look(&mut rates)?;
            match terminal_size().filter(|_| watch.watch && self.terminal && !self.json) {
                Some((Width(width), Height(height))) => {
                    // Nothing of what is on the screen is left beside the list.
                    let clear = if is_first { "\x1b[2J" } else { "" };
                    let drawn = watch::redraw(&list, (width.into(), height.into()));
                    print_or_end((clear.to_owned() + &drawn).as_bytes())?;
                }
                None => print_or_end(list.whole().as_bytes())?,
            }
            if !watch.watch {
                return Ok(());
            }
            is_first = false;
            thread::sleep(watch.interval);
        }
    }

    /// A reply as a list; as it came, it is a footer alone.
    fn listed<T: DeserializeOwned>(
        &self,
        reply: Parameters,
        show: impl FnOnce(T) -> List,
    ) -> Result<List, Complaint> {
        if self.json {
            return Ok(List {
                footer: self.json_text(reply),
                ..List::default()
            });
        }
        Ok(show(decode(reply)?))
    }

    /// How wide and in which colors tables are.
    pub(super) fn screen(&self) -> Screen {
        let width = terminal_size().map(|(Width(width), _)| usize::from(width));
        Screen {
            paint: self.paint,
            width: width.filter(|_| self.terminal && !self.wide),
        }
    }
}

/// The rates, where a list is watched; once there are none.
fn rates_of(rates: &Rates, watch: WatchArgs) -> Option<&Rates> {
    watch.watch.then_some(rates)
}
