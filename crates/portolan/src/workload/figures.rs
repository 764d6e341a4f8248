//! Outcomes of requests -> figures: how many, who answered, how fast, what failed and when.
//!
//! Invariants: counts are exact; memory does not grow with the number of requests (latencies are kept in a fixed
//! histogram good to 1/8, failures and backends in bounded lists that say when they were cut).
//!
//! Deliberately not here: any clock. Times come in as milliseconds since the epoch, so that figures taken in a pod can
//! be set against what another process on the same machine did.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const MAX_FAILURES: usize = 200;
const MAX_BACKENDS: usize = 256;

/// What happened from `from_ms` to `until_ms`; one line of the load client's output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    /// Not sent, because as many as allowed were still waiting for an answer.
    pub(crate) skipped: u64,
    pub(crate) backends: BTreeMap<String, Backend>,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    /// The first of them; `failed` is the exact number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) failures: Vec<Failure>,
    pub(crate) first_failure_ms: Option<u64>,
    pub(crate) last_failure_ms: Option<u64>,
    /// Everything since the start, printed at the end; other lines tell one interval each.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) summary: bool,
    /// How long the first answer took to come, when the client was told to wait for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) first_answer_after_ms: Option<u64>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// One backend's part, by the name it gave in `X-Pod`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backend {
    pub(crate) answered: u64,
    pub(crate) first_ms: u64,
    pub(crate) last_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) began_ms: u64,
    pub(crate) ended_ms: u64,
    pub(crate) reason: String,
}

impl Figures {
    pub(crate) fn requests(&self) -> u64 {
        self.answered + self.failed
    }

    /// Adds what another interval saw. Quantiles cannot be added; the larger ones stay.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.until_ms == 0 {
            self.from_ms = other.from_ms;
        }
        self.from_ms = self.from_ms.min(other.from_ms);
        self.until_ms = self.until_ms.max(other.until_ms);
        self.answered += other.answered;
        self.failed += other.failed;
        self.skipped += other.skipped;
        for (name, theirs) in &other.backends {
            let ours = self.backends.entry(name.clone()).or_insert_with(|| Backend { answered: 0, ..theirs.clone() });
            ours.answered += theirs.answered;
            ours.first_ms = ours.first_ms.min(theirs.first_ms);
            ours.last_ms = ours.last_ms.max(theirs.last_ms);
        }
        self.p50_us = self.p50_us.max(other.p50_us);
        self.p99_us = self.p99_us.max(other.p99_us);
        let room = MAX_FAILURES.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.iter().take(room).cloned());
        self.first_failure_ms = [self.first_failure_ms, other.first_failure_ms].into_iter().flatten().min();
        self.last_failure_ms = self.last_failure_ms.max(other.last_failure_ms);
        self.first_answer_after_ms = self.first_answer_after_ms.or(other.first_answer_after_ms);
    }
}

/// Takes outcomes in and gives [`Figures`] out.
pub(crate) struct Recorder {
    figures: Figures,
    latencies: Histogram,
}

impl Recorder {
    pub(crate) fn new(now_ms: u64) -> Self {
        let figures = Figures { from_ms: now_ms, until_ms: now_ms, ..Figures::default() };
        Self { figures, latencies: Histogram::default() }
    }

    pub(crate) fn answered(&mut self, backend: &str, latency: Duration, now_ms: u64) {
        self.figures.answered += 1;
        self.latencies.add(latency);
        let backends = &mut self.figures.backends;
        let name = if backends.len() < MAX_BACKENDS || backends.contains_key(backend) { backend } else { "(others)" };
        if let Some(seen) = backends.get_mut(name) {
            seen.answered += 1;
            seen.last_ms = now_ms;
        } else {
            backends.insert(name.to_owned(), Backend { answered: 1, first_ms: now_ms, last_ms: now_ms });
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        self.figures.failed += 1;
        self.figures.first_failure_ms = self.figures.first_failure_ms.or(Some(failure.ended_ms));
        self.figures.last_failure_ms = self.figures.last_failure_ms.max(Some(failure.ended_ms));
        if self.figures.failures.len() < MAX_FAILURES {
            self.figures.failures.push(failure);
        }
    }

    pub(crate) fn skipped(&mut self) {
        self.figures.skipped += 1;
    }

    /// The figures up to now.
    pub(crate) fn figures(&self, now_ms: u64) -> Figures {
        let quantile = |q| u64::try_from(self.latencies.quantile(q).as_micros()).unwrap_or(u64::MAX);
        Figures { until_ms: now_ms, p50_us: quantile(0.5), p99_us: quantile(0.99), ..self.figures.clone() }
    }

    /// The figures up to now, and a new start.
    pub(crate) fn take(&mut self, now_ms: u64) -> Figures {
        let figures = self.figures(now_ms);
        *self = Self::new(now_ms);
        figures
    }
}

/// Counts by microseconds: exact below 8, then eight buckets to each doubling.
struct Histogram {
    counts: Vec<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; 62 * 8] }
    }
}

