//! A URL -> one answer over one new connection, or the phase that failed and why.
//!
//! Invariants: nothing is retried and nothing kept open, so a failure seen here is a failure of the way to the
//! backend; the connection ends with a reset, so that thousands a second do not fill the machine with TIME_WAIT.
//!
//! Deliberately not here: TLS, redirects, proxies.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use portolan_dns::stub;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::resize;

const MAX_ANSWER: usize = 16 << 20;

/// Everything that is the same for each request.
#[derive(Clone, Debug)]
pub(super) struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
    pub(super) body: Option<Bytes>,
    pub(super) connect_timeout: Duration,
    /// For the whole request, from the DNS question to the last byte.
    pub(super) timeout: Duration,
    pub(super) resolv_conf: PathBuf,
    /// The size that a picture in the answer must have.
    size: Option<(u32, u32)>,
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `X-Pod`, or the address when the answer has none.
    pub(super) backend: String,
    pub(super) body: Bytes,
}

/// Why a request failed; the text is what the figures list.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("cannot resolve {host}: {reason}")]
    Resolve { host: String, reason: String },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: std::io::Error },
    #[error("cannot connect to {address} within {after:?}")]
    ConnectTimeout { address: SocketAddr, after: Duration },
    #[error("no whole answer within {after:?}")]
    Timeout { after: Duration },
    #[error("{address} broke the connection off: {reason}")]
    Broken { address: SocketAddr, reason: String },
    #[error("{backend} answered {status}: {text}")]
    Status { backend: String, status: StatusCode, text: String },
    #[error("{backend} sent something else than a PNG of the size asked for")]
    NotThePicture { backend: String },
}

impl Target {
    pub(super) fn parse(url: &str, connect_timeout: Duration, timeout: Duration) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("{url} is not a URL"))?;
        anyhow::ensure!(uri.scheme_str() == Some("http"), "{url}: only http:// is understood");
        let host = uri.host().with_context(|| format!("{url} names no host"))?;
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let number = |name| {
            let pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).find_map(|(_, value)| value.parse().ok())
        };
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(80),
            authority,
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            body: None,
            connect_timeout,
            timeout,
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            size: number("width").zip(number("height")),
        })
    }

    pub(super) async fn fetch(&self) -> Result<Answer, FetchError> {
        timeout(self.timeout, self.exchange()).await.map_err(|_| FetchError::Timeout { after: self.timeout })?
    }

    async fn exchange(&self) -> Result<Answer, FetchError> {
        let address = SocketAddr::new(self.resolve().await?, self.port);
        let stream = timeout(self.connect_timeout, TcpStream::connect(address))
            .await
            .map_err(|_| FetchError::ConnectTimeout { address, after: self.connect_timeout })?
            .map_err(|source| FetchError::Connect { address, source })?;
        let _ = stream.set_nodelay(true);
        let _ = stream.set_zero_linger();
        let (status, headers, body) = self
            .ask(stream)
            .await
            .map_err(|error| FetchError::Broken { address, reason: innermost(error.as_ref()) })?;
        let name = headers.get("x-pod").and_then(|name| name.to_str().ok());
        let backend = name.map_or_else(|| address.ip().to_string(), ToOwned::to_owned);
        if !status.is_success() {
            let text = String::from_utf8_lossy(&body).lines().next().unwrap_or_default().chars().take(100).collect();
            return Err(FetchError::Status { backend, status, text });
        }
        if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "image/png") {
            let size = resize::png_size(&body);
            if size.is_none() || (self.size.is_some() && size != self.size) {
                return Err(FetchError::NotThePicture { backend });
            }
        }
        Ok(Answer { status, backend, body })
    }

    /// One of the name's addresses, each as likely as the others.
    async fn resolve(&self) -> Result<IpAddr, FetchError> {
        if let Ok(address) = self.host.parse() {
            return Ok(address);
        }
        let failed = |reason| FetchError::Resolve { host: self.host.clone(), reason };
        let conf = std::fs::read_to_string(&self.resolv_conf).map_err(|error| failed(error.to_string()))?;
        let mut addresses = stub::resolve(&conf, &self.host).await.map_err(|error| failed(error.to_string()))?;
        addresses.retain(IpAddr::is_ipv4);
        if addresses.is_empty() {
            return Err(failed("the name has no IPv4 address".to_owned()));
        }
        Ok(addresses[rand::random_range(0..addresses.len())])
    }

    async fn ask(
        &self,
        stream: TcpStream,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(if self.body.is_some() { Method::POST } else { Method::GET })
            .uri(&self.path)
            .header(header::HOST, &self.authority)
            .header(header::CONNECTION, "close")
            .body(Full::new(self.body.clone().unwrap_or_default()))?;
        let exchange = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok((head.status, head.headers, body))
        };
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            // The connection may end first with the whole answer in it.
            _ = connection => exchange.await,
        }
    }
}

