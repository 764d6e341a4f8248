//! The OpenAPI documents that kubectl reads: one for each group and version, and one of all in the older version 2,
//! made from the table of fields.
//!
//! Invariants: everything a document refers to is in it; its hash in the index changes when it does.
//! Deliberately not here: keeping documents, each of which takes milliseconds to make.
//! Source: `/openapi/v3` and `/openapi/v2` of kube-apiserver.

mod defined;
pub mod gnostic;
mod paths;
mod schemas;
mod v2;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::schema::descriptions;
use crate::{Catalog, Kind, QUESTIONS, Question};
use schemas::{Other, Words};

pub use v2::v2;

const TITLE: &str = "Kubernetes";
const VERSION: &str = "v1.36.2";

/// The path of a group and version: `api/v1`, `apis/apps/v1`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

/// Whether there is a document at `/openapi/v3/<path>`.
pub fn serves(catalog: &Catalog, path: &str) -> bool {
    paths_of(catalog).contains(path)
}

/// The paths of all documents.
fn paths_of(catalog: &Catalog) -> BTreeSet<String> {
    let kinds = catalog.iter().map(|kind| path_of(kind.group, kind.version));
    kinds.chain(QUESTIONS.iter().map(|question| path_of(question.group, "v1"))).collect()
}

/// Where each group's document is, and a number that changes when it does. Of defined kinds the definitions are hashed,
/// and not the documents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index(BTreeMap<String, u64>);

impl Index {
    /// Of the program's own kinds alone. It makes all their documents, which takes a while.
    pub fn own() -> Self {
        let (catalog, words) = (Catalog::default(), descriptions());
        let hash =
            |path: &str| document(&catalog, path, &words).map_or(0, |document| hash(document.to_string().as_bytes()));
        Self(paths_of(&catalog).into_iter().map(|path| (path.clone(), hash(&path))).collect())
    }

    /// With the kinds that somebody defined.
    #[must_use]
    pub fn with(&self, catalog: &Catalog) -> Self {
        let mut hashes = self.0.clone();
        for kind in catalog.iter() {
            if let Some(custom) = &kind.custom {
                let hash = hashes.entry(path_of(kind.group, kind.version)).or_default();
                *hash = hash.rotate_left(1) ^ custom.fingerprint();
            }
        }
        Self(hashes)
    }

    /// The number of the document at `/openapi/v3/<path>`.
    pub fn hash(&self, path: &str) -> Option<u64> {
        self.0.get(path).copied()
    }

    /// The number of all documents together.
    pub fn whole(&self) -> u64 {
        hash(self.to_json().to_string().as_bytes())
    }

    /// Where the document of this path and number is.
    pub fn url(path: &str, hash: u64) -> String {
        format!("/openapi/v3/{path}?hash={hash:016X}")
    }

    /// `/openapi/v3`.
    pub fn to_json(&self) -> Value {
        let entry =
            |(path, hash): (&String, &u64)| (path.clone(), json!({"serverRelativeURL": Self::url(path, *hash)}));
        json!({"paths": self.0.iter().map(entry).collect::<Map<_, _>>()})
    }
}

/// FNV-1a: it only has to differ when the document does.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The document at `/openapi/v3/<path>`, where path is such as `api/v1` or `apis/apps/v1`.
pub fn v3(catalog: &Catalog, path: &str) -> Option<Value> {
    document(catalog, path, &descriptions())
}

