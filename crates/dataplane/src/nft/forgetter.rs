//! Clients that are remembered with a backend that is gone -> clients that choose anew.
//!
//! Invariants: no change waits for it; what a change leaves is forgotten together, in as few commits as it fits into;
//! what could not be forgotten is tried again, because a session is prolonged by whoever uses it and may never run out.
//!
//! Deliberately not here: what is to be forgotten.

use std::collections::BTreeSet;
use std::time::Duration;

use nlink::netlink::nftables::SetElement;
use portolan_model::forwarding::{Backend, Family};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::maps::Map;
use super::wire::{self, MESSAGE_ELEMENTS};
use super::writer::Writer;
use crate::Error;

/// Sessions of a commit. It stays within the socket's send buffer, and so short that no change has to wait for it.
const COMMIT: usize = 4_096;
/// How soon what could not be forgotten is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Clients that are sent to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Session {
    pub number: u32,
    pub backend: Backend,
}

enum Work {
    Forget(BTreeSet<Session>),
    /// Asks to be told once everything before it is done.
    Settle(oneshot::Sender<()>),
}

/// Forgets in the background until dropped.
pub(super) struct Forgetter {
    work: mpsc::UnboundedSender<Work>,
    _task: JoinSet<()>,
}

impl Forgetter {
    pub(super) fn start(writer: Writer) -> Self {
        let (work, queue) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(run(queue, writer));
        Self { work, _task: task }
    }

    pub(super) fn forget(&self, sessions: BTreeSet<Session>) {
        if !sessions.is_empty() {
            // The task ends only when this is dropped.
            let _ = self.work.send(Work::Forget(sessions));
        }
    }

    /// Waits until all that was asked for is forgotten.
    pub(super) async fn settled(&self) {
        let (done, is_done) = oneshot::channel();
        if self.work.send(Work::Settle(done)).is_ok() {
            // An error means that the task has ended, and nothing is left to wait for.
            let _ = is_done.await;
        }
    }
}

async fn run(mut queue: mpsc::UnboundedReceiver<Work>, writer: Writer) {
    let (mut sessions, mut waiting) = (BTreeSet::new(), Vec::new());
    loop {
        if sessions.is_empty() {
            for done in waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = oneshot::Sender::send(done, ());
            }
        }
        let mut next = match sessions.is_empty() {
            true => match queue.recv().await {
                Some(work) => Some(work),
                None => return,
            },
            false => {
                tokio::time::sleep(AGAIN_AFTER).await;
                queue.try_recv().ok()
            }
        };
        while let Some(work) = next {
            match work {
                Work::Forget(more) => sessions.extend(more),
                Work::Settle(done) => waiting.push(done),
            }
            next = queue.try_recv().ok();
        }
        match forget(&writer, &sessions).await {
            Ok(()) => sessions.clear(),
            Err(error) => {
                tracing::warn!(%error, "clients stay with a backend that is gone, which is tried to be mended until it works");
            }
        }
    }
}

async fn forget(writer: &Writer, sessions: &BTreeSet<Session>) -> Result<(), Error> {
    for family in Family::BOTH {
        if !sessions.iter().any(|session| Family::of(session.backend.address) == family) {
            continue;
        }
        let is_one =
            |element: &&SetElement| wire::session(family, element).is_some_and(|session| sessions.contains(&session));
        let found = writer.elements(family, Map::Affinity).await?;
        let keys: Vec<SetElement> =
            found.iter().filter(is_one).map(|element| SetElement::new(element.key().to_vec())).collect();
        let set = Map::Affinity.set(family);
        let mut batches: Vec<&[SetElement]> = keys.chunks(COMMIT).collect();
        while let Some(batch) = batches.pop() {
            let mut transaction = writer.connection.transaction();
            for message in batch.chunks(MESSAGE_ELEMENTS) {
                transaction = transaction.del_set_elements(&set, message);
            }
            match writer.send(transaction, || format!("forgetting {} clients' sessions", batch.len())).await {
                // One of them ran out in the meantime, and with it all of the commit was refused.
                Err(Error::Refused { source, .. }) if source.is_not_found() => {
                    if batch.len() > 1 {
                        let (first, second) = batch.split_at(batch.len() / 2);
                        batches.extend([first, second]);
                    }
                }
                other => other?,
            }
        }
    }
    Ok(())
}
