//! A listener and a handler -> answered HTTP/1.1 connections, until asked to stop.
//!
//! Invariant: once accepted, a request is answered, also after SIGTERM: readiness fails first, connections are still
//! accepted while the news travels, and only then is the listener closed and the rest finished.
//!
//! Deliberately not here: HTTP/2, TLS, routing beyond what every workload has in common.
//! Source: RFC 9112; Kubernetes "Pod Lifecycle", termination of Pods.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Stop, pod_name};

const MAX_CONNECTIONS: usize = 1024;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests in flight may take once the listener is closed.
const FINISH_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) type Answer = Response<Full<Bytes>>;

/// What `/readyz` and the answers' headers depend on.
pub(super) struct Pod {
    pub(super) name: String,
    draining: AtomicBool,
    failed: AtomicBool,
}

impl Pod {
    pub(super) fn new(name: String) -> Arc<Self> {
        Arc::new(Self { name, draining: AtomicBool::new(false), failed: AtomicBool::new(false) })
    }

    pub(super) fn here() -> Arc<Self> {
        Self::new(pod_name())
    }

    /// The routes every HTTP workload has; `None` when the path is not one of them.
    pub(super) fn answer<B>(&self, request: &Request<B>) -> Option<Answer> {
        Some(match request.uri().path() {
            "/" => text(StatusCode::OK, format!("{}\n", self.name)),
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.draining.load(Ordering::Relaxed) => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            "/readyz" if self.failed.load(Ordering::Relaxed) => {
                text(StatusCode::SERVICE_UNAVAILABLE, "told to fail by /fail; /recover ends that\n")
            }
            "/readyz" => text(StatusCode::OK, "ok\n"),
            "/fail" => {
                self.failed.store(true, Ordering::Relaxed);
                text(StatusCode::OK, "/readyz fails from now on\n")
            }
            "/recover" => {
                self.failed.store(false, Ordering::Relaxed);
                text(StatusCode::OK, "/readyz succeeds from now on\n")
            }
            _ => return None,
        })
    }
}

/// Binds the first of the addresses that this machine has.
pub(super) async fn listen(addresses: &[SocketAddr]) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addresses).await.with_context(|| match addresses.first() {
        Some(address) => format!("cannot listen on TCP port {}", address.port()),
        None => "no address to listen on".to_owned(),
    })
}

/// Serves until SIGTERM or SIGINT, then for `drain` longer, then finishes what it has accepted.
pub(super) async fn serve_until_stopped<H, F>(
    addresses: &[SocketAddr],
    pod: Arc<Pod>,
    drain: Duration,
    handler: H,
) -> anyhow::Result<()>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    // Signals are caught before the first connection is: a pod may be ended the moment it is ready.
    let mut stop = Stop::new()?;
    let listener = listen(addresses).await?;
    println!("{} listens on {}", pod.name, listener.local_addr().context("the listener has no address")?);
    serve(listener, pod, drain, handler, async move { stop.wait().await }).await;
    Ok(())
}

/// As [`serve_until_stopped`], with the end of `stop` as the signal.
pub(super) async fn serve<H, F>(
    listener: TcpListener,
    pod: Arc<Pod>,
    drain: Duration,
    handler: H,
    stop: impl Future<Output = ()>,
) where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let mut connections = Connections { graceful: GracefulShutdown::new(), tasks: JoinSet::new(), pod, handler };
    let draining = connections.pod.clone();
    let deadline = async {
        stop.await;
        draining.draining.store(true, Ordering::Relaxed);
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        () = connections.accept(&listener) => (),
        () = deadline => (),
    }
    // What the kernel has accepted already would be reset when the listener closes.
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        connections.take(stream, peer);
    }
    drop(listener);
    let Connections { graceful, mut tasks, .. } = connections;
    let finish = async {
        graceful.shutdown().await;
        while tasks.join_next().await.is_some() {}
    };
    let _ = tokio::time::timeout(FINISH_TIMEOUT, finish).await;
}

struct Connections<H> {
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
    pod: Arc<Pod>,
    handler: H,
}

impl<H, F> Connections<H>
where
    H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    /// Accepts for ever, never more than the bound at once: the rest wait in the kernel's queue.
    async fn accept(&mut self, listener: &TcpListener) {
        loop {
            while self.tasks.len() >= MAX_CONNECTIONS {
                self.tasks.join_next().await;
            }
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.take(stream, peer),
                    // Out of descriptors or a connection already reset: neither is a reason to stop.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
                Some(_) = self.tasks.join_next() => (),
            }
        }
    }

    fn take(&mut self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let (pod, handler) = (self.pod.clone(), self.handler.clone());
        let service = service_fn(move |request| {
            let (pod, answer) = (pod.clone(), handler(request, peer));
            async move {
                let mut answer = answer.await;
                let headers = answer.headers_mut();
                if let Ok(name) = HeaderValue::from_str(&pod.name) {
                    headers.insert("x-pod", name);
                }
                if pod.draining.load(Ordering::Relaxed) {
                    // A client that keeps its connection must look for another backend now.
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let connection = self.graceful.watch(connection);
        self.tasks.spawn(async move {
            // A client that went away is its own business.
            let _ = connection.await;
        });
    }
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

pub(super) fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(super) fn not_found(path: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("nothing here at {path}\n"))
}

pub(super) fn method_not_allowed(method: &Method) -> Answer {
    text(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not understood here\n"))
}

/// The number a query string gives for `name`, or `default` without one.
pub(super) fn query_number(query: Option<&str>, name: &str, default: u32) -> Result<u32, String> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    match pairs.rev().find(|(key, _)| *key == name) {
        Some((_, value)) => value.parse().map_err(|_| format!("{name}={value}: not a whole number\n")),
        None => Ok(default),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::oneshot;

    use super::*;
    use crate::workload::serve as routes;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Ends when the server closes: it does so after each answer while it drains.
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn after_sigterm_it_is_unready_but_answers_whoever_comes_and_finishes_what_it_has() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pod = Pod::new("backend-1".into());
        let (state, seen) = (pod.clone(), pod.clone());
        let handler = move |request, peer| {
            let pod = state.clone();
            async move { routes::answer(&pod, &request, peer).await }
        };
        let (terminate, terminated) = oneshot::channel::<()>();
        let drain = Duration::from_millis(300);
        let serve = serve(listener, pod, drain, handler, async { drop(terminated.await) });
        let clients = async {
            // An idle keep-alive connection must not hold the end up.
            let mut idle = TcpStream::connect(address).await.unwrap();
            idle.write_all(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut head = [0; 15];
            idle.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
            terminate.send(()).unwrap();
            while !seen.draining.load(Ordering::Relaxed) {
                tokio::task::yield_now().await;
            }
            let readiness = ask(address, "/readyz").await;
            assert!(readiness.starts_with("HTTP/1.1 503") && readiness.contains("connection: close"), "{readiness}");
            let name = ask(address, "/").await;
            assert!(name.starts_with("HTTP/1.1 200") && name.ends_with("\r\n\r\nbackend-1\n"), "{name}");
            let began = Instant::now();
            // Longer than the drain lasts: in flight when the listener closes.
            let slow = ask(address, "/slow?ms=600").await;
            assert!(slow.starts_with("HTTP/1.1 200") && began.elapsed() >= Duration::from_millis(600), "{slow}");
        };
        let both = async { tokio::join!(serve, clients) };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
