//! Records that answer one question, as wire bytes ready to be copied behind it.
//!
//! Invariant: every compression pointer leads into the question, whose length is known when the answer is built and
//! whose name keeps the client's case. So nothing has to be patched when it is sent.
//!
//! Source: RFC 1035 §4.1.3 and §4.1.4, RFC 2782 (SRV; its target is never compressed).

use std::net::IpAddr;

use crate::wire::{HEADER, IN, RecordAt, kind};

/// The most that any client can be told: a message of 65,535 octets with the longest question and OPT. That is 4,078
/// IPv4 addresses, or some 700 SRV records; of more, each reply has as many as fit, and says that it is truncated.
const MOST_TOLD: usize = 65_535 - HEADER - 259 - 11;

/// The question's own name.
const QUESTION: u16 = 0xc000 | 12;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    body: Box<[u8]>,
    answers: usize,
    additionals: usize,
    /// Where the additional records begin in `body`.
    split: usize,
    /// The length of each answer, if they are all as long and their order means nothing: then it may be rotated.
    stride: u16,
}

/// What of an answer went into a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) answers: u16,
    pub(crate) additionals: u16,
    pub(crate) truncated: bool,
}

impl Answer {
    /// Whether no reply can hold it whole.
    pub(crate) fn outgrows_every_reply(&self) -> bool {
        self.split > MOST_TOLD
    }

    /// Appends to `out` what fits into `room` octets. Additional records are a courtesy and go first; an answer that
    /// does not fit is truncated after a whole record. `turn` rotates addresses, so that clients that take the first
    /// spread over all.
    pub(crate) fn copy_to(&self, out: &mut Vec<u8>, room: usize, turn: usize) -> Copied {
        let (answers, additionals) = self.body.split_at(self.split);
        if answers.len() > room {
            return self.copy_partly(out, room, turn);
        }
        self.copy_rotated(out, answers, turn);
        let glue = answers.len() + additionals.len() <= room;
        if glue {
            out.extend_from_slice(additionals);
        }
        let additionals = if glue { self.additionals } else { 0 };
        Copied { answers: counted(self.answers), additionals: counted(additionals), truncated: false }
    }

    fn copy_rotated(&self, out: &mut Vec<u8>, answers: &[u8], turn: usize) {
        let first = self.first(turn);
        out.extend_from_slice(&answers[first..]);
        out.extend_from_slice(&answers[..first]);
    }

    /// Where the turn's first record begins.
    fn first(&self, turn: usize) -> usize {
        if self.stride == 0 { 0 } else { turn % self.answers * usize::from(self.stride) }
    }

    fn copy_partly(&self, out: &mut Vec<u8>, room: usize, turn: usize) -> Copied {
        let mut copied = Copied { truncated: true, ..Copied::default() };
        let start = out.len();
        let answers = &self.body[..self.split];
        let mut at = self.first(turn);
        while usize::from(copied.answers) < self.answers {
            let Some(record) = RecordAt::read(answers, at) else { break };
            if out.len() - start + (record.end - at) > room {
                break;
            }
            out.extend_from_slice(&answers[at..record.end]);
            copied.answers += 1;
            at = if record.end == answers.len() { 0 } else { record.end };
        }
        copied
    }
}

/// What fits a message is not more than its header can count.
fn counted(records: usize) -> u16 {
    u16::try_from(records).unwrap_or(u16::MAX)
}

/// Builds an [`Answer`] to a question whose name is `question_name` octets long.
pub(crate) struct Builder {
    ttl: u32,
    answers: Vec<u8>,
    answer_count: usize,
    additionals: Vec<u8>,
    additional_count: usize,
    stride: Option<u16>,
}

impl Builder {
    pub(crate) fn new(ttl: u32) -> Self {
        Self { ttl, answers: Vec::new(), answer_count: 0, additionals: Vec::new(), additional_count: 0, stride: None }
    }

    /// An A or AAAA record of the question's name.
    pub(crate) fn address(&mut self, address: IpAddr) {
        let start = self.answers.len();
        push_address(&mut self.answers, &QUESTION.to_be_bytes(), self.ttl, address);
        self.answer_count += 1;
        self.stride = u16::try_from(self.answers.len() - start).ok();
    }

