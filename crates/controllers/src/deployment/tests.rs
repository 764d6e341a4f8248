//! Rollouts played to their end against ReplicaSets that do as they are told, and the conditions along the way.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::rollout::{self, Bounds, Rollout};
use super::{Cache, Deployments, Recorder, status, template};

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

/// A Deployment, its ReplicaSets, and a clock that each step moves by a second.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
    /// Pods of this image never become available.
    broken: Option<&'static str>,
}

impl World {
    fn new(replicas: i32, strategy: Value) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 60,
                     "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}},
                                  "spec": {"containers": [{"name": "c", "image": "one"}]}}}}))
        .unwrap();
        Self { deployment, sets: Vec::new(), now: start(), broken: None }
    }

    fn spec(&mut self) -> &mut k8s_openapi::api::apps::v1::DeploymentSpec {
        self.deployment.metadata.generation = self.deployment.metadata.generation.map(|generation| generation + 1);
        self.deployment.spec.as_mut().unwrap()
    }

    fn set_image(&mut self, image: &str) {
        self.spec().template.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    }

    fn image(set: &ReplicaSet) -> String {
        set.spec.clone().unwrap().template.unwrap().spec.unwrap().containers[0].image.clone().unwrap()
    }

    /// One decision of the Deployment controller, carried out.
    fn decide(&mut self) -> Rollout {
        let shared = self.sets.iter().cloned().map(Arc::new).collect();
        let wanted = self.deployment.spec.clone().unwrap().template.spec.unwrap().containers[0].image.clone().unwrap();
        let old_pods = self
            .sets
            .iter()
            .any(|set| Self::image(set) != wanted && set.status.clone().unwrap_or_default().replicas > 0);
        let rollout = rollout::plan(&self.deployment, shared, old_pods);
        let (told, _) = status::status(&self.deployment, self.deployment.spec.as_ref().unwrap(), &rollout, self.now);
        self.deployment.status = Some(told);
        for member in rollout.members().filter(|member| member.is_changed()) {
            let set = self.sets.iter_mut().find(|set| set.name_any() == member.object.name_any()).unwrap();
            set.spec.as_mut().unwrap().replicas = Some(member.replicas);
            set.metadata.annotations = Some(member.annotations.clone());
        }
        if let Some(mut created) = rollout.create.clone() {
            created.metadata.creation_timestamp = Some(Time(self.now));
            created.metadata.uid = created.metadata.name.clone();
            assert!(self.sets.iter().all(|set| set.name_any() != created.name_any()));
            self.sets.push(created);
        }
        self.sets.retain(|set| rollout.delete.iter().all(|deleted| deleted.name_any() != set.name_any()));
        self.now += SignedDuration::from_secs(1);
        rollout
    }

    /// One step of the pods: one more of a ReplicaSet becomes available; what is too many goes.
    fn settle_one(&mut self) -> bool {
        for set in &mut self.sets {
            let wanted = rollout::spec_replicas(set);
            let works = self.broken != Some(&*Self::image(set));
            let status = set.status.get_or_insert_with(ReplicaSetStatus::default);
            let available = status.available_replicas.unwrap_or(0);
            let next = if available > wanted {
                wanted
            } else if works && available < wanted {
                available + 1
            } else {
                available
            };
            if status.replicas != wanted || next != available {
                status.replicas = wanted;
                status.observed_generation = set.metadata.generation;
                status.available_replicas = Some(next);
                status.ready_replicas = Some(next);
                return true;
            }
        }
        false
    }

    fn available(&self) -> i32 {
        self.sets.iter().filter_map(|set| set.status.as_ref()?.available_replicas).sum()
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(rollout::spec_replicas).sum()
    }

    /// To the end, with `check` after every step.
    fn play(&mut self, check: impl Fn(&Self)) {
        for _ in 0..500 {
            let before = (self.sets.clone(), self.deployment.status.clone());
            self.decide();
            check(self);
            let moved = self.settle_one();
            check(self);
            if !moved && (self.sets.clone(), self.deployment.status.clone()) == before {
                return;
            }
        }
        panic!("the rollout does not end: {:?}", self.sizes());
    }

    fn sizes(&self) -> Vec<(String, i32)> {
        self.sets
            .iter()
            .map(|set| (Self::image(set), rollout::spec_replicas(set)))
            .filter(|(_, size)| *size > 0)
            .collect()
    }

    fn condition(&self, kind: &str) -> String {
        let conditions =
            self.deployment.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition.type_ == kind);
        found.map(|found| format!("{} {}", found.status, found.reason.unwrap())).unwrap_or_default()
    }
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn bounds_round_surge_up_and_unavailability_down() {
    for (replicas, surge, unavailable, min_available, max_total) in [
        (4, json!("25%"), json!("25%"), 3, 5),
        (3, json!("25%"), json!("25%"), 3, 4),
        (1, json!("25%"), json!("25%"), 1, 2),
        (10, json!(0), json!(0), 9, 10),
        (3, json!(0), json!("10%"), 2, 3),
        (2, json!(1), json!(5), 0, 3),
        (0, json!("25%"), json!("25%"), 0, 0),
    ] {
        let bounds = Bounds::of(World::new(replicas, rolling(surge.clone(), unavailable.clone())).spec());
        let bounds = (bounds.min_available(), bounds.max_total());
        assert_eq!(bounds, (min_available, max_total), "{replicas} {surge} {unavailable}");
    }
}

