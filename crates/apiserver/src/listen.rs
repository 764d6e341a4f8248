//! Listeners -> TLS connections -> requests, within bounds of number and time.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::pki;
use crate::server::{Peer, Server};

/// Connections at one time, over all listeners. More wait to be accepted.
const CONNECTIONS: usize = 4096;
/// Of them without a client certificate; who comes later is sent away. Their handshakes count only as connections.
const STRANGERS: usize = 256;
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

pub(crate) async fn serve(
    server: Arc<Server>,
    tls: Arc<ServerConfig>,
    listeners: Vec<std::net::TcpListener>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut loops = JoinSet::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let acceptor = TlsAcceptor::from(tls.clone());
        loops.spawn(accept(server.clone(), acceptor, listener, room.clone(), strangers.clone(), shutdown.clone()));
    }
    while loops.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    listener: TcpListener,
    room: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    shutdown: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = next(&listener, &room) => accepted,
        };
        let Some((stream, permit)) = accepted else { continue };
        let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
        let strangers = strangers.clone();
        connections.spawn(async move {
            if let Err(error) = connection(server, acceptor, stream, &strangers, shutdown).await {
                tracing::debug!(error = &*error, "connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, ended).await;
}

async fn next(listener: &TcpListener, room: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = room.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
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
    strangers: &Semaphore,
    shutdown: CancellationToken,
) -> Result<(), AnyError> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(PING).with_interval(PONG).with_retries(3);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    SockRef::from(&stream).set_send_buffer_size(SEND_BUFFER)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(pki::user_of);
    let _stranger = if user.is_none() { Some(strangers.try_acquire()?) } else { None };
    let peer = Arc::new(Peer { user, shutdown: shutdown.clone() });
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
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
