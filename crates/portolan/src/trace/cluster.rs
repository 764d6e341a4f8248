//! The API's objects -> who is meant by a name, and what a kernel should have.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::ListParams;
use kube::{Api, Client, Resource, ResourceExt};
use portolan_model::forwarding::{FrontendForwarding, NodeContext, Place as At, Target, compile};
use portolan_model::{Event, Protocol, ServiceId, Snapshot, translate};
use serde::de::DeserializeOwned;

use super::ask::{Destination, Place, Transport};
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

/// What one of a Service's frontends should lead to, for insiders and for outsiders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Desired {
    pub(super) service: ServiceId,
    forwarding: FrontendForwarding,
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

    /// What the Services say of an address and port on the node.
    pub(super) fn desired(&self, node: &str, to: SocketAddr, transport: Transport) -> Option<Desired> {
        let node = NodeContext::from_snapshot(&self.snapshot, node, &[]);
        let found = |service: &portolan_model::Service| {
            let (forwarding, _) = compile(&self.snapshot, &service.id, &node);
            let mut frontends = forwarding.frontends.into_iter();
            let forwarding = frontends.find(|forwarding| {
                let frontend = forwarding.frontend;
                let here = match frontend.place {
                    At::Address(address) => address == to.ip(),
                    At::Node(_) => {
                        frontend.family() == portolan_model::forwarding::Family::of(to.ip())
                            && node.node_port_addresses.contains(&to.ip())
                    }
                };
                here && frontend.port == to.port() && self::transport(frontend.protocol) == transport
            })?;
            Some(Desired { service: service.id.clone(), forwarding })
        };
        // Of several that ask for it, the first by name has it.
        self.snapshot.services().find_map(found)
    }
}

impl Desired {
    /// Whether it may come to this: some or no backends, for an insider or an outsider.
    pub(super) fn admits(&self, backends: &BTreeSet<SocketAddr>) -> bool {
        let of = |target: &Target| -> BTreeSet<SocketAddr> {
            target.backends().iter().map(|backend| SocketAddr::new(backend.address, backend.port)).collect()
        };
        let shut_out = backends.is_empty() && !self.forwarding.sources.is_empty();
        // A client with a session gets one of them.
        let stays =
            |of: &BTreeSet<_>| self.forwarding.affinity.is_some() && !backends.is_empty() && backends.is_subset(of);
        shut_out
            || [&self.forwarding.inside, &self.forwarding.outside]
                .into_iter()
                .map(of)
                .any(|of| of == *backends || stays(&of))
    }

    /// In words, for insiders and where it differs for others.
    pub(super) fn text(&self) -> String {
        let of = |target: &Target| match target {
            Target::Forward(backends) => backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            Target::Reject => "a refusal".to_owned(),
            Target::Drop => "nothing".to_owned(),
        };
        let (inside, outside) = (of(&self.forwarding.inside), of(&self.forwarding.outside));
        if inside == outside { inside } else { format!("{inside} for pods and the node itself, {outside} for others") }
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
