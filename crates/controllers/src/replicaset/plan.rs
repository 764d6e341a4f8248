//! A ReplicaSet and the pods it may own -> the pods to adopt, release, create and delete, and its status.
//!
//! Invariant: pods that ended or are on their way out are no replicas. Source: the ReplicaSet controller's documented
//! order of scale-down (pod-deletion-cost, KEP-2255) and `apps/v1` ReplicaSetStatus.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::meta;
use crate::pod::{self, Availability};

/// At most so many pods are created or deleted in one go.
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) adopt: Vec<Arc<Pod>>,
    pub(crate) release: Vec<Arc<Pod>>,
    pub(crate) create: usize,
    pub(crate) delete: Vec<Arc<Pod>>,
    /// When a pod becomes available without any further change.
    pub(crate) again: Option<Duration>,
    /// What the ReplicaSet owns, without what is to be adopted or released.
    pub(crate) owned: Vec<Arc<Pod>>,
}

pub(crate) struct View<'a> {
    pub(crate) set: &'a ReplicaSet,
    /// Pods whose controller is this ReplicaSet.
    pub(crate) owned: Vec<Arc<Pod>>,
    /// Pods of the namespace without a controller.
    pub(crate) orphans: Vec<Arc<Pod>>,
    /// Active pods of sibling ReplicaSets, those of one Deployment, by node.
    pub(crate) siblings_on: BTreeMap<String, usize>,
}

pub(crate) fn plan(view: View<'_>, now: Timestamp) -> Plan {
    let View { set, owned, orphans, siblings_on } = view;
    let Some(spec) = &set.spec else { return Plan::default() };
    let terminating = meta::is_terminating(set);
    let mut plan = Plan::default();
    for pod in owned {
        if meta::matches(&spec.selector, &pod.metadata) || terminating {
            plan.owned.push(pod);
        } else if pod.metadata.deletion_timestamp.is_none() {
            plan.release.push(pod);
        }
    }
    if terminating {
        return plan;
    }
    // An empty selector would adopt everything; the API server refuses it, but not every API server is ours.
    if !meta::is_empty(&spec.selector) {
        let fits = |pod: &Arc<Pod>| pod::is_active(pod) && meta::matches(&spec.selector, &pod.metadata);
        plan.adopt.extend(orphans.into_iter().filter(fits));
    }
    let active: Vec<_> = plan.owned.iter().filter(|pod| pod::is_active(pod)).cloned().collect();
    let realized = active.len() + plan.adopt.len();
    let desired = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
    if realized < desired {
        plan.create = (desired - realized).min(BURST);
    } else {
        let surplus = (realized - desired).min(BURST);
        plan.delete = dispensable(active, siblings_on, surplus);
    }
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let waits = plan.owned.iter().filter(|pod| pod::is_active(pod)).filter_map(|pod| {
        match pod::availability(pod, min_ready, now) {
            Availability::In(wait) => Some(wait),
            Availability::Now | Availability::No => None,
        }
    });
    plan.again = waits.min();
    plan
}

/// The `count` pods that are missed least.
fn dispensable(mut active: Vec<Arc<Pod>>, siblings_on: BTreeMap<String, usize>, count: usize) -> Vec<Arc<Pod>> {
    if count == 0 {
        return Vec::new();
    }
    let mut together = siblings_on;
    for pod in &active {
        if let Some(node) = pod::node(pod) {
            *together.entry(node.to_owned()).or_default() += 1;
        }
    }
    active.sort_by_cached_key(|pod| {
        let node = pod::node(pod);
        let phase = match pod::phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        };
        let cost: i32 = meta::annotation(&pod.metadata, DELETION_COST).and_then(|cost| cost.parse().ok()).unwrap_or(0);
        let on_one_node = node.and_then(|node| together.get(node)).copied().unwrap_or(0);
        (
            node.is_some(),
            phase,
            pod::is_ready(pod),
            cost,
            Reverse(on_one_node),
            Reverse(pod::ready_since(pod)),
            Reverse(pod::restarts(pod)),
            Reverse(pod.metadata.creation_timestamp.as_ref().map(|time| time.0)),
            pod.metadata.name.clone(),
        )
    });
    active.truncate(count);
    active
}

