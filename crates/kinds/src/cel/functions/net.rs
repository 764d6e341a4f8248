//! Addresses, networks and URLs.
//!
//! Source: `library/{ip,cidr,urls}.go` of `k8s.io/apiserver/pkg/cel`; URLs are as Go's `net/url` reads them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use super::{Found, fail, map_of_lists};
use crate::cel::room::Failure;
use crate::cel::value::{Key, Value};

pub(super) fn call<'a>(function: &str, args: &[Value<'a>]) -> Option<Found<'a>> {
    Some(match (function, args) {
        ("ip", [Value::String(text)]) => parse_ip(text).map(Value::Ip).or_else(fail),
        ("isIP", [Value::String(text)]) => Ok(Value::Bool(parse_ip(text).is_ok())),
        ("ip.isCanonical", [Value::String(text)]) => match parse_ip(text) {
            Ok(ip) => Ok(Value::Bool(ip.to_string() == **text)),
            Err(why) => fail(why),
        },
        ("ip", [Value::Cidr(cidr)]) => Ok(Value::Ip(cidr.addr())),
        ("family", [Value::Ip(ip)]) => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        ("isUnspecified", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_unspecified())),
        ("isLoopback", [Value::Ip(ip)]) => Ok(Value::Bool(ip.is_loopback())),
        ("isLinkLocalMulticast", [Value::Ip(ip)]) => Ok(Value::Bool(match ip {
            IpAddr::V4(ip) => ip.octets().starts_with(&[224, 0, 0]),
            IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
        })),
        ("isLinkLocalUnicast", [Value::Ip(ip)]) => Ok(Value::Bool(is_link_local(ip))),
        ("isGlobalUnicast", [Value::Ip(ip)]) => {
            let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
            let special =
                ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || is_link_local(ip) || broadcast;
            Ok(Value::Bool(!special))
        }
        ("cidr", [Value::String(text)]) => {
            let words = |why| fail(format!("network address parse error during conversion from string: {why}"));
            parse_cidr(text).map(Value::Cidr).or_else(words)
        }
        ("isCIDR", [Value::String(text)]) => Ok(Value::Bool(parse_cidr(text).is_ok())),
        ("containsIP", [Value::Cidr(cidr), other]) => match other {
            Value::Ip(ip) => Ok(Value::Bool(cidr.contains(ip))),
            Value::String(text) => {
                parse_ip(text).map(|ip| Value::Bool(cidr.contains(&ip))).map_err(|_| Failure::NoOverload)
            }
            _ => return None,
        },
        ("containsCIDR", [Value::Cidr(cidr), other]) => match other {
            Value::Cidr(other) => Ok(Value::Bool(cidr.contains(other))),
            Value::String(text) => parse_cidr(text).map(|other| Value::Bool(cidr.contains(&other))).or_else(fail),
            _ => return None,
        },
        ("prefixLength", [Value::Cidr(cidr)]) => Ok(Value::Int(cidr.prefix_len().into())),
        ("masked", [Value::Cidr(cidr)]) => Ok(Value::Cidr(cidr.trunc())),
        ("url", [Value::String(text)]) => match Url::parse(text) {
            Ok(url) => Ok(Value::Url(Rc::new(url))),
            Err(why) => fail(format!("URL parse error during conversion from string: {why}")),
        },
        ("isURL", [Value::String(text)]) => Ok(Value::Bool(Url::parse(text).is_ok())),
        ("getScheme", [Value::Url(url)]) => Ok(Value::text(url.scheme.as_str())),
        ("getHost", [Value::Url(url)]) => Ok(Value::text(url.host.as_str())),
        ("getHostname", [Value::Url(url)]) => Ok(Value::text(url.host_and_port().0)),
        ("getPort", [Value::Url(url)]) => Ok(Value::text(url.host_and_port().1)),
        ("getEscapedPath", [Value::Url(url)]) => Ok(Value::text(url.path.as_str())),
        ("getQuery", [Value::Url(url)]) => Ok(url.query_values()),
        _ => return None,
    })
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if text.contains(':') && text.contains('%') {
        return Err(format!("IP address {text:?} with zone value is not allowed"));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )
    })?;
    match ip {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let is_plain = |bits: &str| bits == "0" || bits.starts_with(|digit: char| ('1'..='9').contains(&digit));
    let parsed = match text.split_once('/') {
        None => Err("no '/'".to_owned()),
        Some((ip, _)) if ip.parse::<IpAddr>().is_err() => Err(format!("ParseAddr({ip:?}): unable to parse IP")),
        Some((_, bits)) if !is_plain(bits) => Err(format!("bad bits after slash: {bits:?}")),
        Some(_) => text.parse::<IpNet>().map_err(|_| "prefix length out of range".to_owned()),
    };
    let cidr = parsed.map_err(|why| {
        format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): {why}")
    })?;
    match cidr {
        IpNet::V6(v6) if v6.addr().to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        cidr => Ok(cidr),
    }
}

