//! Pods for real: containers, networks, restarts and kills, each in a network namespace of its own.
//!
//! This binary is its own runner because it plays three parts: the tests, the pods' shims (`try_reexec`), and what
//! runs in the containers (`workload`).

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod api;
mod host_ports;
mod inside;
mod lab;
mod workload;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::lab::{Lab, NODE_IP, app, create, delete};

fn main() {
    portolan_node::try_reexec();
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|word| word == "workload") {
        workload::run(&args[1..]);
    }
    let tests: [(&str, fn()); 22] = [
        ("a_pod_runs_answers_and_goes", a_pod_runs_answers_and_goes),
        ("the_node_is_registered_and_stays_so", the_node_is_registered_and_stays_so),
        ("a_route_that_cannot_be_laid_is_laid_when_it_can", a_route_that_cannot_be_laid_is_laid_when_it_can),
        ("hooks_hold_up_neither_others_nor_the_end", hooks_hold_up_neither_others_nor_the_end),
        ("exits_follow_the_restart_policy", exits_follow_the_restart_policy),
        ("what_cannot_start_says_why_and_disturbs_nobody", what_cannot_start_says_why_and_disturbs_nobody),
        ("pods_outlive_their_agent", pods_outlive_their_agent),
        ("a_pod_is_stopped_gently_and_then_not", a_pod_is_stopped_gently_and_then_not),
        ("a_killed_shim_takes_its_pod_along_and_both_come_back", a_killed_shim_takes_its_pod_along_and_both_come_back),
        ("probes_decide_readiness_and_restarts", probes_decide_readiness_and_restarts),
        ("too_much_memory_is_oom_killed", inside::too_much_memory_is_oom_killed),
        ("a_container_sees_what_its_pod_says", inside::a_container_sees_what_its_pod_says),
        (
            "volumes_follow_what_they_are_made_from_and_have_parts",
            inside::volumes_follow_what_they_are_made_from_and_have_parts,
        ),
        ("a_pod_that_would_change_the_machine_is_rejected", inside::a_pod_that_would_change_the_machine_is_rejected),
        ("a_condition_that_comes_meanwhile_is_kept", inside::a_condition_that_comes_meanwhile_is_kept),
        ("logs_are_served_to_the_clusters_own", inside::logs_are_served_to_the_clusters_own),
        ("a_pod_in_the_nodes_network", inside::a_pod_in_the_nodes_network),
        ("a_host_port_leads_to_its_pod_from_everywhere", host_ports::a_host_port_leads_to_its_pod_from_everywhere),
        (
            "a_udp_flow_that_was_there_before_the_pod_finds_it",
            host_ports::a_udp_flow_that_was_there_before_the_pod_finds_it,
        ),
        ("an_image_that_comes_is_used_at_once", inside::an_image_that_comes_is_used_at_once),
        ("a_node_that_goes_down_lets_its_pods_say_goodbye", a_node_that_goes_down_lets_its_pods_say_goodbye),
        ("nothing_is_left_behind", nothing_is_left_behind),
    ];
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    if args.iter().any(|arg| arg == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    if !portolan_testkit::is_root() {
        return;
    }
    let mut failed = Vec::new();
    for (name, test) in tests.into_iter().filter(|(name, _)| wanted(name)) {
        let started = Instant::now();
        let result = std::panic::catch_unwind(test);
        println!("test {name} ... {} ({:?})", if result.is_ok() { "ok" } else { "FAILED" }, started.elapsed());
        failed.extend(result.is_err().then_some(name));
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn is_ready(api: &Api, pod: &str) -> bool {
    condition(api, pod, "Ready") == "True"
}

fn condition(api: &Api, pod: &str, kind: &str) -> String {
    let pod = api.pod(pod);
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

fn container(api: &Api, pod: &str) -> Value {
    api.pod(pod)["status"]["containerStatuses"][0].clone()
}

fn ip(api: &Api, pod: &str) -> String {
    api.pod(pod)["status"]["podIP"].as_str().unwrap_or_default().to_owned()
}

async fn get(address: String) -> String {
    tokio::task::spawn_blocking(move || workload::get(&address)).await.unwrap()
}

async fn ready(api: &Api, pod: &str) {
    api.until(&format!("{pod} is ready"), |api| is_ready(api, pod)).await;
}

async fn gone(api: &Api, pod: &str) {
    api.until(&format!("{pod} is gone"), |api| api.pod(pod).is_null()).await;
}

fn a_pod_runs_answers_and_goes() {
    let lab = Lab::new();
    lab.with_agent(async |api: Api| {
        api.until("the node is ready", |api| api.get("leases", "kube-node-lease", "node-1").is_some()).await;
        let started = Instant::now();
        create(&api, "web", json!({"containers": [app(&["serve"])]}));
        ready(&api, "web").await;
        eprintln!("bound to ready: {:?}", started.elapsed());
        let shim = std::fs::read_to_string(format!("/proc/{}/status", lab.shim("web").unwrap())).unwrap();
        let memory: Vec<_> = shim.lines().filter(|line| line.starts_with("Rss") || line.starts_with("VmRSS")).collect();
        eprintln!("the shim: {}", memory.join(", ").replace('\t', " "));
        let address = ip(&api, "web");
        assert!(address.starts_with("10.244.1."), "{address}");
        assert_eq!(get(format!("{address}:8080")).await, "web");
        assert_eq!(lab.outside.run(|| workload::get(&format!("{address}:8080"))), "web");
        let status = api.pod("web")["status"].clone();
        assert_eq!((&status["phase"], &status["hostIP"]), (&json!("Running"), &json!(NODE_IP)));
        assert_eq!(status["podIPs"], json!([{"ip": address}]));
        for event in [
            "Pulled: Container image \"portolan/workload\" already present on machine",
            "Started: Started container app",
        ] {
            // Events are written beside the status, and may come after it.
            api.until(event, |api| api.events("web").iter().any(|told| told == event)).await;
        }
        // From pod to pod, over the node.
        create(
            &api,
            "asker",
            json!({"restartPolicy": "Never", "containers": [app(&["get", &format!("{address}:8080")])]}),
        );
        api.until("the asker is done", |api| api.pod("asker")["status"]["phase"] == "Succeeded").await;
        delete(&api, "web", 1);
        gone(&api, "web").await;
    });
    assert_eq!(lab.log("asker", "app", 0), "web\n");
}

fn the_node_is_registered_and_stays_so() {
    let lab = Lab::new();
    lab.api.remove("nodes", "", "node-1");
    lab.with_agent(async |api: Api| {
        api.until("it has registered", |api| api.get("nodes", "", "node-1").is_some_and(|n| !n["status"].is_null()))
            .await;
        let state = |api: &Api, kind: &str| {
            let node = api.get("nodes", "", "node-1").unwrap_or_default();
            let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().find(|c| c["type"] == kind).map(|c| c["status"].clone()).unwrap_or_default()
        };
        assert_eq!(state(&api, "Ready"), "False");
        api.edit("nodes", "", "node-1", |node| node["spec"] = json!({"podCIDR": "10.244.7.0/24"}));
        api.until("it is ready", |api| state(api, "Ready") == "True").await;
        let node = api.get("nodes", "", "node-1").unwrap();
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
        assert_eq!(node["metadata"]["labels"]["zone"], "a");
        assert_eq!(node["status"]["allocatable"]["pods"], "20");
        let bytes =
            |list: &str| node["status"][list]["ephemeral-storage"].as_str().unwrap().trim_end_matches("Ki").to_owned();
        let (capacity, allocatable): (u64, u64) =
            (bytes("capacity").parse().unwrap(), bytes("allocatable").parse().unwrap());
        assert!(allocatable > 0 && allocatable.abs_diff(capacity * 1024 / 10 * 9) < 10_000, "{capacity} {allocatable}");
        assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 10250);
        // Somebody gives the node up, and is told better.
        api.edit("nodes", "", "node-1", |node| {
            for condition in node["status"]["conditions"].as_array_mut().unwrap() {
                condition["status"] = json!("Unknown");
            }
        });
        api.until("it is ready again", |api| state(api, "Ready") == "True").await;
        let renewed =
            |api: &Api| api.get("leases", "kube-node-lease", "node-1").map(|l| l["spec"]["renewTime"].clone());
        let first = renewed(&api);
        let good_until = *lab.renewed.borrow();
        api.until("the lease is renewed", |api| renewed(api).is_some() && renewed(api) != first).await;
        lab.renewed.subscribe().wait_for(|until| *until > good_until).await.unwrap();
        // Deleted, it is there again with the network that its pods are in.
        api.remove("nodes", "", "node-1");
        api.until("it is there again", |api| api.get("nodes", "", "node-1").is_some()).await;
        assert_eq!(api.get("nodes", "", "node-1").unwrap()["spec"]["podCIDR"], "10.244.7.0/24");
        // A Node that was made anew is its owner as the old one was.
        api.edit("nodes", "", "node-1", |node| node["metadata"]["uid"] = json!("n2"));
        api.until("the lease belongs to the node", |api| {
            let lease = api.get("leases", "kube-node-lease", "node-1").unwrap_or_default();
            let owner = &lease["metadata"]["ownerReferences"][0];
            (&owner["kind"], &owner["name"], &owner["uid"]) == (&json!("Node"), &json!("node-1"), &json!("n2"))
        })
        .await;
    });
}

fn a_route_that_cannot_be_laid_is_laid_when_it_can() {
    let lab = Lab::new();
    let addresses = json!([{"type": "InternalIP", "address": "10.204.0.12"}]);
    let other = json!({"metadata": {"name": "node-2", "uid": "n2"}, "spec": {"podCIDR": "10.244.2.0/24"},
        "status": {"addresses": addresses}});
    lab.api.put("nodes", other);
    lab.with_agent(async |api: Api| {
        // By then it has been tried.
        create(&api, "web", json!({"containers": [app(&["serve"])]}));
        ready(&api, "web").await;
        let routes = || lab.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/route").unwrap());
        // 10.244.2.0, as the kernel writes it.
        let laid = || routes().lines().any(|line| line.starts_with("eth0\t0002F40A\t0C00CC0A"));
        assert!(!laid(), "the node's gateway is on no network of ours");
        lab.netns.address("eth0", "10.204.0.11/24".parse().unwrap());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !laid() {
            assert!(Instant::now() < deadline, "no route after all: {}", routes());
            tokio::task::yield_now().await;
        }
    });
}

fn hooks_hold_up_neither_others_nor_the_end() {
    let lab = Lab::new();
    lab.with_agent(async |api: Api| {
        let mut slow = app(&["polite"]);
        slow["lifecycle"] = json!({"postStart": {"sleep": {"seconds": 500}}});
        let names: Vec<String> = (0..9).map(|number| format!("slow-{number}")).collect();
        for name in &names {
            create(&api, name, json!({"containers": [slow.clone()]}));
        }
        for name in &names {
            lab.started(name).await;
        }
        create(&api, "quick", json!({"containers": [app(&["serve"])]}));
        ready(&api, "quick").await;
        // Told to end, it ends at once.
        delete(&api, "slow-0", 60);
        gone(&api, "slow-0").await;
        assert!(!api.events("slow-0").iter().any(|event| event.starts_with("FailedPostStartHook")));
    });
}

fn exits_follow_the_restart_policy() {
    let lab = Lab::new();
    lab.create("never", json!({"restartPolicy": "Never", "containers": [app(&["exit", "3"])]}));
    lab.create("fine", json!({"restartPolicy": "OnFailure", "containers": [app(&["exit", "0"])]}));
    lab.create("words", json!({"restartPolicy": "Never", "containers": [app(&["last-words", "so long"])]}));
    lab.create("always", json!({"restartPolicy": "Always", "containers": [app(&["exit", "1"])]}));
    lab.with_agent(async |api: Api| {
        api.until("never has failed", |api| api.pod("never")["status"]["phase"] == "Failed").await;
        let state = container(&api, "never")["state"]["terminated"].clone();
        assert_eq!((&state["exitCode"], &state["reason"]), (&json!(3), &json!("Error")));
        api.until("fine has succeeded", |api| api.pod("fine")["status"]["phase"] == "Succeeded").await;
        assert_eq!(container(&api, "fine")["state"]["terminated"]["reason"], "Completed");
        api.until("words has failed", |api| api.pod("words")["status"]["phase"] == "Failed").await;
        assert_eq!(container(&api, "words")["state"]["terminated"]["message"], "so long");
        api.until("always backs off", |api| {
            container(api, "always")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
        let status = container(&api, "always");
        assert_eq!((&status["restartCount"], &status["lastState"]["terminated"]["exitCode"]), (&json!(1), &json!(1)));
        let message = status["state"]["waiting"]["message"].as_str().unwrap().to_owned();
        assert_eq!(message, "back-off 10s restarting failed container=app pod=always_shop(uid-always)");
        assert_eq!(api.pod("always")["status"]["phase"], "Running");
        let told = "BackOff: Back-off restarting failed container app in pod always_shop(uid-always)";
        api.until("an event tells", |api| api.events("always").iter().any(|event| event == told)).await;
        for pod in ["never", "fine", "words"] {
            assert!(!api.events(pod).iter().any(|event| event.starts_with("BackOff")), "{pod}");
        }
    });
    assert_eq!(lab.log("never", "app", 0), "hello\noops\n");
}

fn what_cannot_start_says_why_and_disturbs_nobody() {
    let lab = Lab::new();
    lab.create("no-image", json!({"containers": [{"name": "app", "image": "nginx:1"}]}));
    lab.create("never-pull", json!({"containers": [{"name": "app", "image": "nginx:1", "imagePullPolicy": "Never"}]}));
    lab.create("no-command", json!({"containers": [{"name": "app", "command": ["/no/such/thing"]}]}));
    let from = json!({"configMapKeyRef": {"name": "absent", "key": "k"}});
    lab.create("no-config", json!({"containers": [{"name": "app", "env": [{"name": "X", "valueFrom": from}]}]}));
    let volume = json!([{"name": "v", "secret": {"secretName": "absent"}}]);
    lab.create("no-volume", json!({"volumes": volume, "containers": [app(&["polite"])]}));
    lab.create("bad-user", json!({"containers": [{"name": "app", "securityContext": {"runAsNonRoot": true}}]}));
    lab.create("good", json!({"containers": [app(&["polite"])]}));
    lab.with_agent(async |api: Api| {
        ready(&api, "good").await;
        for (pod, reason, message) in [
            ("no-image", "ErrImagePull", "import it with `portolan image import --data-dir /somewhere ARCHIVE`"),
            ("never-pull", "ErrImageNeverPull", "is not present with pull policy of Never"),
            ("no-command", "RunContainerError", "/no/such/thing"),
            ("no-config", "CreateContainerConfigError", "configmap \"absent\" not found"),
            ("bad-user", "CreateContainerConfigError", "runAsNonRoot"),
        ] {
            api.until(&format!("{pod} waits for {reason}"), |api| {
                container(api, pod)["state"]["waiting"]["reason"] == reason
            })
            .await;
            let said = container(&api, pod)["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
            assert!(said.contains(message), "{pod}: {said}");
            assert_eq!(api.pod(pod)["status"]["phase"], "Pending", "{pod}");
            api.until("an event tells", |api| api.events(pod).iter().any(|event| event.starts_with("Failed: "))).await;
        }
        api.until("the volume is missed", |api| {
            api.events("no-volume").iter().any(|e| e.contains("secret \"absent\" not found"))
        })
        .await;
        for pod in ["no-image", "no-volume", "no-command"] {
            delete(&api, pod, 30);
            gone(&api, pod).await;
        }
    });
}

fn pods_outlive_their_agent() {
    let lab = Lab::new();
    lab.create("web", json!({"containers": [app(&["serve"])]}));
    lab.create("mortal", json!({"restartPolicy": "Never", "containers": [app(&["polite"])]}));
    lab.create("orphan", json!({"containers": [app(&["stubborn"])]}));
    lab.with_agent(async |api: Api| {
        for pod in ["web", "mortal", "orphan"] {
            ready(&api, pod).await;
        }
        lab.started("mortal").await;
    });
    let (before, address) = (lab.api.pod("web"), ip(&lab.api, "web"));
    assert_eq!(lab.netns.run(|| workload::get(&format!("{address}:8080"))), "web");
    // Both happen while no agent looks.
    lab.netns.run(|| {
        let shim = lab.shim("mortal").unwrap();
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        let child = nix::unistd::Pid::from_raw(children.trim().parse().unwrap());
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGTERM).unwrap();
    });
    lab.api.remove("pods", "shop", "orphan");
    lab.with_agent(async |api: Api| {
        api.until("mortal's end is known", |api| api.pod("mortal")["status"]["phase"] == "Succeeded").await;
        create(&api, "later", json!({"containers": [app(&["polite"])]}));
        ready(&api, "later").await;
        let after = api.pod("web");
        assert_eq!(after["status"], before["status"]);
        assert_ne!(ip(&api, "later"), ip(&api, "web"), "an address was given twice");
        let deadline = Instant::now() + Duration::from_secs(20);
        while lab.shim("orphan").is_some() {
            assert!(Instant::now() < deadline, "the orphan still runs");
            tokio::task::yield_now().await;
        }
    });
}

fn a_pod_is_stopped_gently_and_then_not() {
    let lab = Lab::new();
    let shared = lab.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let volumes = json!([{"name": "shared", "hostPath": {"path": shared}}]);
    let hook = json!({"preStop": {"exec": {"command": ["/portolan", "workload", "touch", "/shared/stopped"]}},
        "postStart": {"exec": {"command": ["/portolan", "workload", "touch", "/shared/started"]}}});
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    lab.create(
        "gentle",
        json!({"volumes": volumes, "containers": [
        {"name": "app", "args": ["polite"], "lifecycle": hook, "volumeMounts": mounts}]}),
    );
    lab.create("stubborn", json!({"containers": [app(&["stubborn"])]}));
    lab.create("forced", json!({"containers": [app(&["stubborn"])]}));
    let log = lab.pod_dir("gentle").join("logs/app/0.log");
    let kept = lab.dir.path().join("gentle.log");
    lab.with_agent(async |api: Api| {
        for pod in ["gentle", "stubborn", "forced"] {
            ready(&api, pod).await;
        }
        lab.started("gentle").await;
        assert!(shared.join("started").exists());
        // A second name for the log, which goes with the pod.
        std::fs::hard_link(&log, &kept).unwrap();
        let started = Instant::now();
        delete(&api, "gentle", 30);
        gone(&api, "gentle").await;
        assert!(started.elapsed() < Duration::from_secs(10), "it was not waited for");
        assert!(shared.join("stopped").exists());
        let started = Instant::now();
        delete(&api, "stubborn", 1);
        gone(&api, "stubborn").await;
        assert!(started.elapsed() >= Duration::from_secs(1), "it was not given its time");
        // Told to hurry after it was told to take its time.
        delete(&api, "forced", 600);
        api.until("it is being stopped", |api| api.events("forced").iter().any(|e| e.starts_with("Killing"))).await;
        delete(&api, "forced", 1);
        gone(&api, "forced").await;
    });
    assert!(std::fs::read_to_string(kept).unwrap().ends_with(" terminating\n"));
}

fn a_killed_shim_takes_its_pod_along_and_both_come_back() {
    let lab = Lab::new();
    let mounts = json!([{"name": "notes", "mountPath": "/notes"}]);
    lab.create(
        "web",
        json!({
        "volumes": [{"name": "notes", "emptyDir": {}}],
        "initContainers": [{"name": "init", "args": ["append", "/notes/n", "again"], "volumeMounts": mounts}],
        "containers": [app(&["serve"])]}),
    );
    lab.create("once", json!({"restartPolicy": "Never", "containers": [app(&["polite"])]}));
    lab.with_agent(async |api: Api| {
        ready(&api, "web").await;
        ready(&api, "once").await;
        for pod in ["web", "once"] {
            let shim = nix::unistd::Pid::from_raw(lab.shim(pod).unwrap());
            nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        api.until("web has restarted", |api| is_ready(api, "web") && container(api, "web")["restartCount"] == 1).await;
        let address = ip(&api, "web");
        assert_eq!(get(format!("{address}:8080")).await, "web");
        assert_eq!(api.pod("web")["status"]["initContainerStatuses"][0]["restartCount"], 1);
        assert_eq!(container(&api, "web")["lastState"]["terminated"]["exitCode"], 137);
        api.until("once has failed", |api| api.pod("once")["status"]["phase"] == "Failed").await;
        assert!(api.events("web").iter().any(|event| event.starts_with("SandboxChanged")));
    });
    let notes = std::fs::read_to_string(lab.pod_dir("web").join("volumes/notes/n")).unwrap();
    assert_eq!(notes, "again\nagain\n");
}

fn probes_decide_readiness_and_restarts() {
    let lab = Lab::new();
    let shared = lab.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let exec = json!({"exec": {"command": ["/portolan", "workload", "exists", "/shared/ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    let volumes = json!([{"name": "shared", "hostPath": {"path": shared}}]);
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    lab.create(
        "by-file",
        json!({"volumes": volumes, "containers": [
        {"name": "app", "args": ["serve"], "volumeMounts": mounts, "readinessProbe": exec}]}),
    );
    let http = |path: &str| json!({"httpGet": {"port": 8080, "path": path}, "periodSeconds": 1, "failureThreshold": 2});
    let mut startup = http("/");
    startup["failureThreshold"] = json!(30);
    lab.create("healthy", json!({"containers": [{"name": "app", "args": ["serve"],
        "startupProbe": startup, "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}, "readinessProbe": http("/")}]}));
    lab.create(
        "sick",
        json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "app", "args": ["serve"],
        "livenessProbe": http("/bad")}]}),
    );
    lab.with_agent(async |api: Api| {
        ready(&api, "healthy").await;
        api.until("a probe has failed", |api| {
            let events = api.events("by-file");
            events.iter().any(|event| event == "Unhealthy: Readiness probe failed: command exited with 1")
        })
        .await;
        assert!(!is_ready(&api, "by-file"));
        assert_eq!(api.pod("by-file")["status"]["phase"], "Running");
        std::fs::write(shared.join("ready"), "x").unwrap();
        ready(&api, "by-file").await;
        std::fs::remove_file(shared.join("ready")).unwrap();
        api.until("it is unready again", |api| !is_ready(api, "by-file")).await;
        api.until("the sick one is restarted", |api| container(api, "sick")["restartCount"] == 1).await;
        let events = api.events("sick");
        for told in [
            "Unhealthy: Liveness probe failed: HTTP probe failed with statuscode: 500",
            "Killing: Container app failed liveness probe, will be restarted",
        ] {
            assert!(events.iter().any(|event| event == told), "{events:?}");
        }
        assert_eq!(container(&api, "healthy")["restartCount"], 0);
    });
    // Commands run in containers leave nothing behind.
    let left = std::fs::read_dir(lab.pod_dir("by-file").join("run/app.0")).unwrap().count();
    assert!(left <= 4, "{left} files");
}

fn a_node_that_goes_down_lets_its_pods_say_goodbye() {
    let lab = Lab::new();
    let shared = lab.dir.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let volumes = json!([{"name": "shared", "hostPath": {"path": shared}}]);
    let mounts = json!([{"name": "shared", "mountPath": "/shared"}]);
    let hook = json!({"preStop": {"exec": {"command": ["/portolan", "workload", "touch", "/shared/stopped"]}}});
    let endless = json!({"preStop": {"sleep": {"seconds": 600}}});
    lab.create(
        "gentle",
        json!({"volumes": volumes, "containers": [
        {"name": "app", "args": ["polite"], "lifecycle": hook, "volumeMounts": mounts},
        {"name": "slow", "args": ["polite"], "lifecycle": endless}]}),
    );
    lab.with_agent(async |api: Api| ready(&api, "gentle").await);
    assert!(lab.shim("gentle").is_some());
    let started = Instant::now();
    lab.drain();
    assert!(started.elapsed() < Duration::from_secs(9), "{:?}", started.elapsed());
    assert!(shared.join("stopped").exists());
    assert_eq!(lab.shim("gentle"), None);
}

fn nothing_is_left_behind() {
    let lab = Lab::new();
    for number in 0..4 {
        lab.create(&format!("web-{number}"), json!({"containers": [app(&["polite"])]}));
    }
    lab.with_agent(async |api: Api| {
        for number in 0..4 {
            ready(&api, &format!("web-{number}")).await;
        }
        lab.started("web-0").await;
        delete(&api, "web-0", 30);
        gone(&api, "web-0").await;
    });
    assert!(lab.shim("web-0").is_none() && lab.shim("web-1").is_some());
    lab.drain();
    // The kernel takes a namespace with its links apart in the background.
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut left = lab.remains();
    while !left.is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
        left = lab.remains();
    }
    assert!(left.is_empty(), "{left:#?}");
}
