//! A running container -> its end: the preStop hook, its signal, and SIGKILL when its time is over.

use std::time::Duration;

use k8s_openapi::api::core::v1::Container;
use tokio::time::{Instant, sleep_until, timeout};

use super::hooks::{self, Target};
use crate::image::Store;
use crate::shim::Request;

/// After a hook a container has at least this long to end by itself, as the kubelet gives it.
pub(super) const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Returns once the container was killed. Its end, which is likely sooner, is the shim's to tell: whoever hears of it
/// drops this.
pub(super) async fn container(
    store: &Store,
    spec: &Container,
    target: &Target,
    grace: Duration,
    failed: impl FnOnce(String),
) {
    let deadline = Instant::now() + grace;
    if let Some(hook) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) {
        let done = timeout(grace, hooks::hook(hook, spec, target, grace)).await;
        if let Err(reason) = done.unwrap_or_else(|_| Err("it took longer than the grace period".to_owned())) {
            failed(format!("PreStopHook failed: {reason}"));
        }
    }
    let image = store.get(spec.image.as_deref().unwrap_or_default());
    let number = image.and_then(|image| image.stop_signal).as_deref().and_then(signal_number);
    let signal = |signal| Request::Signal { id: target.id.clone(), signal };
    let _ = target.shim.call(signal(number.unwrap_or(nix::libc::SIGTERM))).await;
    let least = Instant::now() + LEAST_GRACE.min(grace);
    sleep_until(deadline.max(least)).await;
    let _ = target.shim.call(signal(nix::libc::SIGKILL)).await;
}

/// `SIGUSR1`, `USR1` or `10`.
fn signal_number(name: &str) -> Option<i32> {
    let name = name.trim();
    name.parse().ok().or_else(|| {
        let full = if name.starts_with("SIG") { name.to_owned() } else { format!("SIG{name}") };
        full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
    })
}
