//! HTTPS for the log endpoint, and who may use it.
//!
//! A client must show a certificate that the cluster's CA signed, and every node and controller has one: so it must also
//! be the API server's own, or an administrator's.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::{Logs, Options, open};
use crate::agent::host::Host;
use crate::agent::{AgentConfig, Error, TlsIdentity};

const MAX_CONNECTIONS: usize = 256;
/// The API server, when it asks for a log.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
const ADMINISTRATORS: &str = "system:masters";

pub(in crate::agent) struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Server {
    pub(in crate::agent) fn bind(config: &AgentConfig) -> Result<Self, Error> {
        let address = config.kubelet_listen;
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let tls = tls(&config.tls).map_err(|reason| Error::Tls { reason })?;
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(tls)) })
    }

    pub(in crate::agent) async fn serve(self, host: Arc<Host>) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot serve container logs"),
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    // Out of descriptors, or the client has gone already.
                    let Ok((stream, _)) = accepted else { continue };
                    let (tls, host) = (self.tls.clone(), host.clone());
                    connections.spawn(async move {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        let stranger = stranger(stream.get_ref().1.peer_certificates());
                        let service = hyper::service::service_fn(move |request| {
                            let answer = answer(&host.logs, stranger.as_deref(), &request);
                            async move { Ok::<_, std::convert::Infallible>(answer) }
                        });
                        let builder = auto::Builder::new(TokioExecutor::new());
                        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                            tracing::debug!(%error, "a log reader's connection broke");
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

/// The name of a client that may not read logs.
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

fn answer(logs: &Logs, stranger: Option<&str>, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    if path == "/healthz" {
        return plain(StatusCode::OK, "ok");
    }
    if let Some(name) = stranger {
        let reason = format!("Forbidden (user={name}, verb=get, resource=nodes, subresource=proxy)\n");
        return plain(StatusCode::FORBIDDEN, reason);
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ["containerLogs", namespace, pod, container] = parts[..] else {
        return plain(StatusCode::NOT_FOUND, format!("{path} is not served here\n"));
    };
    let opened = Options::parse(request.uri().query().unwrap_or_default(), Timestamp::now())
        .and_then(|options| open(logs, namespace, pod, container, options));
    match opened {
        Ok(reader) => {
            let lines = futures::stream::unfold(reader, |mut reader| async move {
                let chunk = reader.next().await?;
                Some((chunk.map(Frame::data), reader))
            });
            Response::new(Either::Right(StreamBody::new(lines.boxed())))
        }
        Err((status, reason)) => plain(status, reason),
    }
}
