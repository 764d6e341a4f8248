//! Where a cluster keeps what outlives it, and who may use it.
//!
//! Invariant: one `portolan up` a data directory, and one a machine, since names of namespaces and cgroups are the
//! machine's. Both are locks that the kernel drops with their process, so no stale lock ever needs removing.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::plan::Ties;

pub(crate) const DEFAULT: &str = "/var/lib/portolan";
const MACHINE_LOCK: &str = "/run/portolan.lock";

/// Held for as long as the cluster runs.
pub(crate) struct Locks {
    _directory: Flock<File>,
    _machine: Flock<File>,
}

/// Takes both locks, or says who has them. Makes the directory, readable by its owner only.
pub(crate) fn lock(data_dir: &Path) -> Result<Locks> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
    let owner = format!("process {}, data directory {}", std::process::id(), data_dir.display());
    let directory = match take(&data_dir.join("lock"), &owner)? {
        Ok(lock) => lock,
        Err(holder) => bail!("a cluster already runs on {} ({holder})", data_dir.display()),
    };
    let machine = match take(Path::new(MACHINE_LOCK), &owner)? {
        Ok(lock) => lock,
        Err(holder) => bail!("another cluster runs on this machine ({holder}); stop it first, one machine holds one"),
    };
    Ok(Locks { _directory: directory, _machine: machine })
}

/// The machine's lock alone, for `clean`.
pub(crate) fn lock_machine() -> Result<impl Sized> {
    match take(Path::new(MACHINE_LOCK), &format!("process {}, cleaning", std::process::id()))? {
        Ok(lock) => Ok(lock),
        Err(holder) => bail!("a cluster runs on this machine ({holder}); stop it first"),
    }
}

fn take(path: &Path, owner: &str) -> Result<Result<Flock<File>, String>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open the lock {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(owner.as_bytes())?;
            Ok(Ok(lock))
        }
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            Ok(Err(holder))
        }
        Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn ties(data_dir: &Path) -> PathBuf {
    data_dir.join("cluster.json")
}

/// Refuses a plan that the state in the directory, if there is any, cannot be used with.
pub(crate) fn check_ties(data_dir: &Path, plan: &Ties) -> Result<()> {
    let path = ties(data_dir);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let made_with: Ties = serde_json::from_slice(&text).with_context(|| {
        format!("{} does not say what the cluster was made with; remove it if the flags are the same", path.display())
    })?;
    made_with.check(plan, &data_dir.display().to_string())
}

/// To be called when state is about to be made, and not before: a start that fails earlier ties nobody.
pub(crate) fn write_ties(data_dir: &Path, plan: &Ties) -> Result<()> {
    write_private(&ties(data_dir), &serde_json::to_vec_pretty(plan)?)
}

/// One node's own disk.
pub(crate) fn node(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join("nodes").join(name)
}

pub(crate) fn images(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let parent = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().context("a file needs a name")?;
    let draft = parent.join(format!(".{}.{}", name.display(), std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_its_holder_and_is_free_once_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = take(&path, "the first").unwrap().unwrap();
        assert_eq!(take(&path, "the second").unwrap().unwrap_err(), "the first");
        drop(held);
        assert!(take(&path, "the second").unwrap().is_ok());
    }
}
