//! Parts of volumes that containers write to -> mounts for one start of a container.
//!
//! Invariants: what a container does meanwhile, such as putting a link in the place of a directory, leads nowhere
//! outside of the volume: a part is found by the kernel below the volume's root, and what was found is what is mounted,
//! by its descriptor. What is mounted is never deleted: mount points are removed one by one, which a busy one refuses.
//! Source: `pkg/volume/util/subpath`; openat2(2).

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc::O_PATH;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Start, parts, place_of_part};

/// Mounts the parts that a start needs.
pub(super) fn mount_all(dir: &Path, start: &Start) -> Result<(), String> {
    for (index, part) in start.parts.iter().enumerate() {
        let failed = |error: io::Error| format!("failed to prepare subPath {:?}: {error}", part.path);
        let found = find(&part.volume, &part.path).map_err(failed)?;
        let place = place_of_part(dir, &start.id, index);
        mount_at(&found, &place).map_err(failed)?;
    }
    Ok(())
}

/// Unmounts what [`mount_all`] mounted, also in part.
pub(super) fn unmount_all(dir: &Path, id: &str) {
    let all = dir.join(parts(id));
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        let place = entry.path();
        let _ = umount2(&place, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&place).or_else(|_| fs::remove_file(&place));
    }
    let _ = fs::remove_dir(&all);
}

fn mount_at(found: &OwnedFd, place: &Path) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    let source = name(found);
    if fs::metadata(&source)?.is_dir() {
        fs::create_dir(place)?;
    } else {
        File::create_new(place)?;
    }
    Ok(mount(Some(&source), place, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

/// The way back to an open file.
fn name(file: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// What is at `path` below `volume`; directories that are missing are made, with the volume's own mode.
fn find(volume: &Path, path: &str) -> io::Result<OwnedFd> {
    let root = File::options().read(true).custom_flags(O_PATH).open(volume)?;
    let mode = root.metadata()?.permissions().mode() & 0o7777;
    let mut found: Option<OwnedFd> = None;
    let mut so_far = PathBuf::new();
    for part in Path::new(path) {
        so_far.push(part);
        found = Some(match below(&root, &so_far) {
            Err(Errno::ENOENT) => {
                let parent = found.as_ref().map_or_else(|| name(&root), name);
                match DirBuilder::new().mode(mode).create(parent.join(part)) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                    _ => {}
                }
                let made = below(&root, &so_far)?;
                // The mode above is less what the umask takes.
                fs::set_permissions(name(&made), Permissions::from_mode(mode))?;
                made
            }
            other => other?,
        });
    }
    found.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn below(root: &File, path: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn is(found: &OwnedFd, path: &Path) -> bool {
        fs::read_link(name(found)).unwrap() == path.canonicalize().unwrap()
    }

    #[test]
    fn parts_are_found_or_made_below_the_volume_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("outside"));
        for dir in [&volume, &outside] {
            fs::create_dir(dir).unwrap();
        }
        fs::set_permissions(&volume, Permissions::from_mode(0o777)).unwrap();
        let made = find(&volume, "a/b").unwrap();
        assert!(is(&made, &volume.join("a/b")));
        assert_eq!(fs::metadata(volume.join("a/b")).unwrap().permissions().mode() & 0o7777, 0o777);
        fs::write(volume.join("a/file"), "").unwrap();
        symlink("a/file", volume.join("link")).unwrap();
        assert!(is(&find(&volume, "link").unwrap(), &volume.join("a/file")));
        symlink(&outside, volume.join("absolute")).unwrap();
        symlink("../outside", volume.join("relative")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        for (path, errno) in [
            ("absolute", Errno::EXDEV),
            ("absolute/new", Errno::EXDEV),
            ("relative/new", Errno::EXDEV),
            ("../outside", Errno::EXDEV),
            ("magic/etc", Errno::EXDEV),
            ("a/file/new", Errno::ENOTDIR),
        ] {
            let error = find(&volume, path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno as i32), "{path}: {error}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
