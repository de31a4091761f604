//! Descriptors and a text for a successor: the next program of this process, or the next process.
//!
//! Descriptors wait in the kernel, as messages in the queue of a socket pair (`SCM_RIGHTS`,
//! unix(7)). Only the end from which they are received, the carrier, has to be kept: over an exec by
//! its number, over a restart in the service manager's descriptor store. This module does not know
//! what the descriptors are, nor what the text says.

use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
};

use super::ancillary::{self, ControlMemory};

/// Descriptors in one message at most (`SCM_MAX_FD`, unix(7)).
const DESCRIPTORS_MAX: usize = 253;

// SAFETY: `CMSG_SPACE` only computes.
const CONTROL_BYTES: usize =
    unsafe { libc::CMSG_SPACE((DESCRIPTORS_MAX * size_of::<RawFd>()) as u32) } as usize;

/// Puts copies of the descriptors into as many carriers as their number needs. The descriptors
/// themselves stay open.
///
/// # Errors
/// As `socketpair(2)` and `sendmsg(2)`. ETOOMANYREFS: the user, without privileges, has more
/// descriptors in queues than one process may have open (`RLIMIT_NOFILE`).
pub fn put_into_carriers(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let mut carriers = Vec::new();
    let (mut source, mut carrier) = pair()?;
    for (number, chunk) in descriptors.chunks(DESCRIPTORS_MAX).enumerate() {
        // The messages are numbered, because the descriptor store does not keep the order of the
        // carriers.
        let number = u32::try_from(number).map_err(io::Error::other)?;
        if !send(&source, number, chunk)? {
            // The queue is full (SO_SNDBUF, socket(7)): begin another one.
            carriers.push(carrier);
            (source, carrier) = pair()?;
            if !send(&source, number, chunk)? {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
    carriers.push(carrier);
    Ok(carriers)
}

/// Takes the descriptors that [`put_into_carriers`] was given out of the carriers, which may be in any order. The
/// descriptors are in their original order, with close-on-exec.
///
/// # Errors
/// As `recvmsg(2)`, and if the process cannot have all of them open (`RLIMIT_NOFILE`). Descriptors
/// that were taken out until then are closed.
pub(crate) fn take_out_of_carriers(carriers: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let mut chunks = Vec::new();
    for carrier in carriers {
        while let Some(chunk) = receive(carrier)? {
            chunks.push(chunk);
        }
    }
    chunks.sort_by_key(|(number, _)| *number);
    Ok(chunks.into_iter().flat_map(|(_, chunk)| chunk).collect())
}

/// The two ends of a queue that keeps the boundaries of messages.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// Sends one message; false if the queue is full.
fn send(source: &OwnedFd, number: u32, chunk: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let raw: Vec<RawFd> = chunk.iter().map(AsRawFd::as_raw_fd).collect();
    let bytes = number.to_le_bytes();
    let text = [IoSlice::new(&bytes)];
    let rights = [ControlMessage::ScmRights(&raw)];
    match sendmsg::<()>(source.as_raw_fd(), &text, &rights, MsgFlags::empty(), None) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Receives the next message; none if the queue is empty.
fn receive(carrier: &OwnedFd) -> io::Result<Option<(u32, Vec<OwnedFd>)>> {
    let mut bytes = [0; 4];
    let mut control = ControlMemory::<CONTROL_BYTES>::new();
    let flags = libc::MSG_DONTWAIT;
    let message = match ancillary::receive(carrier.as_fd(), &mut bytes, &mut control, flags) {
        Ok(message) => message,
        // Empty, while the sending end is still open: in a process that has not ended yet.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(error),
    };
    if message.len == 0 {
        return Ok(None);
    }
    let descriptors: Vec<OwnedFd> = message
        .control_messages()
        // SAFETY: each control message is visited once.
        .flat_map(|rights| unsafe { rights.take_descriptors() }.collect::<Vec<_>>())
        .collect();
    // Checked only now, when those that were installed have an owner which closes them.
    if message.is_control_truncated() {
        return Err(io::Error::other(
            "there are more descriptors than this process may have open",
        ));
    }
    Ok(Some((u32::from_le_bytes(bytes), descriptors)))
}

/// Creates a file in memory with these bytes, one part behind the other (`memfd_create(2)`).
///
/// # Errors
/// As `memfd_create(2)` and `write(2)`.
pub fn store(name: &str, parts: &[&[u8]]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?);
    for part in parts {
        file.write_all(part)?;
    }
    Ok(file.into())
}

/// Reads all bytes of a file that [`store`] has created.
///
/// # Errors
/// As `read(2)`.
pub(crate) fn fetch(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Sets whether the descriptor stays open over an `execve(2)` (`FD_CLOEXEC`).
///
/// # Errors
/// As `fcntl(2)`.
pub(crate) fn survive_exec(descriptor: BorrowedFd<'_>, survives: bool) -> io::Result<()> {
    let flags = if survives {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Takes ownership of a descriptor that a predecessor has left open under this number. To be called
/// once, before any other descriptor is opened.
///
/// # Errors
/// If the number is that of a standard stream or is not open.
pub(crate) fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: this process has not opened any descriptor yet, so no other code here owns this one.
    // Whether it is open is checked next, before it can be closed.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = survive_exec(descriptor.as_fd(), false) {
        // The number is not open, so there is nothing to close.
        std::mem::forget(descriptor);
        return Err(error);
    }
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_are_received_in_their_original_order() {
        let (sources, targets): (Vec<_>, Vec<_>) = (0..600)
            .map(|_| UnixStream::pair().expect("descriptors are left"))
            .unzip();
        let descriptors: Vec<_> = targets.iter().map(|target| target.as_fd()).collect();
        let carriers = put_into_carriers(&descriptors).expect("there is room");
        drop(targets);
        let unloaded = take_out_of_carriers(&carriers).expect("they are there");
        assert_eq!(unloaded.len(), sources.len());
        for (number, (mut source, target)) in sources.into_iter().zip(unloaded).enumerate() {
            let text = number.to_le_bytes();
            source.write_all(&text).expect("its other end is open");
            let mut found = [0; 8];
            UnixStream::from(target)
                .read_exact(&mut found)
                .expect("it was sent");
            assert_eq!(found, text);
        }
    }

    #[test]
    fn descriptors_that_overflow_one_carrier_fill_several() {
        let file = File::open("/dev/null").expect("it is there");
        // One descriptor may be sent any number of times.
        let descriptors = vec![file.as_fd(); 120_000];
        match put_into_carriers(&descriptors) {
            Ok(mut carriers) => {
                assert!(carriers.len() > 1, "one was enough");
                carriers.reverse();
                let first = receive(&carriers[0]).expect("it is open");
                assert!(first.expect("it is not empty").0 > 0);
            }
            // Without privileges RLIMIT_NOFILE limits the descriptors in queues.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETOOMANYREFS)),
        }
    }

    #[test]
    fn an_empty_carrier_is_no_error() {
        let carriers = put_into_carriers(&[]).expect("descriptors are left");
        assert_eq!(carriers.len(), 1);
        assert!(
            take_out_of_carriers(&carriers)
                .expect("it is open")
                .is_empty()
        );
    }

    #[test]
    fn a_text_is_read_back_as_it_was_stored() {
        let file = store("test", &[b"one, ", b"two"]).expect("memory is left");
        assert_eq!(fetch(file).expect("it is open"), b"one, two");
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_refused_and_not_closed() {
        assert!(inherit(1).is_err(), "standard output cannot be inherited");
        let error = inherit(RawFd::MAX).expect_err("it is not open");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
