//! `portolan demo`: the story of a Service, with real pods and real traffic, told and checked.
//!
//! A cluster is started as anybody would start one, and everything is done through its Kubernetes API; requests come
//! from pods and from a machine beyond the cluster, and every one of them is counted.
//!
//! Invariants: bounded in time; whatever happens, the cluster is stopped and its directory removed; the exit code is
//! zero only when every scene held and nothing was left behind.

mod cluster;
mod objects;
mod outside;
mod progress;
mod report;
mod scenes;
mod stage;
mod steady;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use self::cluster::Cluster;
use self::progress::Progress;
use self::report::SceneReport;
use self::stage::{Signals, Stage, World, now_ms};
use self::steady::SteadyLoad;
use crate::up::plan::NAMESPACE_PREFIX;

/// For the whole story; every step has a shorter deadline of its own.
const STORY_PATIENCE: Duration = Duration::from_secs(15 * 60);
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Leave the cluster up at the end, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Write the scenes' reports to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the demo; the exit code says whether every scene held.
pub(crate) async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => (),
            _ = terminate.recv() => (),
        }
    };
    let mut interrupted = std::pin::pin!(interrupted);

    let directory = tempfile::Builder::new().prefix("portolan-demo-").tempdir().context("cannot make a directory")?;
    let progress = Progress::new();
    let signals = Signals::new();
    let mut cluster = Cluster::new(directory.path().to_path_buf(), signals.clone())?;
    let mut reports = Vec::new();
    let told = tokio::select! {
        told = timeout(STORY_PATIENCE, tell(&mut cluster, signals, &progress, &mut reports)) => {
            Some(told.unwrap_or_else(|_| Err(anyhow!("the demo took longer than {STORY_PATIENCE:?}"))))
        }
        () = &mut interrupted => None,
    };
    progress.close();
    if !reports.is_empty() {
        println!("\n{}", report::table(&reports));
    }
    let written = arguments.json.as_deref().map_or(Ok(()), |file| write_json(file, &reports));
    if arguments.keep && told.is_some() && !reports.is_empty() {
        eprintln!("The cluster stays up until Ctrl-C: export KUBECONFIG={}", cluster.kubeconfig().display());
        interrupted.await;
    }
    eprintln!("Stopping the cluster.");
    let cleaned = cluster.stop().await.and_then(|()| nothing_left());
    written?;
    let Some(told) = told else {
        cleaned?;
        return Ok(ExitCode::from(INTERRUPTED));
    };
    told?;
    cleaned?;
    let held = reports.iter().filter(|report| report.ok).count();
    println!("{held} of {} scenes hold.", scenes::COUNT);
    Ok(if held == scenes::COUNT { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_json(file: &Path, reports: &[SceneReport]) -> Result<()> {
    let text = serde_json::to_vec_pretty(reports).context("cannot write the reports as JSON")?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// Starts the cluster and plays every scene on it.
async fn tell(
    cluster: &mut Cluster,
    signals: Signals,
    progress: &Progress,
    reports: &mut Vec<SceneReport>,
) -> Result<()> {
    progress.step("the cluster to start");
    let started_ms = now_ms();
    let ready = cluster.start().await?;
    progress.fact(&ready);
    let world = World::connect(&cluster.kubeconfig(), &signals).await?;
    let load = SteadyLoad::new(signals.clone(), progress.clone());
    let mut stage = Stage { cluster, world, load, progress: progress.clone(), signals, started_ms };
    scenes::play(&mut stage, |report| reports.push(report)).await;
    Ok(())
}

/// # Errors
/// When a namespace of the cluster is still there.
fn nothing_left() -> Result<()> {
    let Ok(namespaces) = std::fs::read_dir("/run/netns") else { return Ok(()) };
    let names = namespaces.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    let left: Vec<_> = names.filter(|name| name.starts_with(NAMESPACE_PREFIX)).collect();
    ensure!(left.is_empty(), "the cluster stopped but left namespaces behind: {}", left.join(", "));
    Ok(())
}
