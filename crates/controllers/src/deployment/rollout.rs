//! A Deployment and its ReplicaSets -> how large each should be now, and which to make or forget.
//!
//! Invariants: a rolling update never lets fewer than `replicas - maxUnavailable` pods be available by its own doing,
//! nor more than `replicas + maxSurge` exist; each call makes one step, and the watches' answers bring the next.
//! Source: the Deployment strategies in the Kubernetes documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::template::{self, DESIRED_REPLICAS, HASH_LABEL, MAX_REPLICAS};
use crate::meta;

/// A ReplicaSet and what it should become.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) object: Arc<ReplicaSet>,
    pub(crate) replicas: i32,
    pub(crate) min_ready_seconds: Option<i32>,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Member {
    pub(crate) fn new(object: Arc<ReplicaSet>) -> Self {
        Self {
            replicas: spec_replicas(&object),
            min_ready_seconds: object.spec.as_ref().and_then(|spec| spec.min_ready_seconds),
            annotations: object.metadata.annotations.clone().unwrap_or_default(),
            object,
        }
    }

    fn available(&self) -> i32 {
        self.object.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
    }

    pub(crate) fn is_changed(&self) -> bool {
        let asked = Self::new(self.object.clone());
        self.replicas != asked.replicas
            || self.annotations != asked.annotations
            || self.min_ready_seconds != asked.min_ready_seconds
    }

    fn resize(&mut self, replicas: i32, bounds: Bounds) {
        self.replicas = replicas.max(0);
        self.annotations.insert(DESIRED_REPLICAS.into(), bounds.replicas.to_string());
        self.annotations.insert(MAX_REPLICAS.into(), bounds.max_total().to_string());
    }
}

pub(crate) fn spec_replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// How far the number of pods may stray from `replicas` during a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) replicas: i32,
    surge: i32,
    unavailable: i32,
}

impl Bounds {
    pub(crate) fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1);
        if is_recreate(spec) {
            return Self { replicas, surge: 0, unavailable: 0 };
        }
        let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
        let surge = share(surge, replicas, true);
        let unavailable = share(unavailable, replicas, false);
        // Both may round to zero; then nothing could ever move.
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Self { replicas, surge, unavailable: unavailable.min(replicas) }
    }

    pub(crate) fn max_total(self) -> i32 {
        self.replicas + self.surge
    }

    pub(crate) fn min_available(self) -> i32 {
        self.replicas - self.unavailable
    }
}

pub(crate) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// A number, or a percentage of `of`. Nonsense counts as nothing.
fn share(value: &IntOrString, of: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0).max(0);
            let hundredths = percent.saturating_mul(i64::from(of));
            let whole = if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 };
            i32::try_from(whole).unwrap_or(i32::MAX)
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Rollout {
    /// The ReplicaSet of the desired template, if there is one.
    pub(crate) new: Option<Member>,
    /// The others, oldest first.
    pub(crate) old: Vec<Member>,
    pub(crate) create: Option<ReplicaSet>,
    pub(crate) delete: Vec<Arc<ReplicaSet>>,
    /// The replica counts only follow `spec.replicas`; it is no rollout, so nothing about progress is said.
    pub(crate) only_scaled: bool,
}

impl Rollout {
    pub(crate) fn members(&self) -> impl Iterator<Item = &Member> {
        self.old.iter().chain(&self.new)
    }
}

