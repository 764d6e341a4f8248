//! The real binary on a machine of its own: network and mount namespaces made for each test, as root.

mod cluster;
mod kubectl;
mod lifecycle;
mod machine;
mod pods;
mod services;
mod soak;
