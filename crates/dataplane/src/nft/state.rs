//! What the kernel holds, entry by entry, and what a change makes of it.
//!
//! Invariant: a chain is wanted exactly as long as an entry leads to it. Every change is noted first in a [`Journal`],
//! from which the smallest set of kernel operations is read off, and with which a refused change is undone.

use std::collections::{BTreeMap, HashMap};

use super::entries::{Chain, Entry, Key, Value, chain_of};

/// Entries and how many Services (or other owners) want each; 0 for what was found in the kernel and not asked for yet.
#[derive(Clone, Debug, Default)]
pub struct State {
    entries: HashMap<Key, Held>,
    /// How many entries lead to each chain that exists.
    chains: BTreeMap<Chain, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    value: Value,
    owners: u32,
}

/// What every touched entry, and its owners, were before.
#[derive(Debug, Default)]
pub struct Journal {
    entries: BTreeMap<Key, Option<Held>>,
    chains: BTreeMap<Chain, Option<usize>>,
}

/// What to do to a kernel, in this order: delete, create chains, insert, remove chains. All of it or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    pub delete: Vec<Entry>,
    pub create: Vec<Chain>,
    pub insert: Vec<Entry>,
    pub remove: Vec<Chain>,
}

impl Operations {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.create.is_empty() && self.insert.is_empty() && self.remove.is_empty()
    }
}

impl State {
    /// As read from a kernel: nobody's yet.
    #[must_use]
    pub fn found(entries: impl IntoIterator<Item = Entry>, chains: impl IntoIterator<Item = Chain>) -> Self {
        let mut state = Self { chains: chains.into_iter().map(|chain| (chain, 0)).collect(), ..Self::default() };
        for (key, value) in entries {
            state.entries.insert(key, Held { value, owners: 0 });
            if let Some(chain) = chain_of(&key, &value) {
                *state.chains.entry(chain).or_default() += 1;
            }
        }
        state
    }

    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Value> {
        self.entries.get(key).map(|held| &held.value)
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.entries.iter().map(|(key, held)| (*key, held.value))
    }

    pub fn chains(&self) -> impl Iterator<Item = Chain> {
        self.chains.keys().copied()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One more owner wants the key with this value. The latest value counts.
    pub fn claim(&mut self, (key, value): Entry, journal: &mut Journal) {
        let before = self.entries.get(&key).copied();
        self.set(key, Some(Held { value, owners: before.map_or(0, |held| held.owners) + 1 }), journal);
    }

    /// An owner that has the key wants it with this value now.
    pub fn update(&mut self, (key, value): Entry, journal: &mut Journal) {
        if let Some(held) = self.entries.get(&key).copied().filter(|held| held.value != value) {
            self.set(key, Some(Held { value, ..held }), journal);
        }
    }

    /// One owner less wants the key; without any left the entry goes.
    pub fn release(&mut self, key: Key, journal: &mut Journal) {
        if let Some(held) = self.entries.get(&key).copied() {
            let left = Held { owners: held.owners.saturating_sub(1), ..held };
            self.set(key, (left.owners > 0).then_some(left), journal);
        }
    }

    /// One more owner for an entry that is there; says whether it is.
    pub fn own(&mut self, key: &Key) -> bool {
        let held = self.entries.get_mut(key);
        held.map(|held| held.owners += 1).is_some()
    }

    /// Removes what nobody asked for.
    pub fn prune(&mut self, journal: &mut Journal) {
        let strays: Vec<Key> = self.entries.iter().filter(|(_, held)| held.owners == 0).map(|(key, _)| *key).collect();
        for key in strays {
            self.set(key, None, journal);
        }
        let unused: Vec<Chain> = self.chains.iter().filter(|(_, uses)| **uses == 0).map(|(chain, _)| *chain).collect();
        for chain in unused {
            journal.chains.entry(chain).or_insert(Some(0));
            self.chains.remove(&chain);
        }
    }

    fn set(&mut self, key: Key, held: Option<Held>, journal: &mut Journal) {
        let before = match held {
            Some(held) => self.entries.insert(key, held),
            None => self.entries.remove(&key),
        };
        journal.entries.entry(key).or_insert(before);
        let chain = |held: Option<Held>| held.and_then(|held| chain_of(&key, &held.value));
        if let Some(chain) = chain(held) {
            journal.chains.entry(chain).or_insert_with(|| self.chains.get(&chain).copied());
            *self.chains.entry(chain).or_default() += 1;
        }
        if let Some(chain) = chain(before) {
            journal.chains.entry(chain).or_insert_with(|| self.chains.get(&chain).copied());
            if let Some(uses) = self.chains.get_mut(&chain) {
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.chains.remove(&chain);
                }
            }
        }
    }

    /// What the journal's changes come to, sorted.
    #[must_use]
    pub fn operations(&self, journal: &Journal) -> Operations {
        let mut operations = Operations::default();
        for (key, before) in &journal.entries {
            let (before, after) = (before.map(|held| held.value), self.get(key).copied());
            if before == after {
                continue;
            }
            // The kernel cannot change what an element maps to.
            operations.delete.extend(before.map(|value| (*key, value)));
            operations.insert.extend(after.map(|value| (*key, value)));
        }
        for (chain, before) in &journal.chains {
            match (before.is_some(), self.chains.contains_key(chain)) {
                (false, true) => operations.create.push(*chain),
                (true, false) => operations.remove.push(*chain),
                _ => {}
            }
        }
        operations
    }

    /// Takes back all changes of the journal.
    pub fn undo(&mut self, journal: Journal) {
        for (key, before) in journal.entries {
            match before {
                Some(held) => self.entries.insert(key, held),
                None => self.entries.remove(&key),
            };
        }
        for (chain, before) in journal.chains {
            match before {
                Some(uses) => self.chains.insert(chain, uses),
                None => self.chains.remove(&chain),
            };
        }
    }
}

impl Journal {
    /// The entries that were touched, with what they were before.
    pub fn touched(&self) -> impl Iterator<Item = (&Key, Option<Value>)> {
        self.entries.iter().map(|(key, before)| (key, before.map(|held| held.value)))
    }
}