impl Histogram {
    fn bucket(micros: u64) -> usize {
        let exponent = micros.max(1).ilog2();
        let index = if exponent < 3 { micros } else { u64::from(exponent - 2) * 8 + ((micros >> (exponent - 3)) & 7) };
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// The largest value that falls into the bucket.
    fn upper_bound(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 8 {
            return bucket;
        }
        let shift = bucket / 8 - 1;
        ((8 + bucket % 8 + 1) << shift) - 1
    }

    fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let last = self.counts.len() - 1;
        self.counts[Self::bucket(micros).min(last)] += 1;
    }

    /// The value that the share `q` of all values does not exceed, rounded up to its bucket's bound; zero when empty.
    fn quantile(&self, q: f64) -> Duration {
        let total: u64 = self.counts.iter().sum();
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= q * total as f64 {
                return Duration::from_micros(Self::upper_bound(bucket));
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_counted_within_an_eighth_of_itself() {
        for micros in (0..100_000).chain([1 << 20, (1 << 20) + 1, u64::from(u32::MAX), 1 << 40]) {
            let bound = Histogram::upper_bound(Histogram::bucket(micros));
            assert!(bound >= micros && bound - micros <= micros / 8, "{micros} is counted as {bound}");
        }
    }

    #[test]
    fn quantiles_follow_the_values() {
        let mut recorder = Recorder::new(0);
        for micros in 1..=1000 {
            recorder.answered("a", Duration::from_micros(micros), 1);
        }
        let figures = recorder.figures(2);
        assert!((500..=562).contains(&figures.p50_us), "{}", figures.p50_us);
        assert!((990..=1023).contains(&figures.p99_us), "{}", figures.p99_us);
        assert_eq!(Recorder::new(0).figures(1).p99_us, 0);
    }

    #[test]
    fn intervals_add_up_to_the_whole() {
        let failure = |ended_ms| Failure { began_ms: ended_ms - 5, ended_ms, reason: "refused".into() };
        let (mut whole, mut part) = (Recorder::new(100), Recorder::new(100));
        let mut sum = Figures::default();
        for step in 1..=20 {
            let now = 100 + step * 10;
            for recorder in [&mut whole, &mut part] {
                recorder.answered(if step % 3 == 0 { "b" } else { "a" }, Duration::from_micros(50), now);
                if step % 7 == 0 {
                    recorder.failed(failure(now));
                }
            }
            if step % 5 == 0 {
                sum.add(&part.take(now));
            }
        }
        assert_eq!(sum, whole.figures(300));
        assert_eq!((sum.requests(), sum.failed), (22, 2));
        assert_eq!((sum.first_failure_ms, sum.last_failure_ms), (Some(170), Some(240)));
        assert_eq!(sum.backends["b"], Backend { answered: 6, first_ms: 130, last_ms: 280 });
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut recorder = Recorder::new(0);
        for number in 0..10_000 {
            recorder.answered(&format!("pod-{number}"), Duration::ZERO, number);
            recorder.failed(Failure { began_ms: number, ended_ms: number, reason: String::new() });
        }
        let figures = recorder.figures(10_000);
        assert_eq!((figures.answered, figures.failed), (10_000, 10_000));
        assert_eq!((figures.backends.len(), figures.failures.len()), (MAX_BACKENDS + 1, MAX_FAILURES));
        assert_eq!(figures.last_failure_ms, Some(9_999));
    }
}
