//! Network namespaces and cgroups whose sockets are left to nftables.
//!
//! Invariant: what was left out before the programs are there is left out from their first moment on. The number of a
//! namespace or a cgroup is never given to another, so one that went while nobody watched does no harm.

use std::collections::BTreeSet;
use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fmt, fs, io};

use super::maps::{Flags, Table};
use super::{Capacity, Error};

/// The marks that the programs know, as bits of one number.
const NAMESPACES: u32 = 0;
const CGROUPS: u32 = 1;

/// Whose sockets are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exempt {
    /// A network namespace, by its [`cookie`](super::cookie).
    Namespace(u64),
    /// The processes in a cgroup v2 and in all below it, by the number of its directory.
    Cgroup(u64),
}

impl Exempt {
    /// The cgroup of this directory, not too deep below the hierarchy's root for the programs to find it (15 levels).
    ///
    /// # Errors
    /// When the directory cannot be read, or is not below the root.
    pub fn cgroup(root: &Path, directory: &Path) -> io::Result<Self> {
        let below = directory.strip_prefix(root).map_err(io::Error::other)?;
        if below.as_os_str().is_empty() {
            return Err(io::Error::other(format!("{} is everybody's cgroup", root.display())));
        }
        Ok(Self::Cgroup(fs::metadata(directory)?.st_ino()))
    }
}

/// A list that may be written before, while and after a [`SockLb`](super::SockLb) uses it. Clones are the same list.
#[derive(Clone, Default)]
pub struct Exemptions(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    exempt: BTreeSet<Exempt>,
    /// Once the programs are there.
    maps: Option<Maps>,
}

struct Maps {
    namespaces: Table<8, 4>,
    cgroups: Table<8, 4>,
    /// Tells the programs where to look at all; once told, it stays so.
    exempting: Flags,
}

impl Maps {
    fn add(&mut self, exempt: Exempt) -> Result<(), Error> {
        let (table, number, mark) = match exempt {
            Exempt::Namespace(cookie) => (&mut self.namespaces, cookie, NAMESPACES),
            Exempt::Cgroup(id) => (&mut self.cgroups, id, CGROUPS),
        };
        table.put(number.to_ne_bytes(), [0; 4])?;
        self.exempting.raise(mark)
    }

    fn remove(&mut self, exempt: Exempt) -> Result<(), Error> {
        match exempt {
            Exempt::Namespace(cookie) => self.namespaces.delete(&cookie.to_ne_bytes()),
            Exempt::Cgroup(id) => self.cgroups.delete(&id.to_ne_bytes()),
        }
    }

    fn read(&self) -> Result<BTreeSet<Exempt>, Error> {
        let mut found = BTreeSet::new();
        self.namespaces.read(|cookie, _| found.extend([Exempt::Namespace(u64::from_ne_bytes(cookie))]))?;
        self.cgroups.read(|id, _| found.extend([Exempt::Cgroup(u64::from_ne_bytes(id))]))?;
        Ok(found)
    }
}

impl Exemptions {
    /// Leaves these sockets to nftables from now on.
    ///
    /// # Errors
    /// What the kernel refused; the list has it nevertheless.
    pub fn add(&self, exempt: Exempt) -> Result<(), Error> {
        let mut list = self.lock();
        list.exempt.insert(exempt);
        list.maps.as_mut().map_or(Ok(()), |maps| maps.add(exempt))
    }

    /// They are gone, or led again.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn remove(&self, exempt: Exempt) -> Result<(), Error> {
        let mut list = self.lock();
        list.exempt.remove(&exempt);
        list.maps.as_mut().map_or(Ok(()), |maps| maps.remove(exempt))
    }

    /// Leaves these sockets to nftables from now on and no others, whoever an earlier life left out.
    ///
    /// # Errors
    /// What the kernel refused; the list is as it should be nevertheless.
    pub fn replace(&self, exempt: BTreeSet<Exempt>) -> Result<(), Error> {
        let mut list = self.lock();
        list.exempt = exempt;
        let List { exempt, maps } = &mut *list;
        let Some(maps) = maps else { return Ok(()) };
        let found = maps.read()?;
        found.difference(exempt).try_for_each(|gone| maps.remove(*gone))?;
        exempt.difference(&found).try_for_each(|new| maps.add(*new))
    }

    /// Writes to the maps pinned in the directory what is known, and from now on what comes.
    pub(super) fn attach(&self, directory: &Path) -> Result<(), Error> {
        let mut maps = Maps {
            namespaces: Table::open(directory, "exempt", Capacity::EXEMPT)?,
            cgroups: Table::open(directory, "exempt_cgroups", Capacity::EXEMPT)?,
            exempting: Flags::open(directory, "exempting")?,
        };
        let mut list = self.lock();
        list.exempt.iter().try_for_each(|exempt| maps.add(*exempt))?;
        list.maps = Some(maps);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Exemptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(&self.lock().exempt).finish()
    }
}

/// Whether they are one and the same list.
impl PartialEq for Exemptions {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Exemptions {}
