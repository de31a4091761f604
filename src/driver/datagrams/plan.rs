//! Which answers go into which message: pure deciding, over lengths and addresses.
//!
//! A message is of one flow, that is from one address of ours to one peer. All of its datagrams are
//! of one size, but for the last, which may be shorter: so the kernel can cut it. A flow's messages
//! are in the order of its datagrams, for a datagram joins the last of them or begins another.

use std::iter::successors;
use std::net::IpAddr;

use crate::driver::buffers::{Buffers, Queue};
use crate::driver::{Buffer, Envelope, Source};
use crate::sys::message::{BATCH_MAX, Message};

/// The most that the kernel cuts a message into (`UDP_MAX_SEGMENTS`; later kernels take more).
const DATAGRAMS_MAX: usize = 64;

/// The most bytes of a message to be cut: with its headers it must fit into an IP packet.
const MERGED_BYTES_MAX: usize = 65_000;

/// No piece, no message.
const NONE: u8 = u8::MAX;

/// Twice as many as there are flows in a plan at most, so that a place is found at once.
const PLACES: usize = 2 * BATCH_MAX;

/// Messages to be sent, and the buffers that their bytes are in.
#[derive(Debug)]
pub(super) struct Plan {
    letters: Vec<Letter>,
    pieces: Vec<Piece>,
    messages: Vec<Planned>,
    // The last message of each flow, by the hash of its addresses.
    flows: [u8; PLACES],
}

/// A buffer in a plan.
#[derive(Debug)]
struct Letter {
    buffer: Buffer,
    // So many of its bytes.
    sent: u32,
    done: bool,
}

/// A part of a buffer, in a message.
#[derive(Debug)]
struct Piece {
    letter: u8,
    // Behind it in the message.
    next: u8,
    start: u32,
    end: u32,
}

