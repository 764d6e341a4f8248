//! A pod and the nodes -> the node it should run on, or why there is none.
//!
//! Source: the scheduler's filters in the Kubernetes documentation; the reasons are kube-scheduler's, because people
//! search for them. Deliberately not here: preemption and volumes.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint};
use kube::ResourceExt;

use super::ledger::{Ledger, Load, Peers, Requests, host_ports, ports_clash};
use super::topology::Topology;
use crate::taint;

/// Why a node is not suitable. Several may apply when it is resources that are missing.
pub(crate) type Reason = String;

pub(crate) struct Cluster<'a> {
    pub(crate) nodes: &'a [Arc<Node>],
    pub(crate) ledger: &'a Ledger,
}

/// Picks the node. `turn` decides between equals; count it up so that they take turns.
///
/// # Errors
/// The message for the pod's condition, when no node will do.
pub(crate) fn choose(pod: &Pod, peers: &Peers, cluster: &Cluster<'_>, turn: usize) -> Result<String, String> {
    if cluster.nodes.is_empty() {
        return Err("no nodes available to schedule pods".into());
    }
    let requests = Requests::of(pod);
    let topology = Topology::of(pod, cluster);
    let mut refused: BTreeMap<Reason, usize> = BTreeMap::new();
    let mut suitable = Vec::new();
    for node in cluster.nodes {
        let load = cluster.ledger.load(&node.name_any());
        match unfit(pod, &requests, node, load, &topology) {
            reasons if reasons.is_empty() => suitable.push((node, load)),
            reasons => reasons.into_iter().for_each(|reason| *refused.entry(reason).or_default() += 1),
        }
    }
    let count = suitable.len();
    let namespace = pod.namespace().unwrap_or_default();
    let best = suitable.into_iter().enumerate().min_by_key(|(index, (node, load))| {
        let disliked = taints(node)
            .filter(|taint| taint.effect == taint::PREFER_NO_SCHEDULE && !taint::is_tolerated(pod, taint))
            .count();
        (
            disliked,
            Reverse(preference(pod, node) + topology.preference(node)),
            peers.count(&namespace, *load),
            fullness(&requests, node, *load),
            load.map_or(0, |load| load.requested.pods),
            (index + count - turn % count.max(1)) % count.max(1),
        )
    });
    match best {
        Some((_, (node, _))) => Ok(node.name_any()),
        None => Err(message(cluster.nodes.len(), &refused)),
    }
}

fn message(nodes: usize, refused: &BTreeMap<Reason, usize>) -> String {
    let mut message = format!("0/{nodes} nodes are available: ");
    let mut told: Vec<String> = refused.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    told.sort();
    let _ = write!(message, "{}.", told.join(", "));
    message
}

fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|spec| spec.taints.iter().flatten())
}

pub(crate) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn allocatable(node: &Node) -> Requests {
    let mut amounts = Requests::default();
    let status = node.status.as_ref();
    let listed = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
    for (name, amount) in listed.into_iter().flatten() {
        amounts.add_named(name, amount);
    }
    amounts
}

fn unfit(pod: &Pod, requests: &Requests, node: &Node, load: Option<&Load>, topology: &Topology) -> Vec<Reason> {
    let one = |reason: &str| vec![reason.to_owned()];
    let unschedulable = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let cordon = Taint { key: taint::UNSCHEDULABLE.into(), effect: taint::NO_SCHEDULE.into(), ..Taint::default() };
    if unschedulable && !taint::is_tolerated(pod, &cordon) {
        return one("node(s) were unschedulable");
    }
    if !affinity_allows(pod, node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    if let Some(taint) = repelling(pod, node) {
        let value = taint.value.as_deref().unwrap_or("");
        return vec![format!("node(s) had untolerated taint {{{}: {value}}}", taint.key)];
    }
    if !is_ready(node) {
        return one("node(s) were not ready");
    }
    let wanted = host_ports(pod);
    let clashes = |other: &Arc<Pod>| {
        let taken = host_ports(other);
        wanted.iter().any(|want| taken.iter().any(|took| ports_clash(want, took)))
    };
    if !wanted.is_empty() && load.is_some_and(|load| load.pods().any(clashes)) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let missing = missing_resources(requests, node, load);
    if !missing.is_empty() {
        return missing;
    }
    topology.unfit(node).map(one).unwrap_or_default()
}

/// A taint that keeps the pod away.
pub(super) fn repelling<'a>(pod: &Pod, node: &'a Node) -> Option<&'a Taint> {
    let binding = |taint: &&Taint| taint.effect == taint::NO_SCHEDULE || taint.effect == taint::NO_EXECUTE;
    taints(node).filter(binding).find(|taint| !taint::is_tolerated(pod, taint))
}

fn missing_resources(requests: &Requests, node: &Node, load: Option<&Load>) -> Vec<Reason> {
    let total = allocatable(node);
    let none = Requests::default();
    let taken = load.map_or(&none, |load| &load.requested);
    let mut missing = Vec::new();
    if taken.pods + requests.pods > total.pods {
        missing.push("Too many pods".to_owned());
    }
    let mut need = |name: &str, want: i64, taken: i64, total: i64| {
        if want > 0 && want > total.saturating_sub(taken) {
            missing.push(format!("Insufficient {name}"));
        }
    };
    need("cpu", requests.cpu, taken.cpu, total.cpu);
    need("memory", requests.memory, taken.memory, total.memory);
    for (name, want) in &requests.other {
        let of = |amounts: &Requests| amounts.other.get(name).copied().unwrap_or(0);
        need(name, *want, of(taken), of(&total));
    }
    missing
}

pub(super) fn affinity_allows(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.labels();
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| term_matches(term, node)))
}

fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = node.name_any();
    // A term that asks for nothing matches nothing.
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|wanted| requirement_met(wanted, node.labels().get(&wanted.key)))
        && fields.iter().all(|wanted| requirement_met(wanted, (wanted.key == "metadata.name").then_some(&name)))
}

fn requirement_met(wanted: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let compare = |holds: fn(i64, i64) -> bool| {
        let have: Option<i64> = value.and_then(|value| value.parse().ok());
        let bound: Option<i64> = values.first().and_then(|value| value.parse().ok());
        have.zip(bound).is_some_and(|(have, bound)| holds(have, bound))
    };
    match wanted.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, bound| have > bound),
        "Lt" => compare(|have, bound| have < bound),
        _ => false,
    }
}

fn preference(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()).and_then(|a| a.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let matching = preferred.into_iter().flatten().filter(|preferred| term_matches(&preferred.preference, node));
    matching.map(|preferred| i64::from(preferred.weight)).sum()
}

/// How full the node would be, in thousandths of its cpu and memory, the mean of both. A pod that asks for nothing is
/// counted as a small one, else a node could fill up with them unnoticed.
fn fullness(requests: &Requests, node: &Node, load: Option<&Load>) -> i64 {
    const SMALL_CPU: i64 = 100;
    const SMALL_MEMORY: i64 = 200 << 20;
    let total = allocatable(node);
    let none = Requests::default();
    let taken = load.map_or(&none, |load| &load.requested);
    let pods = taken.pods + 1;
    let share = |asked: i64, total: i64| if total > 0 { asked.saturating_mul(1000) / total } else { 1000 };
    let cpu = share((taken.cpu + requests.cpu).max(SMALL_CPU * pods), total.cpu);
    let memory = share((taken.memory + requests.memory).max(SMALL_MEMORY * pods), total.memory);
    i64::midpoint(cpu, memory)
}
