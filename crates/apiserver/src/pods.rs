//! What pods have beyond other objects: being bound to a node, being evicted, and logs.

use std::collections::BTreeSet;

use portolan_kinds::{FieldError, Status};
use serde_json::{Value, json};

use crate::admission;
use crate::delete;
use crate::object;
use crate::read;
use crate::respond::{self, Reply};
use crate::route::{Sub, Target};
use crate::server::Server;
use crate::write::{self, Asked};

/// The pod with its node and the condition that says so; it takes over the binding's labels and annotations.
fn bound(pod: &Value, binding: &Value, now: &str) -> Result<Value, Status> {
    let name = object::name(pod);
    let conflict = |why: &str| Err(Status::conflict("", "pods/binding", name, why));
    if object::is_deleting(pod) {
        return conflict(&format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let has = object::text(pod, "/spec/nodeName");
    if !has.is_empty() {
        return conflict(&format!("pod {name} is already assigned to node \"{has}\""));
    }
    if object::has_items(pod, "/spec/schedulingGates") {
        return conflict(&format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut pod = pod.clone();
    object::spec(&mut pod).insert("nodeName".into(), binding["target"]["name"].clone());
    for field in ["labels", "annotations"] {
        if let Value::Object(more) = &binding["metadata"][field] {
            let own = object::metadata(&mut pod).entry(field).or_insert(json!({}));
            object::map_of(own).extend(more.clone());
        }
    }
    let status = object::member(&mut pod, "status");
    // What it waited for, it has now.
    status.remove("nominatedNodeName");
    let conditions = status.entry("conditions").or_insert(json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now
        }));
    }
    Ok(pod)
}

/// That what was asked for is done.
fn done() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

pub(crate) async fn bind(server: &Server, asked: Asked<'_>, binding: &Value) -> Result<Value, Status> {
    if object::name(binding) != asked.name() {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let node = object::text(binding, "/target/name");
    let kind = object::text(binding, "/target/kind");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        return Err(Status::bad_request("a Binding needs a target of kind Node, with a name"));
    }
    let now = object::time(jiff::Timestamp::now());
    write::rewrite(server, asked, |pod| {
        write::check_uid(&asked, binding, object::text(pod, "/metadata/uid"))?;
        bound(pod, binding, &now)
    })
    .await?;
    Ok(done())
}

/// The pod with the condition that says what ends it.
fn evicted(pod: &Value, now: &str) -> Value {
    let mut pod = pod.clone();
    let conditions = object::member(&mut pod, "status").entry("conditions").or_insert(json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "DisruptionTarget");
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastProbeTime": null, "lastTransitionTime": now
        }));
    }
    pod
}

/// Eviction is deletion that is told of beforehand, since there are no disruption budgets.
pub(crate) async fn evict(server: &Server, asked: Asked<'_>, mut eviction: Value) -> Result<Value, Status> {
    let validation = asked.options.field_validation;
    asked.warnings.add(portolan_kinds::check("policy", "v1", "Eviction", &mut eviction, validation)?);
    let eviction = &eviction;
    if object::name(eviction) != asked.name() {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = asked.options.clone();
    options.take_delete_body(&delete::eviction_options(eviction))?;
    let target = Target { sub: Sub::None, ..asked.target.clone() };
    let asked = Asked { target: &target, ..asked };
    let now = object::time(jiff::Timestamp::now());
    let (_, entry) = read::stored(&server.store, &target)?;
    let pod = object::decode(&entry.value);
    delete::check_preconditions(asked.kind(), &pod, &options.delete)?;
    // Before the condition is written: a node must not leave even that on the pod of another.
    admission::delete(asked, &pod)?;
    if !object::is_deleting(&pod) && !options.dry_run {
        write::rewrite(server, asked, |pod| Ok(evicted(pod, &now))).await?;
    }
    // The revision that the client saw is the one before the condition.
    options.delete.resource_version = None;
    delete::delete(server, Asked { options: &options, ..asked }).await?;
    Ok(done())
}

/// The container that is meant: the one named, or the only one.
pub(crate) fn container<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, Status> {
    let name = object::name(pod);
    let names = |list: &str| -> Vec<&'a str> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.map(|container| object::text(container, "/name")).collect()
    };
    let main = names("containers");
    let all = [names("initContainers"), main.clone(), names("ephemeralContainers")].concat();
    if asked.is_empty() {
        if let [only] = main.as_slice() {
            return Ok(only);
        }
        let why = format!("a container name must be specified for pod {name}, choose one of: [{}]", all.join(" "));
        return Err(Status::bad_request(why));
    }
    if all.contains(&asked) {
        return Ok(asked);
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
}

/// The node that a pod is bound to.
///
/// # Errors
/// 400 while there is none.
pub(crate) fn node_of(server: &Server, pod: &Value) -> Result<Value, Status> {
    let node_name = object::text(pod, "/spec/nodeName");
    if node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", object::name(pod))));
    }
    let node = Target {
        kind: crate::known_kind("", "nodes").into(),
        namespace: None,
        name: Some(node_name.to_owned()),
        sub: Sub::None,
    };
    let (_, node) = read::stored(&server.store, &node)?;
    Ok(object::decode(&node.value))
}