fn document(catalog: &Catalog, path: &str, words: &Words) -> Option<Value> {
    let kinds: Vec<&Kind> = catalog.iter().filter(|kind| path_of(kind.group, kind.version) == path).collect();
    let questions: Vec<&Question> = QUESTIONS.iter().filter(|question| path_of(question.group, "v1") == path).collect();
    if kinds.is_empty() && questions.is_empty() {
        return None;
    }
    let mut all_paths = Map::new();
    for kind in &kinds {
        paths::add(&mut all_paths, path, kind);
    }
    for question in &questions {
        paths::ask(&mut all_paths, path, question);
    }
    let (defined, own): (Vec<&Kind>, Vec<&Kind>) = kinds.iter().partition(|kind| kind.is_custom());
    let asked = questions.into_iter().map(paths::asked);
    let mut others: Vec<Other> = kinds.iter().flat_map(|kind| paths::others(kind)).chain(asked).collect();
    if let Some(kind) = kinds.first() {
        others.extend(paths::everywhere(kind.group, kind.version));
    }
    let mut components = schemas::components(&own, &others, words);
    if let Some(kind) = own.first() {
        components.extend(paths::event(kind.group, kind.version));
    }
    for kind in defined {
        defined::add(&mut components, kind);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": TITLE, "version": VERSION},
        "paths": all_paths,
        "components": {"schemas": components},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::Look;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(target) if key == "$ref" => _ = found.insert(target.to_owned()),
                        _ => references(value, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn documents_are_whole() {
        let index = Index::own().to_json();
        let paths = index["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 10);
        for (path, entry) in paths {
            assert!(entry["serverRelativeURL"].as_str().unwrap().starts_with(&format!("/openapi/v3/{path}?hash=")));
            let document = v3(&Catalog::default(), path).unwrap();
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for target in found {
                let name = target.strip_prefix("#/components/schemas/").unwrap();
                assert!(document["components"]["schemas"].get(name).is_some(), "{path}: {name} is missing");
            }
        }
        assert!(v3(&Catalog::default(), "apis/none/v1").is_none());
    }

    #[test]
    fn version_2_has_all_of_it() {
        let document = v2(&Catalog::default());
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        for target in found {
            let name = target.strip_prefix("#/definitions/").unwrap();
            assert!(document["definitions"].get(name).is_some(), "{name} is missing");
        }
        let service = &document["definitions"]["io.k8s.api.core.v1.ServiceSpec"]["properties"];
        let ports = json!({
            "description": service["ports"]["description"], "type": "array",
            "items": {"$ref": "#/definitions/io.k8s.api.core.v1.ServicePort"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
            "x-kubernetes-patch-merge-key": "port", "x-kubernetes-patch-strategy": "merge"
        });
        assert_eq!(service["ports"], ports);
        let config = json!({
            "description": service["sessionAffinityConfig"]["description"],
            "$ref": "#/definitions/io.k8s.api.core.v1.SessionAffinityConfig"
        });
        assert_eq!(service["sessionAffinityConfig"], config);
        let number = &document["definitions"]["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!((&number["type"], &number["format"]), (&json!("string"), &json!("int-or-string")));
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/services/{name}"]["patch"];
        let parameter =
            |name: &str| patch["parameters"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap();
        assert_eq!(
            *parameter("force"),
            json!({"name": "force", "in": "query", "type": "boolean", "uniqueItems": true})
        );
        assert_eq!(parameter("body")["in"], "body");
        assert!(patch["consumes"].as_array().unwrap().contains(&json!("application/strategic-merge-patch+json")));
        assert_eq!(patch["responses"]["200"]["schema"], json!({"$ref": "#/definitions/io.k8s.api.core.v1.Service"}));
    }

    #[test]
    fn what_kubectl_looks_for() {
        let core = v3(&Catalog::default(), "api/v1").unwrap();
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/services/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], json!({"group": "", "kind": "Service", "version": "v1"}));
        let names: Vec<&str> =
            patch["parameters"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
        assert!(
            ["dryRun", "fieldManager", "fieldValidation", "force"].iter().all(|name| names.contains(name)),
            "{names:?}"
        );
        assert!(patch["requestBody"]["content"].get("application/apply-patch+yaml").is_some());
        let list = &core["paths"]["/api/v1/namespaces/{namespace}/services"]["get"]["parameters"];
        let kinds: Vec<(&str, &str)> =
            list.as_array().unwrap().iter().map(|p| (p.text("name"), p["schema"].text("type"))).collect();
        assert!(
            [("limit", "integer"), ("labelSelector", "string"), ("watch", "boolean")].iter().all(|p| kinds.contains(p))
        );
        let watch = &core["paths"]["/api/v1/watch/namespaces/{namespace}/services/{name}"]["get"];
        assert_eq!(watch["x-kubernetes-action"], "watch");
        let schemas = &core["components"]["schemas"];
        let ports = &schemas["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
        assert_eq!(ports["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(ports["x-kubernetes-list-map-keys"], json!(["port", "protocol"]));
        assert_eq!(schemas["io.k8s.api.core.v1.ObjectReference"]["x-kubernetes-map-type"], "atomic");
        let service = &schemas["io.k8s.api.core.v1.Service"];
        assert_eq!(
            service["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "Service", "version": "v1"}])
        );
        assert!(service["description"].as_str().unwrap().starts_with("Service is a named abstraction"));
        assert_eq!(schemas["io.k8s.api.core.v1.ServicePort"]["required"], json!(["port"]));
        let spec = &schemas["io.k8s.api.core.v1.ServiceSpec"]["properties"];
        assert_eq!(spec["type"]["enum"], json!(["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
        assert_eq!(spec["ipFamilies"]["items"]["enum"], json!(["", "IPv4", "IPv6"]));
        assert_eq!(ports["items"], json!({"$ref": "#/components/schemas/io.k8s.api.core.v1.ServicePort"}));
        let port = &schemas["io.k8s.api.core.v1.ServicePort"]["properties"];
        assert_eq!((&port["protocol"]["default"], &port["port"]["default"]), (&json!("TCP"), &json!(0)));
        assert_eq!((&service["properties"]["spec"]["default"], port["name"].get("default")), (&json!({}), None));
        let apps = v3(&Catalog::default(), "apis/apps/v1").unwrap();
        let gvk = |group: &str| json!({"group": group, "version": "v1", "kind": "DeleteOptions"});
        let options = &apps["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions"];
        assert_eq!(options["x-kubernetes-group-version-kind"], json!([gvk(""), gvk("apps")]));
        let gone = |path: &str| {
            core["paths"][path]["delete"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].clone()
        };
        assert_eq!(gone("/api/v1/namespaces/{namespace}/pods/{name}"), "#/components/schemas/io.k8s.api.core.v1.Pod");
        assert_eq!(
            gone("/api/v1/namespaces/{namespace}/secrets/{name}"),
            "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.Status"
        );
        assert!(apps["paths"].get("/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale").is_some());
        assert!(apps["components"]["schemas"].get("io.k8s.api.apps.v1.DeploymentList").is_some());
    }
}
