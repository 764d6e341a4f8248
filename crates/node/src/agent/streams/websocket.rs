//! A WebSocket -> numbered channels, each message beginning with its channel's number; or the bytes of another
//! protocol; or messages to the client alone.
//!
//! Source: `k8s.io/streaming` `wsstream`; KEP-4006 for `v5` and for SPDY in WebSockets.

use std::future::Future;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures::{SinkExt, Stream, StreamExt};
use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use super::{Outgoing, PARTING, PING_EVERY, QUEUE, Sink, Source};

/// Bytes of a message from a client: as many as upstream takes, since some send a file as one.
const MAX_MESSAGE: usize = 32 << 20;
/// A message is given on in pieces of so many bytes, so that no more than one or two of them wait to be taken.
const PIECE: usize = 32 << 10;
/// Bytes that are under way in a tunnel.
const TUNNEL: usize = 64 << 10;
/// Says that the channel whose number follows is closed, from `v5` on.
const CLOSE: u8 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coding {
    /// Text, for browsers: the channel as a digit, and the rest in base64.
    pub(super) base64: bool,
    /// Clients can close single channels.
    pub(super) closes: bool,
}

impl Coding {
    pub(super) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64."), closes: protocol.starts_with("v5.") }
    }

    fn encode(self, channel: u32, bytes: &[u8]) -> Message {
        let channel = u8::try_from(channel).unwrap_or(CLOSE);
        if self.base64 {
            let digit = char::from(b'0'.saturating_add(channel));
            return Message::text(format!("{digit}{}", BASE64_STANDARD.encode(bytes)));
        }
        let mut message = Vec::with_capacity(1 + bytes.len());
        message.push(channel);
        message.extend_from_slice(bytes);
        Message::binary(message)
    }

    fn decode(self, message: &Message) -> Option<Heard> {
        let bytes = match message {
            Message::Binary(bytes) => bytes.clone(),
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        match *bytes.first()? {
            CLOSE if self.closes => bytes.get(1).copied().map(Heard::Closed),
            digit if self.base64 => {
                let plain = BASE64_STANDARD.decode(&bytes[1..]).ok()?;
                Some(Heard::Data(digit.checked_sub(b'0')?, plain.into()))
            }
            channel => Some(Heard::Data(channel, bytes.slice(1..))),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Data(u8, Bytes),
    Closed(u8),
}

async fn open<IO: AsyncRead + AsyncWrite + Unpin>(io: IO) -> WebSocketStream<IO> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

/// Serves one connection with `count` channels until `session` is done with them, or the client has gone.
pub(super) async fn channels<F>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    coding: Coding,
    count: u8,
    session: impl FnOnce(Vec<(Source, Sink)>) -> F,
) where
    F: Future<Output = ()>,
{
    let (mut to_client, mut from_client) = open(io).await.split();
    let (to, mut queue) = mpsc::channel(QUEUE);
    let mut inflows = Vec::new();
    let mut ends = Vec::new();
    for channel in 0..count {
        let (inflow, source) = Source::new();
        inflows.push(Some(inflow));
        ends.push((source, Sink::new(to.clone(), channel.into())));
    }
    // So that the queue ends with the session.
    drop(to);
    let write = async {
        loop {
            let message = match timeout(PING_EVERY, queue.recv()).await {
                Ok(Some(Outgoing::Data { channel, bytes })) => coding.encode(channel, &bytes),
                Ok(Some(_)) => continue,
                Ok(None) => break,
                // One that has gone without a word shows it by this.
                Err(_) => Message::Ping(Bytes::new()),
            };
            to_client.send(message).await?;
        }
        to_client.send(goodbye()).await
    };
    let finished = async {
        let ((), written) = tokio::join!(session(ends), write);
        if let Err(error) = written {
            return tracing::debug!(%error, "a WebSocket's client has gone");
        }
        sleep(PARTING).await;
    };
    let read = async {
        while let Some(Ok(message)) = from_client.next().await {
            match coding.decode(&message) {
                Some(Heard::Data(channel, mut bytes)) => {
                    let Some(Some(inflow)) = inflows.get(usize::from(channel)) else { continue };
                    while !bytes.is_empty() {
                        // Nobody may want it any more.
                        let _ = inflow.send(bytes.split_to(PIECE.min(bytes.len()))).await;
                    }
                }
                Some(Heard::Closed(channel)) => {
                    if let Some(inflow) = inflows.get_mut(usize::from(channel)) {
                        *inflow = None;
                    }
                }
                None => {}
            }
        }
    };
    tokio::select! {
        () = finished => {}
        () = read => {}
    }
}

/// Serves one connection whose messages are the bytes of another protocol, which `session` speaks.
pub(super) async fn tunnel<F>(io: impl AsyncRead + AsyncWrite + Unpin, session: impl FnOnce(DuplexStream) -> F)
where
    F: Future<Output = ()>,
{
    let (mut to_client, mut from_client) = open(io).await.split();
    let (inside, outside) = tokio::io::duplex(TUNNEL);
    let (mut plain, mut into) = tokio::io::split(outside);
    let write = async {
        let mut buffer = vec![0; TUNNEL / 2];
        loop {
            let message = match timeout(PING_EVERY, plain.read(&mut buffer)).await {
                Ok(Ok(length)) if length > 0 => Message::binary(buffer[..length].to_vec()),
                Ok(_) => break,
                Err(_) => Message::Ping(Bytes::new()),
            };
            to_client.send(message).await?;
        }
        to_client.send(goodbye()).await
    };
    let read = async {
        while let Some(Ok(message)) = from_client.next().await {
            if let Message::Binary(bytes) = message
                && into.write_all(&bytes).await.is_err()
            {
                break;
            }
        }
        let _ = into.shutdown().await;
    };
    let finished = async {
        let ((), written) = tokio::join!(session(inside), write);
        if let Err(error) = written {
            tracing::debug!(%error, "a tunnel's client has gone");
        }
    };
    // The session hears of a client that has gone by the end of its bytes.
    let read = async {
        read.await;
        sleep(Duration::from_secs(1)).await;
    };
    tokio::select! {
        () = finished => {}
        () = read => {}
    }
}

/// Sends what comes, until nothing more comes or the client has gone.
pub(super) async fn messages(
    io: impl AsyncRead + AsyncWrite + Unpin,
    base64: bool,
    mut chunks: impl Stream<Item = Bytes> + Unpin,
) {
    let (mut to_client, mut from_client) = open(io).await.split();
    let write = async {
        loop {
            let bytes = match timeout(PING_EVERY, chunks.next()).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(_) => {
                    to_client.send(Message::Ping(Bytes::new())).await?;
                    continue;
                }
            };
            let message = if base64 { Message::text(BASE64_STANDARD.encode(&bytes)) } else { Message::binary(bytes) };
            to_client.send(message).await?;
        }
        to_client.send(goodbye()).await
    };
    let written = async {
        if write.await.is_ok() {
            sleep(PARTING).await;
        }
    };
    tokio::select! {
        () = written => {}
        // What a client says is of no interest, only that it is there.
        () = async { while let Some(Ok(_)) = from_client.next().await {} } => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Coding = Coding { base64: false, closes: false };
    const V5: Coding = Coding { base64: false, closes: true };
    const BROWSER: Coding = Coding { base64: true, closes: false };

    #[test]
    fn messages_name_their_channels() {
        assert_eq!((Coding::of("v4.channel.k8s.io"), Coding::of("v5.channel.k8s.io")), (V4, V5));
        assert_eq!(Coding::of("v4.base64.channel.k8s.io"), BROWSER);
        assert_eq!(V4.encode(1, b"hi"), Message::binary(b"\x01hi".to_vec()));
        assert_eq!(BROWSER.encode(1, b"hi"), Message::text("1aGk="));
        let data = |channel, text: &'static str| Some(Heard::Data(channel, Bytes::from_static(text.as_bytes())));
        assert_eq!(V4.decode(&Message::binary(b"\x00hi".to_vec())), data(0, "hi"));
        assert_eq!(BROWSER.decode(&Message::text("0aGk=")), data(0, "hi"));
        assert_eq!(V5.decode(&Message::binary(vec![255, 0])), Some(Heard::Closed(0)));
        assert_eq!(V4.decode(&Message::binary(vec![255, 0])), data(255, "\0"));
        for nonsense in [Message::binary(vec![]), Message::text("0?"), Message::text(" aGk="), Message::text("é")] {
            assert_eq!(BROWSER.decode(&nonsense), None);
        }
    }

    #[tokio::test]
    async fn messages_go_to_the_client_and_then_a_goodbye() {
        for (base64, expected) in [(false, Message::binary(b"hi".to_vec())), (true, Message::text("aGk="))] {
            let (client, server) = tokio::io::duplex(1024);
            let said = futures::stream::iter([Bytes::from_static(b"hi")]);
            let talk = async {
                let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
                assert_eq!(client.next().await.unwrap().unwrap(), expected);
                assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
            };
            tokio::join!(messages(server, base64, said), talk);
        }
    }

    #[tokio::test]
    async fn a_file_may_come_as_one_message() {
        let (client, server) = tokio::io::duplex(1 << 20);
        let count = |mut ends: Vec<(Source, Sink)>| async move {
            let (mut source, sink) = ends.pop().unwrap();
            let mut length = 0;
            while let Some(bytes) = source.bytes.recv().await {
                assert!(bytes.len() <= PIECE, "{} bytes at once", bytes.len());
                length += bytes.len();
            }
            let _ = sink.send(length.to_string()).await;
        };
        let talk = async {
            let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            let file = [vec![0], vec![b'x'; 10 << 20]].concat();
            for message in [file, vec![255, 0]] {
                client.send(Message::binary(message)).await.unwrap();
            }
            assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"\x0010485760".to_vec()));
            assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
        };
        tokio::join!(channels(server, V5, 1, count), talk);
    }

    #[tokio::test]
    async fn a_channel_that_is_closed_ends_and_the_others_go_on() {
        let (client, server) = tokio::io::duplex(1024);
        let echo = |mut ends: Vec<(Source, Sink)>| async move {
            let (_, out) = ends.pop().unwrap();
            let (mut source, _) = ends.pop().unwrap();
            let mut said = Vec::new();
            while let Some(bytes) = source.bytes.recv().await {
                said.extend_from_slice(&bytes);
            }
            let _ = out.send(said).await;
        };
        let talk = async {
            let mut client = WebSocketStream::from_raw_socket(client, Role::Client, None).await;
            for message in [vec![0, b'a'], vec![7, b'x'], vec![0, b'b'], vec![255, 0]] {
                client.send(Message::binary(message)).await.unwrap();
            }
            assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(b"\x01ab".to_vec()));
            assert!(matches!(client.next().await.unwrap().unwrap(), Message::Close(_)));
        };
        tokio::join!(channels(server, V5, 2, echo), talk);
    }
}
