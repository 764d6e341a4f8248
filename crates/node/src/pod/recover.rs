//! What an agent finds at its start -> what is realized: containers that ran on without it, and those that a reboot
//! of the node took.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use super::plan::is_sidecar;
use super::realized::{Container, Ended, Exit, Phase, Realized};
use super::{Backoff, User, status::container_id};

/// One start of a container that its shim remembers.
#[derive(Clone, Debug)]
pub(crate) struct Remembered {
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) backoff: Backoff,
    pub(crate) image_id: String,
    pub(crate) user: Option<Box<User>>,
    pub(crate) started_at: Timestamp,
    pub(crate) exit: Option<Exit>,
}

impl Remembered {
    fn ended(&self) -> Option<Ended> {
        let exit = self.exit.clone()?;
        let started_at = Some(self.started_at);
        Some(Ended { exit, started_at, message: None, reason: None, attempt: self.attempt })
    }
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        let regular = status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten());
        regular.chain(status.ephemeral_container_statuses.iter().flatten())
    })
}

/// From a shim that is still there. Probes' verdicts are taken from the API, so that a restart of the agent does not
/// make a ready pod unready.
pub(crate) fn adopted(pod: &Pod, mut remembered: Vec<Remembered>) -> Realized {
    let mut realized = Realized::default();
    remembered.sort_by_key(|instance| instance.attempt);
    for instance in &remembered {
        let container = realized.containers.entry(instance.container.clone()).or_default();
        container.last = container.ended().cloned();
        container.attempt = instance.attempt;
        container.backoff = instance.backoff;
        container.image_id.clone_from(&instance.image_id);
        container.user.clone_from(&instance.user);
        container.phase = match instance.ended() {
            Some(ended) => Phase::Exited(ended),
            None => Phase::Running { since: instance.started_at },
        };
    }
    for (name, container) in &mut realized.containers {
        let id = container_id(pod, name, container.attempt);
        let known = statuses(pod).find(|status| status.container_id.as_ref() == Some(&id));
        if let (true, Some(known)) = (container.is_running(), known) {
            container.started = known.started == Some(true);
            container.ready = known.ready;
        }
    }
    realized
}

/// From the API alone, when nothing of the pod runs: what ran when this node was last heard of has ended.
pub(crate) fn lost(pod: &Pod, now: Timestamp) -> Realized {
    let mut realized = Realized::default();
    let terminal =
        pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
    if terminal {
        return realized;
    }
    for status in statuses(pod) {
        let attempt = u32::try_from(status.restart_count).unwrap_or(0);
        let state = status.state.clone().unwrap_or_default();
        let last = status.last_state.clone().and_then(|last| last.terminated);
        let ended = match (state.running, state.terminated.or(last)) {
            (Some(running), _) => Some(Ended {
                exit: Exit { code: 137, signal: None, oom_killed: false, at: now },
                started_at: running.started_at.map(|at| at.0),
                message: Some("The container could not be located when the pod was terminated".to_owned()),
                reason: Some("ContainerStatusUnknown".to_owned()),
                attempt,
            }),
            (None, Some(terminated)) => Some(from_api(terminated, attempt, now)),
            (None, None) => None,
        };
        let Some(ended) = ended else { continue };
        let container = Container {
            phase: Phase::Exited(ended),
            attempt,
            image_id: status.image_id.clone(),
            ..Container::default()
        };
        realized.containers.insert(status.name.clone(), container);
    }
    sandbox_lost(pod, &mut realized);
    realized
}

fn from_api(terminated: ContainerStateTerminated, attempt: u32, now: Timestamp) -> Ended {
    Ended {
        exit: Exit {
            code: terminated.exit_code,
            signal: terminated.signal,
            oom_killed: terminated.reason.as_deref() == Some("OOMKilled"),
            at: terminated.finished_at.map_or(now, |at| at.0),
        },
        started_at: terminated.started_at.map(|at| at.0),
        message: terminated.message,
        reason: terminated.reason,
        attempt,
    }
}

