//! A container of a pod, its image and what the agent prepared for it -> the OCI runtime configuration to start.
//!
//! The pod's network, IPC and UTS namespaces are not named: the container's process is born in the shim's. Source:
//! the OCI runtime specification; capabilities, masked paths and mounts as containerd's defaults.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::env::expand;
use super::{bytes, milli};
use crate::cgroup::Limits;
use crate::image::Image;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const CPU_PERIOD: u64 = 100_000;
/// A fork bomb ends here and not with the machine.
const MAX_PIDS: u64 = 16_384;

const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All that the kernel knows, for privileged containers; in the order of their numbers.
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Who a container's process runs as, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// A file or directory of the node, seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bind {
    pub(crate) source: PathBuf,
    pub(crate) target: String,
    pub(crate) read_only: bool,
    /// `private`, or what mountPropagation asks for: `slave`, `shared`.
    pub(crate) propagation: &'static str,
}

pub(crate) struct ContainerSpec<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) image: &'a Image,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) user: User,
    pub(crate) binds: Vec<Bind>,
    pub(crate) cgroup: String,
    /// What can be limited on this node.
    pub(crate) limits: Limits,
    /// What the node itself may do, a bit for each capability's number: a machine that is a container has not all of
    /// them, and nothing is given that is not there.
    pub(crate) capabilities: u64,
    /// Bytes of memory of the node; a share of it decides who is killed first when it runs out.
    pub(crate) node_memory: u64,
}

/// The contents of `config.json`.
///
/// # Errors
/// When there is nothing to run, or the working directory is not absolute.
pub(crate) fn container_spec(from: &ContainerSpec<'_>) -> Result<Value, String> {
    let (container, image) = (from.container, from.image);
    let mut env: BTreeMap<String, String> = BTreeMap::from([("PATH".to_owned(), DEFAULT_PATH.to_owned())]);
    env.extend(image.env.iter().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())));
    let hostname = super::hostname(from.pod);
    env.entry("HOSTNAME".to_owned()).or_insert(hostname);
    if container.tty == Some(true) {
        env.entry("TERM".to_owned()).or_insert("xterm".to_owned());
    }
    env.extend(from.env.iter().cloned());
    let own: BTreeMap<&str, &str> = from.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expanded = |words: &[String]| -> Vec<String> {
        words.iter().map(|word| expand(word, |name| own.get(name).map(|value| (*value).to_owned()))).collect()
    };
    let command = container.command.as_deref().filter(|words| !words.is_empty());
    let args = container.args.as_deref().filter(|words| !words.is_empty());
    let mut line = command.map_or_else(|| image.entrypoint.clone(), expanded);
    match args {
        Some(args) => line.extend(expanded(args)),
        None if command.is_none() => line.extend(image.cmd.iter().cloned()),
        None => {}
    }
    if line.is_empty() {
        return Err("no command specified".to_owned());
    }
    let cwd = container.working_dir.clone().filter(|dir| !dir.is_empty()).unwrap_or_else(|| image.working_dir.clone());
    let cwd = if cwd.is_empty() { "/".to_owned() } else { cwd };
    if !cwd.starts_with('/') {
        return Err(format!("working directory {cwd:?} is not an absolute path"));
    }
    let security = container.security_context.clone().unwrap_or_default();
    let privileged = security.privileged == Some(true);
    let capabilities = capabilities(&security.capabilities.clone().unwrap_or_default(), privileged, from.capabilities);
    let host_pid = from.pod.spec.as_ref().and_then(|spec| spec.host_pid) == Some(true);
    let mut namespaces = vec![json!({"type": "mount"})];
    if !host_pid {
        namespaces.push(json!({"type": "pid"}));
    }
    let mut user = json!({"uid": from.user.uid, "gid": from.user.gid});
    if !from.user.groups.is_empty() {
        user["additionalGids"] = json!(from.user.groups);
    }
    let mut linux = json!({
        "cgroupsPath": from.cgroup,
        "namespaces": namespaces,
        "resources": resources(container, privileged, from.limits),
    });
    if !privileged {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": container.tty == Some(true),
            "user": user,
            "args": line,
            "env": env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
            "cwd": cwd,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": security.allow_privilege_escalation == Some(false),
            "oomScoreAdj": oom_score(from.pod, container, from.node_memory),
        },
        "root": {"path": "root", "readonly": security.read_only_root_filesystem == Some(true)},
        "mounts": mounts(&from.binds, privileged),
        "linux": linux,
    }))
}

