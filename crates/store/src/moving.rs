//! A file far larger than what is stored in it -> a new one in its place, a few objects with each commit.
//!
//! redb's file ends where its last page in use is, so what is deleted gives nothing back as long as something at its end
//! stays. Moving it all at once would hold up the writers; so a second file is filled beside the first, in the order of
//! keys, after the answers of each commit are sent. Invariant: the second file holds what the first does, up to the place
//! that the walk has reached; it takes the name only when that is everything, and until then nothing depends on it.

use std::ops::Bound;

use redb::Database;

use crate::Key;
use crate::disk::{Changed, DiskError, Place, put, settle};
use crate::store::State;

/// A B-tree under changes takes up to this many times of what is stored in it.
const USUAL: u64 = 6;
/// What is moved with one commit, at the most, give or take an object.
const STEP: usize = 128;
const STEP_BYTES: usize = 256 << 10;

#[derive(Default)]
pub(crate) struct Moving {
    walk: Option<Walk>,
    /// What the file took up and what was stored in it when it was last moved, or could not be.
    settled: Option<(u64, u64)>,
}

struct Walk {
    fresh: Database,
    /// The last key that is in it.
    reached: Option<Key>,
}

impl Moving {
    pub(crate) fn give_up(&mut self) {
        self.walk = None;
    }

    pub(crate) fn settled(&mut self, place: &dyn Place, state: &State) {
        self.settled = Some((place.len().unwrap_or(u64::MAX), state.bytes));
    }

    fn is_worth_it(&self, length: u64, state: &State, small: u64) -> bool {
        // So that a file which stays large all the same is not moved again and again.
        let changed = self.settled.is_none_or(|(then, stored)| length / 2 > then || state.bytes < stored / 2);
        length > small.max(USUAL * state.bytes) && changed
    }

    /// One step, of which `changes` have just been made in the first file. The second, when it is complete.
    pub(crate) fn step(
        &mut self,
        place: &dyn Place,
        changes: &[Changed],
        state: &State,
        small: u64,
    ) -> Result<Option<Database>, DiskError> {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None if self.is_worth_it(place.len()?, state, small) => {
                let fresh = place.fresh()?;
                settle(&fresh)?;
                Walk { fresh, reached: None }
            }
            None => return Ok(None),
        };
        let behind = |key: &Key| walk.reached.as_ref().is_some_and(|reached| key <= reached);
        let mut step: Vec<Changed> = changes.iter().filter(|(key, _)| behind(key)).cloned().collect();
        let mut bytes = 0;
        let start = walk.reached.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let ahead = state.objects.range::<Key, _>((start, Bound::Unbounded)).take(STEP).take_while(|(_, entry)| {
            let room = bytes < STEP_BYTES;
            bytes += entry.value.len();
            room
        });
        let before = step.len();
        step.extend(ahead.map(|(key, entry)| (key.clone(), Some(entry.clone()))));
        let ended = step.len() == before;
        if let Some((last, _)) = step[before..].last() {
            walk.reached = Some(last.clone());
        }
        put(&walk.fresh, &step, state.revision)?;
        if ended {
            return Ok(Some(walk.fresh));
        }
        self.walk = Some(walk);
        Ok(None)
    }
}
