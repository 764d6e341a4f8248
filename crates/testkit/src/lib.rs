//! Network-namespace labs for kernel tests: machines, cables, echo servers and clients, gone when dropped.
//!
//! Invariant: nothing here touches the namespace the test was started in, and nothing has a name on the host; a
//! namespace lives as long as its [`Netns`], a process in it or a cable from it. A failure to build a lab panics with
//! what was tried, as a failed assertion would: there is no test without its lab.
//!
//! Deliberately not here: anything that knows about Services.

#![forbid(unsafe_code)]

mod cgroup;
mod dial;
mod echo;
mod eventually;
mod netns;
mod sctp;

pub use cgroup::{Cgroup, with_bpffs};
pub use dial::{Dial, Outcome, Transport, say};
pub use echo::Echo;
pub use eventually::eventually;
pub use netns::{Netns, cable};

/// Whether this process may build labs. When it may not, says so on stderr, or panics where `CI` is `true`.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("needs root, to make network namespaces");
    }
    root
}

/// Says why a test is skipped; in CI (`CI=true`), where everything a test needs is installed, fails it instead.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "skipped, which CI does not allow: {reason}");
    eprintln!("skipped at {}: {reason}", std::panic::Location::caller());
}

/// Leaves the test, saying why, unless it runs as root. A skip is a failure where `CI` is `true`.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::is_root() {
            return;
        }
    };
}
