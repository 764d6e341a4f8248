//! Containers that somebody brings into a running pod to look at it. They run once, and the pod does not mind how they
//! end.

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

pub(crate) fn ephemeral(pod: &Pod) -> &[EphemeralContainer] {
    pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_deref()).unwrap_or_default()
}

/// The container that it is, once nobody asks what it is for. What it may not have is left out.
pub(crate) fn container_of(ephemeral: &EphemeralContainer) -> Container {
    let of = ephemeral.clone();
    Container {
        args: of.args,
        command: of.command,
        env: of.env,
        env_from: of.env_from,
        image: of.image,
        image_pull_policy: of.image_pull_policy,
        name: of.name,
        security_context: of.security_context,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        tty: of.tty,
        volume_devices: of.volume_devices,
        volume_mounts: of.volume_mounts,
        working_dir: of.working_dir,
        ..Container::default()
    }
}
