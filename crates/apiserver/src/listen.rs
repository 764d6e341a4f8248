//! Listeners -> TLS connections -> requests, within bounds of number and time.
//!
//! Nobody waits to be accepted, so nobody can make others wait by being slow. Three bounds hold instead, each with a
//! rule for who goes ([`Places`]): of who has not shown who it is yet, of who need not, and of users. Thus whoever has
//! a certificate or a token gets in, and stays.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::pki;
use crate::places::{Place, Places};
use crate::server::{Peer, Server};

/// Connections of users at one time, over all listeners.
const CONNECTIONS: usize = 4096;
/// Those without a client certificate, until a request of theirs says who they are.
const STRANGERS: usize = 256;
/// TLS handshakes at one time.
const HANDSHAKES: usize = 1024;
const STREAMS: u32 = 1000;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A request's head must arrive within this; so an idle HTTP/1 connection lives no longer.
const HEAD: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 64 << 10;
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);
/// After shutdown, requests at work have this long.
const FAREWELL: Duration = Duration::from_secs(3);
/// What the kernel keeps for a client that does not read, in bytes, of which it makes twice as much. Left to itself it
/// goes up to megabytes a connection, and a thousand idle readers of watches use up the memory of the whole TCP stack.
const SEND_BUFFER: usize = 128 << 10;

/// Where connections are counted.
pub(crate) struct Rooms {
    handshakes: Arc<Places>,
    strangers: Arc<Places>,
    users: Arc<Places>,
}

impl Rooms {
    fn new() -> Arc<Self> {
        let [handshakes, strangers, users] = [HANDSHAKES, STRANGERS, CONNECTIONS].map(Places::new);
        Arc::new(Self { handshakes, strangers, users })
    }
}

pub(crate) async fn serve(
    server: Arc<Server>,
    tls: Arc<ServerConfig>,
    listeners: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let rooms = Rooms::new();
    let mut loops = JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let acceptor = TlsAcceptor::from(tls.clone());
        loops.spawn(accept(server.clone(), acceptor, listener, rooms.clone(), shutdown.clone()));
    }
    while loops.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    listener: TcpListener,
    rooms: Arc<Rooms>,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = next(&listener) => accepted,
        };
        let Some((stream, source)) = accepted else { continue };
        let (server, acceptor, rooms, shutdown) = (server.clone(), acceptor.clone(), rooms.clone(), shutdown.clone());
        connections.spawn(async move {
            let gone = CancellationToken::new();
            let ended = tokio::select! {
                ended = connection(server, acceptor, stream, source, rooms, gone.clone(), shutdown) => ended,
                () = gone.cancelled() => Err("its place was taken by another".into()),
            };
            if let Err(error) = ended {
                tracing::debug!(error = &*error, "connection ended");
            }
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, ended).await;
}

async fn next(listener: &TcpListener) -> Option<(TcpStream, IpAddr)> {
    match listener.accept().await {
        Ok((stream, source)) => Some((stream, source.ip())),
        Err(error) => {
            // Out of file descriptors, most likely; the connection stays in the queue.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    source: IpAddr,
    rooms: Arc<Rooms>,
    gone: CancellationToken,
    shutdown: CancellationToken,
) -> Result<(), AnyError> {
    let arriving = rooms.handshakes.enter(source.to_string(), gone.clone());
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(PING).with_interval(PONG).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(pki::user_of);
    let place = match &user {
        Some(user) => rooms.users.enter(user.name.clone(), gone.clone()),
        None => rooms.strangers.enter(source.to_string(), gone.clone()),
    };
    drop(arriving);
    let standing = Standing { rooms, gone, place: Mutex::new((user.is_some(), place)) };
    let peer = Arc::new(Peer { user, source: source.to_canonical(), standing, shutdown: shutdown.clone() });
    let service = service_fn(move |request| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, Infallible>(server.handle(request, peer).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX));
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// What a connection counts as.
pub(crate) struct Standing {
    rooms: Arc<Rooms>,
    gone: CancellationToken,
    /// Whether it is a user's, and its place among these or the strangers.
    place: Mutex<(bool, Place)>,
}

impl Standing {
    /// A request has said who it is, by more than the connection: from now on it is no stranger's.
    pub(crate) fn is_users(&self, name: &str) {
        let mut held = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if !held.0 {
            *held = (true, self.rooms.users.enter(name.to_owned(), self.gone.clone()));
        }
    }
}
