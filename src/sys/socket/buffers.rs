//! The kernel's buffers of a socket, where no size is configured any more.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket};

use super::kind;
use crate::sys::check;

const SOCK_SNDBUF_LOCK: libc::c_int = 1;
const SOCK_RCVBUF_LOCK: libc::c_int = 2;

/// Which buffers have a size that was set (`SO_BUF_LOCK`, linux/socket.h).
fn locks(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut locks = 0;
    let mut len = size_of_val(&locks) as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), (&raw mut locks).cast());
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BUF_LOCK);
    // SAFETY: the kernel writes at most one int to a live local.
    check(unsafe { libc::getsockopt(raw, level, option, to, &raw mut len) })?;
    Ok(locks)
}

fn set_locks(fd: BorrowedFd<'_>, locks: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&locks) as libc::socklen_t;
    let (raw, from) = (fd.as_raw_fd(), (&raw const locks).cast());
    let (level, option) = (libc::SOL_SOCKET, libc::SO_BUF_LOCK);
    // SAFETY: the kernel reads one int from a live local.
    check(unsafe { libc::setsockopt(raw, level, option, from, len) })?;
    Ok(())
}

/// Leaves the size of the receive buffer, of the send buffer, or of both to the kernel again, where one
/// was set before, as on a socket that is new. Before Linux 5.17 that can't be done, and it stays.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn leave_buffers_to_kernel(fd: BorrowedFd<'_>, receive: bool, send: bool) -> io::Result<()> {
    let Ok(locks) = locks(fd) else {
        return Ok(());
    };
    let is_left = |asked: bool, lock: libc::c_int| asked && locks & lock != 0;
    let receive = is_left(receive, SOCK_RCVBUF_LOCK);
    let send = is_left(send, SOCK_SNDBUF_LOCK);
    if !receive && !send {
        return Ok(());
    }
    let socket = SockRef::from(&fd);
    let kind = kind(fd).unwrap_or(socket2::Type::STREAM);
    let new = Socket::new(socket.local_addr()?.domain(), kind.cloexec(), None)?;
    let mut left = locks;
    // The kernel doubles the value that is set (socket(7)).
    if receive {
        let bytes = new.recv_buffer_size()? / 2;
        if setsockopt(&fd, sockopt::RcvBufForce, &bytes).is_err() {
            socket.set_recv_buffer_size(bytes)?;
        }
        left &= !SOCK_RCVBUF_LOCK;
    }
    if send {
        socket.set_send_buffer_size(new.send_buffer_size()? / 2)?;
        left &= !SOCK_SNDBUF_LOCK;
    }
    set_locks(fd, left)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn is_as_new(fd: BorrowedFd<'_>, new: BorrowedFd<'_>) {
        let shown = |fd: BorrowedFd<'_>| {
            let socket = SockRef::from(&fd);
            let sizes = (socket.recv_buffer_size(), socket.send_buffer_size());
            (sizes.0.unwrap(), sizes.1.unwrap(), locks(fd).unwrap())
        };
        assert_eq!(shown(fd), shown(new));
    }

    #[test]
    fn a_buffer_whose_size_was_set_is_the_kernels_again() {
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [socket, new] = &listeners;
        if locks(new.as_fd()).is_err() {
            return;
        }
        let options = SockRef::from(socket);
        options.set_recv_buffer_size(20_000).unwrap();
        options.set_send_buffer_size(20_000).unwrap();
        leave_buffers_to_kernel(socket.as_fd(), true, false).unwrap();
        assert_eq!(locks(socket.as_fd()).unwrap(), SOCK_SNDBUF_LOCK);
        leave_buffers_to_kernel(socket.as_fd(), true, true).unwrap();
        is_as_new(socket.as_fd(), new.as_fd());
        // Nothing was set, so nothing changes.
        leave_buffers_to_kernel(new.as_fd(), true, true).unwrap();
        is_as_new(socket.as_fd(), new.as_fd());
        let folder = tempfile::tempdir().unwrap();
        let [socket, new] = ["a", "b"].map(|name| {
            let path = folder.path().join(name);
            UnixListener::bind(path).unwrap()
        });
        SockRef::from(&socket).set_send_buffer_size(20_000).unwrap();
        leave_buffers_to_kernel(socket.as_fd(), true, true).unwrap();
        is_as_new(socket.as_fd(), new.as_fd());
    }
}
