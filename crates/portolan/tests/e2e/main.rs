//! The real binary on a machine of its own: network and mount namespaces made for each test, as root.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod accounts;
mod backup;
mod cluster;
mod deletion;
mod ephemeral;
mod kubectl;
mod lifecycle;
mod logs;
mod machine;
mod pods;
mod proxy;
mod services;
mod soak;
mod sockets;
mod streams;
mod trace;
