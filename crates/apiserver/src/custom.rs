//! CustomResourceDefinitions in the store -> the kinds that are served beside the program's own; and definitions that
//! were told to go, emptied of their objects and let go.
//!
//! Invariants: a definition that says it is established is served already; who writes a definition is answered when
//! what it changes is in force; a definition goes only after its last object.
//! Deliberately not here: what a defined kind does, which is `portolan_kinds::custom`.
//! Source: the controllers in `pkg/controller/{status,establish,finalizer}` of apiextensions-apiserver.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use portolan_kinds::custom::{self, definition, naming};
use portolan_kinds::{Catalog, Kind, KindRef, Status};
use portolan_store::{Expect, Key, Op, Page, Revision, Store};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::delete;
use crate::object;
use crate::options::{DeleteOptions, Options};
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::user::User;
use crate::warnings::Warnings;
use crate::write::{self, Asked};

/// Definitions there may be, and bytes of all together: each that is used is held as a tree some times its size.
const MOST: usize = 2000;
const MOST_BYTES: usize = 64 << 20;
/// Who writes the status of definitions, as their managed fields have it.
const MANAGER: &str = "kube-apiserver";
/// How long whoever writes a definition waits for it to be in force.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause before something that failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// The kinds that are served now, and up to which revision they are what the store says.
pub(crate) struct Kinds {
    catalog: RwLock<Arc<Catalog>>,
    reached: watch::Sender<Revision>,
}

impl Kinds {
    /// The program's own, for a start.
    pub(crate) fn new() -> Self {
        Self { catalog: RwLock::default(), reached: watch::Sender::new(Revision(0)) }
    }

    pub(crate) fn now(&self) -> Arc<Catalog> {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until what was written at `revision` is in force.
    pub(crate) async fn reached(&self, revision: Revision) {
        let mut reached = self.reached.subscribe();
        let _ = tokio::time::timeout(PATIENCE, reached.wait_for(|now| *now >= revision)).await;
    }
}

pub(crate) fn kind() -> &'static Kind {
    crate::known_kind("apiextensions.k8s.io", "customresourcedefinitions")
}

pub(crate) fn is_definition(kind: &Kind) -> bool {
    (kind.group, kind.plural) == ("apiextensions.k8s.io", "customresourcedefinitions")
}

/// # Errors
/// 403 for more definitions than there may be.
pub(crate) fn refuse_too_many(store: &Store, name: &str, definition: &Value) -> Result<(), Status> {
    let Ok(all) = store.list(&object::prefix(kind(), None), &Page::default()) else { return Ok(()) };
    let others = all.entries.iter().filter(|(key, _)| key.name() != name);
    let (count, bytes) = others.fold((0, 0), |(count, bytes), (_, entry)| (count + 1, bytes + entry.value.len()));
    let why = if count >= MOST {
        format!("there are {MOST} definitions already, and no more are served")
    } else if bytes + definition.to_string().len() > MOST_BYTES {
        format!("all definitions together may have {MOST_BYTES} bytes")
    } else {
        return Ok(());
    };
    Err(Status::forbidden("apiextensions.k8s.io", "customresourcedefinitions", name, &why))
}

/// A definition that goes stays until its objects are gone, and says so.
pub(crate) fn mark_deleted(definition: &mut Value, now: Timestamp) {
    let finalizers = object::metadata(definition).entry("finalizers").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(list) = finalizers
        && !list.iter().any(|name| name == definition::CLEANUP)
    {
        list.push(definition::CLEANUP.into());
    }
    let words = (
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
    );
    definition::set_condition(definition, "Terminating", true, words, &object::time(now));
}

/// One definition as it was seen last.
struct Seen {
    revision: Revision,
    /// Without its schemas, which its kinds have.
    facts: Value,
    kinds: Vec<Arc<Kind>>,
}

/// What the loop knows.
#[derive(Default)]
struct Definitions {
    seen: BTreeMap<Key, Seen>,
    /// Definitions that are being emptied, and who does it.
    emptying: BTreeSet<Key>,
    at_work: JoinSet<()>,
}

