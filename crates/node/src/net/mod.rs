//! Pods' addresses, and the way to them: routed, not bridged.
//!
//! Invariant: a pod's link, its address and the routes in it die with the pod's namespace, and the node's route to it
//! with the link; so nothing is left when a shim is killed. Deliberately not here: anything about Services.

mod egress;
mod ipam;
mod link;
mod routes;

pub(crate) use egress::masquerade_egress;
pub(crate) use ipam::Ipam;
pub(crate) use link::{Network, link_name};
pub(crate) use routes::{pod_networks, routes};
