//! CustomResourceDefinitions -> kinds like any other: decoded, pruned, defaulted, checked, printed by the schema that
//! somebody wrote down.
//!
//! Invariants: whatever passed the checks on a definition (`definition`, `structural`) makes kinds that never panic and
//! whose work on one object is bounded; objects are stored as one version and read as any: by nothing but another
//! `apiVersion`, or by what a webhook made of them (`webhook`).
//! Deliberately not here: calls of webhooks, and who deletes the objects of a definition that goes (the API server).
//! Source: "Extend the Kubernetes API with CustomResourceDefinitions", `k8s.io/apiextensions-apiserver`.

mod check;
mod columns;
mod compile;
mod declared;
pub mod definition;
mod format;
mod intern;
pub mod naming;
mod path;
mod pattern;
mod places;
mod rules;
pub(crate) mod schema;
mod shape;
pub(crate) mod structural;
pub mod webhook;

use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};

use crate::catalog::Strategy;
use crate::kind::Scale;
use crate::look::{Look, Path, map_of, remove};
use crate::version::Version as Ranked;
use crate::{
    Column, FieldError, FieldValidation, Kind, Status, Subresource, UnsupportedField, decode, openapi, prepare,
    validate,
};
use columns::Columns;
pub(crate) use format::fits as fits_format;
pub(crate) use format::{date, date_time};
use path::JsonPath;
pub(crate) use pattern::{LARGEST as LARGEST_PATTERN, NoPattern, Pattern, compile as compile_pattern};
use rules::Rules;
pub(crate) use schema::{Additional, ListType, Schema, Type};
use webhook::Webhook;

/// What a defined kind has that the program's own have not.
#[derive(Debug)]
pub(crate) struct Custom {
    definition: Arc<Definition>,
    /// Index of the version that this kind is.
    version: usize,
}

/// A definition's versions, and what they have in common.
#[derive(Debug)]
struct Definition {
    versions: Vec<Version>,
    /// Index of the version that objects are stored as.
    storage: usize,
    list_kind: &'static str,
    /// Nothing new is made any more.
    terminating: bool,
    /// Who makes one version of another, if they differ in more than their name.
    webhook: Option<Webhook>,
}

#[derive(Debug)]
struct Version {
    api_version: String,
    /// The schema as JSON. Most definitions of a large cluster are never used, and a tree takes many times its text.
    source: Box<str>,
    /// Read when the first object comes.
    schema: OnceLock<Schema>,
    /// What is asked of objects beyond the schema; compiled when the first is written.
    rules: OnceLock<Option<Rules>>,
    columns: Columns,
    scale: Option<Scale>,
    has_status: bool,
    /// By name, without the leading dot.
    selectable: Vec<(String, JsonPath)>,
    /// What to tell whoever still uses the version.
    warning: Option<String>,
    /// Another one when anything about the version is.
    fingerprint: u64,
}

/// The kinds that a definition makes, one for each version that is served, with the names it was given. `None` for one
/// whose names cannot be kept (there is room for a great many).
pub fn kinds(definition: &Value) -> Option<Vec<Arc<Kind>>> {
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let group = spec.text("group");
    let intern_all = |texts: &[Value]| -> Option<&'static [&'static str]> {
        intern::list(&texts.iter().filter_map(Value::as_str).collect::<Vec<_>>())
    };
    let (short_names, categories) = (intern_all(names.list("shortNames"))?, intern_all(names.list("categories"))?);
    let versions = spec.list("versions");
    let shared = Arc::new(Definition {
        versions: versions.iter().map(|version| Version::new(group, names.text("kind"), version, versions)).collect(),
        storage: versions.iter().position(|version| version.flag("storage")).unwrap_or(0),
        list_kind: intern::text(names.text("listKind"))?,
        terminating: definition["metadata"].has("deletionTimestamp"),
        webhook: Webhook::new(definition),
    });
    let served = versions.iter().enumerate().filter(|(_, version)| version.flag("served"));
    served
        .map(|(index, version)| {
            Some(Arc::new(Kind {
                group: intern::text(group)?,
                version: intern::text(version.text("name"))?,
                kind: intern::text(names.text("kind"))?,
                plural: intern::text(names.text("plural"))?,
                singular: intern::text(names.text("singular"))?,
                short_names,
                namespaced: spec.text("scope") != "Cluster",
                categories,
                has_status: shared.versions[index].has_status,
                has_scale: shared.versions[index].scale.is_some(),
                strategy: Strategy::Custom,
                custom: Some(Custom { definition: shared.clone(), version: index }),
            }))
        })
        .collect()
}