/// The container that is asked for, and the rest of the query that is the node's to answer.
///
/// # Errors
/// 400 for what is no number or time, 422 for one that makes no sense.
fn log_query(name: &str, query: &str) -> Result<(String, String), Status> {
    let mut container = String::new();
    let mut errors = Vec::new();
    let mut since = BTreeSet::new();
    let mut rest = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = || {
            let syntax = || format!("strconv.ParseInt: parsing \"{value}\": invalid syntax");
            value.parse::<i64>().map_err(|_| Status::bad_request(syntax()))
        };
        match key.as_ref() {
            "container" => {
                container = value.into_owned();
                continue;
            }
            "tailLines" if number()? < 0 => {
                errors.push(FieldError::invalid("tailLines", number()?, "must be greater than or equal to 0"));
            }
            "limitBytes" | "sinceSeconds" if number()? < 1 => {
                errors.push(FieldError::invalid(key.as_ref(), number()?, "must be greater than 0"));
            }
            "sinceTime" if value.parse::<jiff::Timestamp>().is_err() => {
                return Err(Status::bad_request(format!(
                    "parsing time \"{value}\": it is not in the form of RFC 3339"
                )));
            }
            "follow" | "previous" | "timestamps" | "tailLines" | "limitBytes" | "sinceSeconds" | "sinceTime" => {}
            _ => continue,
        }
        if key.starts_with("since") {
            since.insert(key.clone().into_owned());
        }
        rest.append_pair(&key, &value);
    }
    if since.len() > 1 {
        errors.push(FieldError::forbidden("", "at most one of `sinceTime` or `sinceSeconds` may be specified"));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("", "PodLogOptions", name, &errors));
    }
    Ok((container, rest.finish()))
}

/// What the pod's node is asked for a log.
pub(crate) fn log_path(pod: &Value, query: &str) -> Result<String, Status> {
    let name = object::name(pod);
    let (wanted, query) = log_query(name, query)?;
    let container = container(pod, &wanted)?;
    Ok(format!("/containerLogs/{}/{name}/{container}?{query}", object::text(pod, "/metadata/namespace")))
}

/// Asks the pod's node, and passes on what it answers as it comes. A pod that has no node has said nothing.
pub(crate) async fn logs(server: &Server, asked: Asked<'_>, query: &str) -> Result<Reply, Status> {
    let (_, entry) = read::stored(&server.store, asked.target)?;
    let pod = object::decode(&entry.value);
    let path = log_path(&pod, query)?;
    if object::text(&pod, "/spec/nodeName").is_empty() {
        let mut nothing = Reply::new(respond::full(""));
        *nothing.status_mut() = http::StatusCode::NO_CONTENT;
        return Ok(nothing);
    }
    let node = node_of(server, &pod)?;
    server.nodes.get(&node, &path, &server.tasks).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binding() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {}});
        let to = |node: &str| json!({"metadata": {"labels": {"zone": "z"}, "annotations": {"a": "b"}}, "target": {"name": node}});
        let bound_pod = bound(&pod, &to("n1"), "2026-01-01T00:00:00Z").unwrap();
        assert_eq!(bound_pod["metadata"], json!({"name": "p", "labels": {"zone": "z"}, "annotations": {"a": "b"}}));
        assert_eq!(bound_pod["spec"]["nodeName"], "n1");
        assert_eq!(bound_pod["status"]["conditions"][0]["type"], "PodScheduled");
        let status = bound(&bound_pod, &to("n2"), "").unwrap_err();
        assert_eq!(status.code(), 409);
        assert_eq!(
            status.message(),
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n1\""
        );
        let deleting = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(bound(&deleting, &to("n1"), "").unwrap_err().code(), 409);
        let gated = json!({"metadata": {"name": "p"}, "spec": {"schedulingGates": [{"name": "a/b"}]}});
        assert_eq!(bound(&gated, &to("n1"), "").unwrap_err().code(), 409);
    }

    #[test]
    fn containers() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        let two = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]
        }});
        assert_eq!(container(&one, "").unwrap(), "a");
        assert_eq!(container(&two, "b").unwrap(), "b");
        assert_eq!(container(&two, "i").unwrap(), "i");
        assert_eq!(
            container(&two, "").unwrap_err().message(),
            "a container name must be specified for pod p, choose one of: [i a b]"
        );
        assert_eq!(container(&two, "x").unwrap_err().message(), "container x is not valid for pod p");
    }

    #[test]
    fn log_options() {
        let query = "container=c&tailLines=5&follow=true&pretty=true&sinceTime=2026-01-01T00%3A00%3A00Z";
        let rest = "tailLines=5&follow=true&sinceTime=2026-01-01T00%3A00%3A00Z";
        assert_eq!(log_query("p", query).unwrap(), ("c".to_owned(), rest.to_owned()));
        for (query, code, why) in [
            ("tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", 422, "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of `sinceTime` or `sinceSeconds`"),
            ("tailLines=x", 400, "strconv.ParseInt: parsing \"x\": invalid syntax"),
            ("sinceTime=yesterday", 400, "parsing time \"yesterday\""),
        ] {
            let status = log_query("p", query).unwrap_err();
            assert_eq!(status.code(), code, "{query}");
            assert!(status.message().contains(why), "{}", status.message());
        }
    }
}
