//! Asking a container something: a probe's question, or a lifecycle hook.
//!
//! Questions are asked from the node's network, as the kubelet asks them. Source: `pkg/probe`, `lifecycle/handlers.go`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::LOCATION;
use http_body_util::{BodyExt, Empty, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::pod::Check;
use crate::shim::{Reply, Request, Shim};

const MAX_BODY: usize = 10 << 10;
/// How often a question may be sent elsewhere on the same host.
const REDIRECTIONS: usize = 10;

/// Whom to ask.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) ip: Option<IpAddr>,
    pub(super) shim: Shim,
    /// The id of the container's running start.
    pub(super) id: String,
}

/// An answer: well, perhaps with something to tell of it, or badly, and why.
pub(super) type Answered = Result<Option<String>, String>;

/// One question.
pub(super) async fn ask(check: &Check, target: &Target, timeout: Duration) -> Answered {
    match check {
        Check::Exec { command } => return exec(target, command.clone(), timeout).await.map(|()| None),
        Check::Http { .. } | Check::Tcp { .. } | Check::Grpc { .. } => {}
    }
    match tokio::time::timeout(timeout, ask_network(check, target)).await {
        Ok(answer) => answer,
        Err(_) => Err(match check {
            Check::Http { .. } => {
                format!(
                    "Get {:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)",
                    url(check, target)
                )
            }
            Check::Tcp { .. } | Check::Grpc { .. } | Check::Exec { .. } => format!("timed out after {timeout:?}"),
        }),
    }
}

/// Who is asked over HTTP.
fn host(check: &Check, target: &Target) -> String {
    let Check::Http { host, .. } = check else { return String::new() };
    host.clone().or_else(|| target.ip.map(|ip| ip.to_string())).unwrap_or_default()
}

fn url(check: &Check, target: &Target) -> String {
    let Check::Http { tls, port, path, .. } = check else { return String::new() };
    format!("{}://{}:{port}{path}", if *tls { "https" } else { "http" }, host(check, target))
}

async fn connect(host: Option<&str>, port: u16, target: &Target) -> Result<TcpStream, String> {
    let ip = match host.filter(|host| !host.is_empty()) {
        None => target.ip,
        Some(host) => Some(host.parse().map_err(|_| format!("{host} is not an address; probes do not look names up"))?),
    };
    let address = SocketAddr::new(ip.ok_or("the pod has no address")?, port);
    TcpStream::connect(address).await.map_err(|error| format!("dial tcp {address}: connect: {}", reason(&error)))
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        _ => error.to_string(),
    }
}

async fn ask_network(check: &Check, target: &Target) -> Answered {
    match check {
        Check::Tcp { host, port } => connect(host.as_deref(), *port, target).await.map(|_| None),
        Check::Http { .. } => {
            let mut check = check.clone();
            for _ in 0..=REDIRECTIONS {
                let Said { status, location, body } = ask_http(&check, target).await?;
                if status.is_success() {
                    return Ok(None);
                }
                if !status.is_redirection() {
                    return Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()));
                }
                match location.and_then(|location| check.redirected(&host(&check, target), &location)) {
                    Some(next) => check = next,
                    // Somebody else, who is not asked.
                    None => return Ok(Some(format!("Probe terminated redirects, Response body: {body}"))),
                }
            }
            Err(format!("Get {:?}: stopped after {REDIRECTIONS} redirects", url(&check, target)))
        }
        Check::Grpc { port, service } => {
            grpc(connect(None, *port, target).await?, *port, service, target).await.map(|()| None)
        }
        Check::Exec { .. } => Err("not a question over the network".to_owned()),
    }
}

/// An answer over HTTP.
struct Said {
    status: StatusCode,
    location: Option<String>,
    body: String,
}

async fn ask_http(check: &Check, target: &Target) -> Result<Said, String> {
    let Check::Http { tls, host, port, path, headers } = check else { return Err("no question over HTTP".to_owned()) };
    let stream = connect(host.as_deref(), *port, target)
        .await
        .map_err(|error| format!("Get {:?}: {error}", url(check, target)))?;
    if !*tls {
        return get(stream, *port, path, headers, target).await;
    }
    let name = host.as_deref().and_then(|host| ServerName::try_from(host.to_owned()).ok());
    let name = name.or_else(|| target.ip.map(ServerName::from)).ok_or("the pod has no address")?;
    let stream = TlsConnector::from(Arc::new(any_certificate()?)).connect(name, stream).await;
    get(stream.map_err(|error| error.to_string())?, *port, path, headers, target).await
}

