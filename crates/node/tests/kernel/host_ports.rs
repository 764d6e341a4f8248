//! Ports of the node that lead to pods.

use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::api::Api;
use crate::lab::{Lab, NODE_IP, create, delete};
use crate::{get, gone, ready, workload};

/// A pod whose one container has this port, and listens on it.
fn pod(args: &[&str], port: Value) -> Value {
    json!({"containers": [{"name": "app", "args": args, "ports": [port]}]})
}

fn refused(address: &str) -> bool {
    TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_secs(5)).is_err()
}

pub(crate) fn a_host_port_leads_to_its_pod_from_everywhere() {
    let lab = Lab::new();
    let everywhere = json!({"containerPort": 8080, "hostPort": 80});
    let node = format!("{NODE_IP}:80");
    let mut web = pod(&["serve"], everywhere.clone());
    web["restartPolicy"] = json!("OnFailure");
    web["containers"].as_array_mut().unwrap().push(json!({"name": "itself", "args": ["get", node]}));
    lab.create("web", web);
    let at_loopback = json!({"containerPort": 8080, "hostPort": 81, "hostIP": "127.0.0.1"});
    lab.create("local", pod(&["serve"], at_loopback));
    let outside = || lab.outside.run(|| workload::get(&node));
    lab.with_agent(async |api: Api| {
        ready(&api, "local").await;
        for (address, answer) in [(&*node, "web"), ("127.0.0.1:80", "web"), ("127.0.0.1:81", "local")] {
            assert_eq!(get(address.to_owned()).await, answer, "from the node to {address}");
        }
        assert_eq!(outside(), "web");
        assert!(lab.outside.run(|| refused(&format!("{NODE_IP}:81"))), "only the node has 127.0.0.1");
        create(
            &api,
            "asker",
            json!({"restartPolicy": "Never", "containers": [{"name": "app", "args": ["get", node]}]}),
        );
        api.until("the asker is done", |api| api.pod("asker")["status"]["phase"] == "Succeeded").await;
        assert_eq!(lab.log("asker", "app", 0), "web\n");
        api.until("the pod reaches itself", |_| lab.log("web", "itself", 0) == "web\n").await;
        create(&api, "late", pod(&["serve"], everywhere.clone()));
        rejected(&api, "late").await;
    });
    assert_eq!(outside(), "web", "while no agent runs");
    lab.with_agent(async |api: Api| {
        create(&api, "later", pod(&["serve"], json!({"containerPort": 8080, "hostPort": 80, "hostIP": NODE_IP})));
        rejected(&api, "later").await;
        assert_eq!(outside(), "web", "with an agent that found the pod");
        delete(&api, "web", 1);
        gone(&api, "web").await;
        assert!(lab.outside.run(|| refused(&node)), "nobody is there");
        create(&api, "next", pod(&["serve"], everywhere.clone()));
        ready(&api, "next").await;
        assert_eq!(outside(), "next");
    });
}

/// As a kubelet puts it.
async fn rejected(api: &Api, pod: &str) {
    api.until(&format!("{pod} is rejected"), |api| api.pod(pod)["status"]["phase"] == "Failed").await;
    let said = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
    let status = api.pod(pod)["status"].clone();
    assert_eq!(status["reason"], "NodePorts");
    assert_eq!(status["message"], format!("Pod was rejected: {said}"));
    let told = format!("NodePorts: {said}");
    api.until("an event tells", |api| api.events(pod).contains(&told)).await;
}

pub(crate) fn a_udp_flow_that_was_there_before_the_pod_finds_it() {
    let lab = Lab::new();
    let client = lab.outside.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(format!("{NODE_IP}:53")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        socket.send(b"hello").unwrap();
        socket
    });
    lab.create("names", pod(&["udp"], json!({"containerPort": 5353, "hostPort": 53, "protocol": "UDP"})));
    lab.with_agent(async |api: Api| {
        ready(&api, "names").await;
        let answer = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut answer = [0; 64];
            while Instant::now() < deadline {
                // Refused, as long as nobody is there.
                let _ = client.send(b"hello");
                if let Ok(length) = client.recv(&mut answer) {
                    return String::from_utf8_lossy(&answer[..length]).into_owned();
                }
            }
            "nobody answered".to_owned()
        });
        assert_eq!(answer.await.unwrap(), "names");
    });
}
