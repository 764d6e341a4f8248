//! What a scene saw -> its report: did it hold, and in what figures.
//!
//! Invariants: a scene in which nothing was asked does not hold; a failure counts from its end, the moment somebody
//! would have noticed; nothing here decides what to wait for.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::workload::figures::{Failure, Figures};

/// How many failed requests a scene may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    None,
    /// Only within this time after the kill.
    Within(Duration),
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct SceneReport {
    pub(super) number: u8,
    pub(super) name: &'static str,
    pub(super) requests: u64,
    pub(super) failures: u64,
    /// From the kill to the end of the latest failed request.
    pub(super) failed_after_ms: Option<u64>,
    pub(super) time_to_converge_ms: Option<u64>,
    /// When the kill was, in milliseconds since the epoch, as the failures' times are.
    pub(super) killed_ms: Option<u64>,
    /// The first of them, as the clients told them.
    pub(super) failed_requests: Vec<Failure>,
    pub(super) ok: bool,
    /// Why it does not hold.
    pub(super) problems: Vec<String>,
    pub(super) remarks: Vec<String>,
}

/// A scene while it is played.
pub(super) struct Scene {
    limit: Limit,
    report: SceneReport,
}

impl Scene {
    pub(super) fn new(number: u8, name: &'static str, limit: Limit) -> Self {
        let report = SceneReport {
            number,
            name,
            requests: 0,
            failures: 0,
            failed_after_ms: None,
            time_to_converge_ms: None,
            killed_ms: None,
            failed_requests: Vec::new(),
            ok: false,
            problems: Vec::new(),
            remarks: Vec::new(),
        };
        Self { limit, report }
    }

    pub(super) fn killed_at(&mut self, ms: u64) {
        self.report.killed_ms = Some(ms);
    }

    pub(super) fn converged_after(&mut self, ms: u64) {
        self.report.time_to_converge_ms = Some(ms);
    }

    pub(super) fn remark(&mut self, remark: impl Into<String>) {
        self.report.remarks.push(remark.into());
    }

    /// Something that must not be so.
    pub(super) fn problem(&mut self, problem: impl Into<String>) {
        self.report.problems.push(problem.into());
    }

    /// Takes requests into account that were part of this scene.
    pub(super) fn count(&mut self, who: &str, figures: &Figures) {
        let report = &mut self.report;
        report.requests += figures.requests();
        report.failures += figures.failed;
        if figures.skipped > 0 {
            report.remarks.push(format!("{who} left {} requests out: too many were waiting", figures.skipped));
        }
        if figures.answered == 0 {
            report.problems.push(format!("{who} got no answer at all"));
        }
        let killed_ms = report.killed_ms;
        let after_kill = |ms: u64| killed_ms.map(|kill| ms.saturating_sub(kill));
        report.failed_requests.extend(figures.failures.iter().cloned());
        report.failed_after_ms = report.failed_after_ms.max(figures.last_failure_ms.and_then(after_kill));
        let late = match (self.limit, figures.last_failure_ms.and_then(after_kill)) {
            (Limit::Within(limit), Some(after)) => u128::from(after) > limit.as_millis(),
            _ => figures.failed > 0,
        };
        if late {
            let worst = figures.failures.last().map_or("", |failure| failure.reason.as_str());
            let when = report.failed_after_ms.map(|ms| format!(", the latest {} after the kill", seconds(ms)));
            report.problems.push(format!(
                "{who}: {} of {} requests failed{} ({worst})",
                figures.failed,
                figures.requests(),
                when.unwrap_or_default()
            ));
        }
    }

    pub(super) fn finish(mut self) -> SceneReport {
        if self.report.requests == 0 {
            self.problem("no request was made");
        }
        self.report.ok = self.report.problems.is_empty();
        self.report
    }

    /// The report of a scene that did not come to its end.
    pub(super) fn broken_off(mut self, reason: String) -> SceneReport {
        self.problem(reason);
        self.report
    }
}

/// Each backend's share of the answers, by name.
pub(super) fn shares(figures: &Figures) -> Vec<(&str, f64)> {
    let total = figures.backends.values().map(|backend| backend.answered).sum::<u64>().max(1);
    let share = |answered| 100.0 * answered as f64 / total as f64;
    figures.backends.iter().map(|(name, backend)| (name.as_str(), share(backend.answered))).collect()
}

