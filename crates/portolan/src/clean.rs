//! `portolan clean`: removes what a cluster that was killed left on this machine. Its data directory stays.

use anyhow::Result;

use crate::up::{cgroup, data_dir, fabric};

pub(crate) async fn run() -> Result<()> {
    let _lock = data_dir::lock_machine()?;
    let removed = sweep().await?;
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for thing in removed {
        println!("removed {thing}");
    }
    Ok(())
}

/// Processes first, since they hold the rest. Node and pod mounts need no removing: they were made in the nodes' own
/// mount namespaces and went with the last process in them.
pub(crate) async fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let (processes, directories) = tokio::task::spawn_blocking(cgroup::sweep).await??;
    if processes > 0 {
        removed.push(format!("{processes} processes"));
    }
    if directories > 0 {
        removed.push(format!("{directories} cgroups"));
    }
    removed.extend(fabric::sweep().await?);
    Ok(removed)
}
