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
//! | `…pick-<n>` | | rewrites the destination: a random one of n slots, or the one remembered |
//! | `after-nat` | filter prerouting and output, -99 | what still has a Service's address found no backend; reject is not for nat chains |
//! | `remember-<s>` | | writes down who was sent where, which is known only now |
//! | `source` | nat postrouting, 100 | where sources are rewritten |
//!
//! Invariant: stock `nft list ruleset` (1.0.6 and later) prints the table. For that, the parts of every looked-up key
//! come from expressions `nft` has a name for, and a slot's index is typed as a mark, `nft`'s name for a 32-bit number.
//!
//! Deliberately not here: the elements.

use nlink::netlink::nftables as nf;
use nlink::netlink::nftables::{
    BaseChain, CmpOp, CtKey, DynsetExpr, DynsetOp, Expr, FilterHook, LookupExpr, MetaKey, NatHook, Priority, Rule, Set,
    SetDataType, SetKeyType, Verdict,
};
use portolan_model::forwarding::Family;

use super::entries::{ChainKind, Pick, Reach};
use super::expressions::{
    Builder, Part, bitwise, chain_name, ct_bit, from_this_node, masquerade, port_unreachable, proto_is, reg,
};
use crate::config::ProxyConfig;

pub(super) const TABLE: &str = "portolan";

/// The index of the first slot of the outside set; those of the inside set start at 0. More than `MAX_BACKENDS`.
pub(super) const OUTSIDE_BASE: u32 = 1 << 20;

/// Clients remembered for session affinity in one family; one more is forwarded without being remembered.
const AFFINITY_SIZE: u32 = 1 << 20;

const CT_NEW: u32 = 1 << 3;
const CT_DNAT: u32 = 1 << 5;

/// The names that elements' verdicts lead to.
pub(super) const MASQUERADE_CHAIN: &str = "mark-for-masquerade";
pub(super) const EXTERNAL_LOCAL_CHAIN: &str = "external-local";
pub(super) const NODE_PORT_EXTERNAL_LOCAL_CHAIN: &str = "node-port-external-local";
pub(super) const REFUSE_CHAIN: &str = "refuse";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Map {
    Services,
    NodePorts,
    Slots,
    NodePortSlots,
    External,
    NodePortExternal,
    Outside,
    NodePortOutside,
    Refused,
    NodePortRefused,
    Sticky,
    NodePortSticky,
    Restricted,
    Admitted,
    ClusterIps,
    NodeAddresses,
    ServiceCidrs,
    PodNetworks,
    Hairpin,
    Affinity,
}

