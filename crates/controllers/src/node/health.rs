//! Lease renewals, as this process sees them -> which nodes are alive.
//!
//! Invariants: no clock of another machine is believed, only that a lease changed; so neither a restart of this process
//! nor skewed clocks can condemn a node. A node is dead only if the others prove meanwhile that renewals do arrive:
//! when none arrives the fault is on this side, and nobody is condemned. After such a silence each node gets time to
//! renew. A renewal that comes late although others were heard of, as on a machine with too much to do, makes this
//! process more patient with all nodes for a while, so that it does not condemn the living again and again.
//! Deliberately not here: what is done about a dead node.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

/// After a late renewal a node may be silent for half as long again, but not for more than so many timeouts.
const MOST_PATIENCE: u32 = 8;
/// How long a late renewal is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// So many timeouts without any renewal, after it was first doubted, make a node silent.
const SILENT: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Alive,
    /// Overdue, but nobody else is heard of either, so it may be this process that is deaf.
    Doubtful,
    /// Doubtful for so long that people should be told.
    Silent,
    Dead,
}

#[derive(Debug)]
struct Seen {
    /// The lease's renewTime, whatever it means.
    mark: String,
    /// The lease's acquireTime: since when the node has held it. One that starts anew is not late.
    term: String,
    at: Instant,
    /// It was given extra time after a silence; a second time it is not.
    spared: bool,
    /// When this process first doubted it. Silence counts from here, so that a process that was itself stopped for a
    /// while does not take its own sleep for the nodes'.
    doubted: Option<Instant>,
}

#[derive(Debug)]
pub(crate) struct Pulse {
    timeout: Duration,
    nodes: BTreeMap<String, Seen>,
    /// Recent renewals by anybody, in order.
    renewals: VecDeque<Instant>,
    /// The latest renewal that was late, and the longest of the silences that such ones ended.
    late: Option<(Instant, Duration)>,
}

