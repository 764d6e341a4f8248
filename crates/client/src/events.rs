//! What a part of the system did and what stopped it -> core/v1 Events, repeats counted instead of repeated.
//!
//! Invariants: recording never waits and never fails the recorder; memory is bounded, the oldest occurrences are
//! forgotten first; one object cannot flood the API, and a server that refuses Events is told of once and then left
//! alone. An Event's name follows from what it says, so that another node, or a later life, that says the same of the
//! same object says it in the same Event.
//!
//! Deliberately not here: delivery guarantees, which Events do not have.
//!
//! Source: client-go `tools/record` for the limits.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Occurrences that wait to be taken in; more than these at once are dropped.
const BACKLOG: usize = 4096;
/// Distinct Events remembered, so that a repeat is counted.
const REMEMBERED: usize = 4096;
/// Requests under way at once.
const ABREAST: usize = 8;
/// Writes about one object: so many at once, and then one more each `REFILL`.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(300);

/// What makes two occurrences the same Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    uid: String,
    namespace: String,
    name: String,
    component: &'static str,
    reason: &'static str,
    message: String,
}

impl Kind {
    /// FNV-1a over everything that makes it what it is.
    fn fingerprint(&self) -> u64 {
        let parts = [&self.uid, &self.namespace, &self.name, self.component, self.reason, &self.message];
        let bytes = parts.into_iter().flat_map(|part| part.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    fn about(&self) -> (String, String, String) {
        (self.namespace.clone(), self.name.clone(), self.uid.clone())
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
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Occurrence>,
}

impl Recorder {
    /// The recorder and the future that writes what it records, until dropped. The Events say that they come from
    /// `host`, unless that is empty.
    pub fn new(client: Client, host: &str) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let host = (!host.is_empty()).then(|| host.to_owned());
        (Self { component: "", sender }, Writer::default().run(client, host, receiver))
    }

    #[must_use]
    pub fn component(&self, component: &'static str) -> Self {
        Self { component, sender: self.sender.clone() }
    }

    pub fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.record(reference(about), false, reason, message);
    }

    pub fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.record(reference(about), true, reason, message);
    }

    pub fn record(&self, about: ObjectReference, warning: bool, reason: &'static str, message: String) {
        let kind = Kind {
            uid: about.uid.clone().unwrap_or_default(),
            namespace: about.namespace.clone().unwrap_or_default(),
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
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody but us knows of it, or of its latest occurrence.
    Due {
        stored: bool,
    },
    Writing {
        again: bool,
    },
    Stored,
}

/// What an object may still have written about it.
struct Allowance {
    writes: u32,
    refilled: Instant,
}

#[derive(Default)]
struct Writer {
    known: BTreeMap<Kind, Known>,
    /// The keys of `known`, the longest known first.
    oldest: VecDeque<Kind>,
    due: VecDeque<Kind>,
    allowances: BTreeMap<(String, String, String), Allowance>,
    refused: bool,
}

impl Writer {
    async fn run(mut self, client: Client, host: Option<String>, mut occurrences: mpsc::Receiver<Occurrence>) {
        let mut writing = FuturesUnordered::new();
        loop {
            while writing.len() < ABREAST
                && let Some((kind, event, stored)) = self.begin()
            {
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                writing.push(async move { (kind, write(&api, event, stored).await) });
            }
            tokio::select! {
                Some(occurrence) = occurrences.recv() => self.observe(occurrence, host.as_deref(), Instant::now()),
                Some((kind, written)) = writing.next(), if !writing.is_empty() => self.end(&kind, written),
                else => return,
            }
        }
    }

    fn observe(&mut self, occurrence: Occurrence, host: Option<&str>, now: Instant) {
        if self.refused || !self.allow(&occurrence.kind, now) {
            return;
        }
        let kind = occurrence.kind.clone();
        if let Some(known) = self.known.get_mut(&kind) {
            known.event.count = Some(known.event.count.unwrap_or(1).saturating_add(1));
            known.event.last_timestamp = Some(Time(occurrence.at));
            match known.state {
                State::Writing { .. } => known.state = State::Writing { again: true },
                State::Due { .. } => {}
                State::Stored => {
                    known.state = State::Due { stored: true };
                    self.due.push_back(kind);
                }
            }
            return;
        }
        self.oldest.push_back(kind.clone());
        self.due.push_back(kind.clone());
        self.known.insert(kind, Known { event: first(occurrence, host), state: State::Due { stored: false } });
        if self.oldest.len() > REMEMBERED
            && let Some(forgotten) = self.oldest.pop_front()
        {
            self.known.remove(&forgotten);
        }
    }

    /// Whether the object has not been written about too often; it counts as written about now.
    fn allow(&mut self, kind: &Kind, now: Instant) -> bool {
        if self.allowances.len() >= REMEMBERED {
            self.allowances.retain(|_, allowance| allowance.refilled + REFILL * BURST > now);
        }
        let allowance = self.allowances.entry(kind.about()).or_insert(Allowance { writes: BURST, refilled: now });
        while allowance.writes < BURST && allowance.refilled + REFILL <= now {
            allowance.writes += 1;
            allowance.refilled += REFILL;
        }
        if allowance.writes == BURST {
            allowance.refilled = now;
        }
        let allowed = allowance.writes > 0;
        allowance.writes = allowance.writes.saturating_sub(1);
        allowed
    }

    /// The next Event to write, and whether the server has it already.
    fn begin(&mut self) -> Option<(Kind, Event, bool)> {
        while let Some(kind) = self.due.pop_front() {
            if let Some(known) = self.known.get_mut(&kind)
                && let State::Due { stored } = known.state
            {
                known.state = State::Writing { again: false };
                return Some((kind, known.event.clone(), stored));
            }
        }
        None
    }

    fn end(&mut self, kind: &Kind, written: Result<(), kube::Error>) {
        match written {
            Err(kube::Error::Api(status)) if is_no_right(&status) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!("the API server takes no Events from here; what they would say is in this log only");
                }
            }
            Err(error) => tracing::debug!(%error, "event not written"),
            Ok(()) => {}
        }
        if let Some(known) = self.known.get_mut(kind) {
            let again = known.state == State::Writing { again: true };
            known.state = if again { State::Due { stored: true } } else { State::Stored };
            if again {
                self.due.push_back(kind.clone());
            }
        }
    }
}