impl Map {
    pub(super) const ALL: [Self; 20] = [
        Self::Services,
        Self::NodePorts,
        Self::Slots,
        Self::NodePortSlots,
        Self::External,
        Self::NodePortExternal,
        Self::Outside,
        Self::NodePortOutside,
        Self::Refused,
        Self::NodePortRefused,
        Self::Sticky,
        Self::NodePortSticky,
        Self::Restricted,
        Self::Admitted,
        Self::ClusterIps,
        Self::NodeAddresses,
        Self::ServiceCidrs,
        Self::PodNetworks,
        Self::Hairpin,
        Self::Affinity,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::NodePorts => "node-port-services",
            Self::Slots => "slots",
            Self::NodePortSlots => "node-port-slots",
            Self::External => "external",
            Self::NodePortExternal => "node-port-external",
            Self::Outside => "outside",
            Self::NodePortOutside => "node-port-outside",
            Self::Refused => "refused",
            Self::NodePortRefused => "node-port-refused",
            Self::Sticky => "sticky",
            Self::NodePortSticky => "node-port-sticky",
            Self::Restricted => "restricted",
            Self::Admitted => "admitted",
            Self::ClusterIps => "cluster-ips",
            Self::NodeAddresses => "node-addresses",
            Self::ServiceCidrs => "service-cidrs",
            Self::PodNetworks => "pod-networks",
            Self::Hairpin => "hairpin",
            Self::Affinity => "affinity",
        }
    }

    pub(super) fn key_type(self, family: Family) -> SetKeyType {
        use SetKeyType::{InetProto, InetService, Mark};
        let address = || address_type(family);
        SetKeyType::Concat(match self {
            Self::Services | Self::External | Self::Outside | Self::Refused | Self::Sticky | Self::Restricted => {
                vec![address(), InetProto, InetService]
            }
            Self::NodePorts
            | Self::NodePortExternal
            | Self::NodePortOutside
            | Self::NodePortRefused
            | Self::NodePortSticky => vec![InetProto, InetService],
            Self::Slots => vec![address(), InetProto, InetService, Mark],
            Self::NodePortSlots => vec![InetProto, InetService, Mark],
            Self::Admitted => vec![address(), InetProto, InetService, address()],
            Self::ClusterIps | Self::NodeAddresses | Self::ServiceCidrs | Self::PodNetworks => return address(),
            Self::Hairpin => vec![address(), address()],
            Self::Affinity => vec![address(), address(), InetProto, InetService],
        })
    }

    pub(super) fn set(self, family: Family) -> Set {
        let set = Set::new(TABLE, self.name()).family(nf_family(family)).key_type(self.key_type(family));
        let backend = || SetDataType::Value(SetKeyType::Concat(vec![address_type(family), SetKeyType::InetService]));
        match self {
            Self::Slots | Self::NodePortSlots => set.map(backend()),
            Self::Affinity => set.map(backend()).per_element_timeouts().dynamic().size(AFFINITY_SIZE),
            Self::Restricted | Self::ClusterIps | Self::NodeAddresses | Self::Hairpin => set,
            Self::Admitted | Self::ServiceCidrs | Self::PodNetworks => set.interval(),
            _ => set.vmap(),
        }
    }
}

