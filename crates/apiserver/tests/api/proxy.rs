//! `/proxy`, with backends that say byte by byte what they want.

use std::future::Future;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use portolan_apiserver::NodeDialer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::harness::{Answer, Cluster, DEADLINE};

const PROXY: &str = "/api/v1/nodes/n:8080/proxy";

/// A cluster with a node, and what serves every connection to it.
async fn behind<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Cluster
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    let dial: NodeDialer = Arc::new(move |_| Box::pin(TcpStream::connect(address)));
    let cluster = Cluster::start_in(tempfile::tempdir().unwrap(), |config| config.node_dialer = Some(dial)).await;
    let client = cluster.admin();
    client.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.ok();
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}
    }});
    client.merge("/api/v1/nodes/n/status", &status).await.ok();
    cluster
}

/// The head of a request.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A backend that answers every request with these bytes, and then closes.
async fn saying(answer: Vec<u8>) -> Cluster {
    let answer = Bytes::from(answer);
    behind(move |mut stream| {
        let answer = answer.clone();
        async move {
            head(&mut stream).await;
            stream.write_all(&answer).await.unwrap();
        }
    })
    .await
}

async fn get(cluster: &Cluster) -> Answer {
    cluster.admin().get(&format!("{PROXY}/")).await
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packer.write_all(plain).unwrap();
    packer.finish().unwrap()
}

const PAGE: &[u8] = b"<a href=\"/x\">x</a>";
const LED: &[u8] = b"<a href=\"/api/v1/nodes/n:8080/proxy/x\">x</a>";

fn page(headers: &str, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n{headers}\r\n").as_bytes(), body].concat()
}

#[tokio::test]
async fn links_lead_through_the_proxy() {
    let length = format!("content-length: {}\r\n", PAGE.len());
    let plain = get(&saying(page(&length, PAGE)).await).await;
    assert_eq!((&plain.bytes[..], &plain.headers["content-length"]), (LED, &LED.len().into()));

    let packed = gzip(PAGE);
    let answer = get(&saying(page("content-encoding: gzip\r\n", &packed)).await).await;
    assert_eq!(answer.headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&answer.bytes[..]).read_to_end(&mut unpacked).unwrap();
    assert_eq!(unpacked, LED);
    // What cannot be unpacked, or to more than can be held, is passed on as it is.
    for odd in [b"no gzip".to_vec(), gzip(&vec![b' '; 3 << 20]), gzip(PAGE)[..12].to_vec()] {
        let answer = get(&saying(page("content-encoding: gzip\r\n", &odd)).await).await;
        assert_eq!((answer.code, &answer.bytes[..]), (200, &odd[..]));
    }
    let other = get(&saying(page("content-encoding: br\r\n", PAGE)).await).await;
    assert_eq!(&other.bytes[..], PAGE);
}

#[tokio::test]
async fn a_large_page_is_passed_on_as_it_is() {
    let large = [PAGE, &vec![b' '; 5 << 20], PAGE].concat();
    for length in [String::new(), format!("content-length: {}\r\n", large.len())] {
        let answer = get(&saying(page(&length, &large)).await).await;
        assert!(answer.code == 200 && answer.bytes == large, "{} bytes with {}", answer.bytes.len(), answer.code);
    }
}

#[tokio::test]
async fn the_head_of_a_page_has_no_length() {
    let cluster = saying(page("content-length: 20\r\n", b"")).await;
    let answer = cluster.admin().send(Method::HEAD, &format!("{PROXY}/"), &[], "").await;
    assert_eq!((answer.code, answer.headers.get("content-length")), (200, None));
    let cluster = saying(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 20\r\n\r\n".to_vec()).await;
    let answer = cluster.admin().send(Method::HEAD, &format!("{PROXY}/"), &[], "").await;
    assert_eq!(answer.headers["content-length"], "20");
}

#[tokio::test]
async fn a_redirect_to_the_backends_own_address_leads_through_the_proxy() {
    let location = "HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1:8080/login/\r\ncontent-length: 0\r\n\r\n";
    let answer = get(&saying(location.into()).await).await;
    assert_eq!((answer.code, &answer.headers["location"]), (302, &format!("{PROXY}/login/").parse().unwrap()));
}

#[tokio::test]
async fn what_concerns_one_connection_stays_there() {
    let answer = "HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\nx-end: 1\r\ncontent-length: 0\r\n\r\n";
    let answer = get(&saying(answer.into()).await).await;
    assert_eq!((answer.headers.get("x-hop"), &answer.headers["x-end"]), (None, &"1".parse().unwrap()));
}

#[tokio::test]
async fn requests_go_as_they_came() {
    let (sender, mut heads) = mpsc::channel(1);
    let cluster = behind(move |mut stream| {
        let sender = sender.clone();
        async move {
            let head = head(&mut stream).await;
            let mut body = [0; 4];
            if head.contains("content-length: 4") {
                stream.read_exact(&mut body).await.unwrap();
            }
            sender.send((head, body)).await.unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let path = "/a%2Fb//c%20d/../e/?q=%2F&r";
    let client = cluster.admin();
    for headers in [vec![], vec![("expect", "100-continue")]] {
        assert_eq!(client.send(Method::POST, &format!("{PROXY}{path}"), &headers, "body").await.code, 204);
        let (head, body) = heads.recv().await.unwrap();
        assert_eq!((head.lines().next().unwrap(), &body), (format!("POST {path} HTTP/1.1").as_str(), b"body"));
        assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
    }
}

/// Whoever refuses a body without reading it is heard all the same.
#[tokio::test]
async fn an_early_answer_is_heard() {
    let answer = b"HTTP/1.1 413 Payload Too Large\r\nconnection: close\r\ncontent-length: 5\r\n\r\nlarge";
    let cluster = saying(answer.to_vec()).await;
    for _ in 0..5 {
        let sent = cluster.admin().send(Method::POST, &format!("{PROXY}/"), &[], vec![b'x'; 2 << 20]).await;
        assert_eq!((sent.code, &sent.bytes[..]), (413, &b"large"[..]));
    }
}

/// A backend that never answers is left when the client has gone.
#[tokio::test]
async fn a_backend_is_left_by_who_has_left() {
    let (sender, mut events) = mpsc::channel(2);
    let cluster = behind(move |mut stream| {
        let sender = sender.clone();
        async move {
            head(&mut stream).await;
            sender.send("asked").await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            sender.send("left").await.unwrap();
        }
    })
    .await;
    let client = cluster.admin();
    let asking = tokio::spawn(async move {
        client.request(Request::get(format!("{PROXY}/")).body(Full::new(Bytes::new())).unwrap()).await
    });
    assert_eq!(timeout(DEADLINE, events.recv()).await.unwrap(), Some("asked"));
    asking.abort();
    assert_eq!(timeout(DEADLINE, events.recv()).await.unwrap(), Some("left"));
}