/// The status that the owned pods amount to. `failure` is what stopped the last attempt to create or delete pods.
pub(crate) fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let spec = set.spec.clone().unwrap_or_default();
    let template_labels =
        spec.template.and_then(|template| template.metadata).and_then(|meta| meta.labels).unwrap_or_default();
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let active: Vec<_> = owned.iter().filter(|pod| pod::is_active(pod)).collect();
    let count = |fits: &dyn Fn(&Pod) -> bool| {
        let count = active.iter().filter(|pod| fits(pod)).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    };
    let terminating = owned.iter().filter(|pod| meta::is_terminating(&***pod) && !pod::is_finished(pod)).count();
    let nonzero = |count: i32| (count > 0).then_some(count);
    let labelled = |pod: &Pod| {
        pod.metadata.labels.as_ref().is_some_and(|labels| meta::selects(&template_labels, labels))
            || template_labels.is_empty()
    };
    let old = set.status.as_ref();
    let old_failure = old
        .and_then(|status| status.conditions.as_ref())
        .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "ReplicaFailure"));
    // The first words stay while it lasts: each try has others, as with the names of pods in them, and a status that
    // changes is a reason to try again at once.
    let conditions = failure.map(|failure| {
        let told = old_failure.filter(|old| old.reason.as_deref() == Some(failure.reason)).cloned();
        vec![told.unwrap_or_else(|| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(Time(now)),
        })]
    });
    ReplicaSetStatus {
        replicas: count(&|_| true),
        fully_labeled_replicas: nonzero(count(&labelled)),
        ready_replicas: nonzero(count(&pod::is_ready)),
        available_replicas: nonzero(count(&|pod| pod::availability(pod, min_ready, now) == Availability::Now)),
        observed_generation: set.metadata.generation,
        conditions,
        terminating_replicas: Some(i32::try_from(terminating).unwrap_or(i32::MAX)),
    }
}

