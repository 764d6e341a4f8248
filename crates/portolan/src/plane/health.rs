//! Updates that wait, updates that are done, and the Node's state -> whether this node should get traffic.
//!
//! An update that stays undone for too long makes the node unhealthy; having nothing to do is healthy, however long it
//! lasts. Whoever asks `/livez` wants to know whether a restart would help, so the Node's state is not in it.
//!
//! Each family is told of for itself: the kernel may take what the Services of one ask for and refuse those of the
//! other.
//!
//! Invariant: pure; time is told and not asked for. Source: Kubernetes `pkg/proxy/healthcheck/proxy_health.go`.

use std::time::Duration;

use jiff::Timestamp;
use portolan_model::forwarding::Family;
use serde_json::json;
use tokio::time::Instant;

#[derive(Debug)]
pub(crate) struct Health {
    /// How long an update may wait.
    timeout: Duration,
    v4: Updates,
    v6: Updates,
    /// The Node exists and is there to stay; assumed until known.
    eligible: bool,
}

/// Of one family.
#[derive(Clone, Copy, Debug, Default)]
struct Updates {
    /// Since when the oldest update that is not done waits.
    waiting: Option<Instant>,
    /// When the last update was done.
    done: Option<Instant>,
}

/// What the answer to a question is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) healthy: bool,
    pub(crate) body: String,
}

impl Health {
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, v4: Updates::default(), v6: Updates::default(), eligible: true }
    }

    /// There is something to write to the kernel.
    pub(crate) fn queued(&mut self, now: Instant) {
        self.v4.waiting.get_or_insert(now);
        self.v6.waiting.get_or_insert(now);
    }

    /// Everything of the family has been written.
    pub(crate) fn updated(&mut self, family: Family, now: Instant) {
        let updates = match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        *updates = Updates { waiting: None, done: Some(now) };
    }

    pub(crate) fn node(&mut self, eligible: bool) {
        self.eligible = eligible;
    }

    /// Whether the kernel follows, whatever the Node's state is.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.follows(&self.v4, now) && self.follows(&self.v6, now)
    }

    fn follows(&self, updates: &Updates, now: Instant) -> bool {
        updates.waiting.is_none_or(|since| now.duration_since(since) < self.timeout)
    }

    pub(crate) fn healthz(&self, now: Instant, clock: Timestamp) -> Verdict {
        self.verdict(now, clock, self.eligible)
    }

    pub(crate) fn livez(&self, now: Instant, clock: Timestamp) -> Verdict {
        self.verdict(now, clock, true)
    }

    /// `clock` is what the wall clock shows at `now`.
    fn verdict(&self, now: Instant, clock: Timestamp, eligible: bool) -> Verdict {
        let live = self.is_live(now);
        let healthy = live && eligible;
        // Of a healthy proxy, clients expect a recent time.
        let updated = |good: bool, done: Option<Instant>| match done {
            Some(done) if !good => clock.checked_sub(now.duration_since(done)).unwrap_or(clock),
            None if !good => Timestamp::UNIX_EPOCH,
            _ => clock,
        };
        let family = |updates: &Updates| {
            let follows = self.follows(updates, now);
            json!({"lastUpdated": updated(follows, updates.done).to_string(), "healthy": follows})
        };
        let body = json!({
            "lastUpdated": updated(healthy, self.v4.done.max(self.v6.done)).to_string(),
            "currentTime": clock.to_string(),
            "nodeEligible": self.eligible,
            "healthy": healthy,
            "status": {"IPv4": family(&self.v4), "IPv6": family(&self.v6)},
        });
        Verdict { healthy, body: body.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    struct Lab {
        health: Health,
        start: Instant,
    }

    impl Lab {
        fn new() -> Self {
            Self { health: Health::new(TIMEOUT), start: Instant::now() }
        }

        fn updated(&mut self, seconds: u64) {
            Family::BOTH.into_iter().for_each(|family| self.health.updated(family, self.at(seconds)));
        }

        fn at(&self, seconds: u64) -> Instant {
            self.start + Duration::from_secs(seconds)
        }

        /// What `/healthz` and `/livez` say.
        fn says(&self, seconds: u64) -> (bool, bool) {
            let (now, clock) = (self.at(seconds), Timestamp::from_second(seconds.cast_signed()).unwrap());
            (self.health.healthz(now, clock).healthy, self.health.livez(now, clock).healthy)
        }
    }

    #[test]
    fn only_an_update_that_waits_too_long_is_a_fault() {
        let mut lab = Lab::new();
        assert_eq!(lab.says(1_000), (true, true), "starting up");
        lab.health.queued(lab.at(1_000));
        lab.health.queued(lab.at(1_050));
        assert_eq!(lab.says(1_059), (true, true), "waiting, but not for long");
        assert_eq!(lab.says(1_060), (false, false), "the oldest counts, not the latest");
        lab.updated(1_061);
        assert_eq!(lab.says(1_061), (true, true));
        assert_eq!(lab.says(100_000), (true, true), "idle");
        lab.health.queued(lab.at(100_000));
        assert_eq!(lab.says(100_001), (true, true), "idle time is no waiting");
    }

    #[test]
    fn a_node_that_leaves_gets_no_traffic_but_no_restart_either() {
        let mut lab = Lab::new();
        lab.updated(0);
        lab.health.node(false);
        assert_eq!(lab.says(1), (false, true));
        lab.health.node(true);
        assert_eq!(lab.says(2), (true, true));
    }

    #[test]
    fn the_answer_has_the_fields_that_clients_know() {
        let mut lab = Lab::new();
        lab.updated(10);
        lab.health.queued(lab.at(20));
        let body = |seconds| {
            let clock = Timestamp::from_second(seconds).unwrap();
            serde_json::from_str::<Value>(&lab.health.healthz(lab.at(seconds.cast_unsigned()), clock).body).unwrap()
        };
        let family = json!({"lastUpdated": "1970-01-01T00:00:30Z", "healthy": true});
        let expected = json!({"lastUpdated": "1970-01-01T00:00:30Z", "currentTime": "1970-01-01T00:00:30Z",
            "nodeEligible": true, "healthy": true, "status": {"IPv4": family, "IPv6": family}});
        assert_eq!(body(30), expected);
        assert_eq!(body(90)["lastUpdated"], "1970-01-01T00:00:10Z", "when it last worked");
        assert_eq!(body(90)["status"]["IPv6"]["healthy"], false);
    }

    #[test]
    fn a_family_that_is_refused_is_named() {
        let mut lab = Lab::new();
        lab.updated(10);
        lab.health.queued(lab.at(20));
        lab.health.updated(Family::V4, lab.at(21));
        let verdict = lab.health.livez(lab.at(90), Timestamp::from_second(90).unwrap());
        let body: Value = serde_json::from_str(&verdict.body).unwrap();
        assert!(!verdict.healthy);
        assert_eq!(body["status"]["IPv4"], json!({"lastUpdated": "1970-01-01T00:01:30Z", "healthy": true}));
        assert_eq!(body["status"]["IPv6"], json!({"lastUpdated": "1970-01-01T00:00:10Z", "healthy": false}));
        assert_eq!(body["lastUpdated"], "1970-01-01T00:00:21Z");
    }
}
