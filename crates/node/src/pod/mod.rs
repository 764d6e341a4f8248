//! A pod and what is realized of it -> what to do next, and what to say about it. All of it pure.
//!
//! Invariant: nothing here does I/O or reads a clock; `now` is an argument. Source: the kubelet (`pkg/kubelet`,
//! `kuberuntime`, `status`, `prober`), whose reasons, messages and timing users know.
//!
//! Deliberately not here: how any of it is made; see `agent` and `shim`.

mod backoff;
mod conditions;
mod env;
mod ephemeral;
mod files;
mod plan;
mod probe;
mod realized;
mod recover;
mod spec;
mod status;
mod sysctls;

pub use backoff::Backoff;
pub(crate) use env::{Lookup, ServiceEnv, environment, expand, field, resource_field};
pub(crate) use ephemeral::{container_of, ephemeral};
pub(crate) use files::{hostname, hosts, resolv_conf};
pub use plan::{Action, Plan, next_actions};
pub(crate) use probe::{Check, Kind as ProbeKind, Probe, Verdict, probes};
pub use realized::{Container, Ended, Exit, Phase, Realized, Sandbox};
pub(crate) use recover::{Remembered, adopted, lost, sandbox_lost};
pub(crate) use spec::{Bind, ContainerSpec, User, container_spec};
pub(crate) use status::is_backing_off;
pub use status::{effective_phase, status};
pub(crate) use sysctls::sysctls;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use portolan_model::quantity;

/// Of memory. Negative amounts are nonsense here; the API server refuses them.
pub(crate) fn bytes(amount: &Quantity) -> Option<u64> {
    quantity::whole(amount).and_then(|bytes| u64::try_from(bytes).ok())
}

/// Thousandths of a CPU.
pub(crate) fn milli(amount: &Quantity) -> Option<u64> {
    quantity::milli(amount).and_then(|milli| u64::try_from(milli).ok())
}
