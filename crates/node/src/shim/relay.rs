//! Bytes on their way between a process and who is connected to it, moved without waiting.
//!
//! Invariant: what is on its way is bounded. An [`Inlet`] reads no more before the process has taken what was read;
//! while an [`Outlet`] lags, nothing more is read from the process; and one that takes nothing for [`PATIENCE`] is
//! closed, so that nobody who has stopped reading stops a process for ever.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{read, write};

use super::output::nonblocking;

const PATIENCE: Duration = Duration::from_secs(60);
const CHUNK: usize = 16 << 10;

/// Writes what can be written; `Err` when nobody will ever read it.
fn write_available(to: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to, bytes) {
            Ok(written) => drop(bytes.drain(..written)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// From a client to a process.
pub(super) struct Inlet {
    from: Option<OwnedFd>,
    unsent: Vec<u8>,
}

impl Inlet {
    pub(super) fn new(from: OwnedFd) -> Result<Self, Errno> {
        nonblocking(&from)?;
        Ok(Self { from: Some(from), unsent: Vec::new() })
    }

    pub(super) fn poll<'a>(&'a self, to: BorrowedFd<'a>) -> Option<PollFd<'a>> {
        if self.unsent.is_empty() {
            self.from.as_ref().map(|from| PollFd::new(from.as_fd(), PollFlags::POLLIN))
        } else {
            Some(PollFd::new(to, PollFlags::POLLOUT))
        }
    }

    /// Passes on what there is. `false` once the client has ended its input, or the process its own.
    pub(super) fn pump(&mut self, to: BorrowedFd<'_>) -> bool {
        // As many as a pipe holds, so that others have their turn.
        for _ in 0..8 {
            if write_available(to, &mut self.unsent).is_err() {
                return false;
            }
            let Some(from) = self.from.as_ref().filter(|_| self.unsent.is_empty()) else { break };
            let mut buffer = [0; CHUNK];
            match read(from, &mut buffer) {
                Ok(0) => self.from = None,
                Ok(length) => self.unsent.extend_from_slice(&buffer[..length]),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => self.from = None,
            }
        }
        self.from.is_some() || !self.unsent.is_empty()
    }
}

/// From a process to a client.
pub(super) struct Outlet {
    to: Option<OwnedFd>,
    unsent: Vec<u8>,
    lags_since: Option<Instant>,
}

impl Outlet {
    pub(super) fn new(to: OwnedFd) -> Result<Self, Errno> {
        nonblocking(&to)?;
        Ok(Self { to: Some(to), unsent: Vec::new(), lags_since: None })
    }

    pub(super) fn lags(&self) -> bool {
        !self.unsent.is_empty()
    }

    pub(super) fn give(&mut self, bytes: &[u8]) {
        if self.to.is_some() {
            self.unsent.extend_from_slice(bytes);
            self.flush(Instant::now());
        }
    }

    pub(super) fn flush(&mut self, now: Instant) {
        let Some(to) = self.to.as_ref() else { return };
        let before = self.unsent.len();
        let written = write_available(to.as_fd(), &mut self.unsent);
        if self.unsent.len() < before || self.unsent.is_empty() {
            self.lags_since = None;
        }
        if written.is_err() || self.lags_since.is_some_and(|since| since + PATIENCE <= now) {
            *self = Self { to: None, unsent: Vec::new(), lags_since: None };
        } else if self.lags() && self.lags_since.is_none() {
            self.lags_since = Some(now);
        }
    }

    pub(super) fn poll(&self) -> Option<PollFd<'_>> {
        self.to.as_ref().filter(|_| self.lags()).map(|to| PollFd::new(to.as_fd(), PollFlags::POLLOUT))
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lags_since.map(|since| since + PATIENCE)
    }
}

/// Tells a terminal how large it is.
pub(super) fn resize(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = nix::libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    #[allow(unsafe_code, reason = "no safe call sets a terminal's size by its descriptor")]
    // SAFETY: `size` is what TIOCSWINSZ reads, and lives until the call returns; the descriptor is open.
    let _ = unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
}

#[cfg(test)]
mod tests {
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn an_outlet_keeps_what_a_slow_reader_has_not_taken_and_is_closed_when_it_takes_nothing() {
        let (reader, writer) = pipe().unwrap();
        let mut outlet = Outlet::new(writer).unwrap();
        outlet.give(&vec![b'x'; 100_000]);
        assert!(outlet.lags() && outlet.poll().is_some());
        let mut taken = 0;
        let mut buffer = [0; CHUNK];
        while taken < 100_000 {
            taken += read(&reader, &mut buffer).unwrap();
            outlet.flush(Instant::now());
        }
        assert!(!outlet.lags() && outlet.deadline().is_none());
        outlet.give(&vec![b'x'; 100_000]);
        let deadline = outlet.deadline().unwrap();
        outlet.flush(deadline - Duration::from_secs(1));
        assert!(outlet.lags());
        outlet.flush(deadline);
        assert!(!outlet.lags() && outlet.poll().is_none());
        while read(&reader, &mut buffer).unwrap() > 0 {}
    }

    #[test]
    fn an_inlet_waits_for_the_process_and_ends_with_the_client() {
        let ((from, client), (process, to)) = (pipe().unwrap(), pipe().unwrap());
        nonblocking(&to).unwrap();
        let mut inlet = Inlet::new(from).unwrap();
        write(&client, b"hello").unwrap();
        assert!(inlet.pump(to.as_fd()));
        let mut buffer = [0; 16];
        assert_eq!(read(&process, &mut buffer).unwrap(), 5);
        drop(client);
        assert!(!inlet.pump(to.as_fd()));
    }
}
