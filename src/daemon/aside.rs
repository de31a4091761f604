//! A file that has made room for another one at its path.
//!
//! Knows names only: it is renamed within its folder, and returns or is removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::text::cause;

/// See the module. Dropping it removes the file.
#[derive(Debug)]
pub(super) struct Aside {
    aside: PathBuf,
    path: PathBuf,
}

impl Aside {
    /// Makes room at this path.
    ///
    /// # Errors
    /// As `rename(2)`.
    pub(super) fn rename(path: &Path) -> io::Result<Self> {
        let process = std::process::id();
        let names = (0..).map(|number| format!(".echod-{process}-{number}"));
        let mut paths = names.map(|name| path.with_file_name(name));
        // A name that is in use, by whatever, is passed over.
        let free = paths.find(|path| fs::symlink_metadata(path).is_err());
        let aside = free.expect("there are numbers without end");
        fs::rename(path, &aside)?;
        Ok(Self {
            aside,
            path: path.to_owned(),
        })
    }

    /// Returns the file to its path, in place of what is there.
    pub(super) fn put_back(self) {
        if let Err(error) = fs::rename(&self.aside, &self.path) {
            log::error!(
                "{}: the socket can't be put back: {}",
                self.path.display(),
                cause(&error)
            );
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After it was put back there is none.
        let _ = fs::remove_file(&self.aside);
    }
}
