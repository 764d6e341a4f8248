//! The table: its maps and sets, and the rules that read them.
//!
//! The rules are the same whatever the number of Services; all that varies is in elements. The way of a connection's
//! first packet, with the chains in the order it meets them:
//!
//! | chain | hook | why there |
//! |---|---|---|
//! | `dispatch` | nat prerouting and output, -100 | where destinations are rewritten; only first packets come here |
//! | `node-ports` | | the addresses of the node are looked up once, and not once a Service |
//! | `external-local` | | sorts insiders from outsiders under `externalTrafficPolicy: Local` |
//! | `pick` | | goes to the chain of the class that a map gave |
//! | `…pick-<n>-part-<p>` | | rewrites the destination: a random one of n slots, or the one remembered |
//! | `after-nat` | filter prerouting and output, -99 | what still has a Service's address found no backend; reject is not for nat chains |
//! | `remember` | | likewise |
//! | `…remember-<s>` | | writes down who was sent where, which is known only now |
//! | `source` | nat postrouting, 100 | where sources are rewritten |
//! | `count` | filter prerouting and output, -99 | where every packet passes once, its connection known to be a Service's |
//!
//! A verdict in a map's element has the kernel walk all elements of all such maps at every commit that adds one. So the
//! only maps with verdicts are `picks` and `remembers`, which have an element for each distinct number of backends and
//! timeout, and not for each Service. The others give a class, a number, which waits for its lookup there in the packet's
//! priority: the mark belongs to too many others, and routing sets the priority of forwarded packets afresh after this.
//! What it was before is lost for the first packet of a connection to a Service, no other. With session affinity the
//! priority next holds the number under which the client is remembered, until it is written down.
//!
//! The slots are in parts, maps of the same shape: the kernel lists a map in pieces, and walks it from its beginning for
//! each, so that reading one large map back costs its square.
//!
//! Invariant: stock `nft list ruleset` (1.0.6 and later) prints the table. For that, the parts of every looked-up key
//! come from expressions `nft` has a name for, a slot's index is typed as a mark, `nft`'s name for a 32-bit number, and
//! no rule has a map inside a map.
//!
//! Deliberately not here: the elements.
//!
//! Source: kernel `nf_tables_api.c` (`nft_table_validate`), `ip_forward.c`.

use nlink::netlink::nftables as nf;
use nlink::netlink::nftables::{
    BaseChain, CmpOp, CtKey, DynsetExpr, DynsetOp, Expr, FilterHook, LookupExpr, MetaKey, NatHook, Priority, Rule, Set,
    SetDataType, SetInfo, SetKeyType, Verdict,
};
use portolan_model::forwarding::Family;

use super::entries::{ChainKind, Pick, Reach, Remember, SLOT_PARTS};
use super::expressions::{
    Builder, Part, bitwise, chain_name, clear_priority, ct_bit, from_this_node, is_echo_request, link, masquerade,
    port_unreachable, proto_is, reg,
};
use crate::config::{LocalTraffic, ProxyConfig};

pub(crate) const TABLE: &str = "portolan";

/// The index of the first slot of the outside set; those of the inside set start at 0. More than `MAX_BACKENDS`.
pub(super) const OUTSIDE_BASE: u32 = 1 << 20;

/// Clients remembered for session affinity in one family; one more is forwarded without being remembered.
const AFFINITY_SIZE: u32 = 1 << 20;

const CT_NEW: u32 = 1 << 3;
const CT_DNAT: u32 = 1 << 5;

const MASQUERADE_CHAIN: &str = "mark-for-masquerade";
const EXTERNAL_LOCAL_CHAIN: &str = "external-local";
const NODE_PORT_EXTERNAL_LOCAL_CHAIN: &str = "node-port-external-local";
const PICK_CHAIN: &str = "pick";
const REMEMBER_CHAIN: &str = "remember-for";
const REFUSE_CHAIN: &str = "refuse";
const COUNT_CHAIN: &str = "count";

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
            Self::Slots(_) | Self::NodePortSlots | Self::Affinity => Some(SetDataType::Value(backend)),
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
            Self::AdmittedNetworks | Self::ServiceCidrs | Self::PodNetworks | Self::KeepsAddress => set.interval(),
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

