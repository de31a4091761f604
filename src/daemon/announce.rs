//! What a start says in the log: as which user it serves, what, and where.

use crate::cli::text::counted;
use crate::protocol::schema;

use super::Daemon;
use super::control::Server;
use super::origin::Texts;
use super::privileges::{self, Identity, Landlock};

/// The user of this process, and what it serves where there is no file.
pub(super) fn process(identity: Option<&Identity>, landlock: Option<&Landlock>, texts: &Texts) {
    privileges::announce(identity, landlock);
    if texts.built_in {
        log::info!(
            "no configuration file: serving the built-in default on loopback; \
             write /etc/echod/echod.toml, or name a file with --config"
        );
    }
}

impl Daemon {
    /// Everything is in service.
    pub(super) fn announce(&self) {
        let id = self.history.last.id;
        let listeners = self.listeners.report().into_iter();
        let is_served =
            |listener: &schema::Listener| listener.state != schema::ListenerState::Retired;
        for listener in listeners.filter(is_served) {
            let schema::Listener {
                name,
                protocol,
                addresses,
                reply,
                ..
            } = listener;
            log::info!(
                reload_id = id, listener = name.as_str();
                "listener \"{name}\": {protocol} on {}, reply {reply}",
                addresses.join(", ")
            );
        }
        // Without one there was a warning.
        let control = self.server.as_ref().map(Server::path);
        let control = control.map(|path| format!(", control socket {}", path.display()));
        log::info!(
            reload_id = id;
            "echod {} is ready: {}, driver {}{}",
            env!("CARGO_PKG_VERSION"),
            counted(self.workers.count() as u64, "worker"),
            self.workers.driver(),
            control.unwrap_or_default()
        );
    }
}
