//! Rules, spelled in the kernel's expressions for one address family.
//!
//! Invariant: a key's parts are loaded into registers one after the other, as the map's key lays them out, and nothing
//! here overlaps: the longest key with its value takes 12 of the 16 words.
//!
//! Source: kernel `nf_tables.h`, `nft_payload.c`, `nft_nat.c`.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nlink::netlink::nftables as nf;
use nlink::netlink::nftables::{
    ChainName, CmpOp, CtDirection, CtKey, DynsetExpr, DynsetOp, Expr, FibFlags, FibResult, LookupExpr, MetaKey,
    NumgenKind, PayloadBase, RawExpr, Register, Rule, Verdict,
};
use portolan_model::forwarding::Family;

use super::layout::ChainPlan;
use super::maps::{Map, TABLE, nf_family};
use super::networks::mark;
use super::seats::compute_seat;

const RTN_LOCAL: u32 = 2;
const NAT_FULLY_RANDOM: u32 = 1 << 4;

/// What a key is made of.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Saddr,
    /// The source's network of so many bits, as [`mark`] has it.
    SourceNetwork(u8),
    Daddr,
    Proto,
    Dport,
    /// What a map gave before.
    Priority,
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
pub(super) struct Builder {
    pub family: Family,
}

impl Builder {
    pub(super) fn regular(self, name: &str, rules: Vec<(Vec<Expr>, &'static str)>) -> ChainPlan {
        let rule = |(expressions, comment): (Vec<Expr>, &str)| {
            let rule = Rule::new(TABLE, name).family(nf_family(self.family)).expressions(expressions);
            if comment.is_empty() { rule } else { rule.comment(comment) }
        };
        ChainPlan { name: name.to_owned(), base: None, rules: rules.into_iter().map(rule).collect() }
    }

    pub(super) fn all<const N: usize>(self, parts: [Vec<Expr>; N]) -> Vec<Expr> {
        parts.into_iter().flatten().collect()
    }

    pub(super) fn verdict(self, verdict: Verdict) -> Vec<Expr> {
        vec![Expr::Verdict(verdict)]
    }

    fn address_words(self) -> u8 {
        match self.family {
            Family::V4 => 1,
            Family::V6 => 4,
        }
    }

    /// Loads the parts one after the other from the register `at`; gives the register after them.
    pub(super) fn load(self, parts: &[Part], mut at: u8) -> (Vec<Expr>, u8) {
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
                Part::Saddr | Part::SourceNetwork(_) => (header(source), self.address_words()),
                Part::Daddr => (header(destination), self.address_words()),
                Part::Proto => (Expr::Meta { dreg, key: MetaKey::L4Proto }, 1),
                Part::Dport => (Expr::Payload { dreg, base: PayloadBase::Transport, offset: 2, len: 2 }, 1),
                Part::Priority => (Expr::Meta { dreg, key: MetaKey::Priority }, 1),
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
            if let Part::SourceNetwork(bits) = part {
                loads.push(self.network(dreg, *bits));
            }
            at += words;
        }
        (loads, at)
    }

    /// Makes of an address in the register what stands for its network of so many bits.
    fn network(self, at: Register, bits: u8) -> Expr {
        let all = IpNet::new_assert(self.family.unspecified(), bits);
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let len = u32::from(all.max_prefix_len() / 8);
        Expr::Bitwise { sreg: at, dreg: at, len, mask: octets(all.netmask()), xor: octets(mark(&all)) }
    }

    pub(super) fn keyed(self, parts: &[Part], then: impl Fn(Register) -> Expr) -> Vec<Expr> {
        let (mut rule, _) = self.load(parts, 0);
        rule.push(then(reg(0)));
        rule
    }

    /// Sets the packet's priority to what the map says; goes on with the next rule where it says nothing.
    pub(super) fn set_priority(self, parts: &[Part], map: Map) -> Vec<Expr> {
        let (mut rule, next) = self.load(parts, 0);
        rule.push(LookupExpr::new(map.name(), reg(0)).dreg(reg(next)).into());
        rule.push(Expr::MetaSet { key: MetaKey::Priority, sreg: reg(next) });
        rule
    }

    /// Sets bits of the packet's priority.
    pub(super) fn raise_priority(self, bits: u32) -> Vec<Expr> {
        let (mut rule, _) = self.load(&[Part::Priority], 0);
        rule.extend([bitwise(!bits, bits), Expr::MetaSet { key: MetaKey::Priority, sreg: reg(0) }]);
        rule
    }

    /// Writes down for so long where the client was sent, under the number in the packet's priority.
    pub(super) fn remember(self, timeout: Duration) -> Vec<Expr> {
        let (mut rule, value) = self.load(&[Part::Saddr, Part::Priority], 0);
        let (backend, end) = self.load(&[Part::Daddr, Part::Dport], value);
        rule.extend(backend);
        rule.push(compute_seat(reg(value), 4 * u32::from(end - value)));
        let update = DynsetExpr::new(DynsetOp::Update, Map::Affinity.name(), reg(0));
        rule.push(update.sreg_data(reg(value)).timeout(timeout).into());
        rule
    }

    /// Forgets where the client was sent under the number in the packet's priority: an update prolongs what is there
    /// and changes nothing of it.
    pub(super) fn forget(self) -> Vec<Expr> {
        let (mut rule, value) = self.load(&[Part::Saddr, Part::Priority], 0);
        // The kernel asks for a value where it deletes from a map, too, and makes nothing of it.
        rule.push(Expr::Meta { dreg: reg(value), key: MetaKey::Mark });
        rule.push(DynsetExpr::new(DynsetOp::Delete, Map::Affinity.name(), reg(0)).sreg_data(reg(value)).into());
        rule
    }

