//! The machine beyond the cluster: programs run in the namespace `portolan-outside`.
//!
//! A child is started from a thread that has entered the namespace: a child inherits its parent thread's network, so
//! no code runs between fork and exec.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::up::plan::OUTSIDE_NAMESPACE;
use crate::workload::figures::Figures;

/// Runs `act` in the namespace, on a thread of its own.
fn inside<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
    let path = PathBuf::from("/run/netns").join(OUTSIDE_NAMESPACE);
    let namespace = File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))?;
    let runtime = tokio::runtime::Handle::current();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            let _runtime = runtime.enter();
            act()
        });
        thread.join()
    });
    match result {
        Ok(result) => result.with_context(|| format!("cannot do that in the namespace {OUTSIDE_NAMESPACE}")),
        Err(_) => bail!("a thread in the namespace {OUTSIDE_NAMESPACE} panicked"),
    }
}

/// The machine's address on the nodes' network.
pub(super) fn address() -> Result<Ipv4Addr> {
    inside(|| {
        let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
            let address = *interface.address?.as_sockaddr_in()?;
            Some(address.ip())
        });
        addresses.into_iter().find(|ip| !ip.is_loopback()).ok_or_else(|| io::Error::other("it has no IPv4 address"))
    })
}

fn workload(program: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    command.arg("workload").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Starts a workload there; it ends when the handle is dropped.
pub(super) fn start(program: &Path, arguments: &[String]) -> Result<Child> {
    let mut command = workload(program, arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    inside(move || command.spawn())
}

/// Runs the load client there to its end.
pub(super) async fn load(program: &Path, arguments: &[String], patience: Duration) -> Result<Figures> {
    let mut command = workload(program, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside(move || command.spawn())?;
    let output = timeout(patience, child.wait_with_output())
        .await
        .with_context(|| format!("the client outside was not done within {patience:?}"))?
        .context("cannot read what the client outside said")?;
    summary(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("the client outside failed: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// The last line of what a load client printed.
pub(super) fn summary(output: &str) -> Option<Figures> {
    let figures: Figures = serde_json::from_str(output.lines().last()?).ok()?;
    figures.summary.then_some(figures)
}
