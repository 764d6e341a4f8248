//! Which functions rules may call, with which types: what the checker knows of them.
//!
//! Source: the language's standard definitions; the extensions strings (version 2), lists (3), sets and optionals of
//! cel-go; Kubernetes' own libraries, as of 1.36.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::types::Type;

#[derive(Debug)]
pub(super) struct Overload {
    /// Called as `target.name(…)`; the target is then the first parameter.
    pub(super) is_member: bool,
    pub(super) params: Vec<Type>,
    pub(super) result: Type,
}

pub(super) const IP: &str = "net.IP";
pub(super) const CIDR: &str = "net.CIDR";
pub(super) const URL: &str = "kubernetes.URL";
pub(super) const QUANTITY: &str = "kubernetes.Quantity";
pub(super) const SEMVER: &str = "kubernetes.Semver";
pub(super) const FORMAT: &str = "kubernetes.NamedFormat";

/// Names that stand for a type.
pub(super) fn named_type(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "null_type" => Type::Null,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Kind(Type::Dyn.into()),
        "optional_type" => Type::optional(Type::Dyn),
        "google.protobuf.Duration" => Type::Duration,
        "google.protobuf.Timestamp" => Type::Timestamp,
        IP => Type::Opaque(IP),
        CIDR => Type::Opaque(CIDR),
        _ => return None,
    })
}

/// The ways to call a function of this name.
pub(super) fn overloads(name: &str) -> Option<&'static [Overload]> {
    static TABLE: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
        let all = FUNCTIONS.iter().map(|(name, signatures)| (*name, signatures.split(';').map(overload).collect()));
        let formats = super::functions::FORMATS.iter().map(|(name, _)| (*name, vec![overload("()->format")]));
        all.chain(formats).collect()
    });
    TABLE.get(name).map(Vec::as_slice)
}

/// `target.(parameters)->result`, where `A` and `B` are any types.
fn overload(text: &str) -> Overload {
    let (params, result) = text.trim().split_once("->").unwrap_or((text, "dyn"));
    let (target, params) = params.rsplit_once(".(").map_or((None, params), |(target, params)| (Some(target), params));
    let target = target.map(kind);
    let params = params.trim_start_matches('(').strip_suffix(')').unwrap_or(params);
    let is_member = target.is_some();
    let params = target.into_iter().chain(split(params).map(kind)).collect();
    Overload { is_member, params, result: kind(result) }
}

/// Splits at commas that stand in no parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    text.split(move |character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    })
    .filter(|part| !part.is_empty())
}

fn kind(text: &str) -> Type {
    let text = text.trim();
    if let Some((head, inside)) = text.split_once('(') {
        let inside: Vec<Type> = split(inside.strip_suffix(')').unwrap_or(inside)).map(kind).collect();
        return match (head, inside.as_slice()) {
            ("list", [of]) => Type::list(of.clone()),
            ("map", [key, value]) => Type::map(key.clone(), value.clone()),
            ("optional", [of]) => Type::optional(of.clone()),
            ("type", [of]) => Type::Kind(of.clone().into()),
            _ => Type::Dyn,
        };
    }
    match text {
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        "ip" => Type::Opaque(IP),
        "cidr" => Type::Opaque(CIDR),
        "url" => Type::Opaque(URL),
        "quantity" => Type::Opaque(QUANTITY),
        "semver" => Type::Opaque(SEMVER),
        "format" => Type::Opaque(FORMAT),
        name => named_type(name).unwrap_or(Type::Dyn),
    }
}

const ORDER: &str = "(bool,bool)->bool; (int,int)->bool; (int,double)->bool; (int,uint)->bool; (uint,uint)->bool; \
    (uint,double)->bool; (uint,int)->bool; (double,double)->bool; (double,int)->bool; (double,uint)->bool; \
    (string,string)->bool; (bytes,bytes)->bool; (timestamp,timestamp)->bool; (duration,duration)->bool";
const OF_TIME: &str = "timestamp.()->int; timestamp.(string)->int";
const OF_TIMES: &str = "timestamp.()->int; timestamp.(string)->int; duration.()->int";
const COMPARABLE: [&str; 2] = [
    "list(int).()->int; list(uint).()->uint; list(double).()->double; list(bool).()->bool; list(duration).()->duration; \
     list(timestamp).()->timestamp; list(string).()->string; list(bytes).()->bytes",
    "list(int).()->bool; list(uint).()->bool; list(double).()->bool; list(bool).()->bool; list(duration).()->bool; \
     list(timestamp).()->bool; list(string).()->bool; list(bytes).()->bool",
];

