//! Addresses, networks and URLs.
//!
//! Source: `library/{ip,cidr,urls}.go` of `k8s.io/apiserver/pkg/cel`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use super::{Found, fail, map_of_lists};
use crate::cel::room::Failure;
use crate::cel::value::{Key, Value};
use crate::url::{Url, check_escapes};

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
        ("url", [Value::String(text)]) => match parse_url(text) {
            Ok(url) => Ok(Value::Url(Rc::new(url))),
            Err(why) => fail(format!("URL parse error during conversion from string: {why}")),
        },
        ("isURL", [Value::String(text)]) => Ok(Value::Bool(parse_url(text).is_ok())),
        ("getScheme", [Value::Url(url)]) => Ok(Value::text(url.scheme.as_str())),
        ("getHost", [Value::Url(url)]) => Ok(Value::text(url.host.as_str())),
        ("getHostname", [Value::Url(url)]) => Ok(Value::text(url.host_and_port().0)),
        ("getPort", [Value::Url(url)]) => Ok(Value::text(url.host_and_port().1)),
        ("getEscapedPath", [Value::Url(url)]) => Ok(Value::text(url.escaped_path())),
        ("getQuery", [Value::Url(url)]) => Ok(query_values(url)),
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

pub(super) fn parse_url(text: &str) -> Result<Url, String> {
    Url::parse_request(text).map_err(|why| format!("parse {text:?}: {why}"))
}

fn query_values<'a>(url: &Url) -> Value<'a> {
    let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let mut values: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if check_escapes(name).is_ok() && check_escapes(value).is_ok() {
            values.entry(Key::String(decode(name))).or_default().push(Value::text(decode(value)));
        }
    }
    map_of_lists(values.into_iter().map(|(key, values)| (key, Value::list(values))).collect())
}