impl Version {
    fn new(group: &str, kind: &str, version: &Value, all: &[Value]) -> Self {
        let api_version = format!("{group}/{}", version.text("name"));
        let subresources = &version["subresources"];
        let fields = |path: &str| JsonPath::parse(path).ok().and_then(|path| path.fields()).unwrap_or_default();
        let scale = &subresources["scale"];
        let warning = version.flag("deprecated").then(|| match version.text("deprecationWarning") {
            "" => deprecation(group, kind, version.text("name"), all),
            own => own.to_owned(),
        });
        let selectable = version.list("selectableFields").iter().filter_map(|field| {
            let path = field.text("jsonPath");
            Some((path.trim_start_matches('.').to_owned(), JsonPath::parse(path).ok()?))
        });
        Self {
            source: version["schema"]["openAPIV3Schema"].to_string().into(),
            schema: OnceLock::new(),
            rules: OnceLock::new(),
            columns: Columns::new(version.list("additionalPrinterColumns")),
            scale: scale.is_object().then(|| Scale {
                replicas: fields(scale.text("specReplicasPath")),
                status_replicas: fields(scale.text("statusReplicasPath")),
                selector: Some(fields(scale.text("labelSelectorPath"))).filter(|path| !path.is_empty()),
            }),
            has_status: subresources["status"].is_object(),
            selectable: selectable.collect(),
            warning,
            fingerprint: openapi::hash(format!("{api_version} {kind} {version}").as_bytes()),
            api_version,
        }
    }

    /// The schema as the definition has it.
    fn source(&self) -> Value {
        serde_json::from_str(&self.source).unwrap_or_default()
    }

    fn schema(&self) -> &Schema {
        self.schema.get_or_init(|| Schema::new(&self.source()))
    }

    /// An object that was stored as this version, with the fields and defaults that the version has by now.
    fn restored(&self, mut stored: Value) -> Value {
        shape::prune(self.schema(), &mut stored, &mut Vec::new());
        shape::default(self.schema(), &mut stored);
        stored
    }
}

/// What is said of a deprecated version whose definition has no words of its own.
fn deprecation(group: &str, kind: &str, version: &str, all: &[Value]) -> String {
    let lives = |version: &&Value| version.flag("served") && !version.flag("deprecated");
    // The best comes first.
    let best = all.iter().filter(lives).map(|version| Ranked::new(version.text("name"))).min();
    let instead = best.filter(|best| *best < Ranked::new(version));
    let instead = instead.map_or_else(String::new, |best| format!("; use {group}/{} {kind}", best.name));
    format!("{group}/{version} {kind} is deprecated{instead}")
}

impl Custom {
    fn version(&self) -> &Version {
        &self.definition.versions[self.version]
    }

    pub(crate) fn schema(&self) -> &Schema {
        self.version().schema()
    }

    /// Another version of the same kind, or this one.
    fn version_of(&self, api_version: &str) -> Option<&Version> {
        self.definition.versions.iter().find(|version| version.api_version == api_version)
    }

    pub(crate) fn schema_of(&self, api_version: &str) -> Option<&Schema> {
        self.version_of(api_version).map(Version::schema)
    }

