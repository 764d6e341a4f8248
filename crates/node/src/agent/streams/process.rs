//! A process's pipes <-> a client's channels, until the process has ended and all it wrote is told.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hyper::body::Bytes;
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use super::{Sink, Source};
use crate::shim::{Open, Session};

const CHUNK: usize = 32 << 10;
/// Bytes of a terminal's size that are kept while it is not whole.
const MAX_SIZE: usize = 1024;

/// A client's channels to a process; one that was not asked for is `None`.
pub(super) struct Channels {
    pub(super) stdin: Option<Source>,
    pub(super) stdout: Option<Sink>,
    pub(super) stderr: Option<Sink>,
    /// Sizes of the terminal, as JSON objects one after the other.
    pub(super) resize: Option<Source>,
}

/// Connects the channels to what `open` asks of the shim of the pod in `dir`, and gives the process's exit code.
///
/// # Errors
/// When there is no such process, or it cannot be made.
pub(super) async fn run(dir: &Path, open: Open, channels: Channels) -> io::Result<i32> {
    let Channels { stdin, stdout, stderr, resize } = channels;
    let mut theirs = Vec::new();
    let mut input = None;
    if open.stdin {
        let (end, ours) = pipe2(OFlag::O_CLOEXEC)?;
        theirs.push(end);
        input = Some(pipe::Sender::from_owned_fd(ours)?);
    }
    let mut output = |wanted: bool| -> io::Result<Option<pipe::Receiver>> {
        if !wanted {
            return Ok(None);
        }
        let (ours, end) = pipe2(OFlag::O_CLOEXEC)?;
        theirs.push(end);
        pipe::Receiver::from_owned_fd(ours).map(Some)
    };
    let (out, err) = (output(open.stdout)?, output(open.stderr)?);
    let mut session = Session::open(dir, open, &theirs).await?;
    // The process alone has them now, so that their end is its end.
    drop::<Vec<OwnedFd>>(theirs);
    let over = CancellationToken::new();
    let control = async {
        let code = attend(&mut session, resize).await;
        over.cancel();
        code
    };
    let work = async {
        let (code, (), ()) = tokio::join!(control, tell(out, stdout, &over), tell(err, stderr, &over));
        code
    };
    tokio::select! {
        code = work => code,
        never = feed(stdin, input) => match never {},
    }
}

/// Waits for the process's end, and passes on the size of its terminal meanwhile.
async fn attend(session: &mut Session, resize: Option<Source>) -> io::Result<i32> {
    let mut sizes = resize.map(|source| Sizes { source, text: Vec::new() });
    loop {
        let size = tokio::select! {
            code = session.ended() => return code,
            size = next_size(&mut sizes) => size,
        };
        match size {
            Some(Size { width, height }) => session.resize(width, height).await?,
            None => sizes = None,
        }
    }
}

async fn next_size(sizes: &mut Option<Sizes>) -> Option<Size> {
    match sizes {
        Some(sizes) => sizes.next().await,
        None => std::future::pending().await,
    }
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

struct Sizes {
    source: Source,
    text: Vec<u8>,
}

impl Sizes {
    /// The next size; `None` once there is none or what comes is no size.
    async fn next(&mut self) -> Option<Size> {
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.text).into_iter::<Size>();
            match values.next() {
                Some(Ok(size)) => {
                    let read = values.byte_offset();
                    self.text.drain(..read);
                    return Some(size);
                }
                Some(Err(error)) if !error.is_eof() => return None,
                _ => {}
            }
            let more = self.source.bytes.recv().await?;
            if self.text.len() + more.len() > MAX_SIZE {
                return None;
            }
            self.text.extend_from_slice(&more);
        }
    }
}

/// Writes what the client sends, and closes the pipe when it has ended its input. Goes on for as long as it is let.
async fn feed(source: Option<Source>, input: Option<pipe::Sender>) -> std::convert::Infallible {
    if let (Some(mut source), Some(mut input)) = (source, input) {
        while let Some(bytes) = source.bytes.recv().await {
            if input.write_all(&bytes).await.is_err() {
                break;
            }
        }
        drop(input);
        // What comes still is taken, so that other channels are not kept waiting.
        while source.bytes.recv().await.is_some() {}
    }
    std::future::pending().await
}

/// Tells the client what the process writes: to the end of the pipe, or what there is of it when the process is `over`.
async fn tell(output: Option<pipe::Receiver>, sink: Option<Sink>, over: &CancellationToken) {
    let (Some(output), Some(sink)) = (output, sink) else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        let is_over = over.is_cancelled();
        // What has ended has written all it will, and others that have the pipe are not waited for: then the descriptor
        // is asked itself, and not what the runtime remembers of it.
        let read = if is_over {
            nix::unistd::read(&output, &mut buffer).map_err(io::Error::from)
        } else {
            output.try_read(&mut buffer)
        };
        match read {
            Ok(0) => break,
            Ok(length) => {
                if sink.send(Bytes::copy_from_slice(&buffer[..length])).await.is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !is_over => {
                tokio::select! {
                    _ = output.readable() => {}
                    () = over.cancelled() => {}
                }
            }
            Err(_) => break,
        }
    }
    sink.end().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_follow_each_other_however_they_are_cut() {
        let (sender, source) = Source::new();
        let mut sizes = Sizes { source, text: Vec::new() };
        for piece in ["{\"Width\":80,\"Hei", "ght\":24}\n{\"Width\":1,\"Height\":2}", "x"] {
            sender.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        assert_eq!(sizes.next().await, Some(Size { width: 80, height: 24 }));
        assert_eq!(sizes.next().await, Some(Size { width: 1, height: 2 }));
        assert_eq!(sizes.next().await, None);
    }
}
