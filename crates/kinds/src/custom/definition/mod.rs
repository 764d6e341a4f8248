//! A CustomResourceDefinition itself: what it is when nothing is said, what a client may not set in it, and what is
//! wrong with it.
//!
//! Source: `pkg/apis/apiextensions/{v1/defaults,validation/validation}.go` and `pkg/registry/customresourcedefinition`
//! of apiextensions-apiserver.

pub(super) mod approval;
mod conversion;
mod parts;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::look::{Look, Path, child, items_mut, map_of, set_default};
use crate::names;
use crate::{FieldError, Subresource};

/// The finalizer of definitions whose objects have to go first.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

pub(crate) fn default(definition: &mut Value) {
    let spec = child(definition, "spec");
    set_default(spec, "conversion", json!({"strategy": "None"}));
    let names = child(spec, "names");
    let kind = names.text("kind").to_owned();
    if names.text("singular").is_empty() && !kind.is_empty() {
        map_of(names).insert("singular".into(), kind.to_lowercase().into());
    }
    if names.text("listKind").is_empty() && !kind.is_empty() {
        map_of(names).insert("listKind".into(), format!("{kind}List").into());
    }
    if let Some(service @ Value::Object(_)) = spec.pointer_mut("/conversion/webhook/clientConfig/service") {
        set_default(service, "port", 443);
    }
    for version in items_mut(spec, "versions") {
        set_default(version, "served", false);
        set_default(version, "storage", false);
    }
}

/// A new definition has been accepted nothing yet.
pub(crate) fn prepare_create(definition: &mut Value) {
    let empty = json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []});
    map_of(definition).insert("status".into(), empty);
    remember_storage(definition);
}

/// The version that objects are stored as is one that there may be objects of.
pub(crate) fn remember_storage(definition: &mut Value) {
    let storage = definition["spec"].list("versions").iter().find(|version| version.flag("storage"));
    let Some(name) = storage.map(|version| version["name"].clone()) else { return };
    let stored = map_of(child(definition, "status")).entry("storedVersions").or_insert_with(|| json!([]));
    if let Value::Array(stored) = stored
        && !stored.contains(&name)
    {
        stored.push(name);
    }
}

/// The condition of this type, if the definition has it.
pub fn condition<'a>(definition: &'a Value, kind: &str) -> Option<&'a Value> {
    definition["status"].list("conditions").iter().find(|condition| condition.text("type") == kind)
}

/// Sets a condition; its time changes only with its status.
pub fn set_condition(definition: &mut Value, kind: &str, status: bool, (reason, message): (&str, &str), now: &str) {
    let status = if status { "True" } else { "False" };
    let since = condition(definition, kind)
        .filter(|old| old.text("status") == status)
        .map_or(now, |old| old.text("lastTransitionTime"))
        .to_owned();
    let new = json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since
    });
    let conditions = map_of(child(definition, "status")).entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Value::Array(conditions) = conditions {
        match conditions.iter_mut().find(|condition| condition.text("type") == kind) {
            Some(old) => *old = new,
            None => conditions.push(new),
        }
    }
}

pub(crate) fn validate(definition: &Value, old: Option<&Value>, sub: Subresource) -> Vec<FieldError> {
    let mut errors = Vec::new();
    names_of(
        &definition["status"]["acceptedNames"],
        &Path::Field(&Path::Field(&Path::Root, "status"), "acceptedNames"),
        &mut errors,
    );
    if sub == Subresource::Status {
        return errors;
    }
    let spec = &definition["spec"];
    let at = Path::Field(&Path::Root, "spec");
    let wanted = format!("{}.{}", spec["names"].text("plural"), spec.text("group"));
    let name = definition["metadata"].text("name");
    if name != wanted {
        let words = "must be spec.names.plural+\".\"+spec.group";
        errors.insert(0, FieldError::invalid("metadata.name", name, words));
    }
    validate_spec(spec, old, &at, &mut errors);
    let stored = &definition["status"]["storedVersions"];
    let names: BTreeSet<&str> = spec.list("versions").iter().map(|version| version.text("name")).collect();
    for (index, version) in stored.as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
        if !names.contains(version) {
            let words = format!(
                "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a \
                 storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
            );
            errors.push(FieldError::invalid(format!("status.storedVersions[{index}]"), version, words));
        }
    }
    if stored.as_array().is_none_or(Vec::is_empty) {
        errors.push(FieldError::invalid("status.storedVersions", Value::Null, "must have at least one stored version"));
    }
    errors.extend(approval::validate(definition, old));
    if spec.flag("preserveUnknownFields") {
        let words =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(at.field("preserveUnknownFields"), true, words));
    }
    let Some(old) = old else { return errors };
    let mut fixed = vec!["/group", "/names/plural"];
    if super::is_established(old) {
        fixed.extend(["/scope", "/names/kind"]);
    }
    for pointer in fixed {
        let (new, old) = (spec.pointer(pointer), old["spec"].pointer(pointer));
        if new != old {
            let field = format!("spec{}", pointer.replace('/', "."));
            errors.push(FieldError::invalid(field, new.cloned().unwrap_or_default(), "field is immutable"));
        }
    }
    errors
}

