//! A client in a tight loop, and what the others notice of it. What is compared happens in the same run, so that these
//! hold on a slow machine too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use portolan_apiserver::User;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::{CONFIG_MAPS, Client, Cluster, DEADLINE, config_map};

/// One connection that stays.
struct Line(SendRequest<Full<Bytes>>);

impl Line {
    async fn new(client: &Client) -> Self {
        let (sender, connection) = handshake(TokioIo::new(client.connect().await)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn ask(&mut self, request: http::request::Builder, body: &str) -> Bytes {
        let request = request.header("host", "localhost").body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        self.0.ready().await.unwrap();
        let response = self.0.send_request(request).await.unwrap();
        assert!(response.status().is_success(), "{}", response.status());
        response.into_body().collect().await.unwrap().to_bytes()
    }

    async fn list(&mut self) -> Bytes {
        self.ask(Request::get("/api/v1/configmaps").header("accept-encoding", "gzip"), "").await
    }

    async fn patch(&mut self, name: &str, round: usize) {
        let request = Request::patch(format!("{CONFIG_MAPS}/{name}"));
        let request = request.header("content-type", "application/merge-patch+json");
        self.ask(request, &json!({"data": {"k": round.to_string()}}).to_string()).await;
    }
}

/// `connections` of `client` that do `one` until told to stop; how often they did.
struct Loop {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    count: watch::Sender<usize>,
}

impl Loop {
    async fn start<F>(
        client: &Client,
        connections: usize,
        one: impl Fn(Line, usize) -> F + Copy + Send + 'static,
    ) -> Self
    where
        F: Future<Output = Line> + Send,
    {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), watch::Sender::new(0));
        let mut tasks = JoinSet::new();
        for index in 0..connections {
            let mut line = Line::new(client).await;
            let (stop, count) = (stop.clone(), count.clone());
            tasks.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    line = one(line, index).await;
                    count.send_modify(|count| *count += 1);
                }
            });
        }
        Self { tasks, stop, count }
    }

    fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Waits until it was done so often, or for as long as a test has patience.
    async fn reaches(&self, wanted: usize) {
        let mut count = self.count.subscribe();
        let _ = tokio::time::timeout(DEADLINE, count.wait_for(|count| *count >= wanted)).await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
    }
}

fn somebody(name: &str) -> User {
    User::new(name, &["system:masters"])
}

async fn fill(client: &Client, count: usize) {
    let mut line = Line::new(client).await;
    for index in 0..count {
        let mut body = config_map(&format!("c{index}"));
        body["data"]["k"] = "x".repeat(2_000).into();
        line.ask(Request::post(CONFIG_MAPS).header("content-type", "application/json"), &body.to_string()).await;
    }
}

/// With an equal share for each connection, the one would get a 33rd.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_connection_gets_its_users_share_beside_thirty_two_of_another() {
    let cluster = Cluster::start().await;
    fill(&cluster.admin(), 500).await;
    let list = |mut line: Line, _| async move {
        line.list().await;
        line
    };
    let greedy = Loop::start(&cluster.client(&somebody("greedy")), 32, list).await;
    let modest = Loop::start(&cluster.client(&somebody("modest")), 1, list).await;
    modest.reaches(20).await;
    let (got, others) = (modest.count(), greedy.count());
    assert!(got * 8 >= got + others, "{got} lists of {}", got + others);
    modest.stop().await;
    greedy.stop().await;
}

/// More writes than are at work at one time; who comes with one does not queue behind them all, nor does a node's
/// Lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_writes_keeps_nobody_else_waiting() {
    const FLOOD: usize = 512;
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    fill(&admin, FLOOD).await;
    admin.post("/api/v1/namespaces", &json!({"metadata": {"name": "kube-node-lease"}})).await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    admin.post(leases, &json!({"metadata": {"name": "n1"}, "spec": {"holderIdentity": "n1"}})).await.ok();
    let patch = |mut line: Line, index: usize| async move {
        line.patch(&format!("c{index}"), rand::random_range(0..1_000_000)).await;
        line
    };
    let greedy = Loop::start(&cluster.client(&somebody("greedy")), FLOOD, patch).await;
    let mut modest = Line::new(&cluster.client(&somebody("modest"))).await;
    let mut node = Line::new(&cluster.client(&User::node("n1"))).await;
    let rounds = 40;
    let before = greedy.count();
    for round in 0..rounds {
        modest.patch("c0", round).await;
    }
    let beside_modest = greedy.count() - before;
    let before = greedy.count();
    for round in 0..rounds {
        let request = Request::patch(format!("{leases}/n1")).header("content-type", "application/merge-patch+json");
        node.ask(request, &json!({"spec": {"leaseTransitions": round}}).to_string()).await;
    }
    let beside_node = greedy.count() - before;
    // In one queue for all, the whole flood would go before each. Those that are at work, 64, may do so a few times:
    // while a request waits to be read, to be written to the disk, and to be answered.
    assert!(beside_modest < FLOOD * 9 / 10 * rounds, "{beside_modest} writes went before {rounds}");
    assert!(beside_node < FLOOD * 9 / 10 * rounds, "{beside_node} writes went before {rounds}");
    greedy.stop().await;
}

/// More than there may be handshakes, which all stay half-done.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn half_open_connections_do_not_keep_a_user_out() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut lazy = Vec::new();
    for _ in 0..1_500 {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
        lazy.push(stream);
    }
    let answer = tokio::time::timeout(Duration::from_secs(5), client.get(CONFIG_MAPS)).await;
    assert_eq!(answer.expect("it is not made to wait for the others' time to run out").code, 200);
}

#[tokio::test]
async fn many_large_lists_that_nobody_reads_cost_little() {
    let cluster = Cluster::start().await;
    let client = cluster.client(&somebody("lazy"));
    fill(&client, 500).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        let mut stream = client.connect().await;
        stream.write_all(b"GET /api/v1/configmaps HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        unread.push(stream);
    }
    let refused = async {
        while client.get("/api/v1/configmaps").await.code != 429 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, refused).await.expect("so many are enough for one user");
    assert_eq!(cluster.client(&somebody("other")).get("/api/v1/configmaps").await.code, 200);
    drop(unread);
    let served = async {
        while client.get("/api/v1/configmaps").await.code != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, served).await.expect("room again once the others are gone");
}
