//! The tables of the configuration, and how messages name them and their keys.

/// The tables of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Section {
    /// `[daemon]`
    Daemon,
    /// `[control]`
    Control,
    /// `[log]`
    Log,
    /// `[listener.NAME]`, and `[defaults]` for all of them.
    Listener,
}

/// A table that holds keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Daemon,
    Control,
    Log,
    Defaults,
    Listener(String),
}

impl Section {
    /// The section's name as a table.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Control => "control",
            Self::Log => "log",
            Self::Listener => "listener",
        }
    }
}

impl Table {
    pub(super) fn section(&self) -> Section {
        match self {
            Self::Daemon => Section::Daemon,
            Self::Control => Section::Control,
            Self::Log => Section::Log,
            Self::Defaults | Self::Listener(_) => Section::Listener,
        }
    }

    /// The table and the key of a path that [`Self::path`] has made.
    pub(super) fn of_path(path: &str) -> Option<(Self, &str)> {
        let (table, key) = path.rsplit_once('.')?;
        let table = match table {
            "daemon" => Self::Daemon,
            "control" => Self::Control,
            "log" => Self::Log,
            "defaults" => Self::Defaults,
            // A listener's name may have dots in it.
            listener => Self::Listener(listener.strip_prefix("listener.")?.into()),
        };
        Some((table, key))
    }

    /// How messages begin: `daemon`, `listener "main"`.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Defaults => "defaults".into(),
            Self::Listener(name) => format!("listener \"{name}\""),
            other => other.section().name().into(),
        }
    }

    /// A key with the path to it: `listener.main.backlog`.
    pub(super) fn path(&self, key: &str) -> String {
        match self {
            Self::Listener(name) => format!("listener.{name}.{key}"),
            other => format!("{}.{key}", other.subject()),
        }
    }
}
