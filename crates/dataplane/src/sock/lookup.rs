//! A destination -> what the programs would do with a socket that asks for it, read from the maps that they read.
//!
//! Deliberately not here: writing, and who may be doing so meanwhile.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use portolan_model::Protocol;
use portolan_model::forwarding::{Backend, Family, Frontend, Place};

use super::element::Verdict;
use super::maps::Table;
use super::{Error, programs, wire};

/// The elements that decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// A NodePort's where the destination is one of the node's addresses and no frontend has it itself.
    pub frontend: Frontend,
    pub leads: Leads,
    /// How long a client stays with the backend it was given.
    pub affinity: Option<Duration>,
    id: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To one of these, each with the same share; in the order of their slots.
    To(Vec<Backend>),
    /// Refused at once.
    Refused,
    /// The frontend is known, and left to nftables.
    Left,
}

/// The map and the element, as a reader of `bpftool map dump` finds them.
impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frontends {{ {} : id {} ", self.frontend, self.id)?;
        match &self.leads {
            Leads::To(backends) => write!(f, "forward, slots 0 to {} }}", backends.len().saturating_sub(1)),
            Leads::Refused => write!(f, "reject }}"),
            Leads::Left => write!(f, "leave }}"),
        }
    }
}

/// What the maps pinned below the directory say of a destination; `None` where they say nothing, or nothing is pinned
/// there, and nftables decides.
///
/// # Errors
/// When a map is there and cannot be opened.
pub fn look_up(pin_dir: &Path, protocol: Protocol, to: SocketAddr) -> Result<Option<Lookup>, Error> {
    let Some(directory) = directory(pin_dir)? else { return Ok(None) };
    let frontends: Table<20, 56> = Table::open(&directory, "frontends", 0)?;
    let slots: Table<8, 28> = Table::open(&directory, "slots", 0)?;
    let node_addresses: Table<16, 4> = Table::open(&directory, "node_addresses", 0)?;
    let address = to.ip().to_canonical();
    let at = |place| {
        let frontend = Frontend { place, protocol, port: to.port() };
        let (id, head) = wire::read_frontend_value(&frontends.get(&wire::frontend_key(frontend)?)?)?;
        let leads = match head.verdict {
            Verdict::Reject => Leads::Refused,
            Verdict::Leave => Leads::Left,
            Verdict::Forward => {
                let slot = |index| Some(wire::read_slot_value(&slots.get(&wire::slot_key(id, index))?));
                Leads::To((0..head.count).filter_map(slot).collect())
            }
        };
        let affinity = (head.affinity_seconds > 0).then(|| Duration::from_secs(head.affinity_seconds.into()));
        Some(Lookup { frontend, leads, affinity, id })
    };
    let by_itself = Some(address).filter(|address| !address.is_unspecified()).and_then(|a| at(Place::Address(a)));
    Ok(by_itself.or_else(|| {
        node_addresses.get(&wire::address(address))?;
        at(Place::Node(Family::of(address)))
    }))
}

/// The directory of a build whose maps this one can read.
fn directory(pin_dir: &Path) -> Result<Option<PathBuf>, Error> {
    let layout = format!("v{}-", wire::LAYOUT);
    let is_ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&layout));
    Ok(programs::entries(pin_dir)?.into_iter().find(is_ours))
}
