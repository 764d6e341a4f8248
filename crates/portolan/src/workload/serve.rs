//! HTTP requests -> this pod's name, or what the request looked like when it got here.
//!
//! `/echo` is how a test sees the source address a backend sees, `/slow` how it keeps a connection open over a change.
//! Deliberately not here: anything that outlives a request but the readiness flag.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use hyper::Request;
use serde_json::json;

use super::server::{self, Answer, Pod, query_number};

const MAX_SLOW_MS: u32 = 60_000;

pub(super) async fn run(addresses: [SocketAddr; 2], drain: Duration) -> anyhow::Result<()> {
    let pod = Pod::here();
    let routes = pod.clone();
    server::serve_until_stopped(&addresses, pod, drain, move |request, peer| {
        let pod = routes.clone();
        async move { answer(&pod, &request, peer).await }
    })
    .await
}

pub(super) async fn answer<B>(pod: &Pod, request: &Request<B>, peer: SocketAddr) -> Answer {
    if let Some(answer) = pod.answer(request) {
        return answer;
    }
    match request.uri().path() {
        "/echo" => server::json(&seen(pod, request, peer)),
        "/slow" => match query_number(request.uri().query(), "ms", 1000) {
            Ok(ms) if ms <= MAX_SLOW_MS => {
                tokio::time::sleep(Duration::from_millis(ms.into())).await;
                server::text(StatusCode::OK, format!("{}\n", pod.name))
            }
            Ok(ms) => server::text(StatusCode::BAD_REQUEST, format!("ms={ms}: at most {MAX_SLOW_MS}\n")),
            Err(reason) => server::text(StatusCode::BAD_REQUEST, reason),
        },
        path => server::not_found(path),
    }
}

fn seen<B>(pod: &Pod, request: &Request<B>, peer: SocketAddr) -> serde_json::Value {
    let headers: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    // A listener on `::` sees IPv4 clients as mapped addresses.
    let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    json!({
        "pod": pod.name,
        "client": client.to_string(),
        "host": request.headers().get("host").map(|host| String::from_utf8_lossy(host.as_bytes())),
        "method": request.method().as_str(),
        "path": request.uri().to_string(),
        "headers": headers,
    })
}