const FUNCTIONS: &[(&str, &str)] = &[
    ("_?_:_", "(bool,A,A)->A"),
    ("!_", "(bool)->bool"),
    ("_==_", "(A,A)->bool"),
    ("_!=_", "(A,A)->bool"),
    (
        "_+_",
        "(bytes,bytes)->bytes; (double,double)->double; (duration,duration)->duration; (duration,timestamp)->timestamp; \
         (timestamp,duration)->timestamp; (int,int)->int; (list(A),list(A))->list(A); (string,string)->string; (uint,uint)->uint",
    ),
    (
        "_-_",
        "(double,double)->double; (duration,duration)->duration; (int,int)->int; (timestamp,duration)->timestamp; \
         (timestamp,timestamp)->duration; (uint,uint)->uint",
    ),
    ("_*_", "(double,double)->double; (int,int)->int; (uint,uint)->uint"),
    ("_/_", "(double,double)->double; (int,int)->int; (uint,uint)->uint"),
    ("_%_", "(int,int)->int; (uint,uint)->uint"),
    ("-_", "(double)->double; (int)->int"),
    ("_<_", ORDER),
    ("_<=_", ORDER),
    ("_>_", ORDER),
    ("_>=_", ORDER),
    (
        "_[_]",
        "(list(A),int)->A; (map(A,B),A)->B; (optional(list(A)),int)->optional(A); (optional(map(A,B)),A)->optional(B)",
    ),
    (
        "_[?_]",
        "(list(A),int)->optional(A); (optional(list(A)),int)->optional(A); (map(A,B),A)->optional(B); \
         (optional(map(A,B)),A)->optional(B)",
    ),
    ("@in", "(A,list(A))->bool; (A,map(A,B))->bool"),
    (
        "size",
        "(bytes)->int; bytes.()->int; (list(A))->int; list(A).()->int; (map(A,B))->int; map(A,B).()->int; (string)->int; \
         string.()->int",
    ),
    ("type", "(A)->type(A)"),
    ("dyn", "(A)->dyn"),
    ("bool", "(bool)->bool; (string)->bool"),
    ("bytes", "(bytes)->bytes; (string)->bytes"),
    ("double", "(double)->double; (int)->double; (string)->double; (uint)->double"),
    ("duration", "(duration)->duration; (int)->duration; (string)->duration"),
    ("int", "(int)->int; (double)->int; (duration)->int; (string)->int; (timestamp)->int; (uint)->int"),
    (
        "string",
        "(string)->string; (bool)->string; (bytes)->string; (double)->string; (duration)->string; (int)->string; \
         (timestamp)->string; (uint)->string; (ip)->string; (cidr)->string",
    ),
    ("timestamp", "(timestamp)->timestamp; (int)->timestamp; (string)->timestamp"),
    ("uint", "(uint)->uint; (double)->uint; (int)->uint; (string)->uint"),
    ("contains", "string.(string)->bool"),
    ("endsWith", "string.(string)->bool"),
    ("startsWith", "string.(string)->bool"),
    ("matches", "(string,string)->bool; string.(string)->bool"),
    ("getFullYear", OF_TIME),
    ("getMonth", OF_TIME),
    ("getDayOfYear", OF_TIME),
    ("getDayOfMonth", OF_TIME),
    ("getDate", OF_TIME),
    ("getDayOfWeek", OF_TIME),
    ("getHours", OF_TIMES),
    ("getMinutes", OF_TIMES),
    ("getSeconds", OF_TIMES),
    ("getMilliseconds", OF_TIMES),
    // Optionals
    ("optional.of", "(A)->optional(A)"),
    ("optional.ofNonZeroValue", "(A)->optional(A)"),
    ("optional.none", "()->optional(A)"),
    ("optional.unwrap", "(list(optional(A)))->list(A)"),
    ("unwrapOpt", "list(optional(A)).()->list(A)"),
    ("value", "optional(A).()->A"),
    ("hasValue", "optional(A).()->bool"),
    ("or", "optional(A).(optional(A))->optional(A)"),
    ("orValue", "optional(A).(A)->A"),
    // Strings
    ("charAt", "string.(int)->string"),
    ("indexOf", "string.(string)->int; string.(string,int)->int; list(A).(A)->int"),
    ("lastIndexOf", "string.(string)->int; string.(string,int)->int; list(A).(A)->int"),
    ("lowerAscii", "string.()->string"),
    ("upperAscii", "string.()->string"),
    ("replace", "string.(string,string)->string; string.(string,string,int)->string"),
    ("split", "string.(string)->list(string); string.(string,int)->list(string)"),
    ("substring", "string.(int)->string; string.(int,int)->string"),
    ("trim", "string.()->string"),
    ("join", "list(string).()->string; list(string).(string)->string"),
    ("format", "string.(list(dyn))->string"),
    ("strings.quote", "(string)->string"),
    ("find", "string.(string)->string"),
    ("findAll", "string.(string)->list(string); string.(string,int)->list(string)"),
    // Lists and sets
    ("isSorted", COMPARABLE[1]),
    ("max", COMPARABLE[0]),
    ("min", COMPARABLE[0]),
    ("sum", "list(int).()->int; list(uint).()->uint; list(double).()->double; list(duration).()->duration"),
    ("slice", "list(A).(int,int)->list(A)"),
    ("flatten", "list(list(A)).()->list(A); list(dyn).(int)->list(dyn)"),
    ("distinct", "list(A).()->list(A)"),
    ("reverse", "list(A).()->list(A)"),
    (
        "sort",
        "list(int).()->list(int); list(uint).()->list(uint); list(double).()->list(double); list(bool).()->list(bool); \
         list(duration).()->list(duration); list(timestamp).()->list(timestamp); list(string).()->list(string); \
         list(bytes).()->list(bytes)",
    ),
    ("lists.range", "(int)->list(int)"),
    ("first", "list(A).()->optional(A)"),
    ("last", "list(A).()->optional(A)"),
    ("sets.contains", "(list(A),list(A))->bool"),
    ("sets.equivalent", "(list(A),list(A))->bool"),
    ("sets.intersects", "(list(A),list(A))->bool"),
    // Addresses
    ("ip", "(string)->ip; cidr.()->ip"),
    ("isIP", "(string)->bool"),
    ("ip.isCanonical", "(string)->bool"),
    ("family", "ip.()->int"),
    ("isUnspecified", "ip.()->bool"),
    ("isLoopback", "ip.()->bool"),
    ("isLinkLocalMulticast", "ip.()->bool"),
    ("isLinkLocalUnicast", "ip.()->bool"),
    ("isGlobalUnicast", "ip.()->bool"),
    ("cidr", "(string)->cidr"),
    ("isCIDR", "(string)->bool"),
    ("containsIP", "cidr.(string)->bool; cidr.(ip)->bool"),
    ("containsCIDR", "cidr.(string)->bool; cidr.(cidr)->bool"),
    ("prefixLength", "cidr.()->int"),
    ("masked", "cidr.()->cidr"),
    ("url", "(string)->url"),
    ("isURL", "(string)->bool"),
    ("getScheme", "url.()->string"),
    ("getHost", "url.()->string"),
    ("getHostname", "url.()->string"),
    ("getPort", "url.()->string"),
    ("getEscapedPath", "url.()->string"),
    ("getQuery", "url.()->map(string,list(string))"),
    // Quantities and versions
    ("quantity", "(string)->quantity"),
    ("isQuantity", "(string)->bool"),
    ("sign", "(quantity)->int"),
    ("asInteger", "quantity.()->int"),
    ("isInteger", "quantity.()->bool"),
    ("asApproximateFloat", "quantity.()->double"),
    ("add", "quantity.(quantity)->quantity; quantity.(int)->quantity"),
    ("sub", "quantity.(quantity)->quantity; quantity.(int)->quantity"),
    ("isGreaterThan", "quantity.(quantity)->bool; semver.(semver)->bool"),
    ("isLessThan", "quantity.(quantity)->bool; semver.(semver)->bool"),
    ("compareTo", "quantity.(quantity)->int; semver.(semver)->int"),
    ("semver", "(string)->semver; (string,bool)->semver"),
    ("isSemver", "(string)->bool; (string,bool)->bool"),
    ("major", "semver.()->int"),
    ("minor", "semver.()->int"),
    ("patch", "semver.()->int"),
    // Formats
    ("format.named", "(string)->optional(format)"),
    ("validate", "format.(string)->optional(list(string))"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read_as_they_stand() {
        for (name, signatures) in FUNCTIONS {
            for (overload, text) in overloads(name).unwrap().iter().zip(signatures.split(';')) {
                assert_eq!(overload.is_member, text.contains(".("), "{name}: {text}");
                assert!(!matches!(overload.result, Type::Dyn) || text.ends_with("->dyn"), "{name}: {text}");
            }
        }
    }
}