pub(super) fn nf_family(family: Family) -> nf::Family {
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
    let frontend = |map: Map| b.lookup(&[Part::Daddr, Part::Proto, Part::Dport], map);
    let node_port = |map: Map| b.lookup(&[Part::Proto, Part::Dport], map);
    let is_node_address = || b.test(Part::Daddr, Map::NodeAddresses);
    let is_pod = || b.test(Part::Saddr, Map::PodNetworks);
    let to_mark = || b.verdict(Verdict::JumpTo(chain_name(MASQUERADE_CHAIN)));
    let has_pods = config.pod_networks.iter().any(|net| Family::of(net.addr()) == family);

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
    for (name, outside) in [
        (EXTERNAL_LOCAL_CHAIN, frontend(Map::Outside)),
        (NODE_PORT_EXTERNAL_LOCAL_CHAIN, node_port(Map::NodePortOutside)),
    ] {
        let mut rules = Vec::new();
        if has_pods {
            rules.push((b.all([is_pod(), b.verdict(Verdict::Return)]), "pods are served by any backend"));
        }
        let own = b.all([from_this_node(), b.verdict(Verdict::GotoTo(chain_name(MASQUERADE_CHAIN)))]);
        rules.push((own, "and so is the node itself"));
        rules.push((outside, "others by this node's own, with their address kept"));
        chains.push(b.regular(name, rules));
    }
    chains.push(b.regular("node-ports", vec![(node_port(Map::NodePortExternal), ""), (node_port(Map::NodePorts), "")]));

    let not_admitted = b.keyed(&[Part::Daddr, Part::Proto, Part::Dport, Part::Saddr], |key| {
        Expr::from(LookupExpr::new(Map::Admitted.name(), key).invert())
    });
    let mut dispatch = vec![(
        b.all([
            b.tested(&[Part::Daddr, Part::Proto, Part::Dport], Map::Restricted),
            not_admitted,
            b.verdict(Verdict::Drop),
        ]),
        "loadBalancerSourceRanges",
    )];
    let off_cluster = "the answer must come back through this node";
    if config.masquerade_all {
        dispatch.push((b.all([b.test(Part::Daddr, Map::ClusterIps), to_mark()]), off_cluster));
    } else if has_pods {
        let not_pod = b.keyed(&[Part::Saddr], |key| LookupExpr::new(Map::PodNetworks.name(), key).invert().into());
        dispatch.push((b.all([b.test(Part::Daddr, Map::ClusterIps), not_pod, to_mark()]), off_cluster));
    }
    dispatch.push((frontend(Map::External), ""));
    dispatch.push((frontend(Map::Services), ""));
    dispatch.push((b.all([is_node_address(), b.verdict(Verdict::JumpTo(chain_name("node-ports")))]), ""));
    chains.push(b.regular("dispatch", dispatch));

    let original = [Part::OriginalDaddr, Part::Proto, Part::OriginalDport];
    chains.push(b.regular(
        "remember",
        vec![
            (b.lookup(&original, Map::Sticky), "session affinity"),
            (
                b.all([b.test(Part::OriginalDaddr, Map::NodeAddresses), b.lookup(&original[1..], Map::NodePortSticky)]),
                "",
            ),
        ],
    ));
    chains.push(b.regular(
        "after-nat",
        vec![
            (b.all([ct_bit(CtKey::State, CT_NEW, false), b.verdict(Verdict::Return)]), ""),
            (
                b.all([ct_bit(CtKey::Status, CT_DNAT, true), b.verdict(Verdict::GotoTo(chain_name("remember")))]),
                "it found a backend",
            ),
            (frontend(Map::Refused), "no backend"),
            (b.all([is_node_address(), node_port(Map::NodePortRefused)]), ""),
            (
                b.all([b.test(Part::Daddr, Map::ClusterIps), b.verdict(Verdict::GotoTo(chain_name(REFUSE_CHAIN)))]),
                "no such port",
            ),
            (b.all([b.test(Part::Daddr, Map::ServiceCidrs), b.verdict(Verdict::Drop)]), "no such Service"),
        ],
    ));

    let jump = |to: &str| vec![(b.verdict(Verdict::JumpTo(chain_name(to))), "")];
    let after_dstnat = Priority::Custom(Priority::DstNat.to_i32() + 1);
    for (name, base, rules) in [
        ("nat-prerouting", BaseChain::nat(NatHook::Prerouting, Priority::DstNat), jump("dispatch")),
        ("nat-output", BaseChain::nat(NatHook::Output, Priority::DstNat), jump("dispatch")),
        ("filter-prerouting", BaseChain::filter(FilterHook::Prerouting, after_dstnat), jump("after-nat")),
        ("filter-output", BaseChain::filter(FilterHook::Output, after_dstnat), jump("after-nat")),
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

/// A chain that exists as long as an element leads to it.
pub(super) fn dynamic_chain(family: Family, kind: ChainKind) -> ChainPlan {
    let b = Builder { family };
    let rules = match kind {
        ChainKind::Pick(pick) => pick_rules(b, pick),
        ChainKind::Remember(seconds) => {
            let key = [Part::Saddr, Part::OriginalDaddr, Part::Proto, Part::OriginalDport];
            let (mut rule, data) = b.load(&key, 0);
            let (value, _) = b.load(&[Part::Daddr, Part::Dport], data);
            rule.extend(value);
            let update = DynsetExpr::new(DynsetOp::Update, Map::Affinity.name(), reg(0))
                .sreg_data(reg(data))
                .timeout(std::time::Duration::from_secs(seconds.into()));
            rule.push(update.into());
            vec![(rule, "")]
        }
    };
    b.regular(&kind.to_string(), rules)
}

fn pick_rules(b: Builder, pick: Pick) -> Vec<(Vec<Expr>, &'static str)> {
    let mut rules = Vec::new();
    if pick.sticky {
        rules.push((b.dnat(&[Part::Saddr, Part::Daddr, Part::Proto, Part::Dport], Map::Affinity), "as last time"));
    }
    let base = if pick.reach == Reach::Outside { OUTSIDE_BASE } else { 0 };
    let index = Part::Random { of: pick.count, base };
    rules.push((
        match pick.node_port {
            true => b.dnat(&[Part::Proto, Part::Dport, index], Map::NodePortSlots),
            false => b.dnat(&[Part::Daddr, Part::Proto, Part::Dport, index], Map::Slots),
        },
        "",
    ));
    rules
}
