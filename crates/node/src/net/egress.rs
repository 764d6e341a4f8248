//! The pod networks -> the one rule that lets pods talk to machines beyond the cluster.
//!
//! Nobody out there knows the way back to a pod, so what leaves the pod networks over the uplink goes out under the
//! node's own address. Invariants: traffic between pods keeps its addresses; laying the rule again changes nothing for
//! connections that exist. Deliberately not here: anything about Services, whose rules are another table's.

use std::net::IpAddr;

use ipnet::IpNet;
use nlink::netlink::nftables::{BaseChain, Chain, Family, NatHook, Priority, Rule};
use nlink::netlink::{Connection, Nftables};

const TABLE: &str = "portolan-pods";
const CHAIN: &str = "egress";

/// Lays the rule in the calling thread's network namespace, in place of what an earlier agent laid.
pub(crate) async fn masquerade_egress(pod_networks: &[IpNet], uplink: &str) -> nlink::Result<()> {
    let networks: Vec<(IpAddr, u8)> =
        pod_networks.iter().filter(|net| net.addr().is_ipv4()).map(|net| (net.addr(), net.prefix_len())).collect();
    if networks.is_empty() {
        return Ok(());
    }
    // After the Service table's: what that one masquerades is settled then.
    let hook = BaseChain::nat(NatHook::Postrouting, Priority::Custom(Priority::SrcNat.to_i32() + 1));
    let chain = Chain::new(TABLE, CHAIN)?.family(Family::Ip).base(hook);
    let rule = || Rule::new(TABLE, CHAIN).family(Family::Ip);
    let connection = Connection::<Nftables>::new()?;
    let exists = connection.list_tables_in(Family::Ip).await?.iter().any(|table| table.name.as_str() == TABLE);
    let mut transaction = connection.transaction();
    if !exists {
        transaction = transaction.add_table(TABLE, Family::Ip);
    }
    transaction = transaction.update_chain(chain).flush_chain(TABLE, CHAIN, Family::Ip);
    for (address, prefix) in &networks {
        transaction = transaction.add_rule(rule().match_daddr(*address, *prefix).accept());
    }
    for (address, prefix) in &networks {
        transaction = transaction.add_rule(rule().match_saddr(*address, *prefix).match_oif(uplink).masquerade());
    }
    transaction.commit(&connection).await
}