fn validate_spec(spec: &Value, old: Option<&Value>, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let group = spec.text("group");
    let at = path.field("group");
    if group.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if let wrong @ [_, ..] = names::dns1123_subdomain(group).as_slice() {
        errors.push(FieldError::invalid(at, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(at, group, "should be a domain with at least one dot"));
    }
    match spec.text("scope") {
        "" => errors.push(FieldError::required(path.field("scope"), "")),
        "Cluster" | "Namespaced" => {}
        other => errors.push(FieldError::not_supported(path.field("scope"), other, &["Cluster", "Namespaced"])),
    }
    let versions = spec.list("versions");
    let at = path.field("versions");
    // What all versions have alike is told of once, where Kubernetes keeps it: beside the versions.
    let shared = |field: &&str| match versions {
        [first, ..] if *field == "schema" && !first["schema"].has("openAPIV3Schema") => false,
        [first, rest @ ..] => first.has(field) && rest.iter().all(|version| version[*field] == first[*field]),
        [] => false,
    };
    let (together, apart): (Vec<&str>, Vec<&str>) = parts::ALL.into_iter().partition(shared);
    for (index, version) in versions.iter().enumerate() {
        validate_version(version, &at.index(index), errors);
        apart.iter().for_each(|part| parts::validate(version, part, &at.index(index).field(part), errors));
    }
    let told = |errors: &mut Vec<FieldError>, words: &str| {
        errors.push(FieldError::invalid(at, spec["versions"].clone(), words))
    };
    let mut seen: Vec<&str> = versions.iter().map(|version| version.text("name")).collect();
    seen.sort_unstable();
    if seen.windows(2).any(|pair| pair[0] == pair[1]) {
        told(errors, "must contain unique version names");
    }
    if versions.iter().filter(|version| version.flag("storage")).count() != 1 {
        told(errors, "must have exactly one version marked as storage version");
    }
    let names = &spec["names"];
    let at = path.field("names");
    for field in ["plural", "singular", "kind", "listKind"] {
        if names.text(field).is_empty() {
            errors.push(FieldError::required(at.field(field), ""));
        }
    }
    names_of(names, &at, errors);
    for part in together {
        let at = path.field(if part == "schema" { "validation" } else { part });
        parts::validate(&versions[0], part, &at, errors);
    }
    conversion::validate(&spec["conversion"], old, &path.field("conversion"), errors);
}

fn names_of(names: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut each = |at: &Path<'_>, text: &str, lower: &str, prefix: &str| {
        let wrong = if text.is_empty() { Vec::new() } else { names::dns1035_label(lower) };
        if !wrong.is_empty() {
            errors.push(FieldError::invalid(at, text, format!("{prefix}{}", wrong.join(","))));
        }
    };
    for field in ["plural", "singular"] {
        each(&path.field(field), names.text(field), names.text(field), "");
    }
    for field in ["kind", "listKind"] {
        let text = names.text(field);
        each(&path.field(field), text, &text.to_lowercase(), "may have mixed case, but should otherwise match: ");
    }
    for field in ["shortNames", "categories"] {
        let at = path.field(field);
        for (index, name) in names.list(field).iter().filter_map(Value::as_str).enumerate() {
            each(&at.index(index), name, name, "");
        }
    }
    let (kind, list) = (names.text("kind"), names.text("listKind"));
    if !kind.is_empty() && kind == list {
        errors.push(FieldError::invalid(path.field("listKind"), list, "kind and listKind may not be the same"));
    }
}

