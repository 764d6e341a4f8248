//! A layer (a tar of changes) -> the directory it is applied to.
//!
//! Invariant: nothing outside the directory is read or written, whatever the archive says. Names are resolved by the
//! kernel with the directory as root (`openat2`, RESOLVE_IN_ROOT), so a symbolic link that an archive brings along
//! leads nowhere else; the last part of a name is never followed. Source: the OCI image specification, "layer".
//!
//! Deliberately not here: device nodes (containers get their own `/dev`), and extended attributes but file
//! capabilities.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, mkfifo, symlinkat, unlinkat};
use tar::EntryType;

const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";
/// Directories nested deeper than this are an attack on whoever walks them.
const MAX_DEPTH: usize = 256;

/// Applies a layer; gives the bytes of the files it wrote. `owners` keeps the archive's users and groups.
pub(super) fn unpack(layer: impl Read, root: &File, owners: bool) -> io::Result<u64> {
    let mut archive = tar::Archive::new(layer);
    let mut written = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", name.display()));
        written += apply(&mut entry, &name, root, owners).map_err(named)?;
    }
    Ok(written)
}

fn apply<R: Read>(entry: &mut tar::Entry<'_, R>, name: &Path, root: &File, owners: bool) -> io::Result<u64> {
    let Some((parent, last)) = split(name)? else { return Ok(0) };
    let parent = directory(root, &parent)?;
    let text = last.to_string_lossy();
    if text == OPAQUE {
        return clear(&parent).map(|()| 0);
    }
    if let Some(hidden) = text.strip_prefix(WHITEOUT) {
        // `.wh...` would otherwise name the directory itself, or the one above.
        return match hidden {
            "" | "." | ".." => Err(invalid("a whiteout of nothing")),
            hidden => remove(&parent, OsStr::new(hidden)).map(|()| 0),
        };
    }
    let header = entry.header().clone();
    let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
    let mut size = 0;
    match header.entry_type() {
        EntryType::Directory => match mkdirat(&parent, last.as_os_str(), Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) if is_directory(&parent, &last) => {}
            Err(Errno::EEXIST) => {
                remove(&parent, &last)?;
                mkdirat(&parent, last.as_os_str(), Mode::S_IRWXU)?;
            }
            Err(error) => return Err(error.into()),
        },
        EntryType::Symlink => {
            remove(&parent, &last)?;
            let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
            symlinkat(OsStr::from_bytes(&target), &parent, last.as_os_str())?;
        }
        EntryType::Link => {
            let target = entry.link_name_bytes().ok_or_else(|| invalid("a link to nothing"))?;
            let target = PathBuf::from(OsString::from_vec(target.into_owned()));
            let Some((from, file)) = split(&target)? else { return Err(invalid("a link to the root")) };
            let from = directory(root, &from)?;
            remove(&parent, &last)?;
            linkat(&from, file.as_os_str(), &parent, last.as_os_str(), LinkatFlags::empty())?;
            // The metadata is the target's.
            return Ok(0);
        }
        EntryType::Fifo => {
            remove(&parent, &last)?;
            mkfifo(&proc_path(&parent).join(&last), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            remove(&parent, &last)?;
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = nix::fcntl::openat(&parent, last.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            size = io::copy(entry, &mut File::from(file))?;
        }
        // Headers that describe other entries, and device nodes.
        _ => return Ok(0),
    }
    set_metadata(entry, &parent, &last, mode, owners)?;
    Ok(size)
}

fn set_metadata<R: Read>(
    entry: &mut tar::Entry<'_, R>,
    parent: &OwnedFd,
    last: &OsStr,
    mode: Mode,
    owners: bool,
) -> io::Result<()> {
    let header = entry.header().clone();
    let symlink = header.entry_type() == EntryType::Symlink;
    if owners {
        let id = |id: u64| u32::try_from(id).map_err(|_| invalid("an owner beyond 32 bits"));
        let (uid, gid) = (Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?));
        fchownat(parent, last, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if !symlink {
        // After the owner, because changing that takes set-user-id bits away. The last part is not a link: it was
        // made above, in a directory only this process writes to.
        fchmodat(parent, last, mode, FchmodatFlags::FollowSymlink)?;
    }
    if header.entry_type() == EntryType::Regular {
        let capabilities = entry.pax_extensions()?.into_iter().flatten().flatten().find_map(|field| {
            (field.key_bytes() == b"SCHILY.xattr.security.capability").then(|| field.value_bytes().to_vec())
        });
        if let Some(capabilities) = capabilities {
            set_capabilities(&proc_path(parent).join(last), &capabilities)?;
        }
    }
    let time = TimeSpec::new(i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), 0);
    utimensat(parent, last, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

#[allow(unsafe_code, reason = "nix has no wrapper for extended attributes")]
fn set_capabilities(path: &Path, value: &[u8]) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end with NUL, and `value` is as long as is said.
    let done = unsafe {
        libc::lsetxattr(path.as_ptr(), c"security.capability".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The directory part and the last part of a name; `None` for the root itself.
fn split(name: &Path) -> io::Result<Option<(PathBuf, OsString)>> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for part in name.components() {
        match part {
            Component::Normal(part) => parts.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a name with `..` in it")),
        }
    }
    if parts.len() > MAX_DEPTH {
        return Err(invalid("a name with too many parts"));
    }
    let Some(last) = parts.pop() else { return Ok(None) };
    Ok(Some((parts.iter().collect(), last.to_owned())))
}

/// Opens a directory below `root`, following links as if `root` were `/`, and making what is missing.
fn directory(root: &File, path: &Path) -> io::Result<OwnedFd> {
    match open_in(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
        Err(Errno::ENOENT) => {
            let Some((parent, last)) = split(path)? else { return Err(Errno::ENOENT.into()) };
            let parent = directory(root, &parent)?;
            match mkdirat(&parent, last.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => Ok(open_in(root, path, OFlag::O_PATH | OFlag::O_DIRECTORY)?),
                Err(error) => Err(error.into()),
            }
        }
        other => Ok(other?),
    }
}

/// Opens what is at `path` below `root`, wherever links lead within it.
pub(super) fn open_in(root: &File, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root.as_fd(), path, how)
}

fn is_directory(parent: &OwnedFd, name: &OsStr) -> bool {
    std::fs::symlink_metadata(proc_path(parent).join(name)).is_ok_and(|metadata| metadata.is_dir())
}

/// A path to an open directory, for calls that take no directory.
fn proc_path(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Removes a file, or a directory with all that is in it. Links in it are removed and not followed.
fn remove(parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(Errno::EISDIR) => std::fs::remove_dir_all(proc_path(parent).join(name)),
        Err(error) => Err(error.into()),
    }
}

fn clear(directory: &OwnedFd) -> io::Result<()> {
    for entry in std::fs::read_dir(proc_path(directory))? {
        remove(directory, &entry?.file_name())?;
    }
    Ok(())
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    enum Item<'a> {
        File(&'a str, &'a str),
        Dir(&'a str),
        Symlink(&'a str, &'a str),
        Hard(&'a str, &'a str),
    }
    use Item::{Dir, File as Text, Hard, Symlink};

    /// Written by hand, because a well-behaved writer refuses the names that matter here.
    fn layer(items: &[Item<'_>]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for item in items {
            let (name, kind, link, body) = match item {
                Text(name, body) => (name, EntryType::Regular, "", *body),
                Dir(name) => (name, EntryType::Directory, "", ""),
                Symlink(name, target) => (name, EntryType::Symlink, *target, ""),
                Hard(name, target) => (name, EntryType::Link, *target, ""),
            };
            let mut header = tar::Header::new_gnu();
            let old = header.as_old_mut();
            old.name[..name.len()].copy_from_slice(name.as_bytes());
            old.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(kind);
            header.set_mode(0o755);
            header.set_size(body.len() as u64);
            header.set_cksum();
            builder.append(&header, body.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("root")).unwrap();
            fs::write(dir.path().join("outside"), "untouched").unwrap();
            Self { dir }
        }

        fn root(&self) -> PathBuf {
            self.dir.path().join("root")
        }

        fn apply(&self, items: &[Item<'_>]) -> io::Result<u64> {
            unpack(layer(items).as_slice(), &File::open(self.root()).unwrap(), false)
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.root().join(name)).ok()
        }

        /// Nothing but what was there is outside the root.
        fn check_outside(&self) {
            let mut names: Vec<_> =
                fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["outside", "root"]);
            assert_eq!(fs::read_to_string(self.dir.path().join("outside")).unwrap(), "untouched");
        }
    }

    #[test]
    fn layers_add_replace_and_hide() {
        let tree = Tree::new();
        let first = [Text("etc/a", "1"), Text("etc/b", "1"), Dir("keep/"), Text("keep/x", "1"), Text("gone/x", "1")];
        assert_eq!(tree.apply(&first).unwrap(), 4);
        tree.apply(&[
            Text("etc/a", "2"),
            Text("etc/.wh.b", ""),
            Dir("keep"),
            Text("gone/.wh..wh..opq", ""),
            Text("gone/y", "2"),
            Symlink("link", "etc/a"),
            Hard("hard", "etc/a"),
        ])
        .unwrap();
        let read = |name: &str| tree.read(name);
        assert_eq!((read("etc/a").as_deref(), read("etc/b"), read("keep/x").as_deref()), (Some("2"), None, Some("1")));
        assert_eq!((read("gone/x"), read("gone/y").as_deref(), read("link").as_deref()), (None, Some("2"), Some("2")));
        assert_eq!(fs::metadata(tree.root().join("hard")).unwrap().nlink(), 2);
        assert_eq!(fs::metadata(tree.root().join("etc/a")).unwrap().permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_later_layer_writes_through_a_link_within_the_image() {
        let tree = Tree::new();
        tree.apply(&[Dir("usr/lib"), Symlink("lib", "/usr/lib")]).unwrap();
        tree.apply(&[Text("lib/x", "1")]).unwrap();
        assert_eq!(tree.read("usr/lib/x").as_deref(), Some("1"));
    }

    #[test]
    fn no_name_leads_out() {
        for bad in [
            &[Text("../escaped", "x")][..],
            &[Text("a/../../escaped", "x")],
            &[Hard("x", "../outside")],
            &[Text(".wh...", "")],
        ] {
            let tree = Tree::new();
            assert!(tree.apply(bad).is_err());
            tree.check_outside();
        }
        // These are harmless where they land: inside.
        for odd in [
            &[Text("/escaped", "x")][..],
            &[Symlink("up", "../.."), Text("up/escaped", "x")],
            &[Symlink("up", "../outside"), Text("up", "x")],
            &[Symlink("up", ".."), Text("up/.wh.outside", "")],
            &[Symlink("up", ".."), Text("up/.wh..wh..opq", "")],
        ] {
            let tree = Tree::new();
            tree.apply(odd).unwrap();
            tree.check_outside();
        }
    }

    #[test]
    fn a_hard_link_to_a_link_does_not_reach_what_that_points_to() {
        let tree = Tree::new();
        let _ = tree.apply(&[Symlink("s", "../outside"), Hard("h", "s"), Text("h", "x")]);
        tree.check_outside();
    }

    #[test]
    fn removing_a_directory_does_not_follow_links_in_it() {
        let tree = Tree::new();
        tree.apply(&[Dir("d")]).unwrap();
        symlink(tree.dir.path(), tree.root().join("d/out")).unwrap();
        tree.apply(&[Text("d", "a file now")]).unwrap();
        tree.check_outside();
        assert_eq!(tree.read("d").as_deref(), Some("a file now"));
    }
}
