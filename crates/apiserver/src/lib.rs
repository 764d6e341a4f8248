//! The Kubernetes REST API over a durable store: one binary's control plane, and the only door to its state.
//!
//! A request goes through the modules in this order: `listen` and `places` (connections), `server` (who, by certificate
//! or `tokens`), `route`, `options` and `accept` (what is asked), `authz` (may they) and `turns` (when), then `read`,
//! `watch`, `write` with `admission`, `patch`, `apply`, `delete`, `scale`, `pods`, `sessions` or `proxy`, `convert` between
//! them and the store, and `show`, `sending` and `respond` on the way back. `bootstrap` writes what every cluster has. What
//! a kind of object is lives in `portolan-kinds`, what is stored in `portolan-store`.
//!
//! Invariants: what is answered is on disk; a rejected request changes nothing; whatever a client can make grow has a
//! bound. Deliberately not here: controllers. They are clients like any other.

#![forbid(unsafe_code)]

mod accept;
mod accounts;
mod admission;
mod allocate;
mod apply;
mod authz;
pub mod backup;
mod body;
mod bootstrap;
mod convert;
mod custom;
mod delete;
mod discovery;
mod documents;
mod encode;
mod expire;
mod filter;
mod health;
mod json;
mod lines;
mod listen;
mod listing;
mod metrics;
mod nodes;
mod object;
mod options;
mod pairs;
mod patch;
mod pki;
mod places;
mod pods;
mod proxy;
mod ranges;
mod read;
mod respond;
mod review;
mod route;
mod scale;
mod sending;
mod server;
mod services;
mod sessions;
mod show;
mod tokens;
mod turns;
mod user;
mod verb;
mod warnings;
mod watch;
mod ways;
mod write;
mod yaml;

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_kinds::{Kind, Status};
use portolan_store::{Limits, Store};
use tokio_util::sync::CancellationToken;

pub use nodes::NodeDialer;
pub use pki::{Certificate, PkiError};
pub use portolan_store::OpenError;
pub use user::User;

use allocate::Allocator;
use bootstrap::Standing;
use nodes::Nodes;
use pki::Pki;
use server::Server;
use tokens::Tokens;

/// How the API server is set up.
pub struct Config {
    /// Holds the store and `pki/`.
    pub data_dir: PathBuf,
    /// Where ClusterIPs come from, the cluster's first family first.
    pub service_cidrs: Vec<IpNet>,
    pub node_ports: RangeInclusive<u16>,
    pub cluster_domain: String,
    /// Where pods and nodes reach the API: the endpoint of the Service `default/kubernetes`.
    pub advertise: Option<SocketAddr>,
    /// More names and addresses under which clients reach the API; `localhost` and the Service's are known.
    pub names: Vec<String>,
    /// How to connect to nodes; directly if `None`.
    pub node_dialer: Option<NodeDialer>,
}

impl Config {
    /// With Kubernetes' usual defaults.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            service_cidrs: vec![IpNet::new_assert(std::net::IpAddr::from([10, 96, 0, 0]), 12)],
            node_ports: 30000..=32767,
            cluster_domain: "cluster.local".into(),
            advertise: None,
            names: Vec::new(),
            node_dialer: None,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("cannot set up certificates")]
    Pki(#[from] PkiError),
    #[error("cannot write what every cluster begins with")]
    Bootstrap(#[source] Status),
    #[error("cannot serve the API")]
    Serve(#[source] io::Error),
}

/// An open store with its certificates, ready to be served.
pub struct ApiServer {
    server: Arc<Server>,
    standing: Standing,
    pki: Pki,
    tls: Arc<rustls::ServerConfig>,
}

impl ApiServer {
    /// Opens the store and the certificates, both made on the first start, takes back what Services hold, and writes
    /// what every cluster begins with. Nothing is served yet.
    ///
    /// # Errors
    /// When the data directory is in use, or cannot be read or written.
    pub async fn open(config: Config) -> Result<Self, Error> {
        let store = Store::open(&config.data_dir, Limits::default())?;
        let pki = Pki::open(&config.data_dir.join("pki"))?;
        let tls = pki.server_tls(&names(&config))?;
        let nodes = Nodes::new(pki.node_client_tls()?, config.node_dialer);
        let services = Allocator::new(config.service_cidrs, config.node_ports);
        let address = config.advertise.map_or_else(|| "127.0.0.1:6443".to_owned(), |address| address.to_string());
        let tokens = Tokens::new(pki.token_key()?, &config.cluster_domain);
        let server = Arc::new(Server::new(store, config.data_dir, services, nodes, tokens, address));
        bootstrap::restore_allocations(&server).map_err(Error::Bootstrap)?;
        custom::restore(&server);
        let standing = Standing { advertise: config.advertise, authority: pki.ca().to_owned() };
        bootstrap::run(&server, &standing).await.map_err(Error::Bootstrap)?;
        Ok(Self { server, standing, pki, tls })
    }

    /// A kubeconfig with a new client certificate for `user`, valid for a year.
    ///
    /// # Errors
    /// When the certificate cannot be made, as for a name that no certificate can carry.
    pub fn kubeconfig(&self, server_url: &str, user: &User) -> Result<String, Error> {
        Ok(self.pki.kubeconfig(server_url, user)?)
    }

    /// A new certificate for `user`. A node's is good for its own HTTPS endpoint too, under the node's name.
    ///
    /// # Errors
    /// As [`ApiServer::kubeconfig`].
    pub fn certificate(&self, user: &User) -> Result<Certificate, Error> {
        Ok(self.pki.client(user)?)
    }

    /// The cluster's authority, in PEM form.
    pub fn ca(&self) -> &str {
        self.pki.ca()
    }

    /// Serves until `shutdown`, then ends watches, finishes what is at work, and lets go of the data directory.
    ///
    /// # Errors
    /// When a listener cannot be used.
    pub async fn serve(&self, listeners: Vec<std::net::TcpListener>, shutdown: CancellationToken) -> Result<(), Error> {
        let served = tokio::select! {
            served = listen::serve(self.server.clone(), self.tls.clone(), listeners, shutdown) => served,
            never = expire::run(&self.server.store) => match never {},
            never = custom::run(self.server.clone()) => match never {},
            never = ranges::run(&self.server) => match never {},
            never = self.standing.keep(&self.server) => match never {},
        };
        self.server.conversions.close();
        self.server.tasks.close();
        self.server.tasks.wait().await;
        let store = self.server.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.close()).await;
        served.map_err(Error::Serve)
    }
}

/// Everything that the API's own certificate must be good for.
fn names(config: &Config) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), "kubernetes".to_owned()];
    names.extend(["kubernetes.default".to_owned(), "kubernetes.default.svc".to_owned()]);
    names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.extend(config.service_cidrs.iter().map(|cidr| services::first_address(cidr).to_string()));
    names.extend(config.advertise.map(|address| address.ip().to_string()));
    names.extend(config.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// A kind that this crate itself needs, of which there is but one version.
fn known_kind(group: &str, plural: &str) -> &'static Kind {
    let kind = portolan_kinds::find(group, "v1", plural);
    kind.expect("portolan-kinds knows every kind that the API server itself writes")
}