fn capabilities(asked: &Capabilities, privileged: bool, held: u64) -> Vec<String> {
    let named = |list: &Option<Vec<String>>| -> Vec<String> {
        list.iter().flatten().map(|name| name.trim_start_matches("CAP_").to_uppercase()).collect()
    };
    let (add, drop) = (named(&asked.add), named(&asked.drop));
    let all = privileged || add.iter().any(|name| name == "ALL");
    let base: &[&str] = match (all, drop.iter().any(|name| name == "ALL")) {
        (true, _) => &ALL_CAPABILITIES,
        (false, true) => &[],
        (false, false) => &CAPABILITIES,
    };
    let has =
        |number: usize, name: &str| held >> number & 1 == 1 && base.contains(&name) && !drop.iter().any(|d| d == name);
    let given = |(number, name): &(usize, &&str)| has(*number, name) || add.iter().any(|a| a == *name);
    ALL_CAPABILITIES.iter().enumerate().filter(given).map(|(_, name)| format!("CAP_{name}")).collect()
}

fn resources(container: &Container, privileged: bool, limits: Limits) -> Value {
    let resources = container.resources.clone().unwrap_or_default();
    let of = |list: &Option<BTreeMap<_, _>>, name: &str| list.as_ref().and_then(|list| list.get(name).cloned());
    let cpu_limit = of(&resources.limits, "cpu").as_ref().and_then(milli);
    let cpu_request = of(&resources.requests, "cpu").as_ref().and_then(milli).or(cpu_limit).unwrap_or(0);
    let memory = of(&resources.limits, "memory").as_ref().and_then(bytes);
    let mut cpu = json!({"shares": (cpu_request * 1024 / 1000).clamp(2, 262_144)});
    if let Some(limit) = cpu_limit {
        cpu["period"] = json!(CPU_PERIOD);
        cpu["quota"] = json!((limit * CPU_PERIOD / 1000).max(1000));
    }
    let mut all = json!({"devices": [{"allow": privileged, "access": "rwm"}]});
    if limits.cpu {
        all["cpu"] = cpu;
    }
    if limits.pids {
        all["pids"] = json!({"limit": MAX_PIDS});
    }
    if let (Some(limit), true) = (memory, limits.memory) {
        all["memory"] = json!({"limit": limit});
    }
    all
}

/// The kubelet's quality-of-service classes, as the kernel is told of them: guaranteed pods are killed last, those
/// that asked for nothing first.
fn oom_score(pod: &Pod, container: &Container, node_memory: u64) -> i64 {
    let containers =
        || pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let resources = |container: &Container| container.resources.clone().unwrap_or_default();
    let best_effort = containers().all(|c| {
        resources(c).requests.is_none_or(|r| r.is_empty()) && resources(c).limits.is_none_or(|l| l.is_empty())
    });
    let guaranteed = containers().all(|c| {
        let (limits, requests) = (resources(c).limits.unwrap_or_default(), resources(c).requests.unwrap_or_default());
        ["cpu", "memory"].iter().all(|name| {
            limits.get(*name).is_some_and(|limit| requests.get(*name).is_none_or(|request| request == limit))
        })
    });
    if guaranteed {
        return -997;
    }
    if best_effort {
        return 1000;
    }
    let (limits, requests) = (resources(container).limits, resources(container).requests);
    let of = |list: Option<BTreeMap<_, _>>| list.and_then(|list| list.get("memory").and_then(bytes));
    let request = of(requests).or_else(|| of(limits)).unwrap_or(0);
    let share = u128::from(request) * 1000 / u128::from(node_memory.max(1));
    i64::try_from(1000 - share.min(1000)).unwrap_or(0).clamp(3, 999)
}

