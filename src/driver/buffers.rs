//! The buffers of one driver: a fixed number of equal pieces of memory, leased one by one.
//!
//! Last in, first out, so that the same few stay in the cache; memory that was never needed is
//! never touched, so that an idle worker costs nothing. Never grows.

#![expect(unsafe_code, reason = "several buffers are filled by one system call")]

use std::io;
use std::ops::Range;

use super::Buffer;
use super::region::Region;

/// The size of a buffer, in bytes: any datagram fits, and bulk moves in large pieces.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// How many buffers a driver has: 16 MiB at most, in memory only once touched.
pub(crate) const BUFFER_COUNT: u16 = 256;

/// Buffers that datagrams leave to streams: answers that wait for a slow network can hold a buffer
/// for as long as that network likes, and connections must not wait for them.
pub(crate) const STREAM_RESERVE: usize = BUFFER_COUNT as usize / 4;

/// How many buffers more than the minimum have to be free before starved endpoints resume: enough
/// for a batch, so that they do not resume for one message each.
const RESUME_COUNT: usize = BUFFER_COUNT as usize / 8;

/// No buffer.
const NONE: u16 = u16::MAX;

/// What an endpoint lacked when it could not receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// One of the small buffers that a driver may have for short messages.
    Small,
    /// A buffer of [`BUFFER_BYTES`], for a stream.
    Large,
    /// A buffer of [`BUFFER_BYTES`] beyond [`STREAM_RESERVE`], for datagrams.
    Datagram,
}

impl Need {
    /// In the order of their numbers.
    pub(crate) const ALL: [Self; 3] = [Self::Small, Self::Large, Self::Datagram];
}

/// The leased memory of a driver, as far as it is the same for all of them.
pub trait Memory {
    /// The bytes of the leased buffer with this index and length.
    fn piece(&mut self, index: u16, len: u32) -> &mut [u8];

    /// Returns a buffer to the pool.
    fn recycle(&mut self, buffer: Buffer);

    /// Where queues of leased buffers are linked.
    fn links(&mut self) -> &mut Links;

    /// The buffers of [`BUFFER_BYTES`].
    fn large(&mut self) -> &mut Buffers;

    /// Whether too few are free for a stalled connection to hold one.
    fn is_scarce(&self) -> bool;

    /// Whether endpoints that lacked this may receive again.
    fn has_enough(&self, need: Need) -> bool;

    /// The bytes of a leased buffer.
    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.piece(buffer.index, buffer.len)
    }
}

/// All buffers of a driver, and which is leased next.
#[derive(Debug)]
pub struct Buffers {
    memory: Region,
    free: Vec<u16>,
    links: Links,
}

impl Buffers {
    /// How much memory is mapped for them.
    pub(crate) const REGION_BYTES: usize = BUFFER_BYTES * BUFFER_COUNT as usize;

