//! Starting, stopping, being killed, and what is left.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};

use crate::cluster::{Cluster, SOON};
use crate::machine::{eventually, on_a_machine};

#[test]
fn up_is_ready_and_a_signal_leaves_nothing_behind() {
    on_a_machine(|machine| {
        let before = machine.remains();
        let cluster = Cluster::up(machine, &[]);
        assert!(cluster.ready_line.starts_with("ready in "), "{}", cluster.ready_line);
        assert!(cluster.ready_line.contains("3 nodes"), "{}", cluster.ready_line);
        let while_up = machine.remains();
        for expected in ["portolan-node1", "portolan-node2", "portolan-node3", "portolan-outside"] {
            assert!(while_up.contains(&format!("namespace {expected}")), "{expected} is not in {while_up:?}");
        }
        let links: Vec<_> = while_up.iter().filter(|thing| thing.starts_with("link ")).collect();
        assert_eq!(links, ["link portolan0"], "the host gets one link");
        cluster.client().deploy("web", 3);
        assert!(cluster.stop().success());
        assert_eq!(machine.remains(), before);
    });
}

#[test]
fn without_the_host_link_the_host_network_is_left_alone() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--no-host-link", "--nodes", "1"]);
        assert!(!machine.remains().iter().any(|thing| thing.starts_with("link ")));
        assert!(cluster.stop().success());
    });
}

#[test]
fn after_kill_9_clean_removes_the_remains() {
    on_a_machine(|machine| {
        let before = machine.remains();
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        cluster.client().deploy("web", 2);
        cluster.kill();
        eventually("every process of the cluster is gone", SOON, || {
            let processes: Vec<_> =
                machine.remains().into_iter().filter(|thing| thing.starts_with("process")).collect();
            if processes.is_empty() { Ok(()) } else { Err(format!("{processes:?}")) }
        });
        assert!(machine.remains().contains("namespace portolan-node1"), "a killed cluster cannot tidy up");
        let cleaned = machine.portolan(&["clean"]);
        assert!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
        assert_eq!(machine.remains(), before);
    });
}

#[test]
fn state_survives_kill_9_and_the_next_start() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let service = api.service(serde_json::json!({
            "metadata": { "name": "web" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        }));
        let external = external_address(&api, "web");
        cluster.kill();

        // With a machine less, whose pods have to go elsewhere.
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        let again = api.get("/api/v1/namespaces/default/services/web");
        assert_eq!(again["spec"]["clusterIP"], service["spec"]["clusterIP"]);
        assert_eq!(again["spec"]["ports"][0]["nodePort"], service["spec"]["ports"][0]["nodePort"]);
        assert_eq!(external_address(&api, "web"), external);
        eventually("all pods are where they can run", SOON, || {
            let pods = api.get("/api/v1/namespaces/default/pods");
            let here = |pod: &serde_json::Value| pod["spec"]["nodeName"] == "node1";
            match pods["items"].as_array().unwrap().iter().filter(|pod| here(pod)).count() {
                2 if pods["items"].as_array().unwrap().len() == 2 => Ok(()),
                _ => Err(pods.to_string()),
            }
        });
        api.wait_ready("web", 2);
        assert_eq!(api.get("/api/v1/nodes")["items"].as_array().map(Vec::len), Some(1), "node2 is gone for good");
        eventually("the same address answers", SOON, || {
            crate::cluster::http_from("portolan-outside", external.parse().unwrap(), 80)
        });
        assert!(cluster.stop().success());
    });
}

pub(crate) fn external_address(api: &crate::cluster::Api, service: &str) -> String {
    eventually("the Service has an external address", SOON, || {
        let service = api.get(&format!("/api/v1/namespaces/default/services/{service}"));
        let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned);
        address.ok_or_else(|| service["status"].to_string())
    })
}

