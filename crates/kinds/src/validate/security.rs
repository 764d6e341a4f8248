//! Security contexts of pods and of their containers.
//!
//! Deliberately not here: options of Windows.

use serde_json::{Value, json};

use super::{Errors, as_go, volume};
use crate::look::{Look, Path, repeats};

/// What a user or group may be.
fn identity(errors: &mut Errors, value: Option<i64>, path: &Path<'_>) {
    if let Some(id) = value.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        errors.invalid(path, id, "must be between 0 and 2147483647, inclusive");
    }
}

/// A container's own context.
pub(super) fn container(errors: &mut Errors, context: &Value, host_users: bool, path: &Path<'_>) {
    identity(errors, context.int("runAsUser"), &path.field("runAsUser"));
    identity(errors, context.int("runAsGroup"), &path.field("runAsGroup"));
    if let Some(mount) = context["procMount"].as_str() {
        let path = path.field("procMount");
        if !["Default", "Unmasked"].contains(&mount) {
            errors.not_supported(&path, mount, &["Default", "Unmasked"]);
        }
        if host_users && mount == "Unmasked" {
            errors.invalid(&path, mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(errors, &context["seccompProfile"], &path.field("seccompProfile"));
    if context["allowPrivilegeEscalation"] == false {
        if context.flag("privileged") {
            let both = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid_as(path, written(context), both);
        }
        if context["capabilities"].list("add").iter().any(|name| name == "CAP_SYS_ADMIN") {
            let both = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid_as(path, written(context), both);
        }
    }
    app_armor(errors, &context["appArmorProfile"], &path.field("appArmorProfile"));
}

/// A context as Kubernetes writes it. An `as_go` of parts that are there is JSON again.
fn written(context: &Value) -> String {
    let part = |field: &str, fields: &[(&str, &str, Value)]| match context.get(field) {
        Some(part) => as_go(part, fields),
        None => "null".to_owned(),
    };
    let plain = |field: &str| context.get(field).unwrap_or(&Value::Null).to_string();
    let (empty, null) = (json!(""), Value::Null);
    let profile = [("Type", "type", empty.clone()), ("LocalhostProfile", "localhostProfile", null.clone())];
    let fields = [
        ("Capabilities", part("capabilities", &[("Add", "add", null.clone()), ("Drop", "drop", null.clone())])),
        ("Privileged", plain("privileged")),
        (
            "SELinuxOptions",
            part(
                "seLinuxOptions",
                &["User", "Role", "Type", "Level"].map(|go| match go {
                    "User" => (go, "user", empty.clone()),
                    "Role" => (go, "role", empty.clone()),
                    "Type" => (go, "type", empty.clone()),
                    _ => (go, "level", empty.clone()),
                }),
            ),
        ),
        ("WindowsOptions", "null".to_owned()),
        ("RunAsUser", plain("runAsUser")),
        ("RunAsGroup", plain("runAsGroup")),
        ("RunAsNonRoot", plain("runAsNonRoot")),
        ("ReadOnlyRootFilesystem", plain("readOnlyRootFilesystem")),
        ("AllowPrivilegeEscalation", plain("allowPrivilegeEscalation")),
        ("ProcMount", plain("procMount")),
        ("SeccompProfile", part("seccompProfile", &profile)),
        ("AppArmorProfile", part("appArmorProfile", &profile)),
    ];
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

/// The pod's own context.
pub(super) fn pod(errors: &mut Errors, spec: &Value, path: &Path<'_>) {
    let context = &spec["securityContext"];
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        identity(errors, context.int(field), &path.field(field));
    }
    let list = path.field("supplementalGroups");
    for (index, group) in context.list("supplementalGroups").iter().enumerate() {
        identity(errors, group.as_i64(), &list.index(index));
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let both = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.field("shareProcessNamespace"), true, both);
    }
    sysctls(errors, spec, &path.field("sysctls"));
    choice(errors, context, path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp(errors, &context["seccompProfile"], &path.field("seccompProfile"));
    app_armor(errors, &context["appArmorProfile"], &path.field("appArmorProfile"));
    choice(errors, context, path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    choice(errors, context, path, "seLinuxChangePolicy", &["MountOption", "Recursive"]);
}

fn choice(errors: &mut Errors, context: &Value, path: &Path<'_>, field: &str, choices: &[&str]) {
    if let Some(chosen) = context[field].as_str().filter(|chosen| !choices.contains(chosen)) {
        errors.not_supported(&path.field(field), chosen, choices);
    }
}

const SYSCTL: &str = "must have at most 253 characters and match regex \
    ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn sysctls(errors: &mut Errors, spec: &Value, list: &Path<'_>) {
    let all = spec["securityContext"].list("sysctls");
    let repeats = repeats(all.iter().map(|sysctl| sysctl.text("name")));
    for (index, sysctl) in all.iter().enumerate() {
        let path = list.index(index);
        let (path, name) = (path.field("name"), sysctl.text("name"));
        if name.is_empty() {
            errors.required(&path, "");
        } else if name.len() > 253 || !name.split(['.', '/']).all(is_sysctl_part) {
            errors.invalid(&path, name, SYSCTL);
        } else if repeats[index] {
            errors.duplicate(&path, name);
        }
        let name = name.replace('/', ".");
        let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix))
            || name == "kernel.sem";
        for (field, applies) in [("hostNetwork", name.starts_with("net.")), ("hostIPC", of_ipc)] {
            if applies && spec.flag(field) {
                let why = format!("may not be specified when '{field}' is true");
                errors.invalid(&path, sysctl.text("name"), why);
            }
        }
    }
}

fn is_sysctl_part(part: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
    part.chars().all(inner) && !part.is_empty() && !part.starts_with(['-', '_']) && !part.ends_with(['-', '_'])
}

fn seccomp(errors: &mut Errors, profile: &Value, path: &Path<'_>) {
    if profile.is_null() {
        return;
    }
    let kinds = ["Localhost", "RuntimeDefault", "Unconfined"];
    match profile.text("type") {
        "" => errors.required(&path.field("type"), "type is required when seccompProfile is set"),
        kind if !kinds.contains(&kind) => errors.not_supported(&path.field("type"), kind, &kinds),
        _ => {}
    }
    let path = path.field("localhostProfile");
    match (profile.text("type"), profile["localhostProfile"].as_str()) {
        ("Localhost", None) => errors.required(&path, "must be set when seccomp type is Localhost"),
        ("Localhost", Some(file)) => volume::descending(errors, file, &path),
        (_, Some(_)) => {
            let fields = [("Type", "type", json!("")), ("LocalhostProfile", "localhostProfile", Value::Null)];
            errors.invalid_as(&path, as_go(profile, &fields), "can only be set when seccomp type is Localhost");
        }
        (_, None) => {}
    }
}

fn app_armor(errors: &mut Errors, profile: &Value, path: &Path<'_>) {
    if profile.is_null() {
        return;
    }
    let file = profile["localhostProfile"].as_str();
    let here = path.field("localhostProfile");
    match profile.text("type") {
        "Localhost" => match file {
            None | Some("") => errors.required(&here, "must be set when AppArmor type is Localhost"),
            Some(file) => {
                if file.trim() != file {
                    errors.invalid(&here, file, "must not be padded with whitespace");
                }
                // A path of the longest kind, without its NUL.
                if file.len() > 4095 {
                    errors.push(crate::FieldError::too_long(here, 4095));
                }
            }
        },
        "RuntimeDefault" | "Unconfined" => {
            if let Some(file) = file {
                errors.invalid(&here, file, "can only be set when AppArmor type is Localhost");
            }
        }
        "" => errors.required(&path.field("type"), "type is required when appArmorProfile is set"),
        other => errors.not_supported(&path.field("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}
