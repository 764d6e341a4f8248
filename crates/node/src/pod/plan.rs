//! A pod and what is realized of it -> the actions to take now, and when to look again if nothing happens.
//!
//! Invariant: asking twice without carrying anything out gives the same answer; an action is not given again once the
//! realized state says that it is under way.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container as ContainerSpec, Pod, PodSpec};

use super::realized::{Container, Phase, Realized, Sandbox};
use super::status::effective_phase;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    CreateSandbox,
    /// Ends the shim and takes the pod's network, mounts and cgroups away.
    RemoveSandbox,
    StartContainer {
        name: String,
        attempt: u32,
    },
    /// Runs the preStop hook, sends the signal, and kills after the grace period.
    StopContainer {
        name: String,
        grace: SignedDuration,
    },
    /// Gives the pod up: stops what runs, for this reason, with the pod's phase Failed.
    Fail {
        reason: String,
        message: String,
    },
    /// Nothing of a deleted pod is left here: its object may go.
    DeleteObject,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    pub wake: Option<Timestamp>,
}

impl Plan {
    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn wake_at(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// A sidecar: an init container that goes on running beside the others.
pub(super) fn is_sidecar(container: &ContainerSpec) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn restarts(spec: &PodSpec, exit_code: i32) -> bool {
    match spec.restart_policy.as_deref() {
        Some("Never") => false,
        Some("OnFailure") => exit_code != 0,
        _ => true,
    }
}

/// All has ended that will not be started again: the pod is done, well or not.
pub(super) fn is_done(spec: &PodSpec, realized: &Realized) -> bool {
    let container = |name: &str| realized.containers.get(name);
    let ended = |name: &str| container(name).and_then(Container::ended).map(|ended| ended.exit.code);
    let init_failed = spec.init_containers.iter().flatten().filter(|init| !is_sidecar(init)).any(|init| {
        // An init container that failed is only final when nothing is ever restarted.
        spec.restart_policy.as_deref() == Some("Never") && ended(&init.name).is_some_and(|code| code != 0)
    });
    let over = |name: &str| ended(name).is_some_and(|code| !restarts(spec, code));
    init_failed || (!spec.containers.is_empty() && spec.containers.iter().all(|container| over(&container.name)))
}

/// What to do about `pod` at `now`.
#[must_use]
pub fn next_actions(pod: &Pod, realized: &Realized, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = &pod.spec else { return plan };
    let phase = effective_phase(pod, realized);
    let terminal = matches!(phase, "Succeeded" | "Failed");
    let deleting = pod.metadata.deletion_timestamp.is_some() || realized.deleted;
    if !deleting && !terminal && !expired(pod, spec, now, &mut plan) {
        advance(spec, realized, now, &mut plan);
        return plan;
    }
    if !deleting && !terminal && realized.failed.is_none() {
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        plan.act(Action::Fail { reason: "DeadlineExceeded".to_owned(), message });
        return plan;
    }
    wind_down(pod, spec, realized, deleting, &mut plan);
    plan
}

fn expired(pod: &Pod, spec: &PodSpec, now: Timestamp, plan: &mut Plan) -> bool {
    let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, start) else { return false };
    let Ok(deadline) = start.0.checked_add(SignedDuration::from_secs(seconds)) else { return false };
    if now < deadline {
        plan.wake_at(deadline);
    }
    now >= deadline
}

fn advance(spec: &PodSpec, realized: &Realized, now: Timestamp, plan: &mut Plan) {
    match realized.sandbox {
        Sandbox::Absent => match &realized.sandbox_error {
            Some((_, retry_at)) if *retry_at > now => plan.wake_at(*retry_at),
            _ => plan.act(Action::CreateSandbox),
        },
        Sandbox::Creating | Sandbox::Removing => {}
        Sandbox::Ready => start_containers(spec, realized, now, plan),
    }
}

fn start_containers(spec: &PodSpec, realized: &Realized, now: Timestamp, plan: &mut Plan) {
    let none = Container::default();
    let get = |name: &str| realized.containers.get(name).unwrap_or(&none);
    // They wait for nobody: that the others do not start may be what they are for.
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        start(&ephemeral.name, get(&ephemeral.name), false, now, plan);
    }
    // Once a regular container has started in this sandbox, init containers that ended are history.
    let initialized =
        spec.containers.iter().any(|container| !matches!(get(&container.name).phase, Phase::Waiting { .. }));
    for init in spec.init_containers.iter().flatten() {
        let container = get(&init.name);
        if is_sidecar(init) {
            start(&init.name, container, true, now, plan);
            let settled = container.is_running() && container.started;
            if !initialized && !settled {
                return;
            }
        } else if !initialized {
            if container.ended().is_some_and(|ended| ended.exit.code == 0) {
                continue;
            }
            start(&init.name, container, spec.restart_policy.as_deref() != Some("Never"), now, plan);
            return;
        }
    }
    for regular in &spec.containers {
        let container = get(&regular.name);
        let again = container.ended().is_some_and(|ended| restarts(spec, ended.exit.code));
        start(&regular.name, container, again, now, plan);
    }
}

