//! Whatever is asked, the server answers in time, with no error of its own; and whatever it has acknowledged can be
//! read, each way there is, also by the next process.
//!
//! Requests are the same in each run; `PROPTEST_CASES=n` asks n others, and `fuzz/` more.

mod asking;
#[path = "../../../../kinds/tests/properties/bodies.rs"]
mod bodies;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use portolan_kinds::protobuf;
use serde_json::Value;

use self::asking::{Asking, Surface};
use self::bodies::Choices;
use crate::harness::{Answer, Client, Cluster, DEADLINE};

/// How much of a watch is read.
const GLANCE: Duration = Duration::from_millis(30);
/// The server itself writes to these, so they may have changed again already.
const SERVERS_OWN: [&str; 3] = ["/servicecidrs", "/ipaddresses", "/customresourcedefinitions"];
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

/// A connection that is opened anew when it was closed.
struct Line {
    client: Client,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Line {
    fn new(client: Client) -> Self {
        Self { client, sender: None }
    }

    /// The answer, or of a watch as much as comes at once.
    async fn ask(&mut self, asking: &Asking) -> Answer {
        self.heard(asking, false).await
    }

    /// The first event of a watch.
    async fn first_event(&mut self, path: &str, query: &str) -> serde_json::Result<Value> {
        let (path, query) = (path.to_owned(), format!("watch=true&{query}"));
        let method = Method::GET;
        let asking = Asking { method, path, query, media: "", accept: "application/json", body: Vec::new() };
        let told = self.heard(&asking, true).await;
        serde_json::from_slice(told.bytes.split(|byte| *byte == b'\n').next().unwrap_or_default())
    }

    /// The answer. Of a watch it is what comes at once, or the first event whenever that comes.
    async fn heard(&mut self, asking: &Asking, first_event: bool) -> Answer {
        let query = if asking.query.is_empty() { "" } else { "?" };
        let mut request = Request::builder()
            .method(asking.method.clone())
            .uri(format!("{}{query}{}", asking.path, asking.query))
            .header("host", "localhost")
            .header("accept", asking.accept);
        if !asking.body.is_empty() {
            request = request.header("content-type", asking.media);
        }
        let request = request.body(Full::from(asking.body.clone())).unwrap();
        let patience = tokio::time::timeout(DEADLINE, self.sent(request));
        let (answer, sender) = patience.await.unwrap_or_else(|_| panic!("no answer to {asking:?}"));
        let answer = answer.unwrap_or_else(|error| panic!("{error} instead of an answer to {asking:?}"));
        let (parts, mut body) = answer.into_parts();
        let mut bytes = Vec::new();
        let is_watch =
            parts.status.is_success() && (asking.query.contains("watch=") || asking.path.contains("/watch/"));
        let whole = async {
            while let Some(frame) = body.frame().await {
                bytes.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
                if is_watch && first_event {
                    return false;
                }
            }
            true
        };
        match tokio::time::timeout(if is_watch && !first_event { GLANCE } else { DEADLINE }, whole).await {
            Ok(true) => self.sender = Some(sender),
            Ok(false) => {}
            Err(_) if is_watch && !first_event => {}
            Err(_) => panic!("no end of the answer to {asking:?}"),
        }
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes: bytes.into() }
    }

    /// Over the open connection, if there is one; the server may close it any time between two requests.
    async fn sent(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> (hyper::Result<http::Response<Incoming>>, SendRequest<Full<Bytes>>) {
        if let Some(mut sender) = self.sender.take()
            && sender.ready().await.is_ok()
            && let Ok(answer) = sender.send_request(request.clone()).await
        {
            return (Ok(answer), sender);
        }
        let (mut sender, connection) = handshake(TokioIo::new(self.client.connect().await)).await.unwrap();
        tokio::spawn(connection);
        (sender.send_request(request).await, sender)
    }

    async fn read(&mut self, path: &str, query: &str, accept: &'static str) -> Answer {
        let (path, query) = (path.to_owned(), query.to_owned());
        self.ask(&Asking { method: Method::GET, path, query, media: "", accept, body: Vec::new() }).await
    }
}

/// A server, and a client that has read what it says of itself.
pub(crate) struct Session {
    cluster: Cluster,
    surface: Surface,
    line: Line,
}

impl Session {
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start().await;
        let client = cluster.admin();
        client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &asking::definition()).await.ok();
        Self { cluster, surface: Surface::read(&client).await, line: Line::new(client) }
    }

    /// Asks once, as the bytes say. Tells whether something was written.
    ///
    /// # Panics
    /// If the answer is none that a server may give.
    pub(crate) async fn one(&mut self, bytes: &[u8]) -> bool {
        let mut choices = Choices::new(bytes);
        let asking = self.surface.asking(&mut choices);
        let answer = self.line.ask(&asking).await;
        judged(&mut self.line, &asking, &answer, choices.one_in(3)).await
    }
}

/// Whether the answer is one that a server may give, and what it acknowledged is there.
async fn judged(line: &mut Line, asking: &Asking, answer: &Answer, closely: bool) -> bool {
    let told = || {
        format!(
            "{} {}\n{asking:?}\n{}",
            answer.code,
            String::from_utf8_lossy(&answer.bytes),
            String::from_utf8_lossy(&asking.body)
        )
    };
    assert!(answer.code < 500 || answer.code == 504, "{}", told());
    if asking.method == Method::HEAD {
        return false;
    }
    if answer.code >= 400 {
        let status = read(answer).unwrap_or_else(|| panic!("not what it says it is: {}", told()));
        assert!(status["kind"] == "Status" && status["code"] == answer.code, "{}", told());
        assert_ne!(status["message"].as_str().unwrap_or_default(), "", "{}", told());
        return false;
    }
    let is_text = answer.headers["content-type"].as_bytes().starts_with(b"text/");
    let writes = !is_text && matches!(asking.method, Method::POST | Method::PUT | Method::PATCH);
    if !writes || asking.query.contains("dryRun=All") {
        return false;
    }
    let written = read(answer).unwrap_or_else(|| panic!("not what it says it is: {}", told()));
    written_is_read(line, asking, &written, closely).await.unwrap_or_else(|why| panic!("{why}\n{}", told()))
}

