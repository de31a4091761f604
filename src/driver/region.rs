//! Memory mapped straight from the kernel: page-aligned, zeroed, and resident only once touched.
//!
//! Unlike the allocator it reports that there is none, so that a driver which can't have its
//! buffers is a start that fails with a message.

#![expect(unsafe_code, reason = "the mapping is owned here")]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};

/// What the allocator may need beside what is mapped: a few times of what a start was seen to use.
pub(crate) const HEADROOM_BYTES: usize = 4 << 20;

/// One private mapping, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Region {
    start: NonNull<c_void>,
    len: usize,
}

impl Region {
    /// Maps `len` bytes.
    ///
    /// # Errors
    /// As `mmap(2)`: ENOMEM where the address space or the memory is limited.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(len).expect("a region is not empty");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: without an address hint the kernel maps new memory, over no other mapping.
        let start = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_PRIVATE) }?;
        Ok(Self { start, len })
    }

    /// The address of the first byte.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Some of the bytes, which are initialized (zeroed) and live as long as `self`. No reference,
    /// because the kernel may read or write other pieces at the same time: the caller owns this one.
    pub(super) fn piece(&self, offset: usize, len: usize) -> *mut [u8] {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "a piece is within its region"
        );
        // SAFETY: the offset is within the mapping, as just seen.
        let start = unsafe { self.start().add(offset) };
        std::ptr::slice_from_raw_parts_mut(start, len)
    }
}

/// Makes sure that this much memory could be mapped now, and [`HEADROOM_BYTES`] beside it.
///
/// The allocator ends the process where a limit of the address space (RLIMIT_AS) leaves it nothing.
/// So code that maps much, or starts a thread, calls this before, and gets an error instead. Under
/// such a limit it computes: a trial mapping would leave nothing to other threads for that moment.
///
/// # Errors
/// ENOMEM where there is not as much.
pub(crate) fn ensure_room(bytes: usize) -> io::Result<()> {
    let bytes = bytes + HEADROOM_BYTES;
    let (limit, _) = getrlimit(Resource::RLIMIT_AS)?;
    match address_space() {
        Some(used) if limit != RLIM_INFINITY => match limit.saturating_sub(used) < bytes as u64 {
            true => Err(Errno::ENOMEM.into()),
            false => Ok(()),
        },
        // There may be another limit, such as that of the system (vm.overcommit_memory).
        _ => Region::new(bytes).map(drop),
    }
}

/// The size of this process's address space, in bytes (proc_pid_statm(5)).
fn address_space() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = pages.split(' ').next()?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page as u64)
}

// SAFETY: a mapping belongs to the process, not to the thread that made it, and is reached only
// through `self`.
unsafe impl Send for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length in `new`, and no reference outlives `self`.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_unavailable_is_an_error() {
        let error = Region::new(1 << 60).expect_err("no machine has an exbibyte");
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    }

    #[test]
    fn the_address_space_is_what_is_mapped() {
        let before = address_space().expect("/proc is mounted");
        let region = Region::new(1 << 30).expect("nothing of it is used");
        let used = address_space().expect("/proc is mounted") - before;
        // Other tests map and unmap at the same time.
        assert!((1 << 29..1 << 31).contains(&used), "{used} bytes");
        drop(region);
    }

    #[test]
    fn a_region_is_zeroed_and_writable() {
        let region = Region::new(10_000).expect("there is memory");
        // SAFETY: there is no other reference.
        let bytes = unsafe { &mut *region.piece(0, 10_000) };
        assert!(bytes.iter().all(|&byte| byte == 0));
        bytes[9_999] = 7;
        // SAFETY: the reference above is no longer used.
        let last = unsafe { &*region.piece(9_999, 1) };
        assert_eq!(last, [7]);
    }

    #[test]
    #[should_panic = "a piece is within its region"]
    fn no_piece_reaches_beyond_its_region() {
        let region = Region::new(10_000).expect("there is memory");
        region.piece(9_999, 2);
    }
}
