//! One kind of object, and what the API server asks of it.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::catalog::Strategy;
use crate::custom::Custom;
use crate::custom::webhook::Webhook;
use crate::schema::table as types;
use crate::{
    FieldError, Status, UnsupportedField, complete, decode, defaults, fields, prepare, service, table, validate, warn,
};

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
    /// What a defined kind has beside.
    pub(crate) custom: Option<Custom>,
}

/// Where `/scale` finds what it is about, as paths of fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    pub replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    /// Where the selector stands as text. The program's own kinds have one of labels, in `spec.selector`.
    pub selector: Option<Vec<String>>,
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
    /// Of pods alone.
    EphemeralContainers,
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
            // All that is known of it beforehand.
            Strategy::Custom => "meta.v1.ObjectMeta",
            Strategy::CustomResourceDefinition => "apiextensions.v1.CustomResourceDefinition",
            Strategy::Deployment => "apps.v1.Deployment",
            Strategy::EndpointSlice => "discovery.v1.EndpointSlice",
            Strategy::Endpoints => "core.v1.Endpoints",
            Strategy::Event => "core.v1.Event",
            Strategy::EventsEvent => "events.v1.Event",
            Strategy::Ingress => "networking.v1.Ingress",
            Strategy::IngressClass => "networking.v1.IngressClass",
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
        !matches!(
            self.strategy,
            Strategy::Custom | Strategy::CustomResourceDefinition | Strategy::Lease | Strategy::ServiceCidr
        )
    }

    /// Whether all of them, or all that a selector finds, may be deleted at once.
    pub fn deletes_collections(&self) -> bool {
        self.strategy != Strategy::Namespace
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

    /// Whether who deletes an object is answered with it, and not with a Status.
    pub fn returns_deleted(&self) -> bool {
        matches!(self.strategy, Strategy::Pod | Strategy::Service | Strategy::ServiceAccount)
    }

    /// Checks types and unknown fields of a decoded JSON body and drops nulls and unknown fields; sets nothing.
    /// Returns the object and the warnings, such as `unknown field "spec.foo"`.
    pub fn decode(&self, body: Value, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
        decode::decode(self, body, validation)
    }

    /// What a strict client is told of fields that its text has more than once, and in one breath of those that are
    /// unknown.
    ///
    /// # Errors
    /// 400, if there are any and `validation` is strict.
    pub fn refuse_repeated(
        &self,
        body: &Value,
        repeated: &[String],
        validation: FieldValidation,
    ) -> Result<(), Status> {
        if repeated.is_empty() || validation != FieldValidation::Strict {
            return Ok(());
        }
        // What is wrong beyond that, or of another kind as a subresource's body, is nobody's business here.
        let unknown = self.decode(body.clone(), FieldValidation::Warn).map(|(_, unknown)| unknown).unwrap_or_default();
        // A custom resource's text is judged before its schema is looked at.
        let mistakes = if self.is_custom() { [repeated, &unknown].concat() } else { [&unknown, repeated].concat() };
        Err(decode::not_strict(self, self.kind, &mistakes))
    }

    /// Whether somebody defined it.
    pub fn is_custom(&self) -> bool {
        self.custom.is_some()
    }

    /// What lists of it call themselves.
    pub fn list_kind(&self) -> Cow<'static, str> {
        match &self.custom {
            Some(custom) => custom.list_kind().into(),
            None => format!("{}List", self.kind).into(),
        }
    }

    /// The `apiVersion` that its objects are stored with.
    pub fn stored_api_version(&self) -> String {
        self.custom.as_ref().map_or_else(|| self.api_version(), |custom| custom.stored_api_version().to_owned())
    }

    /// A stored object, seen as this version of a defined kind: with the fields it has now, and its defaults.
    pub fn read(&self, stored: Value) -> Value {
        match &self.custom {
            Some(custom) => custom.read(stored),
            None => stored,
        }
    }

    /// Who makes one version of it of another, if they differ in more than their name.
    pub fn webhook(&self) -> Option<&Webhook> {
        self.custom.as_ref().and_then(Custom::webhook)
    }

    /// A stored object of a defined kind with the fields and defaults that its own version has by now. `None` if there is
    /// no such version any more.
    pub fn restored(&self, stored: Value) -> Option<Value> {
        self.custom.as_ref().and_then(|custom| custom.restored(stored))
    }

    /// An object of any version of a defined kind without the fields that its version has not.
    pub fn pruned(&self, object: Value) -> Value {
        match &self.custom {
            Some(custom) => custom.pruned(object),
            None => object,
        }
    }

    /// Whether its definition is being deleted, so that nothing new is made.
    pub fn is_terminating(&self) -> bool {
        self.custom.as_ref().is_some_and(Custom::is_terminating)
    }

    /// What to tell whoever still uses this version.
    pub fn deprecation(&self) -> Option<&str> {
        match self.strategy {
            Strategy::Endpoints => Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
            _ => self.custom.as_ref().and_then(Custom::warning),
        }
    }

    /// What `/scale` is about, if it exists.
    pub fn scale(&self) -> Option<Scale> {
        let path = |parts: [&str; 2]| parts.map(str::to_owned).to_vec();
        match &self.custom {
            Some(custom) => custom.scale().cloned(),
            None => self.has_scale.then(|| Scale {
                replicas: path(["spec", "replicas"]),
                status_replicas: path(["status", "replicas"]),
                selector: None,
            }),
        }
    }

    /// What may surprise whoever writes this valid object, of which `old` was there before.
    pub fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        warn::warnings(self.strategy, new, old)
    }

    /// The same of whoever writes its status.
    pub fn status_warnings(&self, new: &Value) -> Vec<String> {
        warn::of_status(self.strategy, new)
    }

    /// Fills in what the client left out. Idempotent.
    pub fn default(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.default(object),
            None => {
                defaults::default(self.strategy, object);
                if let Some(schema) = types().find(self.type_name()) {
                    complete::complete(schema, object);
                }
            }
        }
    }

    /// Clears what a client may not set at creation (status), and sets the first generation.
    pub fn prepare_create(&self, object: &mut Value) {
        match &self.custom {
            Some(custom) => custom.prepare_create(object),
            None => prepare::create(self.strategy, self.has_status, object),
        }
    }

    /// Keeps what this way of updating may not touch, and raises the generation when the spec changed.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, sub: Subresource) {
        match &self.custom {
            Some(custom) => custom.prepare_update(new, old, sub),
            None => prepare::update(self.strategy, self.has_status, new, old, sub),
        }
    }

    /// Fills in what an object has by the cluster it is in: a Service, of these IP `families`. Whoever gets errors has
    /// to look no further.
    pub fn settle(&self, new: &mut Value, old: Option<&Value>, families: &[&str]) -> Vec<FieldError> {
        match self.strategy {
            Strategy::Service => service::settle_families(new, old, families),
            _ => Vec::new(),
        }
    }

    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.validate(self, object, None, Subresource::None),
            None => validate::create(self, object),
        }
    }

    pub fn validate_update(&self, new: &Value, old: &Value, sub: Subresource) -> Vec<FieldError> {
        match &self.custom {
            Some(custom) => custom.validate(self, new, Some(old), sub),
            None => validate::update(self, new, old, sub),
        }
    }

    /// The Table's columns.
    pub fn columns(&self) -> &[Column] {
        match &self.custom {
            Some(custom) => custom.columns(),
            None => table::columns(self.strategy),
        }
    }

    /// One cell for each of [`Kind::columns`].
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match &self.custom {
            Some(custom) => custom.row(object, now),
            None => table::row(self.strategy, object, now),
        }
    }

    /// The conditions of its row, if it has any.
    pub fn row_conditions(&self, object: &Value) -> Option<Value> {
        table::conditions(self.strategy, object)
    }

    /// Value of a field-selector field (empty when the object has none).
    pub fn field(&self, object: &Value, field: &str) -> Result<String, UnsupportedField> {
        match &self.custom {
            Some(custom) => custom.field(object, field),
            None => fields::value(self.strategy, object, field),
        }
    }
}
