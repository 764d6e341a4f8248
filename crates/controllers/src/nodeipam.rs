//! Nodes -> each its own range of pod addresses, `spec.podCIDR`.
//!
//! Invariant: no two nodes get one range: what nodes have is taken in before anything is given out, and what was given
//! to a Node is that Node's until it is deleted, also if nobody knows whether the write was made; it is written again
//! then. Nodes are known by uid: one made anew under the same name is another.

use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Recorder};
use serde_json::json;

use crate::drive::{Controller, Effects, drive, inputs};
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
    /// By whose uid.
    taken: BTreeMap<IpNet, String>,
}

impl Ranges {
    fn take(&mut self, range: IpNet, node: &str) {
        self.taken.entry(range).or_insert_with(|| node.to_owned());
    }

    fn of(&self, node: &str) -> Option<IpNet> {
        self.taken.iter().find(|(_, owner)| *owner == node).map(|(range, _)| *range)
    }

    /// Lets go of all that the node has but `kept`. True if anything became free.
    fn release(&mut self, node: &str, kept: &[IpNet]) -> bool {
        let before = self.taken.len();
        self.taken.retain(|range, owner| owner != node || kept.contains(range));
        self.taken.len() != before
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

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let listed = node.spec.iter().flat_map(|spec| spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr));
    listed.filter_map(|range| range.parse().ok()).collect()
}

impl NodeIpam {
    /// What the node had is free, but for what another one has too.
    fn release(&mut self, node: &Node, kept: &[IpNet], queue: &mut Queue<String>) {
        if !self.ranges.release(&node.uid().unwrap_or_default(), kept) {
            return;
        }
        for other in self.nodes.list() {
            let ranges = ranges_of(&other);
            if ranges.is_empty() {
                // It may have found none left.
                queue.add(other.name_any());
            }
            if other.uid() != node.uid() {
                ranges.into_iter().for_each(|range| self.ranges.take(range, &other.uid().unwrap_or_default()));
            }
        }
    }
}

impl Controller for NodeIpam {
    const NAME: &'static str = "nodeipam";
    type Input = Change<Node>;
    type Key = String;

    fn observe(&mut self, change: Change<Node>, queue: &mut Queue<String>) {
        match change {
            Change::Applied { new, old } => {
                let ranges = ranges_of(&new);
                let same = old.as_ref().is_some_and(|old| old.uid() == new.uid() && ranges_of(old) == ranges);
                if let Some(old) = old.filter(|old| old.uid() != new.uid()) {
                    self.release(&old, &[], queue);
                }
                // A node tells of itself all the time; of its ranges, once.
                if !same {
                    if !ranges.is_empty() {
                        self.release(&new, &ranges, queue);
                    }
                    ranges.into_iter().for_each(|range| self.ranges.take(range, &new.uid().unwrap_or_default()));
                }
                queue.add(new.name_any());
            }
            Change::Deleted(old) => self.release(&old, &[], queue),
            Change::Synced { .. } => {}
        }
    }

    fn reconcile(&mut self, name: &String, _queue: &mut Queue<String>) -> Option<Effects> {
        let node = self.nodes.get(&portolan_client::Key::new("", name))?;
        if !ranges_of(&node).is_empty() {
            return None;
        }
        let uid = node.uid().unwrap_or_default();
        let Some(range) = self.ranges.of(&uid).or_else(|| self.ranges.give(&uid)) else {
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
        ranges.release("n2", &[]);
        assert_eq!(ranges.give("n4"), given[2]);
    }

    fn node(name: &str, uid: &str, range: Option<&str>) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "uid": uid}, "spec": {"podCIDR": range}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    struct World(NodeIpam, Queue<String>);

    impl World {
        fn new() -> Self {
            let client = crate::nowhere();
            let (events, _) = Recorder::new(client.clone(), "");
            let ranges = ranges("10.244.0.0/22", 24, &[]);
            Self(NodeIpam { client, events, nodes: Cache::detached(), ranges }, Queue::default())
        }

        /// The watch shows it; gives whom something is written to because of it.
        fn show(&mut self, node: &Arc<Node>) -> Vec<String> {
            let old = self.0.nodes.get(&portolan_client::Key::of(&**node));
            self.0.nodes.put((**node).clone());
            self.0.observe(Change::Applied { new: node.clone(), old }, &mut self.1);
            self.decide()
        }

        fn delete(&mut self, node: &Arc<Node>) -> Vec<String> {
            self.0.nodes.remove(node);
            self.0.observe(Change::Deleted(node.clone()), &mut self.1);
            self.decide()
        }

        fn decide(&mut self) -> Vec<String> {
            let mut written = Vec::new();
            while let Some(name) = self.1.take(tokio::time::Instant::now()) {
                written.extend(self.0.reconcile(&name, &mut self.1).map(|_| name.clone()));
                self.1.done(&name);
            }
            written
        }

        fn given(&self, uid: &str) -> String {
            self.0.ranges.of(uid).map(|range| range.to_string()).unwrap_or_default()
        }
    }

    #[tokio::test]
    async fn a_node_made_anew_under_the_same_name_gets_a_range_too() {
        let mut world = World::new();
        assert_eq!(world.show(&node("a", "1", None)), ["a"]);
        assert_eq!(world.show(&node("a", "1", Some("10.244.0.0/24"))), [""; 0]);
        assert_eq!(world.show(&node("a", "2", None)), ["a"]);
        assert_eq!((world.given("1").as_str(), world.given("2").as_str()), ("", "10.244.0.0/24"));
        world.delete(&node("a", "2", None));
        assert_eq!(world.given("2"), "");
    }

    #[tokio::test]
    async fn what_may_have_been_written_is_given_to_nobody_else() {
        let mut world = World::new();
        world.show(&node("a", "1", None));
        // There is no answer; the write may have been made, or not.
        world.1.add("a".to_owned());
        assert_eq!(world.decide(), ["a"], "it is tried again");
        world.show(&node("b", "2", None));
        assert_eq!((world.given("1").as_str(), world.given("2").as_str()), ("10.244.0.0/24", "10.244.1.0/24"));
        // Somebody else had given it another one.
        world.show(&node("a", "1", Some("10.244.3.0/24")));
        world.show(&node("c", "3", None));
        assert_eq!((world.given("1").as_str(), world.given("3").as_str()), ("10.244.3.0/24", "10.244.0.0/24"));
    }

    #[tokio::test]
    async fn of_two_that_have_one_range_the_other_keeps_it() {
        let mut world = World::new();
        for (name, uid) in [("a", "1"), ("b", "2")] {
            world.show(&node(name, uid, Some("10.244.0.0/24")));
        }
        world.delete(&node("a", "1", Some("10.244.0.0/24")));
        world.show(&node("c", "3", None));
        assert_eq!((world.given("2").as_str(), world.given("3").as_str()), ("10.244.0.0/24", "10.244.1.0/24"));
    }
}
