//! A pod and what is realized of it -> the status its object should have.
//!
//! Invariant: conditions that are not this node's to say are kept as they are; a condition's transition time changes
//! only with its status; times are whole seconds, as the API stores them. Source: `kubelet_pods.go`,
//! `status/generate.go`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, HostIP, LinuxContainerUser, Pod, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::conditions;
use super::ephemeral::{container_of, ephemeral};
use super::plan::{is_done, is_sidecar};
use super::realized::{Container, Ended, Phase, Realized, Sandbox};
use super::spec::User;

/// The phase that follows from what is realized; a phase that is final in the API stays.
#[must_use]
pub fn effective_phase(pod: &Pod, realized: &Realized) -> &'static str {
    match pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let Some(spec) = &pod.spec else { return "Pending" };
    let stopped = pod.metadata.deletion_timestamp.is_some() && realized.sandbox == Sandbox::Absent;
    let has_run = realized.containers.values().any(|container| container.ended().is_some());
    if realized.failed.is_some() {
        return "Failed";
    }
    if is_done(spec, realized) || (stopped && has_run) {
        let failed = |ended: &Ended| ended.exit.code != 0;
        let inits = spec.init_containers.iter().flatten().filter(|init| !is_sidecar(init));
        let mut judged = spec.containers.iter().chain(inits).filter_map(|c| realized.containers.get(&c.name));
        return if judged.any(|c| c.ended().is_none_or(failed)) { "Failed" } else { "Succeeded" };
    }
    let seen = |container: &ContainerSpec| realized.containers.get(&container.name).is_some_and(has_started);
    if !spec.containers.is_empty() && spec.containers.iter().all(seen) { "Running" } else { "Pending" }
}

pub(super) fn has_started(container: &Container) -> bool {
    container.attempt > 0 || matches!(container.phase, Phase::Running { .. } | Phase::Exited(_))
}

pub(super) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// What the pod's status should be at `now`, on a node with these addresses.
#[must_use]
pub fn status(pod: &Pod, realized: &Realized, host_ips: &[IpAddr], now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let Some(spec) = &pod.spec else { return old };
    let phase = effective_phase(pod, realized);
    let host_network = spec.host_network == Some(true);
    let terminal = matches!(phase, "Succeeded" | "Failed");
    // A pod that was over before this agent started has no containers to tell of.
    let forgotten = terminal && realized.containers.is_empty() && realized.failed.is_none();
    let waiting = if spec.init_containers.as_ref().is_some_and(|init| !init.is_empty()) {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let statuses = |containers: &[ContainerSpec], init: bool| -> Vec<ContainerStatus> {
        containers.iter().map(|c| container_status(pod, c, realized, waiting, init, now)).collect()
    };
    let mut ips: Vec<IpAddr> = if host_network { host_ips.to_vec() } else { realized.ips.clone() };
    if ips.is_empty() {
        // The address of a pod that has ended is history worth keeping.
        ips = old.pod_ips.iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
    }
    let (reason, message) = realized.failed.clone().unzip();
    let mut status = PodStatus {
        observed_generation: pod.metadata.generation,
        phase: Some(phase.to_owned()),
        reason: reason.or_else(|| old.reason.clone()),
        message: message.or_else(|| old.message.clone()),
        host_ip: host_ips.first().map(ToString::to_string),
        host_ips: Some(host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect()),
        pod_ip: ips.first().map(ToString::to_string),
        pod_ips: (!ips.is_empty()).then(|| ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect()),
        start_time: old.start_time.clone().or_else(|| Some(time(now))),
        ..old.clone()
    };
    if !forgotten {
        status.container_statuses = Some(statuses(&spec.containers, false));
        status.init_container_statuses = spec.init_containers.as_deref().map(|init| statuses(init, true));
        let ephemeral: Vec<ContainerSpec> = ephemeral(pod).iter().map(container_of).collect();
        if !ephemeral.is_empty() {
            // Nobody asks whether they are ready.
            let never = |status| ContainerStatus { ready: false, started: None, ..status };
            status.ephemeral_container_statuses = Some(statuses(&ephemeral, false).into_iter().map(never).collect());
        }
        status.conditions = Some(conditions(pod, spec, &old, &status, realized, now));
    }
    status
}

fn container_status(
    pod: &Pod,
    spec: &ContainerSpec,
    realized: &Realized,
    waiting: &str,
    init: bool,
    now: Timestamp,
) -> ContainerStatus {
    let none = Container::default();
    let container = realized.containers.get(&spec.name).unwrap_or(&none);
    let id = |attempt: u32| Some(container_id(pod, &spec.name, attempt));
    let ended = |ended: &Ended| terminated(ended, id(ended.attempt));
    let wait = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..Default::default()
    };
    let mut last = container.last.as_ref().map(&ended);
    let mut running = false;
    let state = match &container.phase {
        Phase::Waiting { reason, .. } if reason == "ContainerCreating" => wait(waiting, None),
        Phase::Waiting { reason, message, .. } => wait(reason, message.clone()),
        Phase::Starting => match last.take() {
            Some(before) => before,
            None => wait(waiting, None),
        },
        Phase::Running { since } => {
            running = true;
            ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(time(*since)) }),
                ..Default::default()
            }
        }
        Phase::Exited(exit) => match back_off(pod, spec, container, exit, now) {
            Some(message) => {
                last = Some(ended(exit));
                wait("CrashLoopBackOff", Some(message))
            }
            None => ended(exit),
        },
    };
    let complete = init && !is_sidecar(spec) && container.ended().is_some_and(|ended| ended.exit.code == 0);
    let ever = has_started(container);
    ContainerStatus {
        name: spec.name.clone(),
        image: spec.image.clone().unwrap_or_default(),
        image_id: container.image_id.clone(),
        user: container.user.as_deref().map(container_user),
        container_id: ever
            .then(|| id(container.attempt.saturating_sub(u32::from(matches!(container.phase, Phase::Waiting { .. })))))
            .flatten(),
        ready: complete || (running && container.ready),
        started: Some(running && container.started),
        restart_count: i32::try_from(container.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.unwrap_or_default()),
        ..Default::default()
    }
}

