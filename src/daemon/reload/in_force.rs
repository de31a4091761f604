//! What is in force besides the listeners: taken note of before a reload, and put in its place by it.
//!
//! Never fails: by then everything that can is done.

use ::log::Level;

use crate::config::Config;
use crate::config::plan::restart_keys;
use crate::daemon::roles::Roles;
use crate::daemon::{Daemon, log};
use crate::worker::mailbox::Command;

use super::version::Version;

impl Daemon {
    /// Continues with the configuration of a predecessor until what was read is applied, so that this
    /// finds what changes. What takes effect at a start has done so.
    pub(in crate::daemon) fn continue_with(&mut self, before: Config) {
        let mut before = before.without_listeners();
        before.keep_restart_keys_of(&self.config);
        // A user that is unknown by now has no role.
        self.roles = Roles::resolve(&before.control).0;
        self.config = before;
        self.put_log_in_force();
    }

    /// Writes what was overridden at run time into a configuration.
    pub(super) fn keep_overrides(&self, version: &mut Version) {
        if self.log_level_overridden {
            version.config.log.level = self.config.log.level;
        }
        version.log_level_overridden = self.log_level_overridden;
        version.overridden = self.listeners.keep_overrides(&mut version.config);
    }

    /// The configuration in force, which is this one, with what the next start would have.
    pub(super) fn version_in_force(&self, mut config: Config) -> Version {
        if let Some(next_start) = &self.reloads.next_start {
            config.keep_restart_keys_of(next_start);
        }
        Version {
            config,
            files: self.files.names.clone(),
            fingerprint: self.files.fingerprint,
            roles: self.roles.clone(),
            log_level_overridden: self.log_level_overridden,
            overridden: self.listeners.overridden(),
        }
    }

    /// All but the listeners, which are committed already.
    pub(super) fn put_in_force(&mut self, version: Version) {
        let Version { mut config, .. } = version;
        config.listeners.clear();
        self.update_store();
        self.files.put_in_force(version.files, version.fingerprint);
        self.listeners.mark_overridden(version.overridden);
        self.log_level_overridden = version.log_level_overridden;
        self.roles = version.roles;
        self.reloads.next_start = Some(config.clone());
        let running = std::mem::replace(&mut self.config, config);
        self.config.keep_restart_keys_of(&running);
        self.put_log_in_force();
    }

    /// The keys of `[log]` that are live.
    pub(in crate::daemon) fn put_log_in_force(&self) {
        let settings = &self.config.log;
        log::set_level(settings.level);
        let level = if settings.connections {
            Level::Info
        } else {
            Level::Debug
        };
        self.workers.command_all(|_| Command::LogClosed(level));
    }

    /// The keys whose values take effect at the next start, such as `daemon.workers`.
    pub(in crate::daemon) fn restart_required(&self) -> Vec<String> {
        let next_start = self.reloads.next_start.iter();
        let keys = next_start.flat_map(|next| restart_keys(&self.config, next));
        keys.map(|key| format!("{}.{}", key.section.name(), key.name))
            .collect()
    }
}
