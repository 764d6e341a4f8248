//! Network namespaces whose sockets are left to nftables.
//!
//! Invariant: what was left out before the programs are there is left out from their first moment on. A namespace's number
//! is never given to another, so one that went while nobody watched does no harm.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::maps::Table;
use super::{Capacity, Error};

/// A list that may be written before, while and after a [`SockLb`](super::SockLb) uses it. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Exemptions(Arc<Mutex<List>>);

#[derive(Debug, Default)]
struct List {
    namespaces: BTreeSet<u64>,
    /// Once the programs are there.
    map: Option<Table<8, 4>>,
}

impl Exemptions {
    /// Leaves the sockets of the namespace, named by its [`cookie`](super::cookie), to nftables from now on.
    ///
    /// # Errors
    /// What the kernel refused; the list has it nevertheless.
    pub fn add(&self, namespace: u64) -> Result<(), Error> {
        let mut list = self.lock();
        list.namespaces.insert(namespace);
        list.map.as_mut().map_or(Ok(()), |map| map.put(namespace.to_ne_bytes(), [0; 4]))
    }

    /// The namespace is gone, or its sockets are led again.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remove(&self, namespace: u64) -> Result<(), Error> {
        let mut list = self.lock();
        list.namespaces.remove(&namespace);
        list.map.as_mut().map_or(Ok(()), |map| map.delete(&namespace.to_ne_bytes()))
    }

    /// Writes to the map pinned in the directory what is known, and from now on what comes.
    pub(super) fn attach(&self, directory: &Path) -> Result<(), Error> {
        let mut map = Table::open(directory, "exempt", Capacity::EXEMPT)?;
        let mut list = self.lock();
        list.namespaces.iter().try_for_each(|namespace| map.put(namespace.to_ne_bytes(), [0; 4]))?;
        list.map = Some(map);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether they are one and the same list.
impl PartialEq for Exemptions {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Exemptions {}
