//! What is so: a pod's sandbox and containers as the agent last learnt of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Backoff, User};

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub code: i32,
    pub signal: Option<i32>,
    pub oom_killed: bool,
    pub at: Timestamp,
}

/// A pod's namespaces, held by its shim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    #[default]
    Absent,
    Creating,
    Ready,
    Removing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Realized {
    pub sandbox: Sandbox,
    /// Why the sandbox could not be made, and when to try again.
    pub sandbox_error: Option<(String, Timestamp)>,
    pub ips: Vec<IpAddr>,
    pub containers: BTreeMap<String, Container>,
    /// The pod was given up for this reason: `(reason, message)`, as `DeadlineExceeded`.
    pub failed: Option<(String, String)>,
    /// The object is being deleted from the API, or has been.
    pub deleted: bool,
}

/// One container, over all its starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    pub phase: Phase,
    /// The number of the latest start, from 0; with `Phase::Waiting`, of the next. It is the restart count.
    pub attempt: u32,
    /// How the start before the latest ended.
    pub last: Option<Ended>,
    pub backoff: Backoff,
    pub image_id: String,
    /// Who it runs as, since it has started.
    pub(crate) user: Option<Box<User>>,
    /// Its startup probe has succeeded, or it has none.
    pub started: bool,
    /// Its readiness probe's latest verdict; without one, whether it has started.
    pub ready: bool,
    /// It is being stopped: its preStop hook runs, or the signal was sent.
    pub stopping: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not started: why, and when to try again if something went wrong.
    Waiting {
        reason: String,
        message: Option<String>,
        retry_at: Option<Timestamp>,
        /// How often starting has failed in a row.
        failures: u32,
    },
    /// Being started.
    Starting,
    Running {
        since: Timestamp,
    },
    Exited(Ended),
}

/// One start of a container that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub exit: Exit,
    pub started_at: Option<Timestamp>,
    /// What it left in its termination log, or the reason it is known by.
    pub message: Option<String>,
    pub reason: Option<String>,
    pub attempt: u32,
}

impl Default for Phase {
    fn default() -> Self {
        Self::Waiting { reason: "ContainerCreating".to_owned(), message: None, retry_at: None, failures: 0 }
    }
}

impl Container {
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// Running, or on the way there.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Starting)
    }

    #[must_use]
    pub fn ended(&self) -> Option<&Ended> {
        match &self.phase {
            Phase::Exited(ended) => Some(ended),
            _ => None,
        }
    }
}
