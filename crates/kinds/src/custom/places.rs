//! Where in an object a value stands: what it was before an update, and how paths in a definition name it.
//!
//! Source: `CorrelatedObject` of `k8s.io/apiserver/pkg/cel/common`, `ValidFieldPath` of apiextensions-apiserver.

use serde_json::Value;

use crate::look::Look;

/// What a value was before, as far as that can be told.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) old: Option<&'a Value>,
    /// What it is part of, then and now.
    pub(super) parent: Option<(&'a Value, Option<&'a Value>)>,
}

impl<'a> Place<'a> {
    /// The place of a field of `whole`, which stands here.
    pub(super) fn field(self, whole: &'a Value, name: &str) -> Self {
        // Both are converted to one version before they get here, so of these two nobody can see a change.
        if self.parent.is_none() && matches!(name, "apiVersion" | "kind") {
            return Self { old: None, parent: None };
        }
        Self { old: self.old.and_then(|old| old.get(name)), parent: Some((whole, self.old)) }
    }

    /// Whether an update left the value as it was.
    pub(super) fn is_unchanged(self, value: &Value) -> bool {
        match (self.old, self.parent) {
            (Some(old), _) => old == value,
            (None, Some((whole, Some(old)))) => whole == old,
            (None, _) => false,
        }
    }
}

/// The fields by which items of a list are told apart, if they are.
pub(super) fn list_keys(schema: &Value) -> Option<Vec<String>> {
    let is_map = schema.text("x-kubernetes-list-type") == "map";
    let keys = schema.list("x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(str::to_owned);
    is_map.then(|| keys.collect())
}

/// The item of a list that is about the same as this one.
pub(super) fn same_item<'a>(keys: &[String], item: &Value, list: &'a Value) -> Option<&'a Value> {
    let same = |other: &&Value| other.is_object() && keys.iter().all(|key| item.get(key) == other.get(key));
    list.as_array()?.iter().find(same)
}

/// A path such as `.spec.ports['a']` as errors name it.
///
/// # Errors
/// Says what is wrong with a path that leads to nothing in the schema.
pub(super) fn field_path(path: &str, schema: &Value) -> Result<String, String> {
    let (mut shown, mut schema, mut rest) = (String::new(), schema, path);
    if path.is_empty() {
        return Err("unexpected end of JSON path".to_owned());
    }
    while !rest.is_empty() {
        let name = if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            rest = &after[end..];
            after[..end].to_owned()
        } else if let Some(after) = rest.strip_prefix("['") {
            let (name, left) = quoted(after).ok_or("unexpected end of JSON path")?;
            rest = left.strip_prefix(']').ok_or("expected ]")?;
            name
        } else {
            return Err(format!("expected [ or . but got: {rest}"));
        };
        let named = schema["properties"].is_object();
        let of = if named { schema["properties"].get(&name) } else { Some(&schema["additionalProperties"]) };
        schema = of.filter(|of| of.is_object()).ok_or("does not refer to a valid field")?;
        match (named, shown.as_str()) {
            (true, "") => shown = name,
            (true, _) => shown = format!("{shown}.{name}"),
            (false, _) => shown = format!("{shown}[{name}]"),
        }
    }
    Ok(shown)
}

/// A text up to its quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\'' => return Some((name, &text[at + 1..])),
            '\\' => name.push(match characters.next()?.1 {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                plain @ ('\'' | '\\') => plain,
                _ => return None,
            }),
            other => name.push(other),
        }
    }
    None
}
