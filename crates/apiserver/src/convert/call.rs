//! One question to a webhook, and its answer.
//!
//! Invariant: it ends within [`PATIENCE`], the wait for its turn included, and no answer takes more than [`LARGEST`].
//! A Service is reached as requests to its `/proxy` are, by way of its pods' nodes, since this process may be in no
//! network of theirs; endpoints that are no pods are dialled.
//! Source: `pkg/util/webhook/client.go` of apiserver and client-go's `rest`, whose words these are.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use http::response::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use portolan_kinds::custom::webhook::{Place, Webhook};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::trust::Trust;
use crate::body;
use crate::object;
use crate::proxy::{self, Stream};
use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of an answer; what is asked at once has a third of that, or is one object.
const LARGEST: usize = 3 * body::LIMIT;
/// Bytes of a refusal that are passed on.
const REASON: usize = 2048;

/// # Errors
/// With the reason in the words that clients are used to.
pub(super) async fn call(
    server: &Server,
    webhook: &Webhook,
    calls: &Semaphore,
    trust: &Trust,
    question: String,
) -> Result<Value, String> {
    let authority = match &webhook.place {
        Place::Host(host) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            if webhook.port == 443 { host } else { format!("{host}:{}", webhook.port) }
        }
        Place::Service { namespace, name } => format!("{name}.{namespace}.svc:{}", webhook.port),
    };
    let path = format!("{}?timeout=30s", webhook.path);
    let posting = |why: String| format!("Post \"https://{authority}{path}\": {why}");
    let asked = async {
        let _call = calls.acquire().await.map_err(|error| posting(error.to_string()))?;
        let stream = connect(server, webhook, trust).await.map_err(posting)?;
        exchange(stream, &authority, &path, question).await.map_err(posting)
    };
    let (parts, answer) = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answered) => answered?,
        Err(_) => return Err(posting("context deadline exceeded".to_owned())),
    };
    if !parts.status.is_success() {
        let media = parts.headers.get(CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or("text/plain");
        return Err(refusal(parts.status, media, &answer));
    }
    serde_json::from_slice(&answer).map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
}

async fn exchange(stream: Stream, authority: &str, path: &str, question: String) -> Result<(Parts, Bytes), String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let mut request = Request::new(Full::new(Bytes::from(question)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_str(authority).map_err(|error| error.to_string())?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("application/json, */*"));
    let mut asked = pin!(async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map_err(|error| error.to_string())?;
        Ok((parts, body.to_bytes()))
    });
    tokio::select! {
        biased;
        answer = &mut asked => answer,
        // What it has brought by then is read all the same.
        _ = connection => asked.await,
    }
}

async fn connect(server: &Server, webhook: &Webhook, trust: &Trust) -> Result<Stream, String> {
    let config = trust.config(&webhook.authorities)?;
    let (stream, name): (Stream, String) = match &webhook.place {
        Place::Host(host) => (Box::new(dial(host, webhook.port).await?), host.clone()),
        Place::Service { namespace, name } => {
            (service(server, namespace, name, webhook.port).await?, format!("{name}.{namespace}.svc"))
        }
    };
    let name = ServerName::try_from(name).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {host}:{port}: {}", unreached(&error)))
}

/// Why nobody could be reached, as Go tells it.
fn unreached(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    }
}

/// A connection to one of a Service's endpoints, or to the name that it stands for.
async fn service(server: &Server, namespace: &str, name: &str, port: u16) -> Result<Stream, String> {
    // A definition may name what cannot be: nothing is stored under it.
    if [namespace, name].iter().any(|part| part.contains('/')) {
        return Err(format!("service {name:?} not found"));
    }
    let stored = |plural: &str| {
        let key = object::key(crate::known_kind("", plural), namespace, name);
        server.store.get(&key).0.map(|entry| object::decode(&entry.value))
    };
    let service = stored("services").ok_or_else(|| format!("service {name:?} not found"))?;
    if object::text(&service, "/spec/type") == "ExternalName" {
        return Ok(Box::new(dial(object::text(&service, "/spec/externalName"), port).await?));
    }
    if object::text(&service, "/spec/clusterIP") == "None" {
        return Err("cannot route to service with ClusterIP \"None\"".to_owned());
    }
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let declared = ports.clone().find(|declared| declared["port"] == port);
    let declared = declared.ok_or_else(|| format!("no service port {port} found for service {name:?}"))?;
    let endpoints = stored("endpoints").unwrap_or_default();
    let candidates = proxy::candidates(&endpoints, object::text(declared, "/name"));
    let mut why = format!("no endpoints available for service {name:?}");
    for (address, port) in candidates {
        let connected: Result<Stream, String> = match proxy::pod(server, namespace, address, port) {
            Some(pod) => pod.connect(server).await,
            None => {
                let ip =
                    object::text(address, "/ip").parse().map_err(|_| "an endpoint without an address".to_owned())?;
                let dialed = server.nodes.dial(SocketAddr::new(ip, port)).await;
                dialed
                    .map(|stream| Box::new(stream) as Stream)
                    .map_err(|error| format!("dial tcp {ip}:{port}: {}", unreached(&error)))
            }
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// What went wrong, as client-go tells it.
fn refusal(code: StatusCode, media: &str, answer: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(answer)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str().filter(|message| !message.is_empty())
    {
        return message.to_owned();
    }
    let text = match media.starts_with("text/") {
        true => String::from_utf8_lossy(&answer[..answer.len().min(REASON)]).trim().to_owned(),
        false => "unknown".to_owned(),
    };
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 | 415 => text,
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        code => format!("the server responded with the status code {code} but did not return more information"),
    }
}