/// As a container runtime tells it: the main group is among the others.
fn container_user(user: &User) -> ContainerUser {
    let groups: BTreeSet<u32> = user.groups.iter().copied().chain([user.gid]).collect();
    let linux = LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: Some(groups.into_iter().map(i64::from).collect()),
    };
    ContainerUser { linux: Some(linux) }
}

/// What the API calls this start of this container. The pod's uid makes it unique.
pub(crate) fn container_id(pod: &Pod, name: &str, attempt: u32) -> String {
    use std::fmt::Write;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{uid}/{name}/{attempt}").as_bytes());
    digest.as_ref().iter().fold("portolan://".to_owned(), |mut id, byte| {
        // Writing to a String cannot fail.
        let _ = write!(id, "{byte:02x}");
        id
    })
}

/// The container has ended and waits before its next start.
pub(crate) fn is_backing_off(pod: &Pod, realized: &Realized, name: &str, now: Timestamp) -> bool {
    let spec = pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let spec = spec.into_iter().find(|container| container.name == name);
    let (Some(spec), Some(container)) = (spec, realized.containers.get(name)) else { return false };
    !realized.deleted && container.ended().is_some_and(|ended| back_off(pod, spec, container, ended, now).is_some())
}

/// The kubelet's words for a container that waits before its next start, while it waits.
fn back_off(pod: &Pod, spec: &ContainerSpec, container: &Container, ended: &Ended, now: Timestamp) -> Option<String> {
    let winding_down = pod.metadata.deletion_timestamp.is_some();
    if winding_down || !runs_again(pod, spec, ended) || container.backoff.until(ended.exit.at) <= now {
        return None;
    }
    let metadata = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    Some(format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        go_duration(container.backoff.delay(ended.exit.at).as_secs()),
        spec.name,
        text(&metadata.name),
        text(&metadata.namespace),
        text(&metadata.uid)
    ))
}

fn runs_again(pod: &Pod, spec: &ContainerSpec, ended: &Ended) -> bool {
    let policy = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
    is_sidecar(spec) || matches!((policy, ended.exit.code), (None | Some("Always"), _) | (Some("OnFailure"), 1..))
}

