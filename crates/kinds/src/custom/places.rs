//! Where in an object a value stands: what it was before an update, and how paths in a definition name it.
//!
//! Source: `CorrelatedObject` of `k8s.io/apiserver/pkg/cel/common`, `ValidFieldPath` of apiextensions-apiserver.

use std::cell::OnceCell;
use std::collections::HashMap;

use serde_json::Value;

use crate::look::Look;

/// What a value was before, as far as that can be told.
#[derive(Clone, Copy)]
pub(super) struct Place<'a, 'p> {
    pub(super) old: Option<&'a Value>,
    /// What it is part of.
    pub(super) parent: Option<&'p Whole<'a>>,
}

/// What has parts, now and before. Whether it is unchanged is asked for each of a hundred thousand parts, and found out
/// once.
pub(super) struct Whole<'a> {
    value: &'a Value,
    old: Option<&'a Value>,
    unchanged: OnceCell<bool>,
}

impl<'a> Whole<'a> {
    pub(super) fn new(value: &'a Value, old: Option<&'a Value>) -> Self {
        Self { value, old, unchanged: OnceCell::new() }
    }

    fn is_unchanged(&self) -> bool {
        *self.unchanged.get_or_init(|| self.old == Some(self.value))
    }
}

impl<'a> Place<'a, '_> {
    /// The place of a field of `whole`, which stands here.
    pub(super) fn field<'p>(self, whole: &'p Whole<'a>, name: &str) -> Place<'a, 'p> {
        // Both are converted to one version before they get here, so of these two nobody can see a change.
        if self.parent.is_none() && matches!(name, "apiVersion" | "kind") {
            return Place { old: None, parent: None };
        }
        Place { old: self.old.and_then(|old| old.get(name)), parent: Some(whole) }
    }

    /// Whether an update left the value as it was.
    pub(super) fn is_unchanged(self, value: &Value) -> bool {
        match (self.old, self.parent) {
            (Some(old), _) => old == value,
            (None, parent) => parent.is_some_and(Whole::is_unchanged),
        }
    }
}

/// The fields by which items of a list are told apart, if they are.
pub(super) fn list_keys(schema: &Value) -> Option<Vec<String>> {
    let is_map = schema.text("x-kubernetes-list-type") == "map";
    let keys = schema.list("x-kubernetes-list-map-keys").iter().filter_map(Value::as_str).map(str::to_owned);
    is_map.then(|| keys.collect())
}

/// The items of a list, to be found by what they are told apart by.
pub(super) struct Items<'a, 'k> {
    keys: &'k [String],
    known: HashMap<String, &'a Value>,
}

impl<'a, 'k> Items<'a, 'k> {
    /// Those of a list as it was, of which it is known what they are told apart by.
    pub(super) fn new(keys: Option<&'k [String]>, list: Option<&'a Value>) -> Self {
        let mut items = Self { keys: keys.unwrap_or_default(), known: HashMap::new() };
        let list = list.filter(|_| keys.is_some()).and_then(Value::as_array);
        for item in list.into_iter().flatten().filter(|item| item.is_object()) {
            items.known.entry(items.name(item)).or_insert(item);
        }
        items
    }

    fn name(&self, item: &Value) -> String {
        self.keys.iter().map(|key| item.get(key).map_or_else(String::new, Value::to_string) + ",").collect()
    }

    /// The one that is about the same as this.
    pub(super) fn same(&self, item: &Value) -> Option<&'a Value> {
        if self.known.is_empty() { None } else { self.known.get(&self.name(item)).copied() }
    }
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
