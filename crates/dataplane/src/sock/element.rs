//! What the maps hold, as values.

use std::net::IpAddr;

use portolan_model::forwarding::{Backend, Frontend};

/// What the programs do with a socket that asks for a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Forward,
    Reject,
    /// As if the frontend were not there: nftables decides. Hides a NodePort of the same number behind an address of
    /// its own.
    Leave,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub verdict: Verdict,
    /// Slots 0 to `count - 1` are in use.
    pub count: u32,
    /// 0 without session affinity.
    pub affinity_seconds: u32,
    /// With affinity, the frontend by which clients are remembered.
    pub together: Frontend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Element {
    Frontend(Frontend, u32, Head),
    Slot(u32, u32, Backend),
    /// A backend of a frontend that somebody may stay with.
    Member(u32, Backend),
    /// Begins at zero.
    Counter(u32),
    NodeAddress(IpAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Key {
    Frontend(Frontend),
    Slot(u32, u32),
    Member(u32, Backend),
    Counter(u32),
    NodeAddress(IpAddr),
}

impl Element {
    pub(super) fn key(&self) -> Key {
        match *self {
            Self::Frontend(frontend, ..) => Key::Frontend(frontend),
            Self::Slot(id, index, _) => Key::Slot(id, index),
            Self::Member(id, backend) => Key::Member(id, backend),
            Self::Counter(id) => Key::Counter(id),
            Self::NodeAddress(address) => Key::NodeAddress(address),
        }
    }
}

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Put(Element),
    Delete(Key),
}
