//! A pod's volumes -> directories on the node, and a container's mounts -> what is bound where.
//!
//! Volumes live in `volumes/<name>` of the pod's directory, but for host paths. What is made from API objects follows
//! them while the pod runs ([`refill`]), but for parts (`subPath`) that are mounted alone. Parts of volumes that containers
//! write to are left to the shim (`shim/part`), because a container could swap a directory for a link meanwhile.
//! Deliberately not here: persistent volumes.

mod files;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume, VolumeMount};

use super::objects::{CONFIG_MAP, Objects, SECRET};
use super::tokens::{self, Tokens};
use crate::pod::{Bind, ServiceEnv, bytes, expand};
use crate::shim::Part;
use files::Files;

const FILE_MODE: i32 = 0o644;

/// A volume that is ready to be mounted.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    path: PathBuf,
    /// The agent alone writes to it.
    sealed: bool,
}

pub(super) type Volumes = BTreeMap<String, Ready>;

/// The memory-backed volumes, which the shim mounts: where, and with which options of tmpfs(5).
pub(super) fn memory(pod: &Pod, dir: &Path) -> BTreeMap<PathBuf, String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let empty = volumes.filter_map(|volume| Some((volume, volume.empty_dir.as_ref()?)));
    let memory = empty.filter(|(_, empty)| empty.medium.as_deref() == Some("Memory"));
    let options = |empty: &EmptyDirVolumeSource| {
        let access = group(pod).map_or("mode=1777".to_owned(), |group| format!("mode=3777,gid={group}"));
        let size = empty.size_limit.as_ref().and_then(bytes).filter(|size| *size > 0);
        size.map_or(access.clone(), |size| format!("{access},size={size}"))
    };
    memory.map(|(volume, empty)| (place(dir, volume), options(empty))).collect()
}

fn place(dir: &Path, volume: &Volume) -> PathBuf {
    dir.join("volumes").join(&volume.name)
}

/// The pod's volumes as [`prepare`] made them, perhaps for an agent before this one. `images` says where the files of an
/// image are; volumes of those that are not there are left out.
pub(super) fn known(pod: &Pod, dir: &Path, images: impl Fn(&str) -> Option<PathBuf>) -> Volumes {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let ready = volumes.filter_map(|volume| {
        let host = volume.host_path.as_ref().map(|host| PathBuf::from(&host.path));
        let sealed = host.is_none() && volume.empty_dir.is_none();
        let path = match (host, &volume.image) {
            (Some(host), _) => host,
            (None, Some(image)) => images(image.reference.as_deref()?)?,
            (None, None) => place(dir, volume),
        };
        Some((volume.name.clone(), Ready { path, sealed }))
    });
    ready.collect()
}

/// Where the contents of volumes come from.
#[derive(Clone, Copy)]
pub(super) struct Sources<'a> {
    pub(super) objects: &'a Objects,
    pub(super) tokens: &'a Tokens,
    pub(super) context: &'a ServiceEnv<'a>,
}

/// Makes and fills the pod's volumes.
///
/// # Errors
/// In the kubelet's words for a volume that cannot be mounted; which is tried again.
pub(super) fn prepare(pod: &Pod, dir: &Path, sources: &Sources<'_>) -> Result<(), String> {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        prepare_one(pod, volume, &place(dir, volume), sources, group(pod))
            .map_err(|reason| unmounted(volume, &reason))?;
    }
    Ok(())
}

/// Whether something in the pod's volumes is taken from the pod's own object.
pub(super) fn show_pod(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
        let mut projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.downward_api.is_some() || projected.any(|source| source.downward_api.is_some())
    })
}

fn prepare_one(
    pod: &Pod,
    volume: &Volume,
    path: &Path,
    sources: &Sources<'_>,
    group: Option<u32>,
) -> Result<(), String> {
    if let Some(host) = &volume.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default());
    }
    let io = |error: io::Error| format!("{}: {error}", path.display());
    if volume.empty_dir.is_some() {
        fs::DirBuilder::new().recursive(true).mode(0o777).create(path).map_err(io)?;
        // The mode above is less what the umask takes.
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        std::os::unix::fs::chown(path, None, group).map_err(io)?;
        return fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io);
    }
    if volume.image.is_some() {
        // Its files are where the image's are, once it is there.
        return Ok(());
    }
    let files = files(pod, volume, path, sources)?;
    let files = files.ok_or("volumes of this type are not supported on this node")?;
    files.publish(path, group).map_err(io)
}

/// Fills what is made from API objects anew, where it is not as they say. A token that there is no new one of stays.
///
/// # Errors
/// As [`prepare`]; the volume is then as it was.
pub(super) fn refill(pod: &Pod, dir: &Path, sources: &Sources<'_>) -> Result<(), String> {
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let path = place(dir, volume);
        let filled = match files(pod, volume, &path, sources) {
            Ok(Some(files)) => files.publish(&path, group(pod)).map_err(|error| format!("{}: {error}", path.display())),
            Ok(None) => Ok(()),
            Err(reason) => Err(reason),
        };
        filled.map_err(|reason| unmounted(volume, &reason))?;
    }
    Ok(())
}

