//! What is only kept for a while -> gone: Events an hour after they last had something to say, as upstream's are, and
//! what watches and lists of the past are told from after as long as upstream's etcd keeps it.
//!
//! Invariant: what is removed is what was judged; an Event that is told again meanwhile stays.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use portolan_store::{Expect, Op, Page, Store};
use serde_json::Value;

use crate::object;
use crate::write;

const KEPT: SignedDuration = SignedDuration::from_hours(1);
/// A list that is read page by page, and a watch that was away, may take this long.
const HISTORY: Duration = Duration::from_secs(300);
const EVERY: Duration = Duration::from_secs(60);
/// Events are removed this many at a time.
const TOGETHER: usize = 64;

/// Whether nothing was heard of an Event for long enough. Times of the future, which only a client can have written,
/// do not count.
fn is_over(event: &Value, now: Timestamp) -> bool {
    ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"]
        .into_iter()
        .filter_map(|field| object::text(event, field).parse::<Timestamp>().ok())
        .filter(|time| *time <= now)
        .max()
        .is_none_or(|last| now.duration_since(last) > KEPT)
}

/// One look at all Events. What cannot be removed now will be the next time.
pub(crate) async fn sweep(store: &Store, now: Timestamp) {
    let kind = crate::known_kind("", "events");
    let Ok(all) = store.list(&object::prefix(kind, None), &Page::default()) else { return };
    let over = all.entries.into_iter().filter(|(_, entry)| is_over(&object::decode(&entry.value), now));
    stream::iter(over)
        .for_each_concurrent(TOGETHER, |(key, entry)| async move {
            let _ = write::commit(store, vec![Op::Delete { key, expect: Expect::At(entry.revision) }]).await;
        })
        .await;
}

pub(crate) async fn run(store: &Store) -> Infallible {
    loop {
        tokio::time::sleep(EVERY).await;
        sweep(store, Timestamp::now()).await;
        if let Some(then) = Instant::now().checked_sub(HISTORY) {
            store.forget(then);
        }
    }
}

#[cfg(test)]
mod tests {
    use portolan_store::Limits;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_word_counts() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        for (event, expected) in [
            (json!({"metadata": {"creationTimestamp": "2026-01-01T11:00:00Z"}}), false),
            (json!({"metadata": {"creationTimestamp": "2026-01-01T10:59:59Z"}}), true),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-01T01:00:00Z"}, "lastTimestamp": "2026-01-01T11:30:00Z"}),
                false,
            ),
            (
                json!({
                    "metadata": {"creationTimestamp": "2026-01-01T01:00:00Z"}, "eventTime": "2026-01-01T01:00:00.000000Z",
                    "series": {"count": 2, "lastObservedTime": "2026-01-01T11:30:00.000000Z"}
                }),
                false,
            ),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-01T01:00:00Z"}, "lastTimestamp": "9999-01-01T00:00:00Z"}),
                true,
            ),
            (json!({"metadata": {}}), true),
        ] {
            assert_eq!(is_over(&event, now), expected, "{event}");
        }
    }

    #[tokio::test]
    async fn only_old_events_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path(), Limits::default()).unwrap();
        let put = |plural: &str, name: &str, time: &str| {
            let kind = crate::known_kind("", plural);
            let value = object::encode(kind, &json!({"metadata": {"name": name, "creationTimestamp": time}}));
            Op::Put { key: object::key(kind, "default", name), expect: Expect::Absent, value }
        };
        let ops = vec![
            put("events", "old", "2026-01-01T00:00:00Z"),
            put("events", "new", "2026-01-01T11:59:00Z"),
            put("configmaps", "old", "2026-01-01T00:00:00Z"),
        ];
        assert!(write::commit(&store, ops).await.is_ok());
        sweep(&store, "2026-01-01T12:00:00Z".parse().unwrap()).await;
        let names = |plural: &str| {
            let list = store.list(&object::prefix(crate::known_kind("", plural), None), &Page::default()).unwrap();
            list.entries.into_iter().map(|(key, _)| key.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("events"), ["new"]);
        assert_eq!(names("configmaps"), ["old"]);
    }
}
