//! Descriptors that are only kept to be given up when there are no others, so that an operator can
//! still ask why there are none.

use std::fs::File;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::dup3;

/// How many are kept.
pub(super) const SPARE_DESCRIPTORS: usize = 4;

/// What they are open on.
const NULL: &str = "/dev/null";

/// See the module.
#[derive(Debug)]
pub(super) struct Spare {
    pub(super) files: Vec<File>,
    /// What a descriptor is made into that is to be a spare one; none if it could not be opened.
    null: Option<File>,
}

impl Spare {
    pub(super) fn new() -> Self {
        let mut spare = Self {
            files: Vec::new(),
            null: File::open(NULL).ok(),
        };
        spare.refill();
        spare
    }

    /// Makes room for a descriptor, if it can.
    pub(super) fn give_up(&mut self) -> bool {
        self.files.pop().is_some()
    }

    /// Closes a connection, and takes its descriptor where there is no other.
    pub(super) fn close(&mut self, connection: OwnedFd) {
        if self.files.len() < SPARE_DESCRIPTORS {
            match File::open(NULL) {
                Ok(file) => self.files.push(file),
                Err(cause) if cause.raw_os_error() == Some(Errno::EMFILE as i32) => {
                    return self.take(connection);
                }
                Err(_) => {}
            }
        }
        drop(connection);
        self.refill();
    }

    /// Makes a descriptor a spare one in a single step (`dup(2)`): were it free for a moment, a
    /// worker whose clients wait for one would have it.
    pub(super) fn take(&mut self, mut descriptor: OwnedFd) {
        if let Some(null) = &self.null
            && dup3(null, &mut descriptor, OFlag::O_CLOEXEC).is_ok()
        {
            self.files.push(descriptor.into());
        }
    }

    /// Takes back what there is, up to its size.
    pub(super) fn refill(&mut self) {
        while self.files.len() < SPARE_DESCRIPTORS {
            // Opened anew and not duplicated: the system's table (ENFILE) counts files.
            match File::open(NULL) {
                Ok(file) => self.files.push(file),
                Err(_) => return,
            }
        }
    }
}
