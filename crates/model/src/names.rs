//! Words that many objects say -> one copy of each.
//!
//! Thousands of endpoints name the same few nodes, zones and ports; each read from its own object is a copy of its own.
//!
//! Invariant: nothing is kept for long that no object says any more.
//!
//! Deliberately not here: the names of Services, slices and pods, which are as many as the objects.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use crate::{Event, Hints, ServiceId};

/// How many words there may be before those that nobody says are looked for.
const FEW: usize = 1_024;

#[derive(Debug, Default)]
pub struct Names {
    words: Shared<str>,
    hints: Shared<Hints>,
}

impl Names {
    /// Has what the event says share its copies with what earlier ones said.
    pub fn share(&mut self, event: &mut Event) {
        match event {
            Event::Service(service) => {
                self.share_namespace(&mut service.id);
                service.ports.iter_mut().for_each(|port| self.words.share(&mut port.name));
            }
            Event::Slice(slice) => {
                self.words.share(&mut slice.id.namespace);
                self.share_namespace(&mut slice.service);
                slice.ports.iter_mut().for_each(|port| self.words.share(&mut port.name));
                for endpoint in &mut slice.endpoints {
                    endpoint.node.as_mut().into_iter().for_each(|node| self.words.share(node));
                    endpoint.hints.as_mut().into_iter().for_each(|hints| self.hints.share(hints));
                }
            }
            _ => {}
        }
    }

    fn share_namespace(&mut self, id: &mut ServiceId) {
        self.words.share(&mut id.namespace);
    }
}

#[derive(Debug)]
struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// When it holds so many, it is time to look for those that nobody has.
    full: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { known: HashSet::new(), full: FEW }
    }
}

impl<T: Eq + Hash + ?Sized> Shared<T> {
    fn share(&mut self, word: &mut Arc<T>) {
        if let Some(known) = self.known.get(&**word) {
            word.clone_from(known);
            return;
        }
        if self.known.len() >= self.full {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.full = FEW.max(self.known.len() * 2);
        }
        self.known.insert(word.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_words_become_one_and_forgotten_ones_go() {
        let mut words = Shared::<str>::default();
        let (first, mut second) = (Arc::from("node-1"), Arc::from("node-1"));
        words.share(&mut Arc::clone(&first));
        words.share(&mut second);
        assert!(Arc::ptr_eq(&first, &second));
        for number in 0..10 * FEW {
            words.share(&mut Arc::from(number.to_string()));
        }
        assert!(words.known.len() <= FEW, "{}", words.known.len());
        let mut third = Arc::from("node-1");
        words.share(&mut third);
        assert!(Arc::ptr_eq(&first, &third), "what is said is kept");
    }
}
