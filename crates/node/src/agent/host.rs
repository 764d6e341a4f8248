//! What a node's pods share: its configuration, network, addresses and images; and what an earlier agent left.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};

use super::events::Events;
use super::follow::Follow;
use super::logs::Logs;
use super::{AgentConfig, node};
use crate::cgroup::{self, Limits};
use crate::image::Store;
use crate::net::{HostPorts, Ipam, Network, link_name};
use crate::shim::{Instance, SOCKET, Shim, ShimEvent, kill};

/// Sandboxes and containers being made at once: enough to keep two cores busy, not so many that all are slow.
const MAX_STARTS: usize = 8;
const RECORD: &str = "pod.json";

pub(super) struct Host {
    pub(super) client: Client,
    pub(super) config: AgentConfig,
    pub(super) events: Events,
    pub(super) network: Network,
    pub(super) host_ports: HostPorts,
    pub(super) store: Store,
    pub(super) logs: Logs,
    pub(super) follow: Follow,
    pub(super) starts: Semaphore,
    /// Thousandths of a CPU, and bytes of memory.
    pub(super) allocatable: (u64, u64),
    /// Bytes.
    pub(super) disk: u64,
    pub(super) limits: Limits,
    /// What this process and its children may do, a bit for each capability's number.
    pub(super) capabilities: u64,
    /// Told when an image has come.
    pub(super) images: watch::Sender<()>,
    ipam: Mutex<Option<Ipam>>,
    pod_network: watch::Sender<Option<Ipv4Net>>,
}

/// What a pod's directory says about it, for the next agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// As it was when its sandbox was made: what it is stopped by does not change.
    pub(super) pod: Pod,
    pub(super) address: Option<Ipv4Addr>,
}

impl Record {
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(dir.join(RECORD))?)?)
    }

    /// A stand-in for an object that is gone. Only one that was deleted by force goes before its containers, so they
    /// get as little time as that.
    pub(super) fn orphan(&self) -> Pod {
        let mut pod = self.pod.clone();
        pod.metadata.deletion_grace_period_seconds = Some(1);
        pod
    }
}

/// The bounding set of this process; all, if the kernel does not say.
fn capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// A pod whose shim outlived the agent that started it.
pub(super) struct Adopted {
    pub(super) record: Record,
    pub(super) shim: Shim,
    pub(super) events: tokio::sync::mpsc::UnboundedReceiver<ShimEvent>,
    pub(super) driver: futures::future::BoxFuture<'static, ()>,
    pub(super) instances: Vec<Instance>,
}

