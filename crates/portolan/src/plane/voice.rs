//! What is wrong with a Service, or with this node's part of it -> the log, and an Event that `kubectl describe` shows.
//!
//! Invariants: what was said already is not said again for a while, however often it is found; nothing here holds the
//! plane up. The Event goes to the Service itself, whose uid only the API server knows: it is asked when there is
//! something to say, and not kept for all.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Service};
use kube::api::ListParams;
use kube::{Api, Client, Resource};
use portolan_client::Recorder;
use portolan_model::ServiceId;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long the same is not said again.
const SILENCE: Duration = Duration::from_secs(600);
/// Things said that are remembered; beyond it, all are forgotten that were said too long ago, or else all.
const REMEMBERED: usize = 4096;
/// Things to say that wait for the API server; more than these at once stand in the log only.
const BACKLOG: usize = 1024;
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);

/// What happened, in the word that people select Events by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reason {
    /// The object has nonsense in it, or wants what another has.
    Ignored,
    /// The kernel did not take it.
    NotForwarded,
    /// A socket of the node has a NodePort of the Service.
    NodePortHeld,
    /// The name that kube-proxy uses.
    FailedToStartServiceHealthcheck,
}

impl Reason {
    fn name(self) -> &'static str {
        match self {
            Self::Ignored => "ServiceFieldIgnored",
            Self::NotForwarded => "ServiceNotForwarded",
            Self::NodePortHeld => "NodePortHeld",
            Self::FailedToStartServiceHealthcheck => "FailedToStartServiceHealthcheck",
        }
    }
}

struct Said {
    id: ServiceId,
    reason: Reason,
    message: String,
}

pub(crate) struct Voice {
    said: BTreeMap<(ServiceId, Reason, String), Instant>,
    sender: mpsc::Sender<Said>,
}

impl Voice {
    /// The voice and the future that carries what it says, until dropped.
    pub(crate) fn new(client: Client, recorder: Recorder) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, mut receiver) = mpsc::channel::<Said>(BACKLOG);
        let carry = async move {
            while let Some(Said { id, reason, message }) = receiver.recv().await {
                let about = look_up(&client, &id).await;
                recorder.record(about, true, reason.name(), message);
            }
        };
        (Self { said: BTreeMap::new(), sender }, carry)
    }

    pub(crate) fn say(&mut self, id: &ServiceId, reason: Reason, message: &impl Display) {
        if let Some(message) = self.news(id, reason, message.to_string(), Instant::now()) {
            tracing::warn!("Service {id}: {message}");
            // A full backlog loses the Event; the log has it.
            let _ = self.sender.try_send(Said { id: id.clone(), reason, message });
        }
    }

    /// The message, unless it was said already.
    fn news(&mut self, id: &ServiceId, reason: Reason, message: String, now: Instant) -> Option<String> {
        let fresh = |at: &Instant| now.duration_since(*at) < SILENCE;
        let key = (id.clone(), reason, message.clone());
        if self.said.get(&key).is_some_and(fresh) {
            return None;
        }
        if self.said.len() >= REMEMBERED {
            self.said.retain(|_, at| fresh(at));
            if self.said.len() >= REMEMBERED {
                self.said.clear();
            }
        }
        self.said.insert(key, now);
        Some(message)
    }
}

/// A proxy's role lets it list Services and not get them.
async fn look_up(client: &Client, id: &ServiceId) -> ObjectReference {
    let named = ListParams::default().fields(&format!("metadata.name={}", id.name));
    let services = Api::<Service>::namespaced(client.clone(), &id.namespace);
    let listed = tokio::time::timeout(LOOKUP_TIMEOUT, services.list(&named)).await;
    let found = listed.ok().and_then(Result::ok).and_then(|list| list.items.into_iter().next());
    found.map_or_else(
        || ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(id.namespace.to_string()),
            name: Some(id.name.to_string()),
            ..ObjectReference::default()
        },
        |service| service.object_ref(&()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voice() -> Voice {
        Voice { said: BTreeMap::new(), sender: mpsc::channel(1).0 }
    }

    #[test]
    fn the_same_is_said_once_in_a_while() {
        let (mut voice, now) = (voice(), Instant::now());
        let web = ServiceId::new("shop", "web");
        let mut says = |id: &ServiceId, reason, message: &str, after| {
            voice.news(id, reason, message.to_owned(), now + Duration::from_secs(after)).is_some()
        };
        assert!(says(&web, Reason::Ignored, "a", 0));
        assert!(!says(&web, Reason::Ignored, "a", 599));
        assert!(says(&web, Reason::Ignored, "b", 1), "that is another thing");
        assert!(says(&web, Reason::NotForwarded, "a", 1));
        assert!(says(&ServiceId::new("shop", "api"), Reason::Ignored, "a", 1));
        assert!(says(&web, Reason::Ignored, "a", 600));
    }

    #[test]
    fn memory_is_bounded() {
        let (mut voice, now) = (voice(), Instant::now());
        for i in 0..3 * REMEMBERED {
            voice.news(&ServiceId::new("shop", &i.to_string()), Reason::Ignored, String::new(), now);
        }
        assert!(voice.said.len() <= REMEMBERED);
    }
}
