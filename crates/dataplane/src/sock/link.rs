//! A pinned link of a program to a cgroup -> the same link with another program behind it.
//!
//! Invariant: there is no moment in between. Who enters the kernel before meets the old program, who enters after meets
//! the new one, and nobody meets none or both.
//!
//! Deliberately not here: links that are made for the first time.
//!
//! Source: bpf(2), `BPF_LINK_UPDATE` (Linux 5.7); kernel `kernel/bpf/cgroup.c`, `cgroup_bpf_replace`.
#![allow(unsafe_code, reason = "the loading crate updates links of other kinds of programs only")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_UPDATE: libc::c_int = 29;

/// The kernel's `bpf_attr`, as far as these three commands read it.
#[repr(C, align(8))]
#[derive(Default)]
struct Attributes([u32; 16]);

/// The beginning of the kernel's `bpf_link_info`, for a link to a cgroup.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    padding_of_attach_type: u32,
}

fn halves(number: u64) -> [u32; 2] {
    let bytes = number.to_ne_bytes();
    let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|index| bytes[at + index]));
    [half(0), half(4)]
}

fn number(descriptor: RawFd) -> u32 {
    // Descriptors are never negative.
    descriptor.unsigned_abs()
}

/// # Safety
/// Every address among the attributes is that of memory which lives on, and is as large as the command takes it to be.
unsafe fn bpf(command: libc::c_int, mut attributes: Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes no more of the attributes than their size says; for the rest the caller
    // vouches.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open(place: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(place.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes.0[..2].copy_from_slice(&halves(path.as_ptr() as u64));
    // SAFETY: the path is a string that ends with a zero and lives to the end of this function.
    let descriptor = unsafe { bpf(OBJ_GET, attributes) }?;
    let descriptor = RawFd::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// The cgroup that the link is to; zero for one that is gone.
fn cgroup_of(link: &OwnedFd) -> io::Result<u64> {
    let mut info = Info::default();
    let mut attributes = Attributes::default();
    attributes.0[0] = number(link.as_raw_fd());
    attributes.0[1] = u32::try_from(size_of::<Info>()).map_err(io::Error::other)?;
    attributes.0[2..4].copy_from_slice(&halves((&raw mut info) as u64));
    // SAFETY: `info` lives on and has the size that the attributes say.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, attributes) }?;
    Ok(info.cgroup)
}

/// Puts the program behind the link that is pinned at `place`. `false` where there is none, or it is to another cgroup.
///
/// # Errors
/// What the kernel refused; the link is as it was.
pub(super) fn replace(place: &Path, cgroup: &File, program: &impl AsFd) -> io::Result<bool> {
    let link = match open(place) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // A cgroup's number is that of its directory.
    if cgroup_of(&link)? != cgroup.metadata()?.st_ino() {
        return Ok(false);
    }
    let mut attributes = Attributes::default();
    attributes.0[0] = number(link.as_raw_fd());
    attributes.0[1] = number(program.as_fd().as_raw_fd());
    // SAFETY: there are no addresses among the attributes.
    unsafe { bpf(LINK_UPDATE, attributes) }?;
    Ok(true)
}
