//! What webhooks answered about revisions of objects, so that a hundred watches of one need not ask a hundred times.
//!
//! Invariant: no more than [`MOST`] bytes are kept, of which the half that was looked at last stays longest.

use std::collections::HashMap;

use bytes::Bytes;
use portolan_store::{Key, Revision};

const MOST: usize = 32 << 20;
/// About what a place and its share of the maps take.
const OVERHEAD: usize = 128;

/// Which object, which revision of it, by whom it was converted, and to what version.
pub(super) type Place = (Key, Revision, u64, &'static str);

#[derive(Default)]
pub(super) struct Known {
    young: HashMap<Place, Bytes>,
    old: HashMap<Place, Bytes>,
    /// Of the young.
    bytes: usize,
}

impl Known {
    pub(super) fn get(&mut self, place: &Place) -> Option<Bytes> {
        if let Some(found) = self.young.get(place) {
            return Some(found.clone());
        }
        let found = self.old.remove(place)?;
        self.insert(place.clone(), found.clone());
        Some(found)
    }

    pub(super) fn insert(&mut self, place: Place, converted: Bytes) {
        self.bytes += converted.len() + OVERHEAD;
        self.young.insert(place, converted);
        if self.bytes > MOST / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let place = |revision: u64| (Key::new("g", "p", "", "x"), Revision(revision), 7, "v1");
        let large = Bytes::from(vec![b'x'; MOST / 8]);
        let mut known = Known::default();
        for revision in 0..32 {
            known.insert(place(revision), large.clone());
            assert_eq!(known.get(&place(0)).as_ref(), Some(&large), "what is asked for stays");
        }
        let kept = known.young.len() + known.old.len();
        assert!(kept <= 10, "{kept} times an eighth of the most");
        assert_eq!(known.get(&place(1)), None);
        assert_eq!(known.get(&(Key::new("g", "p", "", "x"), Revision(31), 8, "v1")), None, "another webhook's answer");
    }
}
