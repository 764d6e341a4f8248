//! What an expression yields. Lists and maps of the object are borrowed from its JSON and converted item by item, when
//! a rule looks at them.
//!
//! Source: `UnstructuredToVal` of `k8s.io/apiserver/pkg/cel/common`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use ipnet::IpNet;
use jiff::SignedDuration;
use jiff::civil::DateTime;
use serde_json::Value as Json;

use super::functions::{Semver, parse_date, parse_duration};
use super::library;
use super::room::Failure;
use super::shape::{Form, ListBy, Shape};
use super::types::Type;
use crate::quantity::Quantity;
use crate::url::Url;

/// Characters of a text that are shown where it is not what it should be.
const LONGEST_SHOWN: usize = 1024;

#[derive(Clone, Debug)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Rc<[u8]>),
    Duration(SignedDuration),
    /// In UTC, of the years 1 to 9999.
    Timestamp(DateTime),
    List(List<'a>),
    Map(Map<'a>),
    Type(Type),
    Optional(Option<Rc<Value<'a>>>),
    Ip(IpAddr),
    Cidr(IpNet),
    Url(Rc<Url>),
    Quantity(Quantity),
    Semver(Rc<Semver>),
    /// Index of one of the formats that have names.
    Format(usize),
}

/// A text of the object or of the rule, or one that was made.
#[derive(Clone, Debug)]
pub(crate) enum Text<'a> {
    Held(&'a str),
    Made(Rc<str>),
}

#[derive(Clone, Debug)]
pub(crate) enum List<'a> {
    Made { items: Rc<Vec<Value<'a>>>, by: &'a ListBy },
    Held { items: &'a [Json], of: &'a Arc<Shape>, by: &'a ListBy },
}

#[derive(Clone, Debug)]
pub(crate) enum Map<'a> {
    Made(Rc<BTreeMap<Key, Value<'a>>>),
    /// An object, or a map from texts, by its shape.
    Held(&'a serde_json::Map<String, Json>, &'a Arc<Shape>),
}

/// A key of a map that a rule made. Numbers that are equal are one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(String),
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Held(text) => text,
            Self::Made(text) => text,
        }
    }
}

impl<'a> Value<'a> {
    /// A value of the object, which has this shape.
    pub(crate) fn held(json: &'a Json, shape: &'a Arc<Shape>) -> Result<Self, Failure> {
        let wrong = |words: &str| Err(Failure::Other(format!("invalid data, {words}")));
        match (&shape.form, json) {
            (_, Json::Null) if shape.nullable => Ok(Self::Null),
            (_, Json::Null) => wrong("got null for schema with nullable=false"),
            (Form::IntOrString, Json::String(text)) => Ok(Self::String(Text::Held(text))),
            (Form::IntOrString, Json::Number(number)) if number.is_i64() => {
                Ok(Self::Int(number.as_i64().unwrap_or_default()))
            }
            (Form::IntOrString, _) => wrong("expected XIntOrString value to be either a string or integer"),
            (Form::Bool, Json::Bool(value)) => Ok(Self::Bool(*value)),
            (Form::Bool, _) => wrong("expected bool"),
            (Form::Int, Json::Number(number)) if number.is_i64() => Ok(Self::Int(number.as_i64().unwrap_or_default())),
            (Form::Int, _) => wrong("expected int"),
            (Form::Double, Json::Number(number)) => Ok(Self::Double(number.as_f64().unwrap_or_default())),
            (Form::Double, _) => wrong("expected float"),
            (Form::List { items: of, by }, Json::Array(items)) => Ok(Self::List(List::Held { items, of, by })),
            (Form::List { .. }, _) => wrong("expected an array for the provided schema with type=array"),
            (Form::Map(_) | Form::Object { .. }, Json::Object(map)) => Ok(Self::Map(Map::Held(map, shape))),
            (Form::Map(_) | Form::Object { .. }, _) => wrong("expected a map for the provided schema with type=object"),
            (form, Json::String(text)) => Self::held_text(text, form),
            _ => wrong("expected string"),
        }
    }