async fn get<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    port: u16,
    path: &str,
    headers: &[(String, String)],
    target: &Target,
) -> Result<Said, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let host = target.ip.map(|ip| SocketAddr::new(ip, port).to_string()).unwrap_or_default();
    let mut request = http::Request::get(path).header("Connection", "close").header("Accept", "*/*");
    let named = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    if !named("host") {
        request = request.header("Host", host);
    }
    if !named("user-agent") {
        request = request.header("User-Agent", "kube-probe/1.36");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.status();
        let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok()).map(str::to_owned);
        // Read, so that the server does not see its answer refused; but no more than is reasonable.
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
        Ok(Said { status, location, body })
    };
    drive(connection, answer).await
}

/// Runs a connection for as long as the answer takes.
async fn drive<T>(connection: impl Future, answer: impl Future<Output = T>) -> T {
    let (mut connection, mut answer) = (std::pin::pin!(connection), std::pin::pin!(answer));
    tokio::select! {
        answer = &mut answer => answer,
        _ = &mut connection => answer.await,
    }
}

/// `grpc.health.v1.Health/Check` by hand: one field in, one field out.
async fn grpc(stream: TcpStream, port: u16, service: &str, target: &Target) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("error: health rpc failed: {error}");
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let host = target.ip.map(|ip| SocketAddr::new(ip, port).to_string()).unwrap_or_default();
    let name = service.as_bytes();
    let length =
        u8::try_from(name.len()).ok().filter(|length| *length < 0x80).ok_or("the service's name is too long")?;
    let mut message = if name.is_empty() { Vec::new() } else { vec![0x0a, length] };
    message.extend_from_slice(name);
    let size = u32::try_from(message.len()).unwrap_or(0);
    let mut body = vec![0];
    body.extend_from_slice(&size.to_be_bytes());
    body.extend_from_slice(&message);
    let request = http::Request::post(format!("http://{host}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let collected = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(|error| failed(&error))?;
        let status = collected.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        let bytes = collected.to_bytes();
        match (status.as_ref().map(http::HeaderValue::as_bytes), bytes.as_ref()) {
            (Some(b"0"), [_, _, _, _, 2, 8, 1]) => Ok(()),
            (Some(b"0"), _) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
            (status, _) => {
                Err(failed(&format_args!("grpc-status {}", String::from_utf8_lossy(status.unwrap_or(b"missing")))))
            }
        }
    };
    drive(connection, answer).await
}

/// A command in the container; it is killed when it takes longer than `timeout`.
async fn exec(target: &Target, args: Vec<String>, timeout: Duration) -> Result<(), String> {
    let shown = args.clone();
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let request = Request::Exec { id: target.id.clone(), args, timeout_ms };
    match target.shim.call(request).await.map_err(|error| error.to_string())? {
        Reply::Exec { code: Some(0), .. } => Ok(()),
        Reply::Exec { code: Some(code), output } if output.is_empty() => Err(format!("command exited with {code}")),
        Reply::Exec { code: Some(_), output } => Err(output.trim_end().to_owned()),
        Reply::Exec { code: None, .. } => Err(format!("command {shown:?} timed out after {timeout:?}")),
        other => Err(format!("an answer to another question: {other:?}")),
    }
}

/// Runs a lifecycle hook to its end.
pub(super) async fn hook(
    hook: &LifecycleHandler,
    container: &Container,
    target: &Target,
    timeout: Duration,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    if let Some(command) = hook.exec.as_ref().and_then(|exec| exec.command.clone()) {
        return exec(target, command, timeout).await;
    }
    let Some(get) = &hook.http_get else { return Err("the hook has nothing to do".to_owned()) };
    let check = Check::http(get, container).ok_or("the hook's port is not one of the container's")?;
    ask(&check, target, timeout).await.map(drop)
}

/// Probes do not ask who answers: the certificate of a pod is for its clients, not for its node.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

fn any_certificate() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))).with_no_client_auth())
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
