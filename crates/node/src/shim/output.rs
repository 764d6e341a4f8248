//! The pipes of what runs in a pod, read without waiting.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::log::Stream;

/// What a process writes; non-blocking.
#[derive(Default)]
pub(super) struct Output {
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

impl Output {
    /// Pipes for a process, and the ends to give it.
    pub(super) fn pipes() -> Result<(Self, [OwnedFd; 2]), nix::Error> {
        let (stdout, out) = pipe2(OFlag::O_CLOEXEC)?;
        let (stderr, err) = pipe2(OFlag::O_CLOEXEC)?;
        nonblocking(&stdout)?;
        nonblocking(&stderr)?;
        Ok((Self { stdout: Some(stdout), stderr: Some(stderr) }, [out, err]))
    }

    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.stdout, &self.stderr].into_iter().flatten().map(AsFd::as_fd)
    }

    /// Gives what there is to read to `take`, without waiting for more than a fair share.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Stream, &[u8])) {
        let mut buffer = [0; 16 << 10];
        for (stream, slot) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            // A pipe holds 64 KiB, so this empties one that nobody writes to meanwhile.
            for _ in 0..8 {
                let Some(fd) = slot else { break };
                match nix::unistd::read(fd, &mut buffer) {
                    Ok(0) => *slot = None,
                    Ok(length) => take(stream, &buffer[..length]),
                    Err(nix::errno::Errno::EINTR) => {}
                    Err(nix::errno::Errno::EAGAIN) => break,
                    // A terminal that nobody has open any more.
                    Err(_) => *slot = None,
                }
            }
        }
    }
}

pub(super) fn nonblocking(fd: &OwnedFd) -> Result<(), nix::Error> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)
}

/// Reads what is there; `false` when the other end is closed or broken.
pub(super) fn read_available(from: &mut impl Read, into: &mut Vec<u8>) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return false,
            Ok(length) => into.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
