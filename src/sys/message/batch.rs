//! Many messages with one system call: `recvmmsg(2)` and `sendmmsg(2)`, with the memory that these
//! need, allocated once.

use std::io;
use std::mem::{offset_of, size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::control::{self, Control};
use super::{Envelope, Local, NAME_BYTES_MAX, Source, UnixName};
use crate::sys::socket::{decode_inet, encode_inet};
use crate::sys::{check, check_len};

/// Messages, and pieces of memory, for one system call at most.
pub(crate) const BATCH_MAX: usize = 64;

/// The structures that the kernel reads and writes for a batch. The headers' pointers are valid only
/// during a system call.
struct Memory {
    headers: Box<[libc::mmsghdr]>,
    parts: Box<[libc::iovec]>,
    names: Box<[libc::sockaddr_storage]>,
    controls: Box<[Control]>,
}

impl Memory {
    fn new() -> Self {
        // SAFETY: all fields are integers and pointers, for which zero is a value.
        let (header, part, name) = unsafe { (zeroed(), zeroed(), zeroed()) };
        Self {
            headers: vec![header; BATCH_MAX].into_boxed_slice(),
            parts: vec![part; BATCH_MAX].into_boxed_slice(),
            names: vec![name; BATCH_MAX].into_boxed_slice(),
            controls: vec![Control::EMPTY; BATCH_MAX].into_boxed_slice(),
        }
    }
}

/// Receives messages, with memory that is reused; [`Self::read`] is about the last batch.
pub(crate) struct Incoming {
    memory: Memory,
    received: usize,
    inet: bool,
}

impl Default for Incoming {
    fn default() -> Self {
        Self {
            memory: Memory::new(),
            received: 0,
            inet: false,
        }
    }
}

impl Incoming {
    /// Receives without waiting, one message into each piece of `memory`, [`BATCH_MAX`] at most.
    /// Returns the number received; if it is smaller than the number of pieces, the socket's queue
    /// is empty or the next receive fails.
    ///
    /// `inet` is false on a Unix socket. No memory for control messages is offered then, so that the
    /// kernel drops the descriptors that a peer attaches (`SCM_RIGHTS`, unix(7)).
    ///
    /// # Errors
    /// `WouldBlock` if the queue is empty; others as recvmsg(2).
    pub(crate) fn receive<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        inet: bool,
        memory: impl Iterator<Item = &'a mut [u8]>,
    ) -> io::Result<usize> {
        self.received = 0;
        self.inet = inet;
        let Memory {
            headers,
            parts,
            names,
            controls,
        } = &mut self.memory;
        let mut count = 0;
        for (bytes, index) in memory.zip(0..BATCH_MAX) {
            parts[index] = libc::iovec {
                iov_base: bytes.as_mut_ptr().cast(),
                iov_len: bytes.len(),
            };
            let header = &mut headers[index].msg_hdr;
            header.msg_name = (&raw mut names[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut parts[index];
            header.msg_iovlen = 1;
            // The kernel overwrites the lengths, so they are set for each receive.
            if inet {
                controls[index].offer(header);
            } else {
                header.msg_control = std::ptr::null_mut();
                header.msg_controllen = 0;
            }
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
        let raw = fd.as_raw_fd();
        // One message alone costs less by recvmsg(2).
        let received = if count == 1 {
            let first = &mut headers[0];
            // SAFETY: the header has just been filled with pointers to memory that is borrowed
            // exclusively, for `'a` from the caller, each of the length beside it.
            let len = check_len(unsafe { libc::recvmsg(raw, &raw mut first.msg_hdr, flags) })?;
            first.msg_len = len as libc::c_uint;
            1
        } else {
            let (to, no_timeout) = (headers.as_mut_ptr(), std::ptr::null_mut());
            // SAFETY: as above, of `count` headers.
            check(unsafe { libc::recvmmsg(raw, to, count, flags, no_timeout) })?
        };
        self.received = received as usize;
        Ok(self.received)
    }

    /// Fills the envelope of one of the messages received. Returns its size in bytes as it was sent,
    /// which exceeds the memory offered if it was truncated (`MSG_TRUNC`, recv(2)).
    ///
    /// # Panics
    /// If `index` is not below the number of messages received.
    pub(crate) fn read(&self, index: usize, envelope: &mut Envelope) -> usize {
        assert!(
            index < self.received,
            "only messages that were received are read"
        );
        let libc::mmsghdr { msg_hdr, msg_len } = &self.memory.headers[index];
        let name = &raw const self.memory.names[index];
        envelope.local = None;
        envelope.unicast = true;
        envelope.size = *msg_len as usize;
        if self.inet {
            // SAFETY: the kernel wrote an address of the socket's family, or none and length 0.
            envelope.source = match unsafe { decode_inet(name, msg_hdr.msg_namelen) } {
                Some(address) => Source::Inet(address),
                None => Source::Unix(UnixName::NONE),
            };
            // SAFETY: the kernel left the header so, and its control memory is in `self.memory`.
            unsafe { control::read(msg_hdr, envelope) };
        } else {
            envelope.source = Source::Unix(UnixName::decode(
                &self.memory.names[index],
                msg_hdr.msg_namelen,
            ));
        }
        *msg_len as usize
    }
}

/// A message to be sent: one datagram, or several that the kernel cuts it into.
pub(crate) struct Message<'a, P> {
    /// Where it goes.
    pub to: &'a Source,
    /// The address that it leaves from; none for the one that the socket is bound to.
    pub from: Option<&'a Local>,
    /// The size in bytes of the datagrams to cut it into, the last of which may be shorter
    /// (`UDP_SEGMENT`, udp(7)); none to send it as one.
    pub size: Option<u16>,
    /// The pieces of memory that its bytes are in, in order.
    pub parts: P,
}

/// Sends messages, with memory that is reused.
pub(crate) struct Outgoing(Memory);

impl Default for Outgoing {
    fn default() -> Self {
        Self(Memory::new())
    }
}

impl Outgoing {
    /// Sends messages without waiting, [`BATCH_MAX`] at most. Returns the number sent; if it is
    /// smaller than the number of messages, the next one failed, and sending it again returns the
    /// error (sendmmsg(2)).
    ///
    /// # Errors
    /// Those of the first message: `WouldBlock` if the send buffer, or the queue of a Unix peer, is
    /// full; others as sendmsg(2).
    ///
    /// # Panics
    /// If the messages have more than [`BATCH_MAX`] parts in all.
    pub(crate) fn send<'a, P: Iterator<Item = &'a [u8]>>(
        &mut self,
        fd: BorrowedFd<'_>,
        messages: impl Iterator<Item = Message<'a, P>>,
    ) -> io::Result<usize> {
        let Memory {
            headers,
            parts,
            names,
            controls,
        } = &mut self.0;
        let mut count = 0;
        // The messages share one array of parts: each takes the next elements.
        let mut rest = &mut parts[..];
        for (message, index) in messages.zip(0..BATCH_MAX) {
            let header = &mut headers[index].msg_hdr;
            let name = &mut names[index];
            header.msg_namelen = match message.to {
                Source::Inet(address) => encode_inet(address, name),
                Source::Unix(unix) => encode_unix(unix, name),
            };
            header.msg_name = (&raw mut *name).cast();
            controls[index].write(header, message.from, message.size);
            let mut used = 0;
            for bytes in message.parts {
                rest[used] = libc::iovec {
                    iov_base: bytes.as_ptr().cast_mut().cast(),
                    iov_len: bytes.len(),
                };
                used += 1;
            }
            let (ours, others) = rest.split_at_mut(used);
            header.msg_iov = ours.as_mut_ptr();
            header.msg_iovlen = used;
            rest = others;
            count += 1;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let (raw, from) = (fd.as_raw_fd(), headers.as_mut_ptr());
        // One message alone costs less by sendmsg(2).
        if count == 1 {
            let header = &raw const headers[0].msg_hdr;
            // SAFETY: the header has just been filled with pointers to live memory, each of the
            // length beside it; the kernel only reads.
            check_len(unsafe { libc::sendmsg(raw, header, flags) })?;
            return Ok(1);
        }
        // SAFETY: as above, of `count` headers, in which the kernel writes the lengths sent.
        let sent = check(unsafe { libc::sendmmsg(raw, from, count, flags) })?;
        Ok(sent as usize)
    }
}

/// Writes the address of a Unix socket for the kernel to read; returns its length.
fn encode_unix(unix: &UnixName, name: &mut libc::sockaddr_storage) -> libc::socklen_t {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as u16,
        sun_path: [0; NAME_BYTES_MAX],
    };
    for (to, from) in address.sun_path.iter_mut().zip(unix.bytes) {
        *to = from.cast_signed();
    }
    let to: *mut libc::sockaddr_storage = name;
    // SAFETY: a `sockaddr_storage` is large enough and aligned for every kind of address.
    unsafe { to.cast::<libc::sockaddr_un>().write(address) };
    (offset_of!(libc::sockaddr_un, sun_path) + usize::from(unix.len)) as libc::socklen_t
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").finish_non_exhaustive()
    }
}
