//! A kubeconfig file, or what a pod is given, -> a connected client.

use std::path::{Path, PathBuf};

use http::header::{HeaderValue, USER_AGENT};
use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

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

/// Reads the kubeconfig's current context. Does not contact the server yet.
///
/// # Errors
/// When the file cannot be read, has no current context, or names certificates that cannot be loaded.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ConnectError> {
    client(read(kubeconfig).await?, kubeconfig.display().to_string())
}

/// As [`connect`]; without a kubeconfig, by the service account of the pod that this runs in. `server` overrides where the
/// API server is, and stands alone for one that asks nobody who they are.
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
            client(config, path.display().to_string())
        }
        (None, Some(url)) => {
            let origin = url.to_string();
            client(Config::new(url), origin)
        }
        (None, None) => {
            let config = Config::incluster().map_err(|source| ConnectError::InCluster(Box::new(source)))?;
            client(config, "the service account".to_owned())
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

fn client(mut config: Config, origin: String) -> Result<Client, ConnectError> {
    // What this program writes is known as its own by that.
    config.headers.push((USER_AGENT, HeaderValue::from_static(concat!("portolan/", env!("CARGO_PKG_VERSION")))));
    Client::try_from(config).map_err(|source| ConnectError::Client { origin, source: Box::new(source) })
}