#[test]
fn a_second_up_says_who_is_there_and_stops() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let data = machine.path("data").display().to_string();
        let elsewhere = machine.path("elsewhere").display().to_string();
        let rows = [(&data, "a cluster already runs on"), (&elsewhere, "another cluster runs on this machine")];
        for (directory, expected) in rows {
            let second = machine.portolan(&["up", "--data-dir", directory]);
            let message = String::from_utf8_lossy(&second.stderr).into_owned();
            assert!(!second.status.success() && message.contains(expected), "{message:?} should contain {expected:?}");
        }
        // And the first did not notice.
        cluster.client().get("/api/v1/nodes/node1");
        assert!(cluster.stop().success());
    });
}

#[test]
fn bad_input_is_refused_before_anything_is_made() {
    on_a_machine(|machine| {
        let before = machine.remains();
        let manifest = machine.path("bad.yaml");
        std::fs::write(&manifest, "kind: [unclosed").unwrap();
        let manifest = manifest.display().to_string();
        let data = machine.path("data").display().to_string();
        let rows: [(&[&str], &str); 5] = [
            (&["--nodes", "0"], "--nodes is 0"),
            (&["--pod-cidr", "10.203.0.0/16"], "overlaps"),
            (&["--cluster-dns", "192.0.2.1"], "--cluster-dns 192.0.2.1 is not within"),
            (&["--apply", &manifest], "bad.yaml is neither YAML nor JSON"),
            (&["--apply", "/nonexistent.yaml"], "cannot read /nonexistent.yaml"),
        ];
        for (arguments, expected) in rows {
            let mut line = vec!["up", "--data-dir", &data];
            line.extend(arguments);
            let output = machine.portolan(&line);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && message.contains(expected), "{message:?} should contain {expected:?}");
        }
        assert_eq!(machine.remains(), before);
    });
}

#[test]
fn a_power_cut_moves_pods_and_the_external_address() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &[]);
        let api = cluster.client();
        api.deploy("web", 3);
        api.service(serde_json::json!({
            "metadata": { "name": "web" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        }));
        let external = external_address(&api, "web").parse().unwrap();
        let from_outside = || crate::cluster::http_from("portolan-outside", external, 80);
        eventually("the external address answers", SOON, from_outside);
        for node in ["node1", "node2", "node3"] {
            cluster.node(&["stop", "--power-off", node]);
            let listed = cluster.node(&["list"]);
            assert!(listed.lines().any(|line| line.starts_with(node) && line.contains(" off ")), "{listed}");
            eventually("ten requests in a row are answered", Duration::from_secs(5), || {
                (0..10).map(|_| from_outside()).collect::<Result<BTreeSet<_>, _>>()
            });
            api.wait_ready("web", 3);
            cluster.node(&["start", node]);
            eventually("the node is Ready again", SOON, || {
                let node = api.get(&format!("/api/v1/nodes/{node}"));
                let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
                match conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True") {
                    true => Ok(()),
                    false => Err(node["status"]["conditions"].to_string()),
                }
            });
        }
        assert!(cluster.stop().success());
    });
}

#[test]
fn a_node_shut_down_in_order_costs_no_request() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &[]);
        let api = cluster.client();
        api.deploy("web", 6);
        api.service(serde_json::json!({
            "metadata": { "name": "web" },
            "spec": { "type": "NodePort", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http", "nodePort": 30080 }] },
        }));
        let first = "10.203.0.11".parse().unwrap();
        eventually("the NodePort answers", SOON, || crate::cluster::http_from("portolan-outside", first, 30080));
        let asked = std::sync::atomic::AtomicBool::new(true);
        let failures = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut failures = Vec::new();
                while asked.load(std::sync::atomic::Ordering::Relaxed) {
                    failures.extend(crate::cluster::http_from("portolan-outside", first, 30080).err());
                }
                failures
            });
            for node in ["node2", "node3"] {
                cluster.node(&["stop", node]);
                cluster.node(&["start", node]);
                eventually("pods are back", SOON, || {
                    let pods = api.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName={node}"));
                    let ready = |pod: &serde_json::Value| pod["status"]["containerStatuses"][0]["ready"] == true;
                    match pods["items"].as_array().unwrap().iter().all(ready) {
                        true => Ok(()),
                        false => Err(pods["items"].to_string()),
                    }
                });
            }
            asked.store(false, std::sync::atomic::Ordering::Relaxed);
            load.join().unwrap()
        });
        assert!(failures.is_empty(), "{} requests failed, as with {:?}", failures.len(), failures.first());
        assert!(cluster.stop().success());
    });
}

