//! Ancillary data of received messages (cmsg(3)): one receive with it, and one way to read it.
//!
//! Knows how control messages are laid out in memory, and nothing of what they mean. Used by
//! [`super::message`], [`super::measure`] and [`super::handover`].

use std::io;
use std::marker::PhantomData;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Memory for control messages, aligned for their headers.
#[repr(C, align(8))]
pub(super) struct ControlMemory<const BYTES: usize>([u8; BYTES]);

const _: () = assert!(
    align_of::<libc::cmsghdr>() <= align_of::<ControlMemory<1>>(),
    "the memory is aligned for headers"
);

impl<const BYTES: usize> ControlMemory<BYTES> {
    pub(super) const fn new() -> Self {
        Self([0; BYTES])
    }
}

/// A message that was received, with its ancillary data.
pub(super) struct Received<'a> {
    /// The size of the message in bytes. With `MSG_TRUNC` among the flags asked for, the size that
    /// was sent, which may exceed the memory offered.
    pub(super) len: usize,
    /// The sender's address; valid for its first `name_len` bytes.
    pub(super) name: libc::sockaddr_storage,
    pub(super) name_len: libc::socklen_t,
    // Only the control memory of the header is still pointed to.
    header: libc::msghdr,
    control: PhantomData<&'a [u8]>,
}

impl Received<'_> {
    /// The control messages that came with it, in the order of the kernel.
    pub(super) fn control_messages(&self) -> ControlMessages<'_> {
        // SAFETY: `recvmsg(2)` left the header so, and its control memory is borrowed for `'a`.
        unsafe { ControlMessages::new(&self.header) }
    }

    /// Whether control messages, or descriptors among them, were lost: there was too little memory,
    /// or the process has as many descriptors open as it may (`MSG_CTRUNC`, recvmsg(2)).
    pub(super) fn is_control_truncated(&self) -> bool {
        self.header.msg_flags & libc::MSG_CTRUNC != 0
    }
}

/// Receives one message. Descriptors that come with it are installed with close-on-exec, and the
/// caller has to take them: see [`ControlMessage::take_descriptors`].
///
/// # Errors
/// As recvmsg(2).
pub(super) fn receive<'a, const BYTES: usize>(
    fd: BorrowedFd<'_>,
    memory: &mut [u8],
    control: &'a mut ControlMemory<BYTES>,
    flags: libc::c_int,
) -> io::Result<Received<'a>> {
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (zeroed(), zeroed()) };
    let mut part = libc::iovec {
        iov_base: memory.as_mut_ptr().cast(),
        iov_len: memory.len(),
    };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = BYTES;
    // Without it, a child that is started in between inherits the descriptors.
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to live memory of ours, each piece of the length beside it.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let len = super::check_len(received)?;
    // The header outlives this call, but what these two point to does not stay where it is.
    header.msg_name = std::ptr::null_mut();
    header.msg_iov = std::ptr::null_mut();
    Ok(Received {
        len,
        name,
        name_len: header.msg_namelen,
        header,
        control: PhantomData,
    })
}

/// The control messages of one message.
pub(super) struct ControlMessages<'a> {
    header: &'a libc::msghdr,
    next: *const libc::cmsghdr,
}

impl<'a> ControlMessages<'a> {
    /// # Safety
    /// The header must be as recvmsg(2) or recvmmsg(2) left it, and its control memory must live,
    /// initialized and unchanged, for `'a`.
    pub(super) unsafe fn new(header: &'a libc::msghdr) -> Self {
        // SAFETY: the caller promises that the header describes its control memory.
        let next = unsafe { libc::CMSG_FIRSTHDR(header) };
        Self { header, next }
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = ControlMessage<'a>;

    fn next(&mut self) -> Option<ControlMessage<'a>> {
        // SAFETY: null, or a whole header within the control memory, which lives for `'a`.
        let message: &'a libc::cmsghdr = unsafe { self.next.as_ref() }?;
        // SAFETY: `CMSG_LEN` only computes.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        let len = message.cmsg_len.saturating_sub(before);
        // SAFETY: the data follow the header, and the kernel counts them in its length, also where
        // it has truncated them.
        let data = unsafe { std::slice::from_raw_parts(libc::CMSG_DATA(self.next), len) };
        // SAFETY: `next` is a header of this very control memory.
        self.next = unsafe { libc::CMSG_NXTHDR(self.header, self.next) };
        Some(ControlMessage {
            level: message.cmsg_level,
            kind: message.cmsg_type,
            data,
        })
    }
}

/// One control message: a level and a type, and the data whose meaning they define.
pub(super) struct ControlMessage<'a> {
    pub(super) level: libc::c_int,
    pub(super) kind: libc::c_int,
    data: &'a [u8],
}

/// A structure of the kernel.
///
/// # Safety
/// It consists of integers alone, for which all bits are valid.
pub(super) unsafe trait KernelData: Copy {}

