//! What watches cost in memory, seen from outside: the server is a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use portolan_apiserver::User;
use serde_json::{Value, json};

use crate::harness::{CONFIG_MAPS, Client, Cluster, Lines, config_map};

const ALONE: &str = "PORTOLAN_API_ALONE";

/// Run by the tests below in a process of its own, until its input ends; by itself it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_alone() {
    if std::env::var_os(ALONE).is_none() {
        return;
    }
    let cluster = Cluster::start().await;
    let admin = cluster.api.certificate(&User::admin()).unwrap();
    let words = json!([cluster.address, cluster.api.ca(), admin.certificate, admin.key]);
    println!("alone {words}");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    cluster.stop().await;
}

struct Alone {
    child: Child,
    client: Client,
    _output: BufReader<ChildStdout>,
}

impl Alone {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "memory::server_alone", "--nocapture"])
            // As the binary does it for itself.
            .envs([(ALONE, "1"), ("MALLOC_ARENA_MAX", "2")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let words = loop {
            let mut line = String::new();
            assert!(output.read_line(&mut line).unwrap() > 0, "the server ended early");
            // The test's own name may stand before it.
            if let Some((_, words)) = line.split_once("alone [") {
                break serde_json::from_str::<Vec<String>>(&format!("[{words}")).unwrap();
            }
        };
        let client = Client::with(words[0].parse().unwrap(), &words[1], &words[2], &words[3]);
        Self { child, client, _output: output }
    }

    /// Bytes of memory in use.
    fn resident(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    async fn watches(&self, count: usize) -> Vec<Lines> {
        let mut watches = Vec::new();
        for _ in 0..count {
            watches.push(self.client.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=0")).await);
        }
        watches
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn an_idle_watch_costs_little() {
    const WATCHES: usize = 500;
    const EACH: usize = 64 << 10;
    let server = Alone::start();
    drop(server.watches(20).await);
    let before = server.resident();
    let watches = server.watches(WATCHES).await;
    let each = server.resident().saturating_sub(before) / WATCHES;
    eprintln!("{} KiB for each watch with its connection", each >> 10);
    assert!(each < EACH, "{each} bytes for each watch");
    drop(watches);
}

#[tokio::test]
async fn a_watch_that_nobody_reads_holds_on_to_little() {
    const WATCHES: usize = 20;
    const EACH: usize = 4 << 20;
    /// Of these sizes and numbers, history keeps no more than half.
    const CHANGES: usize = 60;
    const BYTES: usize = 1000 << 10;
    let server = Alone::start();
    server.client.post(CONFIG_MAPS, &config_map("large")).await.ok();
    let change = async |round: usize| {
        let data: Value = json!({"data": {"k": format!("{round}{}", "x".repeat(BYTES))}});
        server.client.merge(&format!("{CONFIG_MAPS}/large"), &data).await.ok();
    };
    for round in 0..CHANGES {
        change(round).await;
    }
    let before = server.resident();
    let mut watches = server.watches(WATCHES).await;
    for round in 0..CHANGES {
        change(round).await;
    }
    let each = server.resident().saturating_sub(before) / WATCHES;
    eprintln!("{} KiB for each watch", each >> 10);
    assert!(each < EACH, "{each} bytes for each watch");
    // When they are read, they are told that they missed something.
    for watch in &mut watches {
        let mut last = Value::Null;
        while let Some(event) = watch.next().await {
            last = event;
        }
        assert_eq!((&last["type"], &last["object"]["code"]), (&json!("ERROR"), &json!(410)));
    }
}
