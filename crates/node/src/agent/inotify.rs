//! Directories -> word that something in one of them changed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The changes since it was made, or since they were last asked for.
pub struct Changes(AsyncFd<Descriptor>);

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// # Errors
    /// When the directory is not there, or the user's inotify instances are used up.
    pub fn of(directory: &Path, flags: AddWatchFlags) -> io::Result<Self> {
        let changes = Self::of_nothing()?;
        changes.watch(directory, flags)?;
        Ok(changes)
    }

    /// # Errors
    /// When the user's inotify instances are used up.
    #[allow(unsafe_code, reason = "tokio asks for a promise that the descriptor stays the same")]
    pub fn of_nothing() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: `Descriptor` owns its descriptor and gives out no other while it lives.
        let registered = unsafe { AsyncFd::register_with_interest(Descriptor(inotify), Interest::READABLE) };
        Ok(Self(registered?))
    }

    /// Tells of this directory too. Twice is as good as once, and a directory that goes is no longer watched.
    ///
    /// # Errors
    /// When it is not there, or the user's inotify watches are used up.
    pub fn watch(&self, directory: &Path, flags: AddWatchFlags) -> io::Result<()> {
        self.0.get_ref().0.add_watch(directory, flags)?;
        Ok(())
    }

    /// Waits for changes, and takes in all that there are: what changed, the caller looks for itself.
    /// # Errors
    /// When the kernel tells nothing any more.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        // To the end: the kernel does not tell again of what it still holds.
        while ready.get_inner().0.read_events().is_ok() {}
        ready.clear_ready();
        Ok(())
    }
}