    /// # Errors
    /// When the memory is unavailable (`mmap(2)`).
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            memory: Region::new(Self::REGION_BYTES)?,
            free: (0..BUFFER_COUNT).rev().collect(),
            links: Links::new(BUFFER_COUNT),
        })
    }

    /// How many are free.
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// How many of them datagrams may be received into.
    pub(crate) fn free_for_datagrams(&self) -> usize {
        self.free.len().saturating_sub(STREAM_RESERVE)
    }

    /// The memory that the next lease will be of, whole, if any is free.
    pub(crate) fn peek(&mut self) -> Option<(u16, &mut [u8])> {
        let index = *self.free.last()?;
        // SAFETY: the buffer is free, so that no lease has it nor the kernel, and it cannot be leased
        // while `self` is borrowed.
        let bytes = unsafe { &mut *self.memory.piece(start(index), BUFFER_BYTES) };
        Some((index, bytes))
    }

    /// The memory that the next leases will be of, in their order: as many as are free.
    pub(crate) fn peek_all(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let memory = &self.memory;
        self.free.iter().rev().map(move |&index| {
            // SAFETY: as in `peek`; no other item is of the same piece, because an index is in the
            // list of free ones once.
            unsafe { &mut *memory.piece(start(index), BUFFER_BYTES) }
        })
    }

    /// Leases the buffer that [`Self::peek`] shows, with `len` bytes in it.
    pub(crate) fn lease(&mut self, len: usize) -> Buffer {
        debug_assert!(len <= BUFFER_BYTES, "no more than fits is in a buffer");
        let index = self
            .free
            .pop()
            .expect("the caller has seen that one is free");
        Buffer {
            index,
            len: len as u32,
        }
    }

    /// Leases a buffer for what the user itself sends, if receiving is left enough of them.
    pub(crate) fn lease_for_user(&mut self, len: usize) -> Option<Buffer> {
        self.has_enough(Need::Datagram).then(|| self.lease(len))
    }

    /// Some of the bytes of a leased buffer, to be sent.
    pub(crate) fn part(&self, buffer: &Buffer, part: Range<usize>) -> &[u8] {
        debug_assert!(part.end <= buffer.len as usize, "no more than it holds");
        // SAFETY: the buffer is leased, so that no other lease has it, and the kernel reads it at most.
        let bytes = unsafe { &*self.memory.piece(start(buffer.index), buffer.len as usize) };
        &bytes[part]
    }

    /// Puts a buffer behind all others of a queue.
    pub(crate) fn push(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.links.push(queue, buffer);
    }

    /// Puts a buffer before all others of a queue.
    pub(crate) fn push_front(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.links.push_front(queue, buffer);
    }

    /// Takes the first buffer out of a queue.
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Buffer> {
        self.links.pop(queue)
    }

    /// Returns all buffers of a queue to the pool.
    pub(crate) fn clear(&mut self, queue: &mut Queue) {
        while let Some(buffer) = self.pop(queue) {
            self.recycle(buffer);
        }
    }
}

impl Memory for Buffers {
    fn piece(&mut self, index: u16, len: u32) -> &mut [u8] {
        // SAFETY: the buffer is leased, so that no other lease has it; while the kernel reads what is
        // sent of it, its bytes are only read here, too (`Ring::send`).
        unsafe { &mut *self.memory.piece(start(index), len as usize) }
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.free.push(buffer.index);
        debug_assert!(
            self.free.len() <= usize::from(BUFFER_COUNT),
            "a buffer is returned once"
        );
    }

    fn links(&mut self) -> &mut Links {
        &mut self.links
    }

    fn large(&mut self) -> &mut Buffers {
        self
    }

    // Above the mark at which datagrams resume: stalled streams must not keep them from it.
    fn is_scarce(&self) -> bool {
        !self.has_enough(Need::Datagram)
    }

    fn has_enough(&self, need: Need) -> bool {
        match need {
            Need::Small | Need::Large => self.free.len() > RESUME_COUNT,
            Need::Datagram => self.free_for_datagrams() > RESUME_COUNT,
        }
    }
}

fn start(index: u16) -> usize {
    usize::from(index) * BUFFER_BYTES
}

/// Leased buffers in order, linked through [`Links`]: any number of queues, and no allocation.
#[derive(Debug)]
pub(crate) struct Queue {
    head: u16,
    tail: u16,
}

impl Queue {
    /// An empty one.
    pub(crate) const fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }

    /// Whether no buffer is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

/// What is noted about each buffer while it waits in a [`Queue`].
#[derive(Debug)]
pub struct Links(Box<[Note]>);

#[derive(Clone, Copy, Debug)]
struct Note {
    len: u32,
    next: u16,
}

impl Links {
    /// For buffers with indices below `count`.
    pub(crate) fn new(count: u16) -> Self {
        Self(vec![Note { len: 0, next: NONE }; usize::from(count)].into_boxed_slice())
    }

