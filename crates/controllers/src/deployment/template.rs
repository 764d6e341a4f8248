//! Pod templates and the revisions made of them: hash, equality, annotations.
//!
//! Invariant: two templates are the same revision if they are equal, whatever their hashes; the hash only makes names.
//! Source: the `deployment.kubernetes.io/*` annotations as `kubectl rollout` reads them.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::meta;

pub(crate) const HASH_LABEL: &str = "pod-template-hash";
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(crate) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(crate) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const NOT_COPIED: [&str; 6] =
    [LAST_APPLIED, REVISION, REVISION_HISTORY, DESIRED_REPLICAS, MAX_REPLICAS, "deprecated.deployment.rollback.to"];
/// Old revision numbers are kept as long as they fit here, in bytes.
const HISTORY_LIMIT: usize = 2000;

/// A short name for the template, made of characters that cannot spell words.
pub(crate) fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = serde_json::to_string(template).unwrap_or_default();
    let salt = collisions.map(|collisions| collisions.to_string()).unwrap_or_default();
    // FNV-1a, 32 bits: short names matter more here than strength, and collisions are counted.
    let mut rest = text
        .bytes()
        .chain(salt.bytes())
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut name = String::new();
    for _ in 0..7 {
        name.push(char::from(ALPHABET[(rest % 27) as usize]));
        rest /= 27;
    }
    name
}

/// Equal but for the hash label, which is ours.
pub(crate) fn is_same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(HASH_LABEL);
        }
        template
    };
    bare(a) == bare(b)
}

pub(crate) fn revision(set: &ReplicaSet) -> i64 {
    meta::annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What the newest ReplicaSet's annotations must be: the Deployment's, and its revision with those it had before.
pub(crate) fn annotations(
    deployment: &Deployment,
    existing: Option<&BTreeMap<String, String>>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = existing.cloned().unwrap_or_default();
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&name.as_str()) {
            annotations.insert(name.clone(), value.clone());
        }
    }
    let old: Option<i64> = annotations.get(REVISION).and_then(|text| text.parse().ok());
    if old.is_none_or(|old| old < revision)
        && let Some(old) = annotations.insert(REVISION.into(), revision.to_string())
    {
        let history = annotations.entry(REVISION_HISTORY.into()).or_default();
        let mut numbers: Vec<&str> = history.split(',').filter(|number| !number.is_empty()).collect();
        numbers.push(&old);
        while numbers.len() > 1 && numbers.iter().map(|number| number.len() + 1).sum::<usize>() > HISTORY_LIMIT {
            numbers.remove(0);
        }
        let joined = numbers.join(",");
        *history = joined;
    }
    annotations
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    #[test]
    fn the_hash_follows_the_template_and_the_collisions() {
        let one = hash(&template("a"), None);
        assert_eq!(one, hash(&template("a"), None));
        assert_ne!(one, hash(&template("b"), None));
        assert_ne!(one, hash(&template("a"), Some(1)));
        assert!(one.len() == 7 && !one.contains(['a', 'e', 'i', 'o', 'u']), "{one}");
    }

    #[test]
    fn equality_ignores_the_hash_label_only() {
        let mut labelled = template("a");
        labelled.metadata.as_mut().unwrap().labels.as_mut().unwrap().insert(HASH_LABEL.into(), "x".into());
        assert!(is_same(&template("a"), &labelled));
        assert!(!is_same(&template("b"), &labelled));
    }

    #[test]
    fn a_revision_that_returns_keeps_its_history() {
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"annotations": {
            "kubernetes.io/change-cause": "why", LAST_APPLIED: "{}", REVISION: "7"}}, "spec": {"selector": {}, "template": {}}}))
        .unwrap();
        let first = annotations(&deployment, None, 1);
        assert_eq!(first.get(REVISION).unwrap(), "1");
        assert_eq!(first.get("kubernetes.io/change-cause").unwrap(), "why");
        assert!(!first.contains_key(LAST_APPLIED));
        let third = annotations(&deployment, Some(&first), 3);
        assert_eq!((third[REVISION].as_str(), third[REVISION_HISTORY].as_str()), ("3", "1"));
        let fifth = annotations(&deployment, Some(&third), 5);
        assert_eq!(fifth[REVISION_HISTORY], "1,3");
        assert_eq!(annotations(&deployment, Some(&fifth), 5), fifth);
    }
}
