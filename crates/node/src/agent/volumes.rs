//! A pod's volumes -> directories on the node, and a container's mounts -> what is bound where.
//!
//! Volumes live in `volumes/<name>` of the pod's directory, but for host paths. Files of ConfigMaps and Secrets are
//! written once, when the pod starts; tokens are renewed (`tokens`). Deliberately not here: persistent volumes; and
//! parts (`subPath`) of volumes that containers write to, because a container could swap a directory for a link while
//! it is being mounted.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, DownwardAPIVolumeFile, KeyToPath, Pod, Volume};

use super::objects::{CONFIG_MAP, Objects, SECRET};
use super::tokens::{self, Tokens};
use crate::pod::{Bind, Lookup, ServiceEnv, bytes, expand, field};

const FILE_MODE: i32 = 0o644;

/// A volume that is ready to be mounted.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    path: PathBuf,
    /// The agent alone writes to it.
    sealed: bool,
}

pub(super) type Volumes = BTreeMap<String, Ready>;

/// The memory-backed volumes, which the shim mounts: where, and how large they may get.
pub(super) fn memory(pod: &Pod, dir: &Path) -> BTreeMap<PathBuf, Option<u64>> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let empty = volumes.filter_map(|volume| Some((volume, volume.empty_dir.as_ref()?)));
    let memory = empty.filter(|(_, empty)| empty.medium.as_deref() == Some("Memory"));
    memory.map(|(volume, empty)| (place(dir, volume), empty.size_limit.as_ref().and_then(bytes))).collect()
}

fn place(dir: &Path, volume: &Volume) -> PathBuf {
    dir.join("volumes").join(&volume.name)
}

/// The pod's volumes as [`prepare`] made them, perhaps for an agent before this one.
pub(super) fn known(pod: &Pod, dir: &Path) -> Volumes {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let ready = volumes.map(|volume| {
        let host = volume.host_path.as_ref().map(|host| PathBuf::from(&host.path));
        let sealed = host.is_none() && volume.empty_dir.is_none();
        (volume.name.clone(), Ready { path: host.unwrap_or_else(|| place(dir, volume)), sealed })
    });
    ready.collect()
}

/// Makes and fills the pod's volumes.
///
/// # Errors
/// In the kubelet's words for a volume that cannot be mounted; which is tried again.
pub(super) fn prepare(
    pod: &Pod,
    dir: &Path,
    objects: &Objects,
    tokens: &Tokens,
    context: &ServiceEnv<'_>,
) -> Result<(), String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let group = spec.security_context.and_then(|security| security.fs_group).and_then(|gid| u32::try_from(gid).ok());
    for volume in spec.volumes.iter().flatten() {
        let failed = |reason: String| format!("MountVolume.SetUp failed for volume \"{}\" : {reason}", volume.name);
        prepare_one(pod, volume, &place(dir, volume), (objects, tokens), context, group).map_err(failed)?;
    }
    Ok(())
}

fn prepare_one(
    pod: &Pod,
    volume: &Volume,
    path: &Path,
    (objects, tokens): (&Objects, &Tokens),
    context: &ServiceEnv<'_>,
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
                let text = tokens.get(&volume.name, &token.path).ok_or("the API gave no token")?;
                let (own, owner, _) = tokens::access(pod);
                let mode = own.and_then(|mode| i32::try_from(mode).ok()).unwrap_or(mode);
                files.0.insert(token.path.clone(), File { content: text.into(), mode, owner });
            }
        }
    } else {
        return Err("volumes of this type are not supported on this node".to_owned());
    }
    files.write(path, group).map_err(io)
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

/// Files to write, by their paths within the volume.
#[derive(Default)]
struct Files(BTreeMap<String, File>);

struct File {
    content: Vec<u8>,
    mode: i32,
    /// The agent's own, if nobody's.
    owner: Option<u32>,
}

impl File {
    fn new(content: Vec<u8>, mode: i32) -> Self {
        Self { content, mode, owner: None }
    }
}

