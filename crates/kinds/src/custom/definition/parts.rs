//! What versions of a definition may have alike: schemas, subresources, columns, selectable fields; and what is wrong
//! with it.

use serde_json::Value;

use crate::FieldError;
use crate::custom::path::JsonPath;
use crate::custom::schema::{Schema, Type};
use crate::custom::structural;
use crate::look::{Look, Path};

pub(super) const ALL: [&str; 4] = ["schema", "subresources", "additionalPrinterColumns", "selectableFields"];
const MOST_SELECTABLE: usize = 8;
/// What the schema of a whole object may not say when its status is written apart.
const APART_FROM_STATUS: [&str; 8] =
    ["additionalProperties", "allOf", "anyOf", "default", "enum", "maxProperties", "minProperties", "oneOf"];
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// One of [`ALL`].
pub(super) fn validate(version: &Value, part: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let schema = &version["schema"]["openAPIV3Schema"];
    match part {
        "schema" if schema.is_object() => {
            let at = path.field("openAPIV3Schema");
            if version["subresources"].has("status") {
                beside_status(schema, &at, errors);
            }
            errors.extend(structural::mistakes(schema, &at));
        }
        "schema" => errors.push(FieldError::required(path.field("openAPIV3Schema"), "")),
        "subresources" => subresources(&version["subresources"], path, errors),
        "additionalPrinterColumns" => {
            for (index, column) in version.list(part).iter().enumerate() {
                column_of(column, &path.index(index), errors);
            }
        }
        _ => selectable(version.list("selectableFields"), &Schema::new(schema), path, errors),
    }
}

/// With a status of its own, the schema of the whole object may say nothing about both parts together.
fn beside_status(schema: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let kind = schema.text("type");
    if !matches!(kind, "" | "object") {
        let words =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        errors.push(FieldError::invalid(path.field("type"), kind, words));
    }
    if APART_FROM_STATUS.iter().any(|field| schema.has(field)) {
        let words = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength \
                     Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example \
                     XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the status \
                     subresource is enabled";
        errors.push(FieldError::invalid(path, schema.clone(), words));
    }
}

fn subresources(subresources: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let scale = &subresources["scale"];
    if scale.is_null() {
        return;
    }
    let at = path.field("scale");
    for (field, root, required) in [
        ("specReplicasPath", ".spec.", true),
        ("statusReplicasPath", ".status.", true),
        ("labelSelectorPath", "", false),
    ] {
        let (text, at) = (scale.text(field), at.field(field));
        let fields = JsonPath::parse(text).ok().and_then(|path| path.fields());
        let rooted = text.starts_with(root) && (required || text.starts_with(".spec.") || text.starts_with(".status."));
        match text {
            "" if required => errors.push(FieldError::required(at, "")),
            "" => {}
            _ if fields.is_none() => {
                errors.push(FieldError::invalid(at, text, "is an invalid json path"));
            }
            _ if !rooted => {
                let words = match field {
                    "labelSelectorPath" => "should be a json path under either .spec or .status",
                    "specReplicasPath" => "should be a json path under .spec",
                    _ => "should be a json path under .status",
                };
                errors.push(FieldError::invalid(at, text, words));
            }
            _ => {}
        }
    }
}

fn column_of(column: &Value, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    if column.text("name").is_empty() {
        errors.push(FieldError::required(path.field("name"), ""));
    }
    let (kind, at) = (column.text("type"), path.field("type"));
    let words = format!("must be one of {}", COLUMN_TYPES.join(","));
    if kind.is_empty() {
        errors.push(FieldError::required(at, words));
    } else if !COLUMN_TYPES.contains(&kind) {
        errors.push(FieldError::invalid(at, kind, words));
    }
    let format = column.text("format");
    if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
        let words = format!("must be one of {}", COLUMN_FORMATS.join(","));
        errors.push(FieldError::invalid(path.field("format"), format, words));
    }
    // Kubernetes names it so inside.
    let (text, at) = (column.text("jsonPath"), path.field("JSONPath"));
    if text.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !text.starts_with('.') {
        errors.push(FieldError::invalid(at, text, "must be a simple json path starting with ."));
    } else if let Err(why) = JsonPath::parse(text) {
        errors.push(FieldError::invalid(at, text, format!("is an invalid json path: {why}")));
    }
}

fn selectable(fields: &[Value], schema: &Schema, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let mut seen = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let item = path.index(index);
        let at = item.field("jsonPath");
        let text = field.text("jsonPath");
        if text.is_empty() {
            errors.push(FieldError::required(at, ""));
            continue;
        }
        let Some(names) = JsonPath::parse(text).ok().and_then(|path| path.fields()) else {
            errors.push(FieldError::invalid(at, text, "is an invalid path: it may name fields only"));
            continue;
        };
        let found = schema.at(&names);
        if names.first().is_some_and(|name| name == "metadata") {
            errors.push(FieldError::invalid(at, text, "must not point to fields in metadata"));
        } else if found.is_none() {
            errors.push(FieldError::invalid(at, text, "is an invalid path: does not refer to a valid field"));
        } else if !found.is_some_and(|field| matches!(field.kind, Some(Type::String | Type::Boolean | Type::Integer))) {
            let words = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(at, text, words));
        }
        if seen.contains(&names) {
            errors.push(FieldError::duplicate(at, text));
        }
        seen.push(names);
    }
    if seen.len() > MOST_SELECTABLE {
        errors.push(FieldError::too_many(path, seen.len(), MOST_SELECTABLE));
    }
}
