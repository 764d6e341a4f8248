//! Pods as users see them: replaced when they die, left alone when the agent does, explained when they cannot run.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON, http_from};
use crate::machine::{eventually, on_a_machine};

fn pods(api: &Api) -> Vec<Value> {
    api.get("/api/v1/namespaces/default/pods")["items"].as_array().cloned().unwrap_or_default()
}

fn names(pods: &[Value]) -> BTreeSet<String> {
    pods.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_deleted_pod_is_replaced() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 3);
        let before = names(&pods(&api));
        let victim = before.first().unwrap();
        api.delete(&format!("/api/v1/namespaces/default/pods/{victim}?gracePeriodSeconds=1"));
        eventually("the pod is gone and another is Ready", SOON, || {
            let now = names(&pods(&api));
            if !now.contains(victim) && now.len() == 3 { Ok(()) } else { Err(format!("{now:?}")) }
        });
        api.wait_ready("web", 3);
        assert!(cluster.stop().success());
    });
}

#[test]
fn killing_the_agent_leaves_its_pods_running() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let containers = |api: &Api| -> BTreeSet<String> {
            pods(api)
                .iter()
                .map(|pod| pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        let before = containers(&api);
        let renewals = |api: &Api| {
            api.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node1")["spec"]["renewTime"].clone()
        };
        let agent = agent_of("node1", &cluster);
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("another agent runs", SOON, || {
            let now = agent_of("node1", &cluster);
            if now == agent { Err("the same".to_owned()) } else { Ok(()) }
        });
        let then = renewals(&api);
        eventually("it renews the node's Lease", SOON, || {
            let now = renewals(&api);
            if now == then { Err(now.to_string()) } else { Ok(()) }
        });
        assert_eq!(containers(&api), before, "the containers are the same ones");
        assert!(pods(&api).iter().all(|pod| pod["status"]["containerStatuses"][0]["restartCount"] == 0));
        // And the new agent has them in hand.
        api.merge("/apis/apps/v1/namespaces/default/deployments/web/scale", &json!({ "spec": { "replicas": 1 } }));
        eventually("one pod is left", SOON, || {
            let now = names(&pods(&api));
            if now.len() == 1 { Ok(()) } else { Err(format!("{now:?}")) }
        });
        assert!(cluster.stop().success());
    });
}

