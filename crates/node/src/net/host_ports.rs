//! Ports of the node that lead to pods: `hostPort` in pods -> elements of the table's maps.
//!
//! A pod claims its ports before it has anything else, and one that asks for what another has is turned away, as a
//! kubelet does; a pod in the node's own network claims those that it binds itself. What a claim leads to is known once
//! the pod has an address.
//!
//! Invariant: after each change the maps hold what the claims say and nothing else, whatever they held before; so an
//! agent's restart, or a hand in the table, is put right with the next pod. They are read back for it: a node has few
//! pods. Deliberately not here: placing a pod where its ports are free, which is the scheduler's work; IPv6, which pods
//! do not have.
//!
//! Source: the portmap plugin of CNI, which also ends UDP flows that began before the port led anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::api::core::v1::{ContainerPort, Pod};
use nlink::netlink::netfilter::{ConntrackFilter, IpProtocol};
use nlink::netlink::nftables::{Family, SetElement, SetElementData};
use nlink::netlink::{Connection, Netfilter, Nftables};
use portolan_model::Protocol;
use tokio::sync::Mutex;

use super::table::{Map, TABLE};

/// Another pod of this node has a port that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clash;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    protocol: Protocol,
    port: u16,
    /// `None` for all of the node's addresses.
    at: Option<IpAddr>,
    container_port: u16,
}

impl HostPort {
    fn of(port: &ContainerPort) -> Option<Self> {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number != 0);
        Some(Self {
            protocol: match port.protocol.as_deref() {
                None | Some("TCP") => Protocol::Tcp,
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                Some(_) => return None,
            },
            port: number(port.host_port?)?,
            at: match port.host_ip.as_deref() {
                None | Some("" | "0.0.0.0") => None,
                Some(address) => Some(address.parse().ok()?),
            },
            container_port: number(port.container_port)?,
        })
    }

    fn clashes(&self, other: &Self) -> bool {
        let everywhere = self.at.is_none() || other.at.is_none();
        (self.protocol, self.port) == (other.protocol, other.port) && (everywhere || self.at == other.at)
    }

    /// Its element, if it can be reached by IPv4.
    fn element(&self, pod: Ipv4Addr) -> Option<Element> {
        let protocol = SetElement::new(vec![self.protocol.number()]);
        let port = SetElement::port(self.port);
        let (map, key) = match self.at {
            None => (Map::HostPorts, SetElement::concat([protocol, port])),
            Some(IpAddr::V4(at)) => (Map::HostPortsAt, SetElement::concat([SetElement::ipv4(at), protocol, port])),
            Some(IpAddr::V6(_)) => return None,
        };
        let to = SetElement::concat([SetElement::ipv4(pod), SetElement::port(self.container_port)]);
        Some((map, key.key().to_vec(), Some(to.key().to_vec())))
    }
}

/// An element's map, key and value.
type Element = (Map, Vec<u8>, Option<Vec<u8>>);

#[derive(Debug)]
struct Claim {
    ports: BTreeSet<HostPort>,
    /// Where they lead; not known yet, or, for a pod in the node's network, nowhere.
    pod: Option<Ipv4Addr>,
}

/// Who has which port of this node.
#[derive(Debug, Default)]
pub(crate) struct HostPorts {
    /// By the pods' uids; only those with ports.
    claims: Mutex<BTreeMap<String, Claim>>,
}

impl HostPorts {
    /// Claims what the pod asks for, all or nothing.
    pub(crate) async fn claim(&self, uid: &str, pod: &Pod) -> Result<(), Clash> {
        let ports = ports_of(pod);
        if ports.is_empty() {
            return Ok(());
        }
        let mut claims = self.claims.lock().await;
        let others = claims.iter().filter(|(other, _)| *other != uid).flat_map(|(_, claim)| &claim.ports);
        if others.into_iter().any(|taken| ports.iter().any(|port| port.clashes(taken))) {
            return Err(Clash);
        }
        claims.insert(uid.to_owned(), Claim { ports, pod: None });
        Ok(())
    }

    /// Leads what the pod has claimed to its address, over its link.
    pub(crate) async fn lead(&self, uid: &str, link: &str, address: Ipv4Addr, node: IpAddr) -> nlink::Result<()> {
        let mut claims = self.claims.lock().await;
        let Some(claim) = claims.get_mut(uid) else { return Ok(()) };
        claim.pod = Some(address);
        let ports = claim.ports.clone();
        let path = format!("/proc/sys/net/ipv4/conf/{link}/route_localnet");
        if let Err(error) = fs::write(&path, "1") {
            tracing::warn!(%path, %error, "a pod's host ports cannot be reached by way of 127.0.0.1");
        }
        write(&claims).await?;
        if let Err(error) = end_flows_to_the_node(&ports, node).await {
            tracing::warn!(%error, "flows to a pod's UDP host ports that began before the pod go astray until they pause");
        }
        Ok(())
    }

    /// Takes in a pod that runs already; [`settle`](Self::settle) follows.
    pub(crate) async fn adopt(&self, uid: &str, pod: &Pod, address: Option<Ipv4Addr>) {
        let ports = ports_of(pod);
        if !ports.is_empty() {
            self.claims.lock().await.insert(uid.to_owned(), Claim { ports, pod: address });
        }
    }

    /// Makes the maps say what was adopted.
    pub(crate) async fn settle(&self) -> nlink::Result<()> {
        write(&*self.claims.lock().await).await
    }

