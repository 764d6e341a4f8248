//! A rule's expressions, carried out on a packet.

use std::net::{IpAddr, SocketAddr};

use nlink::netlink::nftables::{
    CmpOp, CtDirection, CtKey, DynsetOp, FibFlags, FibResult, HashKind, MetaKey, NatType, PayloadBase, RangeOp,
    Register, RuleExpr, SetElementData, Verdict,
};

use super::Packet;
use super::table::{Rule, Table};
use super::text;
use crate::nft::seats::{below, jhash};

const CT_NEW: u32 = 1 << 3;
const CT_DNAT: u32 = 1 << 5;
const ADDRESS_UNICAST: u32 = 1;
const ADDRESS_LOCAL: u32 = 2;
const INTERFACE_NAME: usize = 16;

/// A packet on its way, with what is remembered of it.
#[derive(Clone, Debug)]
pub(super) struct Machine<'a> {
    table: &'a Table,
    own_addresses: &'a [IpAddr],
    /// As it came.
    pub(super) original: &'a Packet,
    /// What random numbers are to be, before their offset.
    choice: u32,
    /// Of how many values the first random number was one.
    pub(super) of: u32,
    pub(super) destination: SocketAddr,
    pub(super) rewritten: bool,
    pub(super) masqueraded: Option<String>,
    mark: u32,
    priority: u32,
    registers: [u8; 64],
    /// The element that a random number led to.
    pub(super) chosen: Option<String>,
    pub(super) unknown: Vec<String>,
}

/// What a rule came to.
#[derive(Debug)]
pub(super) enum Applied {
    /// It is not about this packet.
    No,
    Yes(Vec<Act>),
}

#[derive(Debug)]
pub(super) enum Act {
    /// An element was asked for.
    Looked(String),
    Verdict(Verdict),
    Refuse,
    /// The destination is another now.
    Rewrite(SocketAddr),
    Masquerade,
    /// The packet's mark is another now.
    Mark(u32),
    Priority(u32),
    Remember(String),
}

impl<'a> Machine<'a> {
    pub(super) fn new(table: &'a Table, own_addresses: &'a [IpAddr], packet: &'a Packet, choice: u32) -> Self {
        Self {
            table,
            own_addresses,
            original: packet,
            choice,
            of: 1,
            destination: SocketAddr::new(packet.destination, packet.port),
            rewritten: false,
            masqueraded: None,
            mark: 0,
            priority: 0,
            registers: [0; 64],
            chosen: None,
            unknown: Vec::new(),
        }
    }

