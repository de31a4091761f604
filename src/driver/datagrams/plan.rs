//! Which answers go into which message: decides over lengths and addresses, and touches no socket.
//!
//! A message is of one flow, that is from one address of ours to one peer. All of its datagrams are
//! of one size, except the last, which may be shorter, so that the kernel can cut it. A flow's
//! messages are in the order of its datagrams: a datagram joins the last of them or begins another.

use std::iter::successors;
use std::net::IpAddr;

use super::paths::fold;
use crate::driver::buffers::{Buffers, Memory, Queue};
use crate::driver::{Buffer, Envelope, Source};
use crate::sys::message::{BATCH_MAX, Message};

/// The most that the kernel cuts a message into (`UDP_MAX_SEGMENTS`; later kernels take more).
const DATAGRAMS_MAX: usize = 64;

/// The most bytes of a message to be cut: with its headers it must fit into an IP packet.
const MERGED_BYTES_MAX: usize = 65_000;

/// No piece, no message.
const NONE: u8 = u8::MAX;

/// The length of the hash table of flows: twice as many as a plan can have, so that a free entry is
/// found at once.
const FLOWS: usize = 2 * BATCH_MAX;

/// Messages to be sent, and the buffers that their bytes are in.
#[derive(Debug)]
pub(super) struct Plan {
    answers: Vec<Answer>,
    pieces: Vec<Piece>,
    messages: Vec<Planned>,
    // The last message of each flow, by the hash of its addresses.
    flows: [u8; FLOWS],
}

/// A buffer in a plan.
#[derive(Debug)]
struct Answer {
    buffer: Buffer,
    // How many of its bytes are sent.
    sent: u32,
    done: bool,
}

