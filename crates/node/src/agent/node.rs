//! This node's Node object, kept as it should be.
//!
//! Source: `kubelet_node_status.go`. Invariant: spec, taints and what others
//! wrote are left alone; conditions keep their transition times.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use portolan_client::{Cache, Change};
use serde_json::{Value, json};
use tokio::time::MissedTickBehavior;

use super::AgentConfig;
use super::host::Host;
use crate::net::pod_networks;

/// The status is written at least this often, for those who look at its heartbeat.
const REPORT: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(200);
const MAX_PODS: u32 = 110;

/// Thousandths of a CPU and bytes of memory that pods may use.
pub(super) fn allocatable(config: &AgentConfig) -> (u64, u64) {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    (config.capacity.cpu.unwrap_or(cpus * 1000), config.capacity.memory.unwrap_or_else(machine_memory))
}

fn machine_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.unwrap_or(0u64) * 1024
}

/// Bytes of the disk that pods' files are on.
pub(super) fn disk(config: &AgentConfig) -> u64 {
    nix::sys::statvfs::statvfs(&config.state_dir).map_or(0, |disk| disk.blocks() * disk.fragment_size())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn labels(config: &AgentConfig) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    let os_arch = [("os", "linux"), ("arch", architecture())];
    for (key, value) in os_arch.into_iter().chain([("hostname", config.node_name.as_str())]) {
        labels.insert(format!("kubernetes.io/{key}"), value.to_owned());
    }
    labels
}

fn status(host: &Host, old: &NodeStatus, now: Timestamp) -> Value {
    let config = &host.config;
    let (cpu, memory) = host.allocatable;
    let resources = |disk: String| {
        json!({
            "cpu": if cpu.is_multiple_of(1000) { (cpu / 1000).to_string() } else { format!("{cpu}m") },
            "ephemeral-storage": disk,
            "memory": format!("{}Ki", memory / 1024),
            "pods": config.capacity.pods.unwrap_or(MAX_PODS).to_string(),
        })
    };
    let pressure = |kind, resource: &str| {
        (kind, false, format!("KubeletHasSufficient{resource}"), format!("kubelet has sufficient {resource} available"))
    };
    let ready = if host.known_pod_network().is_some() {
        ("Ready", true, "KubeletReady".to_owned(), "kubelet is posting ready status".to_owned())
    } else {
        let message = "container runtime network not ready: the node has no spec.podCIDR yet";
        ("Ready", false, "KubeletNotReady".to_owned(), message.to_owned())
    };
    let disk =
        ("DiskPressure", false, "KubeletHasNoDiskPressure".to_owned(), "kubelet has no disk pressure".to_owned());
    let conditions = [pressure("MemoryPressure", "Memory"), disk, pressure("PIDPressure", "PID"), ready];
    let mut conditions: Vec<NodeCondition> = conditions
        .into_iter()
        .map(|(type_, good, reason, message)| {
            let status = if good { "True" } else { "False" };
            let before = old.conditions.iter().flatten().find(|c| c.type_ == type_ && c.status == status);
            let since = before.and_then(|condition| condition.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: since.or(Some(Time(now))),
            }
        })
        .collect();
    let ours: Vec<String> = conditions.iter().map(|condition| condition.type_.clone()).collect();
    conditions.extend(old.conditions.iter().flatten().filter(|c| !ours.contains(&c.type_)).cloned());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    json!({
        "addresses": [
            {"type": "InternalIP", "address": config.node_ip.to_string()},
            {"type": "Hostname", "address": config.node_name},
        ],
        "capacity": resources(format!("{}Ki", host.disk / 1024)),
        // As a kubelet does, which keeps a tenth for the node.
        "allocatable": resources((host.disk / 10 * 9).to_string()),
        "conditions": conditions,
        "features": {"supplementalGroupsPolicy": true},
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.kubelet_listen.port()}},
        "nodeInfo": {
            "machineID": read("/etc/machine-id"),
            "systemUUID": "",
            "bootID": read("/proc/sys/kernel/random/boot_id"),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "osImage": os_image(),
            "containerRuntimeVersion": concat!("portolan://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v1.36.2+portolan-", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": architecture(),
        },
    })
}

fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The Ready condition says what it should.
fn is_reported(host: &Host, node: &Node) -> bool {
    let wanted = if host.known_pod_network().is_some() { "True" } else { "False" };
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == wanted)
}

/// What is known of this node's own Node, by the watch and by answers to what was written. Either may be ahead of the
/// other, so only what is newer counts.
#[derive(Default)]
struct Known {
    /// Of the latest that was heard, even if that was the deletion.
    revision: u64,
    node: Option<Arc<Node>>,
}

