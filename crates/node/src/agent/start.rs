//! Making what a pod needs: its sandbox, and one start of one of its containers.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};
use tokio_util::sync::CancellationToken;

use super::hooks::{self, Target};
use super::host::{Host, Record};
use super::objects::{self, Objects};
use super::tokens::Tokens;
use super::users::user;
use super::volumes::{self, Sources};
use crate::net::{Clash, link_name};
use crate::pod::{
    Backoff, Bind, ContainerSpec, ServiceEnv, container_spec, environment, ephemeral, hostname, hosts, resolv_conf,
    sysctls,
};
use crate::shim::{Input, Instance, Reply, Request, Shim, ShimConfig, ShimEvent, Start, kill, place_of_part, spawn};

/// What a node's files may be: more is not read.
const MAX_FILE: usize = 1 << 20;
const SHM_SIZE: u64 = 64 << 20;
const HOOK_DEADLINE: Duration = Duration::from_secs(600);

/// A pod's namespaces, with a network, and its volumes.
pub(super) struct NewSandbox {
    pub(super) shim: Shim,
    pub(super) events: tokio::sync::mpsc::UnboundedReceiver<ShimEvent>,
    pub(super) driver: futures::future::BoxFuture<'static, ()>,
    pub(super) ips: Vec<IpAddr>,
    /// When the tokens in its volumes are to be renewed, if it has any.
    pub(super) renew_tokens: Option<Timestamp>,
}

/// Why a pod has no sandbox.
#[derive(Debug)]
pub(super) enum Unmade {
    /// It is not for this node, and never will be.
    Rejected { reason: &'static str, message: String },
    /// Worth another try.
    Failed(String),
}

impl From<String> for Unmade {
    fn from(message: String) -> Self {
        Self::Failed(message)
    }
}

impl From<Clash> for Unmade {
    /// A kubelet's words.
    fn from(_: Clash) -> Self {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        Self::Rejected { reason: "NodePorts", message: message.to_owned() }
    }
}

/// Why a container could not be started, in the kubelet's words.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn refused(reason: &'static str) -> impl FnOnce(String) -> Refused {
    move |message| Refused { reason, message }
}

fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

/// Makes the pod's sandbox. What a failed try made is taken away again.
pub(super) async fn sandbox(host: &Arc<Host>, pod: &Pod) -> Result<NewSandbox, Unmade> {
    let _permit = host.starts.acquire().await.map_err(|error| error.to_string())?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let address = if host_network(pod) { None } else { Some(host.give_address()?) };
    let made = make_sandbox(host, pod, &uid, address).await;
    if made.is_err() {
        let dir = host.pod_dir(&uid);
        // Blocking, for a moment, on a path that is rare.
        kill(&dir);
        host.clean_up(&uid).await;
        if let Some(address) = address {
            host.release_address(address);
        }
    }
    made
}

async fn make_sandbox(
    host: &Arc<Host>,
    pod: &Pod,
    uid: &str,
    address: Option<std::net::Ipv4Addr>,
) -> Result<NewSandbox, Unmade> {
    let dir = host.pod_dir(uid);
    let ips: Vec<IpAddr> = match address {
        Some(address) => vec![address.into()],
        None => vec![host.config.node_ip],
    };
    host.clean_up(uid).await;
    let sysctls = sysctls(pod).map_err(|message| Unmade::Rejected { reason: "SysctlForbidden", message })?;
    host.host_ports.claim(uid, pod).await?;
    let failed = |error: io::Error| format!("failed to create pod sandbox: {error}");
    for part in ["volumes", "logs", "c", "etc", "shm"] {
        fs::create_dir_all(dir.join(part)).map_err(failed)?;
    }
    private(&dir).map_err(failed)?;
    let renew_tokens = prepare_volumes(host, pod, &dir, &ips).await?;
    write_etc(host, pod, &dir, &ips).map_err(failed)?;
    let spec = pod.spec.clone().unwrap_or_default();
    let mut tmpfs = volumes::memory(pod, &dir);
    tmpfs.insert(dir.join("shm"), format!("size={SHM_SIZE}"));
    let config = ShimConfig {
        hostname: hostname(pod),
        cgroup: host.cgroup(uid),
        host_network: address.is_none(),
        host_ipc: spec.host_ipc == Some(true),
        share_processes: spec.share_process_namespace == Some(true),
        sysctls,
        tmpfs,
    };
    let pid = spawn(&dir, &config).await.map_err(failed)?;
    if let Some(address) = address {
        let link = link_name(uid);
        let failed = |error: nlink::Error| format!("failed to set up the pod's network: {error}");
        host.network.attach(&link, pid, address).await.map_err(failed)?;
        host.host_ports.lead(uid, &link, address, host.config.node_ip).await.map_err(failed)?;
    }
    let (shim, events, driver) = Shim::connect(&dir).await.map_err(failed)?;
    host.opened(pod, &shim);
    let record = Record { pod: pod.clone(), address };
    host.write_record(uid, &record).map_err(failed)?;
    Ok(NewSandbox { shim, events, driver: Box::pin(driver), ips, renew_tokens })
}