/// A part of a buffer, in a message.
#[derive(Debug)]
struct Piece {
    // The answer that it is of.
    answer: u8,
    // The piece behind it in the message.
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
            answers: Vec::with_capacity(BATCH_MAX),
            pieces: Vec::with_capacity(BATCH_MAX),
            messages: Vec::with_capacity(BATCH_MAX),
            flows: [NONE; FLOWS],
        }
    }

    /// How many more pieces the plan takes, if it may have `most`.
    pub(super) fn room(&self, most: usize) -> Option<usize> {
        most.checked_sub(self.pieces.len()).filter(|&room| room > 0)
    }

    /// Adds a buffer of which `sent` bytes are sent already, or as much of it as there is room
    /// for, in which case nothing can be added behind it. Datagrams of `merged_below` bytes or more
    /// are not merged.
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
        // A datagram that did not fit is never answered, so this one is as long as its buffer.
        let size = envelope.size.min(len);
        let answer = self.answers.len() as u8;
        self.answers.push(Answer {
            buffer,
            sent,
            done: false,
        });
        // Where nothing is merged, messages are in the order of their datagrams anyway.
        let flow = (merged_below > 0).then(|| self.flow(envelope, envelopes));
        let last = flow.map_or(NONE, |flow| self.flows[flow]);
        // Only a whole buffer joins a message, so that no buffer except the first unsent one is
        // ever sent in part.
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
            self.pieces.push(Piece::new(answer, 0, len));
            return;
        }
        self.begin(index, answer, len, size, merged_below, room);
        if let Some(flow) = flow {
            self.flows[flow] = self.messages.len() as u8 - 1;
        }
    }

    /// Begins messages with what is unsent of an answer of `len` bytes in datagrams of `size`: as
    /// many as it takes, or as there is room for.
    fn begin(
        &mut self,
        buffer: u16,
        answer: u8,
        len: usize,
        size: usize,
        merged_below: usize,
        room: usize,
    ) {
        // The kernel cuts a message into no more datagrams than this, and one that is not to be merged
        // is a message of its own, an empty one included.
        let datagrams_max = if size == 0 || size >= merged_below {
            1
        } else {
            (MERGED_BYTES_MAX / size).clamp(1, DATAGRAMS_MAX)
        };
        let mut start = self.answers[usize::from(answer)].sent as usize;
        for _ in 0..room {
            let end = len.min(start + datagrams_max * size);
            let piece = self.pieces.len() as u8;
            self.pieces.push(Piece::new(answer, start, end));
            self.messages.push(Planned {
                buffer,
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
    }

    /// All messages, in the order in which they are to be sent.
    pub(super) fn messages(&self) -> &[Planned] {
        &self.messages
    }

    /// Where a message goes.
    pub(super) fn destination(&self, planned: &Planned, envelopes: &[Envelope]) -> Source {
        envelopes[usize::from(planned.buffer)].source
    }

    /// A message as the kernel takes it, for a socket that is bound to this address. The kernel
    /// sends from there anyway, and is a little faster without a control message that names it.
    pub(super) fn message<'a>(
        &'a self,
        planned: &Planned,
        buffers: &'a Buffers,
        envelopes: &'a [Envelope],
        bound: Option<IpAddr>,
    ) -> Message<'a, impl Iterator<Item = &'a [u8]> + use<'a>> {
        let pieces = successors(self.pieces.get(usize::from(planned.first)), |piece| {
            self.pieces.get(usize::from(piece.next))
        });
        let envelope = &envelopes[usize::from(planned.buffer)];
        Message {
            to: &envelope.source,
            from: envelope
                .local
                .as_ref()
                .filter(|local| Some(local.address) != bound),
            size: (planned.count > 1).then_some(planned.size as u16),
            parts: pieces.map(|piece| {
                let answer = &self.answers[usize::from(piece.answer)];
                buffers.part(&answer.buffer, piece.start as usize..piece.end as usize)
            }),
        }
    }

    /// Ends the plan, of which `done` messages are done: buffers that are done are returned to the
    /// pool, others go back to the front of the queue. Says how many bytes of the first of them are
    /// sent.
    pub(super) fn finish(&mut self, done: usize, unsent: &mut Queue, buffers: &mut Buffers) -> u32 {
        for message in &self.messages[..done] {
            let mut next = message.first;
            while let Some(piece) = self.pieces.get(usize::from(next)) {
                let answer = &mut self.answers[usize::from(piece.answer)];
                answer.sent = piece.end;
                answer.done = piece.end == answer.buffer.len;
                next = piece.next;
            }
        }
        let mut sent_of_first = 0;
        while let Some(answer) = self.answers.pop() {
            if answer.done {
                buffers.recycle(answer.buffer);
            } else {
                debug_assert!(sent_of_first == 0, "only the first unsent is sent in part");
                sent_of_first = answer.sent;
                buffers.push_front(unsent, answer.buffer);
            }
        }
        self.pieces.clear();
        self.messages.clear();
        self.flows.fill(NONE);
        sent_of_first
    }

    /// The entry in `flows` of this envelope's flow, or the free one where it is to be noted.
    fn flow(&self, envelope: &Envelope, envelopes: &[Envelope]) -> usize {
        let mut flow = hash(envelope);
        loop {
            let Some(message) = self.messages.get(usize::from(self.flows[flow])) else {
                return flow;
            };
            let known = &envelopes[usize::from(message.buffer)];
            if known.source == envelope.source && known.local == envelope.local {
                return flow;
            }
            flow = (flow + 1) % FLOWS;
        }
    }
}

impl Piece {
    fn new(answer: u8, start: usize, end: usize) -> Self {
        Self {
            answer,
            next: NONE,
            start: start as u32,
            end: end as u32,
        }
    }
}

impl Planned {
    /// Whether datagrams of this size, `len` bytes altogether, can follow those that it has.
    fn takes(&self, size: usize, len: usize) -> bool {
        let is_one_shorter = size == len && len < self.size && len > 0;
        self.open
            && (size == self.size || is_one_shorter)
            && self.count as usize + len.div_ceil(size) <= DATAGRAMS_MAX
            && self.bytes as usize + len <= MERGED_BYTES_MAX
    }
}

