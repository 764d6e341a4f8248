//! `portolan trace` on the nodes of a running cluster, against what the API says.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::cluster::{Api, Cluster, SOON};
use crate::machine::{eventually, on_a_machine, skip};

/// The trace as JSON, or what it said instead.
fn trace(cluster: &Cluster<'_>, arguments: &[&str]) -> Result<Value, String> {
    let output = run(cluster, &[arguments, &["-o", "json"]].concat());
    serde_json::from_slice(&output.stdout).map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn run(cluster: &Cluster<'_>, arguments: &[&str]) -> Output {
    let kubeconfig = cluster.kubeconfig();
    let arguments = [&["trace", "--kubeconfig", kubeconfig.to_str().unwrap()], arguments].concat();
    cluster.machine().portolan(&arguments)
}

fn backends(trace: &Value) -> BTreeSet<String> {
    trace["ends"].as_array().unwrap().iter().filter_map(|end| Some(end["backend"].as_str()?.to_owned())).collect()
}

/// The pods of the Deployment as `address:8080`, with their names.
fn pods(api: &Api) -> Vec<(String, String)> {
    let pods = api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
    let pods = pods["items"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    pods.iter().map(|pod| (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))).collect()
}

#[test]
fn a_trace_says_what_the_node_does_and_whether_the_api_says_so_too() {
    on_a_machine(|machine| {
        let cluster = Cluster::up(machine, &["--nodes", "2"]);
        let api = cluster.client();
        api.deploy("web", 2);
        let service = api.service(json!({
            "metadata": { "name": "web" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] },
        }));
        let cluster_ip = service["spec"]["clusterIP"].as_str().unwrap();
        let pods = pods(&api);
        let wanted: BTreeSet<_> = pods.iter().map(|(_, address)| format!("{address}:8080")).collect();
        let client = format!("pod/{}", pods[0].0);

        // By name, from a pod: to both, one of which is itself.
        let both = eventually("the kernel has both backends", SOON, || {
            let trace = trace(&cluster, &[&client, "svc/web"])?;
            if backends(&trace) == wanted && trace["agreesWithApi"] == true {
                Ok(trace)
            } else {
                Err(trace.to_string())
            }
        });
        assert_eq!(both["destination"], format!("{cluster_ip}:80"));
        assert_eq!(both["service"], "default/web");
        for end in both["ends"].as_array().unwrap() {
            let itself = end["backend"] == format!("{}:8080", pods[0].1);
            assert_eq!(end["sourceKept"], !itself, "{end}");
            assert_eq!(end["share"], 0.5);
        }
        let text = run(&cluster, &[&client, "svc/web"]);
        let text = String::from_utf8(text.stdout).unwrap();
        for word in ["dispatch", "@services", "@slots-", "50.0 %", &pods[1].0, "default/web"] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }

        // From the node itself, a port that is not there, and an address that is nobody's.
        let itself = trace(&cluster, &["--node", "node1", "node", "svc/web"]).unwrap();
        assert!(itself["ends"][0]["sourceKept"] == false && backends(&itself) == wanted, "{itself}");
        let refused = trace(&cluster, &["-n", "node1", "192.0.2.1", &format!("{cluster_ip}:81")]).unwrap();
        assert_eq!(refused["ends"][0]["outcome"], "refused", "{refused}");
        assert!(itself["agreesWithApi"] == true && refused["agreesWithApi"] == true, "{itself}, {refused}");
        assert!(refused["notes"].to_string().contains("no route to 192.0.2.1"), "{refused}");

        // Somebody loses a slot by hand: the API says otherwise, and so does the exit code.
        let part = text.split(['@', ' ']).find(|word| word.starts_with("slots-")).expect("the map of its slots");
        let lost = format!("{{ {cluster_ip} . tcp . 80 . 0x00000001 }}");
        let nft = ["netns", "exec", "portolan-node1", "nft", "delete", "element", "ip", "portolan", part, &lost];
        match Command::new("ip").args(nft).status() {
            Ok(status) => assert!(status.success()),
            Err(error) => return skip(&format!("needs ip and nft: {error}")),
        }
        let output = run(&cluster, &["-n", "node1", "node", &format!("{cluster_ip}:80")]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success() && text.contains("The API says otherwise"), "{text}");

        // What is asked wrongly is answered with what is there.
        let nowhere = run(&cluster, &["-n", "node9", "node", "svc/web"]);
        let error = String::from_utf8(nowhere.stderr).unwrap();
        assert!(!nowhere.status.success() && error.contains("there are: node1, node2"), "{error}");
        assert!(cluster.stop().success());
    });
}
