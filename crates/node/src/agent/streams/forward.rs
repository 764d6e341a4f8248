//! `/portForward`: streams, in pairs of one for bytes and one for errors, <-> connections to ports of a pod. And
//! `/tunnel`: one plain connection, for the API server's proxy, which may be in no pod network itself.
//!
//! Source: the kubelet's `portforward` server; KEP-4006.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::negotiate::{Chosen, Transport, asks_for, choose, switch};
use super::spdy::{self, Stream};
use super::websocket::{self, Coding};
use super::{ALL_STREAMS, Agreed, PARTING, Refusal, Sink, Source, reach};
use crate::agent::host::Host;
use crate::agent::logs::decoded;

const SPDY_PROTOCOLS: [&str; 1] = ["portforward.k8s.io"];
const TUNNELED: &str = "SPDY/3.1+portforward.k8s.io";
const WEBSOCKET_PROTOCOLS: [&str; 3] = [TUNNELED, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// What the API server's proxy asks for: the bytes of a TCP connection.
const TCP: &str = "tcp";
/// Ports of one WebSocket: each has two channels, whose numbers are bytes.
const MAX_PORTS: usize = 64;
const CHUNK: usize = 32 << 10;
/// What a port has to say is waited for this long when its client has said all. It may be one that has gone altogether:
/// Kubernetes' own clients then say no more than that.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// The pod whose ports are meant.
#[derive(Debug)]
struct Aim {
    dir: PathBuf,
    pod: String,
    uid: String,
}

fn no_pod() -> Refusal {
    (StatusCode::NOT_FOUND, "pod does not exist".to_owned())
}

/// A request to forward ports, which SPDY's streams name themselves, and WebSockets in the query.
pub(in crate::agent) fn forward(
    host: &Host,
    [namespace, pod]: [&str; 2],
    query: &str,
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> Result<Agreed, Refusal> {
    let place = host.logs.place(namespace, pod).ok_or_else(no_pod)?;
    let Chosen { transport, protocol, answer } = choose(headers, &SPDY_PROTOCOLS, &WEBSOCKET_PROTOCOLS)?;
    let by_channels = transport == Transport::WebSocket && protocol != TUNNELED;
    let ports = if by_channels { ports(query)? } else { Vec::new() };
    let aim = Arc::new(Aim { dir: place.dir, pod: format!("{pod}_{namespace}"), uid: place.uid });
    let session = async move {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        match transport {
            Transport::Spdy => spdy::serve(io, |streams| over_spdy(aim, streams)).await,
            Transport::WebSocket if by_channels => {
                let count = u8::try_from(ports.len() * 2).unwrap_or(u8::MAX);
                websocket::channels(io, Coding::of(&protocol), count, |ends| over_channels(aim, ports, ends)).await;
            }
            Transport::WebSocket => {
                websocket::tunnel(io, |inside| spdy::serve(inside, |streams| over_spdy(aim, streams))).await;
            }
        }
    };
    Ok((answer, Box::pin(session)))
}

fn ports(query: &str) -> Result<Vec<u16>, Refusal> {
    let bad = |reason: String| Err((StatusCode::BAD_REQUEST, reason));
    let mut ports = Vec::new();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    for value in pairs.filter(|(name, _)| matches!(*name, "port" | "ports")).map(|(_, value)| decoded(value)) {
        for number in value.split(',') {
            match number.parse::<u16>() {
                Ok(port) if port > 0 => ports.push(port),
                _ => return bad(format!("unable to parse \"{value}\" as a port")),
            }
        }
    }
    match ports.len() {
        0 => bad("query parameter \"port\" is required".to_owned()),
        1..=MAX_PORTS => Ok(ports),
        _ => bad(format!("more than {MAX_PORTS} ports")),
    }
}

async fn over_channels(aim: Arc<Aim>, ports: Vec<u16>, ends: Vec<(Source, Sink)>) {
    let mut ends = ends.into_iter();
    let mut connections = JoinSet::new();
    for port in ports {
        let (Some((source, data)), Some((_, error))) = (ends.next(), ends.next()) else { return };
        let aim = aim.clone();
        connections.spawn(async move {
            // By this clients know which port is which.
            for sink in [&data, &error] {
                let _ = sink.send(port.to_le_bytes().to_vec()).await;
            }
            carry(&aim, port, source, data, error).await;
        });
    }
    while connections.join_next().await.is_some() {}
}

/// Half of a pair, and until when it waits for the other.
struct Half {
    stream: Stream,
    until: Instant,
}

async fn over_spdy(aim: Arc<Aim>, mut streams: mpsc::Receiver<Stream>) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = JoinSet::new();
    loop {
        let expires = halves.values().map(|half| half.until).min();
        let stream = tokio::select! {
            stream = streams.recv() => stream,
            Some(_) = connections.join_next() => continue,
            () = until(expires) => {
                let now = Instant::now();
                for (_, half) in halves.extract_if(|_, half| half.until <= now) {
                    half.stream.sink.reset().await;
                }
                continue;
            }
        };
        let Some(stream) = stream else { return };
        let kind = stream.header("streamtype").to_owned();
        let port: Option<u16> = stream.header("port").parse().ok().filter(|port| *port > 0);
        let (Some(port), "data" | "error") = (port, kind.as_str()) else {
            stream.sink.reset().await;
            continue;
        };
        let key = request(&stream, &kind);
        match halves.remove(&key) {
            None => drop(halves.insert(key, Half { stream, until: Instant::now() + ALL_STREAMS })),
            Some(half) if half.stream.header("streamtype") == kind => {
                stream.sink.reset().await;
                halves.insert(key, half);
            }
            Some(half) => {
                let (data, error) = if kind == "data" { (stream, half.stream) } else { (half.stream, stream) };
                let aim = aim.clone();
                connections.spawn(async move { carry(&aim, port, data.source, data.sink, error.sink).await });
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What makes two streams a pair. Clients of old name no request: then an error's stream is followed by its data's.
fn request(stream: &Stream, kind: &str) -> String {
    match stream.header("requestid") {
        "" if kind == "data" => stream.number.saturating_sub(2).to_string(),
        "" => stream.number.to_string(),
        id => id.to_owned(),
    }
}

/// Forwards one connection to its end.
async fn carry(aim: &Aim, port: u16, source: Source, data: Sink, error: Sink) {
    let done = match reach::inside(&aim.dir, port).await {
        Ok(stream) => relay(stream, source, &data).await,
        Err(error) => Err(error),
    };
    if let Err(reason) = &done {
        let Aim { pod, uid, .. } = aim;
        let _ = error.send(format!("error forwarding port {port} to pod {pod}, uid {uid}: {reason}")).await;
    }
    data.end().await;
    error.end().await;
    if done.is_err() {
        data.reset().await;
        error.reset().await;
    }
}

/// Passes on what both say, until the port has said all or the client wants no more of it.
async fn relay(stream: impl AsyncRead + AsyncWrite, source: Source, data: &Sink) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let Source { mut bytes, reset, .. } = source;
    let up = async {
        while let Some(piece) = bytes.recv().await {
            if write.write_all(&piece).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
        // What comes still is taken, so that other streams are not kept waiting.
        while bytes.recv().await.is_some() {}
        sleep(LAST_WORDS).await;
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = read.read(&mut buffer).await?;
            if length == 0 || data.send(buffer[..length].to_vec()).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        () = up => Ok(()),
        done = down => done,
        () = reset.cancelled() => Ok(()),
    }
}

/// A request for a connection to a port of a pod's own address.
pub(in crate::agent) async fn tunnel(
    host: &Host,
    [namespace, pod, port]: [&str; 3],
    headers: &HeaderMap,
    upgrade: OnUpgrade,
) -> Result<Agreed, Refusal> {
    if !asks_for(headers, TCP) {
        return Err((StatusCode::BAD_REQUEST, format!("only asked for with `Upgrade: {TCP}`")));
    }
    let place = host.logs.place(namespace, pod).ok_or_else(no_pod)?;
    let port: u16 = port.parse().map_err(|_| (StatusCode::BAD_REQUEST, format!("{port} is no port")))?;
    let address = SocketAddr::new(place.address(host.config.node_ip).ok_or_else(no_pod)?, port);
    let failed = |error| (StatusCode::BAD_GATEWAY, format!("dial tcp {address}: {error}"));
    let stream = reach::from_node(address).await.map_err(failed)?;
    let session = async move {
        if let Ok(upgraded) = upgrade.await {
            join(TokioIo::new(upgraded), stream).await;
        }
    };
    Ok((switch(TCP), Box::pin(session)))
}

/// Passes on what both say. It ends with the client, who has gone when it says no more, and with the port: one that takes no
/// more may still have something to say, as who refuses a request before it was sent.
async fn join(client: impl AsyncRead + AsyncWrite, port: impl AsyncRead + AsyncWrite) {
    let ((mut from_client, mut to_client), (mut from_port, mut to_port)) =
        (tokio::io::split(client), tokio::io::split(port));
    let up = async {
        let (mut buffer, mut listens) = (vec![0; CHUNK], true);
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            listens = listens && to_port.write_all(&buffer[..length]).await.is_ok();
        }
    };
    let down = async {
        // Either may break it off.
        let _ = tokio::io::copy(&mut from_port, &mut to_client).await;
        let _ = to_client.shutdown().await;
    };
    tokio::pin!(up);
    tokio::select! {
        () = &mut up => return,
        () = down => {}
    }
    // What the client still sends is taken, or what it was told would be lost with it.
    let _ = timeout(PARTING, up).await;
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;

    use super::super::Outgoing;
    use super::*;

    /// A client's way to what is relayed, and the channel that leads back.
    fn channels() -> (mpsc::Sender<Bytes>, Source, Sink, mpsc::Receiver<Outgoing>) {
        let (said, source) = Source::new();
        let (to, heard) = mpsc::channel(1);
        (said, source, Sink::new(to, 1), heard)
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_may_answer_after_the_client_has_said_all() {
        let (port, mut process) = tokio::io::duplex(64);
        let (said, source, sink, mut heard) = channels();
        said.send("ask".into()).await.unwrap();
        drop(said);
        let answer = async {
            let mut asked = String::new();
            process.read_to_string(&mut asked).await.unwrap();
            sleep(LAST_WORDS / 2).await;
            process.write_all(b"told").await.unwrap();
            drop(process);
            asked
        };
        let (relayed, asked) = tokio::join!(relay(port, source, &sink), answer);
        relayed.unwrap();
        assert_eq!(asked, "ask");
        assert!(matches!(heard.recv().await, Some(Outgoing::Data { bytes, .. }) if bytes == "told"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_never_ends_is_left_when_its_client_has() {
        let (port, mut process) = tokio::io::duplex(64);
        let (said, source, sink, mut heard) = channels();
        drop(said);
        let talk = async {
            while process.write_all(b"more").await.is_ok() {
                sleep(Duration::from_secs(1)).await;
            }
        };
        let listen = async { while heard.recv().await.is_some() {} };
        let relayed = async {
            let relayed = relay(port, source, &sink).await;
            drop(sink);
            relayed
        };
        let (relayed, (), ()) = timeout(LAST_WORDS * 2, async { tokio::join!(relayed, talk, listen) }).await.unwrap();
        relayed.unwrap();
    }

    #[tokio::test]
    async fn a_port_that_takes_no_more_is_heard() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut process, _) = listener.accept().await.unwrap();
        let (client, near) = tokio::io::duplex(1 << 20);
        let (mut hears, mut says) = tokio::io::split(client);
        let talk = async {
            process.write_all(b"no").await.unwrap();
            // With what was not read still there, which breaks the connection off.
            process.readable().await.unwrap();
            drop(process);
            let mut heard = String::new();
            hears.read_to_string(&mut heard).await.unwrap();
            heard
        };
        let send = async { while says.write_all(&[0; CHUNK]).await.is_ok() {} };
        let heard = tokio::select! {
            (heard, ()) = async { tokio::join!(talk, join(near, port)) } => heard,
            () = async { send.await; std::future::pending().await } => unreachable!(),
        };
        assert_eq!(heard, "no");
    }

    #[tokio::test]
    async fn a_port_is_left_by_who_has_left() {
        let ((client, near), (far, _process)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        drop(client);
        timeout(LAST_WORDS, join(near, far)).await.unwrap();
    }

    #[test]
    fn ports_are_named_one_by_one_or_together() {
        assert_eq!(ports("port=80%2C81&port=443&x=1").unwrap(), [80, 81, 443]);
        for query in ["", "port=", "port=0", "port=70000", "port=80,x"] {
            assert_eq!(ports(query).unwrap_err().0, StatusCode::BAD_REQUEST, "{query}");
        }
    }
}
