//! Which keys to look at, and when: a work queue as plain data.
//!
//! Invariants: a key waits at most once; a key that is being worked on is handed out again only after `done` or
//! `failed`; a key added meanwhile is not lost. Deliberately not here: waiting, time and chance, which the caller
//! passes in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// The pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub(crate) struct Queue<K> {
    ready: VecDeque<K>,
    /// The members of `ready`.
    waiting: BTreeSet<K>,
    running: BTreeSet<K>,
    /// Added while running: ready again as soon as the run ends.
    again: BTreeSet<K>,
    due: BTreeMap<K, Instant>,
    timeline: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
}

impl<K: Clone + Ord> Default for Queue<K> {
    fn default() -> Self {
        Self {
            ready: VecDeque::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            again: BTreeSet::new(),
            due: BTreeMap::new(),
            timeline: BTreeSet::new(),
            failures: BTreeMap::new(),
        }
    }
}

impl<K: Clone + Ord> Queue<K> {
    /// Looks at the key as soon as possible.
    pub(crate) fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Looks at the key at `when`, or earlier if it was already due earlier.
    pub(crate) fn add_at(&mut self, key: K, when: Instant) {
        match self.due.get(&key) {
            Some(due) if *due <= when => return,
            Some(due) => {
                self.timeline.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), when);
        self.timeline.insert((when, key));
    }

    /// The next key to look at. It is running until `done` or `failed` is called for it.
    pub(crate) fn take(&mut self, now: Instant) -> Option<K> {
        while let Some((when, _)) = self.timeline.first()
            && *when <= now
        {
            if let Some((_, key)) = self.timeline.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }

    /// When the next key with a deadline is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeline.first().map(|(when, _)| *when)
    }

    pub(crate) fn done(&mut self, key: &K) {
        self.failures.remove(key);
        self.end(key);
    }

    /// Tries the key again after a pause that doubles with each failure in a row. `jitter` is in 0..1 and spreads the
    /// pause over its upper half.
    pub(crate) fn failed(&mut self, key: &K, now: Instant, jitter: f64) {
        let failures = self.failures.entry(key.clone()).or_default();
        let pause = FIRST_PAUSE.saturating_mul(1 << (*failures).min(20)).min(LONGEST_PAUSE);
        *failures += 1;
        self.add_at(key.clone(), now + pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0));
        self.end(key);
    }

    fn end(&mut self, key: &K) {
        self.running.remove(key);
        if self.again.remove(key) {
            self.add(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_once_and_never_runs_twice_at_a_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.take(now), Some("a"));
        queue.add("a");
        assert_eq!(queue.take(now), Some("b"));
        assert_eq!(queue.take(now), None, "a is running");
        queue.done(&"a");
        assert_eq!(queue.take(now), Some("a"), "what was added during the run is not lost");
        queue.done(&"a");
        assert_eq!(queue.take(now), None);
    }

    #[test]
    fn the_earliest_deadline_wins() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add_at("a", now + Duration::from_secs(5));
        queue.add_at("a", now + Duration::from_secs(2));
        queue.add_at("a", now + Duration::from_secs(9));
        assert_eq!(queue.deadline(), Some(now + Duration::from_secs(2)));
        assert_eq!(queue.take(now), None);
        assert_eq!(queue.take(now + Duration::from_secs(2)), Some("a"));
        assert_eq!(queue.deadline(), None);
    }

    #[test]
    fn failures_back_off_and_a_success_forgets_them() {
        let start = Instant::now();
        let mut queue = Queue::default();
        queue.add("a");
        let mut pauses = Vec::new();
        let mut now = start;
        for _ in 0..16 {
            assert_eq!(queue.take(now), Some("a"));
            queue.failed(&"a", now, 1.0);
            let due = queue.deadline().unwrap();
            pauses.push((due - now).as_millis());
            now = due;
        }
        assert_eq!(pauses[..4], [5, 10, 20, 40]);
        assert_eq!(pauses[15], LONGEST_PAUSE.as_millis());
        queue.take(now);
        queue.done(&"a");
        queue.add("a");
        queue.take(now);
        queue.failed(&"a", now, 0.0);
        assert_eq!(queue.deadline(), Some(now + FIRST_PAUSE / 2));
    }
}
