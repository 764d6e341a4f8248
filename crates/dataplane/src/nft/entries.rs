//! The elements of maps and sets, and the chains that some of them lead to, in words.
//!
//! An [`Entry`] is one element of one map; `row` says which of them stand for a frontend, `wire` knows its bytes and
//! `layout` the rules that read it.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::forwarding::{Backend, Family, Frontend, Place};

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
    /// Everybody's source address is replaced.
    Masqueraded(Frontend),
    /// Who is neither a pod nor the node itself gets the outside set.
    LocalOnly(Frontend),
    /// -> [`Value::Pick`] among the outside set; nothing where that set is empty.
    Outside(Frontend),
    /// Without a backend anywhere.
    Refused(Frontend),
    /// With backends that are not for this node to use.
    Dropped(Frontend),
    /// With session affinity -> [`Value::Remember`].
    Sticky(Frontend),
    /// With session affinity -> [`Value::Session`].
    Session(Frontend),
    /// -> [`Value::Backend`].
    Slot(Frontend, Reach, u32),
    /// With session affinity, the backend by its [`seat`](super::seats::seat) -> [`Value::Backend`].
    Seat(Frontend, Reach, u32),
    /// Open to [`Key::Admitted`] sources only.
    Restricted(Frontend),
    /// A single address, or a network of one of the [`lengths`](super::networks::lengths).
    Admitted(Frontend, IpNet),
    /// Counts first packets.
    Connections(Frontend),
    /// Counts all packets, in both directions.
    Traffic(Frontend),
    ClusterIp(IpAddr),
    /// A backend that a Service may send back to itself.
    Hairpin(IpAddr),
    NodeAddress(IpAddr),
    ServiceCidr(IpNet),
    PodNetwork(IpNet),
    /// Sources that keep their address towards ClusterIPs.
    KeepsAddress(IpNet),
    /// Pings of the family's ClusterIPs are answered from here.
    Echo(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// The element of a set, which maps to nothing.
    Present,
    Pick(Pick),
    Remember(Remember),
    /// The number under which clients are remembered, with other frontends of the Service that have the same.
    Session(u32),
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
    /// Which part of the slots they are in; 0 for a node port, whose slots are in one.
    pub part: u8,
    /// At least 1.
    pub count: u32,
}

/// The chain that remembers a client, one for each timeout in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remember {
    /// Whether the frontend is a node port, which is looked up without an address.
    pub node_port: bool,
    /// For how long after its latest connection. At least 1.
    pub seconds: u32,
}

/// The kernel lists a map in pieces, and walks it from its beginning for each. So the one that grows with endpoints is
/// in as many parts, and what leads to a frontend's slots says in which they are.
pub const SLOT_PARTS: u8 = 16;

/// The part that the frontend's slots are in.
#[must_use]
pub fn part_of(frontend: &Frontend) -> u8 {
    match frontend.place {
        // The upper four bits.
        Place::Address(_) => digest(frontend).to_be_bytes()[0] / SLOT_PARTS,
        Place::Node(_) => 0,
    }
}

