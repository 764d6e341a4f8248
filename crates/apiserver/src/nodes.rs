//! A node's own HTTPS endpoint: what only the node can answer, such as logs.
//!
//! The connection goes to the node's address, and the certificate must be the cluster's, made out to the node's name:
//! a machine that took over the address is not believed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use portolan_kinds::Status;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

use crate::object;
use crate::respond::{BodyError, Reply};

/// How to reach an address among the nodes, for when they are not in this process's network.
pub type NodeDialer =
    Arc<dyn Fn(SocketAddr) -> Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>> + Send + Sync>;

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

    pub(crate) async fn get(&self, node: &Value, path: &str, tasks: &TaskTracker) -> Result<Reply, Status> {
        let name = object::name(node);
        let (address, port) = endpoint(node)
            .ok_or_else(|| Status::internal(format!("node {name} has not said where its logs can be read")))?;
        let failed = |why: &dyn std::fmt::Display| {
            Status::internal(format!("Get \"https://{}{path}\": {why}", SocketAddr::new(address, port)))
        };
        let connected = tokio::time::timeout(PATIENCE, self.connect(name, SocketAddr::new(address, port))).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(&error)),
            Err(_) => return Err(failed(&"no connection in time")),
        };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // Ends with the response's body, or when the client that asked goes away.
        tasks.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to a node ended");
            }
        });
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.uri_mut() = path.parse().map_err(|error| failed(&error))?;
        request.headers_mut().insert(HOST, HeaderValue::from_str(name).map_err(|error| failed(&error))?);
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
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

    async fn connect(&self, name: &str, address: SocketAddr) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let server = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = (self.dial)(address).await?;
        self.tls.connect(server, stream).await
    }
}

/// What a node says why it does not answer; of more than a few lines, the beginning.
async fn reason(mut body: Incoming) -> String {
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

fn endpoint(node: &Value) -> Option<(IpAddr, u16)> {
    let addresses = node["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    Some((object::text(internal, "/address").parse().ok()?, u16::try_from(port).ok()?))
}
