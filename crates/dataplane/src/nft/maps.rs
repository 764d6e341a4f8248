//! The table's maps and sets: their names, keys, values and flags.
//!
//! Invariant: each is of one shape in a family, whatever the configuration, so that one that is found can be told to be
//! this build's or another's.

use nlink::netlink::nftables as nf;
use nlink::netlink::nftables::{Set, SetDataType, SetInfo, SetKeyType};
use portolan_model::forwarding::Family;

use super::entries::{ChainKind, SLOT_PARTS};

pub(crate) const TABLE: &str = "portolan";

/// The index of the first slot of the outside set; those of the inside set start at 0. More than `MAX_BACKENDS`.
pub(super) const OUTSIDE_BASE: u32 = 1 << 20;

/// Clients remembered for session affinity in one family; one more is forwarded without being remembered.
pub(super) const AFFINITY_SIZE: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Map {
    Services,
    NodePorts,
    Picks,
    Remembers,
    /// One of [`SLOT_PARTS`].
    Slots(u8),
    NodePortSlots,
    Masqueraded,
    NodePortMasqueraded,
    LocalOnly,
    NodePortLocalOnly,
    Outside,
    NodePortOutside,
    Refused,
    NodePortRefused,
    Dropped,
    NodePortDropped,
    Sticky,
    NodePortSticky,
    Sessions,
    NodePortSessions,
    Restricted,
    Admitted,
    AdmittedNetworks,
    Connections,
    NodePortConnections,
    Traffic,
    NodePortTraffic,
    ClusterIps,
    NodeAddresses,
    ServiceCidrs,
    PodNetworks,
    KeepsAddress,
    Echo,
    Hairpin,
    Affinity,
}

/// All maps but the parts of the slots.
const MAPS: [Map; 34] = {
    use Map as M;
    [
        M::Services,
        M::NodePorts,
        M::Picks,
        M::Remembers,
        M::NodePortSlots,
        M::Masqueraded,
        M::NodePortMasqueraded,
        M::LocalOnly,
        M::NodePortLocalOnly,
        M::Outside,
        M::NodePortOutside,
        M::Refused,
        M::NodePortRefused,
        M::Dropped,
        M::NodePortDropped,
        M::Sticky,
        M::NodePortSticky,
        M::Sessions,
        M::NodePortSessions,
        M::Restricted,
        M::Admitted,
        M::AdmittedNetworks,
        M::Connections,
        M::NodePortConnections,
        M::Traffic,
        M::NodePortTraffic,
        M::ClusterIps,
        M::NodeAddresses,
        M::ServiceCidrs,
        M::PodNetworks,
        M::KeepsAddress,
        M::Echo,
        M::Hairpin,
        M::Affinity,
    ]
};

const SLOTS: [&str; SLOT_PARTS as usize] = [
    "slots-0", "slots-1", "slots-2", "slots-3", "slots-4", "slots-5", "slots-6", "slots-7", "slots-8", "slots-9",
    "slots-10", "slots-11", "slots-12", "slots-13", "slots-14", "slots-15",
];

