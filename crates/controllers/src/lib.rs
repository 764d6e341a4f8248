//! The cluster's controllers: what people asked for -> the objects that bring it about, through the Kubernetes API
//! alone.
//!
//! Each module is one controller: a pure decision over cached objects, and the writes that carry it out. All share one
//! watch a kind ([`Shared`]), one loop (`drive`), one kind of work queue (`queue`) and one memory of writes that the
//! watches have not shown yet (`index`).
//!
//! Invariants: nothing is polled; a controller that restarts, or acts on an old state, makes nothing twice; one
//! object's nonsense stops that object only. Deliberately not here: allocation of ClusterIPs and NodePorts, which the
//! API server does with the write itself, and everything that happens on a node.

#![forbid(unsafe_code)]

mod aggregation;
mod deployment;
mod drive;
mod endpoints;
mod endpointslice;
mod gc;
mod index;
mod loadbalancer;
mod meta;
mod mirroring;
mod namespace;
mod node;
mod nodeipam;
mod pod;
mod podgc;
mod queue;
mod refusal;
mod removal;
mod replicaset;
mod scheduler;
mod serviceaccount;
mod taint;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use portolan_client::{Cache, Recorder};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use loadbalancer::{AddressRange, BadRange, CLASS as LOAD_BALANCER_CLASS};

#[derive(Clone, Debug)]
pub struct Config {
    /// The range that every Node gets a part of.
    pub pod_cidr: IpNet,
    /// The length of a Node's part, as in `/24`.
    pub node_mask: u8,
    /// Addresses for Services of type LoadBalancer, tried in this order.
    pub lb_pools: Vec<AddressRange>,
    /// A Node whose Lease has not been renewed for so long is dead.
    pub node_lease_timeout: Duration,
    /// So long after its node died, a pod is deleted, unless its own tolerations say otherwise.
    pub eviction_delay: Duration,
    /// The cluster's CA certificate, published in every namespace.
    pub root_ca_pem: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a pod range {pod_cidr} cannot be cut into /{node_mask} for each node; choose a longer node mask")]
    NodeMask { pod_cidr: IpNet, node_mask: u8 },
    #[error("the {task} controller stopped unexpectedly")]
    Stopped {
        task: &'static str,
        #[source]
        source: Option<tokio::task::JoinError>,
    },
}

/// A client for tests that write nothing.
#[cfg(test)]
fn nowhere() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(kube::Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap()
}

/// What all controllers have in common.
struct Shared {
    client: Client,
    config: Config,
    caches: Caches,
    events: Recorder,
}

/// One watch a kind. Kinds of which only the owners matter are kept without their contents.
struct Caches {
    namespaces: Cache<Namespace>,
    nodes: Cache<Node>,
    pods: Cache<Pod>,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    slices: Cache<EndpointSlice>,
    replica_sets: Cache<ReplicaSet>,
    deployments: Cache<Deployment>,
    leases: Cache<Lease>,
    cluster_roles: Cache<ClusterRole>,
    /// `kube-root-ca.crt` of every namespace, with contents.
    root_cas: Cache<ConfigMap>,
    config_maps: Cache<PartialObjectMeta<ConfigMap>>,
    secrets: Cache<PartialObjectMeta<Secret>>,
    service_accounts: Cache<PartialObjectMeta<ServiceAccount>>,
    service_cidrs: Cache<PartialObjectMeta<ServiceCIDR>>,
    ip_addresses: Cache<PartialObjectMeta<IPAddress>>,
}

/// The tasks, by name.
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn start(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    fn watch<K>(&mut self, client: &Client, config: watcher::Config) -> Cache<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let (cache, driver) = Cache::new(Api::all(client.clone()), config);
        self.start("watch", driver);
        cache
    }
}

impl Caches {
    fn start(client: &Client, tasks: &mut Tasks) -> Self {
        let all = watcher::Config::default;
        Self {
            namespaces: tasks.watch(client, all()),
            nodes: tasks.watch(client, all()),
            pods: tasks.watch(client, all()),
            services: tasks.watch(client, all()),
            endpoints: tasks.watch(client, all()),
            slices: tasks.watch(client, all()),
            replica_sets: tasks.watch(client, all()),
            deployments: tasks.watch(client, all()),
            leases: tasks.watch(client, all()),
            cluster_roles: tasks.watch(client, all()),
            root_cas: tasks.watch(client, all().fields(&format!("metadata.name={}", serviceaccount::ROOT_CA))),
            config_maps: tasks.watch(client, all()),
            secrets: tasks.watch(client, all()),
            service_accounts: tasks.watch(client, all()),
            service_cidrs: tasks.watch(client, all()),
            ip_addresses: tasks.watch(client, all()),
        }
    }

    async fn synced(&self) {
        tokio::join!(
            self.namespaces.synced(),
            self.nodes.synced(),
            self.pods.synced(),
            self.services.synced(),
            self.endpoints.synced(),
            self.slices.synced(),
            self.replica_sets.synced(),
            self.deployments.synced(),
            self.leases.synced(),
            self.cluster_roles.synced(),
            self.root_cas.synced(),
            self.config_maps.synced(),
            self.secrets.synced(),
            self.service_accounts.synced(),
            self.service_cidrs.synced(),
            self.ip_addresses.synced(),
        );
    }
}

/// Runs all controllers until `shutdown`. Losing the API server is not an error: they wait for it.
///
/// # Errors
/// When the configuration makes no sense, or a controller ended, which only a bug can make it do.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.pod_cidr.subnets(config.node_mask).is_err() {
        return Err(Error::NodeMask { pod_cidr: config.pod_cidr, node_mask: config.node_mask });
    }
    let mut tasks = Tasks(JoinSet::new());
    let caches = Caches::start(&client, &mut tasks);
    let (events, writing) = Recorder::new(client.clone(), "");
    tasks.start("event", writing);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = caches.synced() => {}
    }
    let shared = Arc::new(Shared { client, config, caches, events });
    tasks.start("node", node::run(shared.clone()));
    tasks.start("nodeipam", nodeipam::run(shared.clone()));
    tasks.start("scheduler", scheduler::run(shared.clone()));
    tasks.start("endpointslice", endpointslice::run(shared.clone()));
    tasks.start("replicaset", replicaset::run(shared.clone()));
    tasks.start("deployment", deployment::run(shared.clone()));
    tasks.start("endpoints", endpoints::run(shared.clone()));
    tasks.start("endpointslicemirroring", mirroring::run(shared.clone()));
    tasks.start("loadbalancer", loadbalancer::run(shared.clone()));
    tasks.start("clusterroleaggregation", aggregation::run(shared.clone()));
    tasks.start("serviceaccount", serviceaccount::run(shared.clone()));
    tasks.start("namespace", namespace::run(shared.clone()));
    tasks.start("podgc", podgc::run(shared.clone()));
    tasks.start("garbagecollector", gc::run(shared));
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = tasks.0.join_next() => Err(match ended {
            Some(Err(source)) => Error::Stopped { task: "a", source: Some(source) },
            Some(Ok(task)) => Error::Stopped { task, source: None },
            None => Error::Stopped { task: "last", source: None },
        }),
    }
}
