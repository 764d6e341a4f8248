//! Objects as they are stored -> as the version of their kind that is asked for, where a webhook makes one of the other.
//!
//! Invariants: what comes out looks as if it had been stored as that version, so that nothing after this need know; an
//! object is shown to its writer as it will be read, both ways having been gone before anything is written, so that no
//! webhook makes a failure of what is done. Gets and writes ask each time; lists and watches take what was answered
//! before about the same revision. A slow webhook keeps nobody waiting but those who ask for its kind: their writes take
//! turns of their own, and calls have a number, a size and an end.
//! Deliberately not here: what is asked and believed, which is `portolan_kinds::custom::webhook`.

mod call;
mod known;
mod trust;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use portolan_kinds::apply::{Translations, Wanted};
use portolan_kinds::custom::webhook::{Conversion, Webhook, subject};
use portolan_kinds::{Kind, Status};
use portolan_store::{Entry, Event, Key};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::server::Server;
use crate::turns::Turns;
use known::Known;
use trust::Trust;

/// Calls of one definition's webhook at one time, and writes of its objects.
const CALLS: usize = 16;
const WRITES: usize = 16;
/// What is asked at once of many objects: no more of them, and no more bytes give or take an object.
const OBJECTS: usize = 256;
const BYTES: usize = 1 << 20;

/// What all definitions with a webhook have of their own.
pub(crate) struct Conversions {
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
    known: Mutex<Known>,
    trust: Trust,
    /// No call goes on after this.
    closed: CancellationToken,
}

/// Where those who ask for the objects of one definition wait.
pub(crate) struct Lane {
    pub(crate) writes: Turns,
    calls: Semaphore,
}

impl Conversions {
    pub(crate) fn new() -> Self {
        Self {
            lanes: Mutex::default(),
            known: Mutex::default(),
            trust: Trust::default(),
            closed: CancellationToken::new(),
        }
    }

    /// Ends all calls, and lets none begin.
    pub(crate) fn close(&self) {
        self.closed.cancel();
    }

    pub(crate) fn lane(&self, webhook: &Webhook) -> Arc<Lane> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(&webhook.definition) {
            return lane.clone();
        }
        // Nobody waits in those of definitions that are gone, or at rest.
        lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        let lane = Arc::new(Lane { writes: Turns::new(WRITES), calls: Semaphore::new(CALLS) });
        lanes.insert(webhook.definition.clone(), lane.clone());
        lane
    }
}

/// Whoever has to convert these to show them as `kind`, if anybody has.
fn converter<'a>(kind: &'a Kind, stored: &[u8]) -> Option<&'a Webhook> {
    kind.webhook().filter(|_| object::api_version(stored) != kind.api_version())
}

/// A stored object as `kind`.
///
/// # Errors
/// 500 when the webhook fails.
pub(crate) async fn one(server: &Server, kind: &Kind, stored: Bytes) -> Result<Bytes, Status> {
    let Some(webhook) = converter(kind, &stored) else { return Ok(stored) };
    let mut converted = many(server, kind, webhook, &[&stored]).await?;
    Ok(converted.swap_remove(0))
}

/// The objects of a list as `kind`.
///
/// # Errors
/// 500 when the webhook fails.
pub(crate) async fn listed(server: &Server, kind: &Kind, entries: &mut [(Key, Entry)]) -> Result<(), Status> {
    let Some(webhook) = kind.webhook() else { return Ok(()) };
    let place = |key: &Key, entry: &Entry| (key.clone(), entry.revision, webhook.identity, kind.version);
    let known = || server.conversions.known.lock().unwrap_or_else(PoisonError::into_inner);
    let mut unknown: Vec<&mut (Key, Entry)> = Vec::new();
    for item in entries.iter_mut().filter(|(_, entry)| converter(kind, &entry.value).is_some()) {
        match known().get(&place(&item.0, &item.1)) {
            Some(converted) => item.1.value = converted,
            None => unknown.push(item),
        }
    }
    let mut rest = unknown.as_mut_slice();
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = |item: &&&mut (Key, Entry)| {
            let room = bytes < BYTES;
            bytes += item.1.value.len();
            room
        };
        let count = rest.iter().take(OBJECTS).take_while(fits).count();
        let (some, more) = rest.split_at_mut(count);
        let stored: Vec<&Bytes> = some.iter().map(|(_, entry)| &entry.value).collect();
        let converted = many(server, kind, webhook, &stored).await?;
        for ((key, entry), converted) in some.iter_mut().map(|item| &mut **item).zip(converted) {
            known().insert(place(key, entry), converted.clone());
            entry.value = converted;
        }
        rest = more;
    }
    Ok(())
}