#[test]
fn a_rolling_update_keeps_within_its_bounds_and_ends() {
    for replicas in [1, 2, 3, 10] {
        for (surge, unavailable) in
            [(json!(1), json!(0)), (json!(0), json!(1)), (json!("25%"), json!("25%")), (json!("100%"), json!(0))]
        {
            let mut world = World::new(replicas, rolling(surge, unavailable));
            world.play(|_| {});
            assert_eq!(world.sizes(), [("one".to_owned(), replicas)]);
            let bounds = Bounds::of(world.deployment.spec.as_ref().unwrap());
            world.set_image("two");
            world.play(|world| {
                assert!(world.available() >= bounds.min_available(), "{:?}", world.sizes());
                assert!(world.total() <= bounds.max_total(), "{:?}", world.sizes());
            });
            assert_eq!(world.sizes(), [("two".to_owned(), replicas)]);
            assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
            assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
            let status = world.deployment.status.clone().unwrap();
            assert_eq!((status.updated_replicas, status.unavailable_replicas), (Some(replicas), None));
        }
    }
}

#[test]
fn recreate_starts_the_new_after_the_last_of_the_old() {
    let mut world = World::new(3, json!({"type": "Recreate"}));
    world.play(|_| {});
    world.set_image("two");
    world.play(|world| assert!(world.sizes().len() <= 1, "{:?}", world.sizes()));
    assert_eq!(world.sizes(), [("two".to_owned(), 3)]);
}

/// A rollout by another strategy was under way, and the size changed with the strategy.
#[test]
fn recreate_leaves_one_of_several() {
    let mut world = World::new(4, rolling(json!(0), json!(2)));
    world.play(|_| {});
    world.set_image("bad");
    world.broken = Some("bad");
    world.play(|_| {});
    assert_eq!(world.sizes(), [("one".to_owned(), 2), ("bad".to_owned(), 2)]);
    world.broken = None;
    world.spec().replicas = Some(5);
    world.spec().strategy = serde_json::from_value(json!({"type": "Recreate"})).unwrap();
    world.play(|_| {});
    assert_eq!(world.sizes(), [("bad".to_owned(), 5)]);
}

