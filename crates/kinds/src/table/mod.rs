//! The Tables that `kubectl get` shows: columns of a kind, and a row for an object.
//!
//! Invariant: a row has one cell for each column. Source: `pkg/printers/internalversion/printers.go`.

mod cluster;
mod duration;
mod event;
mod network;
mod pod;
mod rbac;
mod workload;

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use crate::Column;
use crate::catalog::Strategy;
use crate::look::Look;

pub(crate) use duration::human;

const fn column(
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    description: &'static str,
    priority: i32,
) -> Column {
    Column {
        name: Cow::Borrowed(name),
        kind: Cow::Borrowed(kind),
        format: Cow::Borrowed(format),
        description: Cow::Borrowed(description),
        priority,
    }
}

/// A column that is always shown.
const fn shown(name: &'static str, kind: &'static str, description: &'static str) -> Column {
    column(name, kind, "", description, 0)
}

/// A column of `-o wide`.
const fn wide(name: &'static str, description: &'static str) -> Column {
    column(name, "string", "", description, 1)
}

pub(crate) const NAME: Column = column("Name", "string", "name", "Name must be unique within a namespace.", 0);

pub(crate) const AGE: Column = shown("Age", "string", "Time since the object was created.");

pub(crate) fn columns(strategy: Strategy) -> &'static [Column] {
    match strategy {
        Strategy::ClusterRole | Strategy::Role => rbac::ROLE,
        Strategy::ClusterRoleBinding | Strategy::RoleBinding => rbac::BINDING,
        Strategy::ConfigMap => cluster::CONFIG_MAP,
        Strategy::Custom => &[],
        Strategy::CustomResourceDefinition => cluster::DEFINITION,
        Strategy::Deployment => workload::DEPLOYMENT,
        Strategy::EndpointSlice => network::ENDPOINT_SLICE,
        Strategy::Endpoints => network::ENDPOINTS,
        Strategy::Event | Strategy::EventsEvent => event::EVENT,
        Strategy::Ingress => network::INGRESS,
        Strategy::IngressClass => network::INGRESS_CLASS,
        Strategy::IpAddress => network::IP_ADDRESS,
        Strategy::Lease => cluster::LEASE,
        Strategy::Namespace => cluster::NAMESPACE,
        Strategy::Node => cluster::NODE,
        Strategy::Pod => pod::POD,
        Strategy::ReplicaSet => workload::REPLICA_SET,
        Strategy::Secret => cluster::SECRET,
        Strategy::Service => network::SERVICE,
        Strategy::ServiceAccount => cluster::SERVICE_ACCOUNT,
        Strategy::ServiceCidr => network::SERVICE_CIDR,
    }
}

pub(crate) fn row(strategy: Strategy, object: &Value, now: Timestamp) -> Vec<Value> {
    match strategy {
        Strategy::ClusterRole | Strategy::Role => rbac::role(object),
        Strategy::ClusterRoleBinding | Strategy::RoleBinding => rbac::binding(object, now),
        Strategy::ConfigMap => cluster::config_map(object, now),
        Strategy::Custom => Vec::new(),
        Strategy::CustomResourceDefinition => cluster::definition(object),
        Strategy::Deployment => workload::deployment(object, now),
        Strategy::EndpointSlice => network::endpoint_slice(object, now),
        Strategy::Endpoints => network::endpoints(object, now),
        Strategy::Event => event::event(object, now),
        Strategy::EventsEvent => event::event(&crate::convert_event(object, "v1"), now),
        Strategy::Ingress => network::ingress(object, now),
        Strategy::IngressClass => network::ingress_class(object, now),
        Strategy::IpAddress => network::ip_address(object, now),
        Strategy::Lease => cluster::lease(object, now),
        Strategy::Namespace => cluster::namespace(object, now),
        Strategy::Node => cluster::node(object, now),
        Strategy::Pod => pod::pod(object, now),
        Strategy::ReplicaSet => workload::replica_set(object, now),
        Strategy::Secret => cluster::secret(object, now),
        Strategy::Service => network::service(object, now),
        Strategy::ServiceAccount => cluster::service_account(object, now),
        Strategy::ServiceCidr => network::service_cidr(object, now),
    }
}

fn name(object: &Value) -> Value {
    object["metadata"].text("name").into()
}

fn age(object: &Value, now: Timestamp) -> Value {
    since(object["metadata"].text("creationTimestamp"), now).into()
}

/// How long ago a time was, or `<unknown>`.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    time.parse::<Timestamp>().map_or_else(|_| "<unknown>".to_owned(), |then| human(now.as_second() - then.as_second()))
}

fn or_none(text: String) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// `a=b,c=d`, or `<none>`.
fn labels(labels: &Value) -> Value {
    let pairs = labels.as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    or_none(pairs.join(","))
}

/// A LabelSelector in the form that `-l` takes, or `<none>`.
fn selector(selector: &Value) -> Value {
    let mut parts: Vec<(String, String)> = selector
        .entries("matchLabels")
        .map(|(key, value)| (key.to_owned(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for requirement in selector.list("matchExpressions") {
        let key = requirement.text("key");
        let mut values: Vec<&str> = requirement.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match requirement.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    or_none(parts.join(","))
}

/// Names and images of a template's containers.
fn containers(spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let texts: Vec<&str> = spec.list("containers").iter().map(|container| container.text(field)).collect();
        texts.join(",").into()
    })
}

#[cfg(test)]
mod tests;
