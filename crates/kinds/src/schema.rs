//! The table of fields: which fields every type has, of which type each is, and how patches merge it.
//!
//! Invariant: `schema/fields.txt` is generated and proved current by `tests/schema.rs`; types and fields are sorted.
//! It is read once, at the first request. The descriptions are kept compressed, for `kubectl explain` alone.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::OnceLock;

use serde_json::Value;

const TABLE: &str = include_str!("../schema/fields.txt");
const DESCRIPTIONS: &[u8] = include_bytes!("../schema/descriptions.txt.gz");

#[derive(Debug)]
pub(crate) struct Type {
    /// Such as `core.v1.ServicePort`.
    pub(crate) name: &'static str,
    /// Appliers own it as a whole.
    pub(crate) atomic: bool,
    /// Sorted by name.
    pub(crate) fields: Vec<Field>,
    /// Which of them protobuf has, as indices in the order of their numbers.
    numbered: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
    /// An empty value is not an absent one.
    pub(crate) pointer: bool,
    /// Kept even when empty.
    pub(crate) always: bool,
    /// Go holds the struct or the time in its owner itself, so that it is always written.
    pub(crate) by_value: bool,
    /// The Go type that error messages name, where it is not the shape's own.
    pub(crate) go: Option<&'static str>,
    /// Strategic merge merges the items of this list instead of replacing it …
    pub(crate) merge: bool,
    /// … by the value of this field; without one, items are scalars.
    pub(crate) merge_key: Option<&'static str>,
    /// Strategic merge: the patch names, in `$retainKeys`, the only fields to stay.
    pub(crate) retain_keys: bool,
    /// `set` or `atomic`: whether appliers own its items or all of it.
    pub(crate) list_type: Option<&'static str>,
    pub(crate) list_map_keys: Vec<&'static str>,
    /// Its number in protobuf; `[2, 4]` is field 4 of a message that only protobuf has, in field 2.
    pub(crate) tag: Vec<u64>,
    /// `atomic` or `granular`: whether appliers own it as a whole.
    pub(crate) map_type: Option<&'static str>,
    /// What it is where it is left out, as OpenAPI says and keys of lists have it; if not what is empty of its shape.
    pub(crate) default: Option<Value>,
    /// Required, but a pointer, so that nothing is its default.
    pub(crate) undefaulted: bool,
    /// All values that it, or each of its items, may have; empty if they are not enumerated.
    pub(crate) choices: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scalar {
    String,
    Bool,
    Int32,
    Int64,
    Float64,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    /// The fields of `managedFields`.
    Any,
    /// Any JSON.
    Json,
}

#[derive(Debug)]
pub(crate) enum Shape {
    Scalar(Scalar),
    /// Index into the table's types.
    Object(usize),
    List(Box<Shape>),
    Map(Box<Shape>),
}

impl Type {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &self.fields[index])
    }

    /// The fields that protobuf has, in the order of their numbers.
    pub(crate) fn numbered(&self) -> impl Iterator<Item = &Field> {
        self.numbered.iter().map(|index| &self.fields[*index])
    }

    /// Go's name: `v1.ServicePort`; all packages here end in their version.
    pub(crate) fn go_name(&self) -> &'static str {
        let (package, _) = self.name.rsplit_once('.').unwrap_or_default();
        let (group, _) = package.rsplit_once('.').unwrap_or_default();
        &self.name[group.len() + 1..]
    }

    /// `ServicePort`.
    pub(crate) fn short_name(&self) -> &'static str {
        self.name.rsplit_once('.').map_or(self.name, |(_, short)| short)
    }
}

#[derive(Debug)]
pub(crate) struct Table {
    /// Sorted by name.
    pub(crate) types: Vec<Type>,
}

impl Table {
    pub(crate) fn find(&self, name: &str) -> Option<&Type> {
        self.types.binary_search_by(|t| t.name.cmp(name)).ok().map(|index| &self.types[index])
    }
}

pub(crate) fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| parse(TABLE))
}

fn parse(text: &'static str) -> Table {
    let header = |line: &'static str| line.strip_suffix(" atomic").map_or((line, false), |name| (name, true));
    let names: Vec<&'static str> =
        text.lines().filter(|line| !line.starts_with(' ')).map(|line| header(line).0).collect();
    let mut types: Vec<Type> = Vec::with_capacity(names.len());
    for line in text.lines() {
        match (line.strip_prefix(' '), types.last_mut()) {
            (Some(field), Some(owner)) => owner.fields.push(parse_field(field, &names)),
            _ => {
                let (name, atomic) = header(line);
                types.push(Type { name, atomic, fields: Vec::new(), numbered: Vec::new() });
            }
        }
    }
    for Type { fields, numbered, .. } in &mut types {
        numbered.extend((0..fields.len()).filter(|index| !fields[*index].tag.is_empty()));
        numbered.sort_by_key(|index| &fields[*index].tag);
    }
    Table { types }
}

