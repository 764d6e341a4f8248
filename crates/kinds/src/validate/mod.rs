//! Says what is wrong with an object, in Kubernetes' words and in its order.
//!
//! Invariant: objects are decoded, defaulted and prepared; whatever is still absent or odd yields an error, never a
//! panic. What allocation fills in (cluster IPs, node ports, families) may be absent, so validation may run before or
//! after it. Deliberately not here: checks that need other objects.
//! Source: `pkg/apis/*/validation` of Kubernetes 1.36.

mod address;
mod cluster;
mod config;
mod container;
mod endpoints;
mod environment;
mod event;
mod ingress;
mod metadata;
mod pod;
mod rbac;
mod resources;
mod scheduling;
mod security;
mod service;
mod volume;
mod workload;

#[cfg(test)]
mod tests;

pub(crate) use address::parse_legacy as parse_address;
pub(crate) use metadata::STANDARD_FINALIZERS;
use serde_json::Value;
pub(crate) use service::cluster_ips_alone as cluster_ips;

use crate::catalog::Strategy;
use crate::custom::definition;
use crate::look::Path;
use crate::{FieldError, Kind, Subresource};

/// At most this many errors are told of one object.
const MAX_ERRORS: usize = 200;

/// The errors found so far.
#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn push(&mut self, error: FieldError) {
        if self.0.len() < MAX_ERRORS {
            self.0.push(error);
        }
    }

    fn invalid(&mut self, path: &Path<'_>, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(FieldError::invalid(path, value, detail));
    }

    fn invalid_as(&mut self, path: &Path<'_>, json: String, detail: impl Into<String>) {
        self.push(FieldError::invalid_as(path, json, detail));
    }

    /// One error for each message of a check of names.
    fn each(&mut self, path: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.push(FieldError::invalid(path, value, message));
        }
    }

    fn required(&mut self, path: &Path<'_>, detail: &str) {
        self.push(FieldError::required(path, detail));
    }

    fn forbidden(&mut self, path: &Path<'_>, detail: impl Into<String>) {
        self.push(FieldError::forbidden(path, detail));
    }

    fn duplicate(&mut self, path: &Path<'_>, value: impl Into<Value>) {
        self.push(FieldError::duplicate(path, value));
    }

    fn not_supported(&mut self, path: &Path<'_>, value: impl Into<Value>, supported: &[&str]) {
        self.push(FieldError::not_supported(path, value, supported));
    }

    fn too_many(&mut self, path: &Path<'_>, count: usize, max: usize) {
        self.push(FieldError::too_many(path, count, max));
    }

    /// A required field that must be one of `supported`.
    fn one_of(&mut self, path: &Path<'_>, value: &str, supported: &[&str]) {
        if value.is_empty() {
            self.required(path, "");
        } else if !supported.contains(&value) {
            self.not_supported(path, value, supported);
        }
    }

    fn port(&mut self, path: &Path<'_>, port: i64) {
        if let Some(message) = crate::names::port_number(port) {
            self.invalid(path, port, message);
        }
    }

    fn positive(&mut self, path: &Path<'_>, value: i64) {
        if value <= 0 {
            self.invalid(path, value, "must be greater than zero");
        }
    }

    fn non_negative(&mut self, path: &Path<'_>, value: Option<i64>) {
        if let Some(value) = value.filter(|value| *value < 0) {
            self.invalid(path, value, "must be greater than or equal to 0");
        }
    }

    fn immutable(&mut self, path: &Path<'_>, new: &Value, old: &Value) {
        if new != old {
            self.invalid(path, new.clone(), "field is immutable");
        }
    }
}

/// An object as Kubernetes writes those whose Go fields carry no names for JSON: each is there, under its Go name.
fn as_go(object: &Value, fields: &[(&str, &str, Value)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(go, name, absent)| format!("\"{go}\":{}", object.get(name).unwrap_or(absent))).collect();
    format!("{{{}}}", fields.join(","))
}

