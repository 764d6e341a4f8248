//! Namespaces that were told to go -> emptied, then released.
//!
//! Pods go first, and the rest once none is left: what a pod may need in its last moments is there until then
//! (KEP-5080).
//!
//! Invariant: the namespace's finalizer goes only when a fresh list of every kind the server knows shows nothing left.
//! A kind that cannot be listed or deleted keeps the namespace, and no other kind. What remains, and why, is told in the
//! namespace's conditions, with kube-controller-manager's reasons.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ObjectList;
use kube::core::PartialObjectMeta;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Client, ResourceExt};
use portolan_client::{Cache, Change, Key};
use tokio::time::Instant;

use crate::drive::{Controller, Effects, Outcome, drive, inputs};
use crate::queue::Queue;
use crate::{Shared, meta, refusal};

const FINALIZER: &str = "kubernetes";
/// The pause before looking at what remains; it doubles. Pods, which take longest, wake it when they go.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(crate) enum Input {
    Namespace(Change<Namespace>),
    Pod(Change<Pod>),
}

pub(crate) async fn run(shared: Arc<Shared>) {
    let caches = &shared.caches;
    let inputs = vec![inputs(&caches.namespaces, Input::Namespace), inputs(&caches.pods, Input::Pod)];
    let controller =
        Namespaces { client: shared.client.clone(), namespaces: caches.namespaces.clone(), rounds: BTreeMap::new() };
    drive(controller, inputs, 4).await;
}

struct Namespaces {
    client: Client,
    namespaces: Cache<Namespace>,
    /// How often each namespace that is going has been looked at.
    rounds: BTreeMap<String, u32>,
}

fn is_going(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    meta::is_terminating(namespace) && finalizers.iter().any(|finalizer| finalizer == FINALIZER)
}

impl Controller for Namespaces {
    const NAME: &'static str = "namespace";
    type Input = Input;
    type Key = String;

    fn observe(&mut self, input: Input, queue: &mut Queue<String>) {
        match input {
            Input::Namespace(Change::Applied { new, old }) => {
                // Its own conditions changing is no reason to look again.
                if is_going(&new) && !old.is_some_and(|old| is_going(&old)) {
                    queue.add(new.name_any());
                }
            }
            Input::Namespace(Change::Deleted(old)) => {
                self.rounds.remove(&old.name_any());
            }
            Input::Pod(Change::Deleted(old)) => {
                let namespace = old.namespace().unwrap_or_default();
                if self.rounds.contains_key(&namespace) {
                    queue.add(namespace);
                }
            }
            Input::Namespace(Change::Synced { .. }) | Input::Pod(_) => {}
        }
    }

    fn reconcile(&mut self, name: &String, queue: &mut Queue<String>) -> Option<Effects> {
        let namespace = self.namespaces.get(&Key::new("", name)).filter(|namespace| is_going(namespace))?;
        let round = self.rounds.entry(name.clone()).or_default();
        // Looked at again unless it is gone by then.
        queue.add_at(name.clone(), Instant::now() + (FIRST_PAUSE * (1 << (*round).min(10))).min(LONGEST_PAUSE));
        *round += 1;
        let client = self.client.clone();
        Some(Box::pin(async move { Outcome::from(empty(client, namespace).await) }))
    }
}

/// What one kind has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remains {
    /// `plural.group`, as upstream words it.
    kind: String,
    count: usize,
    /// How many objects wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
}

async fn empty(client: Client, namespace: Arc<Namespace>) -> Result<(), kube::Error> {
    let name = namespace.name_any();
    // Events are one kind in two groups; deleting them once is enough.
    let discovery = Discovery::new(client.clone()).exclude(&["events.k8s.io"]).run().await?;
    let mut resources = Vec::new();
    for (resource, capabilities) in discovery.groups().flat_map(|group| group.recommended_resources()) {
        let complete = capabilities.supports_operation(verbs::LIST) && capabilities.supports_operation(verbs::DELETE);
        if capabilities.scope == Scope::Namespaced && complete {
            resources.push(resource);
        }
    }
    let is_pods = |resource: &ApiResource| resource.group.is_empty() && resource.plural == "pods";
    resources.sort_by_key(|resource| !is_pods(resource));
    let (mut remains, mut failures) = (Vec::new(), Vec::new());
    for resource in &resources {
        match delete_all(&client, &name, resource).await {
            Ok(left) if left.count == 0 => continue,
            Ok(left) => remains.push(left),
            Err(error) => failures.push(error),
        }
        if is_pods(resource) {
            break;
        }
    }
    let api: Api<Namespace> = Api::all(client);
    let status = status(&namespace, &remains, &failures, Timestamp::now());
    if remains.is_empty() && failures.is_empty() {
        return finalize(&api, &name).await;
    }
    if namespace.status.as_ref() != Some(&status) {
        let Some(mut fresh) = api.get_opt(&name).await? else { return Ok(()) };
        fresh.status = Some(status);
        refusal::ignore_not_found(api.replace_status(&name, &PostParams::default(), &fresh).await)?;
    }
    failures.pop().map_or(Ok(()), Err)
}

