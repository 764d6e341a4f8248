//! The node agent: the Kubernetes API's pods for this node -> running pods, and what became of them back.
//!
//! One worker per pod (`worker`), which asks `pod::plan` what to do and is told by the pod's shim and probes what
//! happened. Around them: the Node object and its Lease (`node`), Events (`events`), the routes to other nodes' pods,
//! and what the API server asks the node for itself (`endpoint`): container logs (`logs`) and sessions with pods
//! (`streams`).
//!
//! Invariant: losing the API changes nothing that runs; ending the agent changes nothing either, and the next one
//! takes over what it finds in the state directory.

mod endpoint;
mod events;
mod follow;
mod hooks;
mod host;
mod inotify;
mod lease;
mod logs;
mod node;
mod objects;
mod probing;
mod start;
mod stop;
mod streams;
mod tokens;
mod users;
mod volumes;
mod worker;

pub use lease::LEASE_EXPIRY;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1::{Container, Node, Pod};
use kube::runtime::watcher;
use kube::{Api, Client};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::inotify::AddWatchFlags;
use portolan_client::{Cache, Change};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::image;
use crate::net::{lay_table, routes};
use crate::pod::{container_of, ephemeral};
use crate::shim::{Request, ShimEvent};
use hooks::Target;
use host::{Adopted, Host, adopt_one};
pub use inotify::Changes;
use worker::Seen;

/// The pause before a route that could not be laid is tried again.
const ROUTE_RETRY: Duration = Duration::from_secs(5);

/// What a node agent is told at its start.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    pub node_name: String,
    /// The pods' directories; outlives the agent, and is one agent's own.
    pub state_dir: PathBuf,
    /// The image store; only read.
    pub image_dir: PathBuf,
    /// What a person types to put an image there, but for the archive: told when one is missing.
    pub import_command: String,
    pub node_ip: IpAddr,
    /// The link to the other nodes, as `eth0`.
    pub uplink: String,
    /// All nodes' pods. A pod that talks to anybody else does so under the node's address.
    pub pod_networks: Vec<IpNet>,
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Where the pods' cgroups go, as `/portolan/node-1/pods`. With cgroup v2 no process may be in it or, but for the
    /// root, above it: put the agent beside it.
    pub cgroup_parent: String,
    /// Where logs and sessions with pods are served, usually port 10250 on all addresses.
    pub kubelet_listen: SocketAddr,
    pub tls: TlsIdentity,
    pub labels: BTreeMap<String, String>,
    pub capacity: Capacity,
    /// Told of every pod's namespaces.
    pub sandboxes: Option<Arc<dyn Sandboxes>>,
}

/// Whom a pod's namespaces concern besides the pod.
pub trait Sandboxes: std::fmt::Debug + Send + Sync {
    /// The pod has namespaces, made or taken over, and this process is in them. No container starts before this
    /// returns.
    fn opened(&self, pod: &Pod, process: u32);
    /// The pod of this uid has none any more, or never had.
    fn closed(&self, uid: &str);
}

