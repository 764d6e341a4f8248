//! Dependencies point one way, and this reads `cargo metadata` to say so.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Which of our crates each may use. Edges never use edges; only the binary knows them all.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("portolan-model", &[]),
    ("portolan-exposition", &[]),
    ("portolan-kinds", &[]),
    ("portolan-store", &[]),
    ("portolan-client", &["portolan-model"]),
    ("portolan-dataplane", &["portolan-model"]),
    ("portolan-dns", &["portolan-model"]),
    ("portolan-lb", &["portolan-model"]),
    ("portolan-apiserver", &["portolan-exposition", "portolan-kinds", "portolan-store"]),
    ("portolan-controllers", &["portolan-client", "portolan-model"]),
    ("portolan-node", &["portolan-client", "portolan-model"]),
    ("portolan-testkit", &[]),
    (
        "portolan",
        &[
            "portolan-apiserver",
            "portolan-client",
            "portolan-controllers",
            "portolan-dataplane",
            "portolan-dns",
            "portolan-exposition",
            "portolan-lb",
            "portolan-model",
            "portolan-node",
        ],
    ),
];

/// Crates that a pure crate must not reach for: they do I/O.
const IMPURE: [&str; 6] = ["tokio", "kube", "hyper", "nlink", "nix", "socket2"];
const PURE: [&str; 2] = ["portolan-model", "portolan-kinds"];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let dependencies = package["dependencies"].as_array().expect("dependencies");
        let ordinary = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
        crates.insert(text(&package["name"]), ordinary.map(|dependency| text(&dependency["name"])).collect());
    }
    crates
}

#[test]
fn dependencies_between_our_crates_point_one_way() {
    let crates = dependencies();
    let allowed: BTreeMap<_, _> = ALLOWED.into_iter().collect();
    for (name, dependencies) in &crates {
        let allowed = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is new: say what it may use"));
        for dependency in dependencies.iter().filter(|dependency| crates.contains_key(*dependency)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn pure_crates_do_no_io() {
    let crates = dependencies();
    for name in PURE {
        for dependency in IMPURE {
            assert!(!crates[name].contains(dependency), "{name} is pure and must not depend on {dependency}");
        }
    }
}
