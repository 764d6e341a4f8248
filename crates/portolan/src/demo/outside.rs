//! The machine beyond the cluster: programs run in the namespace `portolan-outside`.
//!
//! A child is started from a thread that has entered the namespace: a child inherits its parent thread's network, so
//! no code runs between fork and exec.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::up::plan::OUTSIDE_NAMESPACE;
use crate::workload::figures::Figures;

/// The namespace's file.
fn namespace() -> Result<File> {
    let path = Path::new("/run/netns").join(OUTSIDE_NAMESPACE);
    File::open(&path).with_context(|| format!("cannot open the namespace {}", path.display()))
}

/// Runs `act` in the namespace, on a thread of its own.
fn inside<T: Send>(namespace: &File, act: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
    let runtime = tokio::runtime::Handle::current();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
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
    inside(&namespace()?, own_address)
}

fn own_address() -> io::Result<Ipv4Addr> {
    let mut interfaces = nix::ifaddrs::getifaddrs()?;
    let address = interfaces.find_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        (!address.is_loopback()).then_some(address)
    });
    address.ok_or_else(|| io::Error::other("it has no IPv4 address"))
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
    inside(&namespace()?, move || command.spawn())
}

/// Runs the load client there to its end.
pub(super) async fn load(program: &Path, arguments: &[String], patience: Duration) -> Result<Figures> {
    let mut command = workload(program, arguments);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = inside(&namespace()?, move || command.spawn())?;
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

#[cfg(test)]
mod tests {
    use portolan_testkit::{Netns, require_root};

    use super::*;

    #[tokio::test]
    async fn children_live_in_the_namespace_and_this_process_stays_where_it_is() {
        require_root!();
        let here = std::fs::read_link("/proc/self/ns/net").unwrap();
        let elsewhere = Netns::new();
        elsewhere.address("lo", "192.0.2.2/32".parse().unwrap());
        let spawn = || Command::new("readlink").arg("/proc/self/ns/net").stdout(Stdio::piped()).spawn();
        let child = inside(elsewhere.file(), spawn).unwrap();
        let output = child.wait_with_output().await.unwrap().stdout;
        let there = elsewhere.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap());
        assert_eq!(String::from_utf8(output).unwrap().trim(), there.to_str().unwrap());
        assert_ne!(there, here);
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), here);
        assert_eq!(inside(elsewhere.file(), own_address).unwrap().to_string(), "192.0.2.2");
        assert!(inside(Netns::new().file(), own_address).is_err());
    }

    #[test]
    fn only_a_summary_is_one() {
        let line = serde_json::to_string(&Figures { answered: 7, ..Figures::default() }).unwrap();
        let last = serde_json::to_string(&Figures { answered: 9, summary: true, ..Figures::default() }).unwrap();
        assert_eq!(summary(&format!("{line}\n{last}\n")).map(|figures| figures.answered), Some(9));
        assert_eq!(summary(&line), None);
        assert_eq!(summary("no answer within 5s"), None);
    }
}
