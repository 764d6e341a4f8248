//! Socket load balancing on this machine: where it works, and which pods an agent leaves out of it.
//!
//! Invariant: a pod that asks to be left out is so before its first container starts: by its network if it has one of
//! its own, and otherwise by its cgroup, because the node's network is everybody's there.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use portolan_dataplane::sock::{self, Capacity, Exempt, Exemptions, SockConfig};
use portolan_node::Sandboxes;

use crate::up::cgroup;

/// A pod says `"false"` here to have its packets translated instead; `"true"` is as if it said nothing.
pub(crate) const ANNOTATION: &str = "portolan.dev/socket-lb";

/// What a pod says, if it is anything else than that it is to be led.
pub(crate) fn objection(pod: &ObjectMeta) -> Option<&str> {
    pod.annotations.as_ref()?.get(ANNOTATION).map(String::as_str).filter(|answer| *answer != "true")
}

/// The pod's objection is one that nobody can follow.
pub(crate) fn warn_of(objection: &str, pod: &ObjectMeta) {
    tracing::warn!("pod {}: {ANNOTATION} is {objection:?}; it must be \"true\" or \"false\"", name(pod));
}

fn name(pod: &ObjectMeta) -> String {
    let of = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", of(&pod.namespace), of(&pod.name))
}

/// On a BPF file system: what is pinned here works on while no agent runs.
pub(crate) const PINS: &str = "/sys/fs/bpf/portolan";

/// For a node that shares its machine with others.
pub(crate) const SMALL: Capacity = Capacity { frontends: 1 << 14, backends: 1 << 17, connections: 1 << 14 };

/// What to do for the processes in this cgroup of the v2 hierarchy (`/` is everybody); nothing where none is named or
/// there is no such hierarchy, and then what an earlier run attached is taken off.
pub(crate) fn config(cgroup: Option<&str>, capacity: Capacity) -> Option<SockConfig> {
    let root = match cgroup.map(|_| cgroup::v2_root()) {
        Some(Ok(Some(root))) => Some(root),
        Some(Ok(None)) => {
            tracing::warn!("socket load balancing is off, and nftables forwards everything: no cgroup v2 is mounted");
            None
        }
        Some(Err(error)) => {
            tracing::warn!(
                "socket load balancing is off, and nftables forwards everything: no mounts to read: {error}"
            );
            None
        }
        None => None,
    };
    let Some((root, cgroup)) = root.zip(cgroup) else {
        if let Err(error) = cleanup() {
            tracing::warn!(%error, "the socket programs of an earlier run could not be removed");
        }
        return None;
    };
    let cgroup = root.join(cgroup.trim_start_matches('/'));
    Some(SockConfig { capacity, ..SockConfig::new(cgroup, PINS.into()) })
}

/// Takes off and removes whatever a run ever attached.
///
/// # Errors
/// What could not be removed.
pub(crate) fn cleanup() -> Result<(), sock::Error> {
    sock::cleanup(Path::new(PINS))
}

/// Puts pods that ask for it on the list of those that are left out.
#[derive(Debug)]
pub(crate) struct LeftOut {
    exempt: Exemptions,
    /// Of the pods' cgroups, in each hierarchy.
    cgroup_parent: String,
    /// By the pods' uids.
    pods: Mutex<HashMap<String, Exempt>>,
}

impl LeftOut {
    pub(crate) fn new(exempt: Exemptions, cgroup_parent: &str) -> Arc<Self> {
        Arc::new(Self { exempt, cgroup_parent: cgroup_parent.to_owned(), pods: Mutex::default() })
    }

    fn add(&self, uid: &str, exempt: Exempt) -> Result<(), Box<dyn std::error::Error>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), exempt);
        Ok(self.exempt.add(exempt)?)
    }

    fn add_namespace(&self, uid: &str, process: u32) -> Result<(), Box<dyn std::error::Error>> {
        let namespace = sock::cookie_of(&File::open(format!("/proc/{process}/ns/net"))?)?;
        self.add(uid, Exempt::Namespace(namespace))
    }

    /// Makes the pod's cgroup, so that it has a number. Containers of `process` will be in it or below.
    fn add_cgroup(&self, uid: &str, process: u32) -> Result<(), Box<dyn std::error::Error>> {
        let root = cgroup::v2_root()?.ok_or("no cgroup v2 is mounted")?;
        let directory = root.join(portolan_node::cgroup_of(&self.cgroup_parent, uid).trim_start_matches('/'));
        std::fs::create_dir_all(&directory)?;
        // Beside hierarchies of v1, the runtime uses those, and leaves containers in the v2 cgroup of who starts them.
        if root != Path::new("/sys/fs/cgroup") {
            std::fs::write(directory.join("cgroup.procs"), process.to_string())?;
        }
        self.add(uid, Exempt::cgroup(&root, &directory)?)
    }
}

impl Sandboxes for LeftOut {
    fn opened(&self, pod: &Pod, process: u32) {
        match objection(&pod.metadata) {
            None => {}
            Some("false") => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                let is_on_node = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
                let added = if is_on_node { self.add_cgroup(uid, process) } else { self.add_namespace(uid, process) };
                if let Err(error) = added {
                    let name = name(&pod.metadata);
                    tracing::warn!("pod {name} cannot be left out of socket load balancing: {error}");
                }
            }
            Some(other) => warn_of(other, &pod.metadata),
        }
    }

    fn closed(&self, uid: &str) {
        let exempt = self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        if let Some(Err(error)) = exempt.map(|exempt| self.exempt.remove(exempt)) {
            tracing::debug!(%error, "what a pod had that is gone stays listed");
        }
    }
}