/// A chain as it is meant to be.
pub(super) struct ChainPlan {
    pub name: String,
    pub base: Option<BaseChain>,
    pub rules: Vec<Rule>,
}

/// The chains that exist whatever the Services, those that are led to first.
pub(super) fn fixed_chains(family: Family, config: &ProxyConfig) -> Vec<ChainPlan> {
    let b = Builder { family };
    let mark = config.masquerade_mark();
    let frontend = [Part::Daddr, Part::Proto, Part::Dport];
    let node_port = [Part::Proto, Part::Dport];
    let is_node_address = || b.test(Part::Daddr, Map::NodeAddresses);
    let is_pod = || match &config.local {
        LocalTraffic::ClusterCidr(_) | LocalTraffic::NodeCidr => b.test(Part::Saddr, Map::PodNetworks),
        LocalTraffic::BridgeInterface(name) => link(name, true, CmpOp::Eq),
        LocalTraffic::InterfaceNamePrefix(prefix) => link(prefix, false, CmpOp::Eq),
    };
    let is_outsider = || match &config.local {
        LocalTraffic::ClusterCidr(_) | LocalTraffic::NodeCidr => {
            b.keyed(&[Part::Saddr], |key| LookupExpr::new(Map::KeepsAddress.name(), key).invert().into())
        }
        LocalTraffic::BridgeInterface(name) => link(name, true, CmpOp::Neq),
        LocalTraffic::InterfaceNamePrefix(prefix) => link(prefix, false, CmpOp::Neq),
    };
    let goto = |to: &str| b.verdict(Verdict::GotoTo(chain_name(to)));
    let jump = |to: &str| b.verdict(Verdict::JumpTo(chain_name(to)));
    let to_mark = || jump(MASQUERADE_CHAIN);
    // To the chain of the class that the map gives; on where it gives none.
    let pick = |parts: &[Part], map: Map| b.all([b.set_priority(parts, map), goto(PICK_CHAIN)]);
    let remember = |parts: &[Part], map: Map| b.all([b.set_priority(parts, map), goto(REMEMBER_CHAIN)]);

    let mut chains = vec![
        b.regular(
            MASQUERADE_CHAIN,
            vec![(
                vec![
                    Expr::Meta { dreg: reg(0), key: MetaKey::Mark },
                    bitwise(!mark, mark),
                    Expr::MetaSet { key: MetaKey::Mark, sreg: reg(0) },
                ],
                "the node's address will replace the source",
            )],
        ),
        b.regular(
            REFUSE_CHAIN,
            vec![
                (
                    b.all([proto_is(6), vec![Expr::Reject { reject_type: nf::NFT_REJECT_TCP_RST, icmp_code: 0 }]]),
                    "a client shall know at once",
                ),
                (
                    vec![Expr::Reject {
                        reject_type: nf::NFT_REJECT_ICMP_UNREACH,
                        icmp_code: port_unreachable(family),
                    }],
                    "",
                ),
            ],
        ),
    ];
    let original = [Part::OriginalDaddr, Part::Proto, Part::OriginalDport];
    let mut picks = Vec::new();
    if config.counters {
        picks.push((b.tested(&frontend, Map::Connections), "counts"));
        picks.push((b.all([is_node_address(), b.tested(&node_port, Map::NodePortConnections)]), ""));
        let from_node_address = b.test(Part::OriginalDaddr, Map::NodeAddresses);
        chains.push(b.regular(
            COUNT_CHAIN,
            vec![
                (b.all([b.tested(&original, Map::Traffic), b.verdict(Verdict::Return)]), ""),
                (b.all([from_node_address, b.tested(&original[1..], Map::NodePortTraffic)]), ""),
            ],
        ));
    }
    picks.push((b.keyed_by_priority(Map::Picks), ""));
    chains.push(b.regular(PICK_CHAIN, picks));
    chains.push(b.regular(REMEMBER_CHAIN, vec![(b.keyed_by_priority(Map::Remembers), "")]));
    for (name, parts, outside) in [
        (EXTERNAL_LOCAL_CHAIN, &frontend[..], Map::Outside),
        (NODE_PORT_EXTERNAL_LOCAL_CHAIN, &node_port, Map::NodePortOutside),
    ] {
        let rules = vec![
            (b.all([is_pod(), b.verdict(Verdict::Return)]), "pods are served by any backend"),
            (b.all([from_this_node(), goto(MASQUERADE_CHAIN)]), "so is the node itself, under its own address"),
            (pick(parts, outside), "others by this node's own, with their address kept"),
            (b.verdict(Verdict::Drop), "it has none: another node should be asked"),
        ];
        chains.push(b.regular(name, rules));
    }
    chains.push(b.regular(
        "node-ports",
        vec![
            (b.all([b.tested(&node_port, Map::NodePortMasqueraded), to_mark()]), "the backend may be another node's"),
            (b.all([b.tested(&node_port, Map::NodePortLocalOnly), jump(NODE_PORT_EXTERNAL_LOCAL_CHAIN)]), ""),
            (pick(&node_port, Map::NodePorts), ""),
        ],
    ));

    let not_in = |set: Map| {
        b.keyed(&[Part::Daddr, Part::Proto, Part::Dport, Part::Saddr], |key| {
            LookupExpr::new(set.name(), key).invert().into()
        })
    };
    let mut dispatch = vec![
        (
            b.all([
                is_echo_request(family),
                b.test(Part::Daddr, Map::ClusterIps),
                b.dnat_address(Part::Proto, Map::Echo),
            ]),
            "the node answers pings for Services",
        ),
        (
            b.all([
                b.tested(&frontend, Map::Restricted),
                not_in(Map::Admitted),
                not_in(Map::AdmittedNetworks),
                b.verdict(Verdict::Drop),
            ]),
            "loadBalancerSourceRanges",
        ),
    ];
    let to_cluster_ip = b.test(Part::Daddr, Map::ClusterIps);
    dispatch.push((
        match config.masquerade_all {
            true => b.all([to_cluster_ip, to_mark()]),
            false => b.all([to_cluster_ip, is_outsider(), to_mark()]),
        },
        "the answer must come back through this node",
    ));
    dispatch.push((b.all([b.tested(&frontend, Map::Masqueraded), to_mark()]), "the backend may be another node's"));
    dispatch.push((b.all([b.tested(&frontend, Map::LocalOnly), jump(EXTERNAL_LOCAL_CHAIN)]), ""));
    dispatch.push((pick(&frontend, Map::Services), ""));
    dispatch.push((b.all([is_node_address(), jump("node-ports")]), ""));
    chains.push(b.regular("dispatch", dispatch));

    chains.push(b.regular(
        "remember",
        vec![
            (remember(&original, Map::Sticky), "session affinity"),
            (
                b.all([b.test(Part::OriginalDaddr, Map::NodeAddresses), remember(&original[1..], Map::NodePortSticky)]),
                "",
            ),
        ],
    ));
    chains.push(b.regular(
        "after-nat",
        vec![
            (b.all([ct_bit(CtKey::State, CT_NEW, false), b.verdict(Verdict::Return)]), ""),
            (b.all([ct_bit(CtKey::Status, CT_DNAT, true), goto("remember")]), "it found a backend"),
            (b.all([b.tested(&frontend, Map::Refused), goto(REFUSE_CHAIN)]), "no backend anywhere"),
            (b.all([b.tested(&frontend, Map::Dropped), b.verdict(Verdict::Drop)]), "none that this node may use"),
            (b.all([is_node_address(), b.tested(&node_port, Map::NodePortRefused), goto(REFUSE_CHAIN)]), ""),
            (b.all([is_node_address(), b.tested(&node_port, Map::NodePortDropped), b.verdict(Verdict::Drop)]), ""),
            (b.all([b.test(Part::Daddr, Map::ClusterIps), goto(REFUSE_CHAIN)]), "no such port"),
            (b.all([b.test(Part::Daddr, Map::ServiceCidrs), b.verdict(Verdict::Drop)]), "no such Service"),
        ],
    ));

    let only_jump = |to: &str| vec![(jump(to), "")];
    let counted = |before: Vec<Expr>| {
        let count = b.all([before, ct_bit(CtKey::Status, CT_DNAT, true), jump(COUNT_CHAIN)]);
        let count = config.counters.then_some((count, "packets of Services, both ways"));
        count.into_iter().chain(only_jump("after-nat")).collect::<Vec<_>>()
    };
    let after_dstnat = Priority::Custom(Priority::DstNat.to_i32() + 1);
    for (name, base, rules) in [
        ("nat-prerouting", BaseChain::nat(NatHook::Prerouting, Priority::DstNat), only_jump("dispatch")),
        ("nat-output", BaseChain::nat(NatHook::Output, Priority::DstNat), only_jump("dispatch")),
        (
            "filter-prerouting",
            BaseChain::filter(FilterHook::Prerouting, after_dstnat),
            // What comes in by loopback was counted as it was made.
            counted(link("lo", true, CmpOp::Neq)),
        ),
        ("filter-output", BaseChain::filter(FilterHook::Output, after_dstnat), counted(Vec::new())),
        (
            "source",
            BaseChain::nat(NatHook::Postrouting, Priority::SrcNat),
            vec![
                (
                    vec![
                        Expr::Meta { dreg: reg(0), key: MetaKey::Mark },
                        bitwise(mark, 0),
                        Expr::Cmp { sreg: reg(0), op: CmpOp::Neq, data: 0u32.to_ne_bytes().into() },
                        Expr::Meta { dreg: reg(0), key: MetaKey::Mark },
                        bitwise(!mark, 0),
                        Expr::MetaSet { key: MetaKey::Mark, sreg: reg(0) },
                        masquerade(),
                    ],
                    "marked on the way in",
                ),
                (
                    b.all([
                        ct_bit(CtKey::Status, CT_DNAT, true),
                        b.tested(&[Part::Saddr, Part::Daddr], Map::Hairpin),
                        vec![masquerade()],
                    ]),
                    "a pod that reached itself",
                ),
            ],
        ),
    ] {
        chains.push(ChainPlan { base: Some(base), ..b.regular(name, rules) });
    }
    chains
}