    /// Any other record of the question's name.
    pub(crate) fn record(&mut self, kind: u16, data: &[u8]) {
        let Ok(length) = u16::try_from(data.len()) else { return };
        self.stride = None;
        push_fixed(&mut self.answers, &QUESTION.to_be_bytes(), kind, self.ttl, length);
        self.answers.extend_from_slice(data);
        self.answer_count += 1;
    }

    pub(crate) fn srv(&mut self, weight: u16, port: u16, target: &[u8]) {
        let mut data = Vec::with_capacity(6 + target.len());
        // Priority 0.
        for value in [0, weight, port] {
            data.extend_from_slice(&value.to_be_bytes());
        }
        data.extend_from_slice(target);
        self.record(kind::SRV, &data);
    }

    /// An additional address of `label` (on the wire; may be empty) followed by what the question's name has from its
    /// octet `suffix` on.
    pub(crate) fn glue(&mut self, label: &[u8], suffix: usize, address: IpAddr) {
        let Ok(offset) = u16::try_from(HEADER + suffix) else { return };
        let owner = [label, &(0xc000 | offset).to_be_bytes()].concat();
        push_address(&mut self.additionals, &owner, self.ttl, address);
        self.additional_count += 1;
    }

    /// `None` if there is no record to answer with.
    pub(crate) fn build(self) -> Option<Answer> {
        (self.answer_count > 0).then(|| Answer {
            split: self.answers.len(),
            body: [self.answers, self.additionals].concat().into(),
            answers: self.answer_count,
            additionals: self.additional_count,
            stride: self.stride.unwrap_or_default(),
        })
    }
}

fn push_address(out: &mut Vec<u8>, owner: &[u8], ttl: u32, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            push_fixed(out, owner, kind::A, ttl, 4);
            out.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            push_fixed(out, owner, kind::AAAA, ttl, 16);
            out.extend_from_slice(&address.octets());
        }
    }
}

/// Everything of a record before its data.
pub(crate) fn push_fixed(out: &mut Vec<u8>, owner: &[u8], kind: u16, ttl: u32, length: u16) {
    out.extend_from_slice(owner);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Answer {
        let mut builder = Builder::new(5);
        (0..count).for_each(|last| builder.address(IpAddr::from([10, 0, 0, last])));
        builder.build().unwrap()
    }

    fn lasts(out: &[u8]) -> Vec<u8> {
        out.chunks(16).map(|record| record[15]).collect()
    }

    #[test]
    fn addresses_rotate_and_truncate_after_a_whole_record() {
        let answer = addresses(4);
        let mut out = Vec::new();
        assert_eq!(answer.copy_to(&mut out, 64, 5), Copied { answers: 4, additionals: 0, truncated: false });
        assert_eq!(lasts(&out), [1, 2, 3, 0]);
        out.clear();
        assert_eq!(answer.copy_to(&mut out, 63, 2), Copied { answers: 3, additionals: 0, truncated: true });
        assert_eq!(lasts(&out), [2, 3, 0]);
    }

    #[test]
    fn additional_records_give_way_without_truncation() {
        let mut builder = Builder::new(5);
        builder.srv(100, 80, b"\x01a\x00");
        builder.glue(b"\x01a", 0, IpAddr::from([10, 0, 0, 1]));
        let answer = builder.build().unwrap();
        let mut out = Vec::new();
        assert_eq!(answer.copy_to(&mut out, 21, 7), Copied { answers: 1, additionals: 0, truncated: false });
        assert_eq!(out.len(), 21);
        out.clear();
        assert_eq!(answer.copy_to(&mut out, 100, 0), Copied { answers: 1, additionals: 1, truncated: false });
    }

    #[test]
    fn an_answer_is_told_to_outgrow_every_reply_when_its_last_record_does() {
        let of = |records: usize| {
            let mut builder = Builder::new(5);
            (0..records).for_each(|_| builder.address(IpAddr::from([10, 0, 0, 1])));
            builder.build().unwrap()
        };
        let (fits, outgrows) = (of(4_078), of(4_079));
        assert!(!fits.outgrows_every_reply() && outgrows.outgrows_every_reply());
        assert!(!fits.copy_to(&mut Vec::new(), MOST_TOLD, 0).truncated);
        let told = outgrows.copy_to(&mut Vec::new(), MOST_TOLD, 0);
        assert_eq!(told, Copied { answers: 4_078, additionals: 0, truncated: true });
    }
}
