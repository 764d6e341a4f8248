//! The formats that have names.

use super::{Found, net};
use crate::cel::value::Value;
use crate::names;

type Mistakes = fn(&str) -> Vec<String>;

/// The function that yields a format, and what is wrong with a text that should have it.
pub(crate) const FORMATS: [(&str, Mistakes); 13] = [
    ("format.dns1123Label", names::dns1123_label),
    ("format.dns1123Subdomain", names::dns1123_subdomain),
    ("format.dns1035Label", names::dns1035_label),
    ("format.qualifiedName", names::qualified_name),
    ("format.dns1123LabelPrefix", |text| names::dns1123_label(&unprefixed(text))),
    ("format.dns1123SubdomainPrefix", |text| names::dns1123_subdomain(&unprefixed(text))),
    ("format.dns1035LabelPrefix", |text| names::dns1035_label(&unprefixed(text))),
    ("format.labelValue", names::label_value),
    ("format.uri", |text| net::parse_url(text).err().into_iter().collect()),
    ("format.uuid", |text| unless(text, "uuid", "does not match the UUID format")),
    ("format.byte", |text| unless(text, "byte", "invalid base64")),
    ("format.date", |text| unless(text, "date", "invalid date")),
    ("format.datetime", |text| unless(text, "datetime", "invalid datetime")),
];

/// What comes before a generated end may itself end with a dash.
fn unprefixed(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(start) if !start.is_empty() => format!("{start}a"),
        _ => text.to_owned(),
    }
}

fn unless(text: &str, format: &str, words: &str) -> Vec<String> {
    if crate::custom::fits_format(format, text) { Vec::new() } else { vec![words.to_owned()] }
}

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    let named = |name: &str| FORMATS.iter().position(|(known, _)| *known == name);
    Some(match (function, args) {
        (name, []) => return named(name).map(|format| Ok(Value::Format(format))),
        ("format.named", [Value::String(name)]) => {
            let format = named(&format!("format.{}", &**name));
            Ok(format.map_or(Value::Optional(None), |format| Value::some(Value::Format(format))))
        }
        ("validate", [Value::Format(format), Value::String(text)]) => {
            let mistakes = FORMATS[*format].1(text);
            Ok(if mistakes.is_empty() {
                Value::Optional(None)
            } else {
                Value::some(Value::list(mistakes.into_iter().map(Value::text).collect()))
            })
        }
        _ => return None,
    })
}
