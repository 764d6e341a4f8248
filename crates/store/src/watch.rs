//! A place in the history -> the changes after it, as they come.

use std::sync::Arc;

use tokio::sync::watch;

use crate::store::Shared;
use crate::{Event, Expired, Prefix, Revision};

/// Holds no events of its own: it reads the history from its place, so it can neither lose one nor hoard them.
pub struct Watch {
    pub(crate) shared: Arc<Shared>,
    pub(crate) prefix: Prefix,
    pub(crate) place: Revision,
    pub(crate) wake: watch::Receiver<()>,
}

/// Changes in order, and the revision up to which the watch has now seen everything.
pub struct Batch {
    pub events: Vec<Arc<Event>>,
    pub revision: Revision,
    /// Whether there is more to say at once.
    pub more: bool,
    /// How many watches of the resource there are.
    pub watches: usize,
}

impl Watch {
    /// At most this many events come at once, so that one watch does not hold the lock for long; and of this many
    /// bytes, give or take an event, so that one whose client does not read holds on to little.
    const BATCH: usize = 256;
    const BATCH_BYTES: usize = 128 << 10;

    /// What has happened since the last call, without waiting; an idle watch learns how far it is up to date.
    ///
    /// # Errors
    /// When this watch was so slow that the history it needs is gone; it has missed changes and cannot go on.
    pub fn poll(&mut self) -> Result<Batch, Expired> {
        let state = self.shared.read();
        let mut events = Vec::new();
        let mut reached = self.place;
        let (mut bytes, mut more, mut watches) = (0, false, 0);
        if let Some(lane) = state.lanes.get(self.prefix.of_resource()) {
            watches = lane.watches();
            for event in lane.after(self.place)? {
                more = events.len() == Self::BATCH || bytes >= Self::BATCH_BYTES;
                if more {
                    break;
                }
                if self.prefix.contains(&event.key) {
                    reached = event.revision;
                    bytes += event.told_bytes();
                    events.push(event.clone());
                }
            }
        }
        if !more {
            reached = reached.max(state.revision);
        }
        self.place = reached;
        Ok(Batch { events, revision: reached, more, watches })
    }

    /// Waits until there is something to say. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`Watch::poll`].
    pub async fn next(&mut self) -> Result<Batch, Expired> {
        loop {
            self.wake.mark_unchanged();
            let batch = self.poll()?;
            if !batch.events.is_empty() {
                return Ok(batch);
            }
            if self.wake.changed().await.is_err() {
                // The store is gone; so is every change that could come.
                std::future::pending::<()>().await;
            }
        }
    }
}