/// The parts of a URL that rules can ask for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    text: String,
    scheme: String,
    /// With a port, if there is one.
    host: String,
    path: String,
    query: String,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("parse {text:?}: {why}"));
        if text.bytes().any(|byte| byte < 0x20 || byte == 0x7f) {
            return wrong("net/url: invalid control character in URL");
        }
        if text.is_empty() {
            return wrong("empty url");
        }
        let (scheme, rest) = match text.split_once(':') {
            Some(("", _)) => return wrong("missing protocol scheme"),
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => (String::new(), text),
        };
        if scheme.is_empty() && !rest.starts_with('/') && rest != "*" {
            return wrong("invalid URI for request");
        }
        // A request's URL has no fragment: `#` is a letter like others.
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.strip_prefix("//") {
            Some(after) if !scheme.is_empty() || !after.starts_with('/') => {
                after.split_at(after.find('/').unwrap_or(after.len()))
            }
            // What has a scheme and no slash is opaque.
            _ if !scheme.is_empty() && !rest.starts_with('/') => ("", ""),
            _ => ("", rest),
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let in_user = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
        if !user.bytes().all(in_user) {
            return wrong("net/url: invalid userinfo");
        }
        if let Err(why) = check_host(host) {
            return wrong(&why);
        }
        if let Some(why) = bad_escape(path).or_else(|| bad_escape(host)).or_else(|| bad_escape(user)) {
            return wrong(&why);
        }
        let path = escaped(path);
        Ok(Self { text: text.to_owned(), scheme, host: host.to_owned(), path, query: query.to_owned() })
    }

    /// Bytes of its text.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    fn host_and_port(&self) -> (&str, &str) {
        let inside = self.host.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        if let Some((host, port)) = inside {
            return (host, port.strip_prefix(':').unwrap_or_default());
        }
        self.host.rsplit_once(':').unwrap_or((&self.host, ""))
    }

    fn query_values<'a>(&self) -> Value<'a> {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let mut values: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if bad_escape(name).is_none() && bad_escape(value).is_none() {
                values.entry(Key::String(decode(name))).or_default().push(Value::text(decode(value)));
            }
        }
        map_of_lists(values.into_iter().map(|(key, values)| (key, Value::list(values))).collect())
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
}

fn check_host(host: &str) -> Result<(), String> {
    let port = match host.strip_prefix('[') {
        Some(inside) => inside.split_once(']').ok_or("missing ']' in host")?.1,
        None => host.rfind(':').map_or("", |colon| &host[colon..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if port.is_empty() || port.starts_with(':') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        if let Some(bad) = host.chars().find(|c| matches!(c, ' ' | '#' | '\\' | '^' | '`' | '{' | '|' | '}')) {
            return Err(format!("invalid character {:?} in host name", bad.to_string()));
        }
        return Ok(());
    }
    Err(format!("invalid port {port:?} after host"))
}

fn bad_escape(text: &str) -> Option<String> {
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let after = &rest.as_bytes()[at + 1..];
        if after.len() < 2 || !after[..2].iter().all(u8::is_ascii_hexdigit) {
            let shown: String = rest[at..].chars().take(3).collect();
            return Some(format!("invalid URL escape {shown:?}"));
        }
        rest = &rest[at + 3..];
    }
    None
}

/// A path with everything escaped that must be.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