async fn delete_all(client: &Client, namespace: &str, resource: &ApiResource) -> Result<Remains, kube::Error> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, resource);
    let listed: ObjectList<PartialObjectMeta<DynamicObject>> = api.list_metadata(&ListParams::default()).await?;
    if listed.items.iter().any(|item| item.metadata.deletion_timestamp.is_none()) {
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    }
    let left = if listed.items.is_empty() { listed } else { api.list_metadata(&ListParams::default()).await? };
    let kind = format!("{}.{}", resource.plural, resource.group);
    let mut remains = Remains { kind, count: left.items.len(), finalizers: BTreeMap::new() };
    for finalizer in left.items.iter().flat_map(|item| item.metadata.finalizers.iter().flatten()) {
        *remains.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(remains)
}

async fn finalize(api: &Api<Namespace>, name: &str) -> Result<(), kube::Error> {
    let Some(mut fresh) = api.get_opt(name).await?.filter(meta::is_terminating) else { return Ok(()) };
    if let Some(finalizers) = fresh.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    refusal::ignore_not_found(api.replace_subresource("finalize", name, &PostParams::default(), &fresh).await).map(drop)
}

fn status(namespace: &Namespace, remains: &[Remains], failures: &[kube::Error], now: Timestamp) -> NamespaceStatus {
    let mut reasons: Vec<_> = failures.iter().map(refusal::message).collect();
    reasons.sort();
    let kinds: Vec<_> = remains.iter().map(|r| format!("{} has {} resource instances", r.kind, r.count)).collect();
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    for (finalizer, count) in remains.iter().flat_map(|remains| &remains.finalizers) {
        *waiting.entry(finalizer).or_default() += count;
    }
    let waiting: Vec<_> =
        waiting.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances")).collect();
    let told = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if failures.is_empty() {
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization".to_owned(),
            )
        } else {
            let (count, reasons) = (failures.len(), reasons.join(", "));
            let message = format!("Failed to delete all resource types, {count} remaining: {reasons}");
            ("NamespaceDeletionContentFailure", true, "ContentDeletionFailed", message)
        },
        if kinds.is_empty() {
            ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", kinds.join(", ")),
            )
        },
        if waiting.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            let message = format!("Some content in the namespace has finalizers remaining: {}", waiting.join(", "));
            ("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain", message)
        },
    ];
    let mut status = namespace.status.clone().unwrap_or_default();
    let old = status.conditions.take().unwrap_or_default();
    let conditions = told.into_iter().map(|(kind, holds, reason, message)| {
        let value = if holds { "True" } else { "False" };
        let same = old.iter().find(|old| old.type_ == kind && old.status == value);
        let since = same.and_then(|old| old.last_transition_time.clone()).unwrap_or(Time(now));
        NamespaceCondition {
            type_: kind.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(since),
        }
    });
    status.conditions = Some(conditions.collect());
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains() {
        let remains = [
            Remains { kind: "pods.".into(), count: 2, finalizers: BTreeMap::new() },
            Remains { kind: "configmaps.".into(), count: 1, finalizers: [("a/b".to_owned(), 1)].into() },
        ];
        let now = Timestamp::UNIX_EPOCH;
        let mut namespace = Namespace::default();
        let failures = [kube::Error::Api(Box::new(kube::core::Status::failure("conversion webhook failed", "")))];
        let told = status(&namespace, &remains, &failures, now);
        let text = |status: &NamespaceStatus, kind: &str| {
            let condition =
                status.conditions.iter().flatten().find(|condition| condition.type_ == kind).unwrap().clone();
            format!("{} {}", condition.status, condition.message.unwrap())
        };
        assert_eq!(
            text(&told, "NamespaceContentRemaining"),
            "True Some resources are remaining: pods. has 2 resource instances, configmaps. has 1 resource instances"
        );
        assert_eq!(
            text(&told, "NamespaceFinalizersRemaining"),
            "True Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
        );
        assert_eq!(
            text(&told, "NamespaceDeletionContentFailure"),
            "True Failed to delete all resource types, 1 remaining: conversion webhook failed"
        );
        namespace.status = Some(told.clone());
        let later = now + jiff::SignedDuration::from_secs(9);
        assert_eq!(status(&namespace, &remains, &failures, later), told, "times stay while nothing changes");
        let told = status(&namespace, &[], &[], later);
        assert_eq!(
            text(&told, "NamespaceDeletionContentFailure"),
            "False All content successfully deleted, may be waiting on finalization"
        );
    }
}
