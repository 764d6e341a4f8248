//! Network namespaces whose sockets are left to nftables.
//!
//! Invariant: what was left out before the programs are there is left out from their first moment on. A namespace's number
//! is never given to another, so one that went while nobody watched does no harm.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::maps::{Flag, Table};
use super::{Capacity, Error};

/// A list that may be written before, while and after a [`SockLb`](super::SockLb) uses it. Clones are the same list.
#[derive(Clone, Default)]
pub struct Exemptions(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    namespaces: BTreeSet<u64>,
    /// Once the programs are there.
    map: Option<Map>,
}

struct Map {
    exempt: Table<8, 4>,
    /// Tells the programs to look at all; once told, it stays so.
    exempting: Flag,
}

impl Map {
    fn add(&mut self, namespace: u64) -> Result<(), Error> {
        self.exempt.put(namespace.to_ne_bytes(), [0; 4])?;
        self.exempting.raise()
    }
}

impl Exemptions {
    /// Leaves the sockets of the namespace, named by its [`cookie`](super::cookie), to nftables from now on.
    ///
    /// # Errors
    /// What the kernel refused; the list has it nevertheless.
    pub fn add(&self, namespace: u64) -> Result<(), Error> {
        let mut list = self.lock();
        list.namespaces.insert(namespace);
        list.map.as_mut().map_or(Ok(()), |map| map.add(namespace))
    }

    /// The namespace is gone, or its sockets are led again.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remove(&self, namespace: u64) -> Result<(), Error> {
        let mut list = self.lock();
        list.namespaces.remove(&namespace);
        list.map.as_mut().map_or(Ok(()), |map| map.exempt.delete(&namespace.to_ne_bytes()))
    }

    /// Writes to the map pinned in the directory what is known, and from now on what comes.
    pub(super) fn attach(&self, directory: &Path) -> Result<(), Error> {
        let exempt = Table::open(directory, "exempt", Capacity::EXEMPT)?;
        let mut map = Map { exempt, exempting: Flag::open(directory, "exempting")? };
        let mut list = self.lock();
        list.namespaces.iter().try_for_each(|namespace| map.add(*namespace))?;
        list.map = Some(map);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Exemptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.lock().namespaces).finish()
    }
}

/// Whether they are one and the same list.
impl PartialEq for Exemptions {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Exemptions {}
