//! Waiting for what nobody tells of: counters of the kernel, its clock, the other side of a connection.

use std::time::Duration;

use tokio::time::{interval, timeout};

/// Asks at once, and then again after each pause of `every`, until there is an answer; panics with the last refusal when
/// there is none `within` that time.
pub async fn eventually<T>(
    what: &str,
    (every, within): (Duration, Duration),
    mut ask: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let mut seen = String::new();
    let answered = async {
        let mut asks = interval(every);
        loop {
            asks.tick().await;
            match ask().await {
                Ok(answer) => return answer,
                Err(refusal) => seen = refusal,
            }
        }
    };
    match timeout(within, answered).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what}: not within {within:?}; last seen: {seen}"),
    }
}
