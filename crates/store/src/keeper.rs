//! Checkpoints -> the database, beside the writer, who need not wait for it.
//!
//! Invariant: one checkpoint at a time, in order; one that failed is tried until it succeeds, and meanwhile the log
//! keeps what it holds.

use std::ops::RangeInclusive;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::disk::{Checkpoint, Disk, DiskError};
use crate::store::Shared;

/// Taken after every few changes, so that a checkpoint of thousands takes no core away from those who wait for answers.
const REST: Duration = Duration::from_millis(1);
/// Between a checkpoint that failed and the next try: twice as long each time, within these bounds. Once the log may not
/// grow any more, who writes waits as long for an answer.
const BACK_OFF: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(2);

pub(crate) struct Keeper {
    work: mpsc::Sender<Arc<Checkpoint>>,
    done: mpsc::Receiver<Result<(), DiskError>>,
    thread: JoinHandle<()>,
    at_work: Option<Arc<Checkpoint>>,
}

impl Keeper {
    pub(crate) fn start(mut disk: Disk, shared: Arc<Shared>) -> std::io::Result<Self> {
        let (work, checkpoints) = mpsc::channel::<Arc<Checkpoint>>();
        let (answer, done) = mpsc::channel();
        let thread = std::thread::Builder::new().name("store-keeper".into()).spawn(move || {
            let mut back_off = None;
            for checkpoint in checkpoints {
                if let Some(back_off) = back_off {
                    std::thread::sleep(back_off);
                }
                let kept = disk.keep(&checkpoint, || std::thread::sleep(REST));
                let is_kept = kept.is_ok();
                back_off = follow(back_off, &kept);
                // The writer has ended if nobody listens; then so does this.
                let _ = answer.send(kept);
                if is_kept {
                    disk.tidy(checkpoint.end, &shared);
                }
            }
        })?;
        Ok(Self { work, done, thread, at_work: None })
    }

    /// To be called when [`Keeper::is_idle`].
    pub(crate) fn keep(&mut self, checkpoint: Checkpoint) {
        let checkpoint = Arc::new(checkpoint);
        self.send(&checkpoint);
        self.at_work = Some(checkpoint);
    }

    fn send(&self, checkpoint: &Arc<Checkpoint>) {
        // If nobody is there any more, the next look at what is done says so.
        let _ = self.work.send(checkpoint.clone());
    }

    /// Whether the last checkpoint is in the database, for which this may `wait`.
    ///
    /// # Errors
    /// When it could not be written, which was told of. It is being tried again.
    pub(crate) fn is_idle(&mut self, wait: bool) -> Result<bool, DiskError> {
        let Some(checkpoint) = self.at_work.take() else { return Ok(true) };
        let done = if wait { self.done.recv().ok() } else { self.done.try_recv().ok() };
        match done {
            Some(Ok(())) => return Ok(true),
            Some(Err(error)) => {
                self.send(&checkpoint);
                self.at_work = Some(checkpoint);
                return Err(error);
            }
            None => self.at_work = Some(checkpoint),
        }
        if self.thread.is_finished() { Err(DiskError::Ended) } else { Ok(false) }
    }

    /// Has `last` kept, too, if the disk lets it, and lets go of the file.
    pub(crate) fn close(mut self, last: Checkpoint) {
        if !last.changes.is_empty() && self.is_idle(true).is_ok() {
            self.keep(last);
        }
        drop(self.work);
        // Its panic has said what was wrong.
        let _ = self.thread.join();
    }
}

/// How long to leave the database alone. Says when trouble begins and when it is over, and not at every try.
fn follow(back_off: Option<Duration>, kept: &Result<(), DiskError>) -> Option<Duration> {
    match (kept, back_off) {
        (Ok(()), None) => None,
        (Ok(()), Some(_)) => {
            tracing::info!("the store's database is written again");
            None
        }
        (Err(_), Some(before)) => Some((before * 2).min(*BACK_OFF.end())),
        (Err(error), None) => {
            let error = error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "the store's database cannot be written; until it can, the log grows, and at last no write succeeds"
            );
            Some(*BACK_OFF.start())
        }
    }
}
