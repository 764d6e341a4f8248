//! exec, attach, port-forward, and logs over a WebSocket: which pod is meant and which node has it; all else is between
//! that node and the client.
//!
//! Every protocol that clients speak for it is spoken by the node, as by kubelets since 1.36, so that what is said
//! passes here unread. Source: `pkg/registry/core/pod` of Kubernetes.

use http::HeaderMap;
use http::header::{CONNECTION, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::request::Parts;
use hyper::upgrade::OnUpgrade;
use portolan_kinds::Status;
use serde_json::Value;

use crate::object;
use crate::pods;
use crate::read;
use crate::respond::Reply;
use crate::route::{Sub, Target};
use crate::server::{Peer, Server};
use crate::user::User;
use crate::ways::{self, STREAM_PROTOCOL};

/// What of a client's request the node must see to agree with it on a protocol.
const PASSED_ON: [http::HeaderName; 6] =
    [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, STREAM_PROTOCOL];

pub(crate) async fn open(
    server: &Server,
    user: &User,
    target: &Target,
    mut parts: Parts,
    peer: &Peer,
) -> Result<Reply, Status> {
    let (_, entry) = read::stored(&server.store, target)?;
    let pod = object::decode(&entry.value);
    let query = parts.uri.query().unwrap_or_default();
    let path = if target.sub == Sub::Log { pods::log_path(&pod, query)? } else { path(target, &pod, query)? };
    let node = pods::node_of(server, &pod)?;
    let client = parts.extensions.remove::<OnUpgrade>().filter(|_| ways::is_upgrade(&parts.headers));
    let client = client.ok_or_else(|| Status::bad_request("Upgrade request required"))?;
    let way = server.ways.take(user)?;
    let mut headers = HeaderMap::new();
    for name in PASSED_ON {
        for value in parts.headers.get_all(&name) {
            headers.append(name.clone(), value.clone());
        }
    }
    let answer = server.nodes.ask(&node, parts.method, &path, headers, &server.tasks).await?;
    Ok(ways::join(server, client, answer, way, peer.shutdown.clone()))
}

/// What the node is asked, in the kubelet's words.
fn path(target: &Target, pod: &Value, query: &str) -> Result<String, Status> {
    let (namespace, name) = (object::text(pod, "/metadata/namespace"), object::name(pod));
    let asked: Vec<_> = form_urlencoded::parse(query.as_bytes()).collect();
    let values = |wanted: &'static str| asked.iter().filter(move |(name, _)| name == wanted).map(|(_, value)| &**value);
    let mut rest = form_urlencoded::Serializer::new(String::new());
    let place = if target.sub == Sub::PortForward {
        let ports: Vec<&str> = values("ports").collect();
        if !ports.is_empty() {
            rest.append_pair("port", &ports.join(","));
        }
        format!("/portForward/{namespace}/{name}")
    } else {
        let is_set =
            |name| values(name).next().is_some_and(|value| !matches!(value, "0" | "false" | "False" | "FALSE"));
        for (theirs, ours) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
            if is_set(theirs) {
                rest.append_pair(ours, "1");
            }
        }
        for word in values("command") {
            rest.append_pair("command", word);
        }
        let container = pods::container(pod, values("container").next().unwrap_or_default())?;
        format!("/{}/{namespace}/{name}/{container}", target.sub.as_str())
    };
    Ok(format!("{place}?{}", rest.finish()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_asked_in_the_kubelets_words() {
        let pod = json!({"metadata": {"namespace": "shop", "name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        for (sub, query, expected) in [
            (
                Sub::Exec,
                "container=a&stdin=true&stdout=1&stderr=false&tty=true&command=sh&command=-c&command=a%26b",
                Ok("/exec/shop/p/a?input=1&output=1&tty=1&command=sh&command=-c&command=a%26b"),
            ),
            (Sub::Attach, "container=b&stdout=true&stderr=true", Ok("/attach/shop/p/b?output=1&error=1")),
            (Sub::PortForward, "ports=80&ports=81", Ok("/portForward/shop/p?port=80%2C81")),
            (Sub::PortForward, "", Ok("/portForward/shop/p?")),
            (Sub::Exec, "container=../x&command=sh", Err(400)),
            (Sub::Exec, "command=sh", Err(400)),
        ] {
            let target = Target {
                kind: crate::known_kind("", "pods").into(),
                namespace: Some("shop".into()),
                name: Some("p".into()),
                sub,
            };
            let path = path(&target, &pod, query);
            assert_eq!(path.as_deref().map_err(|status| status.code()), expected, "{query}");
        }
    }
}
