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
    BaseChain, ChainName, CmpOp, CtDirection, CtKey, DynsetExpr, DynsetOp, Expr, FibFlags, FibResult, FilterHook,
    LookupExpr, MetaKey, NatHook, NumgenKind, PayloadBase, Priority, RawExpr, Register, Rule, Set, SetDataType,
    SetKeyType, Verdict,
};
use portolan_model::forwarding::Family;

use super::entries::{ChainKind, Pick, Reach};
use crate::config::ProxyConfig;

pub(super) const TABLE: &str = "portolan";

/// The index of the first slot of the outside set; those of the inside set start at 0. More than `MAX_BACKENDS`.
pub(super) const OUTSIDE_BASE: u32 = 1 << 20;

/// Clients remembered for session affinity in one family; one more is forwarded without being remembered.
const AFFINITY_SIZE: u32 = 1 << 20;

const CT_NEW: u32 = 1 << 3;
const CT_DNAT: u32 = 1 << 5;
const RTN_LOCAL: u32 = 2;
const NAT_FULLY_RANDOM: u32 = 1 << 4;

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

/// What a key is made of.
#[derive(Clone, Copy)]
enum Part {
    Saddr,
    Daddr,
    Proto,
    Dport,
    /// Where the packet was going before it was rewritten.
    OriginalDaddr,
    OriginalDport,
    Random {
        of: u32,
        base: u32,
    },
}

/// Writes expressions for one family.
#[derive(Clone, Copy)]
struct Builder {
    family: Family,
}

impl Builder {
    fn regular(self, name: &str, rules: Vec<(Vec<Expr>, &'static str)>) -> ChainPlan {
        let rule = |(expressions, comment): (Vec<Expr>, &str)| {
            let rule = Rule::new(TABLE, name).family(nf_family(self.family)).expressions(expressions);
            if comment.is_empty() { rule } else { rule.comment(comment) }
        };
        ChainPlan { name: name.to_owned(), base: None, rules: rules.into_iter().map(rule).collect() }
    }

    fn all<const N: usize>(self, parts: [Vec<Expr>; N]) -> Vec<Expr> {
        parts.into_iter().flatten().collect()
    }

    fn verdict(self, verdict: Verdict) -> Vec<Expr> {
        vec![Expr::Verdict(verdict)]
    }

    fn address_words(self) -> u8 {
        match self.family {
            Family::V4 => 1,
            Family::V6 => 4,
        }
    }

    /// Loads the parts one after the other from the register `at`; gives the register after them.
    fn load(self, parts: &[Part], mut at: u8) -> (Vec<Expr>, u8) {
        let mut loads = Vec::new();
        for part in parts {
            let dreg = reg(at);
            let (source, destination, length) = match self.family {
                Family::V4 => (12, 16, 4),
                Family::V6 => (8, 24, 16),
            };
            let header = |offset| Expr::Payload { dreg, base: PayloadBase::Network, offset, len: length };
            let original = |key| Expr::CtDirectional { dreg, key, direction: CtDirection::Original };
            let (load, words) = match part {
                Part::Saddr => (header(source), self.address_words()),
                Part::Daddr => (header(destination), self.address_words()),
                Part::Proto => (Expr::Meta { dreg, key: MetaKey::L4Proto }, 1),
                Part::Dport => (Expr::Payload { dreg, base: PayloadBase::Transport, offset: 2, len: 2 }, 1),
                Part::OriginalDaddr => {
                    let key = if self.family == Family::V4 { CtKey::DstIp } else { CtKey::DstIp6 };
                    (original(key), self.address_words())
                }
                Part::OriginalDport => (original(CtKey::ProtoDst), 1),
                Part::Random { of, base } => {
                    (Expr::Numgen { dreg, kind: NumgenKind::Random, modulus: *of, offset: *base }, 1)
                }
            };
            loads.push(load);
            at += words;
        }
        (loads, at)
    }

    fn keyed(self, parts: &[Part], then: impl Fn(Register) -> Expr) -> Vec<Expr> {
        let (mut rule, _) = self.load(parts, 0);
        rule.push(then(reg(0)));
        rule
    }

    /// Goes where the map says; goes on where it says nothing.
    fn lookup(self, parts: &[Part], map: Map) -> Vec<Expr> {
        self.keyed(parts, |key| LookupExpr::new(map.name(), key).dreg(Register::Verdict).into())
    }

    fn tested(self, parts: &[Part], set: Map) -> Vec<Expr> {
        self.keyed(parts, |key| LookupExpr::new(set.name(), key).into())
    }

    fn test(self, part: Part, set: Map) -> Vec<Expr> {
        self.tested(&[part], set)
    }

    /// Rewrites the destination to what the map says; goes on where it says nothing.
    fn dnat(self, parts: &[Part], map: Map) -> Vec<Expr> {
        let (mut rule, next) = self.load(parts, 0);
        // The kernel loads an IPv6 address from four registers in a row, anywhere.
        let (address, port) = (reg(next), reg(next + self.address_words()));
        rule.push(LookupExpr::new(map.name(), reg(0)).dreg(address).into());
        let family = if self.family == Family::V4 { libc_af::INET } else { libc_af::INET6 };
        let attributes = [
            (nf::NFTA_NAT_TYPE, 1),
            (nf::NFTA_NAT_FAMILY, family),
            (nf::NFTA_NAT_REG_ADDR_MIN, address.wire()),
            (nf::NFTA_NAT_REG_PROTO_MIN, port.wire()),
        ];
        rule.push(raw("nat", &attributes));
        rule
    }
}

mod libc_af {
    /// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    pub(super) const INET: u32 = 2;
    pub(super) const INET6: u32 = 10;
}

fn reg(word: u8) -> Register {
    // The longest key with its value is an IPv6 affinity lookup: 10 and 5 words of the 16 there are.
    Register::word(word.into()).unwrap_or(Register::Verdict)
}

fn chain_name(name: &str) -> ChainName {
    ChainName::new(name).unwrap_or_else(|_| unreachable!("{name} is a chain name"))
}

fn proto_is(number: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { dreg: reg(0), key: MetaKey::L4Proto },
        Expr::Cmp { sreg: reg(0), op: CmpOp::Eq, data: vec![number] },
    ]
}

