//! The pod networks -> the table `portolan-pods`: what pods need of the node's packets besides Services.
//!
//! | chain | hook | why there |
//! |---|---|---|
//! | `no-foreign-loopback` | prerouting, -300 | before connection tracking puts a client's 127.0.0.1 back into an answer |
//! | `host-ports-in`, `host-ports-out` | nat prerouting and output, -99 | after the Service table: its ports beat a pod's |
//! | `egress` | nat postrouting, 101 | after the Service table's: what that one masquerades is settled then |
//!
//! Nobody out there knows the way back to a pod, so what leaves the pod networks over the uplink goes out under the
//! node's own address. A pod with a host port can be asked by way of the node's 127.0.0.1 too, which is why its link
//! may carry that address (`route_localnet`); what others send to that address ends at once.
//!
//! Invariants: the rules are the same whatever the pods, what varies is in elements ([`super::HostPorts`]); traffic
//! between pods keeps its addresses; laying the rules again changes nothing for connections that exist. Deliberately
//! not here: anything about Services, whose rules are another table's.
//!
//! Source: the portmap plugin of CNI; CVE-2020-8558 for loopback.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use nlink::netlink::nftables::{
    self as nf, BaseChain, Chain, ChainName, CtStatus, Expr, Family, FibFlags, FibResult, FilterHook, LookupExpr,
    MetaKey, NatHook, PacketField, PayloadBase, Priority, RawExpr, Register, Rule, Set, SetDataType, SetKeyType,
};
use nlink::netlink::{Connection, Nftables};

pub(super) const TABLE: &str = "portolan-pods";
const LOOPBACK: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8);
const RTN_LOCAL: u32 = 2;

/// What varies with the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Map {
    /// A port of one of the node's addresses -> the pod's address and port.
    HostPortsAt,
    /// A port of all of them -> likewise.
    HostPorts,
    /// Pods with host ports, each twice: one that asks for its own is answered by itself.
    Hairpin,
}

impl Map {
    pub(super) const ALL: [Self; 3] = [Self::HostPortsAt, Self::HostPorts, Self::Hairpin];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HostPortsAt => "host-ports-at",
            Self::HostPorts => "host-ports",
            Self::Hairpin => "hairpin",
        }
    }

    pub(super) fn set(self) -> Set {
        use SetKeyType::{InetProto, InetService, Ipv4Addr};
        let (key, leads) = match self {
            Self::HostPortsAt => (vec![Ipv4Addr, InetProto, InetService], true),
            Self::HostPorts => (vec![InetProto, InetService], true),
            Self::Hairpin => (vec![Ipv4Addr, Ipv4Addr], false),
        };
        let set = Set::new(TABLE, self.name()).family(Family::Ip).key_type(SetKeyType::Concat(key));
        match leads {
            true => set.map(SetDataType::Value(SetKeyType::Concat(vec![Ipv4Addr, InetService]))),
            false => set,
        }
    }
}

