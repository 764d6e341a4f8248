//! The store itself: what is in memory, and the door to it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot, watch};

use crate::disk::{self, Checkpoint, Disk, DiskError, FilePlace, Place};
use crate::history::Lane;
use crate::keeper::Keeper;
use crate::log::Log;
use crate::writer::{Request, Writer};
use crate::{Event, Expired, Key, Prefix, Transaction, Watch, WriteError};

/// The database of a store; the log's files are beside it.
const FILE: &str = "store.redb";

/// Counts changes. Never 0, and never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Of an empty store.
    pub const FIRST: Self = Self(1);

    pub(crate) fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the revision of the change that stored it. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub value: Bytes,
    pub revision: Revision,
}

/// How much history each resource keeps, whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub history_events: usize,
    /// Before and after of each change together, though neighbouring changes share them.
    pub history_bytes: usize,
    /// Of all resources together; then the largest history gives way first.
    pub all_history_bytes: usize,
    /// A file up to this many bytes is never made smaller.
    pub small_file: u64,
    /// Transactions that may wait for the disk; more make their writers wait to queue.
    pub queue: usize,
    /// How long a file of the log gets, in bytes, before the database is brought up to date. There are two.
    pub log_file: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            history_events: 16_384,
            history_bytes: 32 << 20,
            all_history_bytes: 64 << 20,
            small_file: 8 << 20,
            queue: 1024,
            log_file: 4 << 20,
        }
    }
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// As things were then; `None` is now.
    pub at: Option<Revision>,
    /// Begin after this key.
    pub after: Option<Key>,
    pub limit: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// In the order of their keys.
    pub entries: Vec<(Key, Entry)>,
    pub revision: Revision,
    /// How many more there are after these.
    pub remaining: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot open the store {file}")]
pub struct OpenError {
    pub file: PathBuf,
    #[source]
    source: DiskError,
}

impl OpenError {
    /// Whether somebody else has the store open.
    pub fn is_in_use(&self) -> bool {
        matches!(self.source, DiskError::InUse)
    }
}

pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, Entry>,
    pub(crate) lanes: HashMap<String, Lane>,
    pub(crate) revision: Revision,
    /// There is no history from before it.
    opened: Revision,
    /// Of the keys and values in `objects`.
    pub(crate) bytes: u64,
    history_bytes: usize,
}

impl State {
    fn lane(&mut self, resource: &str) -> &mut Lane {
        self.lanes.entry(resource.to_owned()).or_insert_with(|| Lane::new(self.opened))
    }

    pub(crate) fn apply(&mut self, event: Event, limits: &Limits) {
        let before = match &event.new {
            Some(entry) => self.objects.insert(event.key.clone(), entry.clone()),
            None => self.objects.remove(&event.key),
        };
        let stored = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| stored_bytes(&event.key, entry));
        self.bytes = self.bytes + stored(&event.new) - stored(&before);
        let event = Arc::new(event);
        self.history_bytes += event.bytes();
        self.history_bytes -= self.lane(event.key.resource()).push(event.clone(), limits);
        while self.history_bytes > limits.all_history_bytes {
            let Some(largest) = self.lanes.values_mut().max_by_key(|lane| lane.bytes()) else { break };
            self.history_bytes -= largest.pop();
        }
    }

    fn range(&self, prefix: &Prefix, after: Option<&Key>) -> impl Iterator<Item = (&Key, &Entry)> {
        let first = Key::from_stored(prefix.as_str());
        let start = match after {
            Some(after) if *after >= first => Bound::Excluded(after.clone()),
            _ => Bound::Included(first),
        };
        self.objects.range((start, Bound::Unbounded)).take_while(|(key, _)| prefix.contains(key))
    }

    /// The first `limit` of the range as it was at `revision`, and how many there were in all: as it is now, with every
    /// later change taken back. What is now beyond what those changes can reach is only counted.
    fn range_at(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        revision: Revision,
        limit: usize,
    ) -> Result<(Vec<(Key, Entry)>, usize), Expired> {
        let lane = self.lanes.get(prefix.of_resource());
        // Nothing of a resource without a lane has changed since the store was opened.
        if lane.is_none() && revision < self.opened {
            return Err(Expired { requested: revision, oldest: self.opened });
        }
        let later = lane.map(|lane| lane.after(revision)).transpose()?;
        let later: Vec<_> = later
            .into_iter()
            .flatten()
            .rev()
            .filter(|event| prefix.contains(&event.key) && after.is_none_or(|after| event.key > *after))
            .collect();
        let mut range = self.range(prefix, after);
        let near = limit.saturating_add(later.len());
        let mut objects: BTreeMap<_, _> =
            range.by_ref().take(near).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        let beyond = range.next().map(|(key, _)| key.clone());
        let mut total = objects.len() + usize::from(beyond.is_some()) + range.count();
        let mut undone = BTreeMap::new();
        for event in later {
            undone.insert(event.key.clone(), event.old.clone());
        }
        for (key, old) in undone {
            let is = self.objects.contains_key(&key);
            total = total + usize::from(old.is_some()) - usize::from(is);
            if beyond.as_ref().is_some_and(|beyond| key >= *beyond) {
                continue;
            }
            match old {
                Some(old) => objects.insert(key, old),
                None => objects.remove(&key),
            };
        }
        Ok((objects.into_iter().take(limit).collect(), total))
    }
}

