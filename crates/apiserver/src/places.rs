//! Who comes -> a place each, of which there are so many; when none is left, who has the most gives one up.
//!
//! It is the oldest of theirs that goes. So whoever takes places and sits on them loses them to those who come, and
//! somebody with one place keeps it for as long as anybody has two.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

pub(crate) struct Places {
    most: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    came: u64,
    count: usize,
    /// By who has them, and in the order they came.
    by: HashMap<String, BTreeMap<u64, CancellationToken>>,
}

impl Taken {
    fn remove(&mut self, who: &str, place: u64) -> Option<CancellationToken> {
        let own = self.by.get_mut(who)?;
        let removed = own.remove(&place);
        if own.is_empty() {
            self.by.remove(who);
        }
        self.count -= usize::from(removed.is_some());
        removed
    }

    /// Who has the most, and of these who has had one for longest; and which.
    fn greediest(&self) -> Option<(String, u64)> {
        let oldest = |places: &BTreeMap<u64, CancellationToken>| places.keys().next().copied().unwrap_or(u64::MAX);
        let greediest = self.by.iter().max_by_key(|(_, places)| (places.len(), std::cmp::Reverse(oldest(places))));
        greediest.map(|(who, places)| (who.clone(), oldest(places)))
    }
}

/// Held until it is dropped, or its token is cancelled for somebody else's sake.
pub(crate) struct Place {
    places: Arc<Places>,
    who: String,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().remove(&self.who, self.number);
    }
}

impl Places {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for `who`, which hears by `gone` when it has to give it up.
    pub(crate) fn enter(self: &Arc<Self>, who: String, gone: CancellationToken) -> Place {
        let mut taken = self.lock();
        taken.came += 1;
        taken.count += 1;
        let number = taken.came;
        taken.by.entry(who.clone()).or_default().insert(number, gone);
        let loser = if taken.count > self.most { taken.greediest() } else { None };
        if let Some((loser, place)) = loser
            && let Some(told) = taken.remove(&loser, place)
        {
            told.cancel();
        }
        drop(taken);
        Place { places: self.clone(), who, number }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greedy_lose_their_oldest() {
        let places = Places::new(4);
        let enter = |who: &str| {
            let gone = CancellationToken::new();
            (places.enter(who.to_owned(), gone.clone()), gone)
        };
        let greedy: Vec<_> = (0..3).map(|_| enter("greedy")).collect();
        let modest = enter("modest");
        let newcomer = enter("newcomer");
        let gone =
            |of: &[(Place, CancellationToken)]| of.iter().map(|(_, gone)| gone.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(gone(&greedy), [true, false, false]);
        let fourth = enter("greedy");
        assert_eq!(gone(&greedy), [true, true, false]);
        assert!(!modest.1.is_cancelled() && !newcomer.1.is_cancelled() && !fourth.1.is_cancelled());
        // All have one now but the greedy, and then nobody has more than another: the oldest goes.
        drop(fourth);
        let (_other, other_gone) = enter("other");
        let _last = enter("last");
        assert_eq!(gone(&greedy), [true, true, true]);
        assert!(!modest.1.is_cancelled() && !other_gone.is_cancelled());
    }

    #[test]
    fn who_leaves_makes_room() {
        let places = Places::new(1);
        for _ in 0..3 {
            let gone = CancellationToken::new();
            drop(places.enter("a".to_owned(), gone.clone()));
            assert!(!gone.is_cancelled());
        }
        assert_eq!(places.lock().count, 0);
        assert!(places.lock().by.is_empty());
    }
}