fn validate_version(version: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let name = version.text("name");
    let wrong = names::dns1035_label(name);
    if !wrong.is_empty() {
        errors.push(FieldError::invalid(path.field("name"), name, wrong.join(",")));
    }
    if version.has("deprecationWarning") {
        let text = version.text("deprecationWarning");
        let mut wrong = |words: &str| errors.push(FieldError::invalid(path.field("deprecationWarning"), text, words));
        if !version.flag("deprecated") {
            wrong("can only be set for deprecated versions");
        } else if text.len() > 256 {
            wrong("must be <= 256 characters long");
        } else if text.is_empty() {
            wrong("must not be an empty string");
        } else if let Some((at, _)) = text.char_indices().find(|(_, character)| character.is_control()) {
            wrong(&format!(
                "must only contain printable UTF-8 characters; non-printable character found at index {at}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FieldValidation, find};

    fn crontab() -> Value {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "crontabs.stable.example.com"},
            "spec": {
                "group": "stable.example.com", "scope": "Namespaced",
                "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"]},
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
                        "cronSpec": {"type": "string"}, "replicas": {"type": "integer", "minimum": 0}}}}}}
                }]
            }
        })
    }

    #[test]
    fn what_is_not_said_is_filled_in() {
        let kind = find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let (mut object, unknown) = kind.decode(crontab(), FieldValidation::Strict).unwrap();
        assert!(unknown.is_empty(), "{unknown:?}");
        kind.default(&mut object);
        kind.prepare_create(&mut object);
        assert_eq!(kind.validate_create(&object), []);
        let spec = &object["spec"];
        assert_eq!((spec["names"].text("singular"), spec["names"].text("listKind")), ("crontab", "CronTabList"));
        assert_eq!(spec["conversion"]["strategy"], "None");
        assert_eq!(object["status"]["storedVersions"], json!(["v1"]));
        // A limit of zero is a limit.
        let minimum = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/replicas/minimum";
        assert_eq!(object.pointer(minimum), Some(&json!(0)));
    }

    #[test]
    fn mistakes_are_named() {
        for (pointer, value, expected) in [
            (
                "/metadata/name",
                json!("x"),
                "metadata.name: Invalid value: \"x\": must be spec.names.plural+\".\"+spec.group",
            ),
            (
                "/spec/scope",
                json!("World"),
                "spec.scope: Unsupported value: \"World\": supported values: \"Cluster\", \"Namespaced\"",
            ),
            ("/spec/versions/0/schema", json!({}), "spec.versions[0].schema.openAPIV3Schema: Required value"),
            ("/spec/names/shortNames", json!(["C_T"]), "spec.names.shortNames[0]: Invalid value: \"C_T\""),
            ("/spec/versions/0/storage", json!(false), "spec.versions: Invalid value"),
            (
                "/spec/versions/0/additionalPrinterColumns",
                json!([{"name": "a", "type": "text", "jsonPath": ".spec"}]),
                "spec.additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
            ),
            (
                "/spec/versions/0/subresources",
                json!({"scale": {"specReplicasPath": ".replicas", "statusReplicasPath": ".status.replicas"}}),
                "spec.subresources.scale.specReplicasPath: Invalid value: \".replicas\": should be a json path under .spec",
            ),
            (
                "/spec/versions/0/selectableFields",
                json!([{"jsonPath": ".spec.absent"}]),
                "spec.selectableFields[0].jsonPath: Invalid value: \".spec.absent\": is an invalid path",
            ),
            (
                "/spec/conversion",
                json!({"strategy": "Webhook"}),
                "spec.conversion.webhookClientConfig: Required value: required when strategy is set to Webhook",
            ),
        ] {
            let mut object = crontab();
            default(&mut object);
            prepare_create(&mut object);
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[field] = value;
            let errors: Vec<String> =
                validate(&object, None, Subresource::None).iter().map(ToString::to_string).collect();
            assert!(errors.iter().any(|error| error.starts_with(expected)), "{pointer}: {errors:?}");
        }
    }

    #[test]
    fn fields_are_of_their_types() {
        let kind = find("apiextensions.k8s.io", "v1", "customresourcedefinitions").unwrap();
        let decoded = |pointer: &str, value: Value, validation| {
            let mut object = crontab();
            let (parent, field) = pointer.rsplit_once('/').unwrap();
            object.pointer_mut(parent).unwrap()[field] = value;
            kind.decode(object, validation).map_err(|status| status.message().to_owned())
        };
        let version = "/spec/versions/0";
        let schema = "/spec/versions/0/schema/openAPIV3Schema";
        let cannot = "json: cannot unmarshal";
        for (pointer, value, expected) in [
            (
                format!("{version}/subresources"),
                json!({"status": "x"}),
                format!(
                    "{cannot} string into Go struct field \
             CustomResourceSubresources.spec.versions.subresources.status of type v1.CustomResourceSubresourceStatus"
                ),
            ),
            (
                format!("{version}/schema"),
                json!(5),
                format!(
                    "{cannot} number into Go struct field \
             CustomResourceDefinitionVersion.spec.versions.schema of type v1.CustomResourceValidation"
                ),
            ),
            (
                format!("{version}/served"),
                json!("yes"),
                format!(
                    "{cannot} string into Go struct field \
             CustomResourceDefinitionVersion.spec.versions.served of type bool"
                ),
            ),
            (format!("{schema}/additionalProperties"), json!("x"), "boolean or JSON schema expected".to_owned()),
            (
                format!("{schema}/additionalProperties"),
                json!({"items": {"maxLength": "x"}}),
                format!(
                    "{cannot} string into Go \
             struct field JSONSchemaProps.spec.versions.schema.openAPIV3Schema.additionalProperties.items.maxLength of type \
             int64"
                ),
            ),
            (
                format!("{schema}/items"),
                json!([5]),
                format!(
                    "{cannot} number into Go struct field \
             JSONSchemaProps.spec.versions.schema.openAPIV3Schema.items of type v1.JSONSchemaProps"
                ),
            ),
            (
                format!("{schema}/dependencies"),
                json!({"a": [1]}),
                format!(
                    "{cannot} number into Go struct field \
             JSONSchemaProps.spec.versions.schema.openAPIV3Schema.dependencies of type string"
                ),
            ),
        ] {
            let expected = format!(
                "CustomResourceDefinition in version \"v1\" cannot be handled as a CustomResourceDefinition: {expected}"
            );
            assert_eq!(decoded(&pointer, value, FieldValidation::Ignore).unwrap_err(), expected, "{pointer}");
        }
        // What stands for a schema and is none is nothing; what nobody knows within one goes without a word.
        let (object, _) = decoded(&format!("{schema}/items"), json!("x"), FieldValidation::Strict).unwrap();
        assert_eq!(object.pointer(&format!("{schema}/items")), None);
        let nested = json!({"type": "string", "unknown": 1});
        let (object, unknown) =
            decoded(&format!("{schema}/additionalProperties"), nested, FieldValidation::Strict).unwrap();
        assert_eq!(object.pointer(&format!("{schema}/additionalProperties")), Some(&json!({"type": "string"})));
        assert!(unknown.is_empty());
        let (_, unknown) =
            decoded(&format!("{version}/subresources"), json!({"status": {"a": 1}}), FieldValidation::Warn).unwrap();
        assert_eq!(unknown, ["unknown field \"spec.versions[0].subresources.status.a\""]);
        let (mut several, _) =
            decoded(&format!("{schema}/items"), json!([{"type": "string"}]), FieldValidation::Strict).unwrap();
        default(&mut several);
        let errors = validate(&several, None, Subresource::None);
        assert!(
            errors.iter().any(|error| error.detail == "items must be a schema object and not an array"),
            "{errors:?}"
        );
    }

    #[test]
    fn what_objects_depend_on_stays() {
        let mut old = crontab();
        default(&mut old);
        prepare_create(&mut old);
        set_condition(&mut old, "Established", true, ("InitialNamesAccepted", "x"), "2026-01-01T00:00:00Z");
        let mut new = old.clone();
        new["spec"]["scope"] = "Cluster".into();
        new["spec"]["versions"][0]["name"] = "v2".into();
        let errors: Vec<String> =
            validate(&new, Some(&old), Subresource::None).iter().map(|error| error.field.clone()).collect();
        assert_eq!(errors, ["status.storedVersions[0]", "spec.scope"]);
    }
}
