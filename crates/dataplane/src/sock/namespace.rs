//! The number by which the kernel tells socket programs which network namespace a socket is in.
//!
//! Source: socket(7), `SO_NETNS_COOKIE` (Linux 5.14).
#![allow(unsafe_code, reason = "no crate in use reads this socket option")]

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sched::{CloneFlags, setns};

/// The cookie of the calling thread's network namespace.
///
/// # Errors
/// Where the kernel is older than 5.14, or has no sockets left.
pub fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open, and the kernel writes at most `length` bytes, which is what `cookie` has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of another namespace, by its file, as `/proc/1/ns/net`.
///
/// # Errors
/// As [`cookie`], and when it cannot be entered.
pub fn cookie_of(namespace: &File) -> io::Result<u64> {
    let visit = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        cookie()
    };
    // The thread ends where it went.
    let visited = std::thread::scope(|scope| scope.spawn(visit).join());
    visited.unwrap_or_else(|_| Err(io::Error::other("the visit to the namespace panicked")))
}
