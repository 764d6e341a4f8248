//! `/proxy`: a request to a pod, a Service or a node, asked on the client's behalf.
//!
//! Invariant: only who is in the API can be reached, as the API knows it: pods by way of their nodes, which connect to
//! no other address than the pod's own; of a Service, endpoints that are pods of its namespace and have the address
//! that they are said to have; nodes at the address that they say, unless it is this machine's own. Nothing that tells
//! who the client is goes along, but the address that it asks from. Deliberately not here: any reading of what passes,
//! but links in HTML and redirects.
//!
//! Source: `pkg/registry/core/{pod,service,node}` and `apimachinery/pkg/util/proxy` of Kubernetes.

mod html;
mod page;
mod place;
mod rewrite;

use std::net::IpAddr;

use http::header::{HOST, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use portolan_kinds::Status;

use crate::accept::Media;
use crate::body::Unread;
use crate::nodes;
use crate::respond::{self, BodyError, Reply};
use crate::route::{self, Target};
use crate::server::{Peer, Server};
use crate::user::User;
use crate::ways::{self, Way};
use place::Place;
pub(crate) use place::{Stream, candidates, pod};
use rewrite::Links;

/// What concerns one connection only. Source: RFC 9110 §7.6.1.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What a backend may not decide for the API server's own address.
const CORS: [&str; 4] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
];

pub(crate) async fn forward(
    server: &Server,
    user: &User,
    target: &Target,
    parts: Parts,
    body: &mut Unread,
    peer: &Peer,
) -> Result<Reply, Status> {
    match ask(server, user, target, parts, body, peer).await {
        Err(status) if status.code() == StatusCode::SERVICE_UNAVAILABLE => {
            let mut reply = respond::failure(Media::Json, &status);
            // It is the backend that is not there: clients that are told to try again would, ten times.
            reply.headers_mut().remove(RETRY_AFTER);
            Ok(reply)
        }
        answered => answered,
    }
}

async fn ask(
    server: &Server,
    user: &User,
    target: &Target,
    mut parts: Parts,
    body: &mut Unread,
    peer: &Peer,
) -> Result<Reply, Status> {
    let path = parts.uri.path().to_owned();
    let (here, rest) = route::split_proxied(&path).ok_or_else(Status::unknown_resource)?;
    let client = parts.extensions.remove::<OnUpgrade>().filter(|_| ways::is_upgrade(&parts.headers));
    let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    if rest.is_empty() && client.is_none() && matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(moved(&format!("{here}/{query}")));
    }
    let place = Place::of(server, target)?;
    let way = server.ways.take(user)?;
    let unreachable =
        |why: &dyn std::fmt::Display| Status::unavailable(format!("error trying to reach service: {why}"));
    let backend = place.host();
    let stream: Stream = place.connect(server).await.map_err(|why| unreachable(&why))?;
    let mut sender = nodes::converse(stream, &server.tasks).await.map_err(|error| unreachable(&error))?;

    let host = host(&parts);
    let links = Links { hosts: [host.clone(), backend], prefix: here.to_owned() };
    let uri: Uri = format!("{}{query}", if rest.is_empty() { "/" } else { rest })
        .parse()
        .map_err(|_| Status::bad_request("a path that no backend can be asked for"))?;
    let mut request = Request::new(match body.take() {
        Some(body) => body.map_err(|error| -> BodyError { Box::new(error) }).boxed_unsync(),
        None => Empty::new().map_err(|never| match never {}).boxed_unsync(),
    });
    *request.headers_mut() = headers(&parts.headers, client.is_some());
    let way_here = forwarded_for(&parts.headers, peer.source);
    for (name, value) in [
        ("x-forwarded-for", way_here.as_str()),
        ("x-forwarded-host", &host),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-uri", &path),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    if let Ok(host) = HeaderValue::from_str(&host) {
        request.headers_mut().insert(HOST, host);
    }
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
    match client {
        Some(client) if response.status() == StatusCode::SWITCHING_PROTOCOLS || response.status().as_u16() >= 400 => {
            Ok(ways::join(server, client, response, way, peer.shutdown.clone()))
        }
        Some(_) => {
            Err(Status::internal(format!("invalid upgrade response: status code {}", response.status().as_u16())))
        }
        None => Ok(answer(response, &links, way).await),
    }
}

