//! What a running pod's volumes are made from -> the volumes, kept as it says.
//!
//! Invariant: one filling at a time, and another one after it for whatever changed meanwhile. A volume that cannot be
//! filled stays as it was, and is tried again.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use super::super::follow::Following;
use super::super::host::Host;
use super::super::start;
use super::super::volumes::show_pod;
use super::{Outcome, Worker};
use crate::pod::Sandbox;

/// Well within what is left of a token's life when it is to be renewed.
const RETRY: SignedDuration = SignedDuration::from_secs(30);

#[derive(Default)]
pub(super) struct Filling {
    following: Following,
    /// Something that the volumes show has changed.
    stale: bool,
    busy: bool,
    renew_tokens: Option<Timestamp>,
    /// When to try again what failed.
    retry: Option<Timestamp>,
}

impl Filling {
    /// Before anything is read: so no change after that is missed.
    pub(super) fn follow(&mut self, host: &Host, pod: &Pod) {
        self.following = host.follow.volumes(pod);
    }

    pub(super) fn renew_at(&mut self, at: Option<Timestamp>) {
        self.renew_tokens = at;
    }

    /// There are no volumes any more.
    pub(super) fn stop(&mut self) {
        *self = Self { busy: self.busy, ..Self::default() };
    }

    pub(super) async fn changed(&mut self) {
        self.following.changed().await;
        self.stale = true;
    }

    pub(super) fn see(&mut self, old: &Pod, new: &Pod) {
        let differ = old.metadata.labels != new.metadata.labels || old.metadata.annotations != new.metadata.annotations;
        self.stale |= differ && show_pod(new);
    }

    pub(super) fn wake(&self) -> Option<Timestamp> {
        if self.busy { None } else { [self.renew_tokens, self.retry].into_iter().flatten().min() }
    }
}

impl Worker {
    /// Has the volumes filled anew if that is due, as long as somebody may read them.
    pub(super) fn refill(&mut self, now: Timestamp) {
        let filling = &mut self.filling;
        if filling.busy || self.realized.sandbox != Sandbox::Ready || self.realized.deleted {
            return;
        }
        let is_due = |at: Option<Timestamp>| at.is_some_and(|at| at <= now);
        let renew = is_due(filling.renew_tokens);
        if !filling.stale && !renew && !is_due(filling.retry) {
            return;
        }
        (filling.stale, filling.busy, filling.retry) = (false, true, None);
        if renew {
            filling.renew_tokens = None;
        }
        let (host, pod, ips) = (self.host.clone(), self.pod.clone(), self.realized.ips.clone());
        self.jobs.spawn(async move {
            Outcome::Filled { renewed: renew, result: start::refill(&host, &pod, &ips, renew).await }
        });
    }

    pub(super) fn filled(&mut self, renewed: bool, result: Result<Option<Timestamp>, String>, now: Timestamp) {
        let filling = &mut self.filling;
        filling.busy = false;
        let again = now.checked_add(RETRY).ok();
        match result {
            Ok(renew_at) if renewed => filling.renew_tokens = renew_at,
            Ok(_) => {}
            Err(message) => {
                if renewed {
                    filling.renew_tokens = again;
                } else {
                    filling.retry = again;
                }
                if self.realized.sandbox == Sandbox::Ready {
                    self.host.events.warning(&self.pod, None, "FailedMount", message);
                }
            }
        }
    }
}
