//! The DNS wire format, as far as the hot path needs it: names, headers, and walking over records.
//!
//! Invariant: total on any bytes; what is malformed is `None`, nothing panics, and nothing is read past the end. Pure.
//!
//! Deliberately not here: decoding of record data. Source: RFC 1035 §4.

/// Octets of the fixed header.
pub(crate) const HEADER: usize = 12;
/// The longest name, in octets on the wire.
pub(crate) const MAX_NAME: usize = 255;
const MAX_LABEL: usize = 63;

pub(crate) const IN: u16 = 1;

/// Record types (IANA "DNS parameters").
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const ANY: u16 = 255;
}

/// Response codes (RFC 1035 §4.1.1; BADVERS from RFC 6891, which needs the extended bits of an OPT record).
pub(crate) mod rcode {
    pub(crate) const NO_ERROR: u16 = 0;
    pub(crate) const FORM_ERR: u16 = 1;
    pub(crate) const SERV_FAIL: u16 = 2;
    pub(crate) const NX_DOMAIN: u16 = 3;
    pub(crate) const NOT_IMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const BAD_VERS: u16 = 16;
}

/// Header flags.
pub(crate) mod flag {
    pub(crate) const RESPONSE: u16 = 0x8000;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    pub(crate) const TRUNCATED: u16 = 0x0200;
    pub(crate) const RECURSION_DESIRED: u16 = 0x0100;
    pub(crate) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(crate) const CHECKING_DISABLED: u16 = 0x0010;
    pub(crate) const RCODE: u16 = 0x000f;
}

pub(crate) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?))
}

/// Overwrites two octets; the caller has checked that they are there.
pub(crate) fn put_u16(message: &mut [u8], at: usize, value: u16) {
    message[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// A name in lower case on the stack, with its labels found.
#[derive(Clone)]
pub(crate) struct Name {
    bytes: [u8; MAX_NAME],
    len: u8,
    /// Where each label's length octet is.
    starts: [u8; MAX_NAME / 2],
    labels: u8,
}

impl Name {
    /// Reads the name at `at`, which must not be compressed (a question never needs to be), and where it ends.
    pub(crate) fn read(message: &[u8], at: usize) -> Option<(Self, usize)> {
        let mut name = Self { bytes: [0; MAX_NAME], len: 0, starts: [0; MAX_NAME / 2], labels: 0 };
        let mut end = at;
        loop {
            let label = usize::from(*message.get(end)?);
            if label == 0 {
                break;
            }
            if label > MAX_LABEL || end - at + 1 + label >= MAX_NAME {
                return None;
            }
            name.starts[usize::from(name.labels)] = u8::try_from(end - at).ok()?;
            name.labels += 1;
            end += 1 + label;
        }
        end += 1;
        let wire = message.get(at..end)?;
        name.len = u8::try_from(wire.len()).ok()?;
        let lower = &mut name.bytes[..wire.len()];
        lower.copy_from_slice(wire);
        // A label's length is at most 63 and so never mistaken for a capital letter.
        lower.make_ascii_lowercase();
        Some((name, end))
    }

    pub(crate) fn from_wire(wire: &[u8]) -> Option<Self> {
        Self::read(wire, 0).filter(|(_, end)| *end == wire.len()).map(|(name, _)| name)
    }

    /// On the wire, lower case, with the root's zero octet.
    pub(crate) fn wire(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub(crate) fn labels(&self) -> usize {
        usize::from(self.labels)
    }

    /// The label's text, counted from the left; empty past the last.
    pub(crate) fn label(&self, index: usize) -> &[u8] {
        if index >= self.labels() {
            return &[];
        }
        let start = usize::from(self.starts[index]);
        &self.bytes[start + 1..start + 1 + usize::from(self.bytes[start])]
    }

    /// The labels `from..to` on the wire, without a root.
    pub(crate) fn slice(&self, from: usize, to: usize) -> &[u8] {
        let offset = |index: usize| {
            if index < self.labels() { usize::from(self.starts[index]) } else { usize::from(self.len) - 1 }
        };
        &self.bytes[offset(from)..offset(to)]
    }

    /// How many labels stand before `suffix`, if the name ends in it.
    pub(crate) fn labels_before(&self, suffix: &Self) -> Option<usize> {
        let before = self.labels().checked_sub(suffix.labels())?;
        let start = if before < self.labels() { usize::from(self.starts[before]) } else { usize::from(self.len) - 1 };
        (self.bytes[start..usize::from(self.len)] == *suffix.wire()).then_some(before)
    }
}

/// A name from its text, lower case, with or without the final dot; `None` when it cannot be a name.
pub(crate) fn encode(text: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    for part in text.strip_suffix('.').unwrap_or(text).split('.').filter(|_| !text.is_empty() && text != ".") {
        push_label(&mut wire, part)?;
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// Appends one label in lower case; `None`, and nothing appended, when the text cannot be one.
pub(crate) fn push_label(wire: &mut Vec<u8>, text: &str) -> Option<()> {
    let length = u8::try_from(text.len()).ok().filter(|length| (1..=63).contains(length))?;
    if text.contains('.') {
        return None;
    }
    wire.push(length);
    wire.extend(text.bytes().map(|byte| byte.to_ascii_lowercase()));
    Some(())
}

/// Where the name at `at`, compressed or not, ends.
pub(crate) fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return message.get(at + 1).map(|_| at + 2),
            _ => return None,
        }
    }
}

/// One record's place in a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordAt {
    pub(crate) start: usize,
    pub(crate) kind: u16,
    /// Where type, class, TTL, length and data begin.
    pub(crate) fixed: usize,
    pub(crate) end: usize,
}

impl RecordAt {
    pub(crate) fn read(message: &[u8], start: usize) -> Option<Self> {
        let fixed = skip_name(message, start)?;
        let kind = u16_at(message, fixed)?;
        let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
        (end <= message.len()).then_some(Self { start, kind, fixed, end })
    }

    pub(crate) fn class(&self, message: &[u8]) -> u16 {
        u16_at(message, self.fixed + 2).unwrap_or_default()
    }

    pub(crate) fn ttl(&self, message: &[u8]) -> u32 {
        u32_at(message, self.fixed + 4).unwrap_or_default()
    }

    pub(crate) fn set_ttl(&self, message: &mut [u8], ttl: u32) {
        message[self.fixed + 4..self.fixed + 8].copy_from_slice(&ttl.to_be_bytes());
    }

    pub(crate) fn data<'m>(&self, message: &'m [u8]) -> &'m [u8] {
        &message[self.fixed + 10..self.end]
    }
}