#[test]
fn a_state_is_not_used_with_other_ranges_than_it_was_made_with() {
    on_a_machine(|machine| {
        assert!(Cluster::up(machine, &["--nodes", "1"]).stop().success());
        let data = machine.path("data").display().to_string();
        let rows: [(&[&str], &str); 3] = [
            (&["--service-cidr", "10.96.0.0/16"], "--service-cidr is 10.96.0.0/16, but the cluster in"),
            (&["--cluster-dns", "10.96.0.53"], "was made with --cluster-dns 10.96.0.10"),
            (&["--pod-cidr", "10.245.0.0/16"], "was made with --pod-cidr 10.244.0.0/16"),
        ];
        for (arguments, expected) in rows {
            let output = machine.portolan(&[&["up", "--data-dir", &data], arguments].concat());
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && message.contains(expected), "{message:?} should contain {expected:?}");
        }
        // The network of the nodes is in no object that outlives them.
        let elsewhere = Cluster::up(machine, &["--nodes", "1", "--node-network", "10.204.0.0/24"]);
        assert!(elsewhere.stop().success());
    });
}

#[test]
fn pods_run_where_an_overlay_cannot_be_written_to() {
    on_a_machine(|machine| {
        // As in a container on most machines: its own root is an overlay, which takes no other as its upper layer.
        let directory = machine.path("overlay");
        for part in ["lower", "upper", "work", "root"] {
            std::fs::create_dir_all(directory.join(part)).unwrap();
        }
        let part = |name: &str| directory.join(name).display().to_string();
        let options = format!("lowerdir={},upperdir={},workdir={}", part("lower"), part("upper"), part("work"));
        let root = directory.join("root");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&*options)).unwrap();
        std::os::unix::fs::symlink(root.join("data"), machine.path("data")).unwrap();
        std::fs::create_dir(root.join("data")).unwrap();
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        cluster.client().deploy("web", 1);
        assert!(cluster.stop().success());
        umount(&root).unwrap();
    });
}

#[test]
fn manifests_with_a_mistake_are_applied_not_at_all() {
    on_a_machine(|machine| {
        let manifest = machine.path("mistake.yaml");
        let data = machine.path("data").display().to_string();
        let service =
            "apiVersion: v1\nkind: Service\nmetadata: {name: NAME, namespace: team}\nspec: {ports: [PORT]}\n---\n";
        let team = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}\n---\n";
        let good = service.replace("NAME", "good").replace("PORT", "{port: 80}");
        let rows = [
            ("{port: 80, targetport: 8080}", "document 3: ", "targetport"),
            ("{port: 80000}", "document 3: ", "spec.ports[0].port"),
        ];
        for (port, place, expected) in rows {
            let bad = service.replace("NAME", "bad").replace("PORT", port);
            std::fs::write(&manifest, format!("{good}{team}{bad}")).unwrap();
            let output = machine.portolan(&[
                "up",
                "--nodes",
                "1",
                "--data-dir",
                &data,
                "--apply",
                &manifest.display().to_string(),
            ]);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{message}");
            assert!(message.contains(place) && message.contains(expected), "{message:?} should name {expected:?}");
        }
        std::fs::write(&manifest, format!("{good}{team}")).unwrap();
        let cluster = Cluster::up(machine, &["--nodes", "1", "--apply", &manifest.display().to_string()]);
        let services = cluster.client().get("/api/v1/namespaces/team/services");
        assert_eq!(services["items"].as_array().map(Vec::len), Some(1), "{services}");
        assert_eq!(services["items"][0]["metadata"]["name"], "good");
        assert!(cluster.stop().success());
    });
}