/// A number that is the same for the frontend in every build and on every machine, and spread evenly. FNV-1a with the
/// finish of MurmurHash3.
pub(super) fn digest(frontend: &Frontend) -> u32 {
    let mut digest = 0x811c_9dc5_u32;
    let mut take =
        |bytes: &[u8]| bytes.iter().for_each(|byte| digest = (digest ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    match frontend.place {
        Place::Address(IpAddr::V4(address)) => take(&address.octets()),
        Place::Address(IpAddr::V6(address)) => take(&address.octets()),
        Place::Node(_) => {}
    }
    take(&[frontend.protocol.number()]);
    take(&frontend.port.to_be_bytes());
    digest = (digest ^ (digest >> 16)).wrapping_mul(0x85eb_ca6b);
    digest = (digest ^ (digest >> 13)).wrapping_mul(0xc2b2_ae35);
    digest ^ (digest >> 16)
}

/// A chain that exists because an entry's class leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    pub family: Family,
    pub kind: ChainKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    Pick(Pick),
    Remember(Remember),
}

impl Key {
    /// The frontend whose key it is, if it is one's.
    #[must_use]
    pub fn frontend(&self) -> Option<Frontend> {
        match self {
            Self::Service(f) | Self::Masqueraded(f) | Self::LocalOnly(f) | Self::Outside(f) => Some(*f),
            Self::Refused(f) | Self::Dropped(f) | Self::Sticky(f) | Self::Session(f) => Some(*f),
            Self::Slot(f, ..) | Self::Seat(f, ..) | Self::Restricted(f) | Self::Admitted(f, _) => Some(*f),
            Self::Connections(f) | Self::Traffic(f) => Some(*f),
            Self::ClusterIp(_) | Self::Hairpin(_) | Self::NodeAddress(_) | Self::Echo(_) => None,
            Self::ServiceCidr(_) | Self::PodNetwork(_) | Self::KeepsAddress(_) => None,
        }
    }

    /// Whether there is no room for both: a set of ranges cannot hold two that overlap.
    #[must_use]
    pub fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ServiceCidr(a), Self::ServiceCidr(b))
            | (Self::PodNetwork(a), Self::PodNetwork(b))
            | (Self::KeepsAddress(a), Self::KeepsAddress(b)) => a != b && (a.contains(b) || b.contains(a)),
            (Self::Echo(a), Self::Echo(b)) => a != b && Family::of(*a) == Family::of(*b),
            _ => false,
        }
    }

    #[must_use]
    pub fn family(&self) -> Family {
        match self {
            Self::Service(f) | Self::Masqueraded(f) | Self::LocalOnly(f) | Self::Outside(f) => f.family(),
            Self::Refused(f) | Self::Dropped(f) | Self::Sticky(f) | Self::Session(f) => f.family(),
            Self::Slot(f, ..) | Self::Seat(f, ..) | Self::Restricted(f) | Self::Admitted(f, _) => f.family(),
            Self::Connections(f) | Self::Traffic(f) => f.family(),
            Self::ClusterIp(address) | Self::Hairpin(address) => Family::of(*address),
            Self::NodeAddress(address) | Self::Echo(address) => Family::of(*address),
            Self::ServiceCidr(net) | Self::PodNetwork(net) | Self::KeepsAddress(net) => Family::of(net.addr()),
        }
    }
}

/// The chain an entry leads to, which must exist before it and as long as it.
#[must_use]
pub fn chain_of((key, value): &Entry) -> Option<Chain> {
    let kind = match value {
        Value::Pick(pick) => ChainKind::Pick(*pick),
        Value::Remember(remember) => ChainKind::Remember(*remember),
        Value::Present | Value::Backend(_) | Value::Session(_) => return None,
    };
    Some(Chain { family: key.family(), kind })
}

impl fmt::Display for ChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remember(Remember { node_port, seconds }) => {
                let node_port = if *node_port { "node-port-" } else { "" };
                write!(f, "{node_port}remember-{seconds}")
            }
            Self::Pick(pick) => {
                let node_port = if pick.node_port { "node-port-" } else { "" };
                let outside = if pick.reach == Reach::Outside { "outside-" } else { "" };
                let sticky = if pick.sticky { "sticky-" } else { "" };
                write!(f, "{node_port}{outside}{sticky}pick-{}", pick.count)?;
                if pick.node_port { Ok(()) } else { write!(f, "-part-{}", pick.part) }
            }
        }
    }
}

/// The lower part of a class is a number of slots or of seconds.
const CLASS_NUMBER: u32 = (1 << 20) - 1;
const CLASS_NODE_PORT: u32 = 1 << 20;
const CLASS_OUTSIDE: u32 = 1 << 21;
const CLASS_STICKY: u32 = 1 << 22;
const CLASS_REMEMBER: u32 = 1 << 23;
const CLASS_PART: u32 = 24;