/// What is known of the pods may be all that there is, or all that was made so far.
#[tokio::test]
async fn recreate_waits_until_the_old_set_is_said_to_be_empty() {
    let mut world = World::new(1, json!({"type": "Recreate"}));
    world.play(|_| {});
    world.set_image("two");
    let client = crate::nowhere();
    let (events, _) = Recorder::new(client.clone(), "");
    let controller = Deployments::new(client, events, Cache::detached());
    let old = |observed: i64, replicas: i32| {
        let mut set = world.sets[0].clone();
        set.metadata.generation = Some(2);
        set.status =
            Some(ReplicaSetStatus { replicas, observed_generation: Some(observed), ..ReplicaSetStatus::default() });
        controller.old_pods_remain(world.deployment.spec.as_ref().unwrap(), &[Arc::new(set)])
    };
    assert!(old(1, 0), "it may be making the one that it was told to at first");
    assert!(old(2, 1));
    assert!(!old(2, 0));
}

/// Of a new rollout that has not moved yet only the last one's end is known.
#[test]
fn a_rollout_long_after_the_last_is_not_late_at_once() {
    for strategy in [rolling(json!(1), json!(0)), json!({"type": "Recreate"})] {
        let mut world = World::new(2, strategy);
        for image in ["one", "two", "one"] {
            world.set_image(image);
            world.play(|world| assert_ne!(world.condition("Progressing"), "False ProgressDeadlineExceeded"));
            assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
            world.now += SignedDuration::from_secs(3600);
        }
    }
}

#[test]
fn a_rollout_that_cannot_succeed_keeps_the_old_pods_and_says_so() {
    let mut world = World::new(3, rolling(json!(1), json!(0)));
    world.play(|_| {});
    world.set_image("bad");
    world.broken = Some("bad");
    world.play(|world| assert!(world.available() >= 3));
    assert_eq!(world.sizes(), [("one".to_owned(), 3), ("bad".to_owned(), 1)]);
    world.now += SignedDuration::from_secs(61);
    world.decide();
    assert_eq!(world.condition("Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(world.condition("Available"), "True MinimumReplicasAvailable");
}

#[test]
fn going_back_reuses_the_old_revision_and_counts_on() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    let revision = |world: &World, image: &str| {
        let set = world.sets.iter().find(|set| World::image(set) == image).unwrap();
        template::revision(set)
    };
    world.play(|_| {});
    world.set_image("two");
    world.play(|_| {});
    assert_eq!((revision(&world, "one"), revision(&world, "two")), (1, 2));
    world.set_image("one");
    world.play(|_| {});
    assert_eq!(world.sets.len(), 2);
    assert_eq!((revision(&world, "one"), revision(&world, "two")), (3, 2));
    let one = world.sets.iter().find(|set| World::image(set) == "one").unwrap();
    assert_eq!(one.annotations()[template::REVISION_HISTORY], "1");
}

#[test]
fn old_revisions_are_kept_up_to_the_limit() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    world.spec().revision_history_limit = Some(2);
    for image in ["one", "two", "three", "four", "five"] {
        world.set_image(image);
        world.play(|_| {});
    }
    let mut kept: Vec<_> = world.sets.iter().map(World::image).collect();
    kept.sort();
    assert_eq!(kept, ["five", "four", "three"]);
}

#[test]
fn scaling_during_a_rollout_is_in_proportion() {
    let mut world = World::new(10, rolling(json!(0), json!(5)));
    world.play(|_| {});
    world.set_image("bad");
    world.broken = Some("bad");
    world.play(|_| {});
    assert_eq!(world.sizes(), [("one".to_owned(), 5), ("bad".to_owned(), 5)]);
    world.spec().replicas = Some(20);
    let rollout = world.decide();
    assert!(rollout.only_scaled);
    assert_eq!(world.sizes(), [("one".to_owned(), 10), ("bad".to_owned(), 10)]);
}

#[test]
fn paused_means_scaled_but_not_rolled() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.play(|_| {});
    world.spec().paused = Some(true);
    world.set_image("two");
    world.spec().replicas = Some(4);
    world.play(|_| {});
    assert_eq!(world.sizes(), [("one".to_owned(), 4)]);
    assert_eq!(world.condition("Progressing"), "Unknown DeploymentPaused");
    world.spec().paused = Some(false);
    world.play(|_| {});
    assert_eq!(world.sizes(), [("two".to_owned(), 4)]);
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
}