/// The four counts of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) questions: u16,
    pub(crate) answers: u16,
    pub(crate) authorities: u16,
    pub(crate) additionals: u16,
}

impl Counts {
    pub(crate) fn read(message: &[u8]) -> Option<Self> {
        Some(Self {
            questions: u16_at(message, 4)?,
            answers: u16_at(message, 6)?,
            authorities: u16_at(message, 8)?,
            additionals: u16_at(message, 10)?,
        })
    }

    /// The message must hold a header.
    pub(crate) fn write(self, message: &mut [u8]) {
        put_u16(message, 4, self.questions);
        put_u16(message, 6, self.answers);
        put_u16(message, 8, self.authorities);
        put_u16(message, 10, self.additionals);
    }

    pub(crate) fn records(self) -> usize {
        usize::from(self.answers) + usize::from(self.authorities) + usize::from(self.additionals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_lower_case_and_refused_when_malformed() {
        let (name, end) = Name::read(b"\x03WwW\x07Example\x00rest", 0).unwrap();
        assert_eq!(name.wire(), b"\x03www\x07example\x00");
        assert_eq!((end, name.labels(), name.label(1), name.label(2)), (13, 2, &b"example"[..], &b""[..]));
        assert_eq!(name.slice(0, 1), b"\x03www");
        for malformed in [&b"\x03ww"[..], b"\xc0\x0c", b"\x40", b"", b"\x01a"] {
            assert!(Name::read(malformed, 0).is_none(), "{malformed:?}");
        }
        let longest = [&[63u8; 64][..]; 4].concat();
        assert!(Name::read(&[&longest[..], &[0]].concat(), 0).is_none(), "257 octets are too many");
        let just_right = [&longest[..192], &[61u8; 62], &[0]].concat();
        assert_eq!(Name::read(&just_right, 0).unwrap().1, 255);
    }

    #[test]
    fn suffixes_match_at_label_boundaries_only() {
        let zone = Name::from_wire(&encode("cluster.local").unwrap()).unwrap();
        let before = |text: &str| Name::from_wire(&encode(text).unwrap()).unwrap().labels_before(&zone);
        assert_eq!(before("a.b.cluster.local"), Some(2));
        assert_eq!(before("cluster.local"), Some(0));
        assert_eq!(before("local"), None);
        assert_eq!(before("xcluster.local"), None);
        assert_eq!(before("."), None);
    }

    #[test]
    fn texts_that_cannot_be_names_are_refused() {
        assert_eq!(encode("A.b.").unwrap(), b"\x01a\x01b\x00");
        assert_eq!(encode(".").unwrap(), b"\x00");
        assert!(encode("a..b").is_none());
        assert!(encode(&"a".repeat(64)).is_none());
        assert!(encode(&"abc.".repeat(64)).is_none());
    }

    #[test]
    fn a_record_that_runs_past_the_end_is_none() {
        let record = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x05\x00\x04\x01\x02\x03\x04";
        let read = RecordAt::read(record, 0).unwrap();
        assert_eq!((read.kind, read.class(record), read.ttl(record), read.end), (1, 1, 5, 16));
        assert!((0..16).all(|cut| RecordAt::read(&record[..cut], 0).is_none()));
    }
}
