//! Counters of frontends -> figures of Services.
//!
//! A counter is an element of a set of its own, so a change of the Service's endpoints does not touch it, and the next
//! life of this program finds it as it was.

use std::sync::Arc;

use portolan_model::forwarding::{Frontend, FrontendKind, Place};
use portolan_model::{Service, ServiceId};

/// Since the frontend is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// That were given a backend.
    pub connections: u64,
    /// In both directions, with those that opened the connection.
    pub packets: u64,
    /// Of IP packets: headers count, link layers do not.
    pub bytes: u64,
}

/// What went through one frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    pub service: ServiceId,
    /// The ServicePort's name, which may be empty.
    pub port: Arc<str>,
    pub kind: FrontendKind,
    pub frontend: Frontend,
    pub counts: Counts,
}

impl Counted {
    /// `None` if the frontend is none of the Service's.
    #[must_use]
    pub fn of(service: &Service, frontend: Frontend, counts: Counts) -> Option<Self> {
        let kind = match frontend.place {
            Place::Node(_) => FrontendKind::NodePort,
            Place::Address(address) if service.cluster_ips.contains(&address) => FrontendKind::ClusterIp,
            Place::Address(address) if service.load_balancer_ips.contains(&address) => FrontendKind::LoadBalancer,
            Place::Address(address) if service.external_ips.contains(&address) => FrontendKind::ExternalIp,
            Place::Address(_) => return None,
        };
        let number = |port: &portolan_model::ServicePort| match frontend.place {
            Place::Node(_) => port.node_port.map(|port| port.0),
            Place::Address(_) => Some(port.port),
        };
        let mut ports = service.ports.iter().filter(|port| port.protocol == frontend.protocol);
        let port = ports.find(|port| number(port) == Some(frontend.port))?;
        Some(Self { service: service.id.clone(), port: port.name.clone(), kind, frontend, counts })
    }
}
