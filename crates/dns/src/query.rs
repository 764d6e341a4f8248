//! Bytes from a client -> one well-formed question, or what to tell the client instead.
//!
//! Invariant: total on any bytes, and a message that is itself a response is never replied to, so two servers cannot
//! keep each other busy.
//!
//! Source: RFC 1035 §4.1, RFC 6891 (EDNS0).

use crate::wire::{Counts, HEADER, IN, Name, RecordAt, flag, kind, rcode, skip_name, u16_at};

/// The least a client must accept over UDP (RFC 1035 §4.2.1).
pub(crate) const MIN_UDP: usize = 512;
/// The most we send over UDP, which crosses any usual link unfragmented (dnsflagday.net/2020), and what we say we take.
pub(crate) const MAX_UDP: u16 = 1232;

/// What the client's OPT record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    pub(crate) size: u16,
    pub(crate) dnssec_ok: bool,
}

/// How a reply travels, and so how large it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// What a reply needs to know of the client, whether or not the question can be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker<'m> {
    pub(crate) id: u16,
    /// The flags as they came.
    pub(crate) flags: u16,
    /// Name, type and class as they came, for the reply to echo; empty if they were not understood.
    pub(crate) question: &'m [u8],
    pub(crate) edns: Option<Edns>,
    pub(crate) transport: Transport,
}

impl Asker<'_> {
    /// The largest reply the client takes, in octets.
    pub(crate) fn limit(&self) -> usize {
        match (self.transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.size.min(MAX_UDP)).max(MIN_UDP),
            (Transport::Udp, None) => MIN_UDP,
        }
    }
}

/// One question of class IN.
pub(crate) struct Query<'m> {
    pub(crate) asker: Asker<'m>,
    pub(crate) name: Name,
    pub(crate) kind: u16,
}

/// Why a message is no question we answer.
pub(crate) enum Unfit<'m> {
    /// Too short to reply to, or itself a response.
    Silence,
    Reply(Asker<'m>, u16),
}

pub(crate) fn parse(message: &[u8], transport: Transport) -> Result<Query<'_>, Unfit<'_>> {
    let (Some(id), Some(flags), Some(counts)) = (u16_at(message, 0), u16_at(message, 2), Counts::read(message)) else {
        return Err(Unfit::Silence);
    };
    if flags & flag::RESPONSE != 0 {
        return Err(Unfit::Silence);
    }
    let mut asker = Asker { id, flags, question: &[], edns: None, transport };
    if flags & flag::OPCODE != 0 {
        return Err(Unfit::Reply(asker, rcode::NOT_IMP));
    }
    if counts.questions != 1 {
        return Err(Unfit::Reply(asker, rcode::FORM_ERR));
    }
    let Some((name, asked, class, end)) = question(message) else {
        return Err(Unfit::Reply(asker, rcode::FORM_ERR));
    };
    asker.question = &message[HEADER..end];
    match edns(message, end, counts) {
        Ok(found) => asker.edns = found,
        Err(code) => {
            // A reply without our OPT could not carry BADVERS.
            asker.edns = (code == rcode::BAD_VERS).then_some(Edns { size: 0, dnssec_ok: false });
            return Err(Unfit::Reply(asker, code));
        }
    }
    match asked {
        // Zone transfers are not offered, and there is no other class.
        kind::AXFR | kind::IXFR => Err(Unfit::Reply(asker, rcode::REFUSED)),
        kind::OPT | 0 => Err(Unfit::Reply(asker, rcode::FORM_ERR)),
        // The other meta-types of RFC 6895 §3.1 are protocols of their own.
        128..=254 => Err(Unfit::Reply(asker, rcode::NOT_IMP)),
        _ if class != IN => Err(Unfit::Reply(asker, rcode::REFUSED)),
        asked => Ok(Query { asker, name, kind: asked }),
    }
}

/// The question's name, type and class, and where it ends.
fn question(message: &[u8]) -> Option<(Name, u16, u16, usize)> {
    let (name, end) = Name::read(message, HEADER)?;
    Some((name, u16_at(message, end)?, u16_at(message, end + 2)?, end + 4))
}

/// The one OPT record, if there is one; an error is the response code to give.
fn edns(message: &[u8], mut at: usize, counts: Counts) -> Result<Option<Edns>, u16> {
    let mut found = None;
    // An IXFR question carries a record in its authority section; nothing else has use for one there.
    for _ in 0..counts.records() {
        let record = RecordAt::read(message, at).ok_or(rcode::FORM_ERR)?;
        at = record.end;
        if record.kind != kind::OPT {
            continue;
        }
        let rooted = skip_name(message, record.start) == Some(record.start + 1);
        if found.is_some() || !rooted {
            return Err(rcode::FORM_ERR);
        }
        let extended = record.ttl(message);
        if extended >> 16 & 0xff != 0 {
            return Err(rcode::BAD_VERS);
        }
        found = Some(Edns { size: record.class(message), dnssec_ok: extended & 0x8000 != 0 });
    }
    Ok(found)
}