/// Others on the node have no business in what a pod's Secrets are written to.
fn private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // Containers come through this directory as whatever user they run as, but only by mounts.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
}

/// Gives when the tokens among them are to be renewed.
async fn prepare_volumes(host: &Host, pod: &Pod, dir: &Path, ips: &[IpAddr]) -> Result<Option<Timestamp>, String> {
    let objects = Objects::of_volumes(&host.client, pod).await.map_err(|error| error.to_string())?;
    let tokens = Tokens::fetch(&host.client, pod, Timestamp::now()).await.map_err(|error| no_token(&error))?;
    volumes::prepare(pod, dir, &Sources { objects: &objects, tokens: &tokens, context: &context(host, ips, &[]) })?;
    Ok(tokens.renew_at)
}

fn no_token(error: &kube::Error) -> String {
    format!("MountVolume.SetUp failed: failed to fetch token: {error}")
}

/// Brings the volumes of a running pod to what they are made from, with new tokens if they are to be renewed, and then
/// gives when to do so again.
pub(super) async fn refill(host: &Host, pod: &Pod, ips: &[IpAddr], renew: bool) -> Result<Option<Timestamp>, String> {
    let objects = Objects::of_volumes(&host.client, pod).await.map_err(|error| error.to_string())?;
    let tokens = match renew {
        true => Tokens::fetch(&host.client, pod, Timestamp::now()).await.map_err(|error| no_token(&error))?,
        false => Tokens::default(),
    };
    let dir = host.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
    volumes::refill(pod, &dir, &Sources { objects: &objects, tokens: &tokens, context: &context(host, ips, &[]) })?;
    Ok(tokens.renew_at)
}

fn context<'a>(
    host: &'a Host,
    ips: &'a [IpAddr],
    services: &'a [k8s_openapi::api::core::v1::Service],
) -> ServiceEnv<'a> {
    let host_ips = std::slice::from_ref(&host.config.node_ip);
    ServiceEnv { pod_ips: ips, host_ips, services, allocatable: host.allocatable }
}

fn write_etc(host: &Host, pod: &Pod, dir: &Path, ips: &[IpAddr]) -> io::Result<()> {
    let domain = &host.config.cluster_domain;
    let etc = dir.join("etc");
    let names = if host_network(pod) { fs::read_to_string("/etc/hosts")? } else { hosts(pod, ips, domain) };
    fs::write(etc.join("hosts"), names)?;
    let node = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    fs::write(etc.join("resolv.conf"), resolv_conf(pod, &host.config.cluster_dns, domain, &node))?;
    let name = if host_network(pod) { host.config.node_name.clone() } else { hostname(pod) };
    fs::write(etc.join("hostname"), format!("{name}\n"))
}

/// One start of one container.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) backoff: Backoff,
    pub(super) ips: Vec<IpAddr>,
    /// Starting it has failed before, and the world has been told so.
    pub(super) again: bool,
    /// The pod is to end: nothing is waited for any more.
    pub(super) ending: CancellationToken,
}

/// The name of one start of a container: of its bundle, its cgroup and its process in the shim.
pub(super) fn instance_id(name: &str, attempt: u32) -> String {
    format!("{name}.{attempt}")
}

pub(super) fn log_path(dir: &Path, container: &str, attempt: u32) -> PathBuf {
    dir.join("logs").join(container).join(format!("{attempt}.log"))
}

