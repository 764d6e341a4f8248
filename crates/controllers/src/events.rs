//! What the controllers did and what stopped them -> core/v1 Events, repeats counted instead of repeated.
//!
//! Invariants: recording never waits and never fails the recorder; memory is bounded, the oldest occurrences are
//! forgotten first. Deliberately not here: delivery guarantees, which Events do not have.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;

use crate::drive::{Controller, Effects, drive};
use crate::queue::Queue;
use crate::refusal;

/// Occurrences that wait to be taken in; more than these at once are dropped.
const BACKLOG: usize = 4096;
/// Distinct Events remembered, so that a repeat is counted.
const REMEMBERED: usize = 4096;

/// What makes two occurrences the same Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    uid: String,
    name: String,
    component: &'static str,
    reason: &'static str,
    message: String,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.reason, self.name)
    }
}

struct Occurrence {
    kind: Kind,
    about: ObjectReference,
    warning: bool,
    at: Timestamp,
}

/// Cheap to clone. Speaks for one component, as `kubectl describe` shows under "From".
#[derive(Clone)]
pub(crate) struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// The recorder and the future that writes what it records, until dropped.
    pub(crate) fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        let occurrences = futures::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed();
        (Self { component: "", sender }, drive(Writer::new(client), vec![occurrences], 8))
    }

    pub(crate) fn component(&self, component: &'static str) -> Self {
        Self { component, sender: self.sender.clone() }
    }

    pub(crate) fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.record(reference(about), false, reason, message);
    }

    pub(crate) fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.record(reference(about), true, reason, message);
    }

    pub(crate) fn record(&self, about: ObjectReference, warning: bool, reason: &'static str, message: String) {
        let kind = Kind {
            uid: about.uid.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            component: self.component,
            reason,
            message,
        };
        if let Err(error) = self.sender.try_send(Occurrence { kind, about, warning, at: Timestamp::now() }) {
            tracing::debug!(%error, reason, "event dropped");
        }
    }
}

fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference { resource_version: object.resource_version(), ..object.object_ref(&()) }
}

/// One Event as the API server has it, or will have it.
struct Known {
    event: Event,
    stored: bool,
}

struct Writer {
    client: Client,
    known: BTreeMap<Kind, Known>,
    /// The keys of `known`, the longest known first.
    oldest: VecDeque<Kind>,
}

impl Writer {
    fn new(client: Client) -> Self {
        Self { client, known: BTreeMap::new(), oldest: VecDeque::new() }
    }
}

impl Controller for Writer {
    const NAME: &'static str = "events";
    type Input = Occurrence;
    type Key = Kind;

    fn observe(&mut self, occurrence: Occurrence, queue: &mut Queue<Kind>) {
        queue.add(occurrence.kind.clone());
        if let Some(known) = self.known.get_mut(&occurrence.kind) {
            known.event.count = Some(known.event.count.unwrap_or(1).saturating_add(1));
            known.event.last_timestamp = Some(Time(occurrence.at));
            return;
        }
        self.oldest.push_back(occurrence.kind.clone());
        self.known.insert(occurrence.kind.clone(), Known { event: first(occurrence), stored: false });
        if self.oldest.len() > REMEMBERED
            && let Some(forgotten) = self.oldest.pop_front()
        {
            self.known.remove(&forgotten);
        }
    }

    fn reconcile(&mut self, kind: &Kind, _queue: &mut Queue<Kind>) -> Option<Effects> {
        let known = self.known.get_mut(kind)?;
        let namespace = known.event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let stored = std::mem::replace(&mut known.stored, true);
        let event = known.event.clone();
        Some(Box::pin(async move {
            if let Err(error) = write(&api, event, stored).await {
                tracing::debug!(%error, "event not written");
            }
            Ok(()).into()
        }))
    }
}

async fn write(api: &Api<Event>, event: Event, stored: bool) -> Result<(), kube::Error> {
    if stored {
        let patch = Patch::Merge(json!({"count": event.count, "lastTimestamp": event.last_timestamp}));
        match api.patch(&event.name_any(), &PatchParams::default(), &patch).await {
            Err(error) if refusal::is_not_found(&error) => {}
            result => return result.map(drop),
        }
    }
    api.create(&PostParams::default(), &event).await.map(drop)
}

fn first(occurrence: Occurrence) -> Event {
    let Occurrence { kind, about, warning, at } = occurrence;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:x}", kind.name, at.as_nanosecond())),
            // Events about objects without a namespace live in the default one, as upstream.
            namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some(if warning { "Warning" } else { "Normal" }.into()),
        reason: Some(kind.reason.into()),
        message: Some(kind.message),
        count: Some(1),
        first_timestamp: Some(Time(at)),
        last_timestamp: Some(Time(at)),
        source: Some(EventSource { component: Some(kind.component.into()), host: None }),
        reporting_component: Some(kind.component.into()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        let kind =
            Kind { uid: "u".into(), name: "web".into(), component: "test", reason: "Failed", message: message.into() };
        Occurrence { kind, about: ObjectReference::default(), warning: true, at: Timestamp::UNIX_EPOCH }
    }

    #[tokio::test]
    async fn repeats_are_counted_and_memory_is_bounded() {
        let mut writer = Writer::new(crate::nowhere());
        let mut queue = Queue::default();
        for _ in 0..3 {
            writer.observe(occurrence("same"), &mut queue);
        }
        assert_eq!(writer.known[&occurrence("same").kind].event.count, Some(3));
        for i in 0..REMEMBERED {
            writer.observe(occurrence(&i.to_string()), &mut queue);
        }
        assert_eq!(writer.known.len(), REMEMBERED);
        assert_eq!(writer.oldest.len(), REMEMBERED);
        assert!(!writer.known.contains_key(&occurrence("same").kind));
    }
}
