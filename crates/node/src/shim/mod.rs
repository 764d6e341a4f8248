//! The words between the agent and a pod's shim: length-prefixed JSON over a Unix socket in the pod's directory.
//!
//! Invariant: the shim knows all that an agent needs to go on after a restart: [`Request::State`] answers with every
//! container ever started in this sandbox and how it ended, until the agent asks to forget it.
//!
//! Deliberately not here: what a pod is. The shim runs OCI bundles that the agent has laid out.

mod client;
mod container;
mod jobs;
mod log;
mod namespaces;
mod output;
mod part;
mod pause;
mod relay;
mod server;
mod session;
mod sessions;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use client::{Shim, ShimEvent, kill, process, spawn};
pub(crate) use log::rotated;
pub(crate) use session::Session;

use crate::pod::{Backoff, Exit, User};

/// argv[1] of the process that is a pod's shim.
const SUBCOMMAND: &str = "pod-shim";
pub(crate) const SOCKET: &str = "shim.sock";
const CONFIG: &str = "shim.json";

/// A frame longer than this is nonsense. Requests name files; the largest answer is an exec's output.
const MAX_FRAME: usize = 1 << 20;
/// What is kept of the output of a command run in a container; as much as the kubelet keeps of a probe's.
const MAX_EXEC_OUTPUT: usize = 10 << 10;

/// Runs the shim, or what holds its processes' namespace, and never returns when this process was started to be one. The first thing `main` does.
pub fn try_reexec() {
    let mut args = std::env::args_os().skip(1);
    let word = args.next().unwrap_or_default();
    if word == SUBCOMMAND {
        let Some(dir) = args.next() else { std::process::exit(2) };
        server::main(Path::new(&dir));
    }
    if word == pause::SUBCOMMAND {
        pause::main();
    }
}

/// What a shim needs to know before it makes its namespaces; `shim.json` in the pod's directory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ShimConfig {
    pub(crate) hostname: String,
    /// The pod's directory under every v1 hierarchy, or under the v2 one; absolute within it.
    pub(crate) cgroup: String,
    pub(crate) host_network: bool,
    pub(crate) host_ipc: bool,
    /// Its containers see each other's processes.
    pub(crate) share_processes: bool,
    /// Written in the pod's namespaces before anything runs in them.
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Memory-backed volumes: where, and their options of tmpfs(5).
    pub(crate) tmpfs: BTreeMap<PathBuf, String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    State,
    Start(Start),
    Exec {
        id: String,
        args: Vec<String>,
        timeout_ms: u64,
    },
    /// Connects the sender to a process, for as long as both last. A session has a connection of its own.
    Open(Open),
    /// The size of the session's terminal.
    Resize {
        columns: u16,
        rows: u16,
    },
    /// Signals the container's first process; a container that is not running is left as it is.
    Signal {
        id: String,
        signal: i32,
    },
    /// Forgets an exited container and deletes its directory.
    Remove {
        id: String,
    },
    /// Ends all containers, with SIGTERM first, and then the shim itself.
    Stop {
        grace_ms: u64,
    },
}

/// A container to start from a bundle at `c/<id>/` in the pod's directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) backoff: Backoff,
    /// The container of the pod whose processes it sees, and they it; absent: it has a view of its own.
    #[serde(default)]
    pub(crate) target: Option<String>,
    pub(crate) image_id: String,
    /// Who it runs as; what an agent before this one started does not say.
    #[serde(default)]
    pub(crate) user: Option<Box<User>>,
    /// The image's unpacked files: the lower layer of the container's root.
    pub(crate) lower: PathBuf,
    pub(crate) log: PathBuf,
    #[serde(default)]
    pub(crate) input: Input,
    #[serde(default)]
    pub(crate) parts: Vec<Part>,
}

/// A part of a volume that containers write to. It is looked for when the container starts, and mounted at
/// [`place_of_part`], where the bundle expects it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) volume: PathBuf,
    /// Within the volume; made as a directory if it is not there.
    pub(crate) path: String,
}

/// Where a start's parts are mounted. Not in its bundle, which is deleted with all that is in it.
fn parts(id: &str) -> String {
    format!("parts/{id}")
}

pub(crate) fn place_of_part(dir: &Path, id: &str, index: usize) -> PathBuf {
    dir.join(parts(id)).join(index.to_string())
}

/// What a container's first process reads from.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Input {
    /// Whoever is attached; without it, nothing.
    pub(crate) stdin: bool,
    /// Its input ends with that of the first who was attached.
    pub(crate) once: bool,
    /// A terminal, for its output too.
    pub(crate) tty: bool,
}

/// A way to a process in a container. As many pipe ends come with it as it says, in the order of its fields: one to
/// read from, and two to write to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Open {
    pub(crate) id: String,
    /// `None` for the container's first process.
    pub(crate) command: Option<Command>,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
}

/// One start of one container, as the shim remembers it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) start: Start,
    pub(crate) started_at: Timestamp,
    pub(crate) exit: Option<Exit>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    State(Vec<Instance>),
    Started(Box<Instance>),
    /// `code` is `None` when the command was killed for taking too long.
    Exec {
        code: Option<i32>,
        output: String,
    },
    /// The session's process has ended, and all that it wrote is passed on.
    Ended {
        code: i32,
    },
    Done,
    Failed(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) seq: u64,
    pub(crate) request: Request,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    Reply { seq: u64, reply: Reply },
    Exited(Box<Instance>),
}

fn encode<T: Serialize>(body: &T) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, body)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// Takes the first whole frame off `buffer`, if there is one.
fn decode<T: DeserializeOwned>(buffer: &mut Vec<u8>) -> io::Result<Option<T>> {
    let Some((length, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame longer than any that is sent"));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let body = serde_json::from_slice(body)?;
    buffer.drain(..4 + length);
    Ok(Some(body))
}

/// A name for the socket in `dir` that fits the 108 bytes a socket's address has, however long `dir` is. Valid while
/// `dir` is open.
fn socket_path(dir: &File) -> PathBuf {
    named(dir, SOCKET)
}

fn named(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let sent = Call { seq: 7, request: Request::Signal { id: "a.0".into(), signal: 15 } };
        let bytes = [encode(&sent).unwrap(), encode(&sent).unwrap()].concat();
        let mut buffer = Vec::new();
        let mut got = 0;
        for byte in bytes {
            buffer.push(byte);
            while let Some(call) = decode::<Call>(&mut buffer).unwrap() {
                assert!(matches!(call, Call { seq: 7, request: Request::Signal { signal: 15, .. } }));
                got += 1;
            }
        }
        assert_eq!((got, buffer.len()), (2, 0));
    }

    #[test]
    fn a_frame_too_long_is_refused_before_it_is_read() {
        let mut buffer = u32::MAX.to_le_bytes().to_vec();
        assert!(decode::<Call>(&mut buffer).is_err());
    }
}