/// A namespace that is being deleted takes no Events either, but that says nothing about us.
fn is_no_right(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.is_forbidden() && !causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

async fn write(api: &Api<Event>, event: Event, stored: bool) -> Result<(), kube::Error> {
    let again = async |patch| {
        let patched = api.patch(&event.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map(drop)
    };
    if stored {
        match again(json!({"count": event.count, "lastTimestamp": event.last_timestamp})).await {
            // Events are removed after a while.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            result => return result,
        }
    }
    match api.create(&PostParams::default(), &event).await {
        // Said already, by another node or an earlier life.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            again(json!({"lastTimestamp": event.last_timestamp})).await
        }
        result => result.map(drop),
    }
}

fn first(occurrence: Occurrence, host: Option<&str>) -> Event {
    let Occurrence { kind, about, warning, at } = occurrence;
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{:016x}", kind.name, kind.fingerprint())),
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
        source: Some(EventSource { component: Some(kind.component.into()), host: host.map(str::to_owned) }),
        reporting_component: Some(kind.component.into()),
        reporting_instance: Some(host.unwrap_or_default().to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(name: &str, message: &str) -> Occurrence {
        let kind = Kind {
            uid: "u".into(),
            namespace: "shop".into(),
            name: name.into(),
            component: "test",
            reason: "Failed",
            message: message.into(),
        };
        Occurrence { kind, about: ObjectReference::default(), warning: true, at: Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn repeats_are_counted_and_memory_is_bounded() {
        let (mut writer, now) = (Writer::default(), Instant::now());
        for _ in 0..3 {
            writer.observe(occurrence("web", "same"), None, now);
        }
        assert_eq!(writer.known[&occurrence("web", "same").kind].event.count, Some(3));
        for i in 0..REMEMBERED {
            writer.observe(occurrence(&i.to_string(), ""), None, now);
        }
        assert_eq!(writer.known.len(), REMEMBERED);
        assert_eq!(writer.oldest.len(), REMEMBERED);
        assert!(!writer.known.contains_key(&occurrence("web", "same").kind));
    }

    #[test]
    fn what_happens_again_while_it_is_written_is_written_once_more() {
        let (mut writer, now) = (Writer::default(), Instant::now());
        writer.observe(occurrence("web", "same"), None, now);
        let (kind, event, stored) = writer.begin().unwrap();
        assert_eq!((event.count, stored), (Some(1), false));
        writer.observe(occurrence("web", "same"), None, now);
        assert!(writer.begin().is_none(), "one request an Event at a time");
        writer.end(&kind, Ok(()));
        let (_, event, stored) = writer.begin().unwrap();
        assert_eq!((event.count, stored), (Some(2), true));
        writer.end(&kind, Ok(()));
        assert!(writer.begin().is_none());
    }

    #[test]
    fn one_object_cannot_flood_the_api() {
        let (mut writer, now) = (Writer::default(), Instant::now());
        let mut told = |name: &str, now| {
            (0..100).for_each(|i| writer.observe(occurrence(name, &i.to_string()), None, now));
            std::iter::from_fn(|| writer.begin()).count()
        };
        assert_eq!(told("web", now), 25);
        assert_eq!(told("api", now), 25, "another one is none the worse for it");
        let mut writer = Writer::default();
        (0..100).for_each(|i| writer.observe(occurrence("web", &i.to_string()), None, now));
        let later = now + REFILL * 3;
        (100..200).for_each(|i| writer.observe(occurrence("web", &i.to_string()), None, later));
        assert_eq!(std::iter::from_fn(|| writer.begin()).count(), 28);
    }

    #[test]
    fn the_same_from_two_nodes_is_one_event() {
        let name = |message, host| first(occurrence("web", message), Some(host)).name_any();
        assert_eq!(name("x", "node1"), name("x", "node2"));
        assert_ne!(name("x", "node1"), name("y", "node1"));
    }
}