/// Why pods could not be created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().unwrap()
    }

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web", "v": "1"}}}}
        }))
        .unwrap()
    }

    /// `name[/flags][@node]`: flags r ready, p pending, f failed, t terminating, o other labels; `+n` seconds of age.
    fn pod(text: &str) -> Arc<Pod> {
        let (text, node) = text.split_once('@').map_or((text, None), |(text, node)| (text, Some(node)));
        let (name, flags) = text.split_once('/').unwrap_or((text, ""));
        let has = |flag: char| flags.contains(flag);
        let app = if has('o') { "other" } else { "web" };
        let phase = if has('f') {
            "Failed"
        } else if has('p') {
            "Pending"
        } else {
            "Running"
        };
        let ready = if has('r') { "True" } else { "False" };
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app, "v": "1"},
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [], "nodeName": node},
            "status": {"phase": phase, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:59:50Z"}]}
        }))
        .unwrap();
        if has('t') {
            pod.metadata.deletion_timestamp = Some(Time(now()));
        }
        if has('c') {
            pod.metadata.annotations = Some([(DELETION_COST.to_owned(), "10".to_owned())].into());
        }
        Arc::new(pod)
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.metadata.name.as_deref().unwrap()).collect()
    }

    fn planned(replicas: i32, owned: &[&str], orphans: &[&str]) -> Plan {
        let set = set(replicas);
        let pods = |texts: &[&str]| texts.iter().map(|text| pod(text)).collect();
        let view = View { set: &set, owned: pods(owned), orphans: pods(orphans), siblings_on: BTreeMap::new() };
        plan(view, now())
    }

    #[test]
    fn counts_only_what_serves_or_may_yet() {
        for (replicas, owned, create) in [
            (3, vec![], 3),
            (3, vec!["a/r@n1", "b/p"], 1),
            (3, vec!["a/rt@n1", "b/f@n1", "c/r@n1"], 2),
            (0, vec![], 0),
            (2, vec!["a", "b"], 0),
        ] {
            let plan = planned(replicas, &owned, &[]);
            assert_eq!((plan.create, plan.delete.len()), (create, 0), "{replicas} {owned:?}");
        }
    }

    #[test]
    fn deletes_what_is_missed_least() {
        for (owned, deleted) in [
            (["a/r@n1", "b/p"], "b"),     // unscheduled first
            (["a/r@n1", "b/p@n2"], "b"),  // then pending
            (["a/r@n1", "b@n2"], "b"),    // then not ready
            (["a/rc@n1", "b/r@n2"], "b"), // then the cheaper to delete
            (["b/r@n1", "a/r@n1"], "a"),  // names decide between equals
        ] {
            assert_eq!(names(&planned(1, &owned, &[]).delete), [deleted], "{owned:?}");
        }
        let crowded = planned(2, &["a/r@n1", "b/r@n2", "c/r@n2"], &[]);
        assert_eq!(names(&crowded.delete), ["b"], "one of the two that share a node");
    }

    #[test]
    fn adopts_matching_orphans_and_releases_strays() {
        let plan = planned(2, &["a/r@n1", "b/ro@n1"], &["c/r@n1", "d/ro@n1", "e/t@n1"]);
        assert_eq!(names(&plan.adopt), ["c"]);
        assert_eq!(names(&plan.release), ["b"]);
        assert_eq!((plan.create, plan.delete.len()), (0, 0));
    }

    #[test]
    fn a_terminating_set_makes_nothing() {
        let mut set = set(3);
        set.metadata.deletion_timestamp = Some(Time(now()));
        let view = View { set: &set, owned: vec![], orphans: vec![pod("a")], siblings_on: BTreeMap::new() };
        let plan = plan(view, now());
        assert_eq!((plan.create, plan.adopt.len()), (0, 0));
    }

    #[test]
    fn status_tells_ready_from_available() {
        let mut set = set(3);
        set.spec.as_mut().unwrap().min_ready_seconds = Some(60);
        let owned = [pod("a/r@n1"), pod("b@n1"), pod("c/f@n1"), pod("d/rt@n1"), pod("e/ft@n1")];
        let told = status(&set, &owned, None, now());
        assert_eq!(told.terminating_replicas, Some(1));
        assert_eq!((told.replicas, told.ready_replicas, told.available_replicas), (2, Some(1), None));
        assert_eq!((told.fully_labeled_replicas, told.observed_generation), (Some(2), Some(3)));
        let again = planned_with_min_ready(&set, &owned);
        assert_eq!(again, Some(Duration::from_secs(50)));
        set.spec.as_mut().unwrap().min_ready_seconds = Some(10);
        assert_eq!(status(&set, &owned, None, now()).available_replicas, Some(1));
    }

    fn planned_with_min_ready(set: &ReplicaSet, owned: &[Arc<Pod>]) -> Option<Duration> {
        let view = View { set, owned: owned.to_vec(), orphans: vec![], siblings_on: BTreeMap::new() };
        plan(view, now()).again
    }

    #[test]
    fn a_failure_is_told_once_while_it_lasts() {
        let mut set = set(1);
        let failure = |message: &str| Failure { reason: "FailedCreate", message: message.into() };
        set.status = Some(status(&set, &[], Some(&failure("no web-1")), now()));
        let later = now() + jiff::SignedDuration::from_secs(60);
        assert_eq!(Some(status(&set, &[], Some(&failure("no web-2")), later)), set.status);
        assert_eq!(status(&set, &[], None, later).conditions, None);
    }
}
