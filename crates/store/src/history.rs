//! The recent changes of each resource, which watches read at their own pace.
//!
//! One lane a resource, so that a busy resource neither wakes the watches of a quiet one nor pushes its history out.
//! Invariant: a lane holds every change of its resource after its floor. What is too much or too old leaves at the
//! other end, a few changes with each that comes, or by [`crate::Store::forget`].

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::watch;

use crate::{Entry, Key, Limits, Revision};

/// The asked-for revision is no longer in the history; list again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {requested} is too old; the history begins after {oldest}")]
pub struct Expired {
    pub requested: Revision,
    pub oldest: Revision,
}

/// One change of one key. `new` is `None` when it was deleted, `old` when it was absent before.
pub struct Event {
    pub key: Key,
    pub revision: Revision,
    pub new: Option<Entry>,
    pub old: Option<Entry>,
    at: Instant,
    memo: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl Event {
    pub(crate) fn new(key: Key, revision: Revision, new: Option<Entry>, old: Option<Entry>, at: Instant) -> Self {
        Self { key, revision, new, old, at, memo: OnceLock::new() }
    }

    /// The same change of an object that somebody sees otherwise.
    pub fn seen_as(&self, new: Option<Entry>, old: Option<Entry>) -> Self {
        Self::new(self.key.clone(), self.revision, new, old, self.at)
    }

    /// What `derive` makes of this event: made once, shared by all watches, and gone with the event. `None` if it was
    /// asked for as another type before.
    pub fn memo<T: Any + Send + Sync>(&self, derive: impl FnOnce() -> T) -> Option<&T> {
        self.memo.get_or_init(|| Box::new(derive())).downcast_ref()
    }

    pub(crate) fn bytes(&self) -> usize {
        let size = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
        size(&self.new) + size(&self.old)
    }

    /// How many of them there are to tell of.
    pub(crate) fn told_bytes(&self) -> usize {
        self.new.as_ref().or(self.old.as_ref()).map_or(0, |entry| entry.value.len())
    }
}

pub(crate) struct Lane {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    floor: Revision,
    wake: watch::Sender<()>,
}

impl Lane {
    pub(crate) fn new(floor: Revision) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor, wake: watch::Sender::new(()) }
    }

    /// Takes in a change; says how many bytes the lane holds less because of what had to leave for it.
    pub(crate) fn push(&mut self, event: Arc<Event>, limits: &Limits) -> usize {
        self.bytes += event.bytes();
        self.events.push_back(event);
        let mut freed = 0;
        while self.events.len() > limits.history_events || self.bytes > limits.history_bytes {
            freed += self.pop();
        }
        freed
    }

    /// The bytes that the oldest change held, which is forgotten.
    pub(crate) fn pop(&mut self) -> usize {
        let Some(forgotten) = self.events.pop_front() else { return 0 };
        self.bytes -= forgotten.bytes();
        self.floor = forgotten.revision;
        forgotten.bytes()
    }

    /// Forgets at most `most` changes from before `then`; the bytes they held, and whether there are more.
    pub(crate) fn forget(&mut self, then: Instant, most: usize) -> (usize, bool) {
        let old = |lane: &Self| lane.events.front().is_some_and(|event| event.at < then);
        let mut freed = 0;
        for _ in 0..most {
            if !old(self) {
                return (freed, false);
            }
            freed += self.pop();
        }
        (freed, old(self))
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn wake(&self) {
        self.wake.send_replace(());
    }

    pub(crate) fn listen(&self) -> watch::Receiver<()> {
        self.wake.subscribe()
    }

    pub(crate) fn watches(&self) -> usize {
        self.wake.receiver_count()
    }

    /// Every change after `revision`, oldest first.
    pub(crate) fn after(
        &self,
        revision: Revision,
    ) -> Result<impl DoubleEndedIterator<Item = &Arc<Event>> + ExactSizeIterator, Expired> {
        if revision < self.floor {
            return Err(Expired { requested: revision, oldest: self.floor });
        }
        let start = self.events.partition_point(|event| event.revision <= revision);
        Ok(self.events.range(start..))
    }
}