fn unmounted(volume: &Volume, reason: &str) -> String {
    format!("MountVolume.SetUp failed for volume \"{}\" : {reason}", volume.name)
}

fn group(pod: &Pod) -> Option<u32> {
    let security = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(security.fs_group?).ok()
}

/// What is in a volume that is made from API objects; nothing if it is of another kind.
fn files(pod: &Pod, volume: &Volume, path: &Path, sources: &Sources<'_>) -> Result<Option<Files>, String> {
    let Sources { objects, tokens, context } = *sources;
    let mut files = Files::default();
    if let Some(map) = &volume.config_map {
        let mode = map.default_mode.unwrap_or(FILE_MODE);
        files.add(objects, CONFIG_MAP, &map.name, map.items.as_deref(), map.optional, mode)?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.clone().unwrap_or_default();
        let mode = secret.default_mode.unwrap_or(FILE_MODE);
        files.add(objects, SECRET, &name, secret.items.as_deref(), secret.optional, mode)?;
    } else if let Some(downward) = &volume.downward_api {
        let mode = downward.default_mode.unwrap_or(FILE_MODE);
        files.add_fields(pod, context, downward.items.as_deref().unwrap_or_default(), mode)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(FILE_MODE);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                files.add(objects, CONFIG_MAP, &map.name, map.items.as_deref(), map.optional, mode)?;
            }
            if let Some(secret) = &source.secret {
                files.add(objects, SECRET, &secret.name, secret.items.as_deref(), secret.optional, mode)?;
            }
            if let Some(downward) = &source.downward_api {
                files.add_fields(pod, context, downward.items.as_deref().unwrap_or_default(), mode)?;
            }
            if let Some(token) = &source.service_account_token {
                let new = tokens.get(&volume.name, &token.path).map(|text| text.as_bytes().to_vec());
                let text = new.or_else(|| fs::read(path.join(&token.path)).ok()).ok_or("the API gave no token")?;
                let (own, owner) = tokens::access(pod);
                files.add_token(&token.path, text, own.unwrap_or(mode), owner);
            }
        }
    } else {
        return Ok(None);
    }
    Ok(Some(files))
}

fn host_path(path: &str, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path);
    let failed = |error: io::Error| format!("{path}: {error}");
    let of_type =
        |good: bool| if good { Ok(()) } else { Err(format!("hostPath type check failed: {path} is not a {kind}")) };
    match (kind, found) {
        ("DirectoryOrCreate", Err(_)) => fs::create_dir_all(path).map_err(failed),
        ("FileOrCreate", Err(_)) => fs::File::create_new(path).map(drop).map_err(failed),
        ("", Err(_)) => fs::create_dir_all(path).map_err(failed),
        (_, Err(error)) => Err(failed(error)),
        ("Directory" | "DirectoryOrCreate", Ok(found)) => of_type(found.is_dir()),
        ("File" | "FileOrCreate", Ok(found)) => of_type(found.is_file()),
        (_, Ok(_)) => Ok(()),
    }
}

/// What a container sees of the pod's volumes, and the parts among it that the shim mounts where `place` says.
///
/// # Errors
/// When a mount names no volume, or a part of one that cannot be mounted.
pub(super) fn binds(
    container: &Container,
    volumes: &Volumes,
    env: &[(String, String)],
    place: impl Fn(usize) -> PathBuf,
) -> Result<(Vec<Bind>, Vec<Part>), String> {
    let mut binds = Vec::new();
    let mut parts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| format!("no volume is named {}", mount.name))?;
        let part = part(mount, env)?;
        let source = if part.is_empty() {
            volume.path.clone()
        } else if volume.sealed {
            let failed = |error: io::Error| format!("failed to prepare subPath {part:?}: {error}");
            let real = fs::canonicalize(volume.path.join(&part)).map_err(failed)?;
            if !real.starts_with(fs::canonicalize(&volume.path).map_err(failed)?) {
                return Err(format!("subPath {part:?} leads out of volume {}", mount.name));
            }
            real
        } else {
            parts.push(Part { volume: volume.path.clone(), path: part });
            place(parts.len() - 1)
        };
        binds.push(Bind {
            source,
            target: mount.mount_path.clone(),
            read_only: mount.read_only == Some(true) || volume.sealed,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => "slave",
                Some("Bidirectional") => "shared",
                _ => "private",
            },
        });
    }
    Ok((binds, parts))
}

