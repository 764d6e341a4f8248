//! Bad days: pods killed at random and nodes losing power while requests go on, and what is left of it in the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nlink::netlink::{Connection, Route};
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::cluster::{Api, Cluster, SOON, http, http_from};
use crate::lifecycle::external_address;
use crate::machine::{block_on, eventually, on_a_machine, skip};

const POD_KILLS: usize = 50;
const POWER_CUTS: usize = 5;
const REPLICAS: usize = 6;
/// Requests made once it is over.
const AFTERWARDS: usize = 300;
/// The latest that a request may fail after something was killed.
const TOLERANCE: Duration = Duration::from_secs(3);
const NODES: [&str; 3] = ["node1", "node2", "node3"];

/// A client that never stops asking, over a new connection each time.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<usize>>,
    failures: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, failures) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopping, failed) = (stop.clone(), failures.clone());
        let thread = std::thread::spawn(move || {
            let mut requests = 0;
            while !stopping.load(Ordering::Relaxed) {
                let sent = Instant::now();
                if let Err(error) = http(address) {
                    failed.lock().unwrap().push((sent, error));
                }
                requests += 1;
                std::thread::park_timeout(Duration::from_millis(10));
            }
            requests
        });
        Self { stop, thread: Some(thread), failures }
    }

    /// How many requests there were, and which failed.
    fn stop(mut self) -> (usize, Vec<(Instant, String)>) {
        self.stop.store(true, Ordering::Relaxed);
        let requests = self.thread.take().unwrap().join().unwrap();
        (requests, std::mem::take(&mut self.failures.lock().unwrap()))
    }
}

fn pods(api: &Api) -> Vec<String> {
    let pods = api.get("/api/v1/namespaces/default/pods");
    let running = |pod: &&serde_json::Value| pod["metadata"]["deletionTimestamp"].is_null();
    let name = |pod: &serde_json::Value| pod["metadata"]["name"].as_str().unwrap().to_owned();
    pods["items"].as_array().unwrap().iter().filter(running).map(name).collect()
}

#[test]
fn fifty_pod_kills_and_five_power_cuts_end_with_every_service_answering() {
    if Command::new("nft").arg("--version").output().is_err() {
        return skip("needs nft (Debian: nftables), to look for stray elements");
    }
    on_a_machine(|machine| {
        // Given to replay a run.
        let seed = std::env::var("SOAK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
        eprintln!("SOAK_SEED={seed}");
        let before = machine.remains();
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let cluster = Cluster::up(machine, &[]);
        let api = cluster.client();
        api.deploy("web", REPLICAS);
        let ports = json!([{ "port": 80, "targetPort": "http" }]);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
            let name = kind.to_lowercase();
            let service = api.service(json!({
                "metadata": { "name": name },
                "spec": { "type": kind, "selector": { "app": "web" }, "ports": ports },
            }));
            addresses.push(service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap());
        }
        let external: IpAddr = external_address(&api, "loadbalancer").parse().unwrap();
        eventually("the Service answers", SOON, || http((addresses[0], 80).into()));

        let load = Load::start((addresses[0], 80).into());
        let mut disruptions = Vec::new();
        for kill in 0..POD_KILLS {
            let victim = pods(&api).choose(&mut random).cloned().unwrap();
            api.delete(&format!("/api/v1/namespaces/default/pods/{victim}?gracePeriodSeconds=0"));
            disruptions.push(Instant::now());
            if random.random_ratio(1, 2) {
                api.wait_ready("web", REPLICAS);
            }
            if kill % (POD_KILLS / POWER_CUTS) == 0 {
                let node = NODES.choose(&mut random).unwrap();
                cluster.node(&["stop", "--power-off", node]);
                disruptions.push(Instant::now());
                api.wait_ready("web", REPLICAS);
                cluster.node(&["start", node]);
                eventually("the node is Ready again", SOON, || ready(&api, node));
                disruptions.push(Instant::now());
            }
        }
        api.wait_ready("web", REPLICAS);
        let (requests, failures) = load.stop();
        let late: Vec<_> = failures
            .iter()
            // One sent shortly before may have been under way when it happened.
            .filter(|(at, _)| !disruptions.iter().any(|then| *at < *then + TOLERANCE && *then < *at + TOLERANCE))
            .map(|(at, error)| {
                let since = disruptions.iter().filter_map(|then| at.checked_duration_since(*then)).min();
                format!("{since:?} after the latest kill or power cut: {error}")
            })
            .collect();
        eprintln!("{requests} requests, {} failed, {} of them late", failures.len(), late.len());
        assert!(late.is_empty(), "{late:#?}");

        for address in &addresses {
            eventually("every ClusterIP answers", SOON, || http((*address, 80).into()));
        }
        // Kills came closer together than the tolerance above is wide; now that they are over, nothing may fail at all.
        for request in 0..AFTERWARDS {
            let address = addresses[request % addresses.len()];
            if let Err(error) = http((address, 80).into()) {
                panic!("request {request} to {address}, after every pod was Ready again: {error}");
            }
        }
        eventually("the external address answers", SOON, || http_from("portolan-outside", external, 80));
        let running = pods(&api).len();
        eventually("there are as many links as pods", SOON, || {
            let links: usize = NODES.iter().map(|node| pod_links(node)).sum();
            if links == running { Ok(()) } else { Err(format!("{links} links, {running} pods")) }
        });

        for kind in ["clusterip", "nodeport", "loadbalancer"] {
            api.delete(&format!("/api/v1/namespaces/default/services/{kind}"));
        }
        api.delete("/apis/apps/v1/namespaces/default/deployments/web");
        eventually("all pods are gone", SOON, || match pods(&api).len() {
            0 => Ok(()),
            left => Err(left.to_string()),
        });
        for node in NODES {
            eventually("no element, link or pod address is left", SOON, || {
                let mut stray = stray_elements(node, &addresses, external);
                if pod_links(node) > 0 {
                    stray.insert(format!("{} links of pods", pod_links(node)));
                }
                if stray.is_empty() { Ok(()) } else { Err(format!("{node}: {stray:?}")) }
            });
        }
        assert!(cluster.stop().success());
        assert_eq!(machine.remains(), before);
    });
}

