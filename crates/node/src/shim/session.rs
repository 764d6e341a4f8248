//! The agent's end of a session: a connection of its own to a pod's shim, with the pipes that go along.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::{Call, Message, Open, Reply, Request, decode, encode, socket_path};

/// Descriptors that may come with one call.
const MAX_FDS: usize = 3;

/// Ends when it is dropped.
pub(crate) struct Session {
    stream: UnixStream,
    buffer: Vec<u8>,
    seq: u64,
}

/// The seq of the session's first call, whose answer is its end.
const OPENED: u64 = 0;

impl Session {
    /// Asks the shim of the pod in `dir` for a session, with the shim's or the command's own ends of its pipes.
    ///
    /// # Errors
    /// When there is no shim.
    pub(crate) async fn open(dir: &Path, open: Open, ends: &[OwnedFd]) -> io::Result<Self> {
        let opened = File::open(dir)?;
        let stream = UnixStream::connect(socket_path(&opened)).await?;
        let frame = encode(&Call { seq: OPENED, request: Request::Open(open) })?;
        let raw: Vec<RawFd> = ends.iter().map(AsRawFd::as_raw_fd).collect();
        let send = || {
            let rights = [ControlMessage::ScmRights(&raw)];
            let with: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
            let bytes = [IoSlice::new(&frame)];
            Ok(sendmsg::<()>(stream.as_raw_fd(), &bytes, with, MsgFlags::MSG_NOSIGNAL, None)?)
        };
        let sent = stream.async_io(Interest::WRITABLE, send).await?;
        let mut session = Self { stream, buffer: Vec::new(), seq: OPENED };
        session.stream.write_all(&frame[sent..]).await?;
        Ok(session)
    }

    pub(crate) async fn resize(&mut self, columns: u16, rows: u16) -> io::Result<()> {
        self.seq += 1;
        let frame = encode(&Call { seq: self.seq, request: Request::Resize { columns, rows } })?;
        self.stream.write_all(&frame).await
    }

    /// How the session's process ended. Nothing is lost when this is dropped before it returns.
    ///
    /// # Errors
    /// When there was no process to talk to, for the reason that the error gives, or the pod has gone.
    pub(crate) async fn ended(&mut self) -> io::Result<i32> {
        loop {
            while let Some(message) = decode::<Message>(&mut self.buffer)? {
                match message {
                    Message::Reply { seq: OPENED, reply: Reply::Ended { code } } => return Ok(code),
                    Message::Reply { seq: OPENED, reply: Reply::Failed(reason) } => {
                        return Err(io::Error::other(reason));
                    }
                    // Of what the other calls were answered, and of containers that end.
                    _ => {}
                }
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the pod has ended"));
            }
        }
    }
}

/// Reads what is there, with the descriptors that came along; `false` when the other end is closed or broken.
#[allow(unsafe_code, reason = "descriptors that were received have no owner yet")]
pub(super) fn receive(from: &impl AsRawFd, into: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        let mut space = cmsg_space!([RawFd; MAX_FDS]);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let length = match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => {
                for control in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmRights(received) = control {
                        // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
                        fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                    }
                }
                message.bytes
            }
            Err(Errno::EINTR) => continue,
            Err(error) => return error == Errno::EAGAIN,
        };
        if length == 0 {
            return false;
        }
        into.extend_from_slice(&buffer[..length]);
    }
}
