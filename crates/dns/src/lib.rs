//! Cluster DNS: the Snapshot -> a zone (pure), and the server that answers from it (edge).
//!
//! A query's way: `udp` or `tcp` receives it, `query` reads it, `zone` finds the records, `respond` writes the reply;
//! what the zone does not hold goes through `forward` to other servers and comes back through `respond`.
//!
//! Invariants: the zone answers without locks or an async runtime, and the usual questions without allocation; whatever
//! a client can make grow is bounded; no bytes from the network make anything panic.
//!
//! Deliberately not here: how the Snapshot comes to be, DNSSEC, zone transfers, and DNS over TLS or HTTPS.
//!
//! Source: Kubernetes DNS-Based Service Discovery specification 1.1.0; RFC 1034, 1035, 2181, 2308, 6891, 7766, 8482.

#![forbid(unsafe_code)]

mod answer;
mod cache;
mod forward;
mod query;
mod records;
mod relay;
mod resolv;
mod respond;
mod responder;
mod server;
#[cfg(test)]
mod spec;
pub mod stub;
mod tcp;
mod udp;
mod upstream;
mod wire;
mod zone;

pub use relay::relay;
pub use resolv::resolvers;
pub use server::{DnsServer, Error, ServerConfig};
pub use zone::Zone;
