//! Names of kinds -> names that live as long as the program, as those of its own kinds do.
//!
//! Invariant: equal names are kept once, and no more than a bounded number of bytes; what comes after that is refused.
//! So definitions that come and go cost nothing but their first time.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Enough for a hundred thousand definitions.
const MOST_BYTES: usize = 16 << 20;

#[derive(Default)]
struct Kept {
    texts: BTreeSet<&'static str>,
    lists: BTreeSet<&'static [&'static str]>,
    bytes: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { texts: BTreeSet::new(), lists: BTreeSet::new(), bytes: 0 });

/// `None` when there is no room for another name.
pub(super) fn text(text: &str) -> Option<&'static str> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).text(text)
}

pub(super) fn list(texts: &[&str]) -> Option<&'static [&'static str]> {
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let texts: Vec<&'static str> = texts.iter().map(|text| kept.text(text)).collect::<Option<_>>()?;
    if let Some(found) = kept.lists.get(texts.as_slice()) {
        return Some(found);
    }
    kept.take(texts.len() * size_of::<&str>())?;
    let list: &'static [&'static str] = texts.leak();
    kept.lists.insert(list);
    Some(list)
}

impl Kept {
    fn text(&mut self, text: &str) -> Option<&'static str> {
        if let Some(found) = self.texts.get(text) {
            return Some(found);
        }
        self.take(text.len())?;
        let text: &'static str = text.to_owned().leak();
        self.texts.insert(text);
        Some(text)
    }

    fn take(&mut self, bytes: usize) -> Option<()> {
        // A set's own share of each entry is about as much again as a short name.
        self.bytes += bytes + 32;
        (self.bytes <= MOST_BYTES).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_kept_once() {
        let (one, two) = (text("crontabs").unwrap(), text("crontabs").unwrap());
        assert!(std::ptr::eq(one, two));
        let (one, two) = (list(&["ct", "cts"]).unwrap(), list(&["ct", "cts"]).unwrap());
        assert!(std::ptr::eq(one, two));
    }
}