fn from_this_node() -> Vec<Expr> {
    vec![
        Expr::Fib { dreg: reg(0), result: FibResult::AddrType, flags: FibFlags::SADDR },
        Expr::Cmp { sreg: reg(0), op: CmpOp::Eq, data: RTN_LOCAL.to_ne_bytes().into() },
    ]
}

/// Goes on if one of the bits is set, or if none is.
fn ct_bit(key: CtKey, bits: u32, set: bool) -> Vec<Expr> {
    let op = if set { CmpOp::Neq } else { CmpOp::Eq };
    vec![
        Expr::Ct { dreg: reg(0), key },
        bitwise(bits, 0),
        Expr::Cmp { sreg: reg(0), op, data: 0u32.to_ne_bytes().into() },
    ]
}

fn bitwise(mask: u32, xor: u32) -> Expr {
    let (mask, xor) = (mask.to_ne_bytes().into(), xor.to_ne_bytes().into());
    Expr::Bitwise { sreg: reg(0), dreg: reg(0), len: 4, mask, xor }
}

/// A new source port at random: clients behind one address would else contend for the same port on the way out.
fn masquerade() -> Expr {
    const NFTA_MASQ_FLAGS: u16 = 1;
    raw("masq", &[(NFTA_MASQ_FLAGS, NAT_FULLY_RANDOM)])
}

/// An expression of 32-bit attributes, each in network order behind a header in the host's.
fn raw(name: &str, attributes: &[(u16, u32)]) -> Expr {
    let encode = |(kind, value): &(u16, u32)| {
        [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes()[..], &value.to_be_bytes()[..]].concat()
    };
    Expr::Raw(RawExpr::new(name, attributes.iter().flat_map(encode).collect()))
}

fn port_unreachable(family: Family) -> u8 {
    match family {
        Family::V4 => 3,
        Family::V6 => 4,
    }
}
