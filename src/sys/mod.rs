//! What `nix` and `socket2` do not wrap, as safe functions on descriptors.
//!
//! Knows the kernel's interfaces and nothing of ours. With `driver`, the only place with `unsafe`:
//! one system call or one invariant to a block, each with the reason it is sound.
//! [`socket`] makes and asks sockets, [`message`] moves datagrams, [`process`] is about ourselves,
//! [`handover`] is for what comes after us, [`measure`] for who looks closer.

#![allow(unsafe_code)]

pub mod handover;
pub mod measure;
pub mod message;
pub mod process;
pub mod socket;

use std::io;

/// The result of a system call that answers -1 for an error.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
