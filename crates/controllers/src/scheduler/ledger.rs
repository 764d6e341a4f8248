//! Which pods are where, counting those whose binding is still under way.
//!
//! Invariant: a pod that was assumed on a node stays there until its binding fails or the watch tells better, so a
//! burst of pods is decided one after the other as if each had already arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use kube::ResourceExt;
use portolan_model::quantity;

use crate::{meta, pod};

/// What pods ask of a node: millicores, bytes, pieces and whatever else has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    pub(crate) cpu: i64,
    pub(crate) memory: i64,
    pub(crate) pods: i64,
    pub(crate) other: BTreeMap<String, i64>,
}

impl Requests {
    /// A pod's containers run together, its init containers before them one by one; it needs the larger, and overhead.
    pub(crate) fn of(pod: &Pod) -> Self {
        let Some(spec) = &pod.spec else { return Self { pods: 1, ..Self::default() } };
        let mut together = Self::default();
        for container in &spec.containers {
            together.add(&Self::of_container(container.resources.as_ref()));
        }
        let mut largest = Self::default();
        let mut sidecars = Self::default();
        for container in spec.init_containers.iter().flatten() {
            let mut needed = Self::of_container(container.resources.as_ref());
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&needed);
                largest.raise(&sidecars);
            } else {
                needed.add(&sidecars);
                largest.raise(&needed);
            }
        }
        together.add(&sidecars);
        together.raise(&largest);
        for (name, amount) in spec.overhead.iter().flatten() {
            together.add_named(name, amount);
        }
        together.pods = 1;
        together
    }

    fn of_container(resources: Option<&ResourceRequirements>) -> Self {
        let mut requests = Self::default();
        let Some(resources) = resources else { return requests };
        for (name, amount) in resources.requests.iter().flatten() {
            requests.add_named(name, amount);
        }
        // A limit without a request is its own request.
        for (name, amount) in resources.limits.iter().flatten() {
            if !resources.requests.as_ref().is_some_and(|requests| requests.contains_key(name)) {
                requests.add_named(name, amount);
            }
        }
        requests
    }

    pub(crate) fn add_named(&mut self, name: &str, amount: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) {
        match name {
            "cpu" => self.cpu += quantity::milli(amount).unwrap_or(0),
            "memory" => self.memory = self.memory.saturating_add(quantity::whole(amount).unwrap_or(0)),
            "pods" => self.pods += quantity::whole(amount).unwrap_or(0),
            _ => *self.other.entry(name.to_owned()).or_default() += quantity::whole(amount).unwrap_or(0),
        }
    }

    fn add(&mut self, more: &Self) {
        self.cpu = self.cpu.saturating_add(more.cpu);
        self.memory = self.memory.saturating_add(more.memory);
        self.pods += more.pods;
        for (name, amount) in &more.other {
            *self.other.entry(name.clone()).or_default() += amount;
        }
    }

    fn subtract(&mut self, less: &Self) {
        self.cpu -= less.cpu;
        self.memory -= less.memory;
        self.pods -= less.pods;
        for (name, amount) in &less.other {
            *self.other.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise(&mut self, floor: &Self) {
        self.cpu = self.cpu.max(floor.cpu);
        self.memory = self.memory.max(floor.memory);
        for (name, amount) in &floor.other {
            let own = self.other.entry(name.clone()).or_default();
            *own = (*own).max(*amount);
        }
    }
}

/// A port of the node itself that a pod takes: protocol, address (empty for all), number.
pub(crate) type HostPort = (String, String, i32);

pub(crate) fn host_ports(pod: &Pod) -> BTreeSet<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| {
        let init = spec.init_containers.iter().flatten();
        let sidecars = init.filter(|container| container.restart_policy.as_deref() == Some("Always"));
        spec.containers.iter().chain(sidecars)
    });
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
            Some((port.protocol.clone().unwrap_or_else(|| "TCP".into()), ip, number))
        })
        .collect()
}

pub(crate) fn ports_clash(a: &HostPort, b: &HostPort) -> bool {
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || a.1.is_empty() || b.1.is_empty())
}

#[derive(Clone, Debug)]
struct Placed {
    node: String,
    requests: Requests,
    assumed: bool,
}

/// What is on one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Load {
    pub(crate) requested: Requests,
    /// By uid.
    pods: BTreeMap<String, Arc<Pod>>,
}

impl Load {
    pub(crate) fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By uid.
    placed: BTreeMap<String, Placed>,
    loads: BTreeMap<String, Load>,
}

impl Ledger {
    pub(crate) fn load(&self, node: &str) -> Option<&Load> {
        self.loads.get(node)
    }

    pub(crate) fn is_placed(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    pub(crate) fn assume(&mut self, pod: Arc<Pod>, node: &str) {
        self.place(pod, node, true);
    }

    /// The binding failed. True if that freed something on a node.
    pub(crate) fn forget(&mut self, uid: &str) -> bool {
        self.placed.get(uid).is_some_and(|placed| placed.assumed) && self.take_away(uid)
    }

    /// A pod as the watch tells it. True if that freed something on a node.
    pub(crate) fn observe(&mut self, pod: &Arc<Pod>) -> bool {
        let uid = pod.uid().unwrap_or_default();
        if pod::is_finished(pod) {
            return self.take_away(&uid);
        }
        // One that is not bound as far as the watch knows may be assumed somewhere, and that stands.
        if let Some(node) = pod::node(pod) {
            self.place(pod.clone(), node, false);
        }
        false
    }

    pub(crate) fn remove(&mut self, pod: &Pod) -> bool {
        self.take_away(&pod.uid().unwrap_or_default())
    }

    fn place(&mut self, pod: Arc<Pod>, node: &str, assumed: bool) {
        let uid = pod.uid().unwrap_or_default();
        self.take_away(&uid);
        let requests = Requests::of(&pod);
        let load = self.loads.entry(node.to_owned()).or_default();
        load.requested.add(&requests);
        load.pods.insert(uid.clone(), pod);
        self.placed.insert(uid, Placed { node: node.to_owned(), requests, assumed });
    }

    fn take_away(&mut self, uid: &str) -> bool {
        let Some(placed) = self.placed.remove(uid) else { return false };
        if let Some(load) = self.loads.get_mut(&placed.node) {
            load.requested.subtract(&placed.requests);
            load.pods.remove(uid);
            if load.pods.is_empty() {
                self.loads.remove(&placed.node);
            }
        }
        true
    }
}

/// Pods that should be apart, so that losing a node loses few of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peers {
    /// Those of one controller.
    Owner(String),
    /// Those that all of these Service selectors select.
    Selected(Vec<BTreeMap<String, String>>),
    Nobody,
}

impl Peers {
    pub(crate) fn count(&self, namespace: &str, load: Option<&Load>) -> usize {
        let Some(load) = load else { return 0 };
        let is_peer = |pod: &Pod| match self {
            Self::Owner(uid) => meta::controller_of(&pod.metadata).is_some_and(|owner| owner.uid == *uid),
            Self::Selected(selectors) => {
                let labels = pod.metadata.labels.clone().unwrap_or_default();
                selectors.iter().all(|selector| meta::selects(selector, &labels))
            }
            Self::Nobody => false,
        };
        let alive = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_none();
        let near = |pod: &&Arc<Pod>| pod.metadata.namespace.as_deref() == Some(namespace);
        load.pods().filter(alive).filter(near).filter(|pod| is_peer(pod)).count()
    }
}