    pub(super) fn mark(&self) -> u32 {
        self.mark
    }

    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(&address)
    }

    /// Carries the rule out until an expression says that it is not about this packet.
    pub(super) fn apply(&mut self, rule: &Rule) -> Applied {
        let mut acts = Vec::new();
        let mut random = false;
        for expression in &rule.expressions {
            random |= matches!(expression, RuleExpr::Numgen { .. });
            let before = acts.len();
            if !self.carry_out(expression, &mut acts) {
                return Applied::No;
            }
            if let (true, Some(Act::Looked(element))) = (random, acts.get(before)) {
                self.chosen = Some(element.clone());
            }
            if matches!(acts.last(), Some(Act::Verdict(_) | Act::Refuse | Act::Rewrite(_) | Act::Masquerade)) {
                break;
            }
        }
        Applied::Yes(acts)
    }

    /// False if the rule ends here.
    fn carry_out(&mut self, expression: &RuleExpr, acts: &mut Vec<Act>) -> bool {
        match expression {
            RuleExpr::Meta { dreg, key, .. } => return self.load_meta(*dreg, *key) || self.cannot(expression),
            RuleExpr::MetaSet { key, sreg, .. } => return self.set_meta(*key, *sreg, acts) || self.cannot(expression),
            RuleExpr::Payload { dreg, base, offset, len, .. } => {
                let header = match base {
                    PayloadBase::Network => self.network_header(),
                    PayloadBase::Transport => self.transport_header(),
                    _ => return self.cannot(expression),
                };
                let (Ok(offset), Ok(length)) = (usize::try_from(*offset), usize::try_from(*len)) else { return false };
                let Some(field) = header.get(offset..offset + length) else { return self.cannot(expression) };
                self.store(*dreg, field);
            }
            RuleExpr::Ct { dreg, key, .. } => match key {
                CtKey::State => self.store_word(*dreg, CT_NEW),
                CtKey::Status => self.store_word(*dreg, if self.rewritten { CT_DNAT } else { 0 }),
                CtKey::Mark => self.store_word(*dreg, 0),
                CtKey::Direction => self.store(*dreg, &[0]),
                _ => return self.cannot(expression),
            },
            RuleExpr::CtDirectional { dreg, key, direction: CtDirection::Original, .. } => match key {
                CtKey::Src | CtKey::SrcIp | CtKey::SrcIp6 => self.store(*dreg, &octets(self.original.source)),
                CtKey::Dst | CtKey::DstIp | CtKey::DstIp6 => self.store(*dreg, &octets(self.original.destination)),
                CtKey::ProtoDst => self.store(*dreg, &self.original.port.to_be_bytes()),
                _ => return self.cannot(expression),
            },
            RuleExpr::Fib { dreg, result: FibResult::AddrType, flags, .. } => {
                let source = flags.contains(FibFlags::SADDR);
                let address = if source { self.original.source } else { self.destination.ip() };
                self.store_word(*dreg, if self.is_own(address) { ADDRESS_LOCAL } else { ADDRESS_UNICAST });
            }
            RuleExpr::Numgen { dreg, modulus, offset, .. } => {
                self.of = *modulus;
                self.store_word(*dreg, offset + self.choice);
            }
            RuleExpr::Hash {
                dreg,
                kind: HashKind::Jenkins,
                sreg: Some(from),
                len,
                modulus,
                seed: Some(seed),
                offset,
                ..
            } => {
                let hash = jhash(self.value(*from, usize::try_from(*len).unwrap_or_default()), *seed);
                self.store_word(*dreg, offset + below(hash, *modulus));
            }
            RuleExpr::Immediate { dreg, data, .. } => self.store(*dreg, data),
            RuleExpr::Bitwise { sreg, dreg, mask, xor, .. } => {
                let value = self.value(*sreg, mask.len()).to_vec();
                let bits = value.iter().zip(mask).zip(xor).map(|((value, mask), xor)| (value & mask) ^ xor);
                self.store(*dreg, &bits.collect::<Vec<_>>());
            }
            RuleExpr::Cmp { sreg, op, data, .. } => {
                let order = self.value(*sreg, data.len()).cmp(data);
                return match op {
                    CmpOp::Eq => order.is_eq(),
                    CmpOp::Neq => order.is_ne(),
                    CmpOp::Lt => order.is_lt(),
                    CmpOp::Lte => order.is_le(),
                    CmpOp::Gt => order.is_gt(),
                    CmpOp::Gte => order.is_ge(),
                    _ => self.cannot(expression),
                };
            }
            RuleExpr::Range { sreg, op, from, to, .. } => {
                let value = self.value(*sreg, from.len());
                return (from.as_slice() <= value && value <= to.as_slice()) == (*op == RangeOp::Eq);
            }
            RuleExpr::Lookup { set, sreg, dreg, invert, .. } => return self.look_up(set, *sreg, *dreg, *invert, acts),
            RuleExpr::Dynset { set, op, sreg_key, timeout, .. } => {
                let Some(known) = self.table.sets.get(set) else { return self.cannot(expression) };
                let key = text::value(&known.key, self.value(*sreg_key, known.key_length));
                let time = timeout.map(|time| format!(" timeout {}s", time.as_secs())).unwrap_or_default();
                let verb = match op {
                    DynsetOp::Add => "add",
                    DynsetOp::Update => "update",
                    DynsetOp::Delete => "delete",
                    _ => return self.cannot(expression),
                };
                acts.push(Act::Remember(format!("{verb} @{set} {{ {key}{time} }}")));
            }
            RuleExpr::Verdict(verdict) => acts.push(Act::Verdict(verdict.clone())),
            RuleExpr::Reject { .. } => acts.push(Act::Refuse),
            RuleExpr::Masq { .. } => acts.push(Act::Masquerade),
            RuleExpr::Nat { nat_type: NatType::Dnat, addr: Some((address, _)), proto, .. } => {
                let length = octets(self.original.destination).len();
                let Some(address) = text::address(self.value(*address, length)) else { return self.cannot(expression) };
                let port = proto.and_then(|(port, _)| self.value(port, 2).try_into().ok()).map(u16::from_be_bytes);
                self.rewrite(SocketAddr::new(address, port.unwrap_or(self.destination.port())), acts);
            }
            RuleExpr::Redir { proto, .. } => {
                let port = proto.and_then(|(port, _)| self.value(port, 2).try_into().ok()).map(u16::from_be_bytes);
                let ours = self.own_addresses.iter().find(|own| own.is_ipv4() == self.original.destination.is_ipv4());
                let Some(ours) = ours else { return self.cannot(expression) };
                self.rewrite(SocketAddr::new(*ours, port.unwrap_or(self.destination.port())), acts);
            }
            // These only count and tell.
            RuleExpr::Counter { .. } | RuleExpr::Objref(_) | RuleExpr::Log(_) => {}
            _ => return self.cannot(expression),
        }
        true
    }

    /// Notes that the expression is beyond this machine, and that the rule is taken for one that does not apply.
    fn cannot(&mut self, expression: &RuleExpr) -> bool {
        let expression = format!("{expression:?}");
        if !self.unknown.contains(&expression) {
            self.unknown.push(expression);
        }
        false
    }

    fn rewrite(&mut self, to: SocketAddr, acts: &mut Vec<Act>) {
        self.destination = to;
        self.rewritten = true;
        acts.push(Act::Rewrite(to));
    }

    /// False where it is not known.
    fn load_meta(&mut self, to: Register, key: MetaKey) -> bool {
        match key {
            MetaKey::L4Proto => self.store(to, &[self.original.protocol]),
            MetaKey::NfProto => self.store(to, &[if self.original.source.is_ipv4() { 2 } else { 10 }]),
            MetaKey::Mark => self.store_word(to, self.mark),
            MetaKey::Priority => self.store_word(to, self.priority),
            MetaKey::IifName => {
                let mut name = [0; INTERFACE_NAME];
                let known = self.original.interface.as_deref().unwrap_or_default().as_bytes();
                let length = known.len().min(INTERFACE_NAME);
                name[..length].copy_from_slice(&known[..length]);
                self.store(to, &name);
            }
            _ => return false,
        }
        true
    }

    fn set_meta(&mut self, key: MetaKey, from: Register, acts: &mut Vec<Act>) -> bool {
        let word = self.word(from);
        match key {
            MetaKey::Mark => {
                self.mark = word;
                acts.push(Act::Mark(word));
            }
            MetaKey::Priority => {
                self.priority = word;
                acts.push(Act::Priority(word));
            }
            // It changes nothing for the rules to come.
            MetaKey::NfTrace => {}
            _ => return false,
        }
        true
    }

    fn look_up(&mut self, name: &str, key: Register, to: Option<Register>, invert: bool, acts: &mut Vec<Act>) -> bool {
        let Some(set) = self.table.sets.get(name) else {
            self.unknown.push(format!("set {name}"));
            return false;
        };
        let key = self.value(key, set.key_length).to_vec();
        let found = set.find(&key);
        if invert || found.is_none() {
            if invert && found.is_none() {
                acts.push(Act::Looked(format!("no @{name} {{ {} }}", text::value(&set.key, &key))));
            }
            return invert && found.is_none();
        }
        let Some((element, data)) = found else { return false };
        match (to, data) {
            (None, _) => acts.push(Act::Looked(format!("@{name} {{ {element} }}"))),
            (Some(to), Some(data)) => {
                acts.push(Act::Looked(format!("@{name} {{ {element} : {} }}", set.print(data))));
                match data {
                    SetElementData::Value(value) => self.store(to, value),
                    SetElementData::Verdict(verdict) => acts.push(Act::Verdict(verdict.clone())),
                    _ => self.unknown.push(format!("an object of map {name}")),
                }
            }
            (Some(_), None) => self.unknown.push(format!("map {name} without values")),
        }
        true
    }

    fn network_header(&self) -> Vec<u8> {
        let (source, destination) = (octets(self.original.source), octets(self.destination.ip()));
        let mut header = if self.original.source.is_ipv4() { vec![0; 12] } else { vec![0; 8] };
        if let Some(protocol) = header.get_mut(if self.original.source.is_ipv4() { 9 } else { 6 }) {
            *protocol = self.original.protocol;
        }
        header.extend(source);
        header.extend(destination);
        header
    }

    /// Ports, or the type of an echo request.
    fn transport_header(&self) -> Vec<u8> {
        match self.original.protocol {
            1 => vec![8, 0, 0, 0, 0, 0, 0, 0],
            58 => vec![128, 0, 0, 0, 0, 0, 0, 0],
            _ => [&[0; 2][..], &self.destination.port().to_be_bytes(), &[0; 4]].concat(),
        }
    }

    fn store(&mut self, to: Register, value: &[u8]) {
        let at = offset(to);
        let end = (at + value.len()).min(self.registers.len());
        // The rest of the last word is zeroed, as the kernel does it.
        let padded = end.next_multiple_of(4).min(self.registers.len());
        self.registers[at..padded].fill(0);
        self.registers[at..end].copy_from_slice(&value[..end - at]);
    }

    fn store_word(&mut self, to: Register, value: u32) {
        self.store(to, &value.to_ne_bytes());
    }

    fn value(&self, from: Register, length: usize) -> &[u8] {
        let at = offset(from);
        &self.registers[at..(at + length).min(self.registers.len())]
    }

    fn word(&self, from: Register) -> u32 {
        self.value(from, 4).try_into().map(u32::from_ne_bytes).unwrap_or_default()
    }
}

/// Where the register begins: four of four words each are numbered 1 to 4, and their words from 8.
fn offset(register: Register) -> usize {
    match usize::try_from(register.wire()).unwrap_or_default() {
        number @ 1..=4 => (number - 1) * 16,
        number => number.saturating_sub(8) * 4 % 64,
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
