//! What the node itself answers over HTTPS: its pods, their logs, and sessions with them; and who may ask.
//!
//! Invariant: a session is a part of its connection, so the bound on connections bounds both. A client must show a
//! certificate that the cluster's CA signed, and every node and controller has one: so it must also be the API server's
//! own, or an administrator's. Source: the kubelet's `server.go`.

use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use portolan_client::Cache;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::host::Host;
use super::logs::{Options, Refusal, open};
use super::streams::{self, Agreed};
use super::{AgentConfig, Error, TlsIdentity};

const MAX_CONNECTIONS: usize = 256;
/// Within which a client must have shown who it is: until then anybody, a pod too, has a place among the connections.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long to wait when there is no descriptor for another connection.
const BREATH: Duration = Duration::from_millis(100);
/// The API server, when it asks a node.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";

pub(super) struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Server {
    pub(super) fn bind(config: &AgentConfig) -> Result<Self, Error> {
        let address = config.kubelet_listen;
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let tls = tls(&config.tls).map_err(|reason| Error::Tls { reason })?;
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(tls)) })
    }

    pub(super) async fn serve(self, host: Arc<Host>, pods: &Cache<Pod>) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot serve logs and sessions"),
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    let Ok((stream, _)) = accepted else {
                        tokio::time::sleep(BREATH).await;
                        continue;
                    };
                    let (tls, host, pods) = (self.tls.clone(), host.clone(), pods.clone());
                    connections.spawn(async move {
                        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
                        let stranger = stranger(stream.get_ref().1.peer_certificates());
                        let session = Arc::new(Mutex::new(None));
                        let begins = session.clone();
                        let service = hyper::service::service_fn(move |request| {
                            let (host, pods, stranger, begins) =
                                (host.clone(), pods.clone(), stranger.clone(), begins.clone());
                            async move {
                                let (response, begun) = answer(&host, &pods, stranger.as_deref(), request).await;
                                if begun.is_some() {
                                    *begins.lock().unwrap_or_else(PoisonError::into_inner) = begun;
                                }
                                Ok::<_, std::convert::Infallible>(response)
                            }
                        });
                        let builder = auto::Builder::new(TokioExecutor::new());
                        let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                        if let Err(error) = served.await {
                            tracing::debug!(%error, "a connection to the node's endpoint broke");
                        }
                        // HTTP ends where a session begins.
                        let begun = session.lock().unwrap_or_else(PoisonError::into_inner).take();
                        if let Some(session) = begun {
                            session.await;
                        }
                    });
                }
            }
        }
    }
}

fn tls(identity: &TlsIdentity) -> Result<ServerConfig, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| text(&error))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&identity.client_ca)? {
        roots.add(certificate).map_err(|error| text(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|error| text(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?
        .with_client_cert_verifier(verifier.map_err(|error| text(&error))?)
        .with_single_cert(certificates(&identity.certificate)?, key)
        .map_err(|error| text(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The name of a client that may ask for nothing.
fn stranger(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let nobody = || Some("system:anonymous".to_owned());
    let Some(shown) = certificates.and_then(|chain| chain.first()) else { return nobody() };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(shown) else { return nobody() };
    let subject = certificate.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).unwrap_or_default();
    let is_administrator = subject.iter_organization().any(|group| group.as_str() == Ok(ADMINISTRATORS));
    if is_administrator || name == API_SERVER { None } else { Some(name.to_owned()) }
}

type Stream = futures::stream::BoxStream<'static, io::Result<Frame<Bytes>>>;
type Body = Either<Full<Bytes>, StreamBody<Stream>>;

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text.into()))));
    *response.status_mut() = status;
    response
}

/// The pods of this node, as the API last showed them.
fn list(pods: &Cache<Pod>) -> Response<Body> {
    let items: Vec<_> = pods.list().iter().map(|pod| json!(&**pod)).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    let mut response = plain(StatusCode::OK, list.to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The answer, and what is to be done on the connection if that is no longer HTTP's.
async fn answer(
    host: &Host,
    pods: &Cache<Pod>,
    stranger: Option<&str>,
    mut request: Request<Incoming>,
) -> (Response<Body>, Option<BoxFuture<'static, ()>>) {
    let upgrade = hyper::upgrade::on(&mut request);
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    if path == "/healthz" {
        return (plain(StatusCode::OK, "ok"), None);
    }
    if let Some(name) = stranger {
        let verb = if request.method() == Method::GET { "get" } else { "create" };
        let reason = format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource=proxy)\n");
        return (plain(StatusCode::FORBIDDEN, reason), None);
    }
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return (plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are answered here\n"), None);
    }
    let headers = request.headers();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let agreed: Result<Agreed, Refusal> = match parts[..] {
        ["pods"] => return (list(pods), None),
        ["containerLogs", namespace, pod, container] => {
            let opened = Options::parse(&query, Timestamp::now())
                .and_then(|options| open(&host.logs, namespace, pod, container, options));
            match opened {
                Ok(reader) if headers.contains_key(UPGRADE) => streams::log(reader, headers, upgrade),
                Ok(reader) => {
                    let frames = reader.chunks().map(|chunk| chunk.map(Frame::data));
                    return (Response::new(Either::Right(StreamBody::new(frames.boxed()))), None);
                }
                Err(refusal) => Err(refusal),
            }
        }
        ["exec", namespace, pod, container] => {
            streams::exec(host, [namespace, pod, container], &query, headers, upgrade, true)
        }
        ["attach", namespace, pod, container] => {
            streams::exec(host, [namespace, pod, container], &query, headers, upgrade, false)
        }
        ["portForward", namespace, pod] => streams::forward(host, [namespace, pod], &query, headers, upgrade),
        ["tunnel", namespace, pod, port] => streams::tunnel(host, [namespace, pod, port], headers, upgrade).await,
        _ => Err((StatusCode::NOT_FOUND, "404 page not found\n".to_owned())),
    };
    match agreed {
        Ok((response, session)) => (response.map(|()| Either::Left(Full::default())), Some(session)),
        Err((status, reason)) => (plain(status, reason), None),
    }
}