/// Serves what is established already.
pub(crate) fn restore(server: &Server) {
    let mut definitions = Definitions::default();
    if let Ok(all) = server.store.list(&object::prefix(kind(), None), &Page::default()) {
        for (key, entry) in all.entries {
            definitions.take(key, entry.revision, object::decode(&entry.value));
        }
        definitions.publish(&server.kinds);
    }
}

/// Follows the store for as long as the server serves.
pub(crate) async fn run(server: Arc<Server>) -> Infallible {
    loop {
        let mut definitions = Definitions::default();
        let prefix = object::prefix(kind(), None);
        let Ok(all) = server.store.list(&prefix, &Page::default()) else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let revision = all.revision;
        for (key, entry) in all.entries {
            definitions.take(key, entry.revision, object::decode(&entry.value));
        }
        definitions.settle(&server, revision).await;
        let Ok(mut watch) = server.store.watch(prefix, revision) else { continue };
        while let Ok(batch) = watch.next().await {
            for event in &batch.events {
                match &event.new {
                    Some(entry) => definitions.take(event.key.clone(), entry.revision, object::decode(&entry.value)),
                    None => definitions.forget(&event.key),
                }
            }
            definitions.settle(&server, batch.revision).await;
        }
    }
}

impl Definitions {
    fn take(&mut self, key: Key, revision: Revision, mut definition: Value) {
        let kinds = if custom::is_established(&definition) {
            custom::kinds(&definition).unwrap_or_else(|| {
                tracing::warn!(definition = key.name(), "not served: there is no room for more names of kinds");
                Vec::new()
            })
        } else {
            Vec::new()
        };
        object::spec(&mut definition).remove("versions");
        self.seen.insert(key, Seen { revision, facts: definition, kinds });
    }

    fn forget(&mut self, key: &Key) {
        self.seen.remove(key);
        self.emptying.remove(key);
    }

    /// Puts in force what is known.
    fn publish(&self, kinds: &Kinds) {
        let catalog = Catalog::new(self.seen.values().flat_map(|seen| seen.kinds.iter().cloned()));
        *kinds.catalog.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(catalog);
    }

    /// Gives out names, puts in force what is established, starts to empty what is going.
    async fn settle(&mut self, server: &Arc<Server>, revision: Revision) {
        // Nobody is told of a definition's being established before it is served.
        while self.give_names(server).await {}
        self.publish(&server.kinds);
        server.kinds.reached.send_replace(revision);
        while self.at_work.try_join_next().is_some() {}
        for (key, seen) in &self.seen {
            let finalizers = seen.facts["metadata"]["finalizers"].as_array();
            let waits = finalizers.is_some_and(|list| list.iter().any(|name| name == definition::CLEANUP));
            if object::is_deleting(&seen.facts) && waits && self.emptying.insert(key.clone()) {
                let (server, key) = (server.clone(), key.clone());
                self.at_work.spawn(async move { empty(&server, &key).await });
            }
        }
    }

    /// One round over all definitions; true if any got a name, which may free another.
    async fn give_names(&mut self, server: &Server) -> bool {
        let mut changed = false;
        let keys: Vec<Key> = self.seen.keys().cloned().collect();
        for key in keys {
            let Some(seen) = self.seen.get(&key) else { continue };
            let now = object::time(Timestamp::now());
            // Of most there is nothing to do, whatever others have.
            if naming::settle(&seen.facts, &naming::Taken::default(), &now).is_none() {
                continue;
            }
            let mut taken = naming::Taken::default();
            let group = &seen.facts["spec"]["group"];
            let others =
                self.seen.iter().filter(|(other, seen)| **other != key && seen.facts["spec"]["group"] == *group);
            others.for_each(|(_, other)| taken.add(&other.facts));
            if naming::settle(&seen.facts, &taken, &now).is_none() {
                continue;
            }
            let Some(entry) = server.store.get(&key).0 else { continue };
            let definition = object::decode(&entry.value);
            // What changed since is heard of soon.
            if entry.revision != seen.revision {
                continue;
            }
            let Some(mut new) = naming::settle(&definition, &taken, &now) else { continue };
            write::own_status(kind(), MANAGER, (&definition, &mut new), &now);
            if let Some(kinds) = custom::is_established(&new).then(|| custom::kinds(&new)).flatten()
                && let Some(seen) = self.seen.get_mut(&key)
            {
                seen.kinds = kinds;
                self.publish(&server.kinds);
            }
            let put =
                Op::Put { key: key.clone(), expect: Expect::At(entry.revision), value: object::encode(kind(), &new) };
            if let Ok(mut entries) = write::commit(&server.store, vec![put]).await
                && let Some(entry) = entries.pop().flatten()
            {
                self.take(key, entry.revision, object::decode(&entry.value));
                changed = true;
            }
        }
        changed
    }
}

