//! One kind of object, and what the API server asks of it.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::catalog::Strategy;
use crate::{FieldError, Status, UnsupportedField, decode, defaults, fields, prepare, table, validate};

/// A kind of object that is stored and served.
#[derive(Debug)]
pub struct Kind {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub namespaced: bool,
    /// `all` makes `kubectl get all` show it.
    pub categories: &'static [&'static str],
    /// Whether `/status` exists.
    pub has_status: bool,
    /// Whether `/scale` exists.
    pub has_scale: bool,
    pub(crate) strategy: Strategy,
}

/// A kind that is held on to: one of the program's own, or one that somebody defined and that may go again.
#[derive(Clone, Debug)]
pub enum KindRef {
    Own(&'static Kind),
    Defined(Arc<Kind>),
}

impl Deref for KindRef {
    type Target = Kind;

    fn deref(&self) -> &Kind {
        match self {
            Self::Own(kind) => kind,
            Self::Defined(kind) => kind,
        }
    }
}

impl From<&'static Kind> for KindRef {
    fn from(kind: &'static Kind) -> Self {
        Self::Own(kind)
    }
}

/// What an update goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    None,
    Status,
}

/// What to do about unknown fields (query parameter `fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// A column of a `meta/v1` Table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Cow<'static, str>,
    /// `string`, `integer` …
    pub kind: Cow<'static, str>,
    /// `name` marks the object's name.
    pub format: Cow<'static, str>,
    pub description: Cow<'static, str>,
    /// 0 is always shown; above that only with `-o wide`.
    pub priority: i32,
}

impl Kind {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The table's name of the type, such as `core.v1.Pod`.
    pub(crate) fn type_name(&self) -> &'static str {
        match self.strategy {
            Strategy::ClusterRole => "rbac.v1.ClusterRole",
            Strategy::ClusterRoleBinding => "rbac.v1.ClusterRoleBinding",
            Strategy::ConfigMap => "core.v1.ConfigMap",
            Strategy::Deployment => "apps.v1.Deployment",
            Strategy::EndpointSlice => "discovery.v1.EndpointSlice",
            Strategy::Endpoints => "core.v1.Endpoints",
            Strategy::Event => "core.v1.Event",
            Strategy::EventsEvent => "events.v1.Event",
            Strategy::IpAddress => "networking.v1.IPAddress",
            Strategy::Lease => "coordination.v1.Lease",
            Strategy::Namespace => "core.v1.Namespace",
            Strategy::Node => "core.v1.Node",
            Strategy::Pod => "core.v1.Pod",
            Strategy::ReplicaSet => "apps.v1.ReplicaSet",
            Strategy::Role => "rbac.v1.Role",
            Strategy::RoleBinding => "rbac.v1.RoleBinding",
            Strategy::Secret => "core.v1.Secret",
            Strategy::Service => "core.v1.Service",
            Strategy::ServiceAccount => "core.v1.ServiceAccount",
            Strategy::ServiceCidr => "networking.v1.ServiceCIDR",
        }
    }

    /// Whether an update may leave out the resourceVersion.
    pub fn allows_unconditional_update(&self) -> bool {
        !matches!(self.strategy, Strategy::Lease | Strategy::ServiceCidr)
    }

    /// Whether a PUT of an absent object makes it.
    pub fn allows_create_on_update(&self) -> bool {
        matches!(
            self.strategy,
            Strategy::ClusterRole
                | Strategy::ClusterRoleBinding
                | Strategy::Endpoints
                | Strategy::Event
                | Strategy::EventsEvent
                | Strategy::Lease
                | Strategy::Role
                | Strategy::RoleBinding
                | Strategy::Service
        )
    }

    /// Checks types and unknown fields of a decoded JSON body and drops nulls and unknown fields; sets nothing.
    /// Returns the object and the warnings, such as `unknown field "spec.foo"`.
    pub fn decode(&self, body: Value, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
        decode::decode(self, body, validation)
    }

    /// What a strict client is told of fields that its text has more than once.
    ///
    /// # Errors
    /// 400, if there are any and `validation` is strict.
    pub fn refuse_repeated(&self, repeated: &[String], validation: FieldValidation) -> Result<(), Status> {
        if repeated.is_empty() || validation != FieldValidation::Strict {
            return Ok(());
        }
        Err(decode::not_strict(self, self.kind, repeated))
    }

    /// Fills in what the client left out. Idempotent.
    pub fn default(&self, object: &mut Value) {
        defaults::default(self.strategy, object);
    }

    /// Clears what a client may not set at creation (status), and sets the first generation.
    pub fn prepare_create(&self, object: &mut Value) {
        prepare::create(self.strategy, self.has_status, object);
    }

    /// Keeps what this way of updating may not touch, and raises the generation when the spec changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, sub: Subresource) {
        prepare::update(self.strategy, self.has_status, new, old, sub);
    }

    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        validate::create(self, object)
    }

    pub fn validate_update(&self, new: &Value, old: &Value, sub: Subresource) -> Vec<FieldError> {
        validate::update(self, new, old, sub)
    }

    /// The Table's columns.
    pub fn columns(&self) -> &[Column] {
        table::columns(self.strategy)
    }

    /// One cell for each of [`Kind::columns`].
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        table::row(self.strategy, object, now)
    }

    /// Value of a field-selector field (empty when the object has none).
    pub fn field(&self, object: &Value, field: &str) -> Result<String, UnsupportedField> {
        fields::value(self.strategy, object, field)
    }
}
