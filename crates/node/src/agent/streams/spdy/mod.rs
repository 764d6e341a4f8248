//! A connection that speaks SPDY/3.1 -> the streams that its client opens.
//!
//! Invariant: a stream that is not read holds up the whole connection, as it does upstream, and never fills memory.

mod dictionary;
mod frame;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Outgoing, PARTING, PING_EVERY, QUEUE, Sink, Source};
use frame::{CANCEL, Decoder, Encoder, Frame, MAX_DATA, PROTOCOL_ERROR, REFUSED_STREAM};

/// Streams of one connection at once: those that somebody here still listens to, whether the client has ended them or not.
const MAX_STREAMS: usize = 512;

/// A stream that a client has opened.
pub(super) struct Stream {
    /// With the names in lower case.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) number: u32,
    pub(super) source: Source,
    pub(super) sink: Sink,
}

impl Stream {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// What the reader knows of a stream.
struct Inflow {
    /// `None` once the client has said all.
    to: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
}

/// Serves one connection until `session` is done with its streams, or the client has gone.
pub(super) async fn serve<F>(io: impl AsyncRead + AsyncWrite, session: impl FnOnce(mpsc::Receiver<Stream>) -> F)
where
    F: Future<Output = ()>,
{
    let (from_client, to_client) = tokio::io::split(io);
    let (to, queue) = mpsc::channel(QUEUE);
    let (arrivals, streams) = mpsc::channel(QUEUE);
    let over = to.clone();
    let session = async {
        session(streams).await;
        // Fails only if the client has gone.
        let _ = over.send(Outgoing::Over).await;
    };
    let finished = async {
        let (_, written) = tokio::join!(session, write(to_client, queue));
        if let Err(error) = written {
            return tracing::debug!(%error, "a stream's client has gone");
        }
        // Clients close first when all is said.
        sleep(PARTING).await;
    };
    tokio::select! {
        () = finished => {}
        read = read(from_client, to, arrivals) => if let Err(error) = read {
            tracing::debug!(%error, "a stream's client is gone or cannot be understood");
        }
    }
}

async fn read(
    mut from: impl AsyncRead + Unpin,
    to: mpsc::Sender<Outgoing>,
    arrivals: mpsc::Sender<Stream>,
) -> io::Result<()> {
    let mut decoder = Decoder::new();
    let mut inflows: HashMap<u32, Inflow> = HashMap::new();
    let mut newest = 0;
    let mut buffer = vec![0; MAX_DATA];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        decoder.take_in(&buffer[..length]);
        while let Some(frame) = decoder.next().map_err(io::Error::other)? {
            match frame {
                Frame::Open { stream, last, headers } => {
                    let answer = if stream <= newest || stream % 2 == 0 {
                        Outgoing::Refuse { channel: stream, why: PROTOCOL_ERROR }
                    } else if is_full(&mut inflows) {
                        Outgoing::Refuse { channel: stream, why: REFUSED_STREAM }
                    } else {
                        newest = stream;
                        let (inflow, source) = Source::new();
                        let sink = Sink::new(to.clone(), stream);
                        // Taken before it is told of, so that nothing is said on it before.
                        let _ = to.send(Outgoing::Accept { channel: stream }).await;
                        let to = (!last).then_some(inflow);
                        inflows.insert(stream, Inflow { to, reset: source.reset.clone() });
                        let _ = arrivals.send(Stream { headers, number: stream, source, sink }).await;
                        continue;
                    };
                    let _ = to.send(answer).await;
                }
                Frame::Data { stream, last, bytes } => {
                    let Some(inflow) = inflows.get_mut(&stream) else { continue };
                    if let Some(to) = inflow.to.as_ref().filter(|_| !bytes.is_empty()) {
                        // Nobody may want it any more.
                        let _ = to.send(bytes).await;
                    }
                    if last {
                        inflow.to = None;
                    }
                }
                Frame::Reset(stream) => {
                    if let Some(inflow) = inflows.remove(&stream) {
                        inflow.reset.cancel();
                    }
                }
                // Ours come back with an even number.
                Frame::Ping(number) if number % 2 == 1 => drop(to.send(Outgoing::Ping(number)).await),
                Frame::GoAway => return Ok(()),
                Frame::Ping(_) | Frame::Other => {}
            }
        }
    }
}