/// Starts a container, runs its postStart hook, and tells the world.
pub(super) async fn container(
    host: &Arc<Host>,
    pod: &Pod,
    spec: &Container,
    shim: &Shim,
    wanted: &Wanted,
) -> Result<Box<Instance>, Refused> {
    let permit =
        host.starts.acquire().await.map_err(|error| error.to_string()).map_err(refused("CreateContainerError"))?;
    let start = prepare(host, pod, spec, wanted).await?;
    host.events.normal(pod, Some(&spec.name), "Created", format!("Created container: {}", spec.name));
    let id = start.id.clone();
    let instance = match shim.call(Request::Start(start)).await {
        Ok(Reply::Started(instance)) => instance,
        Ok(other) => return Err(refused("RunContainerError")(format!("an answer to another question: {other:?}"))),
        Err(error) => {
            let _ = shim.call(Request::Remove { id }).await;
            return Err(refused("RunContainerError")(format!("failed to create container process: {error}")));
        }
    };
    host.events.normal(pod, Some(&spec.name), "Started", format!("Started container {}", spec.name));
    // Hooks take as long as they like, and others want to start.
    drop(permit);
    if let Some(post_start) = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) {
        let target = Target { ip: wanted.ips.first().copied(), shim: shim.clone(), id: id.clone() };
        let hook = wanted.ending.run_until_cancelled(hooks::hook(post_start, spec, &target, HOOK_DEADLINE));
        if let Some(Err(reason)) = hook.await {
            host.events.warning(
                pod,
                Some(&spec.name),
                "FailedPostStartHook",
                format!("PostStartHook failed: {reason}"),
            );
            host.events.normal(pod, Some(&spec.name), "Killing", "FailedPostStartHook".to_owned());
            let _ = shim.call(Request::Signal { id, signal: nix::libc::SIGKILL }).await;
        }
    }
    Ok(instance)
}

/// Lays out the container's bundle.
async fn prepare(host: &Arc<Host>, pod: &Pod, spec: &Container, wanted: &Wanted) -> Result<Start, Refused> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let dir = host.pod_dir(uid);
    let name = spec.image.clone().unwrap_or_default();
    let policy = spec.image_pull_policy.as_deref();
    let image = host.store.get(&name).ok_or_else(|| missing_image(host, pod, spec, &name, policy, wanted.again))?;
    for volume in image_volumes(pod, spec) {
        let name = volume.reference.as_deref().unwrap_or_default();
        if host.store.get(name).is_none() {
            return Err(missing_image(host, pod, spec, name, volume.pull_policy.as_deref(), wanted.again));
        }
    }
    let message = format!("Container image \"{name}\" already present on machine");
    host.events.normal(pod, Some(&spec.name), "Pulled", message);
    let config_error = || refused("CreateContainerConfigError");
    let create_error = || refused("CreateContainerError");
    let text = |error: kube::Error| error.to_string();
    let objects = Objects::of_container(&host.client, pod, spec).await.map_err(text).map_err(config_error())?;
    let services = objects::services(&host.client, pod).await.map_err(text).map_err(config_error())?;
    let context = context(host, &wanted.ips, &services);
    let env = environment(pod, spec, &context, &objects).map_err(config_error())?;
    let rootfs = host.store.rootfs(&image);
    let user = {
        let passwd = read_in(&rootfs, "etc/passwd");
        user(pod, spec, &image.user, &passwd, &read_in(&rootfs, "etc/group")).map_err(config_error())?
    };
    let id = instance_id(&spec.name, wanted.attempt);
    let bundle = dir.join("c").join(&id);
    let io = |error: io::Error| Refused { reason: "CreateContainerError", message: error.to_string() };
    fs::create_dir_all(&bundle).map_err(io)?;
    let volumes = volumes::known(pod, &dir, |image| host.store.get(image).map(|image| host.store.rootfs(&image)));
    let place = |index| place_of_part(&dir, &id, index);
    let (mut binds, parts) = volumes::binds(spec, &volumes, &env, place).map_err(config_error())?;
    let own = |source: PathBuf, target: &str| Bind {
        source,
        target: target.to_owned(),
        read_only: false,
        propagation: "private",
    };
    for file in ["hosts", "hostname", "resolv.conf"] {
        binds.push(own(dir.join("etc").join(file), &format!("/etc/{file}")));
    }
    binds.push(own(dir.join("shm"), "/dev/shm"));
    let message = spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".to_owned());
    let message_file = bundle.join(TERMINATION);
    fs::write(&message_file, "").map_err(io)?;
    // Whoever the container runs as may leave its last words.
    fs::set_permissions(&message_file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).map_err(io)?;
    binds.push(own(message_file, &message));
    // A mount of the pod's own choosing beats ours.
    let mut seen = std::collections::BTreeSet::new();
    binds.retain(|bind| seen.insert(bind.target.trim_end_matches('/').to_owned()));
    let config = container_spec(&ContainerSpec {
        pod,
        container: spec,
        image: &image,
        env,
        user: user.clone(),
        binds,
        cgroup: format!("{}/{id}", host.cgroup(uid)),
        limits: host.limits,
        capabilities: host.capabilities,
        node_memory: host.allocatable.1,
    });
    let config = serde_json::to_vec(&config.map_err(create_error())?);
    fs::write(bundle.join("config.json"), config.map_err(io::Error::from).map_err(io)?).map_err(io)?;
    Ok(Start {
        id,
        container: spec.name.clone(),
        attempt: wanted.attempt,
        backoff: wanted.backoff,
        log: log_path(&dir, &spec.name, wanted.attempt),
        lower: rootfs,
        target: target(pod, &spec.name),
        image_id: image.id,
        user: Some(Box::new(user)),
        input: Input {
            stdin: spec.stdin == Some(true),
            once: spec.stdin_once == Some(true),
            tty: spec.tty == Some(true),
        },
        parts,
    })
}

