//! The running probes of a pod's containers.
//!
//! Each asks on a task of its own and sends the answers to the pod's worker; the counting is done where they arrive.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::hooks::{Answered, Target, ask};
use crate::pod::{Probe, ProbeKind, Verdict, probes};

/// Answers on their way to the worker; a probe waits when they are this many.
const WAITING: usize = 16;

struct Asked {
    container: String,
    attempt: u32,
    kind: ProbeKind,
    result: Answered,
}

/// One answer, and what is certain after it.
pub(super) struct Answer {
    pub(super) container: String,
    pub(super) attempt: u32,
    pub(super) kind: ProbeKind,
    pub(super) result: Answered,
    pub(super) verdict: Option<Verdict>,
    pub(super) grace: Option<i64>,
}

pub(super) struct Probing {
    /// With the start of the container that each is about.
    probes: BTreeMap<(String, ProbeKind), (u32, Probe, AbortHandle)>,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<Asked>,
    answers: mpsc::Receiver<Asked>,
}

impl Probing {
    pub(super) fn new() -> Self {
        let (sender, answers) = mpsc::channel(WAITING);
        Self { probes: BTreeMap::new(), tasks: JoinSet::new(), sender, answers }
    }

    /// Starts the probes that are due: the startup probe, and once the container has `started` the others. Gives
    /// those that cannot ask anything.
    pub(super) fn start(&mut self, spec: &Container, attempt: u32, target: &Target, started: bool) -> Vec<ProbeKind> {
        let due = |kind: ProbeKind| (kind == ProbeKind::Startup) != started;
        let (probes, broken) = probes(spec);
        for probe in probes.into_iter().filter(|probe| due(probe.kind)) {
            let key = (spec.name.clone(), probe.kind);
            let (asking, target, sender) = (probe.clone(), target.clone(), self.sender.clone());
            let container = spec.name.clone();
            let task = self.tasks.spawn(async move {
                let first = tokio::time::Instant::now() + asking.initial_delay;
                let mut tick = tokio::time::interval_at(first, asking.period);
                tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
                loop {
                    tick.tick().await;
                    let result = ask(&asking.check, &target, asking.timeout).await;
                    let asked = Asked { container: container.clone(), attempt, kind: asking.kind, result };
                    if sender.send(asked).await.is_err() {
                        return;
                    }
                }
            });
            if let Some((.., old)) = self.probes.insert(key, (attempt, probe, task)) {
                old.abort();
            }
        }
        broken.into_iter().filter(|kind| due(*kind)).collect()
    }

    pub(super) fn stop(&mut self, container: &str, kinds: &[ProbeKind]) {
        for kind in kinds {
            if let Some((.., task)) = self.probes.remove(&(container.to_owned(), *kind)) {
                task.abort();
            }
        }
    }

    pub(super) fn forget(&mut self, container: &str) {
        self.stop(container, &[ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness]);
    }

    pub(super) fn clear(&mut self) {
        self.probes.clear();
        self.tasks.abort_all();
    }

    /// The next answer of a probe that still runs.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        loop {
            let asked = tokio::select! {
                asked = self.answers.recv() => asked?,
                Some(_) = self.tasks.join_next() => continue,
            };
            let key = (asked.container.clone(), asked.kind);
            let Some((asking, probe, _)) = self.probes.get_mut(&key) else { continue };
            let Asked { container, attempt, kind, result } = asked;
            // Nothing that an earlier start answered counts.
            if attempt != *asking {
                continue;
            }
            let verdict = probe.observe(result.is_ok());
            return Some(Answer { container, attempt, kind, result, verdict, grace: probe.grace });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn what_an_earlier_start_answered_does_not_count() {
        let mut probing = Probing::new();
        let spec = json!({"name": "a", "readinessProbe": {"tcpSocket": {"port": 80}, "failureThreshold": 1}});
        let (found, _) = probes(&serde_json::from_value(spec).unwrap());
        let asking = probing.tasks.spawn(std::future::pending());
        probing.probes.insert(("a".into(), ProbeKind::Readiness), (1, found[0].clone(), asking));
        for attempt in [0, 1] {
            let result = Err("refused".to_owned());
            let asked = Asked { container: "a".into(), attempt, kind: ProbeKind::Readiness, result };
            probing.sender.send(asked).await.unwrap();
        }
        let answer = probing.next().await.unwrap();
        assert_eq!((answer.attempt, answer.verdict), (1, Some(Verdict::Failed)));
    }
}
