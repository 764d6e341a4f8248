//! What is served -> the documents in which clients look them up.
//!
//! Source: `meta/v1` APIResourceList and APIGroupList, `apidiscovery.k8s.io` v2 and v2beta1.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine};
use portolan_kinds::{Catalog, Kind, Question, Version};
use serde_json::{Value, json};

use crate::accept::Discovery;
use crate::object;
use crate::review::Review;
use crate::route::Sub;

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Of what is not deleted together.
const ONE_BY_ONE: [&str; 7] = ["create", "delete", "get", "list", "patch", "update", "watch"];

fn sub_verbs(sub: Sub) -> &'static [&'static str] {
    match sub {
        Sub::None => &VERBS,
        Sub::Status | Sub::Scale | Sub::EphemeralContainers => &["get", "patch", "update"],
        Sub::Binding | Sub::Eviction | Sub::Token => &["create"],
        Sub::Log => &["get"],
        Sub::Finalize => &["update"],
        Sub::Exec | Sub::Attach | Sub::PortForward => &["create", "get"],
        Sub::Proxy => &["create", "delete", "get", "patch", "update"],
    }
}

/// Group, version and kind of what a subresource takes and gives.
fn sub_kind(kind: &Kind, sub: Sub) -> (&'static str, &'static str, &'static str) {
    match sub {
        Sub::Scale => ("autoscaling", "v1", "Scale"),
        Sub::Binding => ("", "v1", "Binding"),
        Sub::Eviction => ("policy", "v1", "Eviction"),
        Sub::Token => ("authentication.k8s.io", "v1", "TokenRequest"),
        Sub::Exec => ("", "v1", "PodExecOptions"),
        Sub::Attach => ("", "v1", "PodAttachOptions"),
        Sub::PortForward => ("", "v1", "PodPortForwardOptions"),
        Sub::Proxy if kind.plural == "services" => ("", "v1", "ServiceProxyOptions"),
        Sub::Proxy if kind.plural == "nodes" => ("", "v1", "NodeProxyOptions"),
        Sub::Proxy => ("", "v1", "PodProxyOptions"),
        Sub::None | Sub::Status | Sub::EphemeralContainers | Sub::Log | Sub::Finalize => {
            (kind.group, kind.version, kind.kind)
        }
    }
}

/// What is served under a name of its own: objects of a kind, or answers to a question.
struct Resource<'a> {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
    verbs: &'static [&'static str],
    /// Nothing that is stored, if there is none.
    stored: Option<&'a Kind>,
}

impl<'a> Resource<'a> {
    fn of(kind: &'a Kind) -> Self {
        let Kind { group, version, kind: name, plural, singular, namespaced, .. } = *kind;
        let verbs = if kind.deletes_collections() { &VERBS[..] } else { &ONE_BY_ONE };
        Self { group, version, kind: name, plural, singular, namespaced, verbs, stored: Some(kind) }
    }

    fn asked(review: Review) -> Self {
        let Question { group, kind, plural, namespaced, .. } = *review.question();
        Self {
            group,
            version: "v1",
            kind,
            plural,
            singular: plural.strip_suffix('s').unwrap_or(plural),
            namespaced,
            verbs: &["create"],
            stored: None,
        }
    }

    fn subresources(&self) -> Vec<(&'a Kind, Sub)> {
        let of = |kind: &'a Kind| Sub::all(kind).into_iter().map(move |sub| (kind, sub));
        self.stored.into_iter().flat_map(of).collect()
    }

    /// Short names and categories, where there are any.
    fn add_names(&self, entry: &mut Value) {
        let Some(kind) = self.stored else { return };
        for (field, names) in [("shortNames", kind.short_names), ("categories", kind.categories)] {
            if !names.is_empty() {
                entry[field] = names.into();
            }
        }
    }
}

fn all(catalog: &Catalog) -> impl Iterator<Item = Resource<'_>> {
    catalog.iter().map(Resource::of).chain(Review::ALL.into_iter().map(Resource::asked))
}

pub(crate) fn serves(catalog: &Catalog, group: &str, version: &str) -> bool {
    all(catalog).any(|resource| resource.group == group && resource.version == version)
}

/// All that is served by group, then by version. The core group has no name.
fn groups(catalog: &Catalog) -> BTreeMap<&'static str, BTreeMap<Version<'static>, Vec<Resource<'_>>>> {
    let mut groups: BTreeMap<_, BTreeMap<_, Vec<_>>> = BTreeMap::new();
    for resource in all(catalog) {
        groups.entry(resource.group).or_default().entry(Version::new(resource.version)).or_default().push(resource);
    }
    groups
}

fn of_group(catalog: &Catalog, name: &str) -> Option<Value> {
    let versions = groups(catalog).remove(name)?;
    let version =
        |version: &Version<'_>| json!({"groupVersion": format!("{name}/{}", version.name), "version": version.name});
    let versions: Vec<_> = versions.keys().map(version).collect();
    Some(json!({"name": name, "versions": versions, "preferredVersion": versions[0]}))
}

/// `/apis/<group>`.
pub(crate) fn group(catalog: &Catalog, name: &str) -> Option<Value> {
    let mut group = of_group(catalog, name)?;
    group["kind"] = "APIGroup".into();
    group["apiVersion"] = "v1".into();
    Some(group)
}