/// For the node's own endpoint; all three are PEM.
#[derive(Clone)]
pub struct TlsIdentity {
    pub certificate: String,
    pub key: String,
    /// Who signs the certificates of clients that may use it.
    pub client_ca: String,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// What the node offers to pods; what is not said is asked of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capacity {
    /// Thousandths of a CPU.
    pub cpu: Option<u64>,
    /// Bytes.
    pub memory: Option<u64>,
    pub pods: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the state directory {path}")]
    StateDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another agent uses the state directory {path}; stop it first")]
    StateDirInUse { path: PathBuf },
    #[error("cannot lay the nftables table that pods need")]
    Table(#[source] nlink::Error),
    #[error("cannot open a netlink socket")]
    Netlink(#[source] nlink::Error),
    #[error("cannot serve logs and sessions on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the certificate, key or client CA of the node's endpoint cannot be used: {reason}")]
    Tls { reason: String },
}

/// Runs the agent until `shutdown`, which leaves the pods running. See [`drain`] for ending them too.
///
/// `following` is for the watches of single objects, of which there may be hundreds: one that has a connection for each
/// request costs more. `renewed` is told with each renewal of the node's Lease until when nobody can have given the node
/// up.
///
/// # Errors
/// When it cannot start: what happens later is retried, and said in the log, in Events and in statuses.
pub async fn run(
    client: Client,
    following: Client,
    config: AgentConfig,
    renewed: watch::Sender<Instant>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let _lock = lock(&config)?;
    let endpoint = endpoint::Server::bind(&config)?;
    lay_table(&config.pod_networks, &config.uplink).await.map_err(Error::Table)?;
    let (events, write_events) = events::Events::new(client.clone(), &config.node_name);
    let host = Arc::new(Host::new(client.clone(), following, config, events).map_err(Error::Netlink)?);
    let (nodes, watch_nodes) = Cache::<Node>::new(Api::all(client.clone()), watcher::Config::default());
    let imports = Changes::of(&host.store.records(), AddWatchFlags::IN_MOVED_TO);
    let own = format!("spec.nodeName={}", host.config.node_name);
    let (pods, watch_pods) = Cache::<Pod>::new(Api::all(client.clone()), watcher::Config::default().fields(&own));
    let work = async {
        // Losing any of these would leave a node that looks well and is not.
        tokio::join!(
            write_events,
            watch_nodes,
            watch_pods,
            node::keep_registered(&host, &nodes),
            lease::renew(&host, &nodes, &renewed),
            keep_routes(&host, &nodes),
            endpoint.serve(host.clone(), &pods),
            tell_of_images(imports, &host),
            run_pods(&host, &pods),
        );
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

fn lock(config: &AgentConfig) -> Result<Flock<fs::File>, Error> {
    let path = config.state_dir.clone();
    let failed = |source| Error::StateDir { path: path.clone(), source };
    fs::create_dir_all(path.join("pods")).map_err(failed)?;
    let file = fs::File::create(path.join("lock")).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::StateDirInUse { path })
}

/// Keeps the routes to the other nodes' pods as the Nodes say.
async fn keep_routes(host: &Host, nodes: &Cache<Node>) {
    let mut changes = nodes.subscribe();
    nodes.synced().await;
    let mut realized: BTreeMap<Ipv4Net, Ipv4Addr> = BTreeMap::new();
    loop {
        let desired = routes(nodes.list().iter().map(AsRef::as_ref), &host.config.node_name);
        let gone: Vec<Ipv4Net> = realized.keys().filter(|net| !desired.contains_key(net)).copied().collect();
        for net in gone {
            match host.network.remove_node_route(net).await {
                Ok(()) => drop(realized.remove(&net)),
                Err(error) => tracing::warn!(%net, %error, "cannot remove the route to a node's pods; trying again"),
            }
        }
        for (net, gateway) in &desired {
            if realized.get(net) == Some(gateway) {
                continue;
            }
            match host.network.add_node_route(*net, *gateway, &host.config.uplink).await {
                Ok(()) => drop(realized.insert(*net, *gateway)),
                Err(error) => {
                    tracing::warn!(%net, %gateway, %error, "cannot add the route to a node's pods; trying again");
                }
            }
        }
        tokio::select! {
            change = changes.recv() => {
                if change.is_none() {
                    return;
                }
                while changes.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(ROUTE_RETRY), if realized != desired => {}
        }
    }
}

/// Tells the pods that wait for an image of those that are imported.
async fn tell_of_images(imports: io::Result<Changes>, host: &Host) {
    let told = async {
        let mut imports = imports?;
        loop {
            imports.next().await?;
            host.images.send_replace(());
        }
    };
    let told: io::Result<()> = told.await;
    if let Err(error) = told {
        tracing::warn!(%error, "cannot watch the image store: pods see a new image when they next look for it");
    }
    std::future::pending().await
}

/// Gives every pod of this node its worker.
async fn run_pods(host: &Arc<Host>, pods: &Cache<Pod>) {
    host.pod_network().await;
    let mut adopted = host.adopt().await;
    let mut changes = pods.subscribe();
    let mut workers: HashMap<String, watch::Sender<Seen>> = HashMap::new();
    let mut running = JoinSet::new();
    let mut synced = false;
    loop {
        let change = tokio::select! {
            change = changes.recv() => change,
            Some(ended) = running.join_next() => {
                match ended {
                    Ok(uid) => drop(workers.remove(&uid)),
                    Err(error) => tracing::error!(%error, "a pod's worker failed; the agent's restart will look again"),
                }
                continue;
            }
        };
        let Some(change) = change else { return };
        let uid = |pod: &Pod| pod.metadata.uid.clone().unwrap_or_default();
        let gone = |pod: &Arc<Pod>| {
            if let Some(worker) = workers.get(&uid(pod)) {
                let _ = worker.send(Seen { pod: pod.clone(), gone: true });
            }
        };
        match change {
            Change::Applied { new, old } => {
                // Deleted and made anew under the same name while we were not told.
                if let Some(old) = old.filter(|old| uid(old) != uid(&new)) {
                    gone(&old);
                }
                let seen = Seen { pod: new.clone(), gone: false };
                match workers.get(&uid(&new)) {
                    Some(worker) => drop(worker.send(seen)),
                    None => {
                        let (sender, receiver) = watch::channel(seen);
                        let adopted = adopted.remove(&uid(&new));
                        running.spawn(worker::run(host.clone(), receiver, adopted));
                        workers.insert(uid(&new), sender);
                    }
                }
            }
            Change::Deleted(old) => gone(&old),
            Change::Synced { .. } if !synced => {
                synced = true;
                // Their objects went while no agent was here.
                for (uid, orphan) in std::mem::take(&mut adopted) {
                    tracing::info!(%uid, "ending a pod that is no more in the API");
                    let seen = Seen { pod: Arc::new(orphan.record.orphan()), gone: true };
                    let (sender, receiver) = watch::channel(seen);
                    running.spawn(worker::run(host.clone(), receiver, Some(orphan)));
                    workers.insert(uid, sender);
                }
            }
            Change::Synced { .. } => {}
        }
    }
}

/// Ends all pods of a node whose agent has stopped: their preStop hooks and signals, and SIGKILL after `grace`. The API
/// is not told, as when a machine is shut down: the pods run again when the agent does.
///
/// # Errors
/// When the state directory cannot be read, or an agent still runs.
pub async fn drain(config: &AgentConfig, grace: Duration) -> Result<(), Error> {
    let _lock = lock(config)?;
    let directory = config.state_dir.join("pods");
    let failed = |source| Error::StateDir { path: directory.clone(), source };
    let mut ending = JoinSet::new();
    for entry in fs::read_dir(&directory).map_err(failed)?.flatten() {
        ending.spawn(end(store(config), config.node_ip, entry.path(), grace));
    }
    let all = async { while ending.join_next().await.is_some() {} };
    if tokio::time::timeout(grace + Duration::from_secs(10), all).await.is_err() {
        tracing::warn!("some pods did not end in time; they are killed with what is swept away");
    }
    crate::sweep(&config.state_dir, &config.cgroup_parent).map_err(failed)
}

/// Ends the pod in `dir`, if one runs there.
async fn end(store: image::Store, node_ip: IpAddr, dir: PathBuf, grace: Duration) {
    let Ok(Adopted { record, shim, mut events, driver, instances }) = adopt_one(&dir).await else { return };
    let ip = Some(record.address.map_or(node_ip, IpAddr::V4));
    let mut running: BTreeSet<String> =
        instances.iter().filter(|instance| instance.exit.is_none()).map(|instance| instance.start.id.clone()).collect();
    let stops = instances.iter().filter(|instance| instance.exit.is_none()).map(|instance| {
        let spec = spec_of(&record.pod, &instance.start.container).map(Cow::into_owned).unwrap_or_default();
        let target = Target { ip, shim: shim.clone(), id: instance.start.id.clone() };
        let (store, dir) = (&store, &dir);
        async move {
            let failed = |message| tracing::warn!(?dir, container = spec.name, "{message}");
            stop::container(store, &spec, &target, grace, failed).await;
        }
    });
    let stops = futures::future::join_all(stops);
    let all = async {
        let exits = async {
            while !running.is_empty() {
                match events.recv().await {
                    Some(ShimEvent::Exited(instance)) => drop(running.remove(&instance.start.id)),
                    Some(ShimEvent::Gone) | None => return,
                }
            }
        };
        tokio::select! {
            _ = stops => {}
            () = exits => {}
        }
        if shim.call(Request::Stop { grace_ms: 0 }).await.is_ok() {
            // The last event is the shim's own end.
            while events.recv().await.is_some() {}
        }
    };
    tokio::join!(driver, all);
}

/// A container of the pod, by name.
fn spec_of<'a>(pod: &'a Pod, name: &str) -> Option<Cow<'a, Container>> {
    let spec = pod.spec.as_ref()?;
    let lasting = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let found = lasting.into_iter().find(|container| container.name == name).map(Cow::Borrowed);
    found.or_else(|| ephemeral(pod).iter().find(|one| one.name == name).map(|one| Cow::Owned(container_of(one))))
}

/// The image store of this node.
fn store(config: &AgentConfig) -> image::Store {
    image::Store::at(&config.image_dir)
}
