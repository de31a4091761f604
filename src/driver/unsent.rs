//! The bytes of one connection that are submitted and not yet with the kernel, in order.
//!
//! A queue of pieces, one for each `Send`. A piece is a leased buffer, or, where buffers became
//! scarce, memory of just its size: peers that do not read must not keep buffers from those that
//! do. Knows no socket; the memory of the buffers is an argument.

use std::collections::VecDeque;

use super::Buffer;
use super::buffers::{Memory, Queue};

/// The most bytes that are held for a peer that does not read.
pub(super) const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// A connection is received from while no more than this is unsent. Half of the maximum, so that
/// there is room for what one receive brings.
pub(super) const RECEIVE_BELOW: u32 = UNSENT_BYTES_MAX / 2;

/// See the module. Small: an idle connection has one, too.
#[derive(Debug)]
pub(super) struct Unsent {
    /// How many bytes of the first piece are sent.
    sent: u32,
    /// Unsent bytes of all pieces.
    bytes: u32,
    /// Pieces in leased buffers. All of them come after the spilled ones.
    leased: Queue,
    /// Pieces in memory of their own; never empty. Boxed, because hardly any connection has one.
    #[expect(
        clippy::box_collection,
        reason = "every connection has room for the pointer"
    )]
    spilled: Option<Box<VecDeque<Box<[u8]>>>>,
}

impl Unsent {
    /// Nothing.
    pub(super) const fn new() -> Self {
        Self {
            sent: 0,
            bytes: 0,
            leased: Queue::new(),
            spilled: None,
        }
    }