/// `/apis`, as of old.
pub(crate) fn group_list(catalog: &Catalog) -> Value {
    let names = groups(catalog).into_keys().filter(|name| !name.is_empty());
    let groups: Vec<_> = names.filter_map(|name| of_group(catalog, name)).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/api`, as of old.
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}]
    })
}

/// `/api/v1`, `/apis/apps/v1` …
pub(crate) fn resources(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut resources = Vec::new();
    for resource in all(catalog).filter(|resource| resource.group == group && resource.version == version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs
        });
        resource.add_names(&mut entry);
        if let Some(kind) = resource.stored {
            entry["storageVersionHash"] = storage_version_hash(kind).into();
        }
        resources.push(entry);
        for (kind, sub) in resource.subresources() {
            let (sub_group, sub_version, name) = sub_kind(kind, sub);
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, sub.as_str()), "singularName": "",
                "namespaced": kind.namespaced, "kind": name, "verbs": sub_verbs(sub)
            });
            if (sub_group, sub_version) != (group, version) {
                entry["group"] = sub_group.into();
                entry["version"] = sub_version.into();
            }
            resources.push(entry);
        }
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}

/// Changes with what objects are stored as, so that who migrates them knows when to; clients must not read it.
fn storage_version_hash(kind: &Kind) -> String {
    let stored = object::stored_kind(kind);
    let (api_version, kind) = (stored.stored_api_version(), stored.kind);
    let slash = if api_version.contains('/') { "" } else { "/" };
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("{slash}{api_version}/{kind}").as_bytes());
    BASE64_STANDARD.encode(&digest.as_ref()[..8])
}

/// `/api` (the core group) or `/apis` (the others) with everything in them.
pub(crate) fn aggregated(catalog: &Catalog, core: bool, form: Discovery) -> Value {
    let version = if form == Discovery::AggregatedV2Beta1 { "v2beta1" } else { "v2" };
    let items: Vec<_> = groups(catalog)
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<_> = versions
                .into_iter()
                .map(|(version, resources)| {
                    let resources: Vec<_> = resources.iter().map(aggregated_resource).collect();
                    json!({"version": version.name, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items
    })
}

fn aggregated_resource(resource: &Resource<'_>) -> Value {
    let response =
        |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": response((resource.group, resource.version, resource.kind)),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs
    });
    resource.add_names(&mut entry);
    let subs: Vec<_> = resource
        .subresources()
        .into_iter()
        .map(|(kind, sub)| {
            json!({"subresource": sub.as_str(), "responseKind": response(sub_kind(kind, sub)), "verbs": sub_verbs(sub)})
        })
        .collect();
    if !subs.is_empty() {
        entry["subresources"] = subs.into();
    }
    entry
}

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "36", "gitVersion": concat!("v1.36.2+portolan-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", architecture())
    })
}

/// As Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `/`: where there is something to see.
pub(crate) fn index(catalog: &Catalog) -> Value {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_owned).into();
    for (group, versions) in groups(catalog) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
            paths.extend(versions.keys().map(|version| format!("/apis/{group}/{}", version.name)));
        }
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned),
    );
    json!({"paths": paths})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_discovery_tell_the_same() {
        let catalog = Catalog::default();
        let mut seen = Vec::new();
        for core in [true, false] {
            let list = aggregated(&catalog, core, Discovery::AggregatedV2);
            for group in list["items"].as_array().unwrap() {
                let name = group["metadata"]["name"].as_str().unwrap_or_default();
                for version in group["versions"].as_array().unwrap() {
                    let plain = resources(&catalog, name, version["version"].as_str().unwrap());
                    let plain: Vec<_> =
                        plain["resources"].as_array().unwrap().iter().map(|r| r["name"].clone()).collect();
                    for resource in version["resources"].as_array().unwrap() {
                        assert!(plain.contains(&resource["resource"]));
                        seen.push((name.to_owned(), resource["resource"].as_str().unwrap().to_owned()));
                    }
                }
            }
        }
        assert_eq!(seen.len(), portolan_kinds::all().len() + Review::ALL.len());
        assert_eq!(group_list(&catalog)["groups"].as_array().unwrap().len(), groups(&catalog).len() - 1);
        assert!(group(&catalog, "nonsense").is_none());
    }

    #[test]
    fn what_is_stored_has_the_hash_that_kubernetes_gives_it() {
        let hash = |group, plural| storage_version_hash(portolan_kinds::find(group, "v1", plural).unwrap());
        assert_eq!(hash("", "pods"), "xPOwRZ+Yhw8=");
        assert_eq!(hash("apps", "deployments"), "8aSe+NMegvE=");
        assert_eq!(hash("events.k8s.io", "events"), "r2yiGXH7wu8=");
    }

    #[test]
    fn questions_can_only_be_asked() {
        let found = resources(&Catalog::default(), "authorization.k8s.io", "v1");
        assert_eq!(
            found["resources"][0],
            json!({
                "name": "localsubjectaccessreviews", "singularName": "localsubjectaccessreview", "namespaced": true,
                "kind": "LocalSubjectAccessReview", "verbs": ["create"]
            })
        );
        assert_eq!(found["resources"].as_array().unwrap().len(), 4);
        assert!(serves(&Catalog::default(), "authentication.k8s.io", "v1"));
        assert!(!serves(&Catalog::default(), "authentication.k8s.io", "v1beta1"));
    }
}