#[test]
fn a_node_that_was_given_up_by_mistake_goes_on_as_before() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "3"]);
        let api = cluster.client();
        api.deploy("web", 3);
        let service = api.service(json!({
            "metadata": { "name": "web" },
            "spec": { "type": "NodePort", "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        }));
        let port = u16::try_from(service["spec"]["ports"][0]["nodePort"].as_u64().unwrap()).unwrap();
        let state = |api: &Api| -> Vec<(String, Value, Value)> {
            let mut all: Vec<_> = pods(api)
                .iter()
                .map(|pod| {
                    let container = &pod["status"]["containerStatuses"][0];
                    let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
                    (name, container["containerID"].clone(), container["restartCount"].clone())
                })
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        let before = state(&api);
        let victim = pods(&api)[0].clone();
        let node = victim["spec"]["nodeName"].as_str().unwrap().to_owned();
        let other = ["node1", "node2", "node3"].into_iter().find(|name| **name != *node).unwrap();
        let address = api.get(&format!("/api/v1/nodes/{other}"))["status"]["addresses"][0]["address"].clone();
        let address: std::net::IpAddr = address.as_str().unwrap().parse().unwrap();
        eventually("the Service answers", SOON, || http_from("portolan-outside", address, port));
        // From now on not one request may fail: the pods never stop.
        let answered = || http_from("portolan-outside", address, port).unwrap();
        let is_ready = |object: &Value| {
            let conditions = object["status"]["conditions"].as_array().unwrap();
            conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        let name = victim["metadata"]["name"].as_str().unwrap();
        let pod = format!("/api/v1/namespaces/default/pods/{name}");
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            eventually(what, SOON, || {
                answered();
                if holds() { Ok(()) } else { Err(api.get(&format!("/api/v1/nodes/{node}"))["status"].to_string()) }
            });
        };
        let serving = |name: &str| {
            let slices = api.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices");
            let endpoints: Vec<Value> = slices["items"].as_array().unwrap().iter().flat_map(endpoints).collect();
            endpoints
                .iter()
                .any(|endpoint| endpoint["targetRef"]["name"] == name && endpoint["conditions"]["ready"] == true)
        };
        until("all serve", &|| before.iter().all(|(name, ..)| serving(name)));
        let agent = agent_of(&node, &cluster);
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGSTOP).unwrap();
        until("the node is given up", &|| !is_ready(&api.get(&format!("/api/v1/nodes/{node}"))));
        until("its pod is out of the Service", &|| !is_ready(&api.get(&pod)) && !serving(name));
        nix::sys::signal::kill(agent, nix::sys::signal::Signal::SIGCONT).unwrap();
        until("the node is Ready again", &|| is_ready(&api.get(&format!("/api/v1/nodes/{node}"))));
        until("its pod is in the Service again", &|| is_ready(&api.get(&pod)) && serving(name));
        let mut missing: BTreeSet<String> = before.iter().map(|(name, ..)| name.clone()).collect();
        eventually("every pod answers", SOON, || {
            missing.remove(&answered());
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        });
        assert_eq!(state(&api), before);
        assert_eq!(agent_of(&node, &cluster), agent);
        assert!(cluster.stop().success());
    });
}

fn endpoints(slice: &Value) -> Vec<Value> {
    slice["endpoints"].as_array().cloned().unwrap_or_default()
}

/// The agent's process: the child of the node's first process that runs `portolan agent`.
fn agent_of(node: &str, cluster: &Cluster<'_>) -> nix::unistd::Pid {
    let config = cluster.machine().path("data").join("nodes").join(node).join("agent.json").display().to_string();
    eventually("the node has an agent", SOON, || {
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            if words.get(1).is_some_and(|word| word == "agent") && words.iter().any(|word| *word == config) {
                return Ok(nix::unistd::Pid::from_raw(process.file_name().to_string_lossy().parse().unwrap()));
            }
        }
        Err("none".to_owned())
    })
}

#[test]
fn a_pod_that_cannot_run_says_why() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        let pod = |name: &str, container: Value| {
            let mut container = container;
            container["name"] = json!("main");
            api.post(
                "/api/v1/namespaces/default/pods",
                &json!({ "metadata": { "name": name }, "spec": { "containers": [container] } }),
            );
        };
        pod("no-image", json!({ "image": "registry.example/none:1" }));
        pod("fails", json!({ "image": "portolan/workload", "args": ["fail"] }));
        pod("no-command", json!({ "image": "portolan/workload", "command": ["/nonexistent"] }));
        pod(
            "never-ready",
            json!({ "image": "portolan/workload", "readinessProbe": { "httpGet": { "path": "/nothing", "port": 8080 }, "periodSeconds": 1 } }),
        );
        let rows = [
            ("no-image", "ErrImage", "Failed"),
            ("fails", "CrashLoopBackOff", "BackOff"),
            ("no-command", "RunContainerError", "Failed"),
            ("never-ready", "ContainersNotReady", "Unhealthy"),
        ];
        for (name, in_status, in_event) in rows {
            eventually(&format!("{name} says {in_status}"), SOON, || {
                let status = api.get(&format!("/api/v1/namespaces/default/pods/{name}"))["status"].to_string();
                if status.contains(in_status) { Ok(()) } else { Err(status) }
            });
            eventually(&format!("{name} has an Event {in_event}"), SOON, || {
                let events =
                    api.get(&format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name={name}"));
                let found = events["items"].as_array().unwrap().iter().any(|event| event["reason"] == in_event);
                if found { Ok(()) } else { Err(events["items"].to_string()) }
            });
        }
        assert!(cluster.stop().success());
    });
}

#[test]
fn logs_are_served_through_the_api() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "1"]);
        let api = cluster.client();
        api.deploy("web", 1);
        let name = names(&pods(&api)).pop_first().unwrap();
        let (status, _) =
            api.send("GET", &format!("/api/v1/namespaces/default/pods/{name}/log"), "application/json", Vec::new());
        assert_eq!(status, 200);
        assert!(cluster.stop().success());
    });
}
