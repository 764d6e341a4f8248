//! The API as clients see it: over TLS, in this process, each test with a server of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod access;
mod apply;
mod backup;
mod custom;
mod documents;
mod everyday;
mod fairness;
mod harness;
mod hostile;
mod kubectl;
mod lists;
mod logs;
mod media;
mod memory;
mod metrics;
mod objects;
mod proxy;
mod python;
mod roles;
mod services;
mod surface;
mod tokens;
mod updates;
mod watches;
mod words;
