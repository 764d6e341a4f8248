//! The API's objects -> who is meant by a name, and what a kernel should have.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use portolan_dataplane::trace::{End, Outcome};
use portolan_model::forwarding::{Backend, Flow, NodeContext, Outcome as Becomes, Possible, Table, trace};
use portolan_model::{Event, Protocol, ServiceId, Snapshot, translate};
use serde::de::DeserializeOwned;

use super::ask::{Destination, Place, Transport};
use super::kernel::Question;
use crate::sockets::ANNOTATION;

pub(super) struct Cluster {
    snapshot: Snapshot,
    pods: Vec<Pod>,
}

/// A pod, or what is known of an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Who {
    pub(super) name: String,
    pub(super) node: Option<String>,
    /// A pod that asked not to have its sockets led.
    pub(super) unled: bool,
}

/// The node that a packet comes to, as far as it is known how it is set up.
pub(super) struct Receiver<'a> {
    pub(super) name: &'a str,
    pub(super) own_addresses: &'a [IpAddr],
    /// It is one of `up`'s, whose settings are known.
    pub(super) is_ours: bool,
}

/// What may become of a packet by what the API says, one for each way the node may be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    outcomes: Vec<Becomes>,
    /// The Service that has the destination.
    pub(super) service: Option<ServiceId>,
    /// A client may have been given one of the backends to stay with.
    stays: bool,
}

impl Cluster {
    pub(super) async fn fetch(client: &Client) -> Result<Self> {
        let mut snapshot = Snapshot::default();
        for service in all::<Service>(client).await?.iter().filter_map(translate::service) {
            snapshot.apply(Event::Service(service.0));
        }
        for slice in all::<EndpointSlice>(client).await?.iter().filter_map(translate::endpoint_slice) {
            snapshot.apply(Event::Slice(slice.0));
        }
        for node in all::<Node>(client).await?.iter().filter_map(translate::node) {
            snapshot.apply(Event::Node(node));
        }
        // Absent before Kubernetes 1.33; nothing but the names of addresses depends on it here.
        for (name, cidrs) in all::<ServiceCIDR>(client).await.iter().flatten().filter_map(translate::service_cidrs) {
            snapshot.apply(Event::ServiceCidr(name, cidrs));
        }
        Ok(Self { snapshot, pods: all(client).await? })
    }

    /// The pod's node, and its addresses.
    ///
    /// # Errors
    /// When there is no such pod, or it has no address yet.
    pub(super) fn pod(&self, namespace: &str, name: &str) -> Result<(Option<String>, Vec<IpAddr>)> {
        let found =
            self.pods.iter().find(|pod| pod.namespace().as_deref() == Some(namespace) && pod.name_any() == name);
        let Some(pod) = found else { bail!("there is no pod {name} in namespace {namespace}") };
        let addresses = addresses(pod);
        if addresses.is_empty() {
            bail!("pod {namespace}/{name} has no address yet");
        }
        Ok((pod.spec.as_ref().and_then(|spec| spec.node_name.clone()), addresses))
    }