    /// Puts a buffer behind all others.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the queue holds the lease now"
    )]
    pub(crate) fn push(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.0[usize::from(buffer.index)] = Note {
            len: buffer.len,
            next: NONE,
        };
        if queue.head == NONE {
            queue.head = buffer.index;
        } else {
            self.0[usize::from(queue.tail)].next = buffer.index;
        }
        queue.tail = buffer.index;
    }

    /// Puts a buffer before all others.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "the queue holds the lease now"
    )]
    pub(crate) fn push_front(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.0[usize::from(buffer.index)] = Note {
            len: buffer.len,
            next: queue.head,
        };
        if queue.head == NONE {
            queue.tail = buffer.index;
        }
        queue.head = buffer.index;
    }

    /// Takes the first buffer out.
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Buffer> {
        let (index, len) = self.front(queue)?;
        queue.head = self.0[usize::from(index)].next;
        Some(Buffer { index, len })
    }

    /// The index and length of the buffer at the head of a queue.
    pub(crate) fn front(&self, queue: &Queue) -> Option<(u16, u32)> {
        let index = queue.head;
        (index != NONE).then(|| (index, self.0[usize::from(index)].len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(buffers: &mut Buffers, bytes: &[u8]) -> Buffer {
        let (_, memory) = buffers.peek().expect("a buffer is free");
        memory[..bytes.len()].copy_from_slice(bytes);
        buffers.lease(bytes.len())
    }

    #[test]
    fn the_buffer_that_was_returned_last_is_leased_first() {
        let mut buffers = Buffers::new().expect("there is memory");
        let first = lease(&mut buffers, b"one");
        let index = first.index;
        buffers.recycle(first);
        let second = lease(&mut buffers, b"two");
        assert_eq!(second.index, index);
        assert_eq!(buffers.bytes(&second), b"two");
        buffers.recycle(second);
    }

    #[test]
    fn queues_keep_their_order_and_share_nothing() {
        let mut buffers = Buffers::new().expect("there is memory");
        let (mut one, mut two) = (Queue::new(), Queue::new());
        for text in [b"a", b"b", b"c"] {
            let buffer = lease(&mut buffers, text);
            buffers.push(&mut one, buffer);
            let buffer = lease(&mut buffers, &text.to_ascii_uppercase());
            buffers.push(&mut two, buffer);
        }
        let mut drain = |queue: &mut Queue| {
            let mut text = String::new();
            while let Some(buffer) = buffers.pop(queue) {
                text.push_str(std::str::from_utf8(buffers.bytes(&buffer)).unwrap());
                buffers.recycle(buffer);
            }
            text
        };
        assert_eq!(
            (drain(&mut one), drain(&mut two)),
            ("abc".into(), "ABC".into())
        );
        assert!(one.is_empty() && two.is_empty());
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
    }

    #[test]
    fn when_all_are_leased_there_is_none() {
        let mut buffers = Buffers::new().expect("there is memory");
        let mut queue = Queue::new();
        for _ in 0..BUFFER_COUNT {
            let buffer = lease(&mut buffers, b"");
            buffers.push(&mut queue, buffer);
        }
        assert!(buffers.peek().is_none() && buffers.is_scarce());
        buffers.clear(&mut queue);
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
    }

    #[test]
    fn datagrams_leave_a_share_to_streams() {
        let mut buffers = Buffers::new().expect("there is memory");
        let mut queue = Queue::new();
        while buffers.free_for_datagrams() > 0 {
            let buffer = lease(&mut buffers, b"");
            buffers.push(&mut queue, buffer);
        }
        assert_eq!(buffers.free(), STREAM_RESERVE);
        assert!(buffers.has_enough(Need::Large) && !buffers.has_enough(Need::Datagram));
        for _ in 0..=RESUME_COUNT {
            let buffer = buffers.pop(&mut queue).expect("many are leased");
            buffers.recycle(buffer);
        }
        assert!(buffers.has_enough(Need::Datagram));
    }
}
