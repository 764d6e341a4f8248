//! One connection of a client: HTTP/1.1 over TLS, one request at a time.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Where a server is, and who asks it.
#[derive(Clone)]
pub(crate) struct Access {
    address: SocketAddr,
    tls: TlsConnector,
}

impl Access {
    /// With `ca.crt`, `client.crt` and `client.key` in `directory`.
    pub(crate) fn new(address: SocketAddr, directory: &Path) -> Result<Self> {
        let read = |name: &str| std::fs::read(directory.join(name)).with_context(|| name.to_owned());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read("ca.crt")?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&read("client.crt")?)?];
        let key = PrivateKeyDer::from_pem_slice(&read("client.key")?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Self { address, tls: Arc::new(config).into() })
    }

    pub(crate) async fn connect(&self) -> Result<Client> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.tls.connect(ServerName::try_from("localhost")?, stream).await?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Client(sender))
    }
}

pub(crate) struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn send(&mut self, request: http::request::Builder, body: String) -> Result<Response<Incoming>> {
        let request: Request<Full<Bytes>> =
            request.header("host", "localhost").header("user-agent", "bench/1").body(Full::new(body.into()))?;
        self.0.ready().await?;
        Ok(self.0.send_request(request).await?)
    }

    async fn whole(&mut self, request: http::request::Builder, body: String) -> Result<Bytes> {
        let response = self.send(request, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(500)]));
        Ok(bytes)
    }

    pub(crate) async fn get(&mut self, path: &str, gzip: bool) -> Result<Bytes> {
        let request = Request::get(path).header("accept", "application/json");
        let request = if gzip { request.header("accept-encoding", "gzip") } else { request };
        self.whole(request, String::new()).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: String) -> Result<Bytes> {
        self.whole(Request::post(path).header("content-type", "application/json"), body).await
    }

    pub(crate) async fn merge(&mut self, path: &str, body: String) -> Result<Bytes> {
        let request = Request::builder().method(Method::PATCH).uri(path);
        self.whole(request.header("content-type", "application/merge-patch+json"), body).await
    }

    /// The stream of a watch, whose head has come.
    pub(crate) async fn watch(mut self, path: &str) -> Result<(Self, Incoming)> {
        let response = self.send(Request::get(path).header("accept", "application/json"), String::new()).await?;
        ensure!(response.status().is_success(), "{} for {path}", response.status());
        Ok((self, response.into_body()))
    }
}
