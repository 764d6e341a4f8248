//! delete and deletecollection.
//!
//! What a delete does to an object is [`plan`], a pure function: remove it at once, mark it and leave the rest to
//! whoever holds a finalizer or runs the pod, or nothing, because it is being deleted already.
//! Source: apiserver `registry/rest/delete.go` and the pod and namespace strategies.

use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use portolan_kinds::{Kind, Status};
use portolan_store::{Expect, Op, Page};
use serde_json::{Value, json};

use crate::accept::View;
use crate::admission;
use crate::convert;
use crate::custom;
use crate::filter::Filter;
use crate::listing::Listing;
use crate::object;
use crate::options::{DeleteOptions, Propagation};
use crate::read;
use crate::respond::{self, Reply};
use crate::route::Target;
use crate::server::Server;
use crate::services::{self, Allocation};
use crate::show;
use crate::write::{Asked, Unwritten, commit};

const TRIES: usize = 64;
/// A collection is deleted this many objects at a time.
const TOGETHER: usize = 64;

#[derive(Debug, PartialEq)]
pub(crate) enum Plan {
    Remove,
    /// Store this instead.
    Mark(Value),
    /// It is being deleted already, and nothing new was asked.
    Nothing,
}

/// Of the garbage collector's two finalizers, those that the object should have. Nothing hangs on an Event.
fn finalizers(kind: &Kind, old: &Value, propagation: Propagation) -> Vec<Value> {
    const ORPHAN: &str = "orphan";
    const FOREGROUND: &str = "foregroundDeletion";
    let now = old["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let wanted = match propagation {
        Propagation::Unsaid => return now,
        Propagation::Background => None,
        _ if kind.kind == "Event" => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    let mut finalizers: Vec<Value> =
        now.iter().filter(|name| *name != ORPHAN && *name != FOREGROUND).cloned().collect();
    finalizers.extend(wanted.map(Value::from));
    // Who has all of them already keeps them in their order.
    let same = finalizers.len() == now.len() && finalizers.iter().all(|name| now.contains(name));
    if same { now } else { finalizers }
}

/// Seconds that a pod has to end; others have none.
fn grace(kind: &Kind, old: &Value, asked: Option<i64>) -> i64 {
    if kind.plural != "pods" {
        return 0;
    }
    let unscheduled = object::text(old, "/spec/nodeName").is_empty();
    let over = matches!(object::text(old, "/status/phase"), "Succeeded" | "Failed");
    if unscheduled || over {
        return 0;
    }
    let seconds = asked.or_else(|| old["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(30);
    if seconds < 0 { 1 } else { seconds }
}

pub(crate) fn plan(kind: &Kind, old: &Value, options: &DeleteOptions, now: Timestamp) -> Plan {
    if kind.plural == "namespaces" {
        return plan_namespace(old, now);
    }
    let mut finalizers = finalizers(kind, old, options.propagation);
    let defines = custom::is_definition(kind) && !object::is_deleting(old);
    let was: Option<i64> = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let marked_at = object::text(old, "/metadata/deletionTimestamp").parse::<Timestamp>().ok();
    let (seconds, due) = match (marked_at, was) {
        (None, _) => {
            let seconds = grace(kind, old, options.grace_period_seconds);
            (seconds, object::time_after(now, seconds))
        }
        (Some(marked_at), was) => {
            let was = was.unwrap_or(0);
            // The time to end can only become shorter.
            let seconds = options.grace_period_seconds.map_or(was, |asked| asked.max(0)).min(was);
            (seconds, object::time_after(marked_at, seconds - was))
        }
    };
    if seconds == 0 && finalizers.is_empty() && !defines {
        return Plan::Remove;
    }
    let mut new = old.clone();
    if defines {
        custom::mark_deleted(&mut new, now);
        finalizers = new["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    }
    let metadata = object::metadata(&mut new);
    metadata.insert("deletionTimestamp".into(), due.into());
    // A definition has none, and its generation stays as it is.
    if !custom::is_definition(kind) {
        metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
    }
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
    if new == *old {
        return Plan::Nothing;
    }
    if let Some(generation) = old["metadata"]["generation"].as_i64().filter(|_| marked_at.is_none() && !defines) {
        object::metadata(&mut new).insert("generation".into(), (generation + 1).into());
    }
    Plan::Mark(new)
}

/// A namespace stays until its controller has emptied it.
fn plan_namespace(old: &Value, now: Timestamp) -> Plan {
    let kept = object::has_items(old, "/spec/finalizers") || object::has_items(old, "/metadata/finalizers");
    if !kept {
        return Plan::Remove;
    }
    if object::is_deleting(old) {
        return Plan::Nothing;
    }
    let mut new = old.clone();
    object::metadata(&mut new).insert("deletionTimestamp".into(), object::time(now).into());
    object::member(&mut new, "status").insert("phase".into(), "Terminating".into());
    Plan::Mark(new)
}

pub(crate) fn check_preconditions(kind: &Kind, old: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let name = object::name(old);
    for (asked, pointer, what, then) in [
        (&options.uid, "/metadata/uid", "UID", "deleted and then recreated"),
        (&options.resource_version, "/metadata/resourceVersion", "ResourceVersion", "modified"),
    ] {
        let found = object::text(old, pointer);
        if let Some(asked) = asked.as_deref().filter(|asked| *asked != found) {
            let why = format!(
                "the {what} in the precondition ({asked}) does not match the {what} in record ({found}). The object might \
                 have been {then}"
            );
            return Err(Status::conflict(kind.group, kind.kind, name, &why));
        }
    }
    Ok(())
}

pub(crate) struct Deleted {
    /// As it was last.
    pub(crate) stored: Bytes,
    pub(crate) removed: bool,
}

pub(crate) async fn delete(server: &Server, asked: Asked<'_>) -> Result<Deleted, Status> {
    let (kind, name) = (asked.kind(), asked.name());
    if kind.plural == "namespaces" && matches!(name, "default" | "kube-system" | "kube-public") {
        return Err(Status::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    for _ in 0..TRIES {
        let (key, entry) = read::stored(&server.store, asked.target)?;
        let old = object::decode(&entry.value);
        check_preconditions(kind, &old, &asked.options.delete)?;
        admission::delete(asked, &old)?;
        let expect = Expect::At(entry.revision);
        let plan = plan(kind, &old, &asked.options.delete, Timestamp::now());
        let removed = plan == Plan::Remove;
        let mut claim = None;
        let ops = match plan {
            Plan::Nothing => return Ok(Deleted { stored: entry.value, removed: false }),
            Plan::Mark(new) if asked.options.dry_run => {
                return Ok(Deleted { stored: object::bytes(&new), removed: false });
            }
            Plan::Remove if asked.options.dry_run => return Ok(Deleted { stored: entry.value, removed: true }),
            Plan::Mark(new) => {
                vec![Op::Put { key, expect, value: object::encode(object::stored_kind(kind), &new) }]
            }
            Plan::Remove => {
                let mut ops = vec![Op::Delete { key, expect }];
                if services::is_service(kind) {
                    let Allocation { claim: released, ops: more } = services::release(&server.services, &old);
                    ops.extend(more);
                    claim = Some(released);
                }
                ops
            }
        };
        match commit(&server.store, ops).await {
            Ok(mut entries) => {
                if let Some(claim) = claim {
                    claim.commit();
                }
                let stored = entries.swap_remove(0).map(|entry| entry.value).unwrap_or_default();
                return Ok(Deleted { stored, removed });
            }
            Err(Unwritten::Failed(status)) => return Err(status),
            Err(Unwritten::Race(_)) => {}
        }
    }
    Err(Status::stale(kind.group, kind.plural, name))
}

pub(crate) async fn reply_one(server: &Server, asked: Asked<'_>, view: View) -> Result<Reply, Status> {
    let kind = asked.kind();
    let deleted = delete(server, asked).await?;
    if deleted.removed && !kind.returns_deleted() {
        let uid = object::text(&object::decode(&deleted.stored), "/metadata/uid").to_owned();
        return Ok(respond::object(200, view.media, &respond::success(kind.group, kind.plural, asked.name(), &uid)));
    }
    let code = if !deleted.removed && asked.options.delete.cascades { 202 } else { 200 };
    let stored = convert::one(server, kind, deleted.stored).await?;
    Ok(respond::bytes(code, view.media, show::one(kind, &stored, view)))
}

pub(crate) async fn collection(server: &Server, asked: Asked<'_>, view: View) -> Result<Reply, Status> {
    let kind = asked.kind();
    let filter = Filter::parse(&asked.target.kind, asked.options)?;
    let page = Page { limit: asked.options.limit, ..Page::default() };
    let (entries, meta) = read::select(server, &asked.user.name, asked.target, &filter, page).await?;
    let keys: Vec<_> = entries.iter().map(|(key, _)| key.clone()).collect();
    let outcomes = stream::iter(keys.into_iter().map(|key| async move {
        let target = Target {
            name: Some(key.name().to_owned()),
            namespace: kind.namespaced.then(|| key.namespace().to_owned()),
            ..asked.target.clone()
        };
        match delete(server, Asked { target: &target, ..asked }).await {
            Err(status) if status.code() != 404 => Err(status),
            _ => Ok(()),
        }
    }));
    let outcomes: Vec<_> = outcomes.buffer_unordered(TOGETHER).collect().await;
    outcomes.into_iter().collect::<Result<Vec<()>, Status>>()?;
    let listing = Listing::new(&asked.target.kind, entries, &meta, view);
    Ok(respond::bytes(200, view.media, listing.whole()))
}

/// The DeleteOptions that an eviction carries.
pub(crate) fn eviction_options(body: &Value) -> Value {
    match &body["deleteOptions"] {
        Value::Null => json!({}),
        options => {
            let mut options = options.clone();
            object::map_of(&mut options).remove("kind");
            options
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn kind(plural: &str) -> &'static Kind {
        crate::known_kind("", plural)
    }

    fn options(grace: Option<i64>, propagation: Propagation) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: grace, propagation, ..DeleteOptions::default() }
    }

    /// The outcome in short: `remove`, `nothing`, or what is marked.
    fn short(plan: Plan) -> String {
        match plan {
            Plan::Remove => "remove".into(),
            Plan::Nothing => "nothing".into(),
            Plan::Mark(new) => {
                let metadata = &new["metadata"];
                let due = metadata["deletionTimestamp"].as_str().unwrap_or("-");
                format!("{due} {} {}", metadata["deletionGracePeriodSeconds"], metadata["finalizers"])
            }
        }
    }

    #[test]
    fn pods() {
        let spec = json!({"nodeName": "n", "terminationGracePeriodSeconds": 30});
        let running = json!({"metadata": {}, "spec": spec});
        let unscheduled = json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 30}});
        let failed = json!({"metadata": {}, "spec": spec, "status": {"phase": "Failed"}});
        let deleting = json!({
            "metadata": {"deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30}, "spec": spec
        });
        let held = json!({"metadata": {"finalizers": ["f"]}, "spec": spec});
        for (old, grace, expected) in [
            (&running, None, "2026-01-01T00:00:30Z 30 null"),
            (&running, Some(5), "2026-01-01T00:00:05Z 5 null"),
            (&running, Some(-7), "2026-01-01T00:00:01Z 1 null"),
            (&running, Some(0), "remove"),
            (&unscheduled, None, "remove"),
            (&failed, Some(60), "remove"),
            (&deleting, None, "nothing"),
            (&deleting, Some(60), "nothing"),
            (&deleting, Some(10), "2026-01-01T00:00:10Z 10 null"),
            (&deleting, Some(0), "remove"),
            (&held, Some(0), "2026-01-01T00:00:00Z 0 [\"f\"]"),
        ] {
            assert_eq!(
                short(plan(kind("pods"), old, &options(grace, Propagation::Unsaid), now())),
                expected,
                "{old} {grace:?}"
            );
        }
    }

    #[test]
    fn finalizers_keep_objects() {
        let plain = json!({"metadata": {}});
        let held = json!({"metadata": {"finalizers": ["f"]}});
        let orphaning = json!({"metadata": {"finalizers": ["orphan", "f"]}});
        let waiting = json!({"metadata": {
            "finalizers": ["f"], "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0
        }});
        for (old, propagation, expected) in [
            (&plain, Propagation::Unsaid, "remove"),
            (&plain, Propagation::Background, "remove"),
            (&plain, Propagation::Foreground, "2026-01-01T00:00:00Z 0 [\"foregroundDeletion\"]"),
            (&plain, Propagation::Orphan, "2026-01-01T00:00:00Z 0 [\"orphan\"]"),
            (&held, Propagation::Unsaid, "2026-01-01T00:00:00Z 0 [\"f\"]"),
            (&held, Propagation::Foreground, "2026-01-01T00:00:00Z 0 [\"f\",\"foregroundDeletion\"]"),
            (&orphaning, Propagation::Orphan, "2026-01-01T00:00:00Z 0 [\"orphan\",\"f\"]"),
            (&orphaning, Propagation::Foreground, "2026-01-01T00:00:00Z 0 [\"f\",\"foregroundDeletion\"]"),
            (&orphaning, Propagation::Background, "2026-01-01T00:00:00Z 0 [\"f\"]"),
            (&waiting, Propagation::Unsaid, "nothing"),
        ] {
            let plan = plan(kind("configmaps"), old, &options(None, propagation), now());
            assert_eq!(short(plan), expected, "{old} {propagation:?}");
        }
    }

    #[test]
    fn namespaces_wait_for_their_controller() {
        let fresh = json!({"metadata": {}, "spec": {"finalizers": ["kubernetes"]}});
        let Plan::Mark(marked) = plan(kind("namespaces"), &fresh, &DeleteOptions::default(), now()) else {
            panic!("a namespace is marked first")
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(plan(kind("namespaces"), &marked, &DeleteOptions::default(), now()), Plan::Nothing);
        let empty = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}});
        assert_eq!(plan(kind("namespaces"), &empty, &DeleteOptions::default(), now()), Plan::Remove);
    }

    #[test]
    fn preconditions() {
        let old = json!({"metadata": {"name": "x", "uid": "a", "resourceVersion": "7"}});
        let with = |uid: &str, version: &str| DeleteOptions {
            uid: (!uid.is_empty()).then(|| uid.to_owned()),
            resource_version: (!version.is_empty()).then(|| version.to_owned()),
            ..DeleteOptions::default()
        };
        assert!(check_preconditions(kind("pods"), &old, &with("a", "7")).is_ok());
        assert!(check_preconditions(kind("pods"), &old, &with("", "")).is_ok());
        assert_eq!(check_preconditions(kind("pods"), &old, &with("a", "6")).unwrap_err().code(), 409);
        let status = check_preconditions(kind("pods"), &old, &with("b", "")).unwrap_err();
        let words = "Operation cannot be fulfilled on Pod \"x\": the UID in the precondition (b) does not match the UID in \
                     record (a). The object might have been deleted and then recreated";
        assert_eq!(status.message(), words);
    }
}
