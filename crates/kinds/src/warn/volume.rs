//! Volumes that no longer do anything, and files of one volume that get into each other's way.

use serde_json::Value;

use super::Warnings;
use crate::look::{Look, Path};

const REMOVED: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

pub(super) fn volumes(found: &mut Warnings, volumes: &[Value], list: &Path<'_>) {
    for (index, volume) in volumes.iter().enumerate() {
        let path = list.index(index);
        for (field, since) in REMOVED.iter().filter(|(field, _)| volume.has(field)) {
            // Its field is the only one that is not written as its source is called.
            let field = if *field == "storageos" { "storageOS" } else { field };
            found.push(&path.field(field), since);
        }
    }
    for volume in volumes {
        overlaps(found, volume);
    }
}

/// A file and where it comes from.
struct File<'a> {
    path: &'a str,
    source: String,
}

impl std::fmt::Display for File<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\"", self.path)?;
        if self.source.is_empty() { Ok(()) } else { write!(f, " ({})", self.source) }
    }
}

impl<'a> File<'a> {
    fn new(path: &'a str, source: &str) -> Self {
        Self { path: path.trim_end_matches('/'), source: source.to_owned() }
    }

    /// Whether one of the two is the other, or is in the way to it.
    fn meets(&self, other: &Self) -> bool {
        let within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !self.path.is_empty()
            && !other.path.is_empty()
            && (within(self.path, other.path) || within(other.path, self.path))
    }
}

fn files<'a>(of: &'a Value, source: &str) -> Vec<File<'a>> {
    of.list("items").iter().map(|item| File::new(item.text("path"), source)).collect()
}

fn overlaps(found: &mut Warnings, volume: &Value) {
    let plain = [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")];
    for (field, kind, name) in plain {
        let source = &volume[field];
        let what = format!("{kind} \"{}\"", source.text(name));
        meetings(found, volume, &what, &mut Vec::new(), files(source, ""));
    }
    meetings(found, volume, "DownwardAPI", &mut Vec::new(), files(&volume["downwardAPI"], ""));
    let mut all = Vec::new();
    for source in volume["projected"].list("sources") {
        if source.as_object().is_none_or(serde_json::Map::is_empty) {
            found.say(format!("volume \"{}\" (Projected) has no sources provided", volume.text("name")));
        }
        meetings(found, volume, "Projected", &mut all, projected(source));
    }
}

fn projected(source: &Value) -> Vec<File<'_>> {
    let named = |kind: &str, of: &Value| format!("{kind} \"{}\"", of.text("name"));
    let of = |field: &str| source.get(field);
    if let Some(of) = of("configMap").filter(|of| of.has("items")) {
        files(of, &named("ConfigMap", of))
    } else if let Some(of) = of("secret").filter(|of| of.has("items")) {
        files(of, &named("Secret", of))
    } else if let Some(of) = of("downwardAPI").filter(|of| of.has("items")) {
        files(of, "DownwardAPI")
    } else if let Some(of) = of("serviceAccountToken") {
        vec![File::new(of.text("path"), "ServiceAccountToken")]
    } else if let Some(of) = of("clusterTrustBundle") {
        let name = if of.has("name") { of.text("name") } else { of.text("signerName") };
        vec![File::new(of.text("path"), &format!("ClusterTrustBundle \"{name}\""))]
    } else {
        Vec::new()
    }
}

/// Each file with those before it.
fn meetings<'a>(found: &mut Warnings, volume: &Value, what: &str, all: &mut Vec<File<'a>>, files: Vec<File<'a>>) {
    for file in files {
        for other in all.iter().filter(|other| file.meets(other)) {
            if found.are_many() {
                return;
            }
            let name = volume.text("name");
            found.say(format!("volume \"{name}\" ({what}): overlapping paths: {file} with {other}"));
        }
        all.push(file);
    }
}
