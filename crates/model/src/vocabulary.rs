//! The words: what the Kubernetes API says about Services, reduced to what forwarding and discovery need.
//!
//! Source: the Kubernetes API reference for `core/v1` Service and Node and `discovery.k8s.io/v1` EndpointSlice.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// `namespace/name` of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceId {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `namespace/name` of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl SliceId {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// A port opened for a Service on every node, 1–65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodePort(pub u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    /// The canonical name a query for the Service is answered with.
    ExternalName(String),
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    pub service_type: ServiceType,
    /// Empty for headless Services, for ExternalName and before allocation.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not `Proxy`.
    pub load_balancer_ips: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP` with its timeout (1 s to 86,400 s); `None` without affinity.
    pub affinity: Option<Duration>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    pub health_check_node_port: Option<NodePort>,
    /// Who may reach the load-balancer addresses; empty means everyone.
    pub source_ranges: Vec<IpNet>,
    pub publish_not_ready: bool,
    /// Labelled `service.kubernetes.io/service-proxy-name` or `service.kubernetes.io/headless`: not ours to forward.
    /// DNS still answers for it.
    pub foreign_proxy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when the Service's only port has no name.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<NodePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub id: SliceId,
    /// From the label `kubernetes.io/service-name`.
    pub service: ServiceId,
    /// Labelled `service.kubernetes.io/headless`: for DNS alone.
    pub headless: bool,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// `None` stands for all ports, which a Service's forwarding ignores.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first address of the endpoint; consumers of slices use no other (API reference, `endpoints[].addresses`).
    pub address: IpAddr,
    /// Absent conditions mean ready, serving and not terminating.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<Arc<str>>,
    /// Few that are followed have any.
    pub own: Option<Box<OwnNames>>,
    /// Many endpoints have the same.
    pub hints: Option<Arc<Hints>>,
}

/// What no other endpoint is called. Not both are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNames {
    pub hostname: Option<Arc<str>>,
    /// The pod behind the endpoint.
    pub pod: Option<Arc<str>>,
}

impl Endpoint {
    #[must_use]
    pub fn hostname(&self) -> Option<&str> {
        self.own.as_ref()?.hostname.as_deref()
    }

    /// `None` also where [`forget_pod`](Self::forget_pod) was called.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        self.own.as_ref()?.pod.as_deref()
    }

    /// For who follows many endpoints and never asks which pod is behind one.
    pub fn forget_pod(&mut self) {
        self.own = self.own.take().and_then(|own| OwnNames { pod: None, ..*own }.boxed());
    }
}

impl OwnNames {
    /// `None` without any.
    pub(crate) fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// For whom an endpoint is meant, before others. Not both lists are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    pub zones: Vec<Arc<str>>,
    pub nodes: Vec<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// `InternalIP` addresses in the order of the status.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// Condition `Ready` is `True`.
    pub ready: bool,
    /// Label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded_from_load_balancers: bool,
    /// Being deleted, or tainted `ToBeDeletedByClusterAutoscaler`.
    pub going_away: bool,
}

/// What was wrong with one object, for its Event: the object still counts for everything that made sense in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The field's path, as in `spec.ports[1].port`.
    pub field: String,
    /// Lower case, says what is wrong and what to do.
    pub message: String,
}
