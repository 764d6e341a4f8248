//! `portolan up` as a child process, and how tests talk to it: the Kubernetes API, and requests from outside.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlink::netlink::namespace::Netns;
use serde_json::Value;

use crate::machine::{Machine, eventually};

pub(crate) const READY: Duration = Duration::from_secs(60);
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Cluster<'a> {
    machine: &'a Machine,
    child: Child,
    pub(crate) ready_line: String,
    log: PathBuf,
}

impl<'a> Cluster<'a> {
    /// Starts a cluster on the machine's data directory and waits until it is ready.
    pub(crate) fn up(machine: &'a Machine, arguments: &[&str]) -> Self {
        let log = machine.path("up.log");
        let mut child = Command::new(env!("CARGO_BIN_EXE_portolan"))
            .arg("up")
            .arg("--data-dir")
            .arg(machine.path("data"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody reads beyond the ready line.
                let _ = sender.send(line);
            }
        });
        let ready = lines.recv_timeout(READY);
        let mut cluster = Self { machine, child, ready_line: String::new(), log };
        match ready {
            Ok(line) => cluster.ready_line = line,
            Err(error) => {
                panic!("the cluster did not become ready ({error}):\n{}{:#?}", cluster.logs(), machine.remains())
            }
        }
        cluster
    }

    /// The log of `up` and the ends of the nodes' logs.
    pub(crate) fn logs(&self) -> String {
        let mut text = std::fs::read_to_string(&self.log).unwrap_or_default();
        for node in std::fs::read_dir(self.machine.path("data/nodes")).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(node.path().join("log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            text.push_str(&format!("--- {}\n", node.path().display()));
            text.push_str(&lines[lines.len().saturating_sub(40)..].join("\n"));
            text.push('\n');
        }
        text
    }

    /// What the API says of Namespaces, Nodes and Pods, for whoever reads why a test failed.
    fn state(&self) -> String {
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let api = self.client();
            ["namespaces", "nodes", "pods", "events"].map(|plural| {
                let list = api.get(&format!("/api/v1/{plural}"));
                let items = list["items"].as_array().cloned().unwrap_or_default();
                items.iter().map(|item| format!("{plural}: {}\n", without_noise(item))).collect::<String>()
            })
        }));
        asked.map_or_else(|_| "the API does not answer".to_owned(), |lists| lists.concat())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.machine.path("data/kubeconfig")
    }

    pub(crate) fn machine(&self) -> &Machine {
        self.machine
    }

    /// SIGTERM, and how `up` ended.
    pub(crate) fn stop(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap()
    }

    /// Stops the control plane in its tracks for as long as `work` takes; nodes go on.
    pub(crate) fn without_control_plane<T>(&self, work: impl FnOnce() -> T) -> T {
        let up = Pid::from_raw(self.child.id().cast_signed());
        kill(up, Signal::SIGSTOP).unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        kill(up, Signal::SIGCONT).unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// As if the machine room burnt down.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn node(&self, arguments: &[&str]) -> String {
        let data = self.machine.path("data").display().to_string();
        let mut line = vec!["node"];
        line.extend(arguments);
        line.extend(["--data-dir", &data]);
        let output = self.machine.portolan(&line);
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub(crate) fn client(&self) -> Api {
        Api::new(self.kubeconfig())
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}{}", self.logs(), self.state());
        }
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// What tells two objects of a kind apart when a test has failed.
fn without_noise(object: &Value) -> Value {
    let meta = &object["metadata"];
    let about = ["namespace", "name", "creationTimestamp", "deletionTimestamp", "finalizers"]
        .iter()
        .filter_map(|key| Some((*key, meta.get(key)?.clone())))
        .collect::<std::collections::BTreeMap<_, _>>();
    serde_json::json!({
        "metadata": about,
        "node": object["spec"]["nodeName"],
        "status": object["status"],
        "event": [&object["reason"], &object["message"], &object["lastTimestamp"]],
    })
}