fn stored_bytes(key: &Key, entry: &Entry) -> u64 {
    (key.as_str().len() + entry.value.len()) as u64
}

pub(crate) struct Shared {
    state: RwLock<State>,
    pub(crate) limits: Limits,
    pub(crate) revision: watch::Sender<Revision>,
}

impl Shared {
    // A poisoned lock means that a reader panicked, or the writer did between two assignments that cannot panic.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Door {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::Sender<Request>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

/// Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Door>);

impl Store {
    /// Opens the store in `directory`, which is made if it does not exist.
    ///
    /// # Errors
    /// When another process (or this one) has it open, or the file cannot be read or made sense of.
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, OpenError> {
        let file = directory.join(FILE);
        let failed = |source| OpenError { file: file.clone(), source };
        let place = FilePlace::prepare(file.clone()).map_err(failed)?;
        Self::open_place(Box::new(place), limits).map_err(failed)
    }

    /// Whether there is a store in `directory`.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Makes a store in `directory` out of what another held, at `revision`. Whole, or not at all.
    ///
    /// # Errors
    /// When there is one already, or the disk cannot be written.
    pub fn make(directory: &Path, objects: &[(Key, Entry)], revision: Revision) -> Result<(), OpenError> {
        let file = directory.join(FILE);
        disk::make(&file, objects, revision).map_err(|source| OpenError { file, source })
    }

    pub(crate) fn open_place(place: Box<dyn Place>, limits: Limits) -> Result<Self, DiskError> {
        let mut disk = Disk::open(place)?;
        let (mut objects, end) = disk.load()?;
        let mut log = Log::open(disk.log()?, limits.log_file)?;
        let mut missing = Checkpoint::after(end);
        for record in log.after(end.1, end.0)? {
            missing.changes.extend(record.changes);
            missing.end = (record.to, record.mark);
        }
        for (key, entry) in &missing.changes {
            match entry {
                Some(entry) => objects.insert(key.clone(), entry.clone()),
                None => objects.remove(key),
            };
        }
        if missing.end != end {
            disk.keep(&missing, || {})?;
        }
        let (revision, last) = missing.end;
        log.begin(last);
        let bytes = objects.iter().map(|(key, entry)| stored_bytes(key, entry)).sum();
        let state = State { objects, lanes: HashMap::new(), revision, opened: revision, bytes, history_bytes: 0 };
        let shared = Arc::new(Shared { state: RwLock::new(state), limits, revision: watch::Sender::new(revision) });
        let (queue, requests) = mpsc::channel(limits.queue);
        let writer = Writer::new(log, Keeper::start(disk, shared.clone())?, shared.clone(), missing.end);
        let writer = std::thread::Builder::new().name("store-writer".into()).spawn(|| writer.run(requests))?;
        Ok(Self(Arc::new(Door { shared, queue: Mutex::new(Some(queue)), writer: Mutex::new(Some(writer)) })))
    }

