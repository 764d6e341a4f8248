//! A kubeconfig file -> a connected client.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig};
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
    #[error("cannot set up the connection that {path} describes")]
    Client {
        path: PathBuf,
        #[source]
        source: Box<kube::Error>,
    },
}

/// Reads the kubeconfig's current context. Does not contact the server yet.
///
/// # Errors
/// When the file cannot be read, has no current context, or names certificates that cannot be loaded.
pub async fn connect(kubeconfig: &Path) -> Result<Client, ConnectError> {
    let path = || kubeconfig.to_path_buf();
    let file = Kubeconfig::read_from(kubeconfig)
        .map_err(|source| ConnectError::Read { path: path(), source: Box::new(source) })?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|source| ConnectError::Context { path: path(), source: Box::new(source) })?;
    Client::try_from(config).map_err(|source| ConnectError::Client { path: path(), source: Box::new(source) })
}
