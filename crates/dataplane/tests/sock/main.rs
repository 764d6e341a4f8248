//! Sockets in a cgroup of the test's own, led by the real programs; no nftables stands below.
#![allow(clippy::unwrap_used, reason = "tests unwrap")]

mod bench;
mod hooks;
#[path = "../lab/mod.rs"]
mod lab;
mod life;