/// The entry at which to look for a flow first. Senders that share a hash are looked at one by one,
/// and there are at most as many as a plan has messages.
fn hash(envelope: &Envelope) -> usize {
    let Source::Inet(address) = envelope.source else {
        return 0;
    };
    let local = envelope.local.map_or(0, |local| fold(local.address));
    let mixed = fold(address.ip()) ^ local.rotate_left(24) ^ u64::from(address.port()) << 40;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % FLOWS
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

    use super::*;
    use crate::driver::buffers::BUFFER_COUNT;
    use crate::sys::message::Local;

    /// What the socket is bound to, if it were bound to one of the addresses that are hit.
    const BOUND: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// A plan, and what is still to be planned.
    struct Desk {
        plan: Plan,
        buffers: Buffers,
        unsent: Queue,
        sent: u32,
        envelopes: Vec<Envelope>,
    }

    impl Desk {
        /// Answers, each a letter for its peer (a small one was sent to another address of ours) and
        /// the size; or the sizes of several in one buffer, as `A10*3+4`.
        fn new(answers: &str) -> Self {
            let mut desk = Self {
                plan: Plan::new(),
                buffers: Buffers::new().expect("there is memory"),
                unsent: Queue::new(),
                sent: 0,
                envelopes: vec![Envelope::EMPTY; usize::from(BUFFER_COUNT)],
            };
            for answer in answers.split_whitespace() {
                let (peer, sizes) = answer.split_at(1);
                let (several, last) = sizes.split_once('+').unwrap_or((sizes, "0"));
                let (size, count) = several.split_once('*').unwrap_or((several, "1"));
                let number = |text: &str| text.parse::<usize>().expect("a number");
                let len = number(size) * number(count) + number(last);
                let (index, _) = desk.buffers.peek().expect("there are enough");
                desk.envelopes[usize::from(index)] = envelope(peer, number(size));
                let buffer = desk.buffers.lease(len);
                desk.buffers.push(&mut desk.unsent, buffer);
            }
            desk
        }

        /// Plans as much as there is room for; the messages, as sizes of their datagrams.
        fn plan(&mut self, merged_below: usize) -> String {
            while let Some(room) = self.plan.room(BATCH_MAX)
                && let Some(buffer) = self.buffers.pop(&mut self.unsent)
            {
                let sent = std::mem::take(&mut self.sent);
                self.plan
                    .add(buffer, sent, &self.envelopes, merged_below, room);
            }
            let text = self.plan.messages().iter().map(|planned| {
                let message = self
                    .plan
                    .message(planned, &self.buffers, &self.envelopes, BOUND);
                let bytes: usize = message.parts.map(<[u8]>::len).sum();
                assert_eq!(bytes, planned.bytes as usize);
                let size = message.size.map_or(bytes, usize::from);
                assert_eq!(planned.count as usize, bytes.div_ceil(size.max(1)).max(1));
                let envelope = &self.envelopes[usize::from(planned.buffer)];
                let hit = envelope.local.map(|local| local.address);
                let from = message.from.map(|local| local.address);
                assert_eq!(from, hit.filter(|_| hit != BOUND), "only another is named");
                let peer = peer(envelope);
                match (bytes / size.max(1), bytes % size.max(1)) {
                    (0 | 1, 0) => format!("{peer}{size}"),
                    (count, 0) => format!("{peer}{size}*{count}"),
                    (count, last) => format!("{peer}{size}*{count}+{last}"),
                }
            });
            text.collect::<Vec<_>>().join(" ")
        }

        fn finish(&mut self, done: usize) {
            self.sent = self.plan.finish(done, &mut self.unsent, &mut self.buffers);
        }
    }

    fn envelope(peer: &str, size: usize) -> Envelope {
        let letter = peer.as_bytes()[0];
        let port = u16::from(letter.to_ascii_uppercase());
        let (ip, local): (IpAddr, IpAddr) = if letter.to_ascii_uppercase() < b'V' {
            let local = Ipv4Addr::new(127, 0, 0, if letter < b'a' { 1 } else { 2 });
            (Ipv4Addr::LOCALHOST.into(), local.into())
        } else {
            (
                Ipv6Addr::LOCALHOST.into(),
                Ipv6Addr::from(u128::from(letter)).into(),
            )
        };
        Envelope {
            source: Source::Inet(SocketAddr::new(ip, port)),
            local: Some(Local {
                address: local,
                interface: 0,
            }),
            unicast: true,
            size,
        }
    }

    fn peer(of: &Envelope) -> char {
        let mut letters = (b'A'..=b'z').map(char::from);
        let is_it = |letter: &char| {
            let known = envelope(letter.encode_utf8(&mut [0; 4]), 0);
            known.source == of.source && known.local == of.local
        };
        letters.find(is_it).expect("it is known")
    }

    fn check(answers: &str, merged_below: usize, messages: &str) {
        let mut desk = Desk::new(answers);
        assert_eq!(desk.plan(merged_below), messages, "of {answers}");
        desk.finish(desk.plan.messages().len());
        assert!(desk.unsent.is_empty(), "all is planned");
        assert_eq!(desk.buffers.free(), usize::from(BUFFER_COUNT));
    }

    fn merged(answers: &str, messages: &str) {
        check(answers, usize::MAX, messages);
    }

    #[test]
    fn equal_ones_of_a_flow_are_merged_and_only_the_last_is_shorter() {
        merged("A9 A9 A9", "A9*3");
        merged("A9 A9 A4 A9", "A9*2+4 A9");
        merged("A9 A9 A4 A4", "A9*2+4 A4");
        merged("A4 A9 A9", "A4 A9*2");
        merged("A9*3 A9*2+1 A9*2", "A9*5+1 A9*2");
        merged("A9*3 A4*2 A4", "A9*3 A4*3");
    }

    #[test]
    fn flows_are_told_apart_by_peer_and_by_our_address() {
        merged("A9 B9 a9 A9 B9 a9 W9 w9 W9", "A9*2 B9*2 a9*2 W9*2 w9");
        merged("A9 B4 A4 B4 A9", "A9*1+4 B4*2 A9");
    }

    #[test]
    fn an_empty_one_is_alone_and_keeps_its_place() {
        merged("A9 A0 A9 A0 A0", "A9 A0 A9 A0 A0");
    }

    #[test]
    fn no_message_is_longer_than_the_kernel_takes() {
        let many = "A9 ".repeat(64);
        merged(&many, "A9*64");
        merged("A9*60 A9*5", "A9*60 A9*5");
        merged("A1000*40 A1000*25 A1000*1", "A1000*40 A1000*26");
        merged("A32500 A32500 A1", "A32500*2 A1");
        merged("A65507 A65507", "A65507 A65507");
    }

    #[test]
    fn what_came_in_more_pieces_than_can_be_merged_leaves_in_several_messages() {
        merged("A9*150+1 A9", "A9*64 A9*64 A9*22+1 A9");
        merged("A1*200 B3 A1", "A1*64 A1*64 A1*64 A1*9 B3");
    }

    #[test]
    fn what_cannot_be_cut_is_sent_one_by_one() {
        check("A9*3 A9 A8*2 B9", 9, "A9 A9 A9 A9 A8*2 B9");
        check("A9*2+1 A4*2 A4", 9, "A9 A9 A1 A4*3");
        check("A9 A4 A9", 0, "A9 A4 A9");
    }

    #[test]
    fn what_is_not_sent_goes_on_where_it_was_and_in_order() {
        let mut desk = Desk::new("A9*100 B4 A9 B4 C3*5+2");
        assert_eq!(desk.plan(usize::MAX), "A9*64 A9*37 B4*2 C3*5+2");
        desk.finish(1);
        assert_eq!(desk.sent, 9 * 64);
        assert_eq!(desk.plan(usize::MAX), "A9*37 B4*2 C3*5+2");
        desk.finish(0);
        let one_by_one = format!("{}B4 A9 B4 C3 C3 C3 C3 C3 C2", "A9 ".repeat(36));
        assert_eq!(desk.plan(1), one_by_one);
        desk.finish(38);
        assert_eq!(desk.plan(usize::MAX), "B4 C3*5+2");
        desk.finish(2);
        assert_eq!(desk.buffers.free(), usize::from(BUFFER_COUNT));
    }

    #[test]
    fn more_than_one_call_takes_is_planned_in_parts() {
        let mut desk = Desk::new(&format!("{}C5*30", "A9*2 ".repeat(25)));
        assert_eq!(
            desk.plan(2),
            format!("{}{}", "A9 ".repeat(50), "C5 ".repeat(14)).trim()
        );
        desk.finish(64);
        assert_eq!(desk.sent, 5 * 14);
        assert_eq!(desk.plan(2), "C5 ".repeat(16).trim());
        desk.finish(16);
        assert!(desk.unsent.is_empty() && desk.sent == 0);
    }
}
