//! What every listener shares: the published zone, and the way to the forwarder.
//!
//! Invariant: a reader sees a whole zone, old or new, and never waits for the writer.

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::forward::{Job, ReplyTo};
use crate::query::Transport;
use crate::respond::{Outcome, Sources, reply_unanswered};
use crate::zone::Zone;

pub(crate) struct Published {
    pub(crate) zone: Zone,
    pub(crate) synced: bool,
}

pub(crate) struct Responder {
    /// `None` in a relay.
    zone: Option<ArcSwap<Published>>,
    /// `None` without other servers to ask.
    jobs: Option<mpsc::Sender<Job>>,
}

impl Responder {
    pub(crate) fn new(zone: Option<Published>, jobs: Option<mpsc::Sender<Job>>) -> Self {
        Self { zone: zone.map(ArcSwap::from_pointee), jobs }
    }

    pub(crate) fn publish(&self, zone: Zone, synced: bool) {
        if let Some(published) = &self.zone {
            published.store(std::sync::Arc::new(Published { zone, synced }));
        }
    }

    /// Runs `work` with what there is to answer from now; a whole batch may use it.
    pub(crate) fn with_sources<T>(&self, work: impl FnOnce(&Sources<'_>) -> T) -> T {
        let published = self.zone.as_ref().map(ArcSwap::load);
        work(&Sources {
            zone: published.as_ref().map(|published| &published.zone),
            synced: published.as_ref().is_none_or(|published| published.synced),
            upstreams: self.jobs.is_some(),
        })
    }

    /// Replies into `out` and returns whether there is a reply; a question for other servers is handed on, and replied
    /// to later by way of `reply_to`.
    pub(crate) fn handle(
        &self,
        sources: &Sources<'_>,
        message: &[u8],
        (transport, turn): (Transport, usize),
        reply_to: impl FnOnce() -> ReplyTo,
        out: &mut Vec<u8>,
    ) -> bool {
        let question = match sources.respond(message, transport, turn, out) {
            Outcome::Silence => return false,
            Outcome::Reply => return true,
            Outcome::Forward(question) => question,
        };
        let Some(jobs) = &self.jobs else { return false };
        match jobs.try_send(Job { question, reply_to: reply_to() }) {
            Ok(()) => false,
            Err(mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job)) => {
                reply_unanswered(&job.question, out);
                true
            }
        }
    }
}
