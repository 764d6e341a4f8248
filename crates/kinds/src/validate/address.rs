//! IP addresses and ranges.
//!
//! Leading zeros and IPv4 in IPv6, which programs read in different ways, are refused in new values and may stay in old
//! ones, as upstream has it.

use std::net::{IpAddr, Ipv4Addr};

use super::Errors;
use crate::look::Path;

const NOT_AN_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Reads an address as old fields take it: leading zeros are decimal.
pub(crate) fn parse_legacy(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part
            .trim_start_matches('0')
            .parse()
            .or_else(|_| if part.bytes().all(|byte| byte == b'0') { Ok(0) } else { Err(()) })
            .ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Whether the address is one, in a form that is not ambiguous.
pub(super) fn legacy(errors: &mut Errors, path: &Path<'_>, text: &str) -> bool {
    let wrong = ambiguous(text);
    if let Some(message) = wrong {
        errors.invalid(path, text, message);
    }
    wrong.is_none()
}

/// Why programs may read the address in different ways.
fn ambiguous(text: &str) -> Option<&'static str> {
    match parse_legacy(text) {
        None => Some(NOT_AN_IP),
        Some(_) if text.parse::<IpAddr>().is_err() => Some("must not have leading 0s"),
        Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => Some("must not be an IPv4-mapped IPv6 address"),
        Some(_) => None,
    }
}

/// What is wrong with an address that must be in its one canonical form.
pub(super) fn canonical(text: &str) -> Vec<String> {
    if let Some(message) = ambiguous(text) {
        return vec![message.to_owned()];
    }
    let form = parse_legacy(text).map(|address| address.to_string()).unwrap_or_default();
    if form == text { Vec::new() } else { vec![format!("must be in canonical form (\"{form}\")")] }
}

/// Addresses that no traffic may be sent to: an endpoint there would reach into the node itself.
pub(super) fn endpoint(errors: &mut Errors, path: &Path<'_>, text: &str) {
    let Some(address) = parse_legacy(text) else {
        errors.invalid(path, text, "must be a valid IP address");
        return;
    };
    let address = match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    };
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        errors.invalid(path, text, format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        errors.invalid(path, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errors.invalid(path, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// Reads a range as old fields take it: bits beyond the prefix are ignored.
pub(super) fn parse_cidr(text: &str) -> Option<ipnet::IpNet> {
    let (address, length) = text.split_once('/')?;
    if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    ipnet::IpNet::new(parse_legacy(address)?, length.parse().ok()?).ok()
}

pub(super) fn legacy_cidr(errors: &mut Errors, path: &Path<'_>, text: &str) {
    if let Some(message) = ambiguous_cidr(text) {
        errors.invalid(path, text, message);
    }
}

/// Why programs may read the range in different ways.
fn ambiguous_cidr(text: &str) -> Option<&'static str> {
    let Some(net) = parse_cidr(text) else { return Some(NOT_A_CIDR) };
    if text.parse::<ipnet::IpNet>().is_err() {
        Some("must not have leading 0s in IP or prefix length")
    } else if matches!(net.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        Some("must not have an IPv4-mapped IPv6 address")
    } else if net.addr() != net.network() {
        Some("must not have bits set beyond the prefix length")
    } else {
        None
    }
}

/// A range in its one canonical form.
pub(super) fn canonical_cidr(errors: &mut Errors, path: &Path<'_>, text: &str) {
    if let Some(message) = ambiguous_cidr(text) {
        errors.invalid(path, text, message);
    } else if let Some(net) = parse_cidr(text).filter(|net| net.to_string() != text) {
        errors.invalid(path, text, format!("must be in canonical form (\"{net}\")"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legacy_addresses() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.002.003.004", Some("10.2.3.4")),
            ("0.0.0.0", Some("0.0.0.0")),
            ("000.0.0.00", Some("0.0.0.0")),
            ("::1", Some("::1")),
            ("1.2.3", None),
            ("1.2.3.4.5", None),
            ("1.2.3.256", None),
            ("1.2.3.", None),
            ("", None),
            ("a", None),
            ("fe80::1%eth0", None),
        ] {
            assert_eq!(parse_legacy(text).map(|ip| ip.to_string()).as_deref(), expected, "{text}");
        }
    }
}
