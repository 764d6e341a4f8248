//! A simple JSON path, such as `.spec.replicas` or `.status.conditions[?(@.type=="Ready")].status` -> the value there.
//!
//! Deliberately not here: `..`, slices, and all that finds more than printer columns and subresources need; a path with
//! those finds nothing.
//! Source: `client-go/util/jsonpath`, of which printer columns may use what is meant here.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Field(String),
    /// From the end, if it is negative.
    Index(i64),
    All,
    /// The items of which a field has a value.
    Where(Vec<String>, bool, Value),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JsonPath(Vec<Step>);

impl JsonPath {
    /// # Errors
    /// Says what is no path.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        let mut rest = text.strip_prefix('$').unwrap_or(text);
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let (name, left) = name(after);
                match name.as_str() {
                    "" if left.starts_with('[') && !after.is_empty() => {}
                    "" => return Err(format!("unexpected end of the path at {rest:?}")),
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
                rest = left;
            } else if let Some(after) = rest.strip_prefix('[') {
                let close = if after.starts_with('?') { ")]" } else { "]" };
                let Some((inside, left)) = after.split_once(close) else { return Err("unterminated array".to_owned()) };
                steps.push(bracket(inside.trim()).ok_or_else(|| format!("invalid array index {inside}"))?);
                rest = left;
            } else {
                return Err(format!("unexpected {:?} in the path", rest.chars().next().unwrap_or_default()));
            }
        }
        Ok(Self(steps))
    }

    /// The names, if the path consists of nothing else.
    pub(crate) fn fields(&self) -> Option<Vec<String>> {
        self.0.iter().map(|step| if let Step::Field(name) = step { Some(name.clone()) } else { None }).collect()
    }

    /// The first value there is.
    pub(crate) fn find<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        first(&self.0, value)
    }
}

fn first<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step {
        Step::Field(name) => first(rest, value.get(name)?),
        Step::Index(index) => {
            let items = value.as_array()?;
            let length = i64::try_from(items.len()).ok()?;
            let index = if *index < 0 { length + index } else { *index };
            first(rest, items.get(usize::try_from(index).ok()?)?)
        }
        Step::All => match value {
            Value::Array(items) => items.iter().find_map(|item| first(rest, item)),
            Value::Object(map) => map.values().find_map(|item| first(rest, item)),
            _ => None,
        },
        Step::Where(path, equal, wanted) => value.as_array()?.iter().find_map(|item| {
            let found = path.iter().try_fold(item, |item, name| item.get(name));
            let fits = found.is_some_and(|found| (found == wanted) == *equal);
            if fits { first(rest, item) } else { None }
        }),
    }
}

/// A field's name, in which a backslash keeps the next character from ending it; and what follows.
fn name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(character),
        }
    }
    (name, "")
}

fn bracket(inside: &str) -> Option<Step> {
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(quoted) = quoted(inside) {
        return Some(Step::Field(quoted));
    }
    if let Some(condition) = inside.strip_prefix("?(") {
        let (left, equal, right) = match condition.split_once("==") {
            Some((left, right)) => (left, true, right),
            None => condition.split_once("!=").map(|(left, right)| (left, false, right))?,
        };
        let path = JsonPath::parse(left.trim().strip_prefix('@')?).ok()?.fields()?;
        let right = right.trim();
        let wanted = match quoted(right) {
            Some(text) => Value::String(text),
            None => serde_json::from_str(right).ok()?,
        };
        return Some(Step::Where(path, equal, wanted));
    }
    inside.parse().ok().map(Step::Index)
}

fn quoted(text: &str) -> Option<String> {
    ['"', '\''].iter().find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths() {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "x"}}, "spec": {"replicas": 3, "list": [{"n": "a"}, {"n": "b"}]},
            "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}
        });
        for (path, expected) in [
            (".spec.replicas", json!(3)),
            (".spec.absent", json!(null)),
            (".spec.list[1].n", json!("b")),
            (".spec.list[-1].n", json!("b")),
            (".spec.list[*].n", json!("a")),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!("True")),
            (r#".status.conditions[?(@.type!='Ready')].status"#, json!("False")),
            (r".metadata.annotations.a\.b/c", json!("x")),
            (".metadata.annotations['a.b/c']", json!("x")),
        ] {
            let found = JsonPath::parse(path).unwrap().find(&object).cloned().unwrap_or_default();
            assert_eq!(found, expected, "{path}");
        }
        for path in ["spec", ".", ".spec.", ".a[", ".a[x]", ".a..b"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert_eq!(JsonPath::parse(".spec.replicas").unwrap().fields().unwrap(), ["spec", "replicas"]);
    }
}
