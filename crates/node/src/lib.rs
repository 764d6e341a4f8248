//! A node: pods as real containers, and the agent that makes them what the Kubernetes API says they should be.
//!
//! ```text
//! Pod ─▶ pod::plan (pure) ─▶ Action ─▶ agent::worker ─▶ shim (one process a pod) ─▶ containers
//!            ▲                                                │
//!            └── pod::Realized ◀── exits, probes, starts ─────┘
//!                     └─▶ pod::status (pure) ─▶ Pod status
//! ```
//!
//! Invariants: a pod's network, IPC, UTS and mount namespaces belong to its shim process and die with it, so nothing
//! mounted or linked for a pod outlives it; killing the agent leaves pods running; one pod's nonsense is said in that
//! pod's status and Events and disturbs no other pod.
//!
//! Deliberately not here: registries (images come from archives), the service plane, and which pod runs where.

#![deny(unsafe_code)]

mod agent;
mod cgroup;
pub mod image;
mod net;
pub mod pod;
mod shim;
mod sweep;

pub use agent::{AgentConfig, Capacity, Changes, Error, LEASE_EXPIRY, Sandboxes, TlsIdentity, drain, run};
pub use cgroup::of_pod as cgroup_of;
pub use shim::try_reexec;
pub use sweep::sweep;