/// Deletes all objects of a definition, waits for those that somebody keeps, and lets the definition go.
async fn empty(server: &Arc<Server>, key: &Key) {
    loop {
        let Some(entry) = server.store.get(key).0 else { return };
        let found = object::decode(&entry.value);
        let words = ("InstanceDeletionInProgress", "CustomResource deletion is in progress");
        if !change(server, key, |definition, now| {
            definition::set_condition(definition, "Terminating", true, words, now)
        })
        .await
        {
            return;
        }
        let group = object::text(&found, "/spec/group");
        let plural = object::text(&found, "/spec/names/plural");
        let catalog = server.kinds.now();
        let of_it = |kind: &&Kind| kind.is_custom() && (kind.group, kind.plural) == (group, plural);
        let served = catalog.iter().find(of_it).and_then(|kind| catalog.find(kind.group, kind.version, kind.plural));
        let done = match served {
            Some(kind) => delete_all(server, &kind).await,
            None => Some(("NeverEstablished", "resource was never established")),
        };
        let Some(words) = done else {
            // The history that was watched is gone.
            continue;
        };
        change(server, key, |definition, now| {
            definition::set_condition(definition, "Terminating", false, words, now);
            if let Some(Value::Array(list)) = object::metadata(definition).get_mut("finalizers") {
                list.retain(|name| name != definition::CLEANUP);
            }
        })
        .await;
        return;
    }
}

/// What to say when there are no objects of this kind any more; `None` when that cannot be known.
async fn delete_all(server: &Arc<Server>, kind: &KindRef) -> Option<(&'static str, &'static str)> {
    let prefix = object::prefix(kind, None);
    let mut watch = server.store.watch(prefix.clone(), server.store.revision()).ok()?;
    let options = Options { delete: DeleteOptions::default(), ..Options::default() };
    let user = User::admin();
    loop {
        let all = server.store.list(&prefix, &Page::default()).ok()?;
        if all.entries.is_empty() {
            return Some(("InstanceDeletionCompleted", "removed all instances"));
        }
        for (key, entry) in all.entries {
            if object::is_deleting(&object::decode(&entry.value)) {
                continue;
            }
            let namespace = Some(key.namespace().to_owned()).filter(|namespace| !namespace.is_empty());
            let target = Target { kind: kind.clone(), namespace, name: Some(key.name().to_owned()), sub: Sub::None };
            // One that went meanwhile, or changed: the next look at the list tells.
            let asked = Asked { user: &user, target: &target, options: &options, warnings: &Warnings::default() };
            let _ = delete::delete(server, asked).await;
        }
        watch.next().await.ok()?;
    }
}

/// Changes a definition's metadata and status; false if it is gone or cannot be written. One without finalizers that
/// was told to go is gone by it.
async fn change(server: &Server, key: &Key, change: impl Fn(&mut Value, &str)) -> bool {
    loop {
        let Some(entry) = server.store.get(key).0 else { return false };
        let old = object::decode(&entry.value);
        let mut new = old.clone();
        let now = object::time(Timestamp::now());
        change(&mut new, &now);
        if new == old {
            return true;
        }
        write::own_status(kind(), MANAGER, (&old, &mut new), &now);
        let expect = Expect::At(entry.revision);
        let gone = object::is_deleting(&new) && !object::has_items(&new, "/metadata/finalizers");
        let op = if gone {
            Op::Delete { key: key.clone(), expect }
        } else {
            Op::Put { key: key.clone(), expect, value: object::encode(kind(), &new) }
        };
        match write::commit(&server.store, vec![op]).await {
            Ok(_) => return true,
            Err(write::Unwritten::Race(_)) => {}
            Err(write::Unwritten::Failed(_)) => return false,
        }
    }
}