// SAFETY: an integer.
unsafe impl KernelData for u8 {}
// SAFETY: an integer.
unsafe impl KernelData for libc::c_int {}
// SAFETY: made of integers (clock_gettime(2)).
unsafe impl KernelData for libc::timespec {}
// SAFETY: made of integers (ip(7)).
unsafe impl KernelData for libc::in_pktinfo {}
// SAFETY: made of integers (ipv6(7)).
unsafe impl KernelData for libc::in6_pktinfo {}
// SAFETY: made of integers (ip(7)).
unsafe impl KernelData for libc::sock_extended_err {}

impl ControlMessage<'_> {
    /// The structure at the beginning of the data; none if the data are shorter.
    pub(super) fn read<T: KernelData>(&self) -> Option<T> {
        let bytes = self.data.get(..size_of::<T>())?;
        // SAFETY: these are as many bytes as a `T` has, any of which are a `T`. They need not be
        // aligned for it.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    /// An int, as another type of integer; none if it is out of that type's range.
    pub(super) fn number<T: TryFrom<libc::c_int>>(&self) -> Option<T> {
        T::try_from(self.read::<libc::c_int>()?).ok()
    }

    /// The bytes behind a structure at the beginning of the data.
    pub(super) fn behind<T: KernelData>(&self) -> Option<&[u8]> {
        self.data.get(size_of::<T>()..)
    }

    /// Takes the descriptors of an `SCM_RIGHTS` message (unix(7)); of any other there are none.
    /// Those that the caller drops are closed.
    ///
    /// # Safety
    /// At most one call for each control message received: a descriptor has one owner.
    pub(super) unsafe fn take_descriptors(&self) -> impl Iterator<Item = OwnedFd> {
        let is_rights = (self.level, self.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        let data = if is_rights { self.data } else { &[] };
        data.as_chunks().0.iter().map(|number| {
            let number = RawFd::from_ne_bytes(*number);
            // SAFETY: the kernel has installed it for this message alone, and the caller promises
            // that it was not taken before.
            unsafe { OwnedFd::from_raw_fd(number) }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{MsgFlags, sendmsg};

    use super::*;

    // SAFETY: `CMSG_SPACE` only computes.
    const TWO_DESCRIPTORS: usize =
        unsafe { libc::CMSG_SPACE(2 * size_of::<RawFd>() as u32) } as usize;

    /// Sends a datagram with three descriptors of one stream's end; the other end shows when all of
    /// them are closed.
    fn send_three(from: &UnixDatagram) -> UnixStream {
        let (kept, sent) = UnixStream::pair().expect("a pair");
        let rights = [nix::sys::socket::ControlMessage::ScmRights(
            &[sent.as_raw_fd(); 3],
        )];
        let text = [IoSlice::new(b"three")];
        sendmsg::<()>(from.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).expect("sent");
        kept.set_nonblocking(true).expect("an option");
        kept
    }

    fn is_closed(mut kept: &UnixStream) -> bool {
        matches!(kept.read(&mut [0]), Ok(0))
    }

    #[test]
    fn descriptors_taken_from_a_message_are_closed_when_dropped() {
        let (from, to) = UnixDatagram::pair().expect("a pair");
        let kept = send_three(&from);
        let (mut bytes, mut control) = ([0; 8], ControlMemory::<128>::new());
        let message = receive(to.as_fd(), &mut bytes, &mut control, 0).expect("it is there");
        assert_eq!((message.len, &bytes[..5]), (5, &b"three"[..]));
        assert!(!message.is_control_truncated());
        let taken: Vec<_> = message
            .control_messages()
            // SAFETY: each control message is visited once.
            .flat_map(|rights| unsafe { rights.take_descriptors() }.collect::<Vec<_>>())
            .collect();
        assert_eq!(taken.len(), 3);
        assert!(!is_closed(&kept), "they are open");
        drop(taken);
        assert!(is_closed(&kept));
    }

    #[test]
    fn descriptors_that_do_not_fit_are_reported_and_those_that_fit_are_taken() {
        let (from, to) = UnixDatagram::pair().expect("a pair");
        let kept = send_three(&from);
        let mut control = ControlMemory::<TWO_DESCRIPTORS>::new();
        let message = receive(to.as_fd(), &mut [0; 8], &mut control, 0).expect("it is there");
        assert!(message.is_control_truncated());
        let mut count = 0;
        for rights in message.control_messages() {
            // SAFETY: each control message is visited once.
            count += unsafe { rights.take_descriptors() }.count();
        }
        assert_eq!(count, 2);
        assert!(is_closed(&kept), "the kernel has dropped the third");
    }

    #[test]
    fn data_shorter_than_the_structure_are_not_read() {
        let message = ControlMessage {
            level: libc::IPPROTO_IP,
            kind: libc::IP_TTL,
            data: &[64, 0, 0],
        };
        assert_eq!(message.read::<u8>(), Some(64));
        assert_eq!(message.number::<u8>(), None);
        assert_eq!(message.behind::<libc::c_int>(), None);
        // SAFETY: it was made here, and has no descriptors.
        assert_eq!(unsafe { message.take_descriptors() }.count(), 0);
    }
}
