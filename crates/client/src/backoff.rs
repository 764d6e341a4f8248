//! How long to leave a server alone that just failed: twice as long each time, within bounds.

use std::fmt::Display;
use std::time::Duration;

const SHORTEST: Duration = Duration::from_millis(50);
/// Also what a server that comes back is noticed after, at the latest.
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) async fn pause(&mut self, kind: &str, error: &impl Display) {
        self.0 = (self.0 * 2).clamp(SHORTEST, LONGEST);
        tracing::debug!(kind, %error, pause = ?self.0, "watch interrupted");
        tokio::time::sleep(self.0).await;
    }
}