/// The pod's namespaces are gone: what init containers did in them has to be done again, before what is restarted.
pub(crate) fn sandbox_lost(pod: &Pod, realized: &mut Realized) {
    let Some(spec) = &pod.spec else { return };
    let policy = spec.restart_policy.as_deref();
    let over = |name: &str, always: bool| {
        let ended = realized.containers.get(name).and_then(Container::ended);
        ended.is_some_and(|ended| {
            !always && (policy == Some("Never") || policy == Some("OnFailure") && ended.exit.code == 0)
        })
    };
    let regular_over = spec.containers.iter().any(|container| over(&container.name, false));
    let inits = spec.init_containers.iter().flatten();
    let again: Vec<&str> = if policy == Some("Never") {
        Vec::new()
    } else {
        let regular = spec.containers.iter().filter(|container| !over(&container.name, false));
        let inits = inits.filter(|init| !regular_over || is_sidecar(init));
        regular.chain(inits).map(|container| container.name.as_str()).collect()
    };
    for name in again {
        let Some(container) = realized.containers.get_mut(name) else { continue };
        if let Some(ended) = container.ended().cloned() {
            container.attempt = ended.attempt + 1;
            container.last = Some(ended);
            container.phase = Phase::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::pod::{Action, Sandbox, effective_phase, next_actions};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn pod(policy: &str, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"restartPolicy": policy, "initContainers": [{"name": "init"}], "containers": [{"name": "app"}]},
            "status": status
        }))
        .unwrap()
    }

    fn running() -> Value {
        json!({"phase": "Running",
            "initContainerStatuses": [{"name": "init", "restartCount": 0, "ready": true, "image": "", "imageID": "",
                "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [{"name": "app", "restartCount": 2, "ready": true, "image": "", "imageID": "",
                "state": {"running": {}}}]})
    }

    #[test]
    fn after_a_reboot_init_containers_run_again_and_restarts_are_counted_on() {
        let pod = pod("Always", running());
        let mut realized = lost(&pod, NOW);
        assert_eq!(realized.containers["app"].attempt, 3);
        assert_eq!(next_actions(&pod, &realized, NOW).actions, [Action::CreateSandbox]);
        realized.sandbox = Sandbox::Ready;
        let start = Action::StartContainer { name: "init".into(), attempt: 1 };
        assert_eq!(next_actions(&pod, &realized, NOW).actions, [start]);
    }

    #[test]
    fn what_is_never_restarted_has_failed() {
        let pod = pod("Never", running());
        let realized = lost(&pod, NOW);
        assert_eq!(effective_phase(&pod, &realized), "Failed");
        assert_eq!(next_actions(&pod, &realized, NOW).actions, []);
    }

    #[test]
    fn a_finished_pod_is_left_alone() {
        let pod = pod("Never", json!({"phase": "Succeeded"}));
        assert_eq!(next_actions(&pod, &lost(&pod, NOW), NOW).actions, []);
    }

    #[test]
    fn an_adopted_container_keeps_its_verdicts_and_its_history() {
        let instance = |attempt, exit: Option<i32>| Remembered {
            container: "app".into(),
            attempt,
            backoff: Backoff::default(),
            image_id: "sha256:1".into(),
            user: None,
            started_at: NOW,
            exit: exit.map(|code| Exit { code, signal: None, oom_killed: false, at: NOW }),
        };
        let mut status = running();
        let mut pod = pod("Always", json!({}));
        status["containerStatuses"][0]["containerID"] = json!(container_id(&pod, "app", 1));
        status["containerStatuses"][0]["started"] = json!(true);
        pod.status = serde_json::from_value(status).unwrap();
        let realized = adopted(&pod, vec![instance(1, None), instance(0, Some(3))]);
        let app = &realized.containers["app"];
        assert!(app.is_running() && app.ready && app.started && app.attempt == 1);
        assert_eq!(app.last.as_ref().unwrap().exit.code, 3);
    }
}
