//! Backends that went -> the sockets that are still connected to them, and to which they were led.
//!
//! Invariant: a socket that named its peer itself is never among them, nor one without a peer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use portolan_model::forwarding::{Backend, Frontend, Place};

use super::maps::Table;
use super::{Capacity, Error, Gone, wire};
use crate::ending::Ended;

pub(crate) struct Connections {
    connections: Table<8, 48>,
    frontends: Table<20, 56>,
    slots: Table<8, 28>,
}

impl Connections {
    pub(super) fn open(directory: &Path, capacity: &Capacity) -> Result<Self, Error> {
        Ok(Self {
            connections: Table::open(directory, "connections", capacity.connections)?,
            frontends: Table::open(directory, "frontends", capacity.frontends)?,
            slots: Table::open(directory, "slots", capacity.backends)?,
        })
    }

    /// By the sockets' cookies.
    pub(crate) fn left_by(&self, gone: &BTreeSet<Gone>) -> Result<BTreeMap<u64, Ended>, Error> {
        let mut left = BTreeMap::new();
        self.connections.read(|cookie, value| {
            let Some((backend, asked)) = wire::read_connection(&value) else { return };
            let node = Frontend { place: Place::Node(asked.family()), ..asked };
            let of = [asked, node].map(|frontend| Gone { frontend, backend });
            if let Some(gone) = of.iter().find(|of| gone.contains(of)) {
                left.insert(u64::from_ne_bytes(cookie), *gone);
            }
        })?;
        // It may have come back while somebody waited.
        left.retain(|_, gone| !self.leads(gone.frontend, gone.backend));
        let ended = |gone: Gone| Ended { protocol: gone.frontend.protocol, port: gone.backend.port };
        Ok(left.into_iter().map(|(cookie, gone)| (cookie, ended(gone))).collect())
    }

    fn leads(&self, frontend: Frontend, backend: Backend) -> bool {
        let key = wire::frontend_key(frontend);
        let Some((id, head)) = key.and_then(|key| wire::read_frontend_value(&self.frontends.get(&key)?)) else {
            return false;
        };
        let slot = |index| self.slots.get(&wire::slot_key(id, index));
        (0..head.count).any(|index| slot(index).is_some_and(|slot| wire::read_slot_value(&slot) == backend))
    }
}
