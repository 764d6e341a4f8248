//! `serviceaccounts/token`: a TokenRequest -> the same with a token in it.
//!
//! Source: `pkg/registry/core/serviceaccount/storage/token.go`.

use jiff::Timestamp;
use portolan_kinds::{FieldError, Status};
use serde_json::{Value, json};

use super::{Bound, Object};
use crate::object;
use crate::read;
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::write::Asked;

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
const DEFAULT_SECONDS: i64 = 3600;
const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;

fn invalid(name: &str, error: FieldError) -> Status {
    Status::invalid(GROUP, KIND, name, &[error])
}

fn stored(server: &Server, plural: &'static str, namespace: &str, name: &str) -> Result<Value, Status> {
    let kind = crate::known_kind("", plural);
    let namespace = kind.namespaced.then(|| namespace.to_owned());
    let target = Target { kind: kind.into(), namespace, name: Some(name.to_owned()), sub: Sub::None };
    Ok(object::decode(&read::stored(&server.store, &target)?.1.value))
}

/// # Errors
/// 404 for what is not there, 409 for what is not the same any more, 422 for a time too short or too long.
pub(crate) fn request(server: &Server, asked: Asked<'_>, mut body: Value) -> Result<Value, Status> {
    let unknown = portolan_kinds::check(GROUP, "v1", KIND, &mut body, asked.options.field_validation)?;
    asked.warnings.add(unknown);
    let (namespace, name) = (asked.namespace(), asked.name());
    for (pointer, field, expected) in
        [("/metadata/name", "name", name), ("/metadata/namespace", "namespace", namespace)]
    {
        let sent = object::text(&body, pointer);
        if !sent.is_empty() && sent != expected {
            let why = format!("must match the service account {field} if specified");
            return Err(invalid(name, FieldError::invalid(format!("metadata.{field}"), sent, why)));
        }
    }
    let account = stored(server, "serviceaccounts", namespace, name)?;
    let (sent, uid) = (object::text(&body, "/metadata/uid"), object::text(&account, "/metadata/uid"));
    if !sent.is_empty() && sent != uid {
        let why =
            format!("the UID in the token request ({sent}) does not match the UID of the service account ({uid})");
        return Err(Status::conflict(GROUP, KIND, name, &why));
    }
    let seconds = body["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    if !(LEAST_SECONDS..=MOST_SECONDS).contains(&seconds) {
        let limit = if seconds < LEAST_SECONDS { "less than 10 minutes" } else { "larger than 2^32 seconds" };
        let why = format!("may not specify a duration {limit}");
        return Err(invalid("", FieldError::invalid("spec.expirationSeconds", seconds, why)));
    }
    let listed = body["spec"]["audiences"].as_array().into_iter().flatten();
    let mut audiences: Vec<String> = listed.filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences = server.tokens.audiences();
    }
    let bound = bound(server, asked, &body["spec"]["boundObjectRef"])?;
    if let Some(node) = asked.user.as_node() {
        let forbid = |why: &str| Err(Status::forbidden("", "serviceaccounts", name, why));
        let Some(Bound::Pod { pod, .. }) = &bound else {
            return forbid("node requested token not bound to a pod");
        };
        if object::text(&body, "/spec/boundObjectRef/uid").is_empty() {
            return forbid("node requested token with a pod binding without a uid");
        }
        if object::text(pod, "/spec/nodeName") != node {
            return forbid("node requested token bound to a pod scheduled on a different node");
        }
        let asked_for = body["spec"]["audiences"].as_array().cloned().unwrap_or_default();
        if let Some(why) = foreign_audience(pod, &asked_for) {
            return forbid(&why);
        }
    }
    let now = Timestamp::now();
    let token = server.tokens.issue(&account, bound.as_ref(), audiences.clone(), (now.as_second(), seconds));
    let token = token.map_err(|why| Status::internal(format!("failed to generate token: {why}")))?;
    let mut spec = body["spec"].take();
    object::map_of(&mut spec)
        .extend([("audiences".to_owned(), json!(audiences)), ("expirationSeconds".to_owned(), seconds.into())]);
    if spec.get("boundObjectRef").is_none() {
        spec["boundObjectRef"] = Value::Null;
    }
    let metadata = json!({"name": name, "namespace": namespace, "uid": uid, "creationTimestamp": object::time(now)});
    Ok(json!({
        "kind": KIND, "apiVersion": format!("{GROUP}/v1"), "metadata": metadata, "spec": spec,
        "status": {"token": token, "expirationTimestamp": object::time_after(now, seconds)}
    }))
}

/// Tokens that a node gets are for those audiences only that the pod asks for.
fn foreign_audience(pod: &Value, asked: &[Value]) -> Option<String> {
    let audience = match asked {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Some("node may only request 0 or 1 audiences".to_owned()),
    };
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let mut sources = volumes.flat_map(|volume| volume["projected"]["sources"].as_array().into_iter().flatten());
    let wants = |source: &Value| {
        let token = &source["serviceAccountToken"];
        token.is_object() && token["audience"].as_str().unwrap_or_default() == audience
    };
    if sources.any(wants) {
        return None;
    }
    Some(format!("audience \"{audience}\" not found in pod spec volume"))
}

fn bound(server: &Server, asked: Asked<'_>, reference: &Value) -> Result<Option<Bound>, Status> {
    if !reference.is_object() {
        return Ok(None);
    }
    let (kind, name) = (object::text(reference, "/kind"), object::text(reference, "/name"));
    let (group, version) = match object::text(reference, "/apiVersion").split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", object::text(reference, "/apiVersion")),
    };
    let get = |plural| stored(server, plural, asked.namespace(), name);
    let (bound, uid) = match (group, kind) {
        ("", "Pod") => {
            let pod = get("pods")?;
            if object::text(&pod, "/spec/serviceAccountName") != asked.name() {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name.",
                    asked.name()
                )));
            }
            let uid = object::text(&pod, "/metadata/uid").to_owned();
            let node_name = object::text(&pod, "/spec/nodeName").to_owned();
            let node = (!node_name.is_empty()).then(|| {
                let known = stored(server, "nodes", "", &node_name).ok();
                known.map_or(Object { name: node_name, uid: String::new() }, |node| Object::of(&node))
            });
            (Bound::Pod { pod, node }, uid)
        }
        ("", "Secret") => {
            let secret = get("secrets")?;
            let uid = object::text(&secret, "/metadata/uid").to_owned();
            (Bound::Secret(secret), uid)
        }
        ("", "Node") => {
            let node = get("nodes")?;
            let uid = object::text(&node, "/metadata/uid").to_owned();
            (Bound::Node(node), uid)
        }
        _ => {
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Status::bad_request(why));
        }
    };
    let sent = object::text(reference, "/uid");
    if !sent.is_empty() && sent != uid {
        let why = format!(
            "the UID in the bound object reference ({sent}) does not match the UID in record. The object might have \
             been deleted and then recreated"
        );
        return Err(Status::conflict(group, kind, name, &why));
    }
    Ok(Some(bound))
}
