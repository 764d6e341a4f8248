//! Proves that the table of fields in `schema/` is what the sources it comes from say, and remakes it with
//! `UPDATE_EXPECT=1`.
//!
//! `k8s-openapi` (as text) says which fields a type has, of which type, and what they mean; the doc comments of
//! `k8s-pb` carry the markers for patches and lists and the protobuf tags; `schema/go-facts.txt` says what only the Go
//! types know: names of string types, which scalars are pointers (`*`), which are always written (`+`), which may be
//! left out (`-`), which are required and not written when empty (`^`), which structs and times stand in their owner
//! itself (`=`), and what OpenAPI has for a default.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

/// Types that are served, and those that requests and answers carry beside them.
const ROOTS: &[&str] = &[
    "apiextensions.v1.CustomResourceDefinition",
    "apps.v1.Deployment",
    "apps.v1.ReplicaSet",
    "authentication.v1.SelfSubjectReview",
    "authentication.v1.TokenRequest",
    "authentication.v1.TokenReview",
    "authorization.v1.LocalSubjectAccessReview",
    "authorization.v1.SelfSubjectAccessReview",
    "authorization.v1.SelfSubjectRulesReview",
    "authorization.v1.SubjectAccessReview",
    "autoscaling.v1.Scale",
    "coordination.v1.Lease",
    "core.v1.Binding",
    "core.v1.ConfigMap",
    "core.v1.Endpoints",
    "core.v1.Event",
    "core.v1.Namespace",
    "core.v1.Node",
    "core.v1.Pod",
    "core.v1.Secret",
    "core.v1.Service",
    "core.v1.ServiceAccount",
    "discovery.v1.EndpointSlice",
    "events.v1.Event",
    "meta.v1.DeleteOptions",
    "meta.v1.ListMeta",
    "meta.v1.Status",
    "networking.v1.IPAddress",
    "networking.v1.Ingress",
    "networking.v1.IngressClass",
    "networking.v1.ServiceCIDR",
    "policy.v1.Eviction",
    "rbac.v1.ClusterRole",
    "rbac.v1.ClusterRoleBinding",
    "rbac.v1.Role",
    "rbac.v1.RoleBinding",
];

struct Field {
    name: String,
    kind: String,
    required: bool,
    description: String,
}

struct Type {
    description: String,
    fields: Vec<Field>,
}

#[derive(Default, Clone)]
struct Marks {
    strategy: Vec<String>,
    merge_key: String,
    list: String,
    map: String,
    keys: Vec<String>,
    default: String,
    tag: String,
}

/// A protobuf message: whether it is owned as a whole, and of each field its marks and, for a message, its type.
struct Message {
    atomic: bool,
    fields: Vec<(String, Marks, String)>,
}