/// `sets` are the ReplicaSets that the Deployment owns; `old_pods_remain` whether pods of another template still run.
pub(crate) fn plan(deployment: &Deployment, mut sets: Vec<Arc<ReplicaSet>>, old_pods_remain: bool) -> Rollout {
    let Some(spec) = &deployment.spec else { return Rollout::default() };
    sets.sort_by_cached_key(|set| (set.creation_timestamp().map(|time| time.0), set.name_any()));
    let is_desired = |set: &Arc<ReplicaSet>| {
        let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        template.is_some_and(|template| template::is_same(template, &spec.template))
    };
    let new = sets.iter().position(is_desired).map(|index| Member::new(sets.remove(index)));
    let mut rollout = Rollout { new, old: sets.into_iter().map(Member::new).collect(), ..Rollout::default() };
    if meta::is_terminating(deployment) {
        return rollout;
    }
    let revision = 1 + rollout.old.iter().map(|member| template::revision(&member.object)).max().unwrap_or(0);
    refresh_new(&mut rollout, deployment, spec, revision);
    let bounds = Bounds::of(spec);
    let paused = spec.paused.unwrap_or(false);
    // Of several that run Recreate leaves one, whatever their sizes; there is nothing to be scaled before.
    let active = rollout.members().filter(|member| member.replicas > 0).count();
    if paused || (is_resized(&rollout, bounds) && !(is_recreate(spec) && active > 1)) {
        rollout.only_scaled = true;
        scale(&mut rollout, bounds, is_recreate(spec));
        if paused {
            forget_old(&mut rollout, spec);
        }
        return rollout;
    }
    if is_recreate(spec) {
        if rollout.old.iter().any(|member| member.replicas > 0) {
            for member in &mut rollout.old {
                member.resize(0, bounds);
            }
            return rollout;
        }
        if old_pods_remain {
            return rollout;
        }
    }
    let total: i32 = rollout.members().map(|member| member.replicas).sum();
    let Some(new) = &mut rollout.new else {
        let replicas =
            if is_recreate(spec) { bounds.replicas } else { (bounds.max_total() - total).clamp(0, bounds.replicas) };
        rollout.create = Some(new_set(deployment, spec, revision, replicas, bounds));
        return rollout;
    };
    let desired = if is_recreate(spec) || new.replicas > bounds.replicas {
        bounds.replicas
    } else {
        let room = (bounds.max_total() - total).max(0);
        new.replicas + room.min(bounds.replicas - new.replicas)
    };
    if desired != new.replicas {
        new.resize(desired, bounds);
        return rollout;
    }
    if !is_recreate(spec) && shrink_old(&mut rollout, bounds) {
        return rollout;
    }
    if is_complete(&rollout, bounds) {
        forget_old(&mut rollout, spec);
    }
    rollout
}

/// Somebody changed `spec.replicas` since the active ReplicaSets were last sized.
fn is_resized(rollout: &Rollout, bounds: Bounds) -> bool {
    rollout.members().filter(|member| member.replicas > 0).any(|member| {
        member
            .annotations
            .get(DESIRED_REPLICAS)
            .and_then(|text| text.parse::<i32>().ok())
            .is_some_and(|desired| desired != bounds.replicas)
    })
}

/// The ReplicaSet's controller has said, of what is asked of it now, that none of its pods serves any more. Until then
/// it may still be making some that nobody has heard of.
pub(crate) fn is_emptied(set: &ReplicaSet) -> bool {
    let status = set.status.clone().unwrap_or_default();
    status.replicas == 0 && status.observed_generation >= set.metadata.generation
}

fn refresh_new(rollout: &mut Rollout, deployment: &Deployment, spec: &DeploymentSpec, revision: i64) {
    if let Some(new) = &mut rollout.new {
        new.annotations = template::annotations(deployment, Some(&new.annotations), revision);
        new.min_ready_seconds = spec.min_ready_seconds;
    }
}