/// As large as a class has room for, and larger than any API server admits.
pub(super) const LONGEST_REMEMBERED: u32 = CLASS_NUMBER;

impl ChainKind {
    /// The number that stands for the chain in maps: an element that named the chain itself would have the kernel walk
    /// all such elements at every commit.
    #[must_use]
    pub fn class(self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        match self {
            Self::Remember(remember) => CLASS_REMEMBER | bit(remember.node_port, CLASS_NODE_PORT) | remember.seconds,
            Self::Pick(pick) => {
                bit(pick.node_port, CLASS_NODE_PORT)
                    | bit(pick.reach == Reach::Outside, CLASS_OUTSIDE)
                    | bit(pick.sticky, CLASS_STICKY)
                    | u32::from(pick.part) << CLASS_PART
                    | pick.count
            }
        }
    }

    /// The opposite of `class`; `None` for a number that is no chain's.
    #[must_use]
    pub fn of_class(class: u32) -> Option<Self> {
        let number = class & CLASS_NUMBER;
        let node_port = class & CLASS_NODE_PORT != 0;
        let [part, ..] = class.to_be_bytes();
        let kind = match class & CLASS_REMEMBER {
            0 => Self::Pick(Pick {
                node_port,
                part: if node_port { 0 } else { part % SLOT_PARTS },
                reach: if class & CLASS_OUTSIDE == 0 { Reach::Inside } else { Reach::Outside },
                sticky: class & CLASS_STICKY != 0,
                count: number,
            }),
            _ => Self::Remember(Remember { node_port, seconds: number }),
        };
        (number > 0 && kind.class() == class).then_some(kind)
    }

    /// The opposite of `Display`; `None` for a chain that is none of these.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some((kind, seconds)) = name.rsplit_once("remember-") {
            let remember = Remember { node_port: !kind.is_empty(), seconds: seconds.parse().ok()? };
            return (Self::Remember(remember).to_string() == name).then_some(Self::Remember(remember));
        }
        let (kind, rest) = name.rsplit_once("pick-")?;
        let (count, part) = rest.split_once("-part-").unwrap_or((rest, "0"));
        let node_port = kind.strip_prefix("node-port-");
        let outside = node_port.unwrap_or(kind).strip_prefix("outside-");
        let sticky = outside.unwrap_or(node_port.unwrap_or(kind));
        let pick = Pick {
            node_port: node_port.is_some(),
            reach: if outside.is_some() { Reach::Outside } else { Reach::Inside },
            sticky: sticky == "sticky-",
            part: part.parse().ok().filter(|part| *part < SLOT_PARTS)?,
            count: count.parse().ok()?,
        };
        (Self::Pick(pick).to_string() == name).then_some(Self::Pick(pick))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_and_classes_read_back() {
        let picks = [false, true].into_iter().flat_map(|node_port| {
            [Reach::Inside, Reach::Outside].into_iter().flat_map(move |reach| {
                let part = if node_port { 0 } else { 11 };
                [false, true].map(|sticky| ChainKind::Pick(Pick { node_port, reach, sticky, part, count: 17 }))
            })
        });
        let remember = |node_port| ChainKind::Remember(Remember { node_port, seconds: 10_800 });
        for kind in picks.chain([remember(false), remember(true)]) {
            assert_eq!(ChainKind::parse(&kind.to_string()), Some(kind));
            assert_eq!(ChainKind::of_class(kind.class()), Some(kind));
        }
        for nothing in [0, CLASS_STICKY, CLASS_REMEMBER | CLASS_STICKY | 1, 1 << 28 | 1, CLASS_NODE_PORT | 1 << 24 | 1]
        {
            assert_eq!(ChainKind::of_class(nothing), None, "{nothing:#x}");
        }
        for other in
            ["dispatch", "pick-", "pick-3", "my-pick-3-part-0", "pick-03-part-1", "pick-3-part-16", "remember-for"]
        {
            assert_eq!(ChainKind::parse(other), None, "{other}");
        }
    }
}
