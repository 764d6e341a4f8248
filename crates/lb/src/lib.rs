//! External load-balancer addresses: which node answers for each (pure), and answering for it on a network (edge).
//!
//! Invariants: of the nodes that see one Snapshot exactly one owns each address; a node that is not the owner, or is
//! not known to be alive, does not answer; no answer is under way once that has been said, or the time has passed.
//!
//! Deliberately not here: giving addresses to Services (a controller does), forwarding what arrives (the data plane
//! does), NDP for IPv6 addresses, and BGP.

#![forbid(unsafe_code)]

mod arp;
mod l2;
mod owner;
mod schedule;

pub use l2::{Error, L2Announcer};
pub use owner::{Change, Ownership, owner};
