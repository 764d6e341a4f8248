//! Pods' addresses, and the way to them: routed, not bridged.
//!
//! Invariant: a pod's link, its address and the routes in it die with the pod's namespace, and the node's route to it
//! with the link; so nothing is left when a shim is killed. Deliberately not here: anything about Services.

mod host_ports;
mod ipam;
mod link;
mod routes;
mod table;

pub(crate) use host_ports::{Clash, HostPorts};
pub(crate) use ipam::Ipam;
pub(crate) use link::{Network, link_name};
pub(crate) use routes::{pod_networks, routes};
pub(crate) use table::lay_table;