/// What an answer says, in whichever media type.
fn read(answer: &Answer) -> Option<Value> {
    match answer.headers["content-type"].to_str().ok()? {
        "application/yaml" => serde_saphyr::from_slice(&answer.bytes).ok(),
        protobuf::MEDIA_TYPE => protobuf::to_json(&answer.bytes).ok(),
        _ => serde_json::from_slice(&answer.bytes).ok(),
    }
}

fn escaped(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Whether what was acknowledged is there. `closely` looks at it every way there is.
async fn written_is_read(line: &mut Line, asking: &Asking, written: &Value, closely: bool) -> Result<bool, String> {
    let metadata = match written["kind"].as_str() {
        Some("Table") => &written["rows"][0]["object"]["metadata"],
        _ => &written["metadata"],
    };
    let (Some(name), Some(_)) = (metadata["name"].as_str(), metadata["uid"].as_str()) else { return Ok(false) };
    // /api/v1/namespaces/default/pods/a/status, or the like.
    let segments: Vec<&str> = asking.path.split('/').collect();
    let root = if segments[1] == "api" { 3 } else { 4 };
    let inside = segments[root] == "namespaces"
        && segments.len() > root + 2
        && !matches!(segments[root + 2], "status" | "finalize");
    let collection = segments[..=if inside { root + 2 } else { root }].join("/");
    let path = format!("{collection}/{}", escaped(name));
    if !metadata["deletionTimestamp"].is_null() {
        // It may have been kept by what was just taken away.
        return Ok(true);
    }
    let got = line.read(&path, "", "application/json").await;
    let object: Value = serde_json::from_slice(&got.bytes).map_err(|error| format!("get: {error}"))?;
    if SERVERS_OWN.iter().any(|plural| collection.ends_with(plural)) {
        return Ok(true);
    }
    if got.code != 200 || object["metadata"]["resourceVersion"] != metadata["resourceVersion"] {
        return Err(format!("get: {} {object}", got.code));
    }
    let is_whole = written["kind"] == object["kind"] && asking.accept != protobuf::MEDIA_TYPE;
    if is_whole && object != *written {
        return Err(format!("get gives another object: {object}"));
    }
    if closely {
        let plain = name.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
        let selector = format!("fieldSelector=metadata.name%3D{}", escaped(&plain));
        for accept in ["application/json", TABLE, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"] {
            let list = line.read(&collection, &selector, accept).await;
            let list: Value = serde_json::from_slice(&list.bytes).map_err(|error| format!("list: {error}"))?;
            let items = list.get("items").or(list.get("rows")).and_then(Value::as_array);
            if items.is_none_or(|items| items.len() != 1) {
                return Err(format!("list, {accept}: {list}"));
            }
            if list["kind"] != "Table" && list["items"][0]["metadata"] != object["metadata"] {
                return Err(format!("list has another: {list}"));
            }
        }
        let event = line.first_event(&collection, &selector).await.map_err(|error| format!("watch: {error}"))?;
        if event["object"] != object {
            return Err(format!("watch: {event}"));
        }
    }
    Ok(true)
}

/// Every kind can be listed, by whoever comes.
async fn all_is_read(client: &Client) {
    let line = &mut Line::new(client.clone());
    let mut groups = vec!["/api/v1".to_owned()];
    for group in client.get("/apis").await.ok()["groups"].as_array().unwrap() {
        groups.extend(
            group["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|version| format!("/apis/{}", version["groupVersion"].as_str().unwrap())),
        );
    }
    for group in groups {
        for resource in client.get(&group).await.ok()["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            if !resource["verbs"].as_array().unwrap().contains(&"list".into()) {
                continue;
            }
            for accept in ["application/json", TABLE] {
                let list = line.read(&format!("{group}/{name}"), "", accept).await;
                assert_eq!(list.code, 200, "{group}/{name}");
                let _: Value =
                    serde_json::from_slice(&list.bytes).unwrap_or_else(|error| panic!("{group}/{name}: {error}"));
            }
        }
    }
    assert_eq!(line.read("/readyz", "", "*/*").await.code, 200);
}

/// As many bytes as a request needs.
fn some_bytes(seed: u64) -> Vec<u8> {
    // SplitMix64.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    (0..100).flat_map(|_| next().to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_and_what_is_written_is_read() {
    let asked: Option<u64> = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let first = asked.map_or(0, |_| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() << 20);
    let cases = asked.unwrap_or(2000);
    let mut session = Session::start().await;
    let mut written = 0;
    for seed in first..first + cases {
        written += u64::from(session.one(&some_bytes(seed)).await);
    }
    assert!(written > cases / 20, "only {written} of {cases} requests wrote anything");
    let Session { cluster, line, .. } = session;
    all_is_read(&line.client).await;
    drop(line);
    let again = Cluster::start_in(cluster.stop().await, |_| {}).await;
    all_is_read(&again.admin()).await;
    again.stop().await;
}
