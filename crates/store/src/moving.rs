//! A file far larger than what is stored in it -> a new one in its place.
//!
//! redb's file ends where its last page in use is, so what is deleted gives nothing back as long as something at its
//! end stays. So a second file is filled beside the first, while writers go on with the log. Invariant: it holds what
//! the first does, or what the log says next of it, and takes the name only when that is everything.

use std::collections::BTreeMap;
use std::ops::Bound;

use redb::Database;

use crate::disk::{DiskError, Place, put, settle};
use crate::log::End;
use crate::store::{Shared, State};
use crate::{Entry, Key};

/// A B-tree under changes takes up to this many times of what is stored in it.
const USUAL: u64 = 6;
/// What is moved at once, at the most, give or take an object. Writers wait while it is looked up.
const STEP: usize = 1024;
const STEP_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(crate) struct Moving {
    /// What the file took up and what was stored in it when it was last moved, or could not be.
    settled: Option<(u64, u64)>,
}

impl Moving {
    pub(crate) fn is_worth_it(&self, length: u64, shared: &Shared) -> bool {
        let stored = shared.read().bytes;
        // So that a file which stays large all the same is not moved again and again.
        let changed = self.settled.is_none_or(|(then, before)| length / 2 > then || stored < before / 2);
        length > shared.limits.small_file.max(USUAL * stored) && changed
    }

    pub(crate) fn settled(&mut self, place: &dyn Place, shared: &Shared) {
        self.settled = Some((place.len().unwrap_or(u64::MAX), shared.read().bytes));
    }
}

/// A second file with all that there is, to take the place of the first, which ended at `end`.
pub(crate) fn fill(place: &dyn Place, end: End, shared: &Shared) -> Result<Database, DiskError> {
    let fresh = place.fresh()?;
    settle(&fresh)?;
    let mut reached = None;
    loop {
        let step = step(&shared.read(), reached.as_ref());
        put(&fresh, &step, end, || {})?;
        match step.into_iter().next_back() {
            Some((last, _)) => reached = Some(last),
            None => return Ok(fresh),
        }
    }
}

/// What comes next after the key that was `reached`.
fn step(state: &State, reached: Option<&Key>) -> BTreeMap<Key, Option<Entry>> {
    let mut bytes = 0;
    let start = reached.map_or(Bound::Unbounded, Bound::Excluded);
    let ahead = state.objects.range::<Key, _>((start, Bound::Unbounded)).take(STEP).take_while(|(_, entry)| {
        let room = bytes < STEP_BYTES;
        bytes += entry.value.len();
        room
    });
    ahead.map(|(key, entry)| (key.clone(), Some(entry.clone()))).collect()
}
