//! Bodies too large, too slow, cut off; nothing of it disturbs anybody else.

use http::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{CONFIG_MAPS, Client, Cluster, DEADLINE, config_map};

/// Sends what is given, then reads all that comes.
async fn raw(client: &Client, head: &str, body: impl FnOnce() -> Vec<u8>, hang_up: bool) -> String {
    let mut stream = client.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let _ = stream.write_all(&body()).await;
    if hang_up {
        stream.shutdown().await.unwrap();
    }
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(DEADLINE, stream.read(&mut answer)).await.unwrap().unwrap_or(0);
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

fn head(length: usize) -> String {
    format!(
        "POST {CONFIG_MAPS} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_at_little_cost() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let answer =
        client.send(Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], vec![b' '; 100 << 20]).await;
    assert_eq!(answer.failure(), (413, "Request entity too large: limit is 3145728".to_owned()));
    // Chunked, so that the length is not known before.
    let chunked = format!("POST {CONFIG_MAPS} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    let body = || {
        let mut body = Vec::new();
        for _ in 0..5 {
            body.extend_from_slice(b"100000\r\n");
            body.extend_from_slice(&vec![b' '; 1 << 20]);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        body
    };
    assert!(raw(&client, &chunked, body, false).await.starts_with("HTTP/1.1 413"));
    // And who asks first is told before sending anything.
    let asking = head(100 << 20).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    assert!(raw(&client, &asking, Vec::new, false).await.starts_with("HTTP/1.1 413"));
    assert_eq!(client.post(CONFIG_MAPS, &config_map("a")).await.code, 201);
}

/// Who writes a long body first and then reads hears the answer, though nobody wanted the body.
#[tokio::test]
async fn an_answer_that_needs_no_body_waits_for_it() {
    /// More than the buffers between client and server hold.
    const BODY: usize = 8 << 20;
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    for path in [CONFIG_MAPS, "/api/v1/nonsense", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"] {
        let head = format!("PATCH {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {BODY}\r\n\r\n");
        let mut stream = client.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; BODY]).await.unwrap();
        let again = "GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(again.as_bytes()).await.unwrap();
        let mut answers = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answers)).await.unwrap().unwrap();
        assert!(answers.starts_with("HTTP/1.1 40"), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 OK"), "the connection goes on: {answers}");
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_400_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let whole = config_map("a").to_string();
    for body in [&whole[..whole.len() - 1], "", "nonsense", "[]", "\"text\"", "{\"metadata\": 7}"] {
        let answer =
            client.send(Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], body.to_owned()).await;
        assert_eq!(answer.code, 400, "{body}");
        assert_eq!(answer.json()["kind"], "Status");
    }
    for (media, body, code) in [
        ("application/vnd.kubernetes.protobuf", "k8s\0", 400),
        ("application/vnd.kubernetes.protobuf", "{}", 400),
        ("application/yaml", "a: [", 400),
        ("text/html", "<p>", 415),
    ] {
        assert_eq!(
            client.send(Method::POST, CONFIG_MAPS, &[("content-type", media)], body).await.code,
            code,
            "{media}"
        );
    }
    // A connection that ends before the body does.
    raw(&client, &head(whole.len() + 10), || whole.clone().into_bytes(), true).await;
    let list = client.get(CONFIG_MAPS).await.ok();
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn nonsense_instead_of_tls_or_http_harms_nobody() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut plain = tokio::net::TcpStream::connect(cluster.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut rest)).await.unwrap();
    assert!(raw(&client, "complete nonsense\r\n\r\n", Vec::new, false).await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /api/v1/pods HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let answer = raw(&client, &long, Vec::new, false).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(client.get("/api/v1/pods").await.code, 200);
}

#[tokio::test]
async fn copies_of_copies_do_not_fill_the_memory() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    client.post(CONFIG_MAPS, &config_map("a")).await.ok();
    let mut patch = vec![json!({"op": "add", "path": "/data", "value": {"x": "y"}})];
    patch.extend((0..40).map(|round| json!({"op": "copy", "from": "/data", "path": format!("/data/c{round}")})));
    let path = format!("{CONFIG_MAPS}/a");
    let patch = serde_json::to_vec(&patch).unwrap();
    let media = [("content-type", "application/json-patch+json")];
    let (code, message) = client.send(Method::PATCH, &path, &media, patch).await.failure();
    assert_eq!(code, 422);
    assert_eq!(message, "the server rejected our request due to an error in our request");
}

#[tokio::test]
async fn no_object_grows_larger_than_a_body_piece_by_piece() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    client.post(pods, &pod).await.ok();
    let mut codes = Vec::new();
    for round in 0..4 {
        let condition = json!({"type": format!("t{round}"), "status": "True", "message": "x".repeat(1 << 20)});
        let patch = json!({"status": {"conditions": [condition]}}).to_string();
        let media = [("content-type", "application/strategic-merge-patch+json")];
        codes.push(client.send(Method::PATCH, &format!("{pods}/p/status"), &media, patch).await.code);
    }
    assert_eq!(codes, [200, 200, 413, 413]);
}

/// More of them than requests may be at work, and each promises more than its share of the memory for bodies.
#[tokio::test]
async fn those_who_send_slowly_keep_nobody_waiting() {
    let cluster = Cluster::start().await;
    let client = cluster.admin();
    let mut slow = Vec::new();
    for _ in 0..600 {
        let mut stream = client.connect().await;
        stream.write_all(head(3 << 20).as_bytes()).await.unwrap();
        stream.write_all(b"{").await.unwrap();
        slow.push(stream);
    }
    let patience = std::time::Duration::from_secs(5);
    let answers = async {
        assert_eq!(client.post(CONFIG_MAPS, &config_map("a")).await.code, 201);
        assert_eq!(client.get(CONFIG_MAPS).await.code, 200);
    };
    tokio::time::timeout(patience, answers).await.expect("the slow ones have their own time");
}