/// Seconds as Go prints a duration: `10s`, `1m20s`, `5m0s`.
fn go_duration(seconds: i64) -> String {
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

fn terminated(ended: &Ended, container_id: Option<String>) -> ContainerState {
    let reason = match (&ended.reason, ended.exit.oom_killed, ended.exit.code) {
        (Some(reason), ..) => reason,
        (None, true, _) => "OOMKilled",
        (None, false, 0) => "Completed",
        (None, false, _) => "Error",
    };
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id,
            exit_code: ended.exit.code,
            finished_at: Some(time(ended.exit.at)),
            message: ended.message.clone(),
            reason: Some(reason.to_owned()),
            signal: None,
            started_at: ended.started_at.map(time),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::super::realized::Exit;
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn pod(policy: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u"},
            "spec": {"restartPolicy": policy, "containers": [{"name": "app", "image": "web:1"}]}}))
        .unwrap()
    }

    fn ended(code: i32, oom_killed: bool) -> Ended {
        let exit = Exit { code, signal: None, oom_killed, at: NOW };
        Ended { exit, started_at: Some(NOW), message: None, reason: None, attempt: 0 }
    }

    fn with(container: Container) -> Realized {
        Realized {
            sandbox: Sandbox::Ready,
            ips: vec!["10.244.1.7".parse().unwrap()],
            containers: [("app".to_owned(), container)].into(),
            ..Realized::default()
        }
    }

    fn running(ready: bool) -> Container {
        Container { phase: Phase::Running { since: NOW }, started: true, ready, ..Container::default() }
    }

    fn exited(code: i32, oom: bool) -> Container {
        Container { phase: Phase::Exited(ended(code, oom)), ..Container::default() }
    }

    fn of(pod: &Pod, realized: &Realized) -> PodStatus {
        status(pod, realized, &["10.203.0.11".parse().unwrap()], NOW)
    }

    /// Phase, the container's state and reason, and every condition that is not true.
    fn shown(pod: &Pod, realized: &Realized) -> String {
        let status = json!(of(pod, realized));
        let (state, detail) = status["containerStatuses"][0]["state"].as_object().unwrap().iter().next().unwrap();
        let mut text = format!("{} {state} {}", status["phase"], detail["reason"]);
        for condition in status["conditions"].as_array().unwrap().iter().filter(|c| c["status"] != "True") {
            text += &format!("\n{} {} {}", condition["type"], condition["reason"], condition["message"]);
        }
        text.replace('"', "")
    }

    fn check(pod: &Pod, realized: &Realized, expected: Expect) {
        expected.assert_eq(&shown(pod, realized));
    }

    #[test]
    fn states_become_phases_reasons_and_conditions() {
        let always = pod("Always");
        let unready = "ContainersNotReady containers with unready status: [app]";
        let not_ready = |first: &str| format!("{first}\nReady {unready}\nContainersReady {unready}");
        let row = |realized: &Realized| shown(&always, realized);
        let nothing = Realized::default();
        let first = "Pending waiting ContainerCreating\nPodReadyToStartContainers null null";
        assert_eq!(row(&nothing), not_ready(first));
        assert_eq!(row(&with(Container::default())), not_ready("Pending waiting ContainerCreating"));
        assert_eq!(row(&with(running(false))), not_ready("Running running null"));
        assert_eq!(row(&with(running(true))), "Running running null");
        assert_eq!(row(&with(exited(0, false))), not_ready("Running terminated Completed"));
        assert_eq!(row(&with(exited(1, false))), not_ready("Running terminated Error"));
        assert_eq!(row(&with(exited(137, true))), not_ready("Running terminated OOMKilled"));
    }

    #[test]
    fn ephemeral_containers_are_told_of_and_change_nothing() {
        let mut pod = pod("Always");
        let spec = pod.spec.as_mut().unwrap();
        spec.ephemeral_containers = serde_json::from_value(json!([{"name": "look", "image": "tools:1"}])).unwrap();
        let mut realized = with(running(true));
        realized.containers.insert("look".to_owned(), exited(3, false));
        assert_eq!(shown(&pod, &realized), "Running running null");
        let status = json!(of(&pod, &realized));
        let told = &status["ephemeralContainerStatuses"][0];
        assert_eq!((&told["name"], &told["image"]), (&json!("look"), &json!("tools:1")));
        assert_eq!(told["state"]["terminated"]["exitCode"], 3);
        assert_eq!((&told["ready"], told.get("started")), (&json!(false), None));
    }

    #[test]
    fn a_pod_that_is_done_says_how() {
        check(
            &pod("Never"),
            &with(exited(0, false)),
            expect![[r"
            Succeeded terminated Completed
            Ready PodCompleted null
            ContainersReady PodCompleted null"]],
        );
        check(
            &pod("Never"),
            &with(exited(2, false)),
            expect![[r"
            Failed terminated Error
            Ready PodFailed null
            ContainersReady PodFailed null"]],
        );
        let deadline = Realized { failed: Some(("DeadlineExceeded".into(), "late".into())), ..with(running(true)) };
        let status = of(&pod("Always"), &deadline);
        let said = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
        assert_eq!(said, (Some("Failed"), Some("DeadlineExceeded"), Some("late")));
    }

    #[test]
    fn back_off_is_shown_while_it_lasts() {
        let mut container = exited(1, false);
        container.backoff = container.backoff.raised(NOW, NOW);
        let realized = with(container);
        check(
            &pod("Always"),
            &realized,
            expect![[r"
            Running waiting CrashLoopBackOff
            Ready ContainersNotReady containers with unready status: [app]
            ContainersReady ContainersNotReady containers with unready status: [app]"]],
        );
        let status = &of(&pod("Always"), &realized).container_statuses.unwrap()[0];
        assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        let after = super::status(&pod("Always"), &realized, &[], NOW + SignedDuration::from_secs(10));
        assert!(after.container_statuses.unwrap()[0].state.as_ref().unwrap().terminated.is_some());
    }

    #[test]
    fn what_others_wrote_is_kept_and_times_change_only_with_the_status() {
        let mut pod = pod("Always");
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "lastTransitionTime": "1969-01-01T00:00:00Z"});
        let gate = json!([{"conditionType": "example.com/gate"}]);
        pod.spec.as_mut().unwrap().readiness_gates = serde_json::from_value(gate).unwrap();
        let old: Value = json!({"qosClass": "Burstable", "conditions": [
            condition("Ready", "True"), condition("ContainersReady", "True"), condition("example.com/gate", "False")]});
        pod.status = serde_json::from_value(old).unwrap();
        pod.metadata.generation = Some(3);
        let status = json!(of(&pod, &with(running(true))));
        assert_eq!((&status["qosClass"], &status["observedGeneration"]), (&json!("Burstable"), &json!(3)));
        let find = |kind: &str| {
            let all = status["conditions"].as_array().unwrap();
            all.iter().find(|condition| condition["type"] == kind).unwrap().clone()
        };
        assert_eq!(find("example.com/gate"), condition("example.com/gate", "False"));
        assert_eq!(find("ContainersReady")["lastTransitionTime"], "1969-01-01T00:00:00Z");
        assert_eq!(find("ContainersReady")["observedGeneration"], 3);
        assert_eq!(
            (find("Ready")["status"].as_str(), find("Ready")["reason"].as_str()),
            (Some("False"), Some("ReadinessGatesNotReady"))
        );
        assert_eq!(find("Ready")["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn init_containers_hold_the_pod_pending() {
        let mut pod = pod("Always");
        let init = json!([{"name": "init", "image": "web:1"}, {"name": "next", "image": "web:1"}]);
        pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(init).unwrap();
        let mut realized = with(Container::default());
        realized.containers.insert("init".into(), running(true));
        let status = of(&pod, &realized);
        for waits in [&status.container_statuses.unwrap()[0], &status.init_container_statuses.unwrap()[1]] {
            let state = waits.state.clone().unwrap();
            assert_eq!(state.waiting.unwrap().reason.as_deref(), Some("PodInitializing"), "{}", waits.name);
        }
        let initialized = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Initialized").unwrap();
        assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [init next]"));
        assert_eq!(status.phase.as_deref(), Some("Pending"));
    }

    #[test]
    fn a_container_says_who_it_runs_as() {
        let user = Some(Box::new(User { uid: 1000, gid: 7, groups: vec![5, 9] }));
        let status = of(&pod("Always"), &with(Container { user, ..running(true) }));
        let user = json!({"linux": {"uid": 1000, "gid": 7, "supplementalGroups": [5, 7, 9]}});
        assert_eq!(json!(status.container_statuses.unwrap()[0].user), user);
    }

    #[test]
    fn the_same_state_gives_the_same_status() {
        let mut pod = pod("Always");
        let realized = with(running(true));
        let first = of(&pod, &realized);
        pod.status = serde_json::from_value(json!(first)).unwrap();
        let later =
            super::status(&pod, &realized, &["10.203.0.11".parse().unwrap()], NOW + SignedDuration::from_hours(1));
        assert_eq!(json!(later), json!(first));
    }
}
