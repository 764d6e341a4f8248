//! What the kernel holds, frontend by frontend, and what a change makes of it.
//!
//! Invariant: a chain is wanted exactly as long as an entry leads to it. Every change is noted first in a [`Journal`],
//! from which the smallest set of kernel operations is read off, and with which a refused change is undone.

use std::collections::{BTreeMap, HashMap};

use portolan_model::forwarding::Frontend;

use super::entries::{Chain, Entry, Key, Value, chain_of};
use super::row::Row;
use super::wire::map_of;
use crate::SetSize;

/// Rows and single keys, and how many Services (or other owners) want each; 0 for what was found in the kernel and not
/// asked for yet.
#[derive(Clone, Debug, Default)]
pub struct State {
    rows: HashMap<Frontend, Held>,
    /// Keys of sets that are no frontend's.
    shared: HashMap<Key, u32>,
    /// How many entries lead to each chain that exists.
    chains: BTreeMap<Chain, usize>,
    entries: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    row: Row,
    owners: u32,
}

/// What everything touched was before.
#[derive(Debug, Default)]
pub struct Journal {
    rows: BTreeMap<Frontend, Option<Held>>,
    shared: BTreeMap<Key, Option<u32>>,
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
        let mut seats = HashMap::<_, Vec<_>>::new();
        for entry in entries {
            if let (Key::Seat(frontend, reach, seat), Value::Backend(backend)) = entry {
                seats.entry(frontend).or_default().push((reach, seat, backend));
                continue;
            }
            match entry.0.frontend() {
                Some(frontend) => state.rows.entry(frontend).or_default().row.find(entry),
                None => drop(state.shared.insert(entry.0, 0)),
            }
            if let Some(chain) = chain_of(&entry) {
                *state.chains.entry(chain).or_default() += 1;
            }
        }
        for (frontend, seats) in seats {
            state.rows.entry(frontend).or_default().row.find_seats(seats);
        }
        state.entries = state.rows.values().map(|held| held.row.len()).sum::<usize>() + state.shared.len();
        state
    }

    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Value> {
        match key.frontend() {
            Some(frontend) => {
                let mut entries = self.rows.get(&frontend)?.row.entries(frontend);
                entries.find(|(found, _)| found == key).map(|(_, value)| value)
            }
            None => self.shared.get(key).map(|_| Value::Present),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        let rows = self.rows.iter().flat_map(|(frontend, held)| held.row.entries(*frontend));
        rows.chain(self.shared.keys().map(|key| (*key, Value::Present)))
    }

    pub fn chains(&self) -> impl Iterator<Item = Chain> {
        self.chains.keys().copied()
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// How many entries there are in each map that entries are in, the empty ones included. It costs a look at each
    /// row.
    #[must_use]
    pub(crate) fn sizes(&self) -> Vec<SetSize> {
        let mut sizes = BTreeMap::<_, usize>::new();
        for (frontend, held) in &self.rows {
            held.row
                .count(*frontend, |key, count| *sizes.entry((map_of(&key).name(), key.family())).or_default() += count);
        }
        for key in self.shared.keys() {
            *sizes.entry((map_of(key).name(), key.family())).or_default() += 1;
        }
        sizes.into_iter().map(|((set, family), elements)| SetSize { set, family, elements, room: None }).collect()
    }

    /// Entries and chains that only one of the two has, or has otherwise.
    #[must_use]
    pub fn differences(&self, other: &Self) -> usize {
        let nothing = Held::default();
        let frontends = self.rows.keys().chain(other.rows.keys().filter(|frontend| !self.rows.contains_key(*frontend)));
        let rows = frontends.map(|frontend| {
            let [ours, theirs] = [self, other].map(|state| state.rows.get(frontend).unwrap_or(&nothing));
            let (delete, insert) = difference(*frontend, &ours.row, &theirs.row);
            delete.len().max(insert.len())
        });
        let missing = |a: &Self, b: &Self| {
            a.shared.keys().filter(|key| !b.shared.contains_key(*key)).count()
                + a.chains.keys().filter(|chain| !b.chains.contains_key(*chain)).count()
        };
        rows.sum::<usize>() + missing(self, other) + missing(other, self)
    }

    /// Whether both have the same of the frontend.
    pub(super) fn agrees(&self, other: &Self, frontend: &Frontend) -> bool {
        self.row(frontend) == other.row(frontend)
    }

    pub(super) fn row(&self, frontend: &Frontend) -> Option<&Row> {
        self.rows.get(frontend).map(|held| &held.row)
    }

    /// Gives the frontend what `make` makes of what it has; `new` if whoever asks did not own it before.
    pub(super) fn put(&mut self, frontend: Frontend, make: impl FnOnce(&Row) -> Row, new: bool, journal: &mut Journal) {
        let nothing = Held::default();
        let held = self.rows.get(&frontend).unwrap_or(&nothing);
        let owners = held.owners + u32::from(new);
        let after = Held { row: make(&held.row), owners };
        if self.rows.get(&frontend) != Some(&after) {
            self.set_row(frontend, Some(after), journal);
        }
    }

    /// One owner less wants the frontend; without any left it goes.
    pub(super) fn remove(&mut self, frontend: Frontend, journal: &mut Journal) {
        if let Some(held) = self.rows.get(&frontend) {
            let owners = held.owners.saturating_sub(1);
            let left = (owners > 0).then(|| Held { owners, ..held.clone() });
            self.set_row(frontend, left, journal);
        }
    }

    /// One owner more wants the key.
    pub fn claim(&mut self, key: Key, journal: &mut Journal) {
        let owners = self.shared.get(&key).copied().unwrap_or_default();
        self.set_shared(key, Some(owners + 1), journal);
    }

    /// One owner less wants the key; without any left it goes.
    pub fn release(&mut self, key: Key, journal: &mut Journal) {
        if let Some(owners) = self.shared.get(&key).copied() {
            self.set_shared(key, owners.checked_sub(1).filter(|owners| *owners > 0), journal);
        }
    }

    /// One more owner for a frontend that is there; says whether it is.
    pub fn own_row(&mut self, frontend: &Frontend) -> bool {
        self.rows.get_mut(frontend).map(|held| held.owners += 1).is_some()
    }

    /// One more owner for a key that is there; says whether it is.
    pub fn own(&mut self, key: &Key) -> bool {
        self.shared.get_mut(key).map(|owners| *owners += 1).is_some()
    }

    /// The single keys that nobody asked for.
    pub(super) fn unowned(&self) -> impl Iterator<Item = &Key> {
        self.shared.iter().filter(|(_, owners)| **owners == 0).map(|(key, _)| key)
    }

    /// Removes what nobody asked for.
    pub fn prune(&mut self, journal: &mut Journal) {
        let rows = self.rows.iter().filter(|(_, held)| held.owners == 0);
        for frontend in rows.map(|(frontend, _)| *frontend).collect::<Vec<_>>() {
            self.set_row(frontend, None, journal);
        }
        for key in self.unowned().copied().collect::<Vec<_>>() {
            self.set_shared(key, None, journal);
        }
        let unused: Vec<Chain> = self.chains.iter().filter(|(_, uses)| **uses == 0).map(|(chain, _)| *chain).collect();
        for chain in unused {
            journal.chains.entry(chain).or_insert(Some(0));
            self.chains.remove(&chain);
        }
    }

    fn set_row(&mut self, frontend: Frontend, held: Option<Held>, journal: &mut Journal) {
        let lead = |held: Option<&Held>| match held {
            Some(held) => held.row.chains(frontend).collect(),
            None => Vec::new(),
        };
        let after = lead(held.as_ref());
        self.entries += held.as_ref().map_or(0, |held| held.row.len());
        let before = match held {
            Some(held) => self.rows.insert(frontend, held),
            None => self.rows.remove(&frontend),
        };
        self.entries -= before.as_ref().map_or(0, |held| held.row.len());
        let left = lead(before.as_ref());
        journal.rows.entry(frontend).or_insert(before);
        for chain in after {
            journal.chains.entry(chain).or_insert_with(|| self.chains.get(&chain).copied());
            *self.chains.entry(chain).or_default() += 1;
        }
        for chain in left {
            journal.chains.entry(chain).or_insert_with(|| self.chains.get(&chain).copied());
            if let Some(uses) = self.chains.get_mut(&chain) {
                *uses = uses.saturating_sub(1);
                if *uses == 0 {
                    self.chains.remove(&chain);
                }
            }
        }
    }

    fn set_shared(&mut self, key: Key, owners: Option<u32>, journal: &mut Journal) {
        self.entries += usize::from(owners.is_some());
        let before = match owners {
            Some(owners) => self.shared.insert(key, owners),
            None => self.shared.remove(&key),
        };
        self.entries -= usize::from(before.is_some());
        journal.shared.entry(key).or_insert(before);
    }

    /// What the journal's changes come to, sorted.
    #[must_use]
    pub fn operations(&self, journal: &Journal) -> Operations {
        let mut operations = Operations::default();
        let nothing = Row::default();
        for (frontend, before) in &journal.rows {
            let before = before.as_ref().map_or(&nothing, |held| &held.row);
            let (delete, insert) = difference(*frontend, before, self.row(frontend).unwrap_or(&nothing));
            operations.delete.extend(delete);
            operations.insert.extend(insert);
        }
        for (key, before) in &journal.shared {
            match (before.is_some(), self.shared.contains_key(key)) {
                (true, false) => operations.delete.push((*key, Value::Present)),
                (false, true) => operations.insert.push((*key, Value::Present)),
                _ => {}
            }
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
        for (frontend, before) in journal.rows {
            self.entries += before.as_ref().map_or(0, |held| held.row.len());
            let undone = match before {
                Some(held) => self.rows.insert(frontend, held),
                None => self.rows.remove(&frontend),
            };
            self.entries -= undone.map_or(0, |held| held.row.len());
        }
        for (key, before) in journal.shared {
            self.set_shared(key, before, &mut Journal::default());
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
    /// The frontends that were touched, with what they had before.
    pub(super) fn touched(&self) -> impl Iterator<Item = (&Frontend, Option<&Row>)> {
        self.rows.iter().map(|(frontend, before)| (frontend, before.as_ref().map(|held| &held.row)))
    }
}

/// What to delete and what to insert to come from one row to the other. The kernel cannot change what an element maps
/// to, so a change is both.
fn difference(frontend: Frontend, before: &Row, after: &Row) -> (Vec<Entry>, Vec<Entry>) {
    let (mut delete, mut insert) = (Vec::new(), Vec::new());
    let mut before = before.entries(frontend).peekable();
    for entry in after.entries(frontend) {
        while let Some(gone) = before.next_if(|other| other.0 < entry.0) {
            delete.push(gone);
        }
        match before.next_if(|other| other.0 == entry.0) {
            Some(same) if same == entry => {}
            other => {
                delete.extend(other);
                insert.push(entry);
            }
        }
    }
    delete.extend(before);
    (delete, insert)
}
