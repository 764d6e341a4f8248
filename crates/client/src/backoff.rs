//! How long to leave a server alone that just failed: twice as long each time, within bounds. Once it has taken a
//! while, that is said. And how long one that has refused.

use std::fmt::Display;
use std::time::Duration;

use kube::runtime::watcher::{self, Event};

const SHORTEST: Duration = Duration::from_millis(50);
/// Also what a server that comes back is noticed after, at the latest.
const LONGEST: Duration = Duration::from_secs(5);

/// How soon a kind that the server refused is asked for again: it may be upgraded, or grant the right to it.
pub(crate) const REFUSED_AGAIN_AFTER: Duration = Duration::from_secs(300);

/// The server has no such kind, or not for this client.
pub(crate) fn refused(error: &watcher::Error) -> bool {
    let (watcher::Error::InitialListFailed(kube::Error::Api(status))
    | watcher::Error::WatchStartFailed(kube::Error::Api(status))) = error
    else {
        return false;
    };
    status.is_not_found() || status.is_forbidden()
}

#[derive(Debug, Default)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    /// The watch has told something. That it begins to list, it tells before the server has answered.
    pub(crate) fn heard<K>(&mut self, event: &Event<K>) {
        if !matches!(event, Event::Init) {
            self.0 = Duration::ZERO;
        }
    }

    pub(crate) async fn pause(&mut self, kind: &str, error: &impl Display) {
        let before = self.0;
        self.0 = (before * 2).clamp(SHORTEST, LONGEST);
        if before < LONGEST && self.0 == LONGEST {
            tracing::warn!("cannot watch {kind}s, and go on with what is known: {error}; trying again until it works");
        } else {
            tracing::debug!(kind, %error, pause = ?self.0, "watch interrupted");
        }
        tokio::time::sleep(self.0).await;
    }
}