fn parse_field(line: &'static str, names: &[&'static str]) -> Field {
    let mut words = line.split(' ');
    let mut field = Field {
        name: words.next().unwrap_or_default(),
        shape: parse_shape(words.next().unwrap_or_default(), names),
        required: false,
        pointer: false,
        always: false,
        by_value: false,
        go: None,
        merge: false,
        merge_key: None,
        retain_keys: false,
        list_type: None,
        list_map_keys: Vec::new(),
        tag: Vec::new(),
        map_type: None,
        default: None,
        undefaulted: false,
        choices: Vec::new(),
    };
    for word in words {
        match word.split_once('=') {
            None if word == "!" => {
                field.required = true;
                field.always = true;
            }
            None if word == "*" => field.pointer = true,
            None if word == "+" => field.always = true,
            Some(("", "")) => field.by_value = true,
            None if word == "merge" => field.merge = true,
            None if word == "retainKeys" => field.retain_keys = true,
            Some(("go", name)) => field.go = Some(name),
            Some(("merge", key)) => {
                field.merge = true;
                field.merge_key = Some(key);
            }
            Some(("keys", keys)) => field.list_map_keys = keys.split(',').collect(),
            Some(("list", kind)) => field.list_type = Some(kind),
            Some(("map", kind)) => field.map_type = Some(kind),
            None if word == "~" => field.undefaulted = true,
            None if word == "^" => field.always = false,
            Some(("default", value)) => field.default = serde_json::from_str(value).ok(),
            Some(("enum", choices)) => field.choices = choices.split(',').collect(),
            Some(("pb", tag)) => field.tag = tag.split('.').filter_map(|number| number.parse().ok()).collect(),
            _ => {}
        }
    }
    field
}

fn parse_shape(word: &str, names: &[&'static str]) -> Shape {
    if let Some(item) = word.strip_prefix("[]") {
        return Shape::List(Box::new(parse_shape(item, names)));
    }
    if let Some(item) = word.strip_prefix("{}") {
        return Shape::Map(Box::new(parse_shape(item, names)));
    }
    Shape::Scalar(match word {
        "string" => Scalar::String,
        "bool" => Scalar::Bool,
        "int32" => Scalar::Int32,
        "int64" => Scalar::Int64,
        "float64" => Scalar::Float64,
        "bytes" => Scalar::Bytes,
        "time" => Scalar::Time,
        "microtime" => Scalar::MicroTime,
        "quantity" => Scalar::Quantity,
        "intstr" => Scalar::IntOrString,
        "json" => Scalar::Json,
        name => match names.binary_search(&name) {
            Ok(index) => return Shape::Object(index),
            Err(_) => Scalar::Any,
        },
    })
}

/// Descriptions by type, then by field (`""` is the type's own). Decompressed at every call.
pub(crate) fn descriptions() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut text = String::new();
    let mut all: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    if flate2::read::GzDecoder::new(DESCRIPTIONS).read_to_string(&mut text).is_err() {
        return all;
    }
    let unescape = |text: &str| text.replace("\\n", "\n").replace("\\\\", "\\");
    let mut owner = String::new();
    for line in text.lines() {
        let (inner, line) = line.strip_prefix(' ').map_or((false, line), |rest| (true, rest));
        let (name, description) = line.split_once(' ').unwrap_or((line, ""));
        if inner {
            all.entry(owner.clone()).or_default().insert(name.to_owned(), unescape(description));
        } else {
            owner = name.to_owned();
            all.entry(owner.clone()).or_default().insert(String::new(), unescape(description));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorted_and_complete() {
        let table = table();
        assert!(table.types.is_sorted_by_key(|t| t.name));
        for t in &table.types {
            assert!(t.fields.is_sorted_by_key(|f| f.name), "{}", t.name);
        }
        let port = table.find("core.v1.ServicePort").unwrap();
        assert_eq!((port.go_name(), port.short_name()), ("v1.ServicePort", "ServicePort"));
        assert!(port.field("port").unwrap().required);
        let ports = table.find("core.v1.ServiceSpec").unwrap().field("ports").unwrap();
        assert_eq!((ports.merge_key, ports.list_map_keys.as_slice()), (Some("port"), ["port", "protocol"].as_slice()));
        assert_eq!(port.field("protocol").unwrap().default, Some("TCP".into()));
        let references = ["core.v1.ObjectReference", "meta.v1.OwnerReference", "meta.v1.LabelSelector"];
        assert!(references.iter().all(|name| table.find(name).unwrap().atomic));
        assert!(!port.atomic);
        for kind in crate::all() {
            assert!(table.find(kind.type_name()).is_some(), "{}", kind.kind);
        }
        // The only field without a known shape is the one that has none.
        let any: Vec<String> = table
            .types
            .iter()
            .flat_map(|t| t.fields.iter().map(move |f| (t, f)))
            .filter(|(_, f)| matches!(f.shape, Shape::Scalar(Scalar::Any)))
            .map(|(t, f)| format!("{}.{}", t.name, f.name))
            .collect();
        assert_eq!(any, ["meta.v1.ManagedFieldsEntry.fieldsV1"]);
    }

    #[test]
    fn descriptions_decompress() {
        let all = descriptions();
        assert!(
            all["core.v1.ServiceSpec"]["clusterIPs"].contains("that clusterIPs[0] and clusterIP have the same value")
        );
        assert!(all["core.v1.Service"][""].starts_with("Service is a named abstraction"));
        assert!(all["core.v1.ServicePort"]["port"].starts_with("The port that will be exposed"));
    }
}
