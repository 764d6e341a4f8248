//! A query and the zone -> the reply's bytes, or what has to be asked elsewhere first.
//!
//! Invariants: total on any bytes; a reply never exceeds what the client takes, and a refusal is never longer than the
//! query and an OPT record, so nothing here amplifies. No I/O; only aliases and what is forwarded allocate here.
//!
//! Source: RFC 1034 §4.3, RFC 2308 (negative answers), RFC 6604 (the code of a chain of aliases is its end's).

use hickory_proto::op::{Message, Query as DecodedQuery};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name as DecodedName, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;

use crate::answer::push_fixed;
use crate::query::{Asker, Edns, MAX_UDP, Query, Transport, Unfit, parse};
use crate::wire::{Counts, HEADER, Name, RecordAt, flag, kind, put_u16, rcode, u16_at};
use crate::zone::{Found, Zone, is_reverse};

/// Octets of our OPT record.
const OPT: usize = 11;
/// ExternalName Services that point at each other within the zone are followed this far.
const MAX_ALIASES: usize = 8;

/// What becomes of a message from a client.
#[derive(Debug)]
pub(crate) enum Outcome {
    Silence,
    /// The reply is in the buffer.
    Reply,
    Forward(Box<Question>),
}

/// A question for other servers, with all that is needed to reply to the client later.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) client: Client,
    /// The names on the way from the client's question to `name`, on the wire: an alias and its targets.
    pub(crate) aliases: Vec<Box<[u8]>>,
    /// What to ask for, on the wire and in lower case.
    pub(crate) name: Box<[u8]>,
    pub(crate) kind: u16,
    /// Seconds, for the alias records.
    ttl: u32,
}

/// An [`Asker`] that outlives its message.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    id: u16,
    flags: u16,
    question: Box<[u8]>,
    edns: Option<Edns>,
    transport: Transport,
}

impl Client {
    pub(crate) fn asker(&self) -> Asker<'_> {
        let Self { id, flags, ref question, edns, transport } = *self;
        Asker { id, flags, question, edns, transport }
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    pub(crate) fn checking_disabled(&self) -> bool {
        self.flags & flag::CHECKING_DISABLED != 0
    }
}

/// What there is to answer from.
pub(crate) struct Sources<'z> {
    /// `None` where there is no zone of our own, as in a relay.
    pub(crate) zone: Option<&'z Zone>,
    /// Until then the zone is not whole and says nothing about itself.
    pub(crate) synced: bool,
    /// Whether there are other servers to ask.
    pub(crate) upstreams: bool,
}

