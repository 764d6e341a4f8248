//! Replies of other servers, kept for as long as they say.
//!
//! Invariants: what is kept never exceeds the given number of octets; a reply is handed out with the time it has left,
//! and never after. Pure: the caller says what time it is.
//!
//! Source: RFC 2181 §8 (TTL), RFC 2308 §5 (negative answers).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::upstream::Ask;
use crate::wire::{Counts, HEADER, Name, RecordAt, flag, kind, rcode, u16_at, u32_at};

/// However long a reply says it holds.
const LONGEST: u32 = 3_600;
const LONGEST_NEGATIVE: u32 = 300;
/// What an entry costs besides its message and name.
const OVERHEAD: usize = 200;

pub(crate) struct Cache {
    entries: HashMap<Arc<Ask>, Entry>,
    /// By when they came: the oldest gives way.
    order: BTreeMap<u64, Arc<Ask>>,
    next: u64,
    size: usize,
    limit: usize,
}

struct Entry {
    message: Box<[u8]>,
    stored: Instant,
    lifetime: Duration,
    order: u64,
}

impl Cache {
    /// Keeps at most `limit` octets.
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), order: BTreeMap::new(), next: 0, size: 0, limit }
    }

    /// The reply with its times to live reduced by the time that has passed.
    pub(crate) fn get(&self, ask: &Ask, now: Instant) -> Option<Vec<u8>> {
        let entry = self.entries.get(ask)?;
        let age = now.saturating_duration_since(entry.stored);
        if age >= entry.lifetime {
            return None;
        }
        let mut message = entry.message.to_vec();
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in records(&entry.message) {
            record.set_ttl(&mut message, record.ttl(&entry.message).saturating_sub(age));
        }
        Some(message)
    }

    pub(crate) fn put(&mut self, ask: Arc<Ask>, message: &[u8], now: Instant) {
        self.remove(&ask);
        let size = cost(&ask, message);
        let Some(lifetime) = lifetime(message).filter(|_| size <= self.limit / 8) else { return };
        while self.size + size > self.limit {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            self.remove(&oldest.clone());
        }
        let entry = Entry { message: message.into(), stored: now, lifetime, order: self.next };
        self.order.insert(self.next, ask.clone());
        self.entries.insert(ask, entry);
        self.next += 1;
        self.size += size;
    }

    fn remove(&mut self, ask: &Ask) {
        if let Some(entry) = self.entries.remove(ask) {
            self.order.remove(&entry.order);
            self.size -= cost(ask, &entry.message);
        }
    }
}

fn cost(ask: &Ask, message: &[u8]) -> usize {
    message.len() + ask.name.len() + OVERHEAD
}

fn records(message: &[u8]) -> impl Iterator<Item = RecordAt> {
    let count = Counts::read(message).map_or(0, Counts::records);
    let mut at = Name::read(message, HEADER).map_or(message.len(), |(_, end)| end + 4);
    (0..count).map_while(move |_| {
        let record = RecordAt::read(message, at)?;
        at = record.end;
        Some(record)
    })
}

