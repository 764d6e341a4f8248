//! How long a container that keeps ending waits before it is started again.
//!
//! Nothing before the first restart, then 10 s, doubling to 5 min; forgotten after 10 min without a restart. Source:
//! `client-go/util/flowcontrol/backoff.go` as `kuberuntime_manager.go` uses it.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_mins(5);
const FORGOTTEN: SignedDuration = SignedDuration::from_mins(10);

/// The delay that the next start must keep, and when it was last raised. The default demands none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff(Option<(SignedDuration, Timestamp)>);

impl Backoff {
    fn live(self, event: Timestamp) -> Option<SignedDuration> {
        self.0.filter(|(_, raised)| event.duration_since(*raised) <= FORGOTTEN).map(|(delay, _)| delay)
    }

    /// When what ended at `finished` may start again.
    #[must_use]
    pub fn until(self, finished: Timestamp) -> Timestamp {
        self.live(finished).map_or(finished, |delay| finished.checked_add(delay).unwrap_or(finished))
    }

    /// The delay in force for what ended at `finished`.
    #[must_use]
    pub fn delay(self, finished: Timestamp) -> SignedDuration {
        self.live(finished).unwrap_or_default()
    }

    /// After one more start at `now` of what ended at `finished`.
    #[must_use]
    pub fn raised(self, finished: Timestamp, now: Timestamp) -> Self {
        let delay = self.live(finished).map_or(FIRST, |delay| (delay * 2).min(LONGEST));
        Self(Some((delay, now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_fails_at_once_waits_ever_longer_up_to_five_minutes() {
        let mut now = Timestamp::UNIX_EPOCH;
        let mut backoff = Backoff::default();
        let mut delays = Vec::new();
        for _ in 0..9 {
            let finished = now;
            let start = backoff.until(finished);
            delays.push(start.duration_since(finished).as_secs());
            backoff = backoff.raised(finished, start);
            now = start + SignedDuration::from_secs(1);
        }
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_quiet_minutes_are_forgiven() {
        let start = Timestamp::UNIX_EPOCH;
        let backoff = Backoff::default().raised(start, start);
        let soon = start + SignedDuration::from_mins(10);
        let late = soon + SignedDuration::from_secs(1);
        assert_eq!(backoff.until(soon), soon + FIRST);
        assert_eq!(backoff.until(late), late);
        assert_eq!(backoff.raised(late, late).delay(late), FIRST);
    }
}
