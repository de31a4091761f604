//! Descriptors and a text on their way to a successor: the next program of this process, or the
//! next process.
//!
//! Descriptors wait in the kernel, as messages in the queue of a socket pair (`unix(7)`,
//! SCM_RIGHTS), and the end from which they are received, a carrier, is all that has to be kept:
//! over an exec by number, over a restart in the service manager's descriptor store. Never knows
//! what the descriptors are, nor what the text says.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

/// So many descriptors go in one message at most (`SCM_MAX_FD`, `unix(7)`).
const PER_MESSAGE_MAX: usize = 253;

/// Puts descriptors into as many carriers as it takes. They stay open here, too.
///
/// # Errors
/// As `socketpair(2)` and `sendmsg(2)`; ETOOMANYREFS when the user has more on their way than one
/// process may have open.
pub fn load(descriptors: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    let mut carriers = Vec::new();
    let (mut source, mut carrier) = pair()?;
    for (number, chunk) in descriptors.chunks(PER_MESSAGE_MAX).enumerate() {
        // Its number goes with it: carriers may come in another order.
        let number = u32::try_from(number).map_err(io::Error::other)?;
        if !send(&source, number, chunk)? {
            // Full. What comes next has a queue of its own.
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

/// Takes out what [`load`] has put in, in the same order, whatever the order of the carriers.
///
/// # Errors
/// As `recvmsg(2)`, and when some are missing: there are more than this process may have open.
pub fn unload(carriers: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
    let mut chunks = Vec::new();
    for carrier in carriers {
        while let Some(chunk) = receive(carrier)? {
            chunks.push(chunk);
        }
    }
    chunks.sort_by_key(|(number, _)| *number);
    Ok(chunks.into_iter().flat_map(|(_, chunk)| chunk).collect())
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        flags,
    )?)
}

/// Whether there was room.
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

/// The next message; none at the end.
fn receive(carrier: &OwnedFd) -> io::Result<Option<(u32, Vec<OwnedFd>)>> {
    let mut bytes = [0; 4];
    let mut text = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; PER_MESSAGE_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<()>(carrier.as_raw_fd(), &mut text, Some(&mut space), flags) {
        Ok(message) => message,
        // Somebody still has the other end, and it is empty.
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if message.bytes == 0 {
        return Ok(None);
    }
    let is_whole = !message.flags.contains(MsgFlags::MSG_CTRUNC);
    let mut descriptors = Vec::new();
    for rights in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = rights {
            // SAFETY: the kernel has just made these descriptors for us alone.
            descriptors.extend(raw.iter().map(|&fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if !is_whole {
        return Err(io::Error::other(
            "there are more descriptors than this process may have open",
        ));
    }
    Ok(Some((u32::from_le_bytes(bytes), descriptors)))
}

/// A file in memory with these bytes (`memfd_create(2)`).
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

/// All that [`store`] was given.
///
/// # Errors
/// As `read(2)`.
pub fn fetch(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(file);
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// From now on the descriptor stays open over an exec, or no longer does.
///
/// # Errors
/// As `fcntl(2)`.
pub fn survive_exec(descriptor: BorrowedFd<'_>, survives: bool) -> io::Result<()> {
    let flags = if survives {
        FdFlag::empty()
    } else {
        FdFlag::FD_CLOEXEC
    };
    fcntl(descriptor, FcntlArg::F_SETFD(flags))?;
    Ok(())
}

/// Takes a descriptor that a predecessor has left open and named by its number. Call it once, and
/// before anything is opened.
///
/// # Errors
/// When it is not open.
pub fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: nothing was opened yet, so that whatever is open was left for us, and nobody else here
    // knows of it; that it is open is asked next.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = survive_exec(std::os::fd::AsFd::as_fd(&descriptor), false) {
        // It is not ours to close.
        std::mem::forget(descriptor);
        return Err(error);
    }
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_come_out_in_the_order_in_which_they_went_in() {
        let (sources, targets): (Vec<_>, Vec<_>) = (0..600)
            .map(|_| UnixStream::pair().expect("descriptors are left"))
            .unzip();
        let descriptors: Vec<_> = targets.iter().map(|target| target.as_fd()).collect();
        let carriers = load(&descriptors).expect("there is room");
        drop(targets);
        let unloaded = unload(&carriers).expect("they are there");
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
    fn what_does_not_fit_into_one_carrier_goes_into_several() {
        let file = File::open("/dev/null").expect("it is there");
        // A descriptor may travel many times.
        let descriptors = vec![file.as_fd(); 120_000];
        match load(&descriptors) {
            Ok(mut carriers) => {
                assert!(carriers.len() > 1, "one was enough");
                carriers.reverse();
                let first = receive(&carriers[0]).expect("it is open");
                assert!(first.expect("it is not empty").0 > 0);
            }
            // Only root may have so many on their way.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ETOOMANYREFS)),
        }
    }

    #[test]
    fn none_are_none_and_an_empty_carrier_is_no_error() {
        let carriers = load(&[]).expect("descriptors are left");
        assert_eq!(carriers.len(), 1);
        assert!(unload(&carriers).expect("it is open").is_empty());
    }

    #[test]
    fn a_text_is_fetched_as_it_was_stored() {
        let file = store("test", &[b"one, ", b"two"]).expect("memory is left");
        assert_eq!(fetch(file).expect("it is open"), b"one, two");
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_refused_and_not_closed() {
        assert!(inherit(1).is_err(), "standard output is nobody's legacy");
        let error = inherit(RawFd::MAX).expect_err("it is not open");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