impl Pulse {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, nodes: BTreeMap::new(), renewals: VecDeque::new(), late: None }
    }

    /// A node exists. Its time begins now, even if its lease is old: this process has not watched it before.
    pub(crate) fn appeared(&mut self, node: &str, now: Instant) {
        if !self.nodes.contains_key(node) {
            let (mark, term) = Default::default();
            self.nodes.insert(node.to_owned(), Seen { mark, term, at: now, spared: false, doubted: None });
        }
    }

    pub(crate) fn vanished(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// A node's lease reads `mark`, in the `term` that began when the node started.
    pub(crate) fn renewed(&mut self, node: &str, term: &str, mark: &str, now: Instant) {
        let Some(seen) = self.nodes.get(node) else { return };
        if seen.mark == mark {
            return;
        }
        let (silence, goes_on) = (now - seen.at, seen.term == term && !seen.mark.is_empty() && !seen.spared);
        if goes_on
            && silence * 3 >= self.timeout * 2
            && self.proof(seen, self.timeout).is_some_and(|at| at <= self.until(now))
        {
            let longest = self.late.filter(|(at, _)| now - *at < MEMORY).map_or(silence, |(_, longest)| longest);
            self.late = Some((now, longest.max(silence)));
        }
        let (mark, term) = (mark.to_owned(), term.to_owned());
        self.nodes.insert(node.to_owned(), Seen { mark, term, at: now, spared: false, doubted: None });
        let silence = self.renewals.back().map(|last| now - *last);
        if silence.is_some_and(|silence| silence >= self.timeout * 3 / 4) {
            // The others' renewals are likely on their way behind this one.
            let spare = now.checked_sub(self.timeout / 2).unwrap_or(now);
            for seen in self.nodes.values_mut().filter(|seen| !seen.spared && seen.at < spare) {
                seen.at = spare;
                seen.spared = true;
            }
        }
        self.renewals.push_back(now);
        while self.renewals.front().is_some_and(|first| now - *first > self.timeout * 4) {
            self.renewals.pop_front();
        }
    }

    /// How long a node may be silent now.
    fn patience(&self, now: Instant) -> Duration {
        let late =
            self.late.filter(|(at, _)| now - *at < MEMORY).map_or(Duration::ZERO, |(_, silence)| silence * 3 / 2);
        late.clamp(self.timeout, self.timeout * MOST_PATIENCE)
    }

    /// Notes that somebody looks at the node now. See [`Seen::doubted`].
    pub(crate) fn look(&mut self, node: &str, now: Instant) {
        let patience = self.patience(now);
        if let Some(seen) = self.nodes.get_mut(node)
            && now >= seen.at + patience
        {
            seen.doubted.get_or_insert(now);
        }
    }

    /// The first renewal by anybody in the second half of the time that the node was allowed, which proves that renewals
    /// do arrive.
    fn proof(&self, seen: &Seen, patience: Duration) -> Option<Instant> {
        let heard = self.renewals.partition_point(|at| *at < seen.at + patience / 2);
        self.renewals.get(heard).copied()
    }

    /// Not only just now, when the node's own renewal may be next in line.
    fn until(&self, now: Instant) -> Instant {
        now.checked_sub(self.settle()).unwrap_or(now)
    }

    pub(crate) fn health(&self, node: &str, now: Instant) -> Health {
        let Some(seen) = self.nodes.get(node) else { return Health::Alive };
        let patience = self.patience(now);
        if now < seen.at + patience {
            return Health::Alive;
        }
        if self.proof(seen, patience).is_some_and(|at| at <= self.until(now)) {
            Health::Dead
        } else if seen.doubted.is_some_and(|since| now >= since + patience * SILENT) {
            Health::Silent
        } else {
            Health::Doubtful
        }
    }

    /// When the node's health may change without any renewal.
    pub(crate) fn deadline(&self, node: &str, now: Instant) -> Option<Instant> {
        let seen = self.nodes.get(node)?;
        let patience = self.patience(now);
        let proven = self.proof(seen, patience).map(|at| at + self.settle());
        let silent = seen.doubted.unwrap_or(now) + patience * SILENT;
        match self.health(node, now) {
            Health::Alive => Some(seen.at + patience),
            Health::Doubtful => Some(proven.map_or(silent, |proven| proven.min(silent))),
            Health::Silent => proven,
            Health::Dead => None,
        }
    }

    /// The nodes that have not renewed in time.
    pub(crate) fn overdue(&self, now: Instant) -> impl Iterator<Item = &str> {
        let patience = self.patience(now);
        self.nodes.iter().filter(move |(_, seen)| now >= seen.at + patience).map(|(node, _)| node.as_str())
    }

    pub(crate) fn is_anybody_alive(&self, now: Instant) -> bool {
        let patience = self.patience(now);
        self.nodes.values().any(|seen| now < seen.at + patience)
    }

    fn settle(&self) -> Duration {
        self.timeout / 20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(2);

    /// Nodes renew at the given milliseconds; then who is what at the time asked.
    fn check(renewals: &[(u64, &str)], at: u64, expected: &[(&str, Health)]) {
        check_looking(renewals, &[], at, expected);
    }

    /// The same, and somebody looks at them at the given milliseconds after the last renewal.
    fn check_looking(renewals: &[(u64, &str)], looks: &[u64], at: u64, expected: &[(&str, Health)]) {
        let start = Instant::now();
        let time = |millis| start + Duration::from_millis(millis);
        let mut pulse = Pulse::new(TIMEOUT);
        for node in ["a", "b", "c"] {
            pulse.appeared(node, start);
        }
        for (millis, node) in renewals {
            pulse.renewed(node, "", &millis.to_string(), time(*millis));
        }
        looks.iter().for_each(|look| ["a", "b", "c"].iter().for_each(|node| pulse.look(node, time(*look))));
        for (node, health) in expected {
            assert_eq!(pulse.health(node, time(at)), *health, "{node} at {at} after {renewals:?}");
        }
    }

    #[test]
    fn a_silent_node_among_others_is_dead_after_the_timeout() {
        let renewals = [(100, "a"), (400, "b"), (700, "c"), (1400, "b"), (1700, "c")];
        check(&renewals, 2000, &[("a", Health::Alive), ("b", Health::Alive)]);
        check(&renewals, 2100, &[("a", Health::Dead), ("b", Health::Alive), ("c", Health::Alive)]);
    }

    #[test]
    fn renewals_in_step_prove_just_as_well() {
        check(&[(0, "a"), (1, "b"), (2, "c"), (1010, "b"), (1011, "c")], 2001, &[("a", Health::Dead)]);
    }

    #[test]
    fn when_nobody_is_heard_of_nobody_is_dead() {
        let renewals = [(100, "a"), (400, "b"), (700, "c")];
        for at in [2200, 3000, 10_000] {
            check(&renewals, at, &[("a", Health::Doubtful)]);
        }
        check_looking(&renewals, &[2100, 2400, 2700], 10_600, &[("a", Health::Silent), ("c", Health::Doubtful)]);
        check_looking(&renewals, &[2100, 2400, 2700], 10_700, &[("a", Health::Silent), ("c", Health::Silent)]);
    }

    #[test]
    fn a_process_that_slept_itself_takes_no_node_for_silent() {
        let renewals = [(100, "a"), (400, "b"), (700, "c")];
        check_looking(&renewals, &[600, 60_000], 60_000, &[("a", Health::Doubtful), ("c", Health::Doubtful)]);
    }

    #[test]
    fn after_a_silence_the_first_to_be_heard_condemns_nobody() {
        let renewals = [(100, "a"), (400, "b"), (700, "c"), (9000, "b")];
        check(&renewals, 9050, &[("a", Health::Alive), ("c", Health::Alive)]);
        check(&renewals, 9900, &[("a", Health::Alive), ("c", Health::Alive)]);
        // But once the extra time is over, those that stayed silent are dead.
        let renewals = [(100, "a"), (400, "b"), (700, "c"), (9000, "b"), (9010, "c"), (10_000, "b"), (10_010, "c")];
        check(&renewals, 10_100, &[("a", Health::Dead), ("b", Health::Alive), ("c", Health::Alive)]);
    }

    #[test]
    fn a_short_stall_condemns_nobody() {
        let before = [(100, "a"), (500, "b"), (900, "c")];
        let mut renewals = before.to_vec();
        // All was stopped from 1000 to 2350, then all renewals arrive in a row.
        check(&renewals, 2340, &[("a", Health::Doubtful), ("b", Health::Alive)]);
        renewals.push((2350, "b"));
        check(&renewals, 2355, &[("a", Health::Doubtful)]);
        renewals.push((2360, "a"));
        check(&renewals, 2460, &[("a", Health::Alive)]);
    }

    #[test]
    fn a_lone_survivor_proves_the_others_dead_without_endless_grace() {
        let renewals = [(100, "a"), (100, "b"), (100, "c"), (1700, "a"), (3300, "a"), (4900, "a")];
        check(&renewals, 5000, &[("b", Health::Dead), ("c", Health::Dead), ("a", Health::Alive)]);
    }

    /// `b` renews in time, and `a` so long after it did last, in the same term or in another.
    fn late(millis: u64, term: &str) -> (Pulse, Instant) {
        let start = Instant::now();
        let time = |millis| start + Duration::from_millis(millis);
        let mut pulse = Pulse::new(TIMEOUT);
        for (node, term) in [("a", "then"), ("b", "")] {
            pulse.appeared(node, start);
            pulse.renewed(node, term, "0", start);
        }
        (1..=millis / 500).for_each(|step| pulse.renewed("b", "", &step.to_string(), time(step * 500)));
        let late = time(millis + 300);
        pulse.renewed("a", term, "late", late);
        (pulse, late)
    }

    /// After how many milliseconds of silence `a` is given up.
    fn given_up(pulse: &mut Pulse, from: Instant) -> u64 {
        let after = |millis: u64| from + Duration::from_millis(millis);
        let mut steps = (100..).step_by(100);
        let dead = steps.find(|millis| {
            pulse.renewed("b", "", &format!("{millis} later"), after(*millis));
            pulse.health("a", after(*millis)) == Health::Dead
        });
        dead.unwrap()
    }

    #[test]
    fn who_was_late_once_is_given_longer_for_a_while() {
        let (mut pulse, at) = late(3000, "then");
        assert_eq!(given_up(&mut pulse, at), 5000, "half as long again as it was silent");
        let (mut pulse, at) = late(60_000, "then");
        assert_eq!(given_up(&mut pulse, at), 16_000, "there is an end");
        let (mut pulse, at) = late(1000, "then");
        assert_eq!(given_up(&mut pulse, at), 2000, "that was nothing");
        let (mut pulse, at) = late(3000, "now");
        assert_eq!(given_up(&mut pulse, at), 2000, "it was off, and started anew");
        let (pulse, at) = late(3000, "then");
        assert_eq!(pulse.patience(at + MEMORY - TIMEOUT), Duration::from_millis(4950));
        assert_eq!(pulse.patience(at + MEMORY), TIMEOUT);
    }

    #[test]
    fn a_restart_gives_everybody_the_whole_time() {
        check(&[], 1999, &[("a", Health::Alive)]);
        check(&[], 2000, &[("a", Health::Doubtful)]);
    }

    #[test]
    fn the_same_mark_again_is_no_renewal() {
        let start = Instant::now();
        let mut pulse = Pulse::new(TIMEOUT);
        pulse.appeared("a", start);
        pulse.renewed("a", "", "x", start);
        pulse.renewed("a", "", "x", start + TIMEOUT);
        assert_eq!(pulse.health("a", start + TIMEOUT), Health::Doubtful);
    }
}