    /// Of the last change that is visible.
    pub fn revision(&self) -> Revision {
        self.0.shared.read().revision
    }

    /// The entry and the revision at which it was read.
    pub fn get(&self, key: &Key) -> (Option<Entry>, Revision) {
        let state = self.0.shared.read();
        (state.objects.get(key).cloned(), state.revision)
    }

    /// # Errors
    /// When `page.at` is older than the history.
    pub fn list(&self, prefix: &Prefix, page: &Page) -> Result<List, Expired> {
        let state = self.0.shared.read();
        let limit = page.limit.unwrap_or(usize::MAX);
        let revision = page.at.map_or(state.revision, |at| at.min(state.revision));
        let (entries, total) = if revision == state.revision {
            let mut range = state.range(prefix, page.after.as_ref());
            let entries: Vec<_> = range.by_ref().take(limit).map(|(key, entry)| (key.clone(), entry.clone())).collect();
            let total = entries.len() + range.count();
            (entries, total)
        } else {
            state.range_at(prefix, page.after.as_ref(), revision, limit)?
        };
        let remaining = total - entries.len();
        Ok(List { entries, revision, remaining })
    }

    /// How many keys there are under `prefix`.
    pub fn count(&self, prefix: &Prefix) -> usize {
        self.0.shared.read().range(prefix, None).count()
    }

    /// Returns when the transaction is on disk and visible: for each operation the entry that was put, deleted or
    /// checked. Dropping the future does not take the transaction back.
    ///
    /// # Errors
    /// `Conflict` when an expectation does not hold. After `Disk` the transaction has not happened, unless the disk
    /// failed at the very end; then it is seen when the disk works again.
    pub async fn write(&self, transaction: Transaction) -> Result<Vec<Option<Entry>>, WriteError> {
        let queue = self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(WriteError::Closed)?;
        let (answer, answered) = oneshot::channel();
        queue.send(Request { transaction, answer }).await.map_err(|_| WriteError::Closed)?;
        answered.await.map_err(|_| WriteError::Closed)?
    }

    /// A watch of every change under `prefix` after `from`, which may be in the future.
    ///
    /// # Errors
    /// When `from` is older than the history.
    pub fn watch(&self, prefix: Prefix, from: Revision) -> Result<Watch, Expired> {
        let mut state = self.0.shared.write();
        let lane = state.lane(prefix.of_resource());
        let _ = lane.after(from)?;
        let wake = lane.listen();
        Ok(Watch { shared: self.0.shared.clone(), prefix, place: from, wake })
    }

    /// Forgets changes from before `then`, in steps between which readers and writers have their turn. Watches that
    /// had not seen them are told that they fell behind, and so are lists of a revision from before.
    pub fn forget(&self, then: Instant) {
        const STEP: usize = 512;
        let resources: Vec<String> = self.0.shared.read().lanes.keys().cloned().collect();
        for resource in resources {
            let mut more = true;
            while more {
                let mut state = self.0.shared.write();
                let Some(lane) = state.lanes.get_mut(&resource) else { break };
                let freed;
                (freed, more) = lane.forget(then, STEP);
                state.history_bytes -= freed;
            }
        }
    }

    /// Returns once `revision` is visible.
    pub async fn reached(&self, revision: Revision) {
        let mut now = self.0.shared.revision.subscribe();
        // The sender lives as long as `self`.
        let _ = now.wait_for(|now| *now >= revision).await;
    }

    /// Finishes what is queued and lets go of the file. Later writes are refused; reads go on. Blocks.
    pub fn close(&self) {
        drop(self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = writer.join();
        }
    }
}