impl Map {
    pub(super) fn all() -> impl Iterator<Item = Self> {
        MAPS.into_iter().chain((0..SLOT_PARTS).map(Self::Slots))
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "node-port-services",
            Self::Picks => "picks",
            Self::Remembers => "remembers",
            Self::Slots(part) => SLOTS[usize::from(part % SLOT_PARTS)],
            Self::NodePortSlots => "node-port-slots",
            Self::Masqueraded => "masqueraded",
            Self::NodePortMasqueraded => "node-port-masqueraded",
            Self::LocalOnly => "local-only",
            Self::NodePortLocalOnly => "node-port-local-only",
            Self::Outside => "outside",
            Self::NodePortOutside => "node-port-outside",
            Self::Refused => "refused",
            Self::NodePortRefused => "node-port-refused",
            Self::Dropped => "dropped",
            Self::NodePortDropped => "node-port-dropped",
            Self::Sticky => "sticky",
            Self::NodePortSticky => "node-port-sticky",
            Self::Sessions => "sessions",
            Self::NodePortSessions => "node-port-sessions",
            Self::Restricted => "restricted",
            Self::Admitted => "admitted",
            Self::AdmittedNetworks => "admitted-networks",
            Self::Connections => "connections",
            Self::NodePortConnections => "node-port-connections",
            Self::Traffic => "traffic",
            Self::NodePortTraffic => "node-port-traffic",
            Self::ClusterIps => "cluster-ips",
            Self::NodeAddresses => "node-addresses",
            Self::ServiceCidrs => "service-cidrs",
            Self::PodNetworks => "pod-networks",
            Self::KeepsAddress => "keeps-address",
            Self::Echo => "echo",
            Self::Hairpin => "hairpin",
            Self::Affinity => "affinity",
        }
    }

    pub(super) fn key_type(self, family: Family) -> SetKeyType {
        use SetKeyType::{InetProto, InetService, Mark};
        let address = || address_type(family);
        SetKeyType::Concat(match self {
            Self::Services
            | Self::Masqueraded
            | Self::LocalOnly
            | Self::Outside
            | Self::Refused
            | Self::Dropped
            | Self::Sticky
            | Self::Sessions
            | Self::Restricted
            | Self::Connections
            | Self::Traffic => vec![address(), InetProto, InetService],
            Self::NodePorts
            | Self::NodePortMasqueraded
            | Self::NodePortLocalOnly
            | Self::NodePortOutside
            | Self::NodePortRefused
            | Self::NodePortDropped
            | Self::NodePortSticky
            | Self::NodePortSessions
            | Self::NodePortConnections
            | Self::NodePortTraffic => vec![InetProto, InetService],
            Self::Slots(_) => vec![address(), InetProto, InetService, Mark],
            Self::NodePortSlots => vec![InetProto, InetService, Mark],
            Self::Admitted | Self::AdmittedNetworks => vec![address(), InetProto, InetService, address()],
            Self::Echo => return InetProto,
            Self::Picks | Self::Remembers => return SetKeyType::ClassId,
            Self::ClusterIps | Self::NodeAddresses | Self::ServiceCidrs | Self::PodNetworks | Self::KeepsAddress => {
                return address();
            }
            Self::Hairpin => vec![address(), address()],
            Self::Affinity => vec![address(), SetKeyType::ClassId],
        })
    }

    /// What a key is mapped to; `None` for a set.
    pub(super) fn data_type(self, family: Family) -> Option<SetDataType> {
        let backend = SetKeyType::Concat(vec![address_type(family), SetKeyType::InetService]);
        match self {
            Self::Services | Self::Outside | Self::Sticky | Self::Sessions => {
                Some(SetDataType::Value(SetKeyType::ClassId))
            }
            Self::NodePorts | Self::NodePortOutside | Self::NodePortSticky | Self::NodePortSessions => {
                Some(SetDataType::Value(SetKeyType::ClassId))
            }
            Self::Picks | Self::Remembers => Some(SetDataType::Verdict),
            Self::Slots(_) | Self::NodePortSlots => Some(SetDataType::Value(backend)),
            Self::Affinity => Some(SetDataType::Value(SetKeyType::Mark)),
            Self::Echo => Some(SetDataType::Value(address_type(family))),
            _ => None,
        }
    }

    pub(super) fn set(self, family: Family) -> Set {
        let set = Set::new(TABLE, self.name()).family(nf_family(family)).key_type(self.key_type(family));
        let set = match self.data_type(family) {
            Some(data) => set.map(data),
            None => set,
        };
        match self {
            Self::Affinity => set.per_element_timeouts().dynamic().size(AFFINITY_SIZE),
            Self::ServiceCidrs | Self::PodNetworks | Self::KeepsAddress => set.interval(),
            Self::Connections | Self::NodePortConnections | Self::Traffic | Self::NodePortTraffic => set.counter(),
            _ => set,
        }
    }

    /// Whether a set that was found is this one.
    pub(super) fn is(self, family: Family, found: &SetInfo) -> bool {
        let data_type = self.data_type(family).map(|data| match data {
            SetDataType::Value(value) => value.type_id(),
            _ => nf::NFT_DATA_VERDICT,
        });
        found.key_type == self.key_type(family).type_id() && found.data_type == data_type
    }
}

pub(crate) fn nf_family(family: Family) -> nf::Family {
    match family {
        Family::V4 => nf::Family::Ip,
        Family::V6 => nf::Family::Ip6,
    }
}

fn address_type(family: Family) -> SetKeyType {
    match family {
        Family::V4 => SetKeyType::Ipv4Addr,
        Family::V6 => SetKeyType::Ipv6Addr,
    }
}

/// The map that leads to chains of this kind. There are two because a chain that rewrites destinations may not be
/// reachable from a filter hook.
pub(super) fn classes(kind: ChainKind) -> Map {
    match kind {
        ChainKind::Pick(_) => Map::Picks,
        ChainKind::Remember(_) => Map::Remembers,
    }
}