/// How long the reply may be repeated; `None` if it may not.
fn lifetime(message: &[u8]) -> Option<Duration> {
    let code = u16_at(message, 2)? & flag::RCODE;
    let answers = usize::from(Counts::read(message)?.answers);
    let answered = records(message).take(answers).map(|record| record.ttl(message)).min();
    let negative = records(message).skip(answers).find(|record| record.kind == kind::SOA).map(|soa| {
        let data = soa.data(message);
        let minimum = data.len().checked_sub(4).and_then(|at| u32_at(data, at)).unwrap_or_default();
        soa.ttl(message).min(minimum).min(LONGEST_NEGATIVE)
    });
    let seconds = match code {
        // With an SOA record an answer of aliases alone is negative; without one there is nothing to go by.
        rcode::NO_ERROR => [answered, negative].into_iter().flatten().min(),
        rcode::NX_DOMAIN => negative.map(|negative| negative.min(answered.unwrap_or(u32::MAX))),
        _ => None,
    };
    // The upper bit is no part of a TTL (RFC 2181 §8).
    let seconds = seconds.filter(|seconds| *seconds > 0 && *seconds >> 31 == 0)?;
    Some(Duration::from_secs(seconds.min(LONGEST).into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::push_fixed;
    use crate::wire::{IN, encode};

    fn ask(name: &str) -> Arc<Ask> {
        let name = encode(name).unwrap().into();
        Arc::new(Ask { name, kind: kind::A, dnssec_ok: false, checking_disabled: false })
    }

    /// A reply with answers, and perhaps an SOA record, of these times to live; the SOA's minimum is 20.
    fn message(ask: &Ask, code: u16, answers: &[u32], soa: Option<u32>) -> Vec<u8> {
        let mut message = Vec::new();
        let answer_count = u16::try_from(answers.len()).unwrap();
        for value in [7, flag::RESPONSE | code, 1, answer_count, u16::from(soa.is_some()), 0] {
            message.extend_from_slice(&value.to_be_bytes());
        }
        message.extend_from_slice(&ask.name);
        message.extend_from_slice(&[kind::A.to_be_bytes(), IN.to_be_bytes()].concat());
        for ttl in answers {
            push_fixed(&mut message, &[0xc0, 12], kind::A, *ttl, 4);
            message.extend_from_slice(&[192, 0, 2, 1]);
        }
        if let Some(ttl) = soa {
            push_fixed(&mut message, &[0], kind::SOA, ttl, 22);
            message.extend_from_slice(&[&[0; 18][..], &20u32.to_be_bytes()].concat());
        }
        message
    }

    /// The seconds for which a reply is repeated.
    fn kept(code: u16, answers: &[u32], soa: Option<u32>) -> Option<u64> {
        lifetime(&message(&ask("a.test"), code, answers, soa)).map(|lifetime| lifetime.as_secs())
    }

    #[test]
    fn a_reply_is_kept_for_as_long_as_it_says() {
        use crate::wire::rcode::{NO_ERROR, NX_DOMAIN, REFUSED, SERV_FAIL};
        assert_eq!(kept(NO_ERROR, &[60, 30], None), Some(30));
        assert_eq!(kept(NO_ERROR, &[60, 0], None), None);
        assert_eq!(kept(NO_ERROR, &[1_000_000], None), Some(3_600));
        assert_eq!(kept(NO_ERROR, &[0x8000_0001], None), None);
        assert_eq!(kept(NO_ERROR, &[], None), None);
        assert_eq!(kept(NO_ERROR, &[], Some(60)), Some(20));
        assert_eq!(kept(NO_ERROR, &[], Some(10)), Some(10));
        assert_eq!(kept(NO_ERROR, &[15], Some(60)), Some(15));
        assert_eq!(kept(NX_DOMAIN, &[], Some(60)), Some(20));
        assert_eq!(kept(NX_DOMAIN, &[60], None), None);
        assert_eq!(kept(SERV_FAIL, &[60], Some(60)), None);
        assert_eq!(kept(REFUSED, &[60], Some(60)), None);
    }

    #[test]
    fn it_is_handed_out_with_the_time_that_is_left() {
        let (mut cache, ask, start) = (Cache::new(10_000), ask("a.test"), Instant::now());
        cache.put(ask.clone(), &message(&ask, 0, &[60, 90], None), start);
        let left = |after| {
            let message = cache.get(&ask, start + Duration::from_secs(after))?;
            Some(records(&message).map(|record| record.ttl(&message)).collect::<Vec<_>>())
        };
        assert_eq!(left(0), Some(vec![60, 90]));
        assert_eq!(left(59), Some(vec![1, 31]));
        assert_eq!(left(60), None);
    }

    #[test]
    fn the_oldest_gives_way_and_the_size_is_bounded() {
        let (mut cache, start) = (Cache::new(3_000), Instant::now());
        let names: Vec<Arc<Ask>> = (0..100).map(|index| ask(&format!("n{index}.test"))).collect();
        for name in names.iter().chain(&names[90..]) {
            cache.put(name.clone(), &message(name, 0, &[60], None), start);
            assert!(cache.size <= 3_000 && cache.entries.len() == cache.order.len());
        }
        assert!(cache.get(&names[99], start).is_some() && cache.get(&names[0], start).is_none());
        let held: usize = cache.entries.iter().map(|(ask, entry)| cost(ask, &entry.message)).sum();
        assert_eq!(cache.size, held);
        // A reply that would push out all others is not kept.
        cache.put(names[0].clone(), &message(&names[0], 0, &[60; 200], None), start);
        assert!(cache.get(&names[0], start).is_none());
    }
}