/// What happened to objects, seen as `kind`; what they were before only if somebody is going to look.
///
/// # Errors
/// 500 when the webhook fails.
pub(crate) async fn events(
    server: &Server,
    kind: &Kind,
    events: Vec<Arc<Event>>,
    looks_back: bool,
) -> Result<Vec<Arc<Event>>, Status> {
    if kind.webhook().is_none() {
        return Ok(events);
    }
    let is_seen = |event: &Event| looks_back || event.new.is_none();
    let mut sides = Vec::new();
    for event in &events {
        let old = event.old.as_ref().filter(|_| is_seen(event));
        sides.extend(event.new.iter().chain(old).map(|entry| (event.key.clone(), entry.clone())));
    }
    listed(server, kind, &mut sides).await?;
    let mut sides = sides.into_iter().map(|(_, entry)| entry);
    let seen = |event: Arc<Event>| {
        let new = event.new.as_ref().and_then(|_| sides.next());
        let old = if is_seen(&event) { event.old.as_ref().and_then(|_| sides.next()) } else { event.old.clone() };
        Arc::new(event.seen_as(new, old))
    };
    Ok(events.into_iter().map(seen).collect())
}

/// An object that is to be written.
pub(crate) struct Outgoing {
    pub(crate) stored: Value,
    /// How it will be read as the version that it came in, if that is not how it is stored.
    shown: Option<Value>,
}

impl Outgoing {
    /// What to tell of it once it is written, or would be.
    pub(crate) fn told(self, entry: Option<Entry>) -> Bytes {
        match (self.shown, entry) {
            (None, Some(entry)) => entry.value,
            (Some(mut shown), Some(entry)) => {
                object::metadata(&mut shown).insert("resourceVersion".into(), entry.revision.to_string().into());
                object::bytes(&shown)
            }
            (shown, None) => object::bytes(&shown.unwrap_or(self.stored)),
        }
    }
}

/// An object that came as `kind`, as the version that it is stored as.
///
/// # Errors
/// 500 when the webhook fails.
pub(crate) async fn outgoing(server: &Server, kind: &Kind, object: Value) -> Result<Outgoing, Status> {
    let (own, storage) = (kind.api_version(), kind.stored_api_version());
    let Some(webhook) = kind.webhook().filter(|_| own != storage) else {
        let mut stored = object;
        if kind.is_custom() {
            // It is read by that version's schema, even if it is never written.
            stored["apiVersion"] = storage.into();
        }
        return Ok(Outgoing { stored, shown: None });
    };
    let stored = versioned(server, kind, webhook, vec![object], &storage).await?.swap_remove(0);
    let read = kind.restored(stored.clone()).unwrap_or_default();
    let shown = versioned(server, kind, webhook, vec![read], &own).await?.swap_remove(0);
    Ok(Outgoing { stored, shown: Some(shown) })
}

/// Objects of `kind` as the versions that somebody wants them as.
///
/// # Errors
/// 500 when the webhook fails.
pub(crate) async fn translate(
    server: &Server,
    kind: &Kind,
    wanted: Vec<Wanted>,
    translations: &mut Translations,
) -> Result<(), Status> {
    let Some(webhook) = kind.webhook() else { return Ok(()) };
    let mut by_version: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (api_version, object) in wanted {
        by_version.entry(api_version).or_default().push(object);
    }
    for (api_version, objects) in by_version {
        let translated = versioned(server, kind, webhook, objects.clone(), &api_version).await?;
        for (object, translated) in objects.into_iter().zip(translated) {
            translations.learn((api_version.clone(), object), translated);
        }
    }
    Ok(())
}

/// Stored objects that are none of `kind`'s version, made that.
async fn many(server: &Server, kind: &Kind, webhook: &Webhook, stored: &[&Bytes]) -> Result<Vec<Bytes>, Status> {
    let restored = |stored: &&Bytes| {
        let object = object::decode(stored);
        let version = object::text(&object, "/apiVersion").to_owned();
        let why = || Status::unknown(format!("request to convert CR from an invalid group/version: {version}"));
        kind.restored(object).ok_or_else(why)
    };
    let objects = stored.iter().map(restored).collect::<Result<Vec<Value>, Status>>()?;
    let converted = versioned(server, kind, webhook, objects, &kind.api_version()).await?;
    Ok(converted.iter().map(object::bytes).collect())
}

/// Objects, as the webhook makes them of that version, with no fields that it has not.
async fn versioned(
    server: &Server,
    kind: &Kind,
    webhook: &Webhook,
    objects: Vec<Value>,
    api_version: &str,
) -> Result<Vec<Value>, Status> {
    let uid = object::new_uid();
    let asked = Conversion { uid: &uid, api_version, objects: &objects };
    let question = webhook.question(asked).map_err(Status::unknown)?.to_string();
    let lane = server.conversions.lane(webhook);
    let answer = tokio::select! {
        biased;
        () = server.conversions.closed.cancelled() => Err("context canceled".to_owned()),
        answer = call::call(server, webhook, &lane.calls, &server.conversions.trust, question) => answer,
    };
    let answer = answer.map_err(|why| {
        tracing::debug!(definition = webhook.definition, %why, "a webhook did not convert");
        Status::unknown(format!("conversion webhook for {} failed: {why}", subject(asked)))
    })?;
    let converted = webhook.accept(asked, answer).map_err(Status::unknown)?;
    Ok(converted.into_iter().map(|object| kind.pruned(object)).collect())
}
