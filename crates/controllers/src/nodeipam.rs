//! Nodes -> each its own range of pod addresses, `spec.podCIDR`.
//!
//! Invariant: no two nodes get one range: what nodes have is taken in before anything is given out, and what was given
//! is remembered until the watch shows it. A range is free again when its Node is deleted.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Recorder};
use serde_json::json;

use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::queue::Queue;
use crate::{Shared, refusal};

pub(crate) async fn run(shared: Arc<Shared>) {
    let inputs = vec![inputs(&shared.caches.nodes, |change| change)];
    let controller = NodeIpam {
        client: shared.client.clone(),
        events: shared.events.component("cidrAllocator"),
        nodes: shared.caches.nodes.clone(),
        ranges: Ranges { whole: shared.config.pod_cidr, mask: shared.config.node_mask, taken: BTreeMap::new() },
    };
    drive(controller, inputs, 8).await;
}

/// Who has which range.
struct Ranges {
    whole: IpNet,
    mask: u8,
    taken: BTreeMap<IpNet, String>,
}

impl Ranges {
    fn take(&mut self, range: IpNet, node: &str) {
        self.taken.entry(range).or_insert_with(|| node.to_owned());
    }

    fn release(&mut self, node: &str) {
        self.taken.retain(|_, owner| owner != node);
    }

    /// The first free range; `None` when there is none left. A range that overlaps one that a node has, perhaps of
    /// another size from an earlier configuration, is not free.
    fn give(&mut self, node: &str) -> Option<IpNet> {
        let overlaps = |range: &IpNet| self.taken.keys().any(|taken| taken.contains(range) || range.contains(taken));
        let free = self.whole.subnets(self.mask).ok()?.find(|range| !overlaps(range))?;
        self.take(free, node);
        Some(free)
    }
}

struct NodeIpam {
    client: Client,
    events: Recorder,
    nodes: Cache<Node>,
    ranges: Ranges,
}

fn ranges_of(node: &Node) -> impl Iterator<Item = IpNet> {
    let spec = node.spec.iter();
    spec.flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr)).filter_map(|range| range.parse().ok())
}

impl Controller for NodeIpam {
    const NAME: &'static str = "nodeipam";
    type Input = Change<Node>;
    type Key = String;

    fn observe(&mut self, change: Change<Node>, queue: &mut Queue<String>) {
        match change {
            Change::Applied { new, .. } => {
                ranges_of(&new).for_each(|range| self.ranges.take(range, &new.name_any()));
                queue.add(new.name_any());
            }
            Change::Deleted(old) => {
                self.ranges.release(&old.name_any());
                // One that found none left may find this one.
                self.nodes
                    .list()
                    .iter()
                    .filter(|node| ranges_of(node).next().is_none())
                    .for_each(|node| queue.add(node.name_any()));
            }
            Change::Synced => {}
        }
    }

    fn reconcile(&mut self, name: &String, _queue: &mut Queue<String>) -> Option<Effects> {
        let node = self.nodes.get(&portolan_client::Key::new("", name))?;
        if ranges_of(&node).next().is_some() || self.ranges.taken.values().any(|owner| owner == name) {
            return None;
        }
        let Some(range) = self.ranges.give(name) else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            self.events.warning(&*node, "CIDRNotAvailable", message);
            return None;
        };
        let api: Api<Node> = Api::all(self.client.clone());
        Some(Box::pin(async move {
            let patch = json!({
                "metadata": {"uid": node.uid()},
                "spec": {"podCIDR": range.to_string(), "podCIDRs": [range.to_string()]},
            });
            let patched = api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            refusal::ignore_not_found(patched).map(drop).into()
        }))
    }

    fn finish(&mut self, name: &String, outcome: &Outcome, _queue: &mut Queue<String>) {
        let has_one = || {
            self.nodes.get(&portolan_client::Key::new("", name)).is_some_and(|node| ranges_of(&node).next().is_some())
        };
        if outcome.error.is_some() && !has_one() {
            self.ranges.release(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(whole: &str, mask: u8, taken: &[&str]) -> Ranges {
        let taken = taken.iter().map(|range| (range.parse().unwrap(), "old".to_owned())).collect();
        Ranges { whole: whole.parse().unwrap(), mask, taken }
    }

    #[test]
    fn gives_the_first_free_range() {
        for (whole, mask, taken, expected) in [
            ("10.244.0.0/16", 24, &[][..], Some("10.244.0.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.0/24", "10.244.2.0/24"], Some("10.244.1.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.0/23"], Some("10.244.2.0/24")),
            ("10.244.0.0/16", 24, &["10.244.0.128/25"], Some("10.244.1.0/24")),
            ("10.244.0.0/24", 24, &["10.244.0.0/24"], None),
            ("10.244.0.0/24", 16, &[], None),
            ("fd00::/48", 64, &["fd00::/64"], Some("fd00:0:0:1::/64")),
        ] {
            let given = ranges(whole, mask, taken).give("new").map(|range| range.to_string());
            assert_eq!(given.as_deref(), expected, "{whole} {taken:?}");
        }
    }

    #[test]
    fn never_gives_one_twice_until_it_is_released() {
        let mut ranges = ranges("10.244.0.0/22", 24, &[]);
        let given: Vec<_> = (0..5).map(|node| ranges.give(&format!("n{node}"))).collect();
        assert_eq!(given.iter().flatten().collect::<std::collections::BTreeSet<_>>().len(), 4);
        assert_eq!(given[4], None);
        ranges.release("n2");
        assert_eq!(ranges.give("n4"), given[2]);
    }
}