    /// The address, port and protocol that are meant, of the family of `like` where there is a choice.
    ///
    /// # Errors
    /// What is missing of the Service, or of the words that name it.
    pub(super) fn resolve(&self, wanted: &Destination, like: Option<IpAddr>) -> Result<(SocketAddr, Transport)> {
        let (namespace, name, port) = match &wanted.to {
            Place::Address(address) => return Ok((*address, wanted.protocol.unwrap_or(Transport::Tcp))),
            Place::Service { namespace, name, port } => (namespace, name, port),
        };
        let Some(service) = self.snapshot.service(&ServiceId::new(namespace, name)) else {
            bail!("there is no Service {name} in namespace {namespace}");
        };
        let family = |address: &&IpAddr| like.is_none_or(|like| like.is_ipv4() == address.is_ipv4());
        let Some(address) = service.cluster_ips.iter().find(family) else {
            bail!("Service {namespace}/{name} has no ClusterIP that the source could use; name one of its addresses");
        };
        if wanted.protocol == Some(Transport::Icmp) {
            return Ok((SocketAddr::new(*address, 0), Transport::Icmp));
        }
        let mut ports = service.ports.iter().filter(|known| {
            port.as_deref().is_none_or(|port| *known.name == *port || known.port.to_string() == *port)
                && wanted.protocol.is_none_or(|wanted| wanted == transport(known.protocol))
        });
        match (ports.next(), ports.next()) {
            (Some(port), None) => Ok((SocketAddr::new(*address, port.port), transport(port.protocol))),
            (first, _) => {
                let what = if first.is_some() { "more than one such port" } else { "no such port" };
                let there =
                    service.ports.iter().map(|port| format!("{}/{}", port.port, transport(port.protocol).name()));
                bail!("Service {namespace}/{name} has {what}; there are: {}", there.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Whose address it is.
    pub(super) fn who(&self, address: IpAddr) -> Option<Who> {
        let on_host_network = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let pod = self.pods.iter().filter(|pod| !on_host_network(pod)).find(|pod| addresses(pod).contains(&address));
        if let Some(pod) = pod {
            let name = format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            let unled = pod.annotations().get(ANNOTATION).is_some_and(|answer| answer == "false");
            return Some(Who { name, node, unled });
        }
        let node = self.snapshot.nodes().find(|node| node.addresses.contains(&address))?;
        Some(Who { name: format!("node {}", node.name), node: Some(node.name.to_string()), unled: false })
    }

    /// What the API's objects ask of the node for a packet that comes in by the link; `None` for a protocol that no
    /// Service has.
    pub(super) fn expect(&self, receiver: &Receiver<'_>, question: &Question, link: Option<&str>) -> Option<Expected> {
        let protocol = match question.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
            Transport::Sctp => Protocol::Sctp,
            Transport::Icmp => return None,
        };
        let source = question.source?;
        let flow = Flow { source, link, protocol, destination: question.destination, port: question.port };
        let mut node = NodeContext::from_snapshot(&self.snapshot, receiver.name, &[]);
        node.own_addresses.retain(|address| !receiver.own_addresses.contains(address));
        node.own_addresses.splice(..0, receiver.own_addresses.iter().copied());
        let table = Table::compile(&self.snapshot, &node);
        let mut outcomes: Vec<Becomes> = Vec::new();
        for node in self.contexts(&node, receiver, source) {
            let outcome = trace(&table, &node, flow);
            if !outcomes.contains(&outcome) {
                outcomes.push(outcome);
            }
        }
        let service = outcomes.iter().find_map(|outcome| match outcome {
            Becomes::Forward { service, .. } => Some(service.clone()),
            Becomes::Reject { service } | Becomes::Drop { service } => service.clone(),
            Becomes::Pass => None,
        });
        let known = service.as_ref().and_then(|service| self.snapshot.service(service));
        let stays = known.is_some_and(|service| service.affinity.is_some());
        Some(Expected { outcomes, service, stays })
    }

    /// The node in each way that it may be set up.
    fn contexts(&self, node: &NodeContext, receiver: &Receiver<'_>, source: IpAddr) -> Vec<NodeContext> {
        if receiver.is_ours {
            let pod_networks = self.snapshot.nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
            return vec![NodeContext { pod_networks, ..node.clone() }];
        }
        // Sources may be told by their address or their link, or not at all; and NodePorts may be anywhere.
        let nobody: IpAddr = if source.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let mut contexts = Vec::new();
        for pod_networks in [vec![], vec![IpNet::from(source)], vec![IpNet::from(nobody)]] {
            for masquerade_all in [false, true] {
                for node_port_addresses in [&node.node_port_addresses, &node.own_addresses] {
                    contexts.push(NodeContext {
                        pod_networks: pod_networks.clone(),
                        masquerade_all,
                        node_port_addresses: node_port_addresses.clone(),
                        ..node.clone()
                    });
                }
            }
        }
        contexts
    }
}

impl Expected {
    /// Whether the kernel's ends are what one of the ways comes to: backends and under whose address, refusal, silence.
    pub(super) fn admits(&self, ends: &[End]) -> bool {
        let all = |is: fn(&Outcome) -> bool| !ends.is_empty() && ends.iter().all(|end| is(&end.outcome));
        self.outcomes.iter().any(|outcome| match outcome {
            Becomes::Forward { backends, .. } => self.admits_backends(backends, ends),
            Becomes::Reject { .. } => all(|outcome| *outcome == Outcome::Refused),
            Becomes::Drop { .. } => all(|outcome| *outcome == Outcome::Dropped),
            Becomes::Pass => all(|outcome| *outcome == Outcome::Passed),
        })
    }

    fn admits_backends(&self, backends: &[Possible], ends: &[End]) -> bool {
        let place = |backend: Backend| SocketAddr::new(backend.address, backend.port);
        let wanted: BTreeSet<_> = backends.iter().map(|to| (place(to.backend), to.masquerade)).collect();
        let found: Option<BTreeSet<_>> = ends
            .iter()
            .map(|end| match &end.outcome {
                Outcome::To { backend, masqueraded } => Some((*backend, masqueraded.is_some())),
                _ => None,
            })
            .collect();
        found.is_some_and(|found| found == wanted || (self.stays && !found.is_empty() && found.is_subset(&wanted)))
    }

    /// In words, what it should come to.
    pub(super) fn text(&self) -> String {
        let of = |outcome: &Becomes| match outcome {
            Becomes::Forward { backends, .. } => {
                let text = |to: &Possible| match to.masquerade {
                    true => format!("{} under the node's address", to.backend),
                    false => to.backend.to_string(),
                };
                format!("go to {}", backends.iter().map(text).collect::<Vec<_>>().join(" or "))
            }
            Becomes::Reject { .. } => "be refused".to_owned(),
            Becomes::Drop { .. } => "be dropped".to_owned(),
            Becomes::Pass => "be none of Portolan's concern".to_owned(),
        };
        self.outcomes.iter().map(of).collect::<Vec<_>>().join(", or else ")
    }
}

fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let status = pod.status.as_ref();
    let all = status.and_then(|status| status.pod_ips.as_deref()).unwrap_or_default();
    let first = status.and_then(|status| status.pod_ip.as_deref());
    let mut addresses: Vec<IpAddr> =
        all.iter().map(|ip| ip.ip.as_str()).chain(first).filter_map(|ip| ip.parse().ok()).collect();
    addresses.dedup();
    addresses
}

async fn all<K>(client: &Client) -> Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    Ok(list.with_context(|| format!("cannot list {}", K::plural(&())))?.items)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A Service with one backend on this node and one elsewhere.
    fn cluster(spec: &serde_json::Value) -> Cluster {
        let mut snapshot = Snapshot::default();
        let mut object = json!({"metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIPs": ["10.96.0.1"], "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}});
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let (service, _) = translate::service(&serde_json::from_value(object).unwrap()).unwrap();
        snapshot.apply(Event::Service(service));
        let slice = json!({"metadata": {"namespace": "shop", "name": "web-1",
                "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.244.1.2"], "nodeName": "node1"},
                {"addresses": ["10.244.2.2"], "nodeName": "node2"}]});
        let (slice, _) = translate::endpoint_slice(&serde_json::from_value(slice).unwrap()).unwrap();
        snapshot.apply(Event::Slice(slice));
        let node = json!({"metadata": {"name": "node1"}, "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        snapshot.apply(Event::Node(translate::node(&serde_json::from_value(node).unwrap()).unwrap()));
        Cluster { snapshot, pods: Vec::new() }
    }

    fn to(backend: &str, masqueraded: bool) -> Outcome {
        Outcome::To { backend: backend.parse().unwrap(), masqueraded: masqueraded.then(String::new) }
    }

    fn admits(cluster: &Cluster, is_ours: bool, source: &str, asked: &str, outcomes: &[Outcome]) -> bool {
        let own: [IpAddr; 1] = ["192.0.2.1".parse().unwrap()];
        let receiver = Receiver { name: "node1", own_addresses: &own, is_ours };
        let asked: SocketAddr = asked.parse().unwrap();
        let question = Question {
            source: source.parse().ok(),
            transport: Transport::Tcp,
            destination: asked.ip(),
            port: asked.port(),
        };
        let of = outcomes.len().try_into().unwrap();
        let end = |outcome: &Outcome| End { ways: 1, of, outcome: outcome.clone(), element: None };
        let ends: Vec<End> = outcomes.iter().map(end).collect();
        cluster.expect(&receiver, &question, Some("eth0")).unwrap().admits(&ends)
    }

    #[test]
    fn whose_address_a_backend_sees_is_compared() {
        let web = cluster(&json!({}));
        let both = |masqueraded| ["10.244.1.2:8080", "10.244.2.2:8080"].map(|backend| to(backend, masqueraded));
        for (source, masqueraded) in [("10.244.1.9", false), ("198.51.100.7", true)] {
            assert!(admits(&web, true, source, "10.96.0.1:80", &both(masqueraded)), "{source}");
            assert!(!admits(&web, true, source, "10.96.0.1:80", &both(!masqueraded)), "{source}");
            // How another's node is set up is not known; where it goes is.
            assert!(admits(&web, false, source, "10.96.0.1:80", &both(false)), "{source}");
            assert!(admits(&web, false, source, "10.96.0.1:80", &both(true)), "{source}");
            assert!(!admits(&web, false, source, "10.96.0.1:80", &both(masqueraded)[..1]), "{source}");
        }
    }

    #[test]
    fn refusals_and_silence_are_not_the_same() {
        let web = cluster(&json!({}));
        for is_ours in [false, true] {
            let is = |asked, outcome| admits(&web, is_ours, "198.51.100.7", asked, &[outcome]);
            assert!(is("10.96.0.1:81", Outcome::Refused), "a port that is not there");
            assert!(!is("10.96.0.1:81", Outcome::Dropped) && !is("10.96.0.1:81", Outcome::Passed));
            assert!(is("203.0.113.1:80", Outcome::Passed) && !is("203.0.113.1:80", Outcome::Refused));
            assert!(!is("10.96.0.1:80", Outcome::Refused) && !is("192.0.2.1:30080", Outcome::Dropped));
        }
        let local = cluster(&json!({"externalTrafficPolicy": "Local"}));
        let asked = "192.0.2.1:30080";
        assert!(admits(&local, true, "198.51.100.7", asked, &[to("10.244.1.2:8080", false)]));
        assert!(!admits(&local, true, "198.51.100.7", asked, &[to("10.244.1.2:8080", true)]));
    }

    #[test]
    fn a_client_may_have_been_given_one_to_stay_with() {
        let sticky = cluster(&json!({"sessionAffinity": "ClientIP"}));
        assert!(admits(&sticky, true, "10.244.1.9", "10.96.0.1:80", &[to("10.244.1.2:8080", false)]));
        assert!(!admits(&sticky, true, "10.244.1.9", "10.96.0.1:80", &[to("10.244.3.2:8080", false)]));
    }
}
