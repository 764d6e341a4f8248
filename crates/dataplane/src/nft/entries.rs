//! A Service's forwarding -> the entries of maps and sets that stand for it.
//!
//! An [`Entry`] is one element of one map, in words; `wire` knows its bytes and `layout` the rules that read it.
//! Invariant: the entries of a Service are a function of its forwarding, except for the order of its slots, which keeps
//! as much as it can of the order before, so that one endpoint's change is one or two slots' change.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::forwarding::{
    Backend, Family, Frontend, FrontendForwarding, Masquerade, Place, ServiceForwarding, Target,
};

/// Which of a frontend's two sets of backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reach {
    /// What pods and the node itself get, and everyone where the policy makes no difference.
    Inside,
    /// What others get under `externalTrafficPolicy: Local`.
    Outside,
}

/// Element key, with the map it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// -> [`Value::Pick`] among the inside set.
    Service(Frontend),
    /// Reached from outside the cluster -> [`Value::Masquerade`] or [`Value::LocalOnly`], what to do before picking.
    External(Frontend),
    /// -> [`Value::Pick`] among the outside set, or [`Value::Drop`].
    Outside(Frontend),
    /// Without a backend -> [`Value::Refuse`] or [`Value::Drop`].
    Refused(Frontend),
    /// With session affinity -> [`Value::Remember`].
    Sticky(Frontend),
    /// -> [`Value::Backend`].
    Slot(Frontend, Reach, u32),
    /// Open to [`Key::Admitted`] sources only.
    Restricted(Frontend),
    Admitted(Frontend, IpNet),
    ClusterIp(IpAddr),
    /// A pod of this node that a Service may send back to itself.
    Hairpin(IpAddr),
    NodeAddress(IpAddr),
    ServiceCidr(IpNet),
    PodNetwork(IpNet),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// The element of a set, which maps to nothing.
    Present,
    Pick(Pick),
    Masquerade,
    LocalOnly,
    Refuse,
    Drop,
    /// For how many seconds after its latest connection a client is remembered.
    Remember(u32),
    Backend(Backend),
}

pub type Entry = (Key, Value);

/// The chain that picks one of so many slots. There is one for each kind that is in use, whatever the number of
/// Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// Whether the slots are those of a node port, which are keyed without an address.
    pub node_port: bool,
    pub reach: Reach,
    pub sticky: bool,
    /// At least 1.
    pub count: u32,
}

/// A chain that exists because a map's element leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    pub family: Family,
    pub kind: ChainKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    Pick(Pick),
    Remember(u32),
}

impl Key {
    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Service(f) | Self::External(f) | Self::Outside(f) | Self::Refused(f) | Self::Sticky(f) => f.family(),
            Self::Slot(f, ..) | Self::Restricted(f) | Self::Admitted(f, _) => f.family(),
            Self::ClusterIp(address) | Self::Hairpin(address) | Self::NodeAddress(address) => Family::of(*address),
            Self::ServiceCidr(net) | Self::PodNetwork(net) => Family::of(net.addr()),
        }
    }
}

/// The chain an entry leads to, which must exist before it and as long as it.
#[must_use]
pub fn chain_of(key: &Key, value: &Value) -> Option<Chain> {
    let kind = match value {
        Value::Pick(pick) => ChainKind::Pick(*pick),
        Value::Remember(seconds) => ChainKind::Remember(*seconds),
        _ => return None,
    };
    Some(Chain { family: key.family(), kind })
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remember(seconds) => write!(f, "remember-{seconds}"),
            Self::Pick(pick) => {
                let node_port = if pick.node_port { "node-port-" } else { "" };
                let outside = if pick.reach == Reach::Outside { "outside-" } else { "" };
                let sticky = if pick.sticky { "sticky-" } else { "" };
                write!(f, "{node_port}{outside}{sticky}pick-{}", pick.count)
            }
        }
    }
}

impl ChainKind {
    /// The opposite of `Display`; `None` for a chain that is none of these.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(seconds) = name.strip_prefix("remember-") {
            return seconds.parse().ok().map(Self::Remember);
        }
        let (kind, count) = name.rsplit_once("pick-")?;
        let node_port = kind.strip_prefix("node-port-");
        let outside = node_port.unwrap_or(kind).strip_prefix("outside-");
        let sticky = outside.unwrap_or(node_port.unwrap_or(kind));
        let pick = Pick {
            node_port: node_port.is_some(),
            reach: if outside.is_some() { Reach::Outside } else { Reach::Inside },
            sticky: sticky == "sticky-",
            count: count.parse().ok()?,
        };
        (Self::Pick(pick).to_string() == name).then_some(Self::Pick(pick))
    }
}