impl Known {
    fn hear(&mut self, change: &Change<Node>, name: &str) {
        match change {
            Change::Applied { new, .. } if new.name_any() == name => self.learn(new, false),
            Change::Deleted(old) if old.name_any() == name => self.learn(old, true),
            _ => {}
        }
    }

    fn learn(&mut self, node: &Arc<Node>, deleted: bool) {
        let revision = node.resource_version().and_then(|text| text.parse().ok()).unwrap_or(self.revision);
        if revision >= self.revision {
            *self = Self { revision, node: (!deleted).then(|| node.clone()) };
        }
    }
}

/// Makes the Node, takes its pod network from it, and reports when somebody else's word about it is wrong.
pub(super) async fn keep_registered(host: &Arc<Host>, nodes: &Cache<Node>) {
    let name = &host.config.node_name;
    let api: Api<Node> = Api::all(host.client.clone());
    let mut changes = nodes.subscribe();
    let mut known = Known::default();
    let mut registered = false;
    let mut report = tokio::time::interval(REPORT);
    report.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, and the first report is made below anyway.
    report.tick().await;
    nodes.synced().await;
    loop {
        while let Ok(change) = changes.try_recv() {
            known.hear(&change, name);
        }
        if let Some(net) = known.node.as_deref().and_then(|node| pod_networks(node).first().copied()) {
            host.set_pod_network(net).await;
        }
        let due = match &known.node {
            Some(node) => !registered || !is_reported(host, node),
            None => true,
        };
        if due {
            match register(host, &api, known.node.as_deref()).await {
                Ok(node) => {
                    registered = true;
                    // Known before the watch brings it, so that it is not written again.
                    known.learn(&Arc::new(node), false);
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot register the node; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        tokio::select! {
            change = changes.recv() => match change {
                Some(change) => known.hear(&change, name),
                None => return,
            },
            _ = report.tick() => registered = false,
        }
    }
}

async fn register(host: &Host, api: &Api<Node>, known: Option<&Node>) -> Result<Node, kube::Error> {
    let name = &host.config.node_name;
    let labels = labels(&host.config);
    let mut node = match known {
        Some(node) => node.clone(),
        None => {
            // One that was deleted while its pods run keeps their network: no other node is given it then.
            let spec =
                host.known_pod_network().map_or_else(|| json!({}), |net| json!({"podCIDR": net, "podCIDRs": [net]}));
            let metadata = json!({"name": name, "labels": labels});
            let new = json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec});
            let new = serde_json::from_value(new).map_err(kube::Error::SerdeError)?;
            match api.create(&PostParams::default(), &new).await {
                Err(kube::Error::Api(status)) if status.code == 409 => api.get(name).await?,
                other => other?,
            }
        }
    };
    if labels.iter().any(|(key, value)| node.labels().get(key) != Some(value)) {
        let patch = json!({"metadata": {"labels": labels}});
        node = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    if let Some(net) = pod_networks(&node).first() {
        host.set_pod_network(*net).await;
    }
    let status = status(host, &node.status.unwrap_or_default(), Timestamp::now());
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": status}))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(revision: u64, net: Option<&str>) -> Arc<Node> {
        let node =
            json!({"metadata": {"name": "a", "resourceVersion": revision.to_string()}, "spec": {"podCIDR": net}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn net(known: &Known) -> Option<String> {
        known.node.as_ref().and_then(|node| Some(node.spec.as_ref()?.pod_cidr.clone().unwrap_or_default()))
    }

    #[test]
    fn an_answer_that_the_watch_overtook_undoes_nothing() {
        let mut known = Known::default();
        let applied = |node: &Arc<Node>| Change::Applied { new: node.clone(), old: None };
        known.hear(&applied(&node(4, None)), "a");
        known.hear(&applied(&node(6, Some("10.0.0.0/24"))), "a");
        known.learn(&node(5, None), false);
        assert_eq!(net(&known).as_deref(), Some("10.0.0.0/24"));
        known.learn(&node(9, Some("10.0.0.0/24")), false);
        known.hear(&applied(&node(7, None)), "a");
        known.hear(&Change::Deleted(node(8, None)), "a");
        assert_eq!(net(&known).as_deref(), Some("10.0.0.0/24"), "nor does a watch that is behind");
        known.hear(&applied(&node(20, None)), "another");
        assert_eq!(known.revision, 9);
        known.hear(&Change::Deleted(node(10, None)), "a");
        known.learn(&node(9, None), false);
        assert_eq!(net(&known), None, "the answer is of before the deletion");
    }
}