/// Lays the table in the calling thread's network namespace; rules that an earlier agent laid are replaced, its
/// elements stay.
pub(crate) async fn lay_table(pod_networks: &[IpNet], uplink: &str) -> nlink::Result<()> {
    let networks: Vec<(IpAddr, u8)> =
        pod_networks.iter().filter(|net| net.addr().is_ipv4()).map(|net| (net.addr(), net.prefix_len())).collect();
    let after = |priority: Priority| Priority::Custom(priority.to_i32() + 1);
    let rule = |chain: &str| Rule::new(TABLE, chain).family(Family::Ip);

    let to_host_ports = |chain: &str| Ok::<_, nlink::Error>(vec![rule(chain).jump(ChainName::new("host-ports")?)]);
    let mut egress = vec![
        rule("egress")
            .match_ct_status(CtStatus::DST_NAT)
            .match_concat_in_set(&[PacketField::Ip4Saddr, PacketField::Ip4Daddr], Map::Hairpin.name())
            .masquerade(),
        rule("egress").match_saddr(LOOPBACK.0, LOOPBACK.1).match_oif_not("lo").masquerade(),
    ];
    egress.extend(networks.iter().map(|(address, prefix)| rule("egress").match_daddr(*address, *prefix).accept()));
    egress.extend(
        networks
            .iter()
            .map(|(address, prefix)| rule("egress").match_saddr(*address, *prefix).match_oif(uplink).masquerade()),
    );
    let chains = [
        ("host-ports", None, host_ports(&rule)),
        (
            "no-foreign-loopback",
            Some(BaseChain::filter(FilterHook::Prerouting, Priority::Raw)),
            vec![rule("no-foreign-loopback").match_daddr(LOOPBACK.0, LOOPBACK.1).match_iif_not("lo").drop()],
        ),
        (
            "host-ports-in",
            Some(BaseChain::nat(NatHook::Prerouting, after(Priority::DstNat))),
            to_host_ports("host-ports-in")?,
        ),
        (
            "host-ports-out",
            Some(BaseChain::nat(NatHook::Output, after(Priority::DstNat))),
            to_host_ports("host-ports-out")?,
        ),
        ("egress", Some(BaseChain::nat(NatHook::Postrouting, after(Priority::SrcNat))), egress),
    ];

    let connection = Connection::<Nftables>::new()?;
    let exists = connection.list_tables_in(Family::Ip).await?.iter().any(|table| table.name.as_str() == TABLE);
    let sets = if exists { connection.list_sets_in(TABLE, Family::Ip).await? } else { Vec::new() };
    let mut transaction = connection.transaction();
    if !exists {
        transaction = transaction.add_table(TABLE, Family::Ip);
    }
    for map in Map::ALL.into_iter().filter(|map| !sets.iter().any(|set| set.name == map.name())) {
        transaction = transaction.add_set(map.set());
    }
    for (name, base, _) in &chains {
        let chain = Chain::new(TABLE, *name)?.family(Family::Ip);
        let chain = match base {
            Some(base) => chain.base(base.clone()),
            None => chain,
        };
        transaction = transaction.update_chain(chain).flush_chain(TABLE, name, Family::Ip);
    }
    for rule in chains.into_iter().flat_map(|(_, _, rules)| rules) {
        transaction = transaction.add_rule(rule);
    }
    transaction.commit(&connection).await
}

/// Rewrites the destination of what is for a pod's host port; one that names the node's address goes first.
fn host_ports(rule: &impl Fn(&str) -> Rule) -> Vec<Rule> {
    let daddr = Expr::Payload { dreg: word(0), base: PayloadBase::Network, offset: 16, len: 4 };
    let is_local = [
        Expr::Fib { dreg: word(0), result: FibResult::AddrType, flags: FibFlags::DADDR },
        Expr::Cmp { sreg: word(0), op: nf::CmpOp::Eq, data: RTN_LOCAL.to_ne_bytes().into() },
    ];
    let at: Vec<Expr> = [daddr].into_iter().chain(led(1, Map::HostPortsAt)).collect();
    let anywhere: Vec<Expr> = is_local.into_iter().chain(led(0, Map::HostPorts)).collect();
    [at, anywhere].into_iter().map(|expressions| rule("host-ports").expressions(expressions)).collect()
}

/// The rest of the key from the word `at` on, the lookup of all of it, and the destination that it gives.
fn led(at: usize, map: Map) -> [Expr; 4] {
    let (protocol, port) = (word(at), word(at + 1));
    let (to_address, to_port) = (word(at + 2), word(at + 3));
    const NFPROTO_IPV4: u32 = 2;
    const NAT_DESTINATION: u32 = 1;
    let attributes = [
        (nf::NFTA_NAT_TYPE, NAT_DESTINATION),
        (nf::NFTA_NAT_FAMILY, NFPROTO_IPV4),
        (nf::NFTA_NAT_REG_ADDR_MIN, to_address.wire()),
        (nf::NFTA_NAT_REG_PROTO_MIN, to_port.wire()),
    ];
    let encode = |(kind, value): (u16, u32)| {
        [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes()[..], &value.to_be_bytes()[..]].concat()
    };
    [
        Expr::Meta { dreg: protocol, key: MetaKey::L4Proto },
        Expr::Payload { dreg: port, base: PayloadBase::Transport, offset: 2, len: 2 },
        LookupExpr::new(map.name(), word(0)).dreg(to_address).into(),
        Expr::Raw(RawExpr::new("nat", attributes.into_iter().flat_map(encode).collect())),
    ]
}

/// One of the first words of the sixteen that there are.
fn word(number: usize) -> Register {
    Register::word(number).unwrap_or(Register::Verdict)
}