fn moved(location: &str) -> Reply {
    let mut reply = Reply::new(respond::full(""));
    *reply.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(location) {
        reply.headers_mut().insert(LOCATION, location);
    }
    reply
}

/// The name by which the client knows this server.
fn host(parts: &Parts) -> String {
    let header = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    header.or(parts.uri.authority().map(|authority| authority.as_str())).unwrap_or_default().to_owned()
}

/// Whom the request passed on its way here, as far as they say so, and who handed it in.
fn forwarded_for(headers: &HeaderMap, source: IpAddr) -> String {
    let before = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok());
    before.map(str::to_owned).chain([source.to_string()]).collect::<Vec<_>>().join(", ")
}

/// The names of headers that the sender says concern its connection only.
fn of_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all("connection").into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|word| word.trim().to_ascii_lowercase()).collect()
}

/// What of the client's headers a backend may see.
fn headers(from: &HeaderMap, upgrades: bool) -> HeaderMap {
    let listed = of_connection(from);
    let mut headers = HeaderMap::new();
    for (name, value) in from {
        let text = name.as_str();
        let is_identity = text == "authorization" || text.starts_with("impersonate-") || text.starts_with("x-remote-");
        let is_private = HOP_BY_HOP.contains(&text) || listed.iter().any(|word| word == text);
        if !is_identity && (!is_private || upgrades && matches!(text, "connection" | "upgrade")) {
            headers.append(name.clone(), value.clone());
        }
    }
    headers
}

async fn answer(response: Response<Incoming>, links: &Links, way: Way) -> Reply {
    let (mut parts, body) = response.into_parts();
    for name in of_connection(&parts.headers).iter().map(String::as_str).chain(HOP_BY_HOP).chain(CORS) {
        parts.headers.remove(name);
    }
    parts.version = Version::default();
    parts.extensions.clear();
    let body = body.map_err(|error| -> BodyError { Box::new(error) }).map_frame(move |frame| {
        // Held for as long as the answer lasts.
        let _ = &way;
        frame
    });
    let body = body.boxed_unsync();
    let Some(location) = parts.headers.get(LOCATION) else { return page::led(parts, body, links).await };
    if let Some(location) = location.to_str().ok().and_then(|to| HeaderValue::from_str(&links.rewritten(to)).ok()) {
        parts.headers.insert(LOCATION, location);
    }
    Response::from_parts(parts, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_comes_after_whom_it_asks_for() {
        let mut headers = HeaderMap::new();
        let source = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(forwarded_for(&headers, source), "192.0.2.7");
        for before in ["10.0.0.1, 10.0.0.2", "10.0.0.3"] {
            headers.append("x-forwarded-for", HeaderValue::from_static(before));
        }
        assert_eq!(forwarded_for(&headers, source), "10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.7");
    }

    #[test]
    fn who_the_client_is_does_not_go_along() {
        let from: HeaderMap = [
            ("authorization", "Bearer x"),
            ("impersonate-user", "jane"),
            ("impersonate-extra-scopes", "x"),
            ("x-remote-user", "jane"),
            ("connection", "keep-alive, X-Private, Upgrade"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("cookie", "a=b"),
            ("accept", "*/*"),
        ]
        .into_iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect();
        let names = |upgrades| {
            let mut names: Vec<String> = headers(&from, upgrades).keys().map(ToString::to_string).collect();
            names.sort();
            names.join(" ")
        };
        assert_eq!(names(false), "accept cookie");
        assert_eq!(names(true), "accept connection cookie upgrade");
    }
}
