//! A stand-in for the driver over `io_uring(7)`: all that is around it can be built and tested.

#![expect(
    unsafe_code,
    reason = "one system call, to see whether it is permitted"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::epoll::Epoll;
use super::{Buffer, Completion, Details, Driver, Envelope, Op, Permits, Token, Waker};

/// See the module.
#[derive(Debug)]
pub struct Uring(Epoll);

impl Uring {
    /// A driver with nothing to do. Make it in the thread that will use it.
    ///
    /// # Errors
    /// As `io_uring_setup(2)`.
    pub fn new() -> io::Result<Self> {
        // SAFETY: all that is asked is whether the call is permitted; without parameters it fails
        // with EFAULT where it is.
        let result =
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>()) };
        let error = io::Error::last_os_error();
        if result == -1 && error.raw_os_error() != Some(libc::EFAULT) {
            return Err(error);
        }
        Epoll::new().map(Self)
    }
}

impl Driver for Uring {
    type Socket = OwnedFd;

    fn add_listener(&mut self, socket: OwnedFd, permits: Option<Arc<Permits>>) -> Token {
        self.0.add_listener(socket, permits)
    }

    fn set_permits(&mut self, listener: Token, permits: Option<Arc<Permits>>) {
        self.0.set_permits(listener, permits);
    }

    fn add_datagram_socket(&mut self, socket: OwnedFd) -> Token {
        self.0.add_datagram_socket(socket)
    }

    fn submit(&mut self, op: Op) {
        self.0.submit(op);
    }

    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.0.wait(until, done)
    }

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.0.bytes(buffer)
    }

    fn envelope(&self, buffer: &Buffer) -> &Envelope {
        self.0.envelope(buffer)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.0.recycle(buffer);
    }

    fn progress(&self, connection: Token) -> u64 {
        self.0.progress(connection)
    }

    fn details(&self, connection: Token) -> Details {
        self.0.details(connection)
    }

    fn waker(&self) -> Waker {
        self.0.waker()
    }
}