    /// These bytes as one piece; none if there are none.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let mut unsent = Self::new();
        if !bytes.is_empty() {
            unsent.bytes = bytes.len() as u32;
            unsent.spilled = Some(Box::new(VecDeque::from([bytes.into_boxed_slice()])));
        }
        unsent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.spilled.is_none() && self.leased.is_empty()
    }

    /// How many bytes are unsent.
    pub(super) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// How many more may be received until the maximum is reached.
    pub(super) fn room(&self) -> usize {
        UNSENT_BYTES_MAX.saturating_sub(self.bytes) as usize
    }

    /// Appends a piece.
    pub(super) fn push(&mut self, memory: &mut impl Memory, buffer: Buffer) {
        self.bytes += buffer.len;
        memory.links().push(&mut self.leased, buffer);
    }

    /// The unsent bytes of the first piece.
    pub(super) fn front<'a>(&'a self, memory: &'a mut impl Memory) -> Option<&'a [u8]> {
        let piece = match &self.spilled {
            Some(spilled) => spilled.front()?,
            None => {
                let (index, len) = memory.links().front(&self.leased)?;
                &*memory.piece(index, len)
            }
        };
        Some(&piece[self.sent as usize..])
    }

    /// Counts `len` bytes of the first piece as sent. If that is the last of them, the piece is
    /// removed, its buffer returned to the pool, and its whole length the result.
    pub(super) fn handle_sent(&mut self, memory: &mut impl Memory, len: u32) -> Option<u32> {
        let rest = self.front(memory)?.len() as u32;
        debug_assert!(len <= rest, "no more is sent than there was");
        self.bytes -= len;
        self.sent += len;
        if len < rest {
            return None;
        }
        self.remove_first(memory);
        Some(std::mem::take(&mut self.sent))
    }

    fn remove_first(&mut self, memory: &mut impl Memory) {
        if let Some(spilled) = &mut self.spilled {
            spilled.pop_front();
            if spilled.is_empty() {
                self.spilled = None;
            }
        } else if let Some(buffer) = memory.links().pop(&mut self.leased) {
            memory.recycle(buffer);
        }
    }

    /// Moves all pieces into memory of their own, of just their size. Not while the kernel has a
    /// request to send the first one.
    pub(super) fn spill(&mut self, memory: &mut impl Memory) {
        while let Some(buffer) = memory.links().pop(&mut self.leased) {
            let bytes = Box::from(&*memory.bytes(&buffer));
            memory.recycle(buffer);
            self.spilled.get_or_insert_default().push_back(bytes);
        }
    }

    /// Discards everything. Not while the kernel has a request to send the first piece.
    pub(super) fn clear(&mut self, memory: &mut impl Memory) {
        self.spilled = None;
        while let Some(buffer) = memory.links().pop(&mut self.leased) {
            memory.recycle(buffer);
        }
        (self.sent, self.bytes) = (0, 0);
    }

    /// Takes everything out, in order.
    pub(super) fn take(&mut self, memory: &mut impl Memory) -> Vec<u8> {
        let mut unsent = Vec::with_capacity(self.bytes as usize);
        while let Some(piece) = self.front(memory) {
            let len = piece.len() as u32;
            unsent.extend(piece);
            self.handle_sent(memory, len);
        }
        unsent
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::buffers::{BUFFER_COUNT, Buffers};
    use super::*;

    fn lease(buffers: &mut Buffers, bytes: &[u8]) -> Buffer {
        let (_, memory) = buffers.peek().expect("a buffer is free");
        memory[..bytes.len()].copy_from_slice(bytes);
        buffers.lease(bytes.len())
    }

    fn with(texts: &[&str]) -> (Unsent, Buffers) {
        let mut buffers = Buffers::new().expect("there is memory");
        let mut unsent = Unsent::new();
        for text in texts {
            let buffer = lease(&mut buffers, text.as_bytes());
            unsent.push(&mut buffers, buffer);
        }
        (unsent, buffers)
    }

    #[test]
    fn pieces_are_sent_in_order_and_each_is_reported_once_and_whole() {
        let (mut unsent, mut buffers) = with(&["abc", "de"]);
        assert_eq!(unsent.front(&mut buffers), Some(&b"abc"[..]));
        assert_eq!(unsent.handle_sent(&mut buffers, 2), None);
        assert_eq!(unsent.front(&mut buffers), Some(&b"c"[..]));
        assert_eq!(unsent.bytes(), 3);
        assert_eq!(unsent.handle_sent(&mut buffers, 1), Some(3));
        assert_eq!(unsent.handle_sent(&mut buffers, 2), Some(2));
        assert!(unsent.is_empty() && unsent.bytes() == 0);
        assert_eq!(unsent.handle_sent(&mut buffers, 0), None);
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
    }

    #[test]
    fn spilling_returns_the_buffers_and_changes_nothing_else() {
        let (mut unsent, mut buffers) = with(&["abc", "de"]);
        unsent.handle_sent(&mut buffers, 1);
        unsent.spill(&mut buffers);
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
        let buffer = lease(&mut buffers, b"f");
        unsent.push(&mut buffers, buffer);
        assert_eq!(unsent.bytes(), 5);
        assert_eq!(unsent.handle_sent(&mut buffers, 2), Some(3));
        assert_eq!(unsent.take(&mut buffers), b"def");
        assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
    }

    #[test]
    fn the_room_is_counted_in_bytes() {
        let mut unsent = Unsent::of(vec![0; 60_000]);
        let mut buffers = Buffers::new().expect("there is memory");
        assert_eq!(unsent.room(), UNSENT_BYTES_MAX as usize - 60_000);
        unsent.handle_sent(&mut buffers, 59_999);
        assert_eq!(unsent.room(), UNSENT_BYTES_MAX as usize - 1);
        assert_eq!(Unsent::of(vec![0; 100_000]).room(), 0);
        assert!(Unsent::of(vec![]).is_empty());
    }

    proptest! {
        /// A queue of bytes is the model: whatever is pushed, sent, spilled or taken out, the
        /// bytes are the same, their number is, and no buffer is lost.
        #[test]
        fn it_is_a_queue_of_bytes(steps in proptest::collection::vec((0..5u8, 1..40usize), 0..200)) {
            let mut buffers = Buffers::new().expect("there is memory");
            let mut unsent = Unsent::new();
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (kind, len) in steps {
                match kind {
                    0 | 1 => {
                        let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                        let buffer = lease(&mut buffers, &bytes);
                        unsent.push(&mut buffers, buffer);
                        model.extend(bytes);
                    }
                    2 => {
                        let first = unsent.front(&mut buffers).map_or(0, <[u8]>::len);
                        let len = len.min(first);
                        unsent.handle_sent(&mut buffers, len as u32);
                        model.drain(..len);
                    }
                    3 => unsent.spill(&mut buffers),
                    _ if len == 1 => {
                        prop_assert_eq!(unsent.take(&mut buffers), model.drain(..).collect::<Vec<_>>());
                    }
                    _ => {}
                }
                prop_assert_eq!(unsent.bytes() as usize, model.len());
                prop_assert_eq!(unsent.is_empty(), model.is_empty());
            }
            unsent.clear(&mut buffers);
            prop_assert_eq!(buffers.free(), usize::from(BUFFER_COUNT));
        }
    }
}