fn mounts(binds: &[Bind], privileged: bool) -> Vec<Value> {
    let sysfs = if privileged { "rw" } else { "ro" };
    let mut all = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs",
               "options": ["nosuid", "noexec", "nodev", sysfs]}),
    ];
    // A mount below another must come after it.
    let mut binds: Vec<&Bind> = binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.split('/').filter(|part| !part.is_empty()).count());
    all.extend(binds.into_iter().map(|bind| {
        let access = if bind.read_only { "ro" } else { "rw" };
        json!({"destination": bind.target, "type": "bind", "source": bind.source,
               "options": ["rbind", format!("r{}", bind.propagation), access]})
    }));
    all
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const ALL: Limits = Limits { cpu: true, memory: true, pids: true };

    fn spec(container: Value, image: &Image) -> Result<Value, String> {
        limited_spec(container, image, ALL)
    }

    fn limited_spec(container: Value, image: &Image, limits: Limits) -> Result<Value, String> {
        let mut container = container;
        container["name"] = json!("c");
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}})).unwrap();
        container_spec(&ContainerSpec {
            pod: &pod,
            container: &pod.spec.as_ref().unwrap().containers[0],
            image,
            env: vec![("WHO".into(), "me".into())],
            user: User::default(),
            binds: vec![
                Bind { source: "/n/b".into(), target: "/a/b".into(), read_only: true, propagation: "private" },
                Bind { source: "/n/a".into(), target: "/a".into(), read_only: false, propagation: "private" },
            ],
            cgroup: "/p/c.0".into(),
            limits,
            // All but SYS_RESOURCE, as in many a container.
            capabilities: !(1 << 24),
            node_memory: 1 << 30,
        })
    }

    fn image() -> Image {
        Image {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/only".into(), "WHO=image".into()],
            working_dir: "/work".into(),
            ..Image::default()
        }
    }

    #[test]
    fn command_and_args_replace_the_images_as_kubernetes_says() {
        for (container, line) in [
            (json!({}), json!(["/entry", "default"])),
            (json!({"args": ["$(WHO)", "$(NO)"]}), json!(["/entry", "me", "$(NO)"])),
            (json!({"command": ["/x"]}), json!(["/x"])),
            (json!({"command": ["/x"], "args": ["y"]}), json!(["/x", "y"])),
        ] {
            assert_eq!(spec(container.clone(), &image()).unwrap()["process"]["args"], line, "{container}");
        }
        assert_eq!(spec(json!({}), &Image::default()).unwrap_err(), "no command specified");
        assert!(spec(json!({"command": ["x"], "workingDir": "rel"}), &image()).is_err());
    }

    #[test]
    fn the_pods_environment_beats_the_images() {
        let process = spec(json!({}), &image()).unwrap()["process"].clone();
        assert_eq!(process["env"], json!(["HOSTNAME=p", "PATH=/only", "WHO=me"]));
        assert_eq!(process["cwd"], "/work");
    }

    #[test]
    fn limits_become_cgroup_limits() {
        let limited = json!({"resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}});
        let spec = spec(limited, &image()).unwrap();
        let resources = &spec["linux"]["resources"];
        assert_eq!(resources["cpu"], json!({"shares": 256, "period": 100_000, "quota": 25_000}));
        assert_eq!(resources["memory"], json!({"limit": 64 << 20}));
        assert_eq!(spec["process"]["oomScoreAdj"], -997);
    }

    #[test]
    fn what_the_node_cannot_limit_is_not_asked_of_it() {
        let none = Limits { cpu: false, memory: false, pids: false };
        let limited = json!({"resources": {"limits": {"cpu": "250m", "memory": "64Mi"}}});
        let spec = limited_spec(limited, &image(), none).unwrap();
        assert_eq!(spec["linux"]["resources"], json!({"devices": [{"allow": false, "access": "rwm"}]}));
    }

    #[test]
    fn oom_scores_follow_the_quality_of_service() {
        let score = |container: Value| spec(container, &image()).unwrap()["process"]["oomScoreAdj"].clone();
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"resources": {"requests": {"memory": "512Mi"}}})), 500);
        assert_eq!(score(json!({"resources": {"requests": {"cpu": "1"}}})), 999);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let caps = |container: Value| -> Vec<String> {
            let spec = spec(json!({"securityContext": container}), &image()).unwrap();
            serde_json::from_value(spec["process"]["capabilities"]["bounding"].clone()).unwrap()
        };
        assert_eq!(caps(json!({})).len(), CAPABILITIES.len());
        let drop_all = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}});
        assert_eq!(caps(drop_all), ["CAP_NET_BIND_SERVICE"]);
        let all = caps(json!({"privileged": true}));
        assert_eq!(all.len(), ALL_CAPABILITIES.len() - 1, "those that the node has");
        assert!(!all.contains(&"CAP_SYS_RESOURCE".to_owned()));
        assert!(!caps(json!({"capabilities": {"drop": ["CAP_NET_RAW"]}})).contains(&"CAP_NET_RAW".to_owned()));
    }

    #[test]
    fn mounts_below_others_come_after_them() {
        let spec = spec(json!({}), &image()).unwrap();
        let targets: Vec<_> =
            spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].as_str().unwrap()).collect();
        assert_eq!(targets, ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/a", "/a/b"]);
    }
}