impl Sources<'_> {
    /// Replies to `message` into `out`, which is cleared first. `turn` rotates addresses.
    pub(crate) fn respond(&self, message: &[u8], transport: Transport, turn: usize, out: &mut Vec<u8>) -> Outcome {
        let query = match parse(message, transport) {
            Ok(query) => query,
            Err(Unfit::Silence) => return Outcome::Silence,
            Err(Unfit::Reply(asker, code)) => {
                self.refuse(asker, code, out);
                return Outcome::Reply;
            }
        };
        let Query { asker, ref name, kind } = query;
        let Some(zone) = self.zone else { return self.elsewhere(asker, name, kind, Vec::new(), 0, out) };
        if !self.synced && (zone.owns(name) || is_reverse(name)) {
            self.refuse(asker, rcode::SERV_FAIL, out);
            return Outcome::Reply;
        }
        match zone.find(name, kind) {
            Found::Elsewhere => self.elsewhere(asker, name, kind, Vec::new(), 0, out),
            Found::Alias(target) if kind != kind::CNAME => self.follow(zone, asker, name, target, kind, out),
            found => {
                self.answer(zone, asker, name, found, turn, out);
                Outcome::Reply
            }
        }
    }

    /// Replies with a bare code.
    pub(crate) fn refuse(&self, asker: Asker<'_>, code: u16, out: &mut Vec<u8>) {
        refuse(asker, code, self.upstreams, out);
    }

    fn elsewhere(
        &self,
        asker: Asker<'_>,
        name: &Name,
        kind: u16,
        aliases: Vec<Box<[u8]>>,
        ttl: u32,
        out: &mut Vec<u8>,
    ) -> Outcome {
        if !self.upstreams {
            self.refuse(asker, rcode::REFUSED, out);
            return Outcome::Reply;
        }
        let Asker { id, flags, question, edns, transport } = asker;
        let client = Client { id, flags, question: question.into(), edns, transport };
        Outcome::Forward(Box::new(Question { client, aliases, name: name.wire().into(), kind, ttl }))
    }

    /// Answers from the zone; `found` is not for others to answer.
    fn answer(&self, zone: &Zone, asker: Asker<'_>, name: &Name, found: Found<'_>, turn: usize, out: &mut Vec<u8>) {
        begin(asker, out);
        let room = asker.limit().saturating_sub(out.len() + if asker.edns.is_some() { OPT } else { 0 });
        let mut counts = Counts { questions: 1, ..Counts::default() };
        let (mut flags, mut code) = (flag::AUTHORITATIVE, rcode::NO_ERROR);
        match found {
            Found::Answer(answer) => {
                let copied = answer.copy_to(out, room, turn);
                (counts.answers, counts.additionals) = (copied.answers, copied.additionals);
                flags |= if copied.truncated { flag::TRUNCATED } else { 0 };
            }
            Found::Alias(target) => {
                if let Ok(length) = u16::try_from(target.len()) {
                    push_fixed(out, &[0xc0, 12], kind::CNAME, zone.ttl(), length);
                    out.extend_from_slice(target);
                    counts.answers = 1;
                }
            }
            Found::NoName | Found::NoData | Found::Elsewhere => {
                if matches!(found, Found::NoName) {
                    code = rcode::NX_DOMAIN;
                }
                push_soa(zone, name, out);
                counts.authorities = 1;
            }
        }
        end(asker, counts, flags, code, self.upstreams, out);
    }

    /// An alias, followed through the zone to an answer or to a name outside it.
    fn follow(
        &self,
        zone: &Zone,
        asker: Asker<'_>,
        name: &Name,
        target: &[u8],
        kind: u16,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let mut aliases: Vec<Box<[u8]>> = vec![name.wire().into()];
        let mut target = target;
        loop {
            let Some(next) = Name::from_wire(target).filter(|_| aliases.len() <= MAX_ALIASES) else {
                self.refuse(asker, rcode::SERV_FAIL, out);
                return Outcome::Reply;
            };
            let found = zone.find(&next, kind);
            if let Found::Alias(further) = found {
                aliases.push(target.into());
                target = further;
                continue;
            }
            if let Found::Elsewhere = found {
                if self.upstreams {
                    return self.elsewhere(asker, &next, kind, aliases, zone.ttl(), out);
                }
                // The alias itself is ours to tell; what it stands for the client must find elsewhere.
                self.answer(zone, asker, name, zone.find(name, kind::CNAME), 0, out);
                return Outcome::Reply;
            }
            let question = [next.wire(), &kind.to_be_bytes(), &crate::wire::IN.to_be_bytes()].concat();
            let inner = Asker { question: &question, edns: None, transport: Transport::Tcp, ..asker };
            let mut end = Vec::new();
            self.answer(zone, inner, &next, found, 0, &mut end);
            match prepend_aliases(&aliases, next.wire(), kind, zone.ttl(), &end) {
                Some(message) => deliver(asker, &message, flag::AUTHORITATIVE, out),
                None => self.refuse(asker, rcode::SERV_FAIL, out),
            }
            return Outcome::Reply;
        }
    }
}

/// Replies with a bare code.
pub(crate) fn refuse(asker: Asker<'_>, code: u16, recursion: bool, out: &mut Vec<u8>) {
    begin(asker, out);
    let counts = Counts { questions: u16::from(!asker.question.is_empty()), ..Counts::default() };
    end(asker, counts, 0, code, recursion, out);
}

/// The reply to a forwarded question, from what another server answered (without its OPT record).
pub(crate) fn reply(question: &Question, response: &[u8], out: &mut Vec<u8>) {
    let asker = question.client.asker();
    if question.aliases.is_empty() {
        return deliver(asker, response, 0, out);
    }
    match prepend_aliases(&question.aliases, &question.name, question.kind, question.ttl, response) {
        Some(message) => deliver(asker, &message, flag::AUTHORITATIVE, out),
        None => refuse(asker, rcode::SERV_FAIL, true, out),
    }
}

/// The reply to a forwarded question that no server answered. An alias is told all the same: it is ours to know.
pub(crate) fn reply_unanswered(question: &Question, out: &mut Vec<u8>) {
    let asker = question.client.asker();
    refuse(asker, rcode::SERV_FAIL, true, out);
    if !question.aliases.is_empty() {
        let bare = out.clone();
        reply(question, &bare, out);
    }
}