impl Host {
    /// `following` is for watches.
    pub(super) fn new(
        client: Client,
        following: Client,
        config: AgentConfig,
        events: Events,
    ) -> Result<Self, nlink::Error> {
        let node_ip = match config.node_ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        };
        let limits = Limits::of_machine();
        if !(limits.cpu && limits.memory && limits.pids) {
            tracing::warn!(?limits, "this machine's cgroups cannot limit all that pods may ask for");
        }
        Ok(Self {
            limits,
            capabilities: capabilities(),
            network: Network::open(node_ip)?,
            host_ports: HostPorts::default(),
            store: super::store(&config),
            logs: Logs::default(),
            follow: Follow::new(following),
            starts: Semaphore::new(MAX_STARTS),
            allocatable: node::allocatable(&config),
            disk: node::disk(&config),
            images: watch::Sender::new(()),
            ipam: Mutex::default(),
            pod_network: watch::Sender::new(None),
            client,
            config,
            events,
        })
    }

    pub(super) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.config.state_dir.join("pods").join(uid)
    }

    pub(super) fn cgroup(&self, uid: &str) -> String {
        cgroup::of_pod(&self.config.cgroup_parent, uid)
    }

    fn ipam(&self) -> MutexGuard<'_, Option<Ipam>> {
        self.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which network this node's pods are in. Told again, it changes nothing: running pods have their addresses.
    pub(super) async fn set_pod_network(&self, net: Ipv4Net) {
        if self.known_pod_network().is_some() {
            return;
        }
        if let Err(error) = self.network.fence(net).await {
            tracing::warn!(%net, %error, "cannot fence the pod network");
        }
        *self.ipam() = Some(Ipam::new(net));
        self.pod_network.send_replace(Some(net));
    }

    pub(super) fn known_pod_network(&self) -> Option<Ipv4Net> {
        *self.pod_network.borrow()
    }

    /// Returns once the pod network is known.
    pub(super) async fn pod_network(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.pod_network.subscribe().wait_for(Option::is_some).await;
    }

    /// An address for a new pod.
    pub(super) fn give_address(&self) -> Result<Ipv4Addr, String> {
        let mut ipam = self.ipam();
        let ipam = ipam.as_mut().ok_or("this node has no pod network yet")?;
        ipam.give().ok_or_else(|| format!("no free address is left in {}", ipam.net()))
    }

    pub(super) fn release_address(&self, address: Ipv4Addr) {
        if let Some(ipam) = self.ipam().as_mut() {
            ipam.release(address);
        }
    }

    /// Tells whom it concerns that the pod has its namespaces.
    pub(super) fn opened(&self, pod: &Pod, shim: &Shim) {
        if let (Some(sandboxes), Some(process)) = (&self.config.sandboxes, shim.process) {
            sandboxes.opened(pod, process);
        }
    }

    pub(super) fn write_record(&self, uid: &str, record: &Record) -> io::Result<()> {
        fs::write(self.pod_dir(uid).join(RECORD), serde_json::to_vec(record)?)
    }

    /// Takes what a pod had: its host ports, its link, its cgroups. Its directory stays, for its logs.
    pub(super) async fn clean_up(&self, uid: &str) {
        if let Some(sandboxes) = &self.config.sandboxes {
            sandboxes.closed(uid);
        }
        if let Err(error) = self.host_ports.release(uid).await {
            tracing::warn!(%uid, %error, "cannot take back a pod's host ports");
        }
        if let Err(error) = self.network.detach(&link_name(uid)).await {
            tracing::warn!(%uid, %error, "cannot remove a pod's link");
        }
        cgroup::remove(&self.cgroup(uid));
        let dir = self.pod_dir(uid);
        for name in [SOCKET, RECORD] {
            let _ = fs::remove_file(dir.join(name));
        }
        let _ = fs::remove_dir_all(dir.join("run"));
        let _ = fs::remove_dir_all(dir.join("c"));
    }

    /// Connects to the pods that run already. What is left of others, but their logs, is taken away.
    pub(super) async fn adopt(&self) -> BTreeMap<String, Adopted> {
        let mut adopted = BTreeMap::new();
        for entry in fs::read_dir(self.config.state_dir.join("pods")).into_iter().flatten().flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            match adopt_one(&entry.path()).await {
                Ok(pod) => {
                    if let (Some(address), Some(ipam)) = (pod.record.address, self.ipam().as_mut()) {
                        ipam.take(address);
                    }
                    self.host_ports.adopt(&uid, &pod.record.pod, pod.record.address).await;
                    self.opened(&pod.record.pod, &pod.shim);
                    adopted.insert(uid, pod);
                }
                Err(error) => {
                    tracing::debug!(%uid, %error, "nothing runs of this pod");
                    kill(&entry.path());
                    self.clean_up(&uid).await;
                }
            }
        }
        if let Err(error) = self.host_ports.settle().await {
            tracing::warn!(%error, "cannot see to the host ports of running pods");
        }
        if !adopted.is_empty() {
            tracing::info!(pods = adopted.len(), "took over running pods");
        }
        adopted
    }
}

/// Connects to the pod that runs in `dir`.
pub(super) async fn adopt_one(dir: &Path) -> io::Result<Adopted> {
    // Written last when a sandbox is made: without it, it is not whole.
    let record = Record::read(dir)?;
    let (shim, events, driver) = Shim::connect(dir).await?;
    let mut driver: futures::future::BoxFuture<'static, ()> = Box::pin(driver);
    let instances = tokio::select! {
        instances = shim.state() => instances?,
        () = &mut driver => return Err(io::ErrorKind::ConnectionReset.into()),
    };
    Ok(Adopted { record, shim, events, driver, instances })
}