impl Files {
    fn add(
        &mut self,
        objects: &Objects,
        kind: &'static str,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
        mode: i32,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(data) = objects.data(kind, name) else {
            return if optional { Ok(()) } else { Err(format!("{kind} \"{name}\" not found")) };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            self.0.extend(data.iter().map(|(key, value)| (key.clone(), File::new(value.clone(), mode))));
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => {
                    self.0.insert(item.path.clone(), File::new(value.clone(), item.mode.unwrap_or(mode)));
                }
                None if optional => {}
                None => return Err(format!("references non-existent {kind} key: {}", item.key)),
            }
        }
        Ok(())
    }

    fn add_fields(
        &mut self,
        pod: &Pod,
        context: &ServiceEnv<'_>,
        items: &[DownwardAPIVolumeFile],
        mode: i32,
    ) -> Result<(), String> {
        for item in items {
            let Some(reference) = &item.field_ref else { continue };
            let value = field(pod, context, &reference.field_path)?;
            self.0.insert(item.path.clone(), File::new(value.into_bytes(), item.mode.unwrap_or(mode)));
        }
        Ok(())
    }

    fn write(self, root: &Path, group: Option<u32>) -> io::Result<()> {
        // From an attempt that did not get to its end.
        let _ = fs::remove_dir_all(root);
        fs::create_dir_all(root)?;
        for (name, File { content, mode, owner }) in self.0 {
            if !Path::new(&name).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a bad path: {name}")));
            }
            let path = root.join(&name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            io::Write::write_all(&mut file, &content)?;
            let mut mode = u32::try_from(mode).unwrap_or(0o644) & 0o777;
            if owner.is_some() || group.is_some() {
                std::os::unix::fs::chown(&path, owner, group)?;
            }
            if group.is_some() {
                mode |= 0o040;
            }
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// What a container sees of the pod's volumes.
///
/// # Errors
/// When a mount names no volume, or a part of one that cannot be mounted.
pub(super) fn binds(container: &Container, volumes: &Volumes, env: &[(String, String)]) -> Result<Vec<Bind>, String> {
    let mut binds = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes.get(&mount.name).ok_or_else(|| format!("no volume is named {}", mount.name))?;
        let part = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(part), _) if !part.is_empty() => part.clone(),
            (_, Some(text)) => expand(text, |name| env.iter().find(|(known, _)| known == name).map(|(_, v)| v.clone())),
            _ => String::new(),
        };
        let mut source = volume.path.clone();
        if !part.is_empty() {
            if !volume.sealed {
                return Err(format!(
                    "subPath {part:?} of volume {}: only parts of configMap, secret, downwardAPI and \
                                    projected volumes can be mounted on this node",
                    mount.name
                ));
            }
            source.push(&part);
            let real = fs::canonicalize(&source).map_err(|error| format!("subPath {part:?}: {error}"))?;
            let root = fs::canonicalize(&volume.path).map_err(|error| format!("subPath {part:?}: {error}"))?;
            if !real.starts_with(&root) {
                return Err(format!("subPath {part:?} leads out of volume {}", mount.name));
            }
        }
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
    Ok(binds)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(volumes: Value, mounts: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"app": "web"}},
            "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts}]}
        }))
        .unwrap()
    }

    fn make(pod: &Pod, dir: &Path) -> Result<Vec<Bind>, String> {
        let objects = Objects::of(CONFIG_MAP, "settings", &[("a.conf", "A"), ("b.conf", "B")]);
        let context = ServiceEnv { pod_ips: &[], host_ips: &[], services: &[], allocatable: (0, 0) };
        prepare(pod, dir, &objects, &Tokens::default(), &context)?;
        binds(&pod.spec.as_ref().unwrap().containers[0], &known(pod, dir), &[])
    }

    #[test]
    fn volumes_are_filled_and_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = json!([
            {"name": "scratch", "emptyDir": {}},
            {"name": "config", "configMap": {"name": "settings", "defaultMode": 0o400,
                "items": [{"key": "a.conf", "path": "deep/a"}]}},
            {"name": "info", "downwardAPI": {"items": [{"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}},
            {"name": "maybe", "secret": {"secretName": "none", "optional": true}}
        ]);
        let mounts = json!([
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "config", "mountPath": "/etc/app/a", "subPath": "deep/a"},
            {"name": "info", "mountPath": "/info", "readOnly": true}
        ]);
        let binds = make(&pod(volumes, mounts), dir.path()).unwrap();
        let read = |bind: &Bind| fs::read_to_string(&bind.source).unwrap();
        assert_eq!((binds[0].read_only, binds[0].target.as_str()), (false, "/tmp"));
        assert_eq!((read(&binds[1]).as_str(), binds[1].read_only), ("A", true));
        assert_eq!(fs::metadata(&binds[1].source).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(fs::read_to_string(binds[2].source.join("app")).unwrap(), "web");
        assert_eq!(fs::read_dir(dir.path().join("volumes/maybe")).unwrap().count(), 0);
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
            (json!({"emptyDir": {}}), json!({"subPath": "x"}), "only parts of"),
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
        let memory = memory(&pod(volumes, json!([])), Path::new("/pod"));
        assert_eq!(memory, BTreeMap::from([(PathBuf::from("/pod/volumes/m"), Some(1 << 20))]));
    }
}