/// Whose processes the container is to see, if not its own alone.
fn target(pod: &Pod, name: &str) -> Option<String> {
    let ephemeral = ephemeral(pod).iter().find(|ephemeral| ephemeral.name == name)?;
    ephemeral.target_container_name.clone().filter(|target| !target.is_empty())
}

/// Where a container's last words are kept, in its bundle.
pub(super) const TERMINATION: &str = "termination-log";

/// A small file of an image, wherever the image's links lead within it.
fn read_in(rootfs: &Path, name: &str) -> String {
    use std::io::Read;
    let opened = fs::File::open(rootfs).ok().and_then(|root| crate::image::open_file(&root, Path::new(name)));
    let mut text = String::new();
    if let Some(file) = opened {
        let _ = file.take(MAX_FILE as u64).read_to_string(&mut text);
    }
    text
}

/// The volumes among those that a container mounts that are the files of an image.
fn image_volumes<'a>(pod: &'a Pod, spec: &'a Container) -> impl Iterator<Item = &'a ImageVolumeSource> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mounted = |name: &str| spec.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    volumes.filter(move |volume| mounted(&volume.name)).filter_map(|volume| volume.image.as_ref())
}

/// Whether the images that a container needs are on the node.
pub(super) fn has_images(host: &Host, pod: &Pod, spec: &Container) -> bool {
    let volumes = image_volumes(pod, spec).map(|volume| volume.reference.as_deref());
    volumes.chain([spec.image.as_deref()]).all(|name| host.store.get(name.unwrap_or_default()).is_some())
}

fn missing_image(host: &Host, pod: &Pod, spec: &Container, name: &str, policy: Option<&str>, again: bool) -> Refused {
    let never = policy == Some("Never");
    if crate::image::normalize(name).is_none() && !name.starts_with("sha256:") {
        let message = format!(
            "Failed to apply default image tag \"{name}\": couldn't parse image name \"{name}\": invalid reference format"
        );
        host.events.warning(pod, Some(&spec.name), "InspectFailed", message.clone());
        host.events.warning(pod, Some(&spec.name), "Failed", "Error: InvalidImageName".to_owned());
        return Refused { reason: "InvalidImageName", message };
    }
    if never {
        let message = format!("Container image \"{name}\" is not present with pull policy of Never");
        host.events.warning(pod, Some(&spec.name), "ErrImageNeverPull", message.clone());
        host.events.warning(pod, Some(&spec.name), "Failed", "Error: ErrImageNeverPull".to_owned());
        return Refused { reason: "ErrImageNeverPull", message };
    }
    let import = &host.config.import_command;
    let message = format!("image \"{name}\" is not in this node's store; import it with `{import} ARCHIVE`");
    if again {
        host.events.normal(pod, Some(&spec.name), "BackOff", format!("Back-off pulling image \"{name}\""));
        host.events.warning(pod, Some(&spec.name), "Failed", "Error: ImagePullBackOff".to_owned());
        return Refused {
            reason: "ImagePullBackOff",
            message: format!("Back-off pulling image \"{name}\": ErrImagePull: {message}"),
        };
    }
    host.events.warning(pod, Some(&spec.name), "Failed", format!("Failed to pull image \"{name}\": {message}"));
    host.events.warning(pod, Some(&spec.name), "Failed", "Error: ErrImagePull".to_owned());
    Refused { reason: "ErrImagePull", message }
}
