//! A configuration with all that is put in force together with it: what a reload applies, and what is
//! kept for a rollback, here and in the record for a successor.
//!
//! Knows values only. It is kept as it was understood, not as a text, so that it can be put in force
//! whatever has become of its files.

use std::time::{Duration, Instant};

use crate::config::{self, Config, KEYS, Loaded, Source, render};
use crate::daemon::origin::Texts;
use crate::daemon::record;
use crate::daemon::roles::Roles;

use super::trial::{Trial, Unconfirmed};

/// See the module.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Version {
    /// All of it, with what takes effect at a start as it is meant to be then.
    pub config: Config,
    /// The names of its texts, and what tells these from others.
    pub files: Vec<String>,
    pub fingerprint: Option<u64>,
    /// What its users and groups may do.
    pub roles: Roles,
    /// What of it was set at run time: the log level, and these keys of listeners.
    pub log_level_overridden: bool,
    pub overridden: Overridden,
}

/// Keys by the names of listeners.
pub(in crate::daemon) type Overridden = Vec<(String, Vec<&'static str>)>;

impl Version {
    /// As it was read.
    pub(super) fn read(texts: &Texts, config: Config, roles: Roles) -> Self {
        Self {
            config,
            files: texts.names(),
            fingerprint: Some(texts.fingerprint()),
            roles,
            log_level_overridden: false,
            overridden: Vec::new(),
        }
    }

    fn describe(&self) -> record::Version {
        let names = |keys: &Vec<&str>| keys.iter().map(|key| (*key).into()).collect();
        let overridden = self.overridden.iter();
        record::Version {
            config: render(&self.config),
            files: self.files.clone(),
            fingerprint: self.fingerprint,
            log_level_overridden: self.log_level_overridden,
            overridden: overridden
                .map(|(listener, keys)| (listener.clone(), names(keys)))
                .collect(),
        }
    }

    /// None if a predecessor of another version knew more than this one; the errors are logged.
    fn restore(described: &record::Version) -> Option<Self> {
        let source = Source {
            name: "the previous configuration".into(),
            text: described.config.clone(),
        };
        let Loaded { config, .. } = config::load(&[source])
            .map_err(|errors| {
                for error in errors {
                    log::error!("{error}: it can't be restored by a rollback");
                }
            })
            .ok()?;
        let known = |names: &Vec<String>| {
            let keys = KEYS.iter().map(|key| key.name);
            keys.filter(|key| names.iter().any(|name| name == key))
                .collect()
        };
        let overridden = described.overridden.iter();
        Some(Self {
            // A user that is unknown by now has no role.
            roles: Roles::resolve(&config.control).0,
            config,
            files: described.files.clone(),
            fingerprint: described.fingerprint,
            log_level_overridden: described.log_level_overridden,
            overridden: overridden
                .map(|(listener, names)| (listener.clone(), known(names)))
                .collect(),
        })
    }
}

impl Trial<Version> {
    /// For a successor.
    pub(in crate::daemon) fn describe(&self, now: Instant) -> record::Trial {
        let left = |until: Instant| until.saturating_duration_since(now).as_nanos();
        let describe = |unconfirmed: Unconfirmed| record::Unconfirmed {
            id: unconfirmed.id,
            left: u64::try_from(left(unconfirmed.until)).unwrap_or(u64::MAX),
        };
        record::Trial {
            before: self.before().map(Version::describe),
            unconfirmed: self.unconfirmed().map(describe),
        }
    }

    /// As a predecessor has described it, this time before `now`.
    pub(in crate::daemon) fn resume(
        described: &record::Trial,
        elapsed: Duration,
        now: Instant,
    ) -> Self {
        let unconfirmed = described.unconfirmed.as_ref();
        let unconfirmed = unconfirmed.map(|unconfirmed| Unconfirmed {
            id: unconfirmed.id,
            until: now + Duration::from_nanos(unconfirmed.left).saturating_sub(elapsed),
        });
        let before = described.before.as_ref();
        Self::restore(before.and_then(Version::restore), unconfirmed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn version() -> Version {
        let text =
            "[daemon]\nworkers = 3\n[listener.\"a.b\"]\nprotocol = \"tcp\"\naddress = \"*:7\"\n";
        let source = Source {
            name: "echod.toml".into(),
            text: text.into(),
        };
        let config = config::load(std::slice::from_ref(&source)).unwrap().config;
        let texts = Texts {
            sources: vec![source],
            built_in: false,
        };
        Version {
            log_level_overridden: true,
            overridden: vec![("a.b".into(), vec!["backlog"])],
            ..Version::read(&texts, config, Roles::default())
        }
    }

    fn described(now: Instant) -> record::Trial {
        let mut trial = Trial::none();
        trial.handle_reload(2, Some(version()), Some(MINUTE), now);
        let described = trial.describe(now + MINUTE / 4);
        // It goes to the successor as a text.
        let text = serde_json::to_string(&described).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_successor_restores_the_same_and_counts_the_pause_as_time() {
        let (now, later) = (Instant::now(), Instant::now() + MINUTE * 10);
        let resumed = Trial::resume(&described(now), MINUTE / 4, later);
        let unconfirmed = resumed.unconfirmed().expect("it is on trial");
        assert_eq!((unconfirmed.id, unconfirmed.until), (2, later + MINUTE / 2));
        let before = resumed.before().expect("it is kept");
        assert_eq!(format!("{before:?}"), format!("{:?}", version()));
        // However long the pause was, it is over when it is over.
        let late = Trial::resume(&described(now), MINUTE * 9, later);
        assert!(late.has_expired(later));
    }

    #[test]
    fn a_configuration_that_a_successor_does_not_know_is_not_rolled_back_to() {
        let now = Instant::now();
        let mut described = described(now);
        described.before.as_mut().unwrap().config += "[listener.\"a.b\".later]\n";
        let resumed = Trial::resume(&described, Duration::ZERO, now);
        assert!(resumed.before().is_none() && resumed.unconfirmed().is_none());
    }
}
