//! The built object -> programs attached to a cgroup, kept there by pinned links.
//!
//! Invariants: whoever comes next adopts the maps as they are and puts its programs behind the links that are there, so
//! that every socket meets either the old program or the new one. A build with another layout of the maps has a
//! directory and links of its own, and the old ones go on until the new are complete; a socket that meets both takes no
//! harm, because what one has translated is nothing to the other.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, Program};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

use super::{Capacity, Error, SockConfig, link, wire};

/// `bpf/sock.c`, built as `bpf/build` says; CI proves that it is.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bpf/sock.o"));

const LINKS: &str = "links";
/// Follows the name of a link that has not taken its predecessor's place yet.
const NEW: &str = "_new";

/// The directory of this build's maps and links. A name on a BPF file system has no dot.
pub(super) fn directory(config: &SockConfig) -> PathBuf {
    let Capacity { frontends, backends, connections } = config.capacity;
    config.pin_dir.join(format!("v{}-{frontends}-{backends}-{connections}", wire::LAYOUT))
}

/// Makes or adopts the maps, and attaches the programs. Gives the links that keep them there.
pub(super) fn attach(config: &SockConfig) -> Result<Vec<PathBuf>, Error> {
    let cgroup = open_cgroup(&config.cgroup)?;
    let directory = directory(config);
    let links = directory.join(LINKS);
    make_on_bpffs(&config.pin_dir, &links)?;
    let rooms = config.capacity.rooms();
    let mut loader = EbpfLoader::new();
    for (map, room) in rooms {
        loader.map_pin_path(map, directory.join(map));
        if let Some(room) = room {
            loader.map_max_entries(map, room);
        }
    }
    let mut places = Vec::new();
    let mut object = loader.load(OBJECT).map_err(|error| Error::Load(Box::new(error)))?;
    for (name, program) in object.programs_mut() {
        let failed = |source| Error::Attach { program: name.to_owned(), path: config.cgroup.clone(), source };
        let place = links.join(name);
        load(program).map_err(failed)?;
        let descriptor = program.fd().map_err(|error| failed(error.into()))?;
        if !link::replace(&place, &cgroup, descriptor).map_err(|error| failed(error.into()))? {
            let new = links.join(format!("{name}{NEW}"));
            // A predecessor may have died between the two steps below.
            remove_file(&new)?;
            let link = attach_one(program, &cgroup).map_err(failed)?;
            link.pin(&new).map_err(|error| failed(error.into()))?;
            fs::rename(&new, &place).map_err(|source| Error::File { path: place.clone(), source })?;
        }
        places.push(place);
    }
    Ok(places)
}

type Refused = Box<dyn std::error::Error + Send + Sync>;

fn load(program: &mut Program) -> Result<(), Refused> {
    match program {
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        _ => return Err("a program of a kind that is not known here".into()),
    }
    Ok(())
}

fn attach_one(program: &mut Program, cgroup: &File) -> Result<FdLink, Refused> {
    // A link never excludes others, whatever the mode says.
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(program) => {
            let link = program.attach(cgroup, mode)?;
            program.take_link(link)?.try_into()?
        }
        Program::CgroupSock(program) => {
            let link = program.attach(cgroup, mode)?;
            program.take_link(link)?.try_into()?
        }
        Program::SockOps(program) => {
            let link = program.attach(cgroup, mode)?;
            program.take_link(link)?.try_into()?
        }
        _ => return Err("a program of a kind that is not known here".into()),
    })
}

fn open_cgroup(path: &Path) -> Result<File, Error> {
    let file = File::open(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    match statfs(path) {
        Ok(filesystem) if filesystem.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(file),
        _ => Err(Error::NoCgroup { path: path.to_owned() }),
    }
}

fn make_on_bpffs(top: &Path, directory: &Path) -> Result<(), Error> {
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|filesystem| filesystem.filesystem_type() == BPF_FS_MAGIC);
    let existing = top.ancestors().find(|path| path.exists());
    if !existing.is_some_and(is_bpffs) {
        return Err(Error::NoBpfFs { path: top.to_owned() });
    }
    fs::create_dir_all(directory).map_err(|source| Error::File { path: directory.to_owned(), source })
}

/// Takes away what builds with other layouts have left, or with `None` all that there is. The maps go with their last
/// program; connections go on.
pub(super) fn remove(pin_dir: &Path, except: Option<&Path>) -> Result<(), Error> {
    for directory in entries(pin_dir)? {
        if except == Some(&*directory) {
            continue;
        }
        // Programs first: without them the maps are nobody's.
        for link in entries(&directory.join(LINKS))? {
            remove_file(&link)?;
        }
        remove_directory(&directory.join(LINKS))?;
        for map in entries(&directory)? {
            remove_file(&map)?;
        }
        remove_directory(&directory)?;
    }
    if except.is_none() { remove_directory(pin_dir) } else { Ok(()) }
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { path: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn remove_file(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path), path)
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_dir(path), path)
}

fn absent_is_fine(removed: std::io::Result<()>, path: &Path) -> Result<(), Error> {
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