    pub(crate) fn webhook(&self) -> Option<&Webhook> {
        self.definition.webhook.as_ref()
    }

    /// The schema as the definition has it.
    pub(crate) fn source(&self) -> Value {
        self.version().source()
    }

    pub(crate) fn fingerprint(&self) -> u64 {
        self.version().fingerprint
    }

    pub(crate) fn list_kind(&self) -> &'static str {
        self.definition.list_kind
    }

    pub(crate) fn stored_api_version(&self) -> &str {
        &self.definition.versions[self.definition.storage].api_version
    }

    pub(crate) fn is_terminating(&self) -> bool {
        self.definition.terminating
    }

    pub(crate) fn warning(&self) -> Option<&str> {
        self.version().warning.as_deref()
    }

    pub(crate) fn scale(&self) -> Option<&Scale> {
        self.version().scale.as_ref()
    }

    pub(crate) fn columns(&self) -> &[Column] {
        self.version().columns.heads()
    }

    pub(crate) fn row(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        self.version().columns.row(object, now)
    }

    pub(crate) fn field(&self, object: &Value, field: &str) -> Result<String, UnsupportedField> {
        if let Some(name @ ("name" | "namespace")) = field.strip_prefix("metadata.") {
            return Ok(object["metadata"].text(name).to_owned());
        }
        let path = self.version().selectable.iter().find(|(name, _)| name == field);
        let (_, path) = path.ok_or_else(|| UnsupportedField { field: field.to_owned() })?;
        Ok(match path.find(object) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    /// An object as it is stored, with the fields and defaults that its version has by now. `None` if there is no such
    /// version any more.
    pub(crate) fn restored(&self, stored: Value) -> Option<Value> {
        Some(self.version_of(stored.text("apiVersion"))?.restored(stored))
    }

    pub(crate) fn pruned(&self, mut object: Value) -> Value {
        if let Some(schema) = self.schema_of(object.text("apiVersion")) {
            shape::prune(schema, &mut object, &mut Vec::new());
        }
        object
    }

    /// An object as it is stored, seen as this version.
    pub(crate) fn read(&self, stored: Value) -> Value {
        let own = &self.version().api_version;
        let of = self.version_of(stored.text("apiVersion")).unwrap_or(self.version());
        let mut object = of.restored(stored);
        if of.api_version != *own {
            map_of(&mut object).insert("apiVersion".into(), own.as_str().into());
            shape::prune(self.schema(), &mut object, &mut Vec::new());
        }
        object
    }

    /// The rest of decoding, once `apiVersion` and `kind` are found to be right.
    pub(crate) fn decode(
        &self,
        kind: &Kind,
        sent_kind: &str,
        mut body: Value,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), Status> {
        let refuse = |why: String| {
            Status::bad_request(format!(
                "{sent_kind} in version \"{}\" cannot be handled as a {}: {why}",
                kind.version, kind.kind
            ))
        };
        let mut unknown = Vec::new();
        if let Some(metadata) = body.get_mut("metadata") {
            let path = Path::Field(&Path::Root, "metadata");
            decode::check_at("meta.v1.ObjectMeta", metadata, &path, validation, &mut unknown).map_err(refuse)?;
        }
        shape::prune(self.schema(), &mut body, &mut unknown);
        shape::settle_embedded(self.schema(), &mut body, &Path::Root, &mut unknown)
            .map_err(|error| refuse(error.to_string()))?;
        if validation == FieldValidation::Ignore {
            unknown.clear();
        }
        if validation == FieldValidation::Strict && !unknown.is_empty() {
            return Err(decode::not_strict(kind, sent_kind, &unknown));
        }
        Ok((body, unknown))
    }

    pub(crate) fn default(&self, object: &mut Value) {
        shape::default(self.schema(), object);
    }

    pub(crate) fn prepare_create(&self, object: &mut Value) {
        if self.version().has_status {
            remove(object, "status");
        }
        map_of(crate::look::child(object, "metadata")).insert("generation".into(), 1.into());
    }

    pub(crate) fn prepare_update(&self, new: &mut Value, old: &Value, sub: Subresource) {
        let put = |new: &mut Value, name: &str, value: Option<Value>| match value {
            Some(value) => _ = map_of(new).insert(name.to_owned(), value),
            None => _ = remove(new, name),
        };
        if sub == Subresource::Status {
            let status = remove(new, "status");
            *new = old.clone();
            return put(new, "status", status);
        }
        if self.version().has_status {
            put(new, "status", old.get("status").cloned());
        }
        let content = |object: &Value| -> Map<String, Value> {
            let map = object.as_object().into_iter().flatten();
            map.filter(|(name, _)| *name != "metadata").map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        let before = old["metadata"].int("generation").unwrap_or(0);
        let generation = if content(new) == content(old) { before } else { before + 1 };
        let metadata = crate::look::child(new, "metadata");
        prepare::metadata(metadata, &old["metadata"]);
        put(metadata, "generation", (generation > 0).then(|| generation.into()));
    }

    pub(crate) fn validate(&self, kind: &Kind, new: &Value, old: Option<&Value>, sub: Subresource) -> Vec<FieldError> {
        let schema = self.schema();
        let mut errors = validate::metadata(kind, new, old);
        if sub == Subresource::Status {
            if let (Some(status), Some(schema)) = (new.get("status"), schema.properties.get("status")) {
                errors.extend(check::check(schema, status, old.and_then(|old| old.get("status")), "status"));
            }
        } else {
            errors.extend(check::check(schema, new, old, ""));
        }
        errors.extend(self.validate_scale(new, sub));
        // What is stored may have been so before there was a rule.
        if old.is_none_or(|old| check::repeats(schema, old).is_empty()) {
            errors.extend(check::repeats(schema, new));
        }
        let version = self.version();
        if let Some(rules) = version.rules.get_or_init(|| Rules::new(&version.source())) {
            errors.extend(if errors.iter().any(|error| error.kind.hides_rules()) {
                let words = "some validation rules were not checked because the object was invalid; correct the existing errors to \
                             complete validation";
                vec![FieldError::invalid("<nil>", Value::Null, words)]
            } else {
                rules.check(new, old)
            });
        }
        errors
    }

    fn validate_scale(&self, object: &Value, sub: Subresource) -> Vec<FieldError> {
        let Some(scale) = self.scale() else { return Vec::new() };
        let mut errors = Vec::new();
        let paths = [Some(&scale.replicas).filter(|_| sub == Subresource::None), Some(&scale.status_replicas)];
        for path in paths.into_iter().flatten() {
            let found = path.iter().try_fold(object, |value, name| value.get(name));
            let field = format!(".{}", path.join("."));
            let most = i64::from(i32::MAX);
            match found {
                None => {}
                Some(value) => match value.as_i64() {
                    None => errors.push(FieldError::invalid(
                        &field,
                        0,
                        format!(
                            "{field} accessor error: {} is of the type {}, expected int64",
                            go_text(value),
                            go_type(value)
                        ),
                    )),
                    Some(number) if number < 0 => {
                        errors.push(FieldError::invalid(&field, number, "should be a non-negative integer"));
                    }
                    Some(number) if number > most => {
                        let words = format!("should be less than or equal to {most}");
                        errors.push(FieldError::invalid(&field, number, words));
                    }
                    Some(_) => {}
                },
            }
        }
        errors
    }
}

/// The resource that instances of a definition are listed as, whatever version they are stored as.
pub fn is_established(definition: &Value) -> bool {
    definition::condition(definition, "Established").is_some_and(|condition| condition["status"] == json!("True"))
}
/// A value as Go prints it, and the type that Go decodes it to.
fn go_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "string",
        Value::Bool(_) => "bool",
        Value::Number(_) => "float64",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
        Value::Null => "<nil>",
    }
}
