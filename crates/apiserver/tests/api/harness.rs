//! A server on a free port of the loopback, and a plain client for it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use portolan_apiserver::{ApiServer, Config, User};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Long enough for a slow machine; a test that works never waits for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Cluster {
    pub(crate) api: Arc<ApiServer>,
    pub(crate) address: SocketAddr,
    directory: TempDir,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), |_| {}).await
    }

    pub(crate) async fn start_in(directory: TempDir, configure: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(directory.path());
        configure(&mut config);
        let api = Arc::new(ApiServer::open(config).await.unwrap());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let (server, stop) = (api.clone(), shutdown.clone());
        let serving = tokio::spawn(async move { server.serve(vec![listener], stop).await.unwrap() });
        Self { api, address, directory, shutdown, serving }
    }

    pub(crate) async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.serving).await.unwrap().unwrap();
        self.directory
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn client(&self, user: &User) -> Client {
        self.client_of(self, user)
    }

    /// With a certificate of this cluster's authority, for talking to `server`.
    fn client_of(&self, server: &Self, user: &User) -> Client {
        let certificate = self.api.certificate(user).unwrap();
        Client::with(server.address, server.api.ca(), &certificate.certificate, &certificate.key)
    }

    pub(crate) fn admin(&self) -> Client {
        self.client(&User::admin())
    }

    pub(crate) fn stranger(&self) -> Client {
        Client::new(self.address, self.api.ca(), Builder::with_no_client_auth)
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    address: SocketAddr,
    tls: TlsConnector,
}

/// Trusts `cluster`, and shows a certificate that `other` gave out.
pub(crate) fn forged(cluster: &Cluster, other: &Cluster) -> Client {
    let client = other.client_of(cluster, &User::admin());
    Client { address: cluster.address, ..client }
}

type Builder = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| panic!("not JSON: {:?}", self.bytes))
    }

    /// The code and the message of a Status.
    pub(crate) fn failure(&self) -> (u16, String) {
        (self.code, self.json()["message"].as_str().unwrap_or_default().to_owned())
    }

    /// The object, of which it is expected that it came.
    pub(crate) fn ok(&self) -> Value {
        assert!(self.code < 300, "{} {:?}", self.code, self.bytes);
        self.json()
    }
}

impl Client {
    /// All in PEM form.
    pub(crate) fn with(address: SocketAddr, ca: &str, certificate: &str, key: &str) -> Self {
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Self::new(address, ca, |config| config.with_client_auth_cert(chain, key).unwrap())
    }

    fn new(address: SocketAddr, ca: &str, identify: impl FnOnce(Builder) -> ClientConfig) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        Self { address, tls: Arc::new(identify(builder)).into() }
    }

    pub(crate) async fn connect(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        self.tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap()
    }

    /// What the server says to a request of this client, if it says anything.
    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        let mut answer = vec![0; 1024];
        let talk = async {
            stream.write_all(request.as_bytes()).await?;
            stream.read(&mut answer).await
        };
        let read = tokio::time::timeout(DEADLINE, talk).await.unwrap().unwrap_or(0);
        String::from_utf8_lossy(&answer[..read]).into_owned()
    }

    pub(crate) async fn request(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = request.into_parts();
        parts.headers.insert("host", "localhost".parse().unwrap());
        tokio::time::timeout(DEADLINE, sender.send_request(Request::from_parts(parts, body))).await.unwrap().unwrap()
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path.parse::<Uri>().unwrap());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.request(request.body(Full::new(body.into())).unwrap()).await;
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PUT, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn merge(&self, path: &str, body: &Value) -> Answer {
        self.send(Method::PATCH, path, &[("content-type", "application/merge-patch+json")], body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &[], "").await
    }

    pub(crate) async fn watch(&self, path: &str) -> Lines {
        self.watch_as(path, "application/json").await
    }

    pub(crate) async fn watch_as(&self, path: &str, accept: &str) -> Lines {
        let request = Request::get(path).header("accept", accept).body(Full::default()).unwrap();
        let response = self.request(request).await;
        assert_eq!(response.status(), 200, "{path}");
        Lines { body: response.into_body(), rest: BytesMut::new() }
    }
}

/// The events of a watch.
pub(crate) struct Lines {
    body: Incoming,
    rest: BytesMut,
}

impl Lines {
    /// `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time")?;
            self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        }
    }

    /// Type and name of the next event.
    pub(crate) async fn short(&mut self) -> (String, String) {
        let event = self.next().await.expect("the stream goes on");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub(crate) fn pair(event: &str, name: &str) -> (String, String) {
    (event.to_owned(), name.to_owned())
}

pub(crate) fn config_map(name: &str) -> Value {
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

pub(crate) const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
