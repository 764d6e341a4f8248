//! A cluster -> one file -> the same cluster, while its clients go on.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use serde_json::json;

use crate::cluster::{Api, Cluster, SOON, http_from};
use crate::machine::{Machine, eventually, on_a_machine};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The numbers of the ConfigMaps `note-<n>`.
fn notes(names: impl IntoIterator<Item = String>) -> BTreeSet<usize> {
    names.into_iter().filter_map(|name| name.strip_prefix("note-")?.parse().ok()).collect()
}

fn stored(api: &Api) -> BTreeSet<usize> {
    let list = api.get(CONFIG_MAPS);
    let names =
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap().to_owned());
    notes(names)
}

/// What a client of `kube` knows of them, by lists that come as streams; it goes on through whatever happens.
fn follow(cluster: &Cluster<'_>) -> Arc<Mutex<BTreeSet<usize>>> {
    let known = Arc::new(Mutex::new(BTreeSet::new()));
    let (told, kubeconfig) = (known.clone(), cluster.kubeconfig());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = portolan_client::connect(&kubeconfig).await.unwrap();
            let (reader, writer) = reflector::store();
            let config_maps = kube::Api::<ConfigMap>::namespaced(client, "default");
            let events = watcher(config_maps, watcher::Config::default().streaming_lists());
            let mut events = std::pin::pin!(events.default_backoff().reflect(writer));
            while events.next().await.is_some() {
                *told.lock().unwrap() = notes(reader.state().iter().map(|object| object.name_any()));
            }
        });
    });
    known
}

fn restore(machine: &Machine, file: &str, to: &str) -> Result<String, String> {
    let path = |name: &str| machine.path(name).display().to_string();
    let output = machine.portolan(&["restore", &path(file), "--data-dir", &path(to)]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[test]
fn a_backup_of_a_cluster_at_work_makes_it_again() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.deploy("web", 1);
        let service = api.service(json!({
            "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        }));
        let known = follow(&cluster);

        let (written, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (before, after) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let api = cluster.client();
                while !done.load(Ordering::Relaxed) {
                    let number = written.load(Ordering::Relaxed);
                    api.post(CONFIG_MAPS, &json!({ "metadata": { "name": format!("note-{number}") } }));
                    written.store(number + 1, Ordering::Relaxed);
                }
            });
            let at_least = |count: usize| {
                eventually("writes go on", SOON, || match written.load(Ordering::Relaxed) {
                    written if written >= count => Ok(written),
                    written => Err(format!("{written} of {count}")),
                })
            };
            let before = at_least(50);
            let (data, file) = (machine.path("data"), machine.path("backup"));
            let taken = machine.portolan(&["backup", "--data-dir", data.to_str().unwrap(), file.to_str().unwrap()]);
            let after = written.load(Ordering::Relaxed);
            at_least(after + 10);
            done.store(true, Ordering::Relaxed);
            assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
            (before, after)
        });
        assert!(cluster.stop().success());
        std::fs::rename(machine.path("data"), machine.path("old")).unwrap();

        let whole = std::fs::read(machine.path("backup")).unwrap();
        std::fs::write(machine.path("half"), &whole[..whole.len() / 2]).unwrap();
        std::fs::write(machine.path("other"), "apiVersion: v1\nkind: Service\n").unwrap();
        for (file, to, why) in [
            ("half", "data", "half is damaged: "),
            ("other", "data", "other is no backup of a cluster: "),
            ("missing", "data", "missing"),
            ("backup", "old", "is not empty; restore into a new directory, or move this one away"),
        ] {
            let said = restore(machine, file, to).unwrap_err();
            assert!(said.contains(why), "{file}: {said}");
        }

        let said = restore(machine, "backup", "data").unwrap();
        let place = machine.path("data").display().to_string();
        assert!(said.contains(&format!("start the cluster with --data-dir {place}")), "{said}");
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        // The key of the old cluster opens the new one.
        let api = Api::new(machine.path("old/kubeconfig"));
        let stored_now = stored(&api);
        // One writer's notes, as of one moment: all up to some number, and that is from while the backup was taken.
        assert_eq!(stored_now, (0..stored_now.len()).collect());
        assert!((before..=after + 1).contains(&stored_now.len()), "{before} {} {after}", stored_now.len());
        api.wait_ready("web", 1);
        let address: IpAddr = service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        eventually("the Service answers", SOON, || http_from("portolan-node1", address, 80));
        api.post(CONFIG_MAPS, &json!({ "metadata": { "name": "note-100000" } }));
        let stored_now = stored(&api);
        eventually("whoever followed the old cluster knows the new one", SOON, || {
            let known = known.lock().unwrap();
            if *known == stored_now { Ok(()) } else { Err(format!("{} of {}", known.len(), stored_now.len())) }
        });
        assert!(cluster.stop().success());
    });
}
