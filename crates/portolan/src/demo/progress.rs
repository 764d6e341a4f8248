//! What happens -> lines for a person: a live line on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::report::SceneReport;
use crate::workload::figures::Figures;

/// Everything goes to stderr; stdout is for the closing table.
#[derive(Clone)]
pub(super) struct Progress {
    /// `None` when nobody looks.
    live: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn new() -> Self {
        let live = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix}  {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { live }
    }

    fn line(&self, line: &str) {
        match &self.live {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub(super) fn scene(&self, number: u8, name: &str) {
        self.line(&format!("\n{number}. {name}"));
    }

    /// What is waited for now.
    pub(super) fn step(&self, step: &str) {
        match &self.live {
            Some(bar) => bar.set_prefix(step.to_owned()),
            None => eprintln!("   … {step}"),
        }
    }

    /// What turned out to be so.
    pub(super) fn fact(&self, fact: &str) {
        self.line(&format!("   {fact}"));
    }

    pub(super) fn load(&self, lately: &Figures) {
        if let Some(bar) = &self.live {
            bar.set_message(format!(
                "[front end: {} answered by {} backends, {} failed, p99 {:.1} ms]",
                lately.answered,
                lately.backends.len(),
                lately.failed,
                lately.p99_us as f64 / 1000.0
            ));
        }
    }

    pub(super) fn done(&self, report: &SceneReport) {
        for remark in &report.remarks {
            self.fact(remark);
        }
        for problem in &report.problems {
            self.fact(&format!("! {problem}"));
        }
        self.fact(&format!("{} requests, {} failed", report.requests, report.failures));
    }

    pub(super) fn close(&self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}