fn begin(asker: Asker<'_>, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&asker.id.to_be_bytes());
    out.extend_from_slice(&[0; HEADER - 2]);
    out.extend_from_slice(asker.question);
}

/// Completes the header, and adds the OPT record that answers the client's.
fn end(asker: Asker<'_>, mut counts: Counts, flags: u16, code: u16, recursion: bool, out: &mut Vec<u8>) {
    let echoed = asker.flags & (flag::OPCODE | flag::RECURSION_DESIRED | flag::CHECKING_DISABLED);
    let available = if recursion { flag::RECURSION_AVAILABLE } else { 0 };
    put_u16(out, 2, flag::RESPONSE | echoed | available | flags | (code & flag::RCODE));
    if let Some(edns) = asker.edns {
        counts.additionals += 1;
        // Root, type, our size, the code's upper bits, version 0, DO as it came, no options.
        out.push(0);
        out.extend_from_slice(&kind::OPT.to_be_bytes());
        out.extend_from_slice(&MAX_UDP.to_be_bytes());
        out.extend_from_slice(&[code.to_be_bytes()[0] << 4 | code.to_be_bytes()[1] >> 4, 0]);
        out.extend_from_slice(&[if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, 0]);
    }
    counts.write(out);
}

fn push_soa(zone: &Zone, name: &Name, out: &mut Vec<u8>) {
    // The zone's name stands at the end of the question; a reverse name has only itself.
    let before =
        name.wire().len() - name.labels_before(zone.name()).map_or(name.wire().len(), |_| zone.name().wire().len());
    let owner = 0xc000 | u16::try_from(HEADER + before).unwrap_or(12);
    push_fixed(out, &owner.to_be_bytes(), kind::SOA, zone.ttl(), 0);
    let data = out.len();
    zone.push_soa(out);
    if let Ok(length) = u16::try_from(out.len() - data) {
        put_u16(out, data - 2, length);
    }
}

/// A complete message without OPT -> the reply to `asker`, whose question is as long as the message's: its id, flags
/// and spelling, our OPT record, and no more records than it takes.
fn deliver(asker: Asker<'_>, message: &[u8], flags: u16, out: &mut Vec<u8>) {
    let (Some(theirs), Some(counts)) = (u16_at(message, 2), Counts::read(message)) else {
        return refuse(asker, rcode::SERV_FAIL, true, out);
    };
    begin(asker, out);
    let room = asker.limit().saturating_sub(if asker.edns.is_some() { OPT } else { 0 });
    let sections = [counts.answers, counts.authorities, counts.additionals];
    let mut kept = [0u16; 3];
    let (mut at, mut truncated) = (out.len(), false);
    'sections: for (section, count) in sections.into_iter().enumerate() {
        for _ in 0..count {
            match RecordAt::read(message, at) {
                Some(record) if record.end <= room => at = record.end,
                _ => {
                    // Additional records may be left out silently (RFC 2181 §9).
                    truncated = section < 2;
                    break 'sections;
                }
            }
            kept[section] += 1;
        }
    }
    out.extend_from_slice(message.get(out.len()..at).unwrap_or_default());
    let counts = Counts { questions: 1, answers: kept[0], authorities: kept[1], additionals: kept[2] };
    let truncated = if truncated { flag::TRUNCATED } else { theirs & flag::TRUNCATED };
    end(asker, counts, flags | truncated, theirs & flag::RCODE, true, out);
}

/// Puts the aliases that lead to a message's question in front of its answers, and asks about the first of them.
fn prepend_aliases(aliases: &[Box<[u8]>], target: &[u8], kind: u16, ttl: u32, message: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(message).ok()?;
    let name = |wire: &[u8]| DecodedName::from_bytes(wire).ok();
    let targets = aliases.iter().skip(1).map(|alias| &**alias).chain([target]);
    let mut answers = Vec::new();
    for (alias, target) in aliases.iter().zip(targets) {
        answers.push(Record::from_rdata(name(alias)?, ttl, RData::CNAME(CNAME(name(target)?))));
    }
    answers.append(&mut message.answers);
    message.answers = answers;
    message.queries = vec![DecodedQuery::query(name(aliases.first()?)?, RecordType::from(kind))];
    message.edns = None;
    message.to_vec().ok()
}
