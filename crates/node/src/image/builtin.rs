//! The running binary -> the image `portolan/workload`, with the loader and the libraries it was linked with.
//!
//! Files are hard links where the store is on the binary's file system, so the image costs next to nothing. Made once
//! for each build: the id is taken from the binary's inode, size and time. Deliberately not here: libraries that are
//! opened while running, which the binary has none of.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Error, Image, Store, WORKLOAD, failed, normalize};

/// Where the binary stands in the image.
const BINARY: &str = "/portolan";
const PT_INTERP: u32 = 3;

pub(super) fn make(store: &Store, binary: &Path) -> Result<Image, Error> {
    let metadata = fs::metadata(binary).map_err(failed("read", binary))?;
    let identity = format!(
        "{} {} {} {} {}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let digest = ring::digest::digest(&ring::digest::SHA256, identity.as_bytes());
    let image = Image {
        name: normalize(WORKLOAD).unwrap_or_default(),
        id: format!("sha256:{}", digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
        entrypoint: vec![BINARY.to_owned(), "workload".to_owned()],
        size: metadata.size(),
        ..Image::default()
    };
    if store.get(WORKLOAD).is_some_and(|known| known == image) && store.rootfs(&image).is_dir() {
        return Ok(image);
    }
    let scratch = store.scratch()?;
    let tree = scratch.0.join("tree");
    for directory in ["", "etc", "tmp", "proc", "sys", "dev"] {
        let path = tree.join(directory);
        fs::create_dir(&path).map_err(failed("make", &path))?;
    }
    let tmp = tree.join("tmp");
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(failed("change", &tmp))?;
    let passwd = tree.join("etc/passwd");
    fs::write(&passwd, "root:x:0:0:root:/:/portolan\n").map_err(failed("write", &passwd))?;
    put(binary, &tree, Path::new(BINARY))?;
    for library in libraries(binary).map_err(failed("read the libraries of", binary))? {
        put(&library, &tree, &library)?;
        put_names(&library, &tree)?;
    }
    if let Some(loader) = interpreter(binary).map_err(failed("read", binary))? {
        let real = fs::canonicalize(&loader).map_err(failed("find", &loader))?;
        put(&real, &tree, &real)?;
        if real != loader {
            link(&tree, &loader, &real)?;
        }
    }
    store.place(&tree, &image)?;
    store.record_image(&image)?;
    Ok(image)
}

fn inside(tree: &Path, path: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_parent(path: &Path) -> Result<(), Error> {
    path.parent().map_or(Ok(()), |parent| fs::create_dir_all(parent).map_err(failed("make", parent)))
}

/// Links `file` to where the image has it, or copies it.
fn put(file: &Path, tree: &Path, target: &Path) -> Result<(), Error> {
    let target = inside(tree, target);
    make_parent(&target)?;
    if target.exists() {
        return Ok(());
    }
    // `/proc/self/exe` is a link itself; the file it leads to is meant.
    let file = fs::canonicalize(file).map_err(failed("find", file))?;
    fs::hard_link(&file, &target)
        .or_else(|_| fs::copy(&file, &target).map(drop))
        .map_err(failed("copy into the image", &file))
}

fn link(tree: &Path, name: &Path, target: &Path) -> Result<(), Error> {
    let path = inside(tree, name);
    make_parent(&path)?;
    match symlink(target, &path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed("make", &path)(error)),
        _ => Ok(()),
    }
}

/// The other names a library has in its directory: the loader looks for `libc.so.6`, which may be a link to a file
/// that carries its version in its name.
fn put_names(library: &Path, tree: &Path) -> Result<(), Error> {
    let Some(directory) = library.parent() else { return Ok(()) };
    for entry in fs::read_dir(directory).map_err(failed("read", directory))?.flatten() {
        let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
        if is_link && fs::canonicalize(entry.path()).is_ok_and(|real| real == library) {
            link(tree, &entry.path(), library)?;
        }
    }
    Ok(())
}

/// Files with `.so` in their names that this very program has mapped, if `binary` is it and is dynamically linked.
fn libraries(binary: &Path) -> io::Result<BTreeSet<PathBuf>> {
    if interpreter(binary)?.is_none() {
        return Ok(BTreeSet::new());
    }
    let maps = fs::read("/proc/self/maps")?;
    let paths = maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let path = &line[line.iter().position(|byte| *byte == b'/')?..];
        Some(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())))
    });
    let is_library = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
    Ok(paths.filter(is_library).collect())
}

/// The loader that an ELF binary names; `None` for a static one.
fn interpreter(binary: &Path) -> io::Result<Option<PathBuf>> {
    let mut file = File::open(binary)?;
    let mut header = [0; 64];
    file.read_exact(&mut header)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "not a 64-bit little-endian ELF file"));
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    let (offset, size, count) = (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    for index in 0..count {
        let mut entry = [0; 56];
        file.seek(SeekFrom::Start(offset + index * size))?;
        file.read_exact(&mut entry)?;
        if number(&entry[..4]) == u64::from(PT_INTERP) {
            file.seek(SeekFrom::Start(number(&entry[8..16])))?;
            let mut name = Vec::new();
            file.take(number(&entry[32..40]).min(4096)).read_to_end(&mut name)?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            return Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(name))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_image_holds_the_binary_and_what_it_is_linked_with() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let image = store.builtin(Path::new("/proc/self/exe")).unwrap();
        let root = store.rootfs(&image);
        let size = |path: &Path| fs::metadata(path).unwrap().len();
        assert_eq!(size(&root.join("portolan")), size(Path::new("/proc/self/exe")));
        if let Some(loader) = interpreter(Path::new("/proc/self/exe")).unwrap() {
            assert!(inside(&root, &loader).symlink_metadata().is_ok());
        }
        assert_eq!(store.get("portolan/workload"), Some(image.clone()));
        assert_eq!(store.builtin(Path::new("/proc/self/exe")).unwrap(), image);
    }
}
