//! What `nix` and `socket2` do not wrap, as safe functions on descriptors.
//!
//! Knows the kernel's interfaces and nothing of this program. With `driver`, the only module with
//! `unsafe`: one system call or one invariant to a block, each with the reason it is sound.
//! [`socket`] creates, configures and queries sockets, [`message`] transfers datagrams, [`process`]
//! is about this process, [`handover`] passes descriptors to a successor, and [`measure`] receives
//! with all details, for measurements.

#![allow(unsafe_code)]

mod ancillary;
pub(crate) mod handover;
pub mod measure;
pub(crate) mod message;
pub(crate) mod process;
pub mod socket;

use std::io;

/// The result of a system call that returns -1 on error and sets errno.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The result of a system call that returns a length, or -1 for an error.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
