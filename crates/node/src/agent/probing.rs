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
    probes: BTreeMap<(String, ProbeKind), (Probe, AbortHandle)>,
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
            if let Some((_, old)) = self.probes.insert(key, (probe, task)) {
                old.abort();
            }
        }
        broken.into_iter().filter(|kind| due(*kind)).collect()
    }

    pub(super) fn stop(&mut self, container: &str, kinds: &[ProbeKind]) {
        for kind in kinds {
            if let Some((_, task)) = self.probes.remove(&(container.to_owned(), *kind)) {
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
            let Some((probe, _)) = self.probes.get_mut(&key) else { continue };
            let Asked { container, attempt, kind, result } = asked;
            let verdict = probe.observe(result.is_ok());
            return Some(Answer { container, attempt, kind, result, verdict, grace: probe.grace });
        }
    }
}