/// The map that leads to chains of this kind. There are two because a chain that rewrites destinations may not be
/// reachable from a filter hook.
pub(super) fn classes(kind: ChainKind) -> Map {
    match kind {
        ChainKind::Pick(_) => Map::Picks,
        ChainKind::Remember(_) => Map::Remembers,
    }
}

/// A chain that exists as long as an entry leads to it. The priority has served its purpose there.
pub(super) fn dynamic_chain(family: Family, kind: ChainKind) -> ChainPlan {
    let b = Builder { family };
    let rules = match kind {
        ChainKind::Pick(pick) => pick_rules(b, pick),
        ChainKind::Remember(Remember { node_port, seconds }) => {
            let original = [Part::OriginalDaddr, Part::Proto, Part::OriginalDport];
            let number = match node_port {
                true => b.set_priority(&original[1..], Map::NodePortSessions),
                false => b.set_priority(&original, Map::Sessions),
            };
            let (key, data) = b.load(&[Part::Saddr, Part::Priority], 0);
            let (value, _) = b.load(&[Part::Daddr, Part::Dport], data);
            let update = DynsetExpr::new(DynsetOp::Update, Map::Affinity.name(), reg(0))
                .sreg_data(reg(data))
                .timeout(std::time::Duration::from_secs(seconds.into()));
            vec![(b.all([number, key, value, vec![update.into()]]), ""), (clear_priority(), "")]
        }
    };
    b.regular(&kind.to_string(), rules)
}

fn pick_rules(b: Builder, pick: Pick) -> Vec<(Vec<Expr>, &'static str)> {
    let frontend = [Part::Daddr, Part::Proto, Part::Dport];
    let mut rules = Vec::new();
    if pick.sticky {
        rules.push(match pick.node_port {
            true => (b.set_priority(&frontend[1..], Map::NodePortSessions), ""),
            false => (b.set_priority(&frontend, Map::Sessions), ""),
        });
        rules.push((b.dnat(&[Part::Saddr, Part::Priority], Map::Affinity), "as last time"));
    }
    rules.push((clear_priority(), ""));
    let base = if pick.reach == Reach::Outside { OUTSIDE_BASE } else { 0 };
    let index = Part::Random { of: pick.count, base };
    rules.push((
        match pick.node_port {
            true => b.dnat(&[Part::Proto, Part::Dport, index], Map::NodePortSlots),
            false => b.dnat(&[Part::Daddr, Part::Proto, Part::Dport, index], Map::Slots(pick.part)),
        },
        "",
    ));
    rules
}