    fn held_text(text: &'a str, form: &Form) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::Other(format!("Invalid {what} {text:.LONGEST_SHOWN$}"));
        match form {
            Form::Bytes => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(text);
                bytes.map(|bytes| Self::Bytes(bytes.into())).map_err(|_| wrong("byte formatted string"))
            }
            Form::Duration => parse_duration(text).map(Self::Duration).ok_or_else(|| wrong("duration")),
            Form::Date => parse_date(text).map(Self::Timestamp).ok_or_else(|| wrong("date formatted string")),
            Form::DateTime => {
                crate::custom::date_time(text).map(Self::Timestamp).ok_or_else(|| wrong("date-time formatted string"))
            }
            _ => Ok(Self::String(Text::Held(text))),
        }
    }

    pub(super) fn text(text: impl Into<Rc<str>>) -> Self {
        Self::String(Text::Made(text.into()))
    }

    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(List::Made { items: Rc::new(items), by: &ListBy::Place })
    }

    pub(super) fn some(value: Self) -> Self {
        Self::Optional(Some(Rc::new(value)))
    }

    pub(crate) fn as_text(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// Characters, bytes, items or entries; 1 of all else.
    pub(super) fn size(&self) -> u64 {
        let size = match self {
            Self::String(text) => text.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.len(),
            Self::Map(map) => map.len(),
            Self::Optional(Some(value)) => return value.size(),
            Self::Ip(ip) => {
                if ip.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            Self::Cidr(cidr) => usize::from(cidr.prefix_len()).div_ceil(8),
            _ => 1,
        };
        size as u64
    }

    /// The type at run time, of lists and maps without what is in them.
    pub(super) fn kind(&self) -> Type {
        match self {
            Self::Null => Type::Null,
            Self::Bool(_) => Type::Bool,
            Self::Int(_) => Type::Int,
            Self::Uint(_) => Type::Uint,
            Self::Double(_) => Type::Double,
            Self::String(_) => Type::String,
            Self::Bytes(_) => Type::Bytes,
            Self::Duration(_) => Type::Duration,
            Self::Timestamp(_) => Type::Timestamp,
            Self::List(_) => Type::list(Type::Dyn),
            Self::Map(_) => Type::map(Type::Dyn, Type::Dyn),
            Self::Type(_) => Type::Kind(Type::Dyn.into()),
            Self::Optional(_) => Type::optional(Type::Dyn),
            Self::Ip(_) => Type::Opaque(library::IP),
            Self::Cidr(_) => Type::Opaque(library::CIDR),
            Self::Url(_) => Type::Opaque(library::URL),
            Self::Quantity(_) => Type::Opaque(library::QUANTITY),
            Self::Semver(_) => Type::Opaque(library::SEMVER),
            Self::Format(_) => Type::Opaque(library::FORMAT),
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::String(Text::Held(text))
    }
}

impl<'a> List<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Made { items, .. } => items.len(),
            Self::Held { items, .. } => items.len(),
        }
    }

    /// How much text is decoded to see all items.
    pub(super) fn encoded(&self) -> usize {
        match self {
            Self::Held { items, of, .. } if matches!(of.form, Form::Bytes) => {
                items.iter().filter_map(Json::as_str).map(str::len).sum()
            }
            _ => 0,
        }
    }

    pub(super) fn by(&self) -> &'a ListBy {
        match self {
            Self::Made { by, .. } | Self::Held { by, .. } => by,
        }
    }

    pub(super) fn get(&self, index: usize) -> Option<Result<Value<'a>, Failure>> {
        match self {
            Self::Made { items, .. } => items.get(index).cloned().map(Ok),
            Self::Held { items, of, .. } => items.get(index).map(|item| Value::held(item, of)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, Failure>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<'a> Map<'a> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Made(entries) => entries.len(),
            Self::Held(entries, _) => entries.len(),
        }
    }

    pub(super) fn get(&self, key: &Value<'a>) -> Option<Result<Value<'a>, Failure>> {
        match self {
            Self::Made(entries) => entries.get(&Key::of(key)?).cloned().map(Ok),
            Self::Held(..) => self.field(key.as_text()?),
        }
    }

    /// Whether there is a value of a text, which is not looked at.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::Made(entries) => entries.contains_key(&Key::String(name.to_owned())),
            Self::Held(entries, shape) => match &shape.form {
                Form::Map(_) => entries.contains_key(name),
                _ => {
                    let value = shape.field(name).and_then(|field| entries.get(&field.name));
                    value.is_some_and(|value| !value.is_null())
                }
            },
        }
    }

    /// The value of a text; a declared field that is null is as good as absent.
    pub(super) fn field(&self, name: &str) -> Option<Result<Value<'a>, Failure>> {
        match self {
            Self::Made(entries) => entries.get(&Key::String(name.to_owned())).cloned().map(Ok),
            Self::Held(entries, shape) => match &shape.form {
                Form::Map(of) => entries.get(name).map(|value| Value::held(value, of)),
                _ => {
                    let field = shape.field(name)?;
                    let value = entries.get(&field.name).filter(|value| !value.is_null())?;
                    Some(Value::held(value, &field.shape))
                }
            },
        }
    }

    pub(super) fn keys(&self) -> Vec<Value<'a>> {
        match self {
            Self::Made(entries) => entries.keys().map(Key::value).collect(),
            Self::Held(entries, shape) => match &shape.form {
                Form::Object { fields, .. } => fields
                    .iter()
                    .filter(|(_, field)| entries.get(&field.name).is_some_and(|value| !value.is_null()))
                    .map(|(name, _)| Value::from(name.as_str()))
                    .collect(),
                _ => entries.keys().map(|key| Value::from(key.as_str())).collect(),
            },
        }
    }
}

impl Key {
    pub(super) fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(value) => Self::Bool(*value),
            Value::Int(number) => Self::Int(*number),
            Value::Uint(number) => i64::try_from(*number).map_or(Self::Uint(*number), Self::Int),
            #[allow(clippy::cast_possible_truncation, reason = "only whole numbers of that range")]
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 9e18 => Self::Int(*number as i64),
            Value::String(text) => Self::String(text.to_string()),
            _ => return None,
        })
    }

    fn value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(number) => Value::Int(*number),
            Self::Uint(number) => Value::Uint(*number),
            Self::String(text) => Value::text(text.as_str()),
        }
    }
}
