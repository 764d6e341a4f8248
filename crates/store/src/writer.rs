//! Queued transactions -> one record of the log a time, of as many as are waiting together.
//!
//! The one thread that changes anything. It decides each transaction against what is stored plus what the same batch
//! already changed, makes the batch durable with one flush, then visible, then answers. What the log has gathered goes
//! to the [`Keeper`] a file at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Changed, Checkpoint, DiskError};
use crate::history::Event;
use crate::keeper::Keeper;
use crate::log::{End, Log};
use crate::store::{Shared, State};
use crate::{Entry, Key, Op, Revision, Transaction, WriteError};

/// A batch ends at this many transactions, or at this many bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 8 << 20;

pub(crate) type Answer = Result<Vec<Option<Entry>>, WriteError>;

pub(crate) struct Request {
    pub(crate) transaction: Transaction,
    pub(crate) answer: oneshot::Sender<Answer>,
}

struct Batch {
    from: Revision,
    to: Revision,
    at: Instant,
    events: Vec<Event>,
    /// Where in `events` each key last changed.
    latest: HashMap<Key, usize>,
    bytes: usize,
}

impl Batch {
    fn new(from: Revision) -> Self {
        Self { from, to: from, at: Instant::now(), events: Vec::new(), latest: HashMap::new(), bytes: 0 }
    }

    fn find(&self, state: &State, key: &Key) -> Option<Entry> {
        match self.latest.get(key) {
            Some(at) => self.events[*at].new.clone(),
            None => state.objects.get(key).cloned(),
        }
    }

    /// Decides one transaction, and takes its changes in if it can happen. The answer holds for when the batch is on
    /// disk.
    fn admit(&mut self, state: &State, transaction: &Transaction) -> Answer {
        for (op, wanted) in transaction.ops.iter().enumerate() {
            let found = self.find(state, wanted.key());
            if !wanted.expect().holds(found.as_ref()) {
                return Err(WriteError::Conflict { op, key: wanted.key().clone(), found });
            }
        }
        Ok(transaction.ops.iter().map(|op| self.apply(state, op)).collect())
    }

    /// The entry that was put, deleted or checked.
    fn apply(&mut self, state: &State, op: &Op) -> Option<Entry> {
        let old = self.find(state, op.key());
        match op {
            Op::Check { .. } => old,
            Op::Delete { key, .. } => {
                old.as_ref()?;
                self.record(key, None, old.clone());
                old
            }
            Op::Put { key, value, .. } => {
                let revision = self.to.next();
                let new = Some(Entry { value: value.stamped(revision), revision });
                self.record(key, new.clone(), old);
                new
            }
        }
    }

    fn record(&mut self, key: &Key, new: Option<Entry>, old: Option<Entry>) {
        self.to = self.to.next();
        self.bytes += new.as_ref().map_or(0, |entry: &Entry| Bytes::len(&entry.value));
        self.latest.insert(key.clone(), self.events.len());
        self.events.push(Event::new(key.clone(), self.to, new, old, self.at));
    }

    fn changes(&self) -> Vec<Changed> {
        // In the order of their keys, so that the B-tree is walked once.
        let mut latest: Vec<_> = self.latest.iter().collect();
        latest.sort();
        latest.into_iter().map(|(key, at)| (key.clone(), self.events[*at].new.clone())).collect()
    }
}

pub(crate) struct Writer {
    log: Log,
    keeper: Keeper,
    shared: Arc<Shared>,
    /// What is in the log's active file.
    gathered: Checkpoint,
}

impl Writer {
    /// Of a log that ends where the database does.
    pub(crate) fn new(log: Log, keeper: Keeper, shared: Arc<Shared>, end: End) -> Self {
        Self { log, keeper, shared, gathered: Checkpoint::after(end) }
    }

    /// Works until every sender is gone.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let (batch, answers) = self.collect(first, &mut queue);
            self.finish(batch, answers);
        }
        self.keeper.close(self.gathered);
    }

    fn collect(
        &self,
        first: Request,
        queue: &mut mpsc::Receiver<Request>,
    ) -> (Batch, Vec<(oneshot::Sender<Answer>, Answer)>) {
        let state = self.shared.read();
        let mut batch = Batch::new(state.revision);
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(Request { transaction, answer }) = next {
            answers.push((answer, batch.admit(&state, &transaction)));
            if answers.len() == BATCH || batch.bytes > BATCH_BYTES {
                break;
            }
            next = queue.try_recv().ok();
        }
        (batch, answers)
    }

    fn finish(&mut self, batch: Batch, answers: Vec<(oneshot::Sender<Answer>, Answer)>) {
        let changes = batch.changes();
        // That there is nothing to delete, say, holds only if what may have failed is not found after a crash.
        let needs_no_record = changes.is_empty() && !self.log.is_spoiled();
        let done = if needs_no_record { Ok(()) } else { self.commit(&batch, &changes).map_err(Arc::new) };
        match done {
            Ok(()) => {
                self.publish(batch);
                for (asker, answer) in answers {
                    let _ = asker.send(answer);
                }
                self.gathered.changes.extend(changes);
            }
            Err(error) => {
                for (asker, _) in answers {
                    let _ = asker.send(Err(WriteError::Disk(error.clone())));
                }
            }
        }
    }

    fn commit(&mut self, batch: &Batch, changes: &[Changed]) -> Result<(), DiskError> {
        if self.log.is_full() {
            self.turn()?;
        }
        self.log.append(batch.from, batch.to, changes)?;
        self.gathered.end = (batch.to, self.log.last());
        Ok(())
    }

    /// Goes on in the log's other file, as soon as all that this held is in the database.
    fn turn(&mut self) -> Result<(), DiskError> {
        let must = self.log.is_overfull();
        match self.keeper.is_idle(must) {
            Ok(true) => {
                self.log.turn()?;
                let end = self.gathered.end;
                self.keeper.keep(std::mem::replace(&mut self.gathered, Checkpoint::after(end)));
                Ok(())
            }
            Err(error) if must => Err(error),
            // There is room, and the keeper has said what is wrong.
            Ok(false) | Err(_) => Ok(()),
        }
    }

    fn publish(&self, batch: Batch) {
        if batch.events.is_empty() {
            return;
        }
        let mut state = self.shared.write();
        state.revision = batch.to;
        let mut woken: Vec<String> = Vec::new();
        for event in batch.events {
            let resource = event.key.resource();
            if !woken.iter().any(|lane| lane == resource) {
                woken.push(resource.to_owned());
            }
            state.apply(event, &self.shared.limits);
        }
        for lane in woken {
            if let Some(lane) = state.lanes.get(&lane) {
                lane.wake();
            }
        }
        self.shared.revision.send_replace(batch.to);
    }
}
