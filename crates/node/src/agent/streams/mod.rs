//! A client's request for a session with a pod -> bytes between the two: exec, attach, port-forward, logs, and plain
//! connections for the API server's proxy.
//!
//! A request is agreed on (`negotiate`), its connection changes protocol (`websocket`, `spdy`), and what is left of it
//! is channels, which lead to a process (`process`) or to a port (`forward`). The API server passes all of it on as it
//! comes, so every protocol that clients speak ends here.
//!
//! Invariants: a session ends when its client's connection does; queues are short, and who does not read is waited for.
//! Source: the kubelet's streaming server (`cri-streaming`), KEP-4006.

mod exec;
mod forward;
mod log;
mod negotiate;
mod process;
mod reach;
mod spdy;
mod websocket;

use std::time::Duration;

use futures::future::BoxFuture;
use http::{Response, StatusCode};
use hyper::body::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

pub(super) use exec::exec;
pub(super) use forward::{forward, tunnel};
pub(super) use log::log;

/// Messages of a channel that wait to be taken.
const QUEUE: usize = 8;
/// A connection on which nothing is sent is tried this often, so that one whose client has gone is noticed.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A client has this long to close a connection on which all is said.
const PARTING: Duration = Duration::from_secs(2);
/// A client has this long to open the streams it needs.
const ALL_STREAMS: Duration = Duration::from_secs(30);

/// What a client is told instead.
pub(super) type Refusal = (StatusCode, String);
/// The answer that changes the connection's protocol, and what is to be done on it then.
pub(super) type Agreed = (Response<()>, BoxFuture<'static, ()>);

/// What a client sends on one channel.
struct Source {
    bytes: mpsc::Receiver<Bytes>,
    /// The client wants nothing more of it, in either direction. It may say so after the last of its bytes.
    reset: CancellationToken,
    /// By this, who holds the other end knows that nobody here wants anything of it either.
    _held: DropGuard,
}

impl Source {
    fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, bytes) = mpsc::channel(QUEUE);
        let reset = CancellationToken::new();
        (sender, Self { bytes, reset: reset.clone(), _held: reset.drop_guard() })
    }
}

/// What is sent to a client.
enum Outgoing {
    Data {
        channel: u32,
        bytes: Bytes,
    },
    /// Nothing more comes on this channel.
    End {
        channel: u32,
    },
    /// Nor is anything taken from it.
    Reset {
        channel: u32,
    },
    Refuse {
        channel: u32,
        why: u32,
    },
    Accept {
        channel: u32,
    },
    Ping(u32),
    Over,
}

/// The way to a client on one channel.
#[derive(Clone)]
struct Sink {
    to: mpsc::Sender<Outgoing>,
    channel: u32,
}

/// The client is not there any more.
struct Gone;

impl Sink {
    fn new(to: mpsc::Sender<Outgoing>, channel: u32) -> Self {
        Self { to, channel }
    }

    async fn send(&self, bytes: impl Into<Bytes>) -> Result<(), Gone> {
        self.put(Outgoing::Data { channel: self.channel, bytes: bytes.into() }).await
    }

    /// Where channels cannot be ended one by one, this does nothing.
    async fn end(&self) {
        let _ = self.put(Outgoing::End { channel: self.channel }).await;
    }

    async fn reset(&self) {
        let _ = self.put(Outgoing::Reset { channel: self.channel }).await;
    }

    async fn put(&self, outgoing: Outgoing) -> Result<(), Gone> {
        self.to.send(outgoing).await.map_err(|_| Gone)
    }
}
