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
use std::collections::BTreeMap;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Column;
use crate::catalog::Strategy;
use crate::look::Look;
use crate::schema::descriptions;

pub(crate) use duration::human;

/// A column as it is drawn up here.
#[derive(Clone, Copy)]
struct Drawn {
    name: &'static str,
    kind: &'static str,
    format: &'static str,
    says: Says,
    priority: i32,
}

/// What describes a column.
#[derive(Clone, Copy)]
enum Says {
    Text(&'static str),
    /// What the schema says of a field of a type.
    Field(&'static str, &'static str),
}

/// A column that is always shown.
const fn shown(name: &'static str, kind: &'static str, says: Says) -> Drawn {
    Drawn { name, kind, format: "", says, priority: 0 }
}

/// A column of `-o wide`.
const fn wide(name: &'static str, says: Says) -> Drawn {
    Drawn { priority: 1, ..shown(name, "string", says) }
}

const METADATA: &str = "meta.v1.ObjectMeta";

const NAME: Drawn = Drawn { format: "name", ..shown("Name", "string", Says::Field(METADATA, "name")) };

const AGE: Drawn = shown("Age", "string", Says::Field(METADATA, "creationTimestamp"));

const CREATED: Drawn = Drawn { name: "Created At", kind: "date", ..AGE };

/// With their descriptions, which are looked up once.
pub(crate) fn columns(strategy: Strategy) -> &'static [Column] {
    static ALL: OnceLock<Vec<(Strategy, Vec<Column>)>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let words = descriptions();
        let strategies = crate::all().iter().map(|kind| kind.strategy).chain([Strategy::Custom]);
        strategies
            .map(|strategy| (strategy, drawn(strategy).iter().map(|column| head(column, &words)).collect()))
            .collect()
    });
    all.iter().find(|(of, _)| *of == strategy).map_or(&[], |(_, columns)| columns)
}

fn head(column: &Drawn, words: &BTreeMap<String, BTreeMap<String, String>>) -> Column {
    let description = match column.says {
        Says::Text(text) => Cow::Borrowed(text),
        Says::Field(of, field) => words.get(of).and_then(|of| of.get(field)).cloned().unwrap_or_default().into(),
    };
    Column {
        name: column.name.into(),
        kind: column.kind.into(),
        format: column.format.into(),
        description,
        priority: column.priority,
    }
}

fn drawn(strategy: Strategy) -> &'static [Drawn] {
    match strategy {
        Strategy::ClusterRole | Strategy::Role => rbac::ROLE,
        Strategy::ClusterRoleBinding => rbac::CLUSTER_ROLE_BINDING,
        Strategy::RoleBinding => rbac::ROLE_BINDING,
        Strategy::ConfigMap => cluster::CONFIG_MAP,
        // The two of a definition that asks for none.
        Strategy::Custom => &[NAME, Drawn { kind: "date", ..AGE }],
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
        Strategy::IpAddress => network::ip_address(object),
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

/// What a row says of its object beside its cells: that a pod is done, which `kubectl get` hid once.
pub(crate) fn conditions(strategy: Strategy, object: &Value) -> Option<Value> {
    let (reason, message) = match (strategy, object["status"].text("phase")) {
        (Strategy::Pod, "Succeeded") => ("Succeeded", "The pod has completed successfully."),
        (Strategy::Pod, "Failed") => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
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
    let mut parts: Vec<(&str, String)> = selector
        .entries("matchLabels")
        .map(|(key, value)| (key, format!("{key}={}", value.as_str().unwrap_or_default())))
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
        parts.push((key, text));
    }
    parts.sort_by_key(|(key, _)| *key);
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