#[test]
fn table_is_current() {
    let Some((openapi, pb)) = sources() else { return };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema");
    let facts = std::fs::read_to_string(here.join("go-facts.txt")).unwrap();
    let facts: BTreeMap<&str, &str> =
        facts.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once(' ')).collect();

    let header = header_words(&pb);
    let mut types = BTreeMap::new();
    let mut todo: Vec<String> = ROOTS.iter().map(|r| (*r).to_owned()).collect();
    while let Some(name) = todo.pop() {
        if types.contains_key(&name) {
            continue;
        }
        let parsed = parse_type(&openapi, &name, &header);
        for field in &parsed.fields {
            let element = field.kind.trim_start_matches("[]").trim_start_matches("{}");
            if element.contains('.') {
                todo.push(element.to_owned());
            }
        }
        types.insert(name, parsed);
    }

    let mut messages = BTreeMap::new();
    let packages: BTreeSet<&str> = types.keys().map(|name| name.rsplit_once('.').unwrap().0).collect();
    for package in packages {
        let path = match package {
            "apiextensions.v1" => "src/apiextensions_apiserver/pkg/apis/apiextensions/v1/mod.rs".to_owned(),
            "meta.v1" => "src/apimachinery/pkg/apis/meta/v1/mod.rs".to_owned(),
            other => format!("src/api/{}/mod.rs", other.replace('.', "/")),
        };
        parse_messages(&std::fs::read_to_string(pb.join(path)).unwrap(), package, &mut messages);
    }

    let mut table = String::new();
    let mut descriptions = String::new();
    for (name, parsed) in &types {
        let atomic = messages.get(&message_key(name)).is_some_and(|message| message.atomic);
        writeln!(table, "{name}{}", if atomic { " atomic" } else { "" }).unwrap();
        writeln!(descriptions, "{name} {}", escape(&parsed.description)).unwrap();
        for field in &parsed.fields {
            writeln!(descriptions, " {} {}", field.name, escape(&field.description)).unwrap();
            let mut line = format!(" {} {}", field.name, field.kind);
            let fact = facts.get(format!("{name}.{}", field.name).as_str());
            if field.required && !fact.is_some_and(|fact| fact.split(' ').any(|word| word == "-")) {
                line.push_str(" !");
            }
            if let Some(fact) = fact {
                for word in fact.split(' ') {
                    match word {
                        "-" => {}
                        "*" | "+" | "=" | "!" | "~" | "^" => write!(line, " {word}").unwrap(),
                        tag if ["pb=", "enum=", "default=", "list="].iter().any(|name| tag.starts_with(name)) => {
                            write!(line, " {tag}").unwrap();
                        }
                        go => write!(line, " go={go}").unwrap(),
                    }
                }
            }
            if let Some(marks) = marks(&messages, name, &field.name, &parsed.fields) {
                write_marks(&mut line, &marks);
            }
            let of_json_alone = ["apiVersion", "kind"].contains(&field.name.as_str());
            assert!(of_json_alone || line.contains(" pb="), "no protobuf tag for {name}.{}", field.name);
            writeln!(table, "{line}").unwrap();
        }
    }

    let table_file = here.join("fields.txt");
    let description_file = here.join("descriptions.txt.gz");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&table_file, &table).unwrap();
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(descriptions.as_bytes()).unwrap();
        std::fs::write(&description_file, gz.finish().unwrap()).unwrap();
    }
    assert!(std::fs::read_to_string(&table_file).unwrap() == table, "schema/fields.txt is stale: UPDATE_EXPECT=1");
    let mut kept = String::new();
    flate2::read::GzDecoder::new(std::fs::File::open(&description_file).unwrap()).read_to_string(&mut kept).unwrap();
    assert!(kept == descriptions, "schema/descriptions.txt.gz is stale: UPDATE_EXPECT=1");
}

/// Where cargo keeps the sources of `k8s-openapi` (the folder of its Kubernetes version) and `k8s-pb`.
fn sources() -> Option<(PathBuf, PathBuf)> {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(std::env::var_os("CI").is_none(), "cargo metadata failed: {why}");
        eprintln!("skipped: the sources of the table are not here: {why}");
        return None;
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let folder = |name: &str| {
        let package = metadata["packages"].as_array().unwrap().iter().find(|p| p["name"] == name).unwrap();
        Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
    };
    Some((folder("k8s-openapi").join("src/v1_36"), folder("k8s-pb")))
}