pub(super) fn seconds(ms: u64) -> String {
    format!("{}.{:02} s", ms / 1000, ms % 1000 / 10)
}

/// The closing table.
pub(super) fn table(reports: &[SceneReport]) -> String {
    let width = reports.iter().map(|report| report.name.chars().count()).max().unwrap_or(0).max(5);
    let mut text = format!(
        "#  {:<width$}  {:>8}  {:>6}  {:>12}  {:>9}\n",
        "scene", "requests", "failed", "last failure", "converged"
    );
    let time = |ms: Option<u64>| ms.map_or_else(|| "–".to_owned(), seconds);
    for report in reports {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}  {:<width$}  {:>8}  {:>6}  {:>12}  {:>9}  {}",
            report.number,
            report.name,
            report.requests,
            report.failures,
            time(report.failed_after_ms),
            time(report.time_to_converge_ms),
            if report.ok { "holds" } else { "FAILS" }
        );
        for problem in &report.problems {
            let _ = writeln!(text, "   ! {problem}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::workload::figures::Recorder;

    fn figures(answered: u64, failed_at: &[u64]) -> Figures {
        let mut recorder = Recorder::new(1000);
        for number in 0..answered {
            recorder.answered(["a", "b", "c"][usize::try_from(number % 3).unwrap()], Duration::from_millis(1), 1001);
        }
        for at in failed_at {
            recorder.failed(Failure { began_ms: at - 10, ended_ms: *at, reason: "refused".into() });
        }
        recorder.figures(20_000)
    }

    fn play(limit: Limit, kill_ms: Option<u64>, seen: &[Figures]) -> SceneReport {
        let mut scene = Scene::new(2, "a pod is killed", limit);
        if let Some(kill_ms) = kill_ms {
            scene.killed_at(kill_ms);
        }
        seen.iter().for_each(|figures| scene.count("the front end", figures));
        scene.finish()
    }

    #[test]
    fn verdicts() {
        let within = Limit::Within(Duration::from_secs(3));
        let cases = [
            ("nothing failed", Limit::None, None, vec![figures(9, &[])], true),
            ("one failed", Limit::None, None, vec![figures(9, &[1500])], false),
            ("one failed in the second load", Limit::None, None, vec![figures(9, &[]), figures(9, &[1500])], false),
            ("nothing was asked", Limit::None, None, vec![], false),
            ("a load without an answer", Limit::None, None, vec![figures(9, &[]), figures(0, &[])], false),
            ("failed in time", within, Some(2000), vec![figures(9, &[2100, 5000])], true),
            ("failed late", within, Some(2000), vec![figures(9, &[2100, 5001])], false),
            ("failed before the kill", within, Some(2000), vec![figures(9, &[1900])], true),
            ("failed, but nothing was killed", within, None, vec![figures(9, &[1900])], false),
        ];
        for (case, limit, kill_ms, seen, holds) in cases {
            let report = play(limit, kill_ms, &seen);
            assert_eq!(report.ok, holds, "{case}: {:?}", report.problems);
        }
        assert_eq!(play(within, Some(2000), &[figures(9, &[2100, 5000])]).failed_after_ms, Some(3000));
    }

    #[test]
    fn a_broken_off_scene_fails() {
        let mut scene = Scene::new(1, "x", Limit::None);
        scene.count("the front end", &figures(9, &[]));
        assert!(!scene.broken_off("waited 30s for a node; saw none".into()).ok);
    }

    #[test]
    fn shares_add_up() {
        let figures = figures(9, &[]);
        assert_eq!(shares(&figures).iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!((shares(&figures).iter().map(|(_, share)| share).sum::<f64>() - 100.0).abs() < 1e-9);
        assert!(shares(&Figures::default()).is_empty());
    }

    #[test]
    fn the_table_names_what_failed() {
        let mut good = play(Limit::None, None, &[figures(300, &[])]);
        good.time_to_converge_ms = Some(1234);
        let bad = play(Limit::Within(Duration::from_secs(3)), Some(2000), &[figures(9, &[9000])]);
        expect![[r#"
            #  scene            requests  failed  last failure  converged
            2  a pod is killed       300       0             –     1.23 s  holds
            2  a pod is killed        10       1        7.00 s          –  FAILS
               ! the front end: 1 of 10 requests failed, the latest 7.00 s after the kill (refused)
        "#]]
        .assert_eq(&table(&[good, bad]));
    }
}
