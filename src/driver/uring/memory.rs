//! The buffers of this driver: small ones that the kernel takes from a ring when bytes arrive, and
//! the large ones that all drivers have, for datagrams and for peers that send much at a time.
//!
//! Never decides which connection gets one.

#![expect(unsafe_code, reason = "the kernel chooses buffers and fills them")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use crate::driver::Buffer;
use crate::driver::buffers::{BUFFER_COUNT, Buffers, Links, Memory, Need};
use crate::driver::region::Region;

/// The size of a small buffer, in bytes: what most peers send at a time. A peer that fills one is
/// read in large pieces.
pub(in crate::driver) const SMALL_BYTES: usize = 4096;

/// How many small buffers there are: 8 MiB at most, in memory only once touched.
pub(in crate::driver) const SMALL_COUNT: u16 = 2048;

/// From one small buffer to the next. A cache line more than it holds, so that not all of them
/// begin in the same set of the processor's first cache.
const STRIDE: usize = SMALL_BYTES + 64;

/// How many of them the kernel has to choose from. It takes them in turn, so the fewer there are, the
/// sooner the same memory is used again, while the cache still has it. When they run out amid a
/// turn, others are added for the next.
const RING_COUNT: u16 = 256;

/// The number under which the kernel knows the ring of small buffers.
pub(super) const GROUP: u16 = 0;

/// See the module. Indices below [`BUFFER_COUNT`] are large buffers.
#[derive(Debug)]
pub struct RingMemory {
    large: Buffers,
    // Of buffers of both sizes.
    links: Links,
    bytes: Region,
    ring: Region,
    tail: u16,
    // How many small buffers the kernel has to choose from.
    offered: u16,
    // Those that it will get next, last in, first out.
    spare: Vec<u16>,
}

impl RingMemory {
    const SMALL_REGION_BYTES: usize = STRIDE * SMALL_COUNT as usize;

    const RING_REGION_BYTES: usize = size_of::<BufRingEntry>() * RING_COUNT as usize;

    /// How much memory is mapped for all of it.
    pub(super) const REGION_BYTES: usize =
        Buffers::REGION_BYTES + Self::SMALL_REGION_BYTES + Self::RING_REGION_BYTES;

    pub(super) fn new() -> io::Result<Self> {
        let mut memory = Self {
            large: Buffers::new()?,
            links: Links::new(BUFFER_COUNT + SMALL_COUNT),
            bytes: Region::new(Self::SMALL_REGION_BYTES)?,
            ring: Region::new(Self::RING_REGION_BYTES)?,
            tail: 0,
            offered: 0,
            spare: (BUFFER_COUNT..BUFFER_COUNT + SMALL_COUNT).rev().collect(),
        };
        memory.publish();
        Ok(memory)
    }

    /// Makes the small buffers known to the ring.
    pub(super) fn register(&self, submitter: &Submitter<'_>) -> io::Result<()> {
        let ring = self.ring.start() as u64;
        // SAFETY: the region holds this many entries, is aligned to a page and outlives the ring's
        // requests (`Completions::drop`).
        unsafe { submitter.register_buf_ring_with_flags(ring, RING_COUNT, GROUP, 0) }
    }

    /// Puts a small buffer into the ring; the kernel learns of it with [`Self::publish`].
    fn offer(&mut self, index: u16) {
        let place = usize::from(self.tail % RING_COUNT);
        // SAFETY: the place is within the ring, and the kernel does not look at it before the tail
        // has passed it. The tail's own field, in the first entry, is none of those set here.
        let entry = unsafe { &mut *self.ring.start().cast::<BufRingEntry>().add(place) };
        entry.set_addr(self.address(index) as u64);
        entry.set_len(SMALL_BYTES as u32);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        self.offered += 1;
    }

    /// Gives the kernel as many buffers to choose from as it may have.
    pub(super) fn publish(&mut self) {
        if self.offered == RING_COUNT {
            return;
        }
        while self.offered < RING_COUNT
            && let Some(index) = self.spare.pop()
        {
            self.offer(index);
        }
        let ring = self.ring.start().cast::<BufRingEntry>();
        // SAFETY: the region begins with an entry, which is never unmapped before `self` is.
        let tail = unsafe { BufRingEntry::tail(ring) };
        // SAFETY: it is aligned, live, and otherwise only read, by the kernel.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    fn address(&self, index: u16) -> *mut u8 {
        let offset = STRIDE * usize::from(index - BUFFER_COUNT);
        // SAFETY: the region has a stride for each small buffer.
        unsafe { self.bytes.start().add(offset) }
    }

    /// The kernel chose this small buffer and put `len` bytes into it.
    pub(super) fn taken(&mut self, index: u16, len: u32) -> Buffer {
        debug_assert!(self.offered > 0 && len as usize <= SMALL_BYTES);
        self.offered -= 1;
        Buffer { index, len }
    }

    /// Leases all buffers of this size.
    #[cfg(test)]
    pub(super) fn lease_all(&mut self, size: Need) -> Vec<Buffer> {
        if size == Need::Small {
            // The kernel takes what it is offered, and is then offered the rest.
            (BUFFER_COUNT..BUFFER_COUNT + SMALL_COUNT)
                .map(|index| {
                    self.publish();
                    self.taken(index, 1)
                })
                .collect()
        } else {
            (0..BUFFER_COUNT).map(|_| self.large.lease(1)).collect()
        }
    }

    /// How many small buffers are free.
    fn free(&self) -> u16 {
        self.offered + self.spare.len() as u16
    }
}

impl Memory for RingMemory {
    fn piece(&mut self, index: u16, len: u32) -> &mut [u8] {
        if index < BUFFER_COUNT {
            return self.large.piece(index, len);
        }
        // SAFETY: the buffer is leased, so that neither the kernel nor another lease has it, and it
        // holds at least this many bytes.
        unsafe { std::slice::from_raw_parts_mut(self.address(index), len as usize) }
    }

    fn recycle(&mut self, buffer: Buffer) {
        if buffer.index < BUFFER_COUNT {
            self.large.recycle(buffer);
        } else {
            self.spare.push(buffer.index);
        }
    }

    fn links(&mut self) -> &mut Links {
        &mut self.links
    }

    fn large(&mut self) -> &mut Buffers {
        &mut self.large
    }

    fn is_scarce(&self) -> bool {
        self.free() < SMALL_COUNT / 4 || self.large.is_scarce()
    }

    fn has_enough(&self, need: Need) -> bool {
        match need {
            Need::Small => self.free() > SMALL_COUNT / 8,
            Need::Large | Need::Datagram => self.large.has_enough(need),
        }
    }
}