    /// Gives back what the pod has, if it has anything.
    pub(crate) async fn release(&self, uid: &str) -> nlink::Result<()> {
        let mut claims = self.claims.lock().await;
        match claims.remove(uid) {
            Some(Claim { pod: Some(_), .. }) => write(&claims).await,
            _ => Ok(()),
        }
    }
}

/// Init containers that go on beside the others have theirs; of those that end before, the ports are nobody's.
fn ports_of(pod: &Pod) -> BTreeSet<HostPort> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(HostPort::of).collect()
}

/// What the maps shall hold.
fn elements(claims: &BTreeMap<String, Claim>) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    for Claim { ports, pod } in claims.values() {
        let Some(pod) = *pod else { continue };
        elements.extend(ports.iter().filter_map(|port| port.element(pod)));
        let both = SetElement::concat([SetElement::ipv4(pod), SetElement::ipv4(pod)]);
        elements.insert((Map::Hairpin, both.key().to_vec(), None));
    }
    elements
}

/// Changes what the maps hold into what they shall hold, in one commit.
async fn write(claims: &BTreeMap<String, Claim>) -> nlink::Result<()> {
    let desired = elements(claims);
    let connection = Connection::<Nftables>::new()?;
    let mut realized = BTreeSet::new();
    for map in Map::ALL {
        for element in connection.list_set_elements(TABLE, map.name(), Family::Ip).await? {
            let value = match element.data() {
                Some(SetElementData::Value(value)) => Some(value.clone()),
                _ => None,
            };
            realized.insert((map, element.key().to_vec(), value));
        }
    }
    if desired == realized {
        return Ok(());
    }
    let mut transaction = connection.transaction();
    for (map, key, _) in realized.difference(&desired) {
        transaction = transaction.del_set_elements(&map.set(), &[SetElement::new(key.clone())]);
    }
    for (map, key, value) in desired.difference(&realized) {
        let element = SetElement::new(key.clone());
        let element = match value {
            Some(value) => element.value(SetElement::new(value.clone())),
            None => element,
        };
        transaction = transaction.add_set_elements(&map.set(), &[element]);
    }
    transaction.commit(&connection).await
}

/// A UDP flow follows what was decided for its first packet, for as long as its client goes on.
async fn end_flows_to_the_node(ports: &BTreeSet<HostPort>, node: IpAddr) -> nlink::Result<()> {
    let udp: Vec<&HostPort> = ports.iter().filter(|port| port.protocol == Protocol::Udp).collect();
    if udp.is_empty() {
        return Ok(());
    }
    let connection = Connection::<Netfilter>::new()?;
    for port in udp {
        let everywhere = [node, Ipv4Addr::LOCALHOST.into()];
        for address in port.at.as_ref().map_or(&everywhere[..], std::slice::from_ref) {
            let flows = ConntrackFilter::new().proto(IpProtocol::Udp).orig_dst(*address).orig_dst_port(port.port);
            connection.flush_conntrack_matching(&flows).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(ports: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "ports": ports}]}})).unwrap()
    }

    /// What of these ports, asked for one pod after the other, is granted.
    async fn granted(asked: &[Value]) -> Vec<bool> {
        let host_ports = HostPorts::default();
        let mut granted = Vec::new();
        for (number, port) in asked.iter().enumerate() {
            granted.push(host_ports.claim(&number.to_string(), &pod(json!([port]))).await.is_ok());
        }
        granted
    }

    #[tokio::test]
    async fn a_port_is_one_pods_by_protocol_and_address() {
        let port = |ip: &str, protocol: &str, number: u16| json!({"containerPort": 80, "hostPort": number, "hostIP": ip, "protocol": protocol});
        let first = port("127.0.0.1", "TCP", 80);
        for (second, also) in [
            (port("127.0.0.1", "TCP", 80), false),
            (port("", "TCP", 80), false),
            (port("0.0.0.0", "TCP", 80), false),
            (port("127.0.0.1", "UDP", 80), true),
            (port("127.0.0.2", "TCP", 80), true),
            (port("::1", "TCP", 80), true),
            (port("127.0.0.1", "TCP", 81), true),
            (json!({"containerPort": 80}), true),
        ] {
            assert_eq!(granted(&[first.clone(), second.clone()]).await, [true, also], "{second}");
            assert_eq!(granted(&[second.clone(), first.clone()]).await, [true, also], "{second}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_takes_nothing_and_what_is_claimed_again_stays() {
        let host_ports = HostPorts::default();
        let two = pod(json!([{"containerPort": 1, "hostPort": 1}, {"containerPort": 2, "hostPort": 2}]));
        let second = pod(json!([{"containerPort": 2, "hostPort": 2}, {"containerPort": 3, "hostPort": 3}]));
        let third = pod(json!([{"containerPort": 3, "hostPort": 3}]));
        assert_eq!(host_ports.claim("a", &two).await, Ok(()));
        assert_eq!(host_ports.claim("a", &two).await, Ok(()));
        assert_eq!(host_ports.claim("b", &second).await, Err(Clash));
        assert_eq!(host_ports.claim("c", &third).await, Ok(()));
        host_ports.release("c").await.unwrap();
        host_ports.release("a").await.unwrap();
        assert_eq!(host_ports.claim("b", &second).await, Ok(()));
    }
}