fn ready(api: &Api, node: &str) -> Result<(), String> {
    let node = api.get(&format!("/api/v1/nodes/{node}"));
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    match conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        true => Ok(()),
        false => Err(node["status"]["conditions"].to_string()),
    }
}

/// Links in the node's namespace beside its loopback and its uplink.
fn pod_links(node: &str) -> usize {
    let namespace = format!("portolan-{node}");
    let links = block_on(async { Connection::<Route>::new_in(namespace.as_str()).unwrap().get_links().await.unwrap() });
    links.iter().filter(|link| !["lo", "eth0"].contains(&link.name_or("?"))).count()
}

/// Lines of the node's ruleset that speak of the Services that were, or of pods, and chains that nothing leads to.
fn stray_elements(node: &str, services: &[IpAddr], external: IpAddr) -> BTreeSet<String> {
    let output = Command::new("ip")
        .args(["netns", "exec", &format!("portolan-{node}"), "nft", "list", "ruleset"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut wanted: Vec<_> = services.iter().map(|address| format!("{address} ")).collect();
    wanted.push(format!("{external} "));
    wanted.push("10.244.".to_owned());
    // The range of all pods stays, of course.
    let text = String::from_utf8_lossy(&output.stdout).replace("10.244.0.0/16", "");
    assert!(text.contains("table ip portolan"), "{text}");
    let mut stray: BTreeSet<String> = text
        .lines()
        .filter(|line| wanted.iter().any(|want| line.contains(want)))
        .map(|line| line.trim().to_owned())
        .collect();
    let chains = text.lines().filter_map(|line| line.trim().strip_prefix("chain ")?.strip_suffix(" {"));
    for chain in chains.filter(|chain| chain.contains("pick-")) {
        let led_to =
            |line: &str| line.split([' ', ',']).any(|word| word == chain) && !line.trim().starts_with("chain ");
        if !text.lines().any(led_to) {
            stray.insert(format!("chain {chain}"));
        }
    }
    stray
}

#[test]
fn two_hundred_services_all_answer() {
    const SERVICES: usize = 200;
    on_a_machine(|machine| {
        let manifest = machine.path("services.yaml");
        let service = |number| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{ name: web-{number} }}\nspec:\n  selector: {{ app: web }}\n  \
                 ports: [{{ port: 80, targetPort: http }}]\n"
            )
        };
        std::fs::write(&manifest, (0..SERVICES).map(service).collect::<String>()).unwrap();
        let cluster = Cluster::up(machine, &["--apply", &manifest.display().to_string()]);
        assert!(cluster.ready_line.starts_with("ready in"), "{}", cluster.ready_line);
        let api = cluster.client();
        api.deploy("web", 3);
        let services = api.get("/api/v1/namespaces/default/services");
        let addresses: Vec<IpAddr> = services["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|service| service["metadata"]["name"].as_str().unwrap().starts_with("web-"))
            .map(|service| service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap())
            .collect();
        assert_eq!(addresses.len(), SERVICES);
        for address in addresses {
            eventually(&format!("{address} answers"), SOON, || http((address, 80).into()));
        }
        assert!(cluster.stop().success());
    });
}
