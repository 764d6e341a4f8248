//! A TCP listener -> short answers over HTTP, one a connection.
//!
//! Invariant: whoever connects can cost little: so many connections at once, and so long each. Those beyond wait in the
//! kernel's queue.
//!
//! Deliberately not here: TLS and bodies of requests. What asks are load balancers, probes and scrapers.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);
/// How soon an address that could not be had is tried again.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long to leave a listener alone that could not accept, for want of file descriptors most likely.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

pub(crate) type Answered = Response<Full<Bytes>>;

/// What is said to whoever asks.
pub(crate) trait Answer: Send + Sync + 'static {
    fn answer(&self, path: &str) -> impl Future<Output = Answered> + Send;
}

pub(crate) fn text(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answered {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

pub(crate) fn not_found() -> Answered {
    text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

/// All of a family's addresses stand for all of both, where the kernel has both.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        match TcpListener::bind((Ipv6Addr::UNSPECIFIED, address.port())).await {
            // No IPv6 here.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            bound => return bound,
        }
    }
    TcpListener::bind(address).await
}

/// Serves on the address until dropped, as soon as it can be had.
///
/// # Errors
/// When it cannot be had, if it `must`.
pub(crate) async fn serve_at<A: Answer>(address: SocketAddr, what: &str, must: bool, answer: Arc<A>) -> Result<()> {
    let mut told = false;
    let listener = loop {
        match bind(address).await {
            Ok(listener) => break listener,
            Err(error) if must => return Err(error).with_context(|| format!("cannot serve {what} on {address}")),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("cannot serve {what} on {address} yet: {error}; trying again");
                }
                tokio::time::sleep(BIND_AGAIN_AFTER).await;
            }
        }
    };
    serve(listener, answer).await;
    Ok(())
}

/// Serves until dropped.
pub(crate) async fn serve<A: Answer>(listener: TcpListener, answer: Arc<A>) {
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // The semaphore is never closed.
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let (answer, path) = (answer.clone(), request.uri().path().to_owned());
                async move { Ok::<_, Infallible>(answer.answer(&path).await) }
            });
            let connection = http1::Builder::new()
                .keep_alive(false)
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // What becomes of the connection is the client's business.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    struct Echo;

    impl Answer for Echo {
        async fn answer(&self, path: &str) -> Answered {
            text(StatusCode::OK, "text/plain", path.to_owned())
        }
    }

    #[tokio::test]
    async fn idle_connections_do_not_keep_others_out_for_long() {
        let listener = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::new(Echo)));
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        let ask = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /hello HTTP/1.1\r\nhost: here\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(HEADER_TIMEOUT * 3, ask).await.expect("an answer in time");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("/hello"), "{answer}");
    }

    #[tokio::test]
    async fn an_address_that_must_be_had_and_is_taken_is_an_error() {
        let taken = bind((Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = serve_at(address, "health", true, Arc::new(Echo)).await.unwrap_err();
        assert_eq!(error.to_string(), format!("cannot serve health on {address}"));
    }
}
