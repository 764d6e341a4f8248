//! One proxy a network namespace.
//!
//! An abstract unix socket belongs to a network namespace and goes with its last holder, however that one dies: held
//! open, its name is a lock that needs no cleaning up. It is listened on only so that who comes second can ask the
//! kernel who was first.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::getpid;

use crate::Error;

const NAME: &[u8] = b"portolan/service-proxy";
/// What this process has let go of, a child of it may still hold for a moment: from its fork to its exec.
const FORKING: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(1);

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct Lock {
    _listener: UnixListener,
}

/// Takes the lock of the calling thread's network namespace.
pub(crate) fn take() -> Result<Lock, Error> {
    let address = SocketAddr::from_abstract_name(NAME).map_err(Error::Lock)?;
    let start = Instant::now();
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(listener) => return Ok(Lock { _listener: listener }),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let holder = UnixStream::connect_addr(&address).ok();
                let credentials = holder.and_then(|stream| getsockopt(&stream, PeerCredentials).ok());
                // Zero is a process of a PID namespace that this one cannot see into.
                let pid = credentials.map(|credentials| credentials.pid()).filter(|pid| *pid > 0);
                if pid != Some(getpid().as_raw()) || start.elapsed() >= FORKING {
                    return Err(Error::Taken { pid, command: pid.map(command).unwrap_or_default() });
                }
                std::thread::sleep(SOON);
            }
            Err(error) => return Err(Error::Lock(error)),
        }
    }
}

/// The command line of a process, as far as it can be read.
fn command(pid: i32) -> String {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ").trim_end().to_owned()
}