fn escape(text: &str) -> String {
    // What rustdoc would take for a link or a tag.
    let text =
        ["[", "]", "<", ">"].into_iter().fold(text.to_owned(), |text, sign| text.replace(&format!("\\{sign}"), sign));
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

/// What `api_version` and `kind` mean, which `k8s-openapi` leaves out.
fn header_words(pb: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(pb.join("src/apimachinery/pkg/apis/meta/v1/mod.rs")).unwrap();
    let (_, text) = text.split_once("pub struct TypeMeta {").unwrap();
    let mut words = BTreeMap::new();
    let mut doc = Vec::new();
    for line in text.lines().map(str::trim).take_while(|line| *line != "}") {
        if let Some(comment) = line.strip_prefix("/// ").filter(|comment| !comment.starts_with('+')) {
            doc.push(comment.replace(['<', '>'], ""));
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|field| field.split_once(':')) {
            words.insert(name.to_owned(), std::mem::take(&mut doc).join(" "));
        }
    }
    words
}

/// Reads a type of `k8s-openapi`: `name` is such as `core.v1.ServicePort`.
fn parse_type(root: &Path, name: &str, header: &BTreeMap<String, String>) -> Type {
    let (package, short) = name.rsplit_once('.').unwrap();
    let folder = match package {
        "apiextensions.v1" => root.join("apiextensions_apiserver/pkg/apis/apiextensions/v1"),
        "meta.v1" => root.join("apimachinery/pkg/apis/meta/v1"),
        other => root.join("api").join(other.replace('.', "/")),
    };
    let wanted = format!("pub struct {short} {{");
    let text = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default())
        .find(|text| text.contains(&wanted))
        .unwrap_or_else(|| panic!("no {wanted} in {}", folder.display()));

    // `"wireName" => Field::Key_rust_name,`
    let mut wire: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines() {
        if let Some((key, rust)) = line.trim().split_once(" => Field::Key_")
            && let Some(key) = key.strip_prefix('"').and_then(|k| k.strip_suffix('"'))
        {
            wire.insert(rust.trim_end_matches(','), key);
        }
    }
    let mut fields = Vec::new();
    for key in ["api_version", "kind"] {
        if let Some(name) = wire.get(key)
            && !text.contains(&format!("    pub {key}: "))
        {
            fields.push(Field {
                name: (*name).to_owned(),
                kind: "string".to_owned(),
                required: false,
                description: header[key].clone(),
            });
        }
    }
    let mut description = String::new();
    let mut doc = String::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(comment) = line.strip_prefix("///") {
            if !doc.is_empty() {
                doc.push('\n');
            }
            doc.push_str(comment.strip_prefix(' ').unwrap_or(comment));
        } else if line == wanted {
            description = std::mem::take(&mut doc);
            inside = true;
        } else if inside && line == "}" {
            break;
        } else if inside && let Some(rest) = line.strip_prefix("pub ") {
            let (rust, kind) = rest.trim_end_matches(',').split_once(": ").unwrap();
            let (kind, required) = match kind.strip_prefix("Option<").and_then(|k| k.strip_suffix('>')) {
                Some(inner) => (inner, false),
                None => (kind, true),
            };
            fields.push(Field {
                name: wire[rust.trim_start_matches("r#")].to_owned(),
                kind: kind_name(kind),
                required,
                description: std::mem::take(&mut doc),
            });
        }
    }
    fields.sort_by(|a, b| a.name.cmp(&b.name));
    Type { description, fields }
}

/// A Rust type of `k8s-openapi` in the table's words.
fn kind_name(rust: &str) -> String {
    if let Some(inner) = rust.strip_prefix("std::vec::Vec<").and_then(|r| r.strip_suffix('>')) {
        return format!("[]{}", kind_name(inner));
    }
    if let Some(inner) = rust.strip_prefix("std::boxed::Box<").and_then(|r| r.strip_suffix('>')) {
        return kind_name(inner);
    }
    if let Some(inner) =
        rust.strip_prefix("std::collections::BTreeMap<std::string::String, ").and_then(|r| r.strip_suffix('>'))
    {
        return format!("{{}}{}", kind_name(inner));
    }
    match rust {
        "std::string::String" => "string".to_owned(),
        "bool" => "bool".to_owned(),
        "i32" => "int32".to_owned(),
        "i64" => "int64".to_owned(),
        "f64" => "float64".to_owned(),
        "crate::ByteString" => "bytes".to_owned(),
        "crate::apimachinery::pkg::apis::meta::v1::Time" => "time".to_owned(),
        "crate::apimachinery::pkg::apis::meta::v1::MicroTime" => "microtime".to_owned(),
        "crate::apimachinery::pkg::apis::meta::v1::FieldsV1" => "any".to_owned(),
        "crate::apimachinery::pkg::api::resource::Quantity" => "quantity".to_owned(),
        "crate::apimachinery::pkg::util::intstr::IntOrString" => "intstr".to_owned(),
        other => {
            let parts: Vec<&str> = other.split("::").collect();
            match parts[parts.len() - 3..].join(".").as_str() {
                "apiextensions.v1.JSON"
                | "apiextensions.v1.JSONSchemaPropsOrBool"
                | "apiextensions.v1.JSONSchemaPropsOrStringArray"
                | "apiextensions.v1.CustomResourceSubresourceStatus" => "json".to_owned(),
                // A list of schemas is not structural, so that there is only one.
                "apiextensions.v1.JSONSchemaPropsOrArray" => "apiextensions.v1.JSONSchemaProps".to_owned(),
                name => name.to_owned(),
            }
        }
    }
}

