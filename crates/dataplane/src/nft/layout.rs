//! The table's chains, and the rules in them that read the maps and sets.
//!
//! The rules are the same whatever the number of Services; all that varies is in elements. The way of a connection's
//! first packet, with the chains in the order it meets them:
//!
//! | chain | hook | why there |
//! |---|---|---|
//! | `dispatch` | nat prerouting and output, -100 | where destinations are rewritten; only first packets come here |
//! | `node-ports` | | the addresses of the node are looked up once, and not once a Service |
//! | `admission` | | lets only those on who may come: one look a length of network, not a network |
//! | `external-local` | | sorts insiders from outsiders under `externalTrafficPolicy: Local` |
//! | `pick` | | goes to the chain of the class that a map gave |
//! | `…pick-<n>-part-<p>` | | rewrites the destination: to whom it was last, if still there, or one of n at random |
//! | `after-nat` | filter prerouting and output, -99 | rejects what found no backend, which no nat chain may |
//! | `remember` | | likewise |
//! | `…remember-<s>` | | writes down who was sent where, which is known only now |
//! | `source` | nat postrouting, 100 | where sources are rewritten |
//! | `count` | filter prerouting and output, -99 | where every packet passes once, its connection known |
//!
//! A verdict in a map's element has the kernel walk all elements of all such maps at every commit that adds one. So the
//! only maps with verdicts are `picks` and `remembers`, which have an element for each distinct number of backends and
//! timeout, and not for each Service. The others give a class, a number, which waits for its lookup there in the
//! packet's priority: the mark belongs to too many others, and routing sets the priority of forwarded packets afresh
//! after this. What it was before is lost for the first packet of a connection to a Service, no other. With session
//! affinity the priority next holds the number that the client is remembered under, then that of the backend it was
//! sent to last.
//!
//! A network of sources is one element of a hash table, its first address with the bit after the prefix set; so there
//! is one rule for each length that networks have here, every fourth, and those of other lengths are made of these. A
//! set of ranges over a concatenation would be copied by the kernel at each change.
//!
//! The slots are in parts, maps of the same shape: the kernel lists a map in pieces, and walks it from its beginning
//! for each, so that reading one large map back costs its square.
//!
//! Invariant: stock `nft list ruleset` (1.0.6 and later) prints the table. For that, the parts of every looked-up key
//! come from expressions `nft` has a name for, a slot's index is typed as a mark, `nft`'s name for a 32-bit number, and
//! no rule has a map inside a map.
//!
//! Deliberately not here: the maps' keys and values, and the elements.
//!
//! Source: kernel `nf_tables_api.c` (`nft_table_validate`), `ip_forward.c`.

use std::time::Duration;

use nlink::netlink::nftables as nf;
use nlink::netlink::nftables::{
    BaseChain, CmpOp, CtKey, Expr, FilterHook, LookupExpr, MetaKey, NatHook, Priority, Rule, Verdict,
};
use portolan_model::forwarding::Family;

use super::entries::{ChainKind, Pick, Reach, Remember};
use super::expressions::{
    Builder, Part, bitwise, chain_name, clear_priority, ct_bit, from_this_node, is_echo_request, link, masquerade,
    port_unreachable, proto_is, reg,
};
use super::maps::{Map, OUTSIDE_BASE};
use super::networks::lengths;
use super::seats;
use crate::config::{LocalTraffic, ProxyConfig};

const CT_NEW: u32 = 1 << 3;
const CT_DNAT: u32 = 1 << 5;

const MASQUERADE_CHAIN: &str = "mark-for-masquerade";
const EXTERNAL_LOCAL_CHAIN: &str = "external-local";
const NODE_PORT_EXTERNAL_LOCAL_CHAIN: &str = "node-port-external-local";
const PICK_CHAIN: &str = "pick";
const REMEMBER_CHAIN: &str = "remember-for";
const REFUSE_CHAIN: &str = "refuse";
const COUNT_CHAIN: &str = "count";

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

    let admit = |source, set| {
        b.all([b.tested(&[Part::Daddr, Part::Proto, Part::Dport, source], set), b.verdict(Verdict::Return)])
    };
    let mut admission = vec![(admit(Part::Saddr, Map::Admitted), "")];
    admission.extend(lengths(family).map(|bits| (admit(Part::SourceNetwork(bits), Map::AdmittedNetworks), "")));
    admission.push((b.verdict(Verdict::Drop), "none of loadBalancerSourceRanges"));
    chains.push(b.regular("admission", admission));

    let mut dispatch = vec![
        (
            b.all([
                is_echo_request(family),
                b.test(Part::Daddr, Map::ClusterIps),
                b.dnat_address(Part::Proto, Map::Echo),
            ]),
            "the node answers pings for Services",
        ),
        (b.all([b.tested(&frontend, Map::Restricted), jump("admission")]), "loadBalancerSourceRanges"),
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
            let timeout = Duration::from_secs(seconds.into());
            vec![(b.all([number, b.remember(timeout)]), ""), (clear_priority(), "")]
        }
    };
    b.regular(&kind.to_string(), rules)
}

fn pick_rules(b: Builder, pick: Pick) -> Vec<(Vec<Expr>, &'static str)> {
    let frontend = [Part::Daddr, Part::Proto, Part::Dport];
    let slot = |index| match pick.node_port {
        true => b.dnat(&[Part::Proto, Part::Dport, index], Map::NodePortSlots),
        false => b.dnat(&[Part::Daddr, Part::Proto, Part::Dport, index], Map::Slots(pick.part)),
    };
    let is_outside = pick.reach == Reach::Outside;
    let mut rules = Vec::new();
    if pick.sticky {
        let number = || match pick.node_port {
            true => b.set_priority(&frontend[1..], Map::NodePortSessions),
            false => b.set_priority(&frontend, Map::Sessions),
        };
        rules.push((number(), ""));
        rules.push((b.set_priority(&[Part::Saddr, Part::Priority], Map::Affinity), ""));
        if is_outside {
            rules.push((b.raise_priority(seats::OUTSIDE), ""));
        }
        rules.push((slot(Part::Priority), "as last time"));
        rules.push((b.all([number(), b.forget()]), "it is given another, or its first"));
    }
    rules.push((clear_priority(), ""));
    rules.push((slot(Part::Random { of: pick.count, base: if is_outside { OUTSIDE_BASE } else { 0 } }), ""));
    rules
}
