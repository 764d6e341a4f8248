//! The Service vocabulary every projection shares, and the [`Snapshot`] they are all functions of.
//!
//! Invariants: nothing here does I/O, reads a clock or knows about tokio; applying the same events in any order that
//! respects each object's own history gives the same `Snapshot`; an object with nonsense in it yields a
//! [`Diagnostic`] for that object and never an error for the others.
//!
//! Deliberately not here: how the kernel, DNS or anything else represents any of it.

#![forbid(unsafe_code)]

pub mod forwarding;
mod names;
pub mod quantity;
mod snapshot;
pub mod translate;
mod vocabulary;

pub use names::Names;
pub use snapshot::{Delta, Event, Snapshot};
pub use vocabulary::{
    Diagnostic, Endpoint, EndpointPort, EndpointSlice, Hints, Node, NodePort, OwnNames, Protocol, Service, ServiceId,
    ServicePort, ServiceType, SliceId, TrafficPolicy,
};
