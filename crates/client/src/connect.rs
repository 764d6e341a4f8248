//! A kubeconfig file, or what a pod is given, -> a connected client.
//!
//! - For who follows what is there, [`connect_from`]: HTTP/2, one connection for all, because a connection that is quiet
//!   can be asked whether anybody is there.
//! - For who has to be in time, as a Lease is, [`connect`]: HTTP/1.1, a connection for each request under way, because a
//!   request that is given up takes its connection with it, and the next one has another, and none waits behind a list.
//!
//! Invariant: a server that is gone without a word is noticed: a connection whose other end acknowledges nothing for
//! [`SILENCE`] is ended, whether anything was waiting to be sent or not. By HTTP/2, so is one that lives and does not
//! answer: it is sent a ping when nothing came from it for [`PING_AFTER`], and has [`PONG_WITHIN`] to answer. A watch
//! without events answers pings, and goes on. client-go takes up to 45 seconds for either. By HTTP/1.1, which it also
//! comes down to where a server speaks nothing else, such a one is noticed when its watches are over.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::ConfigExt;
use kube::client::retry::RetryPolicy;
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// An idle connection is asked after so long whether it still is one, and then as often again as given below it.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How long the other end may acknowledge nothing.
const SILENCE: Duration = Duration::from_secs(30);
const PING_AFTER: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot read the kubeconfig {path}; name another with --kubeconfig")]
    Read {
        path: PathBuf,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("the kubeconfig {path} has no usable context")]
    Context {
        path: PathBuf,
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    #[error("this is no pod with a service account, so name a kubeconfig with --kubeconfig")]
    InCluster(#[source] Box<InClusterError>),
    #[error("{url:?} is no address of an API server, as in https://192.0.2.1:6443")]
    Server {
        url: String,
        #[source]
        source: http::uri::InvalidUri,
    },
    #[error("cannot set up the connection that {origin} describes")]
    Client {
        origin: String,
        #[source]
        source: Box<kube::Error>,
    },
}

/// Reads the kubeconfig's current context. Does not contact the server yet. Requests have connections of their own.
///
/// # Errors
/// When the file cannot be read, has no current context, or names certificates that cannot be loaded.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ConnectError> {
    client(read(kubeconfig).await?, kubeconfig.display().to_string(), Connections::Apart)
}

/// As [`connect`], and all requests share a connection; without a kubeconfig, by the service account of the pod that
/// this runs in. `server` overrides where the API server is, and stands alone for one that asks nobody who they are.
///
/// # Errors
/// Also when there is no service account.
pub async fn connect_from(kubeconfig: Option<&Path>, server: Option<&str>) -> Result<Client, ConnectError> {
    let url = server.map(|server| {
        server.parse::<http::Uri>().map_err(|source| ConnectError::Server { url: server.to_owned(), source })
    });
    match (kubeconfig, url.transpose()?) {
        (Some(path), url) => {
            let mut config = read(path).await?;
            config.cluster_url = url.unwrap_or(config.cluster_url);
            client(config, path.display().to_string(), Connections::Shared)
        }
        (None, Some(url)) => {
            let origin = url.to_string();
            client(Config::new(url), origin, Connections::Shared)
        }
        (None, None) => {
            let config = Config::incluster().map_err(|source| ConnectError::InCluster(Box::new(source)))?;
            client(config, "the service account".to_owned(), Connections::Shared)
        }
    }
}

async fn read(kubeconfig: &Path) -> Result<Config, ConnectError> {
    let path = || kubeconfig.to_path_buf();
    let file = Kubeconfig::read_from(kubeconfig)
        .map_err(|source| ConnectError::Read { path: path(), source: Box::new(source) })?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|source| ConnectError::Context { path: path(), source: Box::new(source) })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Connections {
    Shared,
    Apart,
}

fn client(mut config: Config, origin: String, connections: Connections) -> Result<Client, ConnectError> {
    // What this program writes is known as its own by that.
    config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("portolan/", env!("CARGO_PKG_VERSION")))));
    build(config, connections).map_err(|source| ConnectError::Client { origin, source: Box::new(source) })
}

/// As [`Client::try_from`] does it, but for what the invariant above needs of connections.
fn build(config: Config, connections: Connections) -> kube::Result<Client> {
    let Some(connector) = connector(&config, connections)? else { return Client::try_from(config) };
    let mut connector = TimeoutConnector::new(connector);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_write_timeout(config.write_timeout);
    let client = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PONG_WITHIN)
        .http2_keep_alive_while_idle(true)
        .build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry())))
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace))
}

/// `None` where that is for kube to do: a way through a proxy is not this one's business, and what is wrong with a name
/// it says itself.
fn connector(config: &Config, connections: Connections) -> kube::Result<Option<HttpsConnector<HttpConnector>>> {
    if config.proxy_url.is_some() {
        return Ok(None);
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_keepalive(Some(ASK_AFTER));
    tcp.set_keepalive_interval(Some(ASK_EVERY));
    tcp.set_tcp_user_timeout(Some(SILENCE));
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = config.tls_server_name.clone() {
        let Ok(name) = name.try_into() else { return Ok(None) };
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    Ok(Some(match connections {
        Connections::Shared => builder.enable_all_versions().wrap_connector(tcp),
        Connections::Apart => builder.enable_http1().wrap_connector(tcp),
    }))
}