/// hyper's own words hide what the kernel said.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// One request; the answer goes to stdout, the backend's name to stderr.
pub(super) async fn get(url: &str, timeout: Duration) -> anyhow::Result<ExitCode> {
    let answer = Target::parse(url, timeout, timeout)?.fetch().await?;
    eprintln!("{} from {}, {} bytes", answer.status, answer.backend, answer.body.len());
    match std::str::from_utf8(&answer.body) {
        Ok(text) => print!("{text}"),
        Err(_) => eprintln!("(not text)"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::workload::serve;
    use crate::workload::server::{self, Pod};

    async fn error_of(url: &str) -> String {
        let target = Target::parse(url, Duration::from_secs(2), Duration::from_millis(300)).unwrap();
        match target.fetch().await {
            Ok(answer) => panic!("{url} was answered by {}", answer.backend),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn tells_apart_what_failed() {
        let refused = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let rude = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let serving = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mute_at, rude_at) = (mute.local_addr().unwrap(), rude.local_addr().unwrap());
        let serving_at = serving.local_addr().unwrap();
        let hang_up = async {
            loop {
                let (mut stream, _) = rude.accept().await.unwrap();
                let _ = stream.read(&mut [0; 16]).await;
                stream.set_zero_linger().unwrap();
            }
        };
        let fake_picture = async {
            let (mut stream, _) = mute.accept().await.unwrap();
            let _ = stream.read(&mut [0; 1024]).await;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 2\r\n\r\nno")
                .await
                .unwrap();
            std::future::pending::<()>().await;
        };
        let pod = Pod::new("backend-1".into());
        let routes = pod.clone();
        let serve = server::serve(
            serving,
            pod,
            Duration::ZERO,
            move |request, peer| {
                let pod = routes.clone();
                async move { serve::answer(&pod, &request, peer).await }
            },
            std::future::pending(),
        );
        let check = async {
            assert!(error_of(&format!("http://{refused}/")).await.contains("refused"));
            assert!(error_of(&format!("http://{rude_at}/")).await.contains("broke the connection off"));
            assert!(error_of(&format!("http://{mute_at}/")).await.contains("PNG"));
            assert_eq!(error_of(&format!("http://{mute_at}/")).await, "no whole answer within 300ms");
            let lost = error_of(&format!("http://{serving_at}/lost")).await;
            assert_eq!(lost, "backend-1 answered 404 Not Found: nothing here at /lost");

            let url = format!("http://{serving_at}/echo");
            let answer = Target::parse(&url, Duration::from_secs(2), Duration::from_secs(2)).unwrap().fetch().await;
            let seen: serde_json::Value = serde_json::from_slice(&answer.unwrap().body).unwrap();
            assert!(seen["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{seen}");
            assert_eq!(seen["host"], serving_at.to_string());
        };
        tokio::select! {
            () = check => (),
            () = hang_up => (),
            () = fake_picture => (),
            () = serve => (),
        }
    }
}
