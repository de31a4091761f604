//! What is known of a key of the configuration, and how its field is reached.

use super::findings::Remarks;
use super::table::Section;
use super::typed::Typed;
use super::{Config, Listener, Protocol};

/// One key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// The table it belongs to.
    pub section: Section,
    /// Its name, in kebab-case.
    pub name: &'static str,
    /// Its default as written in TOML; empty where the default is absence.
    pub default: &'static str,
    /// What a reload does with a new value.
    pub effect: Effect,
    /// The protocols of listeners that it applies to.
    pub protocols: &'static [Protocol],
    pub(super) field: Field,
}

/// What a reload does with a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It takes effect at once, for established connections too.
    Live,
    /// It takes effect for connections that are accepted from now on.
    NewConnections,
    /// New sockets are bound; established connections stay.
    Rebind,
    /// It takes effect at the next start.
    Restart,
}

/// The field that a key sets.
#[derive(Debug)]
pub(super) enum Field {
    Config(Lens<Config>),
    Listener(Lens<Listener>),
}

/// How a field of `T` is read, shown and copied.
#[derive(Debug)]
pub(super) struct Lens<T> {
    /// Sets it as typed. A value that is refused leaves it as it is.
    pub(super) set: fn(&mut T, &Typed, &mut Remarks<'_>),
    /// The canonical form in TOML; none for a value that is absent.
    pub(super) show: fn(&T) -> Option<String>,
    /// Sets it to the value of another.
    pub(super) copy: fn(&mut T, &T),
}

impl Key {
    /// Whether every listener has to write it itself.
    #[must_use]
    pub(crate) fn is_required(&self) -> bool {
        self.section == Section::Listener && self.default.is_empty()
    }

    /// The value of the configuration for it as TOML; none where it is absent, or another is a
    /// listener's.
    #[must_use]
    pub(crate) fn show(&self, config: &Config) -> Option<String> {
        match &self.field {
            Field::Config(lens) => (lens.show)(config),
            Field::Listener(_) => None,
        }
    }

    /// A listener's value for it as TOML; none where it does not apply.
    #[must_use]
    pub(crate) fn show_of(&self, listener: &Listener) -> Option<String> {
        match &self.field {
            Field::Listener(lens) if self.protocols.contains(&listener.protocol) => {
                (lens.show)(listener)
            }
            _ => None,
        }
    }
}

impl Effect {
    /// The effect in words, as plans and manuals say it.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewConnections => "new connections",
            Self::Rebind => "re-bind",
            Self::Restart => "restart",
        }
    }
}
