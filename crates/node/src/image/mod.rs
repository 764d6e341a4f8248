//! Archives -> images that containers can start from.
//!
//! An image's layers are merged when it is imported: `rootfs/<id>` is its whole file tree, the single lower layer of
//! its containers' overlays. `images/<name>.json` says which id a name stands for, and how to run it.
//!
//! Invariant: what has a record in `images` is whole; both are put in place by one rename, so that any number of nodes
//! may read the store while it is added to. Deliberately not here: registries, and sharing files between images.

mod archive;
mod builtin;
mod reference;
mod unpack;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use reference::normalize;

/// The image made from the running binary.
pub const WORKLOAD: &str = "portolan/workload";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing} {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not an image archive: {reason}; make one with `docker save` or `skopeo copy … oci-archive:…`")]
    NotAnImage { path: PathBuf, reason: String },
    #[error("{path}: cannot unpack layer {layer}")]
    Layer {
        path: PathBuf,
        layer: String,
        #[source]
        source: io::Error,
    },
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, path: path.to_owned(), source }
}

/// How to run an image: what the record in `images` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The full name, as `docker.io/library/nginx:latest`.
    pub name: String,
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: Option<String>,
    /// Bytes of all its files.
    pub size: u64,
}

/// One image that an archive held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub name: String,
    pub id: String,
    /// The store had these files already.
    pub known: bool,
}

/// A directory of images, shared by all nodes of a machine.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the store in `dir`, making it if need be.
    ///
    /// # Errors
    /// When the directory can be neither read nor made.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let store = Self { dir: dir.to_owned() };
        for part in [store.records(), store.dir.join("rootfs"), store.dir.join("tmp")] {
            fs::create_dir_all(&part).map_err(failed("make", &part))?;
        }
        Ok(store)
    }

    /// A store that is only read, and may be on a read-only file system.
    #[must_use]
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where an image is when it is whole.
    pub(crate) fn records(&self) -> PathBuf {
        self.dir.join("images")
    }

    /// Adds every image in a `docker save` or OCI archive, plain or gzipped.
    ///
    /// # Errors
    /// When the archive cannot be read, is none, or does not fit; the images before the failing one stay.
    pub fn import(&self, archive: &Path) -> Result<Vec<Imported>, Error> {
        archive::import(self, archive)
    }

    /// Makes `portolan/workload` from a binary, unless it is there already, and gives it.
    ///
    /// # Errors
    /// When the binary or a library it needs cannot be read or linked.
    pub fn builtin(&self, binary: &Path) -> Result<Image, Error> {
        builtin::make(self, binary)
    }

    /// All images, in the order of their names.
    ///
    /// # Errors
    /// When the store cannot be read; a record that cannot be is left out.
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let records = self.records();
        let entries = fs::read_dir(&records).map_err(failed("read", &records))?;
        let read = |entry: fs::DirEntry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok();
        let mut images: Vec<Image> = entries.flatten().filter_map(read).collect();
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(images)
    }

    /// The image that a container's `image` field names, if it is here: by name, or by id.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Image> {
        if name.starts_with("sha256:") {
            return self.list().ok()?.into_iter().find(|image| image.id == name);
        }
        let name = normalize(name)?;
        serde_json::from_slice(&fs::read(self.record(&name)).ok()?).ok()
    }

    /// The image's files.
    #[must_use]
    pub fn rootfs(&self, image: &Image) -> PathBuf {
        self.dir.join("rootfs").join(image.id.trim_start_matches("sha256:"))
    }

    fn record(&self, name: &str) -> PathBuf {
        // A name may hold any character but this one.
        self.records().join(format!("{}.json", name.replace('/', "%")))
    }

    /// A new directory to prepare something in.
    fn scratch(&self) -> Result<Scratch, Error> {
        let tmp = self.dir.join("tmp");
        for number in 0u32.. {
            let path = tmp.join(format!("{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("make", &path)(error)),
            }
        }
        Err(failed("make", &tmp)(io::ErrorKind::AlreadyExists.into()))
    }

    /// Puts a prepared tree in its place; `true` if it was there before.
    fn place(&self, prepared: &Path, image: &Image) -> Result<bool, Error> {
        let rootfs = self.rootfs(image);
        match fs::rename(prepared, &rootfs) {
            Ok(()) => Ok(false),
            Err(_) if rootfs.is_dir() => Ok(true),
            Err(error) => Err(failed("put in place", &rootfs)(error)),
        }
    }

    fn record_image(&self, image: &Image) -> Result<(), Error> {
        let scratch = self.scratch()?;
        let new = scratch.0.join("record");
        let path = self.record(&image.name);
        let text = serde_json::to_vec_pretty(image).map_err(io::Error::from).map_err(failed("write", &new))?;
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("put in place", &path))
    }
}

/// Opens a file of an image, wherever the image's links lead within it.
pub(crate) fn open_file(rootfs: &fs::File, name: &Path) -> Option<fs::File> {
    use nix::fcntl::OFlag;
    let file = fs::File::from(unpack::open_in(rootfs, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok()?);
    file.metadata().is_ok_and(|metadata| metadata.is_file()).then_some(file)
}

/// Deleted when dropped, with whatever is still in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