/// One message.
#[derive(Debug)]
pub(super) struct Planned {
    // The buffer whose envelope it goes by.
    buffer: u16,
    first: u8,
    last: u8,
    // Another datagram may join.
    open: bool,
    /// How many datagrams it is.
    pub(super) count: u32,
    /// Their bytes in all.
    pub(super) bytes: u32,
    /// The size of each.
    pub(super) size: usize,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self {
            letters: Vec::with_capacity(BATCH_MAX),
            pieces: Vec::with_capacity(BATCH_MAX),
            messages: Vec::with_capacity(BATCH_MAX),
            flows: [NONE; PLACES],
        }
    }

    /// How many more pieces the plan takes, of so many.
    pub(super) fn room(&self, most: usize) -> Option<usize> {
        most.checked_sub(self.pieces.len()).filter(|&room| room > 0)
    }

    /// Adds a buffer of which so many bytes are sent already, or as much of it as there is room
    /// for; nothing can be added behind a part.
    pub(super) fn add(
        &mut self,
        buffer: Buffer,
        sent: u32,
        envelopes: &[Envelope],
        merged_below: usize,
        room: usize,
    ) {
        let (index, len) = (buffer.index, buffer.len as usize);
        let envelope = &envelopes[usize::from(index)];
        // What did not fit is not answered; this is one datagram and all that is there of it.
        let size = envelope.size.min(len);
        let letter = self.letters.len() as u8;
        self.letters.push(Letter {
            buffer,
            sent,
            done: false,
        });
        // Where nothing is merged, messages keep the order of their datagrams by themselves.
        let place = (merged_below > 0).then(|| self.place(envelope, envelopes));
        let last = place.map_or(NONE, |place| self.flows[place]);
        // Only a whole buffer joins: so the first unsent buffer alone can be sent in part.
        if sent == 0
            && let Some(message) = self.messages.get_mut(usize::from(last))
            && message.takes(size, len)
        {
            let piece = self.pieces.len() as u8;
            self.pieces[usize::from(message.last)].next = piece;
            message.last = piece;
            message.count += len.div_ceil(size) as u32;
            message.bytes += len as u32;
            message.open = len.is_multiple_of(message.size);
            self.pieces.push(Piece::new(letter, 0, len));
            return;
        }
        let datagrams_max = if size == 0 || size >= merged_below {
            1
        } else {
            (MERGED_BYTES_MAX / size).clamp(1, DATAGRAMS_MAX)
        };
        let mut start = sent as usize;
        for _ in 0..room {
            let end = len.min(start + datagrams_max * size);
            let piece = self.pieces.len() as u8;
            self.pieces.push(Piece::new(letter, start, end));
            self.messages.push(Planned {
                buffer: index,
                first: piece,
                last: piece,
                open: datagrams_max > 1 && (end - start).is_multiple_of(size),
                count: (end - start).div_ceil(size.max(1)).max(1) as u32,
                bytes: (end - start) as u32,
                size,
            });
            start = end;
            if start == len {
                break;
            }
        }
        if let Some(place) = place {
            self.flows[place] = self.messages.len() as u8 - 1;
        }
    }

    /// All messages, in the order in which they are to be sent.
    pub(super) fn messages(&self) -> &[Planned] {
        &self.messages
    }

    /// A message as the kernel takes it.
    pub(super) fn message<'a>(
        &'a self,
        planned: &Planned,
        buffers: &'a Buffers,
        envelopes: &'a [Envelope],
    ) -> Message<'a, impl Iterator<Item = &'a [u8]> + use<'a>> {
        let pieces = successors(self.pieces.get(usize::from(planned.first)), |piece| {
            self.pieces.get(usize::from(piece.next))
        });
        Message {
            envelope: &envelopes[usize::from(planned.buffer)],
            size: (planned.count > 1).then_some(planned.size as u16),
            parts: pieces.map(|piece| {
                let letter = &self.letters[usize::from(piece.letter)];
                buffers.piece(&letter.buffer, piece.start as usize..piece.end as usize)
            }),
        }
    }

    /// Ends the plan, of which so many messages are done: buffers that are done come home, others
    /// go back to the front of the queue. Says how many bytes of the first of them are sent.
    pub(super) fn settle(&mut self, done: usize, unsent: &mut Queue, buffers: &mut Buffers) -> u32 {
        for message in &self.messages[..done] {
            let mut next = message.first;
            while let Some(piece) = self.pieces.get(usize::from(next)) {
                let letter = &mut self.letters[usize::from(piece.letter)];
                letter.sent = piece.end;
                letter.done = piece.end == letter.buffer.len;
                next = piece.next;
            }
        }
        let mut sent_of_first = 0;
        while let Some(letter) = self.letters.pop() {
            if letter.done {
                buffers.recycle(letter.buffer);
            } else {
                debug_assert!(sent_of_first == 0, "only the first unsent is sent in part");
                sent_of_first = letter.sent;
                buffers.push_front(unsent, letter.buffer);
            }
        }
        self.pieces.clear();
        self.messages.clear();
        self.flows.fill(NONE);
        sent_of_first
    }

    /// The place of the flow's last message, or where it is to be noted.
    fn place(&self, envelope: &Envelope, envelopes: &[Envelope]) -> usize {
        let mut place = hash(envelope);
        loop {
            let Some(message) = self.messages.get(usize::from(self.flows[place])) else {
                return place;
            };
            let known = &envelopes[usize::from(message.buffer)];
            if known.source == envelope.source && known.local == envelope.local {
                return place;
            }
            place = (place + 1) % PLACES;
        }
    }
}

impl Piece {
    fn new(letter: u8, start: usize, end: usize) -> Self {
        Self {
            letter,
            next: NONE,
            start: start as u32,
            end: end as u32,
        }
    }
}

impl Planned {
    /// Whether datagrams of this size, so many bytes in all, can follow those that it has.
    fn takes(&self, size: usize, len: usize) -> bool {
        let is_one_shorter = size == len && len < self.size && len > 0;
        self.open
            && (size == self.size || is_one_shorter)
            && self.count as usize + len.div_ceil(size) <= DATAGRAMS_MAX
            && self.bytes as usize + len <= MERGED_BYTES_MAX
    }
}

/// Where to look for a flow. A sender who finds others with the same hash makes us look at them
/// all, and they are few.
fn hash(envelope: &Envelope) -> usize {
    let Source::Inet(address) = envelope.source else {
        return 0;
    };
    let fold = |address: IpAddr| match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    let local = envelope.local.map_or(0, |local| fold(local.address));
    let mixed = fold(address.ip()) ^ local.rotate_left(24) ^ u64::from(address.port()) << 40;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % PLACES
}
