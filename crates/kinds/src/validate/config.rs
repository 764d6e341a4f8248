//! ConfigMaps and Secrets.

use serde_json::Value;

use super::Errors;
use crate::look::{Look, Path};
use crate::{FieldError, names};

/// All values of one object together, in bytes.
const MAX_SIZE: usize = 1024 * 1024;

const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Bytes that base64 text stands for.
fn decoded_length(text: &str) -> usize {
    let digits = text.bytes().filter(|byte| !matches!(byte, b'=' | b'\r' | b'\n')).count();
    digits * 3 / 4
}

pub(super) fn config_map(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    kept_if_immutable(errors, new, old, &["data", "binaryData"]);
    let mut size = 0;
    let path = Path::Root.field("data");
    for (key, value) in new.entries("data") {
        errors.each(&path.key(key), key, names::config_map_key(key));
        if new["binaryData"].get(key).is_some() {
            errors.invalid(&path.key(key), key, "duplicate of key present in binaryData");
        }
        size += value.as_str().map_or(0, str::len);
    }
    let path = Path::Root.field("binaryData");
    for (key, value) in new.entries("binaryData") {
        errors.each(&path.key(key), key, names::config_map_key(key));
        size += decoded_length(value.as_str().unwrap_or_default());
    }
    if size > MAX_SIZE {
        // The path of the whole object, as upstream spells it.
        errors.push(FieldError::too_long("[]", MAX_SIZE));
    }
}

pub(super) fn secret(errors: &mut Errors, new: &Value, old: Option<&Value>) {
    if let Some(old) = old {
        errors.immutable(&Path::Root.field("type"), &new["type"], &old["type"]);
    }
    kept_if_immutable(errors, new, old, &["data"]);
    let path = Path::Root.field("data");
    let mut size = 0;
    for (key, value) in new.entries("data") {
        errors.each(&path.key(key), key, names::config_map_key(key));
        size += decoded_length(value.as_str().unwrap_or_default());
    }
    if size > MAX_SIZE {
        errors.push(FieldError::too_long(path, MAX_SIZE));
    }
    let data = &new["data"];
    let required = |errors: &mut Errors, key: &str| {
        if data.get(key).is_none() {
            errors.required(&path.key(key), "");
        }
    };
    match new.text("type") {
        "kubernetes.io/service-account-token" => {
            let annotation = "kubernetes.io/service-account.name";
            if new.get_in(&["metadata", "annotations", annotation]).as_str().unwrap_or_default().is_empty() {
                let metadata = Path::Root.field("metadata");
                errors.required(&metadata.field("annotations").key(annotation), "");
            }
        }
        "kubernetes.io/dockercfg" => required(errors, ".dockercfg"),
        "kubernetes.io/dockerconfigjson" => required(errors, ".dockerconfigjson"),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            required(errors, "username");
            required(errors, "password");
        }
        "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").is_empty() => {
            errors.required(&path.key("ssh-privatekey"), "");
        }
        "kubernetes.io/tls" => {
            required(errors, "tls.crt");
            required(errors, "tls.key");
        }
        _ => {}
    }
}

fn kept_if_immutable(errors: &mut Errors, new: &Value, old: Option<&Value>, fields: &[&str]) {
    let Some(old) = old.filter(|old| old.flag("immutable")) else { return };
    if !new.flag("immutable") {
        errors.forbidden(&Path::Root.field("immutable"), IMMUTABLE);
    }
    for field in fields {
        if new[*field] != old[*field] {
            errors.forbidden(&Path::Root.field(field), IMMUTABLE);
        }
    }
}