fn new_set(deployment: &Deployment, spec: &DeploymentSpec, revision: i64, replicas: i32, bounds: Bounds) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut annotations = template::annotations(deployment, None, revision);
    annotations.insert(DESIRED_REPLICAS.into(), bounds.replicas.to_string());
    annotations.insert(MAX_REPLICAS.into(), bounds.max_total().to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![meta::controlled_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Takes down what the new ReplicaSet makes dispensable, unhealthy pods first. True if anything was.
fn shrink_old(rollout: &mut Rollout, bounds: Bounds) -> bool {
    let old_total: i32 = rollout.old.iter().map(|member| member.replicas).sum();
    if old_total == 0 {
        return false;
    }
    let (new_replicas, new_available) = rollout.new.as_ref().map_or((0, 0), |new| (new.replicas, new.available()));
    let missing = (new_replicas - new_available).max(0);
    let mut spare = old_total + new_replicas - bounds.min_available() - missing;
    if spare <= 0 {
        return false;
    }
    let mut shrunk = false;
    for member in &mut rollout.old {
        let unhealthy = (member.replicas - member.available()).clamp(0, spare);
        if unhealthy > 0 {
            member.resize(member.replicas - unhealthy, bounds);
            spare -= unhealthy;
            shrunk = true;
        }
    }
    let available: i32 =
        new_available + rollout.old.iter().map(|member| member.available().min(member.replicas)).sum::<i32>();
    let mut spare = available - bounds.min_available();
    for member in &mut rollout.old {
        let healthy = member.replicas.min(spare);
        if healthy > 0 {
            member.resize(member.replicas - healthy, bounds);
            spare -= healthy;
            shrunk = true;
        }
    }
    shrunk
}

/// Follows `spec.replicas` without moving the rollout on: during one, in proportion to the sizes.
fn scale(rollout: &mut Rollout, bounds: Bounds, recreate: bool) {
    let new_name = rollout.new.as_ref().map(|new| new.object.name_any());
    let mut members: Vec<&mut Member> = rollout.old.iter_mut().chain(&mut rollout.new).collect();
    let active = members.iter().filter(|member| member.replicas > 0).count();
    if active <= 1 {
        let only = match active {
            1 => members.iter().position(|member| member.replicas > 0),
            // Nothing runs: the desired template if it has a ReplicaSet, else the latest.
            _ => members.len().checked_sub(1),
        };
        if let Some(only) = only {
            members[only].resize(bounds.replicas, bounds);
        }
        return;
    }
    let saturated = members.iter().any(|member| {
        Some(member.object.name_any()) == new_name
            && member.replicas == bounds.replicas
            && member.available() == bounds.replicas
            && member.annotations.get(DESIRED_REPLICAS) == Some(&bounds.replicas.to_string())
    });
    if saturated {
        for member in
            members.iter_mut().filter(|member| Some(member.object.name_any()) != new_name && member.replicas > 0)
        {
            member.resize(0, bounds);
        }
        return;
    }
    if recreate {
        return;
    }
    members.retain(|member| member.replicas > 0);
    let total: i32 = members.iter().map(|member| member.replicas).sum();
    let allowed = if bounds.replicas > 0 { bounds.max_total() } else { 0 };
    let mut left = allowed - total;
    // The largest take their share first; between equals, growing prefers the newest and shrinking the oldest.
    members.sort_by_key(|member| member.object.creation_timestamp().map(|time| time.0));
    if left > 0 {
        members.reverse();
    }
    members.sort_by_key(|member| std::cmp::Reverse(member.replicas));
    let mut sizes = Vec::new();
    for member in &members {
        let before: i32 = member
            .annotations
            .get(MAX_REPLICAS)
            .and_then(|text| text.parse().ok())
            .filter(|max| *max > 0)
            .unwrap_or(total);
        let exact = f64::from(member.replicas) * f64::from(bounds.max_total()) / f64::from(before);
        #[allow(clippy::cast_possible_truncation, reason = "`as` saturates, and a replica count is an i32")]
        let share = exact.round() as i32 - member.replicas;
        let share = if left > 0 { share.clamp(0, left) } else { share.clamp(left, 0) };
        left -= share;
        sizes.push(member.replicas + share);
    }
    for (index, (member, size)) in members.into_iter().zip(sizes).enumerate() {
        // What rounding left over goes to the largest.
        let extra = if index == 0 { left } else { 0 };
        member.resize(size + extra, bounds);
    }
}

/// All pods are of the desired template and available.
fn is_complete(rollout: &Rollout, bounds: Bounds) -> bool {
    let running: i32 =
        rollout.members().map(|member| member.object.status.as_ref().map_or(0, |status| status.replicas)).sum();
    rollout.new.as_ref().is_some_and(|new| {
        new.replicas == bounds.replicas && new.available() == bounds.replicas && running == bounds.replicas
    })
}

/// Keeps `revisionHistoryLimit` empty old ReplicaSets for `kubectl rollout undo`.
fn forget_old(rollout: &mut Rollout, spec: &DeploymentSpec) {
    let keep = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<_> = rollout
        .old
        .iter()
        .filter(|member| member.replicas == 0 && is_emptied(&member.object) && !meta::is_terminating(&*member.object))
        .map(|member| member.object.clone())
        .collect();
    empty.sort_by_cached_key(|set| template::revision(set));
    empty.truncate(empty.len().saturating_sub(keep));
    rollout.delete = empty;
}
