//! The buffers of one driver: a fixed number of equal pieces of memory, leased one by one.
//!
//! Last in, first out, so that the same few stay in the cache; memory that was never needed is
//! never touched, so that an idle worker costs nothing. Never grows.

#![expect(unsafe_code, reason = "several buffers are filled by one system call")]

use std::ops::Range;

use super::Buffer;

/// The size of a buffer, in bytes: any datagram fits, and bulk moves in large pieces.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// How many buffers a driver has: 16 MiB at most, in memory only once touched.
pub const BUFFER_COUNT: u16 = 256;

/// No buffer.
const NONE: u16 = u16::MAX;

/// All buffers of a driver, and who is next.
#[derive(Debug)]
pub(crate) struct Buffers {
    // Zeroed by the allocator with pages that the kernel has not yet given.
    memory: Box<[u8]>,
    free: Vec<u16>,
    links: Links,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        Self {
            memory: vec![0; BUFFER_BYTES * usize::from(BUFFER_COUNT)].into_boxed_slice(),
            free: (0..BUFFER_COUNT).rev().collect(),
            links: Links::new(BUFFER_COUNT),
        }
    }

    /// How many are at home.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Whether so few are left that nobody may hold one for long.
    pub(crate) fn scarce(&self) -> bool {
        self.free.len() < usize::from(BUFFER_COUNT) / 4
    }

    /// The memory that the next lease will be of, whole, if any is left.
    pub(crate) fn peek(&mut self) -> Option<(u16, &mut [u8])> {
        let index = *self.free.last()?;
        Some((index, &mut self.memory[start(index)..][..BUFFER_BYTES]))
    }

    /// The memory that the next leases will be of, in their order: as many as are left.
    pub(crate) fn peek_all(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let memory = self.memory.as_mut_ptr();
        self.free.iter().rev().map(move |&index| {
            // SAFETY: the piece is within the memory, which is borrowed for as long, and no other
            // item is of the same: an index is free once.
            unsafe { std::slice::from_raw_parts_mut(memory.add(start(index)), BUFFER_BYTES) }
        })
    }

    /// Leases the buffer that [`Self::peek`] shows, of so many bytes.
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

    pub(crate) fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        &mut self.memory[start(buffer.index)..][..buffer.len as usize]
    }

    /// Some of the bytes of a leased buffer, to be sent.
    pub(crate) fn piece(&self, buffer: &Buffer, piece: Range<usize>) -> &[u8] {
        debug_assert!(piece.end <= buffer.len as usize, "no more than it holds");
        &self.memory[start(buffer.index)..][piece]
    }

    #[expect(clippy::needless_pass_by_value, reason = "the lease ends here")]
    pub(crate) fn recycle(&mut self, buffer: Buffer) {
        self.free.push(buffer.index);
        debug_assert!(
            self.free.len() <= usize::from(BUFFER_COUNT),
            "a buffer comes home once"
        );
    }

    pub(crate) fn push(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.links.push(queue, buffer);
    }

    pub(crate) fn push_front(&mut self, queue: &mut Queue, buffer: Buffer) {
        self.links.push_front(queue, buffer);
    }

    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<Buffer> {
        self.links.pop(queue)
    }

    /// The bytes at the head of a queue, and the number of the buffer that holds them.
    pub(crate) fn front(&mut self, queue: &Queue) -> Option<(u16, &mut [u8])> {
        let (index, len) = self.links.front(queue)?;
        Some((index, &mut self.memory[start(index)..][..len as usize]))
    }

    /// Takes all buffers of a queue home.
    pub(crate) fn clear(&mut self, queue: &mut Queue) {
        while let Some(buffer) = self.pop(queue) {
            self.recycle(buffer);
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
    pub(crate) const fn new() -> Self {
        Self {
            head: NONE,
            tail: NONE,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub(crate) fn holds_one(&self) -> bool {
        self.head != NONE && self.head == self.tail
    }
}

/// What is noted about each buffer while it waits in a [`Queue`].
#[derive(Debug)]
pub(crate) struct Links(Box<[Note]>);

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
    fn the_buffer_that_came_home_last_is_leased_first() {
        let mut buffers = Buffers::new();
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
        let mut buffers = Buffers::new();
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
        let mut buffers = Buffers::new();
        let mut queue = Queue::new();
        for _ in 0..BUFFER_COUNT {
            let buffer = lease(&mut buffers, b"");
            buffers.push(&mut queue, buffer);
        }
        assert!(buffers.peek().is_none() && buffers.scarce());
        buffers.clear(&mut queue);
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
    }
}