    /// Goes where the map says for the packet's priority; goes on where it says nothing.
    pub(super) fn keyed_by_priority(self, map: Map) -> Vec<Expr> {
        let load = Expr::Meta { dreg: reg(0), key: MetaKey::Priority };
        vec![load, LookupExpr::new(map.name(), reg(0)).dreg(Register::Verdict).into()]
    }

    pub(super) fn tested(self, parts: &[Part], set: Map) -> Vec<Expr> {
        self.keyed(parts, |key| LookupExpr::new(set.name(), key).into())
    }

    pub(super) fn test(self, part: Part, set: Map) -> Vec<Expr> {
        self.tested(&[part], set)
    }

    /// Rewrites the destination to what the map says; goes on where it says nothing.
    pub(super) fn dnat(self, parts: &[Part], map: Map) -> Vec<Expr> {
        let (mut rule, next) = self.load(parts, 0);
        // The kernel loads an IPv6 address from four registers in a row, anywhere.
        let (address, port) = (reg(next), reg(next + self.address_words()));
        rule.push(LookupExpr::new(map.name(), reg(0)).dreg(address).into());
        rule.push(self.nat_to(address, Some(port)));
        rule
    }

    /// Rewrites the destination's address, and not its port, to what the map says; goes on where it says nothing.
    pub(super) fn dnat_address(self, part: Part, map: Map) -> Vec<Expr> {
        let (mut rule, next) = self.load(&[part], 0);
        rule.push(LookupExpr::new(map.name(), reg(0)).dreg(reg(next)).into());
        rule.push(self.nat_to(reg(next), None));
        rule
    }

    fn nat_to(self, address: Register, port: Option<Register>) -> Expr {
        let family = if self.family == Family::V4 { libc_af::INET } else { libc_af::INET6 };
        let mut attributes =
            vec![(nf::NFTA_NAT_TYPE, 1), (nf::NFTA_NAT_FAMILY, family), (nf::NFTA_NAT_REG_ADDR_MIN, address.wire())];
        attributes.extend(port.map(|port| (nf::NFTA_NAT_REG_PROTO_MIN, port.wire())));
        raw("nat", &attributes)
    }
}

mod libc_af {
    /// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
    pub(super) const INET: u32 = 2;
    pub(super) const INET6: u32 = 10;
}

pub(super) fn reg(word: u8) -> Register {
    // The longest key with its value is an IPv6 slot: 7 and 5 words of the 16 there are.
    Register::word(word.into()).unwrap_or(Register::Verdict)
}

pub(super) fn chain_name(name: &str) -> ChainName {
    ChainName::new(name).unwrap_or_else(|_| unreachable!("{name} is a chain name"))
}

pub(super) fn proto_is(number: u8) -> Vec<Expr> {
    vec![
        Expr::Meta { dreg: reg(0), key: MetaKey::L4Proto },
        Expr::Cmp { sreg: reg(0), op: CmpOp::Eq, data: vec![number] },
    ]
}

pub(super) fn clear_priority() -> Vec<Expr> {
    let none = Expr::Immediate { dreg: reg(0), data: 0u32.to_ne_bytes().into() };
    vec![none, Expr::MetaSet { key: MetaKey::Priority, sreg: reg(0) }]
}

/// Goes on if the packet came in by a link of this name, or of one that begins like this, or if not. What was made on
/// the node itself came in by none.
pub(super) fn link(name: &str, whole: bool, op: CmpOp) -> Vec<Expr> {
    const IFNAMSIZ: usize = 16;
    let mut data = name.as_bytes().to_vec();
    data.truncate(IFNAMSIZ - 1);
    if whole {
        data.resize(IFNAMSIZ, 0);
    }
    vec![Expr::Meta { dreg: reg(0), key: MetaKey::IifName }, Expr::Cmp { sreg: reg(0), op, data }]
}

pub(super) fn is_echo_request(family: Family) -> Vec<Expr> {
    let (protocol, kind) = if family == Family::V4 { (1, 8) } else { (58, 128) };
    let mut rule = proto_is(protocol);
    rule.push(Expr::Payload { dreg: reg(0), base: PayloadBase::Transport, offset: 0, len: 1 });
    rule.push(Expr::Cmp { sreg: reg(0), op: CmpOp::Eq, data: vec![kind] });
    rule
}

pub(super) fn from_this_node() -> Vec<Expr> {
    vec![
        Expr::Fib { dreg: reg(0), result: FibResult::AddrType, flags: FibFlags::SADDR },
        Expr::Cmp { sreg: reg(0), op: CmpOp::Eq, data: RTN_LOCAL.to_ne_bytes().into() },
    ]
}

/// Goes on if one of the bits is set, or if none is.
pub(super) fn ct_bit(key: CtKey, bits: u32, set: bool) -> Vec<Expr> {
    let op = if set { CmpOp::Neq } else { CmpOp::Eq };
    vec![
        Expr::Ct { dreg: reg(0), key },
        bitwise(bits, 0),
        Expr::Cmp { sreg: reg(0), op, data: 0u32.to_ne_bytes().into() },
    ]
}

pub(super) fn bitwise(mask: u32, xor: u32) -> Expr {
    let (mask, xor) = (mask.to_ne_bytes().into(), xor.to_ne_bytes().into());
    Expr::Bitwise { sreg: reg(0), dreg: reg(0), len: 4, mask, xor }
}

/// A new source port at random: clients behind one address would else contend for the same port on the way out.
pub(super) fn masquerade() -> Expr {
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

pub(super) fn port_unreachable(family: Family) -> u8 {
    match family {
        Family::V4 => 3,
        Family::V6 => 4,
    }
}
