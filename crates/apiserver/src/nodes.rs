//! A node's own HTTPS endpoint: what only the node can answer, such as logs, and the way to its pods.
//!
//! The connection goes to the node's address, and the certificate must be the cluster's, made out to the node's name:
//! a machine that took over the address is not believed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use portolan_kinds::Status;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::object;
use crate::respond::{self, Body, BodyError, Reply};

/// How to reach an address among the nodes, for when they are not in this process's network.
pub type NodeDialer =
    Arc<dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

pub(crate) type NodeStream = tokio_rustls::client::TlsStream<TcpStream>;

const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of a node's reason that are passed on.
const REASON: usize = 4096;

pub(crate) struct Nodes {
    tls: TlsConnector,
    dial: NodeDialer,
}

impl Nodes {
    pub(crate) fn new(tls: Arc<ClientConfig>, dial: Option<NodeDialer>) -> Self {
        let direct: NodeDialer = Arc::new(|address| Box::pin(TcpStream::connect(address)));
        Self { tls: tls.into(), dial: dial.unwrap_or(direct) }
    }

    /// Asks a node for what is read once, such as a log.
    pub(crate) async fn get(&self, node: &Value, path: &str, tasks: &TaskTracker) -> Result<Reply, Status> {
        let response = self.ask(node, Method::GET, path, HeaderMap::new(), tasks).await?;
        let (parts, body) = response.into_parts();
        if !parts.status.is_success() {
            return Err(refusal(parts.status, &reason(body).await));
        }
        let mut reply = Reply::new(body.map_err(|error| -> BodyError { Box::new(error) }).boxed_unsync());
        *reply.status_mut() = parts.status;
        if let Some(media) = parts.headers.get(CONTENT_TYPE) {
            reply.headers_mut().insert(CONTENT_TYPE, media.clone());
        }
        Ok(reply)
    }

    /// Asks a node for something, and gives what it answers, whatever it is.
    pub(crate) async fn ask(
        &self,
        node: &Value,
        method: Method,
        path: &str,
        headers: HeaderMap,
        tasks: &TaskTracker,
    ) -> Result<Response<Incoming>, Status> {
        let name = object::name(node);
        let failed = |why: &dyn std::fmt::Display| Status::internal(format!("{method} {name}{path}: {why}"));
        let stream = self.open(node).await?;
        let mut sender = converse(stream, tasks).await.map_err(|error| failed(&error))?;
        let mut request = Request::new(respond::full(""));
        *request.method_mut() = method.clone();
        *request.uri_mut() = path.parse().map_err(|error| failed(&error))?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, HeaderValue::from_str(name).map_err(|error| failed(&error))?);
        sender.send_request(request).await.map_err(|error| failed(&error))
    }

    /// A connection to a node's own endpoint.
    pub(crate) async fn open(&self, node: &Value) -> Result<NodeStream, Status> {
        let name = object::name(node);
        let (address, port) = endpoint(node)
            .ok_or_else(|| Status::internal(format!("node {name} has not said where it can be asked")))?;
        let address = SocketAddr::new(address, port);
        let failed =
            |why: &dyn std::fmt::Display| Status::internal(format!("cannot ask node {name} at {address}: {why}"));
        match tokio::time::timeout(PATIENCE, self.connect(name, address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(failed(&"no connection in time")),
        }
    }

    /// A connection to a port of a node's address, whatever listens there.
    pub(crate) async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let dialed = tokio::time::timeout(PATIENCE, (self.dial)(address)).await;
        dialed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// A connection to a port of a pod, by way of its node: pods' networks may not be reachable from here.
    ///
    /// # Errors
    /// With the reason in words that clients are used to.
    pub(crate) async fn tunnel(
        &self,
        node: &Value,
        namespace: &str,
        pod: &str,
        port: u16,
        tasks: &TaskTracker,
    ) -> Result<Upgraded, String> {
        let path = format!("/tunnel/{namespace}/{pod}/{port}");
        let headers = HeaderMap::from_iter([
            (CONNECTION, HeaderValue::from_static("Upgrade")),
            (UPGRADE, HeaderValue::from_static("tcp")),
        ]);
        let asked = self.ask(node, Method::GET, &path, headers, tasks).await;
        let response = asked.map_err(|status| status.message().to_owned())?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(reason(response.into_body()).await);
        }
        hyper::upgrade::on(response).await.map_err(|error| error.to_string())
    }

    async fn connect(&self, name: &str, address: SocketAddr) -> io::Result<NodeStream> {
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = (self.dial)(address).await?;
        self.tls.connect(server, stream).await
    }
}

/// A connection whose other end may stop listening before it has said all: what it does not take any more is thrown away,
/// so that who refuses a request without reading it is heard.
struct Patient<S> {
    stream: S,
    listens: bool,
}

impl<S> Patient<S> {
    fn heard<T>(&mut self, done: Poll<io::Result<T>>, otherwise: T) -> Poll<io::Result<T>> {
        match done {
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "a backend does not listen any more");
                self.listens = false;
                Poll::Ready(Ok(otherwise))
            }
            done => done,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.listens {
            return Poll::Ready(Ok(bytes.len()));
        }
        let done = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.heard(done, bytes.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.listens {
            return Poll::Ready(Ok(()));
        }
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        self.heard(done, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Speaks HTTP/1.1 on a connection, which ends with the response's body or what comes after HTTP.
pub(crate) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    tasks: &TaskTracker,
) -> Result<SendRequest<Body>, hyper::Error> {
    let (sender, connection) = http1::handshake(TokioIo::new(Patient { stream, listens: true })).await?;
    tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection that was made for a client ended");
        }
    });
    Ok(sender)
}

/// What a node says why it does not answer; of more than a few lines, the beginning.
pub(crate) async fn reason(mut body: Incoming) -> String {
    let mut bytes = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while bytes.len() < REASON {
        let Ok(Some(Ok(frame))) = tokio::time::timeout_at(deadline, body.frame()).await else { break };
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    bytes.truncate(REASON);
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// A node speaks plain text, but clients understand a Status only.
fn refusal(code: StatusCode, reason: &str) -> Status {
    if code.is_client_error() {
        Status::bad_request(reason)
    } else {
        Status::internal(format!("the node answered with {code}: {reason}"))
    }
}

/// Where a node says it can be asked.
pub(crate) fn endpoint(node: &Value) -> Option<(IpAddr, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    Some((object::text(internal, "/address").parse().ok()?, u16::try_from(port).ok()?))
}