fn is_full(inflows: &mut HashMap<u32, Inflow>) -> bool {
    if inflows.len() >= MAX_STREAMS {
        inflows.retain(|_, inflow| !inflow.reset.is_cancelled());
    }
    inflows.len() >= MAX_STREAMS
}

async fn write(mut to: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut pings = 0u32;
    loop {
        let next = match timeout(PING_EVERY, queue.recv()).await {
            Ok(next) => next.unwrap_or(Outgoing::Over),
            // One that has gone without a word shows it by this.
            Err(_) => {
                pings = pings.wrapping_add(2);
                Outgoing::Ping(pings)
            }
        };
        match next {
            Outgoing::Data { channel, bytes } => {
                for piece in bytes.chunks(MAX_DATA) {
                    to.write_all(&frame::data(channel, false, piece)).await?;
                }
            }
            Outgoing::End { channel } => to.write_all(&frame::data(channel, true, &[])).await?,
            Outgoing::Reset { channel } => to.write_all(&frame::reset(channel, CANCEL)).await?,
            Outgoing::Refuse { channel, why } => to.write_all(&frame::reset(channel, why)).await?,
            Outgoing::Accept { channel } => to.write_all(&encoder.reply(channel)).await?,
            Outgoing::Ping(number) => to.write_all(&frame::ping(number)).await?,
            Outgoing::Over => return to.flush().await,
        }
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_ended_can_still_be_reset() {
        let (mut client, server) = tokio::io::duplex(4096);
        let session = |mut streams: mpsc::Receiver<Stream>| async move {
            let Stream { mut source, .. } = streams.recv().await.unwrap();
            assert_eq!(source.bytes.recv().await.unwrap(), "hi");
            assert_eq!(source.bytes.recv().await, None, "the client has said all");
            source.reset.cancelled().await;
        };
        for frame in [Encoder::new().open(1, false, &[]), frame::data(1, true, b"hi"), frame::reset(1, CANCEL)] {
            client.write_all(&frame).await.unwrap();
        }
        timeout(PING_EVERY, serve(server, session)).await.unwrap();
    }

    /// A client that opens streams and ends them at once cannot make anybody hold more of them than others do.
    #[tokio::test(start_paused = true)]
    async fn streams_count_until_nobody_listens_to_them() {
        let (client, server) = tokio::io::duplex(4096);
        let (mut from_server, mut to_server) = tokio::io::split(client);
        let session = |mut streams: mpsc::Receiver<Stream>| async move {
            let mut held = Vec::new();
            while held.len() < MAX_STREAMS {
                held.push(streams.recv().await.unwrap());
            }
            assert!(timeout(PARTING, streams.recv()).await.is_err(), "no more than that are taken");
            held.pop();
            assert!(streams.recv().await.is_some(), "until one is let go of");
        };
        let talk = async {
            let mut encoder = Encoder::new();
            let numbers = || (1..).step_by(2);
            for number in numbers().take(MAX_STREAMS + 1) {
                to_server.write_all(&encoder.open(number, true, &[("streamtype", "data")])).await.unwrap();
            }
            // By then one has been let go of.
            sleep(PARTING * 2).await;
            let next = numbers().nth(MAX_STREAMS + 1).unwrap();
            to_server.write_all(&encoder.open(next, true, &[])).await.unwrap();
        };
        let listen = async {
            let mut said = vec![0; MAX_DATA];
            while from_server.read(&mut said).await.unwrap() > 0 {}
        };
        tokio::join!(serve(server, session), talk, listen);
    }
}