/// Starts a container that never ran, or that ended and is to run `again`, when it may.
fn start(name: &str, container: &Container, again: bool, now: Timestamp, plan: &mut Plan) {
    let (at, attempt) = match &container.phase {
        Phase::Waiting { retry_at, .. } => (retry_at.unwrap_or(now), container.attempt),
        Phase::Exited(ended) if again => (container.backoff.until(ended.exit.at), container.attempt + 1),
        _ => return,
    };
    if at > now {
        plan.wake_at(at);
    } else {
        plan.act(Action::StartContainer { name: name.to_owned(), attempt });
    }
}

/// Stops the regular containers, then the sidecars from the last to the first, then takes the sandbox away.
fn wind_down(pod: &Pod, spec: &PodSpec, realized: &Realized, deleting: bool, plan: &mut Plan) {
    let grace = pod.metadata.deletion_grace_period_seconds.or(spec.termination_grace_period_seconds).unwrap_or(30);
    let grace = SignedDuration::from_secs(grace.max(1));
    let mut stop = |name: &str| {
        let Some(container) = realized.containers.get(name) else { return false };
        if container.is_running() && !container.stopping {
            plan.act(Action::StopContainer { name: name.to_owned(), grace });
        }
        container.is_active()
    };
    let inits = || spec.init_containers.iter().flatten();
    let regular =
        spec.containers.iter().chain(inits().filter(|init| !is_sidecar(init))).map(|container| &container.name);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    // Every one is stopped, so no short circuit.
    if regular.chain(ephemeral).fold(false, |busy, name| stop(name) | busy) {
        return;
    }
    let sidecars: Vec<_> = inits().filter(|init| is_sidecar(init)).collect();
    if sidecars.iter().rev().any(|sidecar| stop(&sidecar.name)) {
        return;
    }
    match realized.sandbox {
        Sandbox::Ready => plan.act(Action::RemoveSandbox),
        Sandbox::Absent if deleting && !realized.deleted => plan.act(Action::DeleteObject),
        Sandbox::Absent | Sandbox::Creating | Sandbox::Removing => {}
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::{Expect, expect};
    use serde_json::{Value, json};

    use super::super::realized::{Ended, Exit};
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn exited(code: i32) -> Container {
        let exit = Exit { code, signal: None, oom_killed: false, at: NOW };
        let ended = Ended { exit, started_at: None, message: None, reason: None, attempt: 0 };
        Container { phase: Phase::Exited(ended), ..Container::default() }
    }

    /// `name=state`: `new`, `starting`, `up` (running and started), `slow` (running, not started), `down` (being
    /// stopped), `late` (waits to try again), an exit code, or an exit code and `!` for one in back-off.
    fn realized(sandbox: Sandbox, states: &str) -> Realized {
        let container = |state: &str| match state {
            "new" => Container::default(),
            "starting" => Container { phase: Phase::Starting, ..Container::default() },
            "up" | "slow" | "down" => Container {
                phase: Phase::Running { since: NOW },
                started: state != "slow",
                stopping: state == "down",
                ..Container::default()
            },
            "late" => Container {
                phase: Phase::Waiting {
                    reason: "ErrImagePull".into(),
                    message: None,
                    retry_at: Some(NOW + SignedDuration::from_secs(10)),
                    failures: 1,
                },
                ..Container::default()
            },
            code => {
                let mut container = exited(code.trim_end_matches('!').parse().unwrap());
                if code.ends_with('!') {
                    container.backoff = container.backoff.raised(NOW, NOW);
                }
                container
            }
        };
        let states = states.split_whitespace().map(|pair| pair.split_once('=').unwrap());
        let containers = states.map(|(name, state)| (name.to_owned(), container(state))).collect();
        Realized { sandbox, containers, ..Realized::default() }
    }

    fn pod(policy: &str, deleted: bool) -> Pod {
        let mut metadata = json!({"name": "p", "uid": "u"});
        if deleted {
            metadata["deletionTimestamp"] = json!("1970-01-01T00:00:00Z");
            metadata["deletionGracePeriodSeconds"] = json!(7);
        }
        serde_json::from_value(json!({"metadata": metadata, "spec": {
            "restartPolicy": policy,
            "initContainers": [{"name": "init"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "a"}, {"name": "b"}]}}))
        .unwrap()
    }

    fn shown(plan: &Plan) -> String {
        let mut text = String::new();
        for action in &plan.actions {
            let _ = match action {
                Action::StartContainer { name, attempt } => write!(text, "start {name}.{attempt}, "),
                Action::StopContainer { name, grace } => write!(text, "stop {name} in {}s, ", grace.as_secs()),
                other => write!(text, "{other:?}, "),
            };
        }
        match plan.wake {
            Some(wake) => text + &format!("look again in {}s", wake.duration_since(NOW).as_secs()),
            None if text.is_empty() => "wait".to_owned(),
            None => text.trim_end_matches(", ").to_owned(),
        }
    }

    fn check(pod: &Pod, sandbox: &Sandbox, rows: &[&str], expected: Expect) {
        let mut text = String::new();
        for states in rows {
            let _ =
                writeln!(text, "{states:<36}{}", shown(&next_actions(pod, &realized(sandbox.clone(), states), NOW)));
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn the_sandbox_comes_first_and_once() {
        let plan = |sandbox| shown(&next_actions(&pod("Always", false), &realized(sandbox, ""), NOW));
        assert_eq!(plan(Sandbox::Absent), "CreateSandbox");
        assert_eq!((plan(Sandbox::Creating), plan(Sandbox::Removing)), ("wait".to_owned(), "wait".to_owned()));
        let mut failed = realized(Sandbox::Absent, "");
        failed.sandbox_error = Some(("no".into(), NOW + SignedDuration::from_secs(2)));
        assert_eq!(shown(&next_actions(&pod("Always", false), &failed, NOW)), "look again in 2s");
    }

    #[test]
    fn init_containers_then_sidecars_then_the_rest() {
        check(
            &pod("Always", false),
            &Sandbox::Ready,
            &[
                "",
                "init=starting",
                "init=late",
                "init=1",
                "init=1!",
                "init=0",
                "init=0 side=slow",
                "init=0 side=up",
                "init=0 side=up a=starting b=up",
                "init=0 side=3 a=up b=up",
            ],
            expect![[r"
                                                    start init.0
                init=starting                       wait
                init=late                           look again in 10s
                init=1                              start init.1
                init=1!                             look again in 10s
                init=0                              start side.0
                init=0 side=slow                    wait
                init=0 side=up                      start a.0, start b.0
                init=0 side=up a=starting b=up      wait
                init=0 side=3 a=up b=up             start side.1
            "]],
        );
    }

    #[test]
    fn what_ends_is_restarted_as_the_policy_says() {
        let rows = [
            "init=0 side=up a=0 b=up",
            "init=0 side=up a=1 b=up",
            "init=0 side=up a=1! b=0",
            "init=0 side=up a=0 b=0",
            "init=0 side=up a=1 b=1",
            "init=0 side=0 a=0 b=0",
        ];
        check(
            &pod("Always", false),
            &Sandbox::Ready,
            &rows,
            expect![[r"
                init=0 side=up a=0 b=up             start a.1
                init=0 side=up a=1 b=up             start a.1
                init=0 side=up a=1! b=0             start b.1, look again in 10s
                init=0 side=up a=0 b=0              start a.1, start b.1
                init=0 side=up a=1 b=1              start a.1, start b.1
                init=0 side=0 a=0 b=0               start side.1, start a.1, start b.1
            "]],
        );
        check(
            &pod("OnFailure", false),
            &Sandbox::Ready,
            &rows,
            expect![[r"
                init=0 side=up a=0 b=up             wait
                init=0 side=up a=1 b=up             start a.1
                init=0 side=up a=1! b=0             look again in 10s
                init=0 side=up a=0 b=0              stop side in 30s
                init=0 side=up a=1 b=1              start a.1, start b.1
                init=0 side=0 a=0 b=0               RemoveSandbox
            "]],
        );
        check(
            &pod("Never", false),
            &Sandbox::Ready,
            &rows,
            expect![[r"
                init=0 side=up a=0 b=up             wait
                init=0 side=up a=1 b=up             wait
                init=0 side=up a=1! b=0             stop side in 30s
                init=0 side=up a=0 b=0              stop side in 30s
                init=0 side=up a=1 b=1              stop side in 30s
                init=0 side=0 a=0 b=0               RemoveSandbox
            "]],
        );
    }

    #[test]
    fn ephemeral_containers_run_once_whatever_the_others_do() {
        let looked_at = |deleted: bool| {
            let mut pod = pod("Always", deleted);
            let ephemeral = json!([{"name": "look"}]);
            pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(ephemeral).unwrap();
            pod
        };
        check(
            &looked_at(false),
            &Sandbox::Ready,
            &[
                "init=late",
                "init=late look=up",
                "init=0 side=up a=up b=up look=1",
                "init=0 side=up a=up b=up look=late",
            ],
            expect![[r"
                init=late                           start look.0, look again in 10s
                init=late look=up                   look again in 10s
                init=0 side=up a=up b=up look=1     wait
                init=0 side=up a=up b=up look=late  look again in 10s
            "]],
        );
        check(
            &looked_at(true),
            &Sandbox::Ready,
            &["side=up a=0 look=up", "side=up a=0 look=0", "a=0 look=0"],
            expect![[r"
                side=up a=0 look=up                 stop look in 7s
                side=up a=0 look=0                  stop side in 7s
                a=0 look=0                          RemoveSandbox
            "]],
        );
    }

    #[test]
    fn a_deleted_pod_is_stopped_in_order_and_then_forgotten() {
        check(
            &pod("Always", true),
            &Sandbox::Ready,
            &[
                "init=up",
                "init=0 side=up a=up b=up",
                "init=0 side=up a=down b=1",
                "init=0 side=up a=0 b=1",
                "init=0 side=up a=starting b=1",
                "init=0 side=down a=0 b=1",
                "init=0 side=0 a=0 b=1",
                "",
            ],
            expect![[r"
                init=up                             stop init in 7s
                init=0 side=up a=up b=up            stop a in 7s, stop b in 7s
                init=0 side=up a=down b=1           wait
                init=0 side=up a=0 b=1              stop side in 7s
                init=0 side=up a=starting b=1       wait
                init=0 side=down a=0 b=1            wait
                init=0 side=0 a=0 b=1               RemoveSandbox
                                                    RemoveSandbox
            "]],
        );
        let gone = realized(Sandbox::Absent, "a=0 b=0");
        assert_eq!(shown(&next_actions(&pod("Always", true), &gone, NOW)), "DeleteObject");
        let forgotten = Realized { deleted: true, ..gone };
        assert_eq!(shown(&next_actions(&pod("Always", true), &forgotten, NOW)), "wait");
    }

    #[test]
    fn a_pod_past_its_deadline_is_given_up_once() {
        let mut pod = pod("Always", false);
        pod.spec.as_mut().unwrap().active_deadline_seconds = Some(5);
        pod.status = serde_json::from_value::<Option<_>>(json!({"startTime": "1970-01-01T00:00:00Z"})).unwrap();
        let up = realized(Sandbox::Ready, "init=0 side=up a=up b=up");
        assert_eq!(shown(&next_actions(&pod, &up, NOW)), "look again in 5s");
        let late = NOW + SignedDuration::from_secs(5);
        assert!(matches!(next_actions(&pod, &up, late).actions[..], [Action::Fail { .. }]));
        let failed = Realized { failed: Some(("DeadlineExceeded".into(), String::new())), ..up };
        assert!(matches!(next_actions(&pod, &failed, late).actions[..], [Action::StopContainer { .. }, _]));
    }

    #[test]
    fn nothing_is_asked_of_a_pod_without_a_spec() {
        let pod: Pod = serde_json::from_value::<Pod>(Value::Object(serde_json::Map::new())).unwrap();
        assert_eq!(next_actions(&pod, &Realized::default(), NOW), Plan::default());
    }
}
