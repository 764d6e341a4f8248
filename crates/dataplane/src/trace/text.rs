//! Keys and values of elements -> text, as `nft` prints it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nlink::netlink::nftables::{SetKeyType, Verdict};

/// A key or value: its fields with ` . ` between them.
pub(super) fn value(kind: &SetKeyType, bytes: &[u8]) -> String {
    fields(kind, bytes).iter().map(|(kind, bytes)| field(kind, bytes)).collect::<Vec<_>>().join(" . ")
}

/// A range of keys, both ends included. Fields that do not differ are printed once, prefixes as such.
pub(super) fn range(kind: &SetKeyType, from: &[u8], to: &[u8]) -> String {
    let (from, to) = (fields(kind, from), fields(kind, to));
    let between = |((kind, from), (_, to)): (&Field<'_>, &Field<'_>)| match (address(from), address(to)) {
        _ if from == to => field(kind, from),
        (Some(first), Some(last)) => match prefix(first, last) {
            Some(length) => format!("{first}/{length}"),
            None => format!("{first}-{last}"),
        },
        _ => format!("{}-{}", field(kind, from), field(kind, to)),
    };
    from.iter().zip(&to).map(between).collect::<Vec<_>>().join(" . ")
}

pub(super) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Continue => "continue".to_owned(),
        Verdict::Return => "return".to_owned(),
        Verdict::JumpTo(chain) => format!("jump {}", chain.as_str()),
        Verdict::GotoTo(chain) => format!("goto {}", chain.as_str()),
        _ => "a verdict of another kind".to_owned(),
    }
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "ipv6-icmp".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

type Field<'a> = (SetKeyType, &'a [u8]);

/// Each field of a concatenation starts at a multiple of four bytes.
pub(super) fn fields<'a>(kind: &SetKeyType, bytes: &'a [u8]) -> Vec<Field<'a>> {
    let SetKeyType::Concat(kinds) = kind else { return vec![(kind.clone(), bytes)] };
    let mut at = 0;
    let mut fields = Vec::new();
    for kind in kinds {
        let length = length(kind).unwrap_or(bytes.len().saturating_sub(at));
        fields.push((kind.clone(), bytes.get(at..at + length).unwrap_or_default()));
        at += length.next_multiple_of(4);
    }
    fields
}

fn length(kind: &SetKeyType) -> Option<usize> {
    Some(match kind {
        SetKeyType::InetProto => 1,
        SetKeyType::InetService => 2,
        SetKeyType::Ipv4Addr | SetKeyType::IfIndex | SetKeyType::ClassId | SetKeyType::Mark => 4,
        SetKeyType::EtherAddr => 6,
        SetKeyType::Ipv6Addr => 16,
        SetKeyType::Other { len, .. } => usize::try_from(*len).ok()?,
        _ => return None,
    })
}

fn field(kind: &SetKeyType, bytes: &[u8]) -> String {
    let word = || bytes.get(..4).and_then(|word| word.try_into().ok()).map(u32::from_ne_bytes);
    let hexadecimal = || bytes.iter().fold("0x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
    let text = match kind {
        SetKeyType::Ipv4Addr | SetKeyType::Ipv6Addr => address(bytes).map(|address| address.to_string()),
        SetKeyType::InetProto => bytes.first().map(|number| protocol(*number)),
        SetKeyType::InetService => {
            bytes.get(..2).and_then(|port| port.try_into().ok()).map(|port| u16::from_be_bytes(port).to_string())
        }
        SetKeyType::Mark => word().map(|mark| format!("{mark:#010x}")),
        SetKeyType::ClassId => word().map(|class| match (class >> 16, class & 0xffff) {
            (0, 0) => "none".to_owned(),
            (0, minor) => format!(":{minor:x}"),
            (major, 0) => format!("{major:x}:"),
            (major, minor) => format!("{major:x}:{minor:x}"),
        }),
        _ => None,
    };
    text.unwrap_or_else(hexadecimal)
}

pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// The length of the prefix that the range is, if it is one.
fn prefix(first: IpAddr, last: IpAddr) -> Option<u8> {
    let longest = if first.is_ipv4() { 32 } else { 128 };
    (0..=longest).find(|length| {
        ipnet::IpNet::new(first, *length).is_ok_and(|net| net.network() == first && net.broadcast() == last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_nft_prints_them() {
        let key = SetKeyType::Concat(vec![
            SetKeyType::Ipv4Addr,
            SetKeyType::InetProto,
            SetKeyType::InetService,
            SetKeyType::Mark,
        ]);
        let mut bytes = vec![10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0];
        bytes.extend(3_u32.to_ne_bytes());
        assert_eq!(value(&key, &bytes), "10.96.0.1 . tcp . 80 . 0x00000003");
        for (class, text) in [(3, ":3"), (0x0080_0001, "80:1"), (0x0080_0000, "80:")] {
            assert_eq!(value(&SetKeyType::ClassId, &u32::to_ne_bytes(class)), text);
        }
        let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
        for (from, to, text) in [
            ("10.244.0.0", "10.244.255.255", "10.244.0.0/16"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
        ] {
            assert_eq!(range(&SetKeyType::Ipv4Addr, &v4(from), &v4(to)), text);
        }
    }
}
