//! Service forwarding in the kernel: [`DataPlane`] keeps one network namespace as the snapshot says.
//!
//! Invariants: what a change costs follows the change and not the number of Services; what was made by an earlier life
//! of this program is adopted and not rebuilt, so that a restart drops no connection; one Service's refused change
//! harms no other and is tried again.
//!
//! Deliberately not here: what should be forwarded where (`portolan_model::forwarding`), watching the API.

#![deny(unsafe_code)]

mod addresses;
mod config;
mod conntrack;
mod desired;
mod ending;
mod error;
mod holders;
mod lock;
pub mod nft;
mod plane;
mod room;
pub mod sock;
pub mod trace;
mod traffic;

pub use config::{LocalTraffic, NodePortAddresses, ProxyConfig};
pub use conntrack::FlowsEnded;
pub use error::Error;
pub use holders::{Holder, holders};
pub use plane::{DataPlane, Report, cleanup};
pub use room::{Room, SetSize};
pub use traffic::{Counted, Counts};