/// All entries of a Service, sorted. `slots` gives the backends of a frontend's set in the order they have now.
#[must_use]
pub fn entries(service: &ServiceForwarding, slots: impl Fn(&Frontend, Reach) -> Vec<Backend>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for forwarding in &service.frontends {
        frontend_entries(forwarding, &slots, &mut entries);
    }
    entries.extend(service.cluster_ips.iter().map(|address| (Key::ClusterIp(*address), Value::Present)));
    entries.extend(service.local_addresses.iter().map(|address| (Key::Hairpin(*address), Value::Present)));
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

fn frontend_entries(
    forwarding: &FrontendForwarding,
    slots: &impl Fn(&Frontend, Reach) -> Vec<Backend>,
    entries: &mut Vec<Entry>,
) {
    let frontend = forwarding.frontend;
    if !forwarding.sources.is_empty() {
        entries.push((Key::Restricted(frontend), Value::Present));
        entries.extend(forwarding.sources.iter().map(|net| (Key::Admitted(frontend, *net), Value::Present)));
    }
    let mut pick = |reach: Reach, backends: &[Backend]| {
        let order = reassign(&slots(&frontend, reach), backends);
        let numbered = (0..).zip(order);
        entries.extend(numbered.map(|(index, backend)| (Key::Slot(frontend, reach, index), Value::Backend(backend))));
        Value::Pick(Pick {
            node_port: matches!(frontend.place, Place::Node(_)),
            reach,
            sticky: forwarding.affinity.is_some(),
            count: u32::try_from(backends.len()).unwrap_or(u32::MAX),
        })
    };
    let inside = match &forwarding.inside {
        Target::Forward(backends) => pick(Reach::Inside, backends),
        refusal => {
            entries.push((Key::Refused(frontend), if *refusal == Target::Drop { Value::Drop } else { Value::Refuse }));
            return;
        }
    };
    match forwarding.masquerade {
        // Decided by the address being a ClusterIP, for all of them at once.
        Masquerade::Outsiders => {}
        Masquerade::Everybody => entries.push((Key::External(frontend), Value::Masquerade)),
        Masquerade::NodeItself => {
            let outside = match &forwarding.outside {
                Target::Forward(backends) => pick(Reach::Outside, backends),
                _ => Value::Drop,
            };
            entries.push((Key::Outside(frontend), outside));
            entries.push((Key::External(frontend), Value::LocalOnly));
        }
    }
    entries.push((Key::Service(frontend), inside));
    if let Some(timeout) = forwarding.affinity {
        let seconds = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1);
        entries.push((Key::Sticky(frontend), Value::Remember(seconds)));
    }
}

/// Puts `desired` into slots, leaving every backend where it is unless its slot goes away. The new ones, and those that
/// lose their slot, fill the holes.
fn reassign(realized: &[Backend], desired: &[Backend]) -> Vec<Backend> {
    let mut homeless: BTreeSet<Backend> = desired.iter().copied().collect();
    let kept: Vec<Option<Backend>> = (0..homeless.len())
        .map(|index| realized.get(index).copied().filter(|backend| homeless.remove(backend)))
        .collect();
    let mut homeless = homeless.into_iter();
    kept.into_iter().filter_map(|kept| kept.or_else(|| homeless.next())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backends(numbers: &[u8]) -> Vec<Backend> {
        numbers.iter().map(|n| Backend { address: IpAddr::from([10, 0, 0, *n]), port: 80 }).collect()
    }

    #[test]
    fn slots_stay_where_they_are() {
        let realized = backends(&[3, 1, 2]);
        assert_eq!(reassign(&realized, &backends(&[1, 2, 3])), realized);
        assert_eq!(reassign(&realized, &backends(&[1, 2])), backends(&[2, 1]), "the last moves into the hole");
        assert_eq!(reassign(&realized, &backends(&[1, 2, 3, 4])), backends(&[3, 1, 2, 4]));
        assert_eq!(reassign(&realized, &backends(&[1, 2, 4])), backends(&[4, 1, 2]));
        assert_eq!(reassign(&realized, &[]), []);
    }

    proptest! {
        #[test]
        fn slots_hold_exactly_what_is_desired(a in prop::collection::btree_set(0u8..40, 0..20), b in prop::collection::btree_set(0u8..40, 0..20)) {
            let (a, b) = (backends(&a.into_iter().collect::<Vec<_>>()), backends(&b.into_iter().collect::<Vec<_>>()));
            let mut slots = reassign(&a, &b);
            let changed = slots.iter().zip(&a).filter(|(new, old)| new != old).count();
            let gone = a.iter().filter(|backend| !b.contains(backend)).count();
            prop_assert!(changed <= gone);
            slots.sort_unstable();
            prop_assert_eq!(slots, b);
        }
    }

    #[test]
    fn chain_names_read_back() {
        let picks = [false, true].into_iter().flat_map(|node_port| {
            [Reach::Inside, Reach::Outside].into_iter().flat_map(move |reach| {
                [false, true].map(|sticky| ChainKind::Pick(Pick { node_port, reach, sticky, count: 17 }))
            })
        });
        for kind in picks.chain([ChainKind::Remember(10_800)]) {
            assert_eq!(ChainKind::parse(&kind.to_string()), Some(kind));
        }
        for other in ["dispatch", "pick-", "pick-x", "my-pick-3", "pick-03"] {
            assert_eq!(ChainKind::parse(other), None, "{other}");
        }
    }
}
