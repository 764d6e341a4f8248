//! `--apply`: manifest files -> objects in the cluster.
//!
//! Invariants: every file is read and parsed before the cluster is made, and every object is tried with `dryRun=All`
//! before the first is written, so that a mistake in one applies none. What exists already is merge-patched. As with
//! kubectl, a field that the API does not know is a mistake.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource, Scope};
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

/// One object and where it was written.
pub(crate) struct Manifest {
    origin: String,
    object: DynamicObject,
}

/// Reads files, the `.yaml`, `.yml` and `.json` files of directories in the order of their names, and `-`.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read manifests from standard input")?;
            manifests.extend(parse("standard input", &text)?);
            continue;
        }
        for file in files(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            manifests.extend(parse(&file.display().to_string(), &text)?);
        }
    }
    Ok(manifests)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known)) {
            files.push(file);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "{} has no .yaml, .yml or .json file to apply", path.display());
    Ok(files)
}

fn parse(origin: &str, text: &str) -> Result<Vec<Manifest>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).with_context(|| format!("{origin} is neither YAML nor JSON"))?;
    let mut manifests = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let origin = format!("{origin}, document {}", index + 1);
        match document {
            Value::Null => {}
            Value::Object(mut fields)
                if fields.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List")) =>
            {
                let items = fields.remove("items").and_then(|items| items.as_array().cloned()).unwrap_or_default();
                for (item, object) in items.into_iter().enumerate() {
                    manifests.push(manifest(format!("{origin}, item {}", item + 1), object)?);
                }
            }
            document => manifests.push(manifest(origin, document)?),
        }
    }
    Ok(manifests)
}

fn manifest(origin: String, document: Value) -> Result<Manifest> {
    for field in ["apiVersion", "kind"] {
        ensure!(
            document.get(field).is_some_and(Value::is_string),
            "{origin}: no {field}, so this is no Kubernetes object"
        );
    }
    let object: DynamicObject =
        serde_json::from_value(document).with_context(|| format!("{origin} is no Kubernetes object"))?;
    ensure!(object.metadata.name.is_some(), "{origin}: metadata.name is missing");
    Ok(Manifest { origin, object })
}

impl Manifest {
    /// The namespace that this manifest itself makes, if it makes one.
    fn makes_namespace(&self) -> Option<&str> {
        let types = self.object.types.as_ref()?;
        (types.kind == "Namespace" && types.api_version == "v1").then_some(self.object.metadata.name.as_deref()?)
    }

    /// A refusal in the API's words, with where the object was written.
    fn judge(&self, outcome: Result<(), kube::Error>) -> Result<()> {
        match outcome {
            Err(kube::Error::Api(status)) => bail!("{}: {}", self.origin, status.message),
            outcome => outcome.with_context(|| self.origin.clone()),
        }
    }

    async fn target(&self, client: &Client) -> Result<Target> {
        let types = self.object.types.as_ref().context("the kind is missing")?;
        let kind = GroupVersionKind::try_from(types).with_context(|| self.origin.clone())?;
        let (resource, capabilities): (ApiResource, ApiCapabilities) =
            match kube::discovery::pinned_kind(client, &kind).await {
                Err(kube::Error::Api(_) | kube::Error::Discovery(_)) => {
                    bail!("{}: the cluster has no {} in {}", self.origin, types.kind, types.api_version)
                }
                found => found.with_context(|| self.origin.clone())?,
            };
        let namespace = match capabilities.scope {
            Scope::Namespaced => Some(self.object.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())),
            Scope::Cluster => None,
        };
        let api = match &namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        Ok(Target { client: client.clone(), resource, api, namespace })
    }
}

struct Target {
    client: Client,
    resource: ApiResource,
    api: Api<DynamicObject>,
    namespace: Option<String>,
}

impl Target {
    async fn write(&self, manifest: &Manifest, dry_run: bool) -> Result<()> {
        let name = manifest.object.metadata.name.as_deref().unwrap_or_default();
        let outcome = match create(&self.client, self.api.resource_url(), &manifest.object, dry_run).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let patch = PatchParams { dry_run, ..PatchParams::default() }.validation_strict();
                self.api.patch(name, &patch, &Patch::Merge(&manifest.object)).await.map(drop)
            }
            outcome => outcome,
        };
        manifest.judge(outcome)
    }

    /// Tries an object whose namespace does not exist yet in one that does.
    async fn try_elsewhere(&self, manifest: &Manifest) -> Result<()> {
        const ELSEWHERE: &str = "default";
        let mut object = manifest.object.clone();
        object.metadata.namespace = Some(ELSEWHERE.to_owned());
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), ELSEWHERE, &self.resource);
        manifest.judge(match create(&self.client, api.resource_url(), &object, true).await {
            // Somebody has the name there: it says nothing about the object.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            outcome => outcome,
        })
    }
}

/// `kube` has no word for strictness when it creates.
async fn create(client: &Client, url: &str, object: &DynamicObject, dry_run: bool) -> Result<(), kube::Error> {
    let dry_run = if dry_run { "&dryRun=All" } else { "" };
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = http::Request::post(format!("{url}?fieldValidation=Strict{dry_run}"))
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(kube::Error::HttpError)?;
    client.request::<Value>(request).await.map(drop)
}

pub(crate) async fn apply(client: &Client, manifests: Vec<Manifest>) -> Result<()> {
    let mut new_namespaces: BTreeSet<&str> = manifests.iter().filter_map(Manifest::makes_namespace).collect();
    for namespace in Api::<Namespace>::all(client.clone()).list(&ListParams::default()).await? {
        new_namespaces.remove(&*namespace.name_any());
    }
    let mut targets = Vec::with_capacity(manifests.len());
    for manifest in &manifests {
        let target = manifest.target(client).await?;
        match target.namespace.as_deref().is_some_and(|namespace| new_namespaces.contains(namespace)) {
            true => target.try_elsewhere(manifest).await?,
            false => target.write(manifest, true).await?,
        }
        targets.push(target);
    }
    let namespaces_first = |manifest: &&(&Manifest, Target)| manifest.0.makes_namespace().is_none();
    let mut work: Vec<_> = manifests.iter().zip(targets).collect();
    work.sort_by_key(|entry| namespaces_first(&entry));
    for (manifest, target) in &work {
        target.write(manifest, false).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_empty_documents_are_taken() {
        let text = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: b}\n";
        let manifests = parse("x.yaml", text).unwrap();
        let names: Vec<_> = manifests.iter().filter_map(|m| m.object.metadata.name.clone()).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_is_no_manifest_is_named() {
        let rows = [
            ("{ not yaml", "x is neither YAML nor JSON"),
            ("just words", "x, document 1: no apiVersion"),
            ("apiVersion: v1\nkind: Service\n", "x, document 1: metadata.name is missing"),
        ];
        for (text, expected) in rows {
            let error = format!("{:#}", parse("x", text).err().unwrap());
            assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        }
    }
}
