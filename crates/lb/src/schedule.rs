//! When to announce which address without being asked.
//!
//! Invariant: a burst when an address comes, because frames get lost and hosts ignore a change so soon after the last;
//! then now and then for as long as it stays, because switches forget. However many addresses there are, at most
//! [`AT_ONCE`] are announced together. Pure: the caller says what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Between the announcements of a burst. Linux ignores a change within a second of the last (`locktime`).
const BURST: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(400),
    Duration::from_millis(1_000),
    Duration::from_millis(3_000),
];
/// Well within the 300 s after which switches forget where a station is.
const AFTERWARDS: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 32;
/// Before the next ones, if more are due.
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(crate) struct Schedule {
    /// When each is due, and how many of its burst are done.
    addresses: BTreeMap<Ipv4Addr, (Instant, usize)>,
    order: BTreeSet<(Instant, Ipv4Addr)>,
    /// Not before then.
    paused: Option<Instant>,
}

impl Schedule {
    /// Begins the burst, again if need be.
    pub(crate) fn begin(&mut self, address: Ipv4Addr, now: Instant) {
        self.put(address, now, 0);
    }

    pub(crate) fn end(&mut self, address: Ipv4Addr) {
        if let Some((due, _)) = self.addresses.remove(&address) {
            self.order.remove(&(due, address));
        }
    }

    pub(crate) fn contains(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains_key(&address)
    }

    pub(crate) fn begin_all(&mut self, now: Instant) {
        let all: Vec<Ipv4Addr> = self.addresses.keys().copied().collect();
        all.into_iter().for_each(|address| self.begin(address, now));
    }

    fn put(&mut self, address: Ipv4Addr, due: Instant, done: usize) {
        self.end(address);
        self.addresses.insert(address, (due, done));
        self.order.insert((due, address));
    }

    /// What to announce now; each comes again later.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Ipv4Addr> {
        if self.paused.is_some_and(|until| until > now) {
            return Vec::new();
        }
        let due: Vec<Ipv4Addr> =
            self.order.iter().take_while(|(due, _)| *due <= now).take(AT_ONCE).map(|(_, address)| *address).collect();
        for address in &due {
            let done = self.addresses.get(address).map_or(0, |(_, done)| *done);
            self.put(*address, now + BURST.get(done).copied().unwrap_or(AFTERWARDS), done + 1);
        }
        self.paused = (!due.is_empty()).then_some(now + PAUSE);
        due
    }

    /// When to ask again; `None` while there is nothing to announce.
    pub(crate) fn next(&self) -> Option<Instant> {
        let (first, _) = self.order.first()?;
        Some(self.paused.map_or(*first, |until| until.max(*first)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    /// How often the address is announced until `end`, asked whenever the schedule says.
    fn announced(schedule: &mut Schedule, mut now: Instant, end: Instant) -> usize {
        let mut count = 0;
        while let Some(next) = schedule.next().filter(|next| *next <= end) {
            assert!(count == 0 || next > now, "it never spins");
            now = now.max(next);
            count += schedule.due(now).len();
        }
        count
    }

    #[test]
    fn a_burst_and_then_now_and_then() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(), None);
        schedule.begin(ADDRESS, start);
        assert_eq!(announced(&mut schedule, start, start + Duration::from_secs(5)), 6);
        assert_eq!(announced(&mut schedule, start, start + Duration::from_secs(605)), 10);
        schedule.begin_all(start + Duration::from_secs(605));
        assert_eq!(announced(&mut schedule, start, start + Duration::from_secs(610)), 6);
        schedule.end(ADDRESS);
        assert!(schedule.next().is_none() && !schedule.contains(ADDRESS));
    }

    #[test]
    fn many_addresses_are_paced_and_none_is_forgotten() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        (0..1_000u32).for_each(|index| schedule.begin(Ipv4Addr::from(index), start));
        assert_eq!(schedule.due(start).len(), AT_ONCE);
        assert!(schedule.due(start).is_empty());
        let soon = start + Duration::from_millis(30);
        assert_eq!(announced(&mut schedule, start, soon), AT_ONCE * 6);
        assert_eq!(AT_ONCE + AT_ONCE * 6 + announced(&mut schedule, soon, start + Duration::from_secs(30)), 6_000);
    }
}
