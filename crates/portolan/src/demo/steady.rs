//! The front-end pod's log -> the figures of its steady load, line by line as they come.
//!
//! Invariants: each line is counted in exactly one scene; a piece of time that no line covers is told, never skipped
//! over, for a client that was not running cannot have seen a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{AsyncBufReadExt, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::LogParams;
use kube::{Api, Client};
use tokio::task::JoinSet;

use super::objects::{FRONT_END, NAMESPACE};
use super::progress::Progress;
use super::stage::Signals;
use crate::workload::figures::Figures;

const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct SteadyLoad {
    lines: Arc<Mutex<Lines>>,
    follower: JoinSet<()>,
    signals: Signals,
    progress: Progress,
}

#[derive(Default)]
struct Lines {
    /// Since the last scene ended.
    fresh: Vec<Figures>,
    /// Where the last line taken in ended.
    until_ms: u64,
    /// Time between two lines that neither covers.
    uncovered_ms: u64,
}

impl Lines {
    fn take_in(&mut self, line: Figures) -> bool {
        if line.summary || line.until_ms <= self.until_ms {
            return false;
        }
        if self.until_ms > 0 {
            self.uncovered_ms += line.from_ms.saturating_sub(self.until_ms);
        }
        self.until_ms = line.until_ms;
        self.fresh.push(line);
        true
    }

    fn sum(&self) -> Figures {
        let mut sum = Figures::default();
        self.fresh.iter().for_each(|line| sum.add(line));
        sum
    }
}

impl SteadyLoad {
    pub(super) fn new(signals: Signals, progress: Progress) -> Self {
        Self { lines: Arc::default(), follower: JoinSet::new(), signals, progress }
    }

    /// Follows the front end's log from now on; lines of before `since_ms` are not its.
    pub(super) fn attach(&mut self, client: Client, since_ms: u64) {
        self.detach();
        *self.lines() = Lines::default();
        let (lines, signals, progress) = (self.lines.clone(), self.signals.clone(), self.progress.clone());
        self.follower.spawn(async move {
            let pods: Api<Pod> = Api::namespaced(client, NAMESPACE);
            let parameters = LogParams { follow: true, ..LogParams::default() };
            loop {
                if let Ok(log) = pods.log_stream(FRONT_END, &parameters).await {
                    let mut log = log.lines();
                    while let Some(Ok(text)) = log.next().await {
                        let Ok(line) = serde_json::from_str::<Figures>(&text) else { continue };
                        progress.load(&line);
                        if line.from_ms >= since_ms && lock(&lines).take_in(line) {
                            signals.changed();
                        }
                    }
                }
                // The log ends when its container does; the next one's begins a moment later.
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        });
    }

    pub(super) fn detach(&mut self) {
        self.follower = JoinSet::new();
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        lock(&self.lines)
    }

    /// What was seen since the last scene ended.
    pub(super) fn figures(&self) -> Figures {
        self.lines().sum()
    }

    /// When the backend first answered since the last scene ended.
    pub(super) fn first_answer_of(&self, pod: &str) -> Option<u64> {
        self.lines().fresh.iter().filter_map(|line| line.backends.get(pod)).map(|backend| backend.first_ms).min()
    }

    /// Whether everything up to that time has been told.
    pub(super) fn covers(&self, ms: u64) -> Result<(), String> {
        let until = self.lines().until_ms;
        if until >= ms { Ok(()) } else { Err(format!("a log that ends {} ms before that", ms - until)) }
    }

    /// Ends a scene: its figures, and the time that nobody watched.
    pub(super) fn take(&mut self) -> (Figures, u64) {
        let mut lines = self.lines();
        let sum = lines.sum();
        lines.fresh.clear();
        (sum, std::mem::take(&mut lines.uncovered_ms))
    }
}

fn lock(lines: &Mutex<Lines>) -> MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(from_ms: u64, until_ms: u64) -> Figures {
        Figures { from_ms, until_ms, answered: 10, ..Figures::default() }
    }

    #[test]
    fn lines_are_counted_once_and_gaps_are_told() {
        let mut lines = Lines::default();
        for (from, until, taken) in [(100, 200, true), (200, 300, true), (100, 200, false), (450, 500, true)] {
            assert_eq!(lines.take_in(line(from, until)), taken, "{from}–{until}");
        }
        assert!(!lines.take_in(Figures { summary: true, ..line(0, 900) }));
        assert_eq!((lines.sum().answered, lines.uncovered_ms), (30, 150));
    }
}