/// Reads the messages of one protobuf package out of what prost made of it.
/// Go's `HTTPGetAction` is `HttpGetAction` there.
fn message_key(name: &str) -> String {
    name.to_lowercase()
}

fn parse_messages(text: &str, package: &str, messages: &mut BTreeMap<String, Message>) {
    let mut current: Option<String> = None;
    let mut marks = Marks::default();
    let mut attribute = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let mut line = line.trim().to_owned();
        if line == "}" {
            current = None;
        } else if let Some(name) = line.strip_prefix("pub struct ").and_then(|l| l.strip_suffix(" {")) {
            let atomic = std::mem::take(&mut marks).map == "atomic";
            let key = message_key(&format!("{package}.{name}"));
            current = Some(key.clone());
            messages.insert(key, Message { atomic, fields: Vec::new() });
        } else if let Some(comment) = line.strip_prefix("/// +") {
            match comment.split_once('=') {
                Some(("patchStrategy", v)) => marks.strategy = v.split(',').map(str::to_owned).collect(),
                Some(("patchMergeKey", v)) => marks.merge_key = v.to_owned(),
                Some(("listType", v)) => marks.list = v.to_owned(),
                Some(("mapType" | "structType", v)) => marks.map = v.to_owned(),
                Some(("listMapKey", v)) => marks.keys.push(v.to_owned()),
                Some(("default", v)) => marks.default = v.to_owned(),
                _ => {}
            }
        } else if line.starts_with("#[prost(") {
            while !line.ends_with(']') {
                line.push_str(lines.next().unwrap().trim());
            }
            attribute = line;
        } else if let (Some(owner), Some(rest)) = (&current, line.strip_prefix("pub ")) {
            let (field, kind) = rest.split_once(':').unwrap();
            let mut kind = kind.trim().to_owned();
            while !kind.ends_with(',') {
                kind.push_str(lines.next().unwrap().trim());
            }
            marks.tag = attribute
                .split_once("tag = \"")
                .and_then(|(_, rest)| rest.split_once('"'))
                .map(|(tag, _)| tag.to_owned())
                .unwrap_or_default();
            let target = kind.trim_end_matches(',').trim_end_matches('>').to_owned();
            let target = target.rsplit('<').next().unwrap().to_owned();
            let field = field.trim_start_matches("r#").replace('_', "").to_lowercase();
            messages.get_mut(owner).unwrap().fields.push((field, std::mem::take(&mut marks), target));
        }
    }
}

/// The marks of a field; fields that Go embeds are looked up in the message that protobuf nests for them.
fn marks(messages: &BTreeMap<String, Message>, owner: &str, field: &str, siblings: &[Field]) -> Option<Marks> {
    let message = messages.get(&message_key(owner))?;
    let wanted = field.to_lowercase();
    if let Some((_, marks, _)) = message.fields.iter().find(|(name, ..)| *name == wanted) {
        return Some(marks.clone());
    }
    for (name, marks_of_nested, target) in &message.fields {
        if siblings.iter().any(|sibling| sibling.name.to_lowercase() == *name) {
            continue;
        }
        let (package, _) = owner.rsplit_once('.').unwrap();
        let short = target.rsplit("::").next().unwrap();
        if let Some(mut found) = marks(messages, &format!("{package}.{short}"), field, siblings) {
            found.tag = format!("{}.{}", marks_of_nested.tag, found.tag);
            return Some(found);
        }
    }
    None
}

fn write_marks(line: &mut String, marks: &Marks) {
    for strategy in &marks.strategy {
        match (strategy.as_str(), marks.merge_key.as_str()) {
            ("merge", "") => line.push_str(" merge"),
            ("merge", key) => write!(line, " merge={key}").unwrap(),
            (other, _) => write!(line, " {other}").unwrap(),
        }
    }
    match marks.list.as_str() {
        "" => {}
        "map" => write!(line, " keys={}", marks.keys.join(",")).unwrap(),
        other => write!(line, " list={other}").unwrap(),
    }
    if !marks.map.is_empty() {
        write!(line, " map={}", marks.map).unwrap();
    }
    // Others name a constant, whose value is among the facts.
    if marks.default.starts_with('"') && !line.contains(" default=") {
        write!(line, " default={}", marks.default).unwrap();
    }
    if !marks.tag.is_empty() {
        write!(line, " pb={}", marks.tag).unwrap();
    }
}