/// The Kubernetes API, by paths and JSON, so that a test sees what is on the wire.
pub(crate) struct Api {
    runtime: tokio::runtime::Runtime,
    client: kube::Client,
}

impl Api {
    pub(crate) fn new(kubeconfig: PathBuf) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = runtime.block_on(portolan_client::connect(&kubeconfig)).unwrap();
        Self { runtime, client }
    }

    /// The status code and the body.
    pub(crate) fn send(&self, method: &str, path: &str, content_type: &str, body: Vec<u8>) -> (u16, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .body(kube::client::Body::from(body))
            .unwrap();
        self.runtime.block_on(async {
            let response = self.client.send(request).await.unwrap();
            let status = response.status().as_u16();
            let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
            (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
        })
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, "application/json", Vec::new());
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    pub(crate) fn post(&self, path: &str, object: &Value) -> Value {
        let (status, body) = self.send("POST", path, "application/json", object.to_string().into());
        assert!((200..300).contains(&status), "POST {path}: {status} {body}");
        body
    }

    pub(crate) fn merge(&self, path: &str, patch: &Value) -> Value {
        let (status, body) = self.send("PATCH", path, "application/merge-patch+json", patch.to_string().into());
        assert_eq!(status, 200, "PATCH {path}: {body}");
        body
    }

    pub(crate) fn delete(&self, path: &str) -> Value {
        let (status, body) = self.send("DELETE", path, "application/json", Vec::new());
        assert!((200..300).contains(&status), "DELETE {path}: {status} {body}");
        body
    }

    /// A Deployment of the built-in image, and its pods Ready.
    pub(crate) fn deploy(&self, name: &str, replicas: usize) {
        self.post(
            "/apis/apps/v1/namespaces/default/deployments",
            &serde_json::json!({
                "metadata": { "name": name },
                "spec": {
                    "replicas": replicas,
                    "selector": { "matchLabels": { "app": name } },
                    "template": {
                        "metadata": { "labels": { "app": name } },
                        "spec": { "containers": [{
                            "name": "web",
                            "image": "portolan/workload",
                            "ports": [{ "name": "http", "containerPort": 8080 }],
                            "readinessProbe": { "httpGet": { "path": "/readyz", "port": 8080 }, "periodSeconds": 1 },
                        }] },
                    },
                },
            }),
        );
        self.wait_ready(name, replicas);
    }

    pub(crate) fn wait_ready(&self, name: &str, replicas: usize) {
        eventually(&format!("{replicas} pods of {name} Ready"), SOON, || {
            let deployment = self.get(&format!("/apis/apps/v1/namespaces/default/deployments/{name}"));
            match deployment["status"]["readyReplicas"].as_u64().unwrap_or(0) {
                ready if ready == replicas as u64 => Ok(()),
                _ => Err(format!(
                    "{} {}",
                    deployment["status"],
                    self.get("/api/v1/namespaces/default/pods")["items"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|pod| format!("\n{} {}", pod["metadata"]["name"], pod["status"]))
                        .collect::<String>()
                )),
            }
        });
    }

    pub(crate) fn service(&self, spec: Value) -> Value {
        self.post("/api/v1/namespaces/default/services", &spec)
    }
}

/// One GET over a new connection, made in a named network namespace; the body, or why there is none.
pub(crate) fn http_from(namespace: &str, address: IpAddr, port: u16) -> Result<String, String> {
    let namespace = Netns::open(namespace).map_err(|error| error.to_string())?;
    namespace.run(|| http(SocketAddr::new(address, port))).map_err(|error| error.to_string())?
}

pub(crate) fn http(address: SocketAddr) -> Result<String, String> {
    http_get(address, "/")
}

pub(crate) fn http_get(address: SocketAddr, path: &str) -> Result<String, String> {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
        stream.set_read_timeout(Some(Duration::from_secs(3)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = exchange().map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("no HTTP response: {text:?}"))?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.trim().to_owned()) } else { Err(head.to_owned()) }
}
