//! Rules about a pod and the pods near it: affinity, anti-affinity and topology spread constraints.
//!
//! Computed once a pod over all nodes, then asked per node. Source: "Assigning Pods to Nodes" and "Pod Topology Spread
//! Constraints" in the Kubernetes documentation. Deliberately not here: `matchLabelKeys`, and namespace selectors by
//! other labels than `kubernetes.io/metadata.name`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Affinity, Node, Pod, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use kube::ResourceExt;

use super::fit::{Cluster, affinity_allows, repelling};
use crate::meta;

/// A topology key and one of its values: a zone, a node, a rack.
type Domain = (String, String);

#[derive(Debug, Default)]
pub(crate) struct Topology {
    /// The keys of the terms of required affinity.
    wanted: BTreeSet<String>,
    /// Where pods are that all these terms are about. `None`: anywhere will do, for the pod itself is the first of those
    /// it wants to be near.
    company: Option<BTreeSet<Domain>>,
    /// Anti-affinity of this pod.
    forbidden: BTreeSet<Domain>,
    /// Anti-affinity that pods already there have against this one.
    unwelcome: BTreeSet<Domain>,
    spread: Vec<Spread>,
    /// Preferred affinity and anti-affinity, by weight.
    preferred: BTreeMap<Domain, i64>,
}

#[derive(Debug)]
struct Spread {
    key: String,
    max_skew: i64,
    least: i64,
    own: i64,
    binding: bool,
    counts: BTreeMap<String, i64>,
}

fn affinity(pod: &Pod) -> Option<&Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

fn required_anti(pod: &Pod) -> &[PodAffinityTerm] {
    affinity(pod)
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|anti| anti.required_during_scheduling_ignored_during_execution.as_deref())
        .unwrap_or_default()
}

/// Whether `term`, written in a pod of `home`, is about `other`.
fn is_about(term: &PodAffinityTerm, home: &str, other: &Pod) -> bool {
    let namespace = other.namespace().unwrap_or_default();
    let named = term.namespaces.iter().flatten().any(|name| *name == namespace);
    let selected = term.namespace_selector.as_ref().is_some_and(|selector| {
        let labels = [("kubernetes.io/metadata.name".to_owned(), namespace.clone())].into();
        meta::matches(selector, &ObjectMeta { labels: Some(labels), ..ObjectMeta::default() })
    });
    let unsaid = term.namespaces.as_ref().is_none_or(Vec::is_empty) && term.namespace_selector.is_none();
    (named || selected || (unsaid && namespace == home)) && chosen(term.label_selector.as_ref(), other)
}

/// Unlike an empty selector, an absent one chooses nothing.
fn chosen(selector: Option<&LabelSelector>, pod: &Pod) -> bool {
    selector.is_some_and(|selector| meta::matches(selector, &pod.metadata))
}