#[test]
fn a_paused_deployment_keeps_its_replica_set_up_to_date() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    for image in ["one", "two"] {
        world.set_image(image);
        world.play(|_| {});
    }
    world.spec().paused = Some(true);
    world.set_image("one");
    world.spec().min_ready_seconds = Some(7);
    world.deployment.annotations_mut().insert("kubernetes.io/change-cause".into(), "back to one".into());
    let rollout = world.decide();
    let one = rollout.new.unwrap();
    let annotation = |name: &str| one.annotations[name].clone();
    assert_eq!((annotation("kubernetes.io/change-cause").as_str(), one.min_ready_seconds), ("back to one", Some(7)));
    assert_eq!((annotation(template::REVISION).as_str(), annotation(template::REVISION_HISTORY).as_str()), ("3", "1"));
    world.play(|_| {});
    assert_eq!(world.sizes(), [("two".to_owned(), 2)]);
}

#[test]
fn what_keeps_a_replica_set_from_being_made_is_told_once() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    let told = status::cannot_create(&world.deployment, "first".into(), world.now).unwrap();
    world.deployment.status = Some(told);
    assert_eq!(world.condition("Progressing"), "False ReplicaSetCreateError");
    let later = world.now + SignedDuration::from_secs(1);
    assert_eq!(status::cannot_create(&world.deployment, "second, in other words".into(), later), None);
    world.play(|_| {});
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");

    let mut patient = World::new(1, rolling(json!(1), json!(0)));
    patient.spec().progress_deadline_seconds = None;
    assert_eq!(status::cannot_create(&patient.deployment, "first".into(), patient.now), None);
}

#[test]
fn a_finished_rollout_stays_finished_when_pods_fall_over() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.play(|_| {});
    world.sets[0].status.as_mut().unwrap().available_replicas = None;
    world.now += SignedDuration::from_secs(600);
    world.decide();
    assert_eq!(world.condition("Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(world.condition("Available"), "False MinimumReplicasUnavailable");
}

#[test]
fn trouble_with_pods_shows_in_the_deployment() {
    let mut world = World::new(1, rolling(json!(1), json!(0)));
    world.play(|_| {});
    let status: ReplicaSetStatus = serde_json::from_value(json!({"replicas": 0, "conditions": [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota"}]}))
    .unwrap();
    world.sets[0].status = Some(status);
    world.decide();
    assert_eq!(world.condition("ReplicaFailure"), "True FailedCreate");
    world.sets[0].status = None;
    world.decide();
    assert_eq!(world.condition("ReplicaFailure"), "");
}

#[test]
fn pods_on_their_way_out_are_summed_up_if_all_are_told() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.decide();
    assert_eq!(world.deployment.status.as_ref().unwrap().terminating_replicas, Some(0), "none was ever there");
    world.play(|_| {});
    world.set_image("two");
    world.play(|_| {});
    let mut told = |one: Option<i32>, two: Option<i32>| {
        for (set, count) in world.sets.iter_mut().zip([one, two]) {
            let status = set.status.as_mut().unwrap();
            (status.observed_generation, status.terminating_replicas) = (Some(1), count);
        }
        world.decide();
        world.deployment.status.as_ref().unwrap().terminating_replicas
    };
    assert_eq!((told(Some(2), Some(1)), told(None, Some(1))), (Some(3), None));
}

#[test]
fn nothing_new_is_no_new_status() {
    let mut world = World::new(2, rolling(json!(1), json!(0)));
    world.play(|_| {});
    let before: Option<DeploymentStatus> = world.deployment.status.clone();
    world.now += SignedDuration::from_secs(3600);
    world.decide();
    assert_eq!(world.deployment.status, before);
}