/// A number or a name of a port.
fn port_or_name(errors: &mut Errors, port: &Value, path: &Path<'_>) {
    match port {
        Value::String(name) => errors.each(path, name, crate::names::port_name(name)),
        other => errors.port(path, other.as_i64().unwrap_or(0)),
    }
}

pub(crate) fn create(kind: &Kind, object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::create(&mut errors, kind, object);
    body(&mut errors, kind.strategy, object, None);
    errors.0
}

pub(crate) fn update(kind: &Kind, new: &Value, old: &Value, sub: Subresource) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::update(&mut errors, kind, new, old);
    match sub {
        Subresource::None => body(&mut errors, kind.strategy, new, Some(old)),
        Subresource::Status => status(&mut errors, kind.strategy, new, old),
        Subresource::EphemeralContainers => pod::ephemeral_containers(&mut errors, new, old),
    }
    errors.0
}

/// What is wrong with labels alone.
pub(crate) fn labels_of(value: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::labels(&mut errors, value, path);
    errors.0
}

/// And with annotations.
pub(crate) fn annotations_of(value: &Value, path: &Path<'_>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    metadata::annotations(&mut errors, value, path);
    errors.0
}

/// What is wrong with the metadata alone.
pub(crate) fn metadata(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    match old {
        Some(old) => metadata::update(&mut errors, kind, new, old),
        None => metadata::create(&mut errors, kind, new),
    }
    errors.0
}

fn body(errors: &mut Errors, strategy: Strategy, new: &Value, old: Option<&Value>) {
    match strategy {
        Strategy::ClusterRole => rbac::cluster_role(errors, new),
        Strategy::ClusterRoleBinding => rbac::binding(errors, new, old, false),
        Strategy::ConfigMap => config::config_map(errors, new, old),
        Strategy::Custom => {}
        Strategy::CustomResourceDefinition => {
            definition::validate(new, old, Subresource::None).into_iter().for_each(|error| errors.push(error));
        }
        Strategy::Deployment => workload::deployment(errors, new, old),
        Strategy::EndpointSlice => endpoints::slice(errors, new, old),
        Strategy::Endpoints => endpoints::endpoints(errors, new, old),
        Strategy::Event => event::core(errors, new),
        Strategy::EventsEvent => event::events(errors, new, old),
        Strategy::Ingress => ingress::ingress(errors, new, old),
        Strategy::IngressClass => ingress::class(errors, new, old),
        Strategy::IpAddress => cluster::ip_address(errors, new, old),
        Strategy::Lease => cluster::lease(errors, new),
        Strategy::Namespace => cluster::namespace(errors, new),
        Strategy::Node => cluster::node(errors, new, old),
        Strategy::Pod => pod::pod(errors, new, old),
        Strategy::ReplicaSet => workload::replica_set(errors, new, old),
        Strategy::Role => rbac::rules(errors, new, true),
        Strategy::RoleBinding => rbac::binding(errors, new, old, true),
        Strategy::Secret => config::secret(errors, new, old),
        Strategy::Service => service::service(errors, new, old),
        Strategy::ServiceAccount => {}
        Strategy::ServiceCidr => cluster::service_cidr(errors, new, old),
    }
}

fn status(errors: &mut Errors, strategy: Strategy, new: &Value, old: &Value) {
    match strategy {
        Strategy::Deployment => workload::deployment_status(errors, new),
        Strategy::CustomResourceDefinition => {
            definition::validate(new, Some(old), Subresource::Status).into_iter().for_each(|error| errors.push(error));
        }
        Strategy::Ingress => ingress::status(errors, new),
        Strategy::Node => cluster::node(errors, new, Some(old)),
        Strategy::Pod => pod::status(errors, new, old),
        Strategy::ReplicaSet => workload::replica_set_status(errors, new),
        Strategy::Service => service::status(errors, new, old),
        _ => {}
    }
}