impl Topology {
    pub(crate) fn of(pod: &Pod, cluster: &Cluster<'_>) -> Self {
        let mut topology = Self::default();
        let home = pod.namespace().unwrap_or_default();
        let near = affinity(pod).and_then(|affinity| affinity.pod_affinity.as_ref());
        let apart = affinity(pod).and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let required = near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_deref());
        let required = required.unwrap_or_default();
        let is_company = |other: &Pod| required.iter().all(|term| is_about(term, &home, other));
        topology.wanted = required.iter().map(|term| term.topology_key.clone()).collect();
        let places = topology
            .wanted
            .iter()
            .flat_map(|key| domains_with(cluster, key, is_company).map(|value| (key.clone(), value)));
        let places: BTreeSet<_> = places.collect();
        topology.company = (!places.is_empty() || !is_company(pod)).then_some(places);
        for term in required_anti(pod) {
            let key = &term.topology_key;
            let domains = domains_with(cluster, key, |other| is_about(term, &home, other));
            topology.forbidden.extend(domains.map(|value| (key.clone(), value)));
        }
        for node in cluster.nodes {
            for other in cluster.ledger.load(&node.name_any()).into_iter().flat_map(|load| load.pods()) {
                for term in required_anti(other) {
                    if let Some(value) = node.labels().get(&term.topology_key)
                        && is_about(term, &other.namespace().unwrap_or_default(), pod)
                    {
                        topology.unwelcome.insert((term.topology_key.clone(), value.clone()));
                    }
                }
            }
        }
        let liked =
            near.into_iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
        let disliked =
            apart.into_iter().flat_map(|a| a.preferred_during_scheduling_ignored_during_execution.iter().flatten());
        for (sign, preferred) in liked.map(|term| (1, term)).chain(disliked.map(|term| (-1, term))) {
            let term = &preferred.pod_affinity_term;
            for value in domains_with(cluster, &term.topology_key, |other| is_about(term, &home, other)) {
                *topology.preferred.entry((term.topology_key.clone(), value)).or_default() +=
                    sign * i64::from(preferred.weight);
            }
        }
        let constraints = || pod.spec.iter().flat_map(|spec| spec.topology_spread_constraints.iter().flatten());
        let spread = |constraint| {
            // A node that one binding constraint rules out is no domain of the others.
            let with: Vec<_> = constraints().filter(|other| is_binding(other) && is_binding(constraint)).collect();
            Spread::of(constraint, &with, pod, cluster)
        };
        topology.spread = constraints().map(spread).collect();
        topology
    }

    /// Why the pod may not run on the node.
    pub(crate) fn unfit(&self, node: &Node) -> Option<&'static str> {
        let labels = node.labels();
        let near = self.wanted.iter().all(|key| {
            let Some(value) = labels.get(key) else { return false };
            self.company.as_ref().is_none_or(|company| company.contains(&(key.clone(), value.clone())))
        });
        if !near {
            return Some("node(s) didn't match pod affinity rules");
        }
        let inside = |domains: &BTreeSet<Domain>| domains.iter().any(|(key, value)| labels.get(key) == Some(value));
        if inside(&self.forbidden) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        if inside(&self.unwelcome) {
            return Some("node(s) didn't satisfy existing pods anti-affinity rules");
        }
        for spread in self.spread.iter().filter(|spread| spread.binding) {
            let Some(value) = labels.get(&spread.key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let there = spread.counts.get(value).copied().unwrap_or(0);
            if there + spread.own - spread.least > spread.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// Higher is better.
    pub(crate) fn preference(&self, node: &Node) -> i64 {
        let labels = node.labels();
        let weights = self.preferred.iter().filter(|((key, value), _)| labels.get(key) == Some(value));
        let soft = self.spread.iter().filter(|spread| !spread.binding);
        let crowd =
            soft.map(|spread| labels.get(&spread.key).and_then(|value| spread.counts.get(value)).copied().unwrap_or(0));
        weights.map(|(_, weight)| weight).sum::<i64>() - crowd.sum::<i64>()
    }
}

fn is_binding(constraint: &TopologySpreadConstraint) -> bool {
    constraint.when_unsatisfiable != "ScheduleAnyway"
}

/// Whether what runs on the node counts, and that nothing does.
fn is_counted(constraint: &TopologySpreadConstraint, pod: &Pod, node: &Node) -> bool {
    (constraint.node_affinity_policy.as_deref() == Some("Ignore") || affinity_allows(pod, node))
        && (constraint.node_taints_policy.as_deref() != Some("Honor") || repelling(pod, node).is_none())
}

impl Spread {
    fn of(
        constraint: &TopologySpreadConstraint,
        with: &[&TopologySpreadConstraint],
        pod: &Pod,
        cluster: &Cluster<'_>,
    ) -> Self {
        let namespace = pod.namespace();
        let selector = constraint.label_selector.as_ref();
        let mut counts = BTreeMap::new();
        for node in cluster.nodes {
            let Some(value) = node.labels().get(&constraint.topology_key) else { continue };
            let whole = with.iter().all(|other| node.labels().contains_key(&other.topology_key));
            if !whole || !is_counted(constraint, pod, node) {
                continue;
            }
            let load = cluster.ledger.load(&node.name_any());
            let here = load.into_iter().flat_map(|load| load.pods()).filter(|other| {
                other.namespace() == namespace && !meta::is_terminating(&***other) && chosen(selector, other)
            });
            *counts.entry(value.clone()).or_insert(0) += i64::try_from(here.count()).unwrap_or(i64::MAX);
        }
        let enough = constraint.min_domains.is_none_or(|min| usize::try_from(min).unwrap_or(0) <= counts.len());
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            least: if enough { counts.values().min().copied().unwrap_or(0) } else { 0 },
            own: i64::from(chosen(selector, pod)),
            binding: is_binding(constraint),
            counts,
        }
    }
}

fn domains_with<'a>(
    cluster: &'a Cluster<'_>,
    key: &'a str,
    fits: impl Fn(&Pod) -> bool + 'a,
) -> impl Iterator<Item = String> + 'a {
    cluster.nodes.iter().filter_map(move |node| {
        let value = node.labels().get(key)?;
        cluster.ledger.load(&node.name_any())?.pods().any(|pod| fits(pod)).then(|| value.clone())
    })
}