/// The part of a volume that is mounted; empty for all of it.
fn part(mount: &VolumeMount, env: &[(String, String)]) -> Result<String, String> {
    let plain = mount.sub_path.as_deref().unwrap_or_default();
    if !plain.is_empty() {
        return Ok(plain.to_owned());
    }
    let Some(text) = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty()) else { return Ok(String::new()) };
    let missing = std::cell::Cell::new(false);
    let part = expand(text, |name| {
        let value = env.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        missing.set(missing.get() || value.is_none());
        value
    });
    if missing.get() {
        return Err(format!(
            "failed to expand subPath for volume mount {:?}: a variable of {text} is not set",
            mount.name
        ));
    }
    if Path::new(&part).is_absolute() || part.split('/').any(|name| name == "..") {
        return Err(format!("subPath {part:?} must be a relative path without `..`"));
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(volumes: Value, mounts: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"app": "web"}},
            "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts,
                "resources": {"limits": {"cpu": "250m"}}}]}
        }))
        .unwrap()
    }

    fn make(pod: &Pod, dir: &Path) -> Result<(Vec<Bind>, Vec<Part>), String> {
        let objects = Objects::of(CONFIG_MAP, "settings", &[("a.conf", "A"), ("b.conf", "B")]);
        let context = ServiceEnv { pod_ips: &[], host_ips: &[], services: &[], allocatable: (0, 0) };
        prepare(pod, dir, &Sources { objects: &objects, tokens: &Tokens::default(), context: &context })?;
        let env = [("ROOT".to_owned(), "/etc".to_owned()), ("UP".to_owned(), "..".to_owned())];
        let volumes = known(pod, dir, |image| (image == "web:1").then(|| PathBuf::from("/images/web")));
        let place = |index| PathBuf::from(format!("/parts/{index}"));
        binds(&pod.spec.as_ref().unwrap().containers[0], &volumes, &env, place)
    }

    #[test]
    fn volumes_are_filled_and_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = json!([
            {"name": "scratch", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "settings", "defaultMode": 0o400,
                "items": [{"key": "a.conf", "path": "deep/a"}]}},
            {"name": "info", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}}
            ]}},
            {"name": "files", "image": {"reference": "web:1"}},
            {"name": "maybe", "secret": {"secretName": "none", "optional": true}}
        ]);
        let mounts = json!([
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "config", "mountPath": "/etc/app/a", "subPath": "deep/a"},
            {"name": "info", "mountPath": "/info", "readOnly": true},
            {"name": "scratch", "mountPath": "/part", "subPath": "a/b"},
            {"name": "files", "mountPath": "/files"}
        ]);
        let (binds, parts) = make(&pod(volumes, mounts), dir.path()).unwrap();
        let read = |bind: &Bind| fs::read_to_string(&bind.source).unwrap();
        assert_eq!((binds[0].read_only, binds[0].target.as_str()), (false, "/tmp"));
        assert_eq!((read(&binds[1]).as_str(), binds[1].read_only), ("A", true));
        assert_eq!(fs::metadata(&binds[1].source).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_to_string(binds[2].source.join("labels")).unwrap(), "app=\"web\"");
        assert_eq!(fs::read_to_string(binds[2].source.join("cpu")).unwrap(), "250");
        assert_eq!(parts, [Part { volume: dir.path().join("volumes/scratch"), path: "a/b".into() }]);
        assert_eq!((binds[3].source.as_path(), binds[3].read_only), (Path::new("/parts/0"), false));
        assert_eq!((binds[4].source.as_path(), binds[4].read_only), (Path::new("/images/web"), true));
        assert!(!dir.path().join("volumes/maybe/k").exists());
    }

    #[test]
    fn what_cannot_be_mounted_is_said() {
        for (volume, mount, reason) in [
            (json!({"configMap": {"name": "no"}}), json!({}), "configmap \"no\" not found"),
            (json!({"configMap": {"name": "settings", "items": [{"key": "z", "path": "z"}]}}), json!({}), "key: z"),
            (
                json!({"configMap": {"name": "settings", "items": [{"key": "a.conf", "path": "../z"}]}}),
                json!({}),
                "bad path",
            ),
            (json!({"nfs": {"server": "x", "path": "/"}}), json!({}), "not supported"),
            (json!({"emptyDir": {}}), json!({"subPathExpr": "$(ROOT)/x"}), "must be a relative path"),
            (json!({"emptyDir": {}}), json!({"subPathExpr": "a/$(UP)"}), "must be a relative path"),
            (json!({"emptyDir": {}}), json!({"subPathExpr": "$(NONE)"}), "is not set"),
            (json!({"image": {"reference": "none:1"}}), json!({}), "no volume is named v"),
            (json!({"configMap": {"name": "settings"}}), json!({"subPath": "../../etc"}), "leads out"),
            (json!({"hostPath": {"path": "/no/such/thing", "type": "Directory"}}), json!({}), "No such file"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("etc")).unwrap();
            let (mut volume, mut mount) = (volume, mount);
            volume["name"] = json!("v");
            mount["name"] = json!("v");
            mount["mountPath"] = json!("/v");
            let error = make(&pod(json!([volume]), json!([mount])), dir.path()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn memory_volumes_are_left_to_the_shim() {
        let volumes =
            json!([{"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "d", "emptyDir": {}}]);
        let mut pod = pod(volumes, json!([]));
        let mounted = |pod: &Pod, options: &str| {
            assert_eq!(
                memory(pod, Path::new("/pod")),
                BTreeMap::from([(PathBuf::from("/pod/volumes/m"), options.to_owned())])
            );
        };
        mounted(&pod, "mode=1777,size=1048576");
        pod.spec.as_mut().unwrap().security_context = serde_json::from_value(json!({"fsGroup": 123})).unwrap();
        mounted(&pod, "mode=3777,gid=123,size=1048576");
    }
}
