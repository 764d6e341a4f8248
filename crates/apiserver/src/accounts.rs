//! A new pod -> the same with what its ServiceAccount brings: a token to use the API with, and names of pull secrets.
//!
//! Invariant: a pod is stored only if its account exists. Source: `plugin/pkg/admission/serviceaccount`, whose volume
//! this is, word for word.

use std::time::Duration;

use portolan_kinds::{Status, names};
use portolan_store::Prefix;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::object;
use crate::server::Server;

/// How long a pod waits for the account that every new namespace gets.
const PATIENCE: Duration = Duration::from_secs(2);
const VOLUME: &str = "kube-api-access-";
const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Renewed long before it ends by those who keep it.
const SECONDS: i64 = 3607;

pub(crate) async fn admit(server: &Server, namespace: &str, pod: &mut Value) -> Result<(), Status> {
    let name = object::text(pod, "/spec/serviceAccountName").to_owned();
    let Some(account) = account(server, namespace, &name).await else {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found");
        return Err(Status::forbidden("", "pods", object::name(pod), &why));
    };
    complete(pod, &account, || names::generate_name(VOLUME, rand::random()));
    Ok(())
}

/// The account; the default one of a namespace that is just being made is waited for.
async fn account(server: &Server, namespace: &str, name: &str) -> Option<Value> {
    let kind = crate::known_kind("", "serviceaccounts");
    let key = object::key(kind, namespace, name);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (found, revision) = server.store.get(&key);
        if let Some(entry) = found {
            return Some(object::decode(&entry.value));
        }
        if name != "default" {
            return None;
        }
        let prefix = Prefix::namespace("", kind.plural, namespace);
        let mut watch = server.store.watch(prefix, revision).ok()?;
        timeout_at(deadline, watch.next()).await.ok()?.ok()?;
    }
}

fn complete(pod: &mut Value, account: &Value, volume_name: impl FnOnce() -> String) {
    let automount = "automountServiceAccountToken";
    if pod["spec"][automount].as_bool().or(account[automount].as_bool()) != Some(false) {
        mount(pod, volume_name);
    }
    if !object::has_items(pod, "/spec/imagePullSecrets")
        && let Some(secrets) = account["imagePullSecrets"].as_array().filter(|secrets| !secrets.is_empty())
    {
        object::spec(pod).insert("imagePullSecrets".into(), secrets.clone().into());
    }
}

/// Gives every container the token, unless something else is to be where it would be.
fn mount(pod: &mut Value, volume_name: impl FnOnce() -> String) {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let own = volumes.map(object_name).find(|name| name.starts_with(VOLUME)).map(str::to_owned);
    let exists = own.is_some();
    let volume = own.unwrap_or_else(volume_name);
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        let containers = object::spec(pod).get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mounts = object::map_of(container).entry("volumeMounts").or_insert_with(|| json!([]));
            let Value::Array(mounts) = mounts else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
                mounted = true;
            }
        }
    }
    if mounted && !exists {
        let volumes = object::spec(pod).entry("volumes").or_insert_with(|| json!([]));
        if let Value::Array(volumes) = volumes {
            volumes.push(json!({"name": volume, "projected": {"defaultMode": 0o644, "sources": [
                {"serviceAccountToken": {"expirationSeconds": SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
                ]}}
            ]}}));
        }
    }
}

fn object_name(volume: &Value) -> &str {
    object::text(volume, "/name")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(spec: Value, account: Value) -> Value {
        let mut pod = json!({"spec": spec});
        complete(&mut pod, &account, || "kube-api-access-x".to_owned());
        pod["spec"].take()
    }

    #[test]
    fn every_container_gets_the_token() {
        let spec = completed(json!({"containers": [{"name": "a"}], "initContainers": [{"name": "b"}]}), json!({}));
        let mount = json!([{"name": "kube-api-access-x", "readOnly": true, "mountPath": MOUNT}]);
        assert_eq!(
            (&spec["containers"][0]["volumeMounts"], &spec["initContainers"][0]["volumeMounts"]),
            (&mount, &mount)
        );
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-x");
        // A pod that comes with it already, as one that was exported, has it once.
        assert_eq!(completed(spec.clone(), json!({})), spec);
    }

    #[test]
    fn who_wants_none_gets_none() {
        let plain = json!({"containers": [{"name": "a"}]});
        assert_eq!(completed(plain.clone(), json!({"automountServiceAccountToken": false})), plain);
        let no = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": false});
        assert_eq!(completed(no.clone(), json!({"automountServiceAccountToken": true})), no);
        let yes = json!({"containers": [{"name": "a"}], "automountServiceAccountToken": true});
        assert!(completed(yes, json!({"automountServiceAccountToken": false})).get("volumes").is_some());
        let taken = json!({"containers": [{"name": "a", "volumeMounts": [{"name": "own", "mountPath": MOUNT}]}]});
        assert_eq!(completed(taken.clone(), json!({})), taken);
    }

    #[test]
    fn pull_secrets_come_from_the_account() {
        let account = json!({"imagePullSecrets": [{"name": "s"}], "automountServiceAccountToken": false});
        assert_eq!(completed(json!({"containers": []}), account.clone())["imagePullSecrets"], json!([{"name": "s"}]));
        let own = json!({"containers": [], "imagePullSecrets": [{"name": "own"}]});
        assert_eq!(completed(own.clone(), account), own);
    }
}
