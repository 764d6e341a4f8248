//! watch: a place in the history and a filter -> a stream of lines.
//!
//! Source: the Kubernetes API concepts ("Efficient detection of changes", "Streaming lists"), KEP-3157, KEP-956.
//! Invariants: every stream starts at one definite revision and misses nothing after it; an object that stops matching
//! the selector is told as DELETED; falling behind ends the stream with an ERROR event, 410, never silently. A watch
//! holds a place in the state and in the history, and no objects but those of the piece that is being sent.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portolan_kinds::{FieldError, KindRef, Status};
use portolan_store::{Batch, Entry, Event, Expired, Key, Page, Prefix, Revision, Watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::accept::{Form, Media, View};
use crate::convert;
use crate::encode;
use crate::filter::{Facts, Filter};
use crate::listing::{PIECE, PIECE_OBJECTS};
use crate::object;
use crate::options::Options;
use crate::read;
use crate::respond::{self, BodyError, Reply};
use crate::route::Target;
use crate::server::Server;
use crate::show;

/// How often an idle watch says how far it is.
const BOOKMARKS: Duration = Duration::from_secs(30);
/// What each watch of a resource keeps the others from saying the next thing for. Telling one of a change costs a third
/// of it; so, whatever the rate of changes, watches of one resource take up a third of a core, and in what they say
/// they are late by so much.
const BREATH: Duration = Duration::from_micros(40);
/// What a timer cannot tell from nothing, and what no watch is late by.
const SHORTEST_BREATH: Duration = Duration::from_millis(1);
const LONGEST_BREATH: Duration = Duration::from_millis(50);
/// A watch without `timeoutSeconds` ends after half an hour to an hour, so that clients spread themselves again.
const LONGEST: std::ops::Range<u64> = 1800..3600;

const NOT_OLDER: &str = "NotOlderThan";

/// Whether the state comes first, and its end is told, and what the match has to be for it. As upstream, to watch from no
/// revision, or any, is another word for it.
fn initial_events(options: &Options) -> (Option<bool>, &str) {
    let matching = options.resource_version_match.as_str();
    let anywhere = matches!(options.resource_version.as_str(), "" | "0");
    match options.send_initial_events {
        None if matching.is_empty() && anywhere => (Some(true), NOT_OLDER),
        said => (said, matching),
    }
}

fn validate(options: &Options) -> Result<(), Status> {
    let mut errors = Vec::new();
    let (initial_events, matching) = initial_events(options);
    let mut forbid = |detail: &str| errors.push(FieldError::forbidden("resourceVersionMatch", detail));
    if initial_events.is_some() && matching != NOT_OLDER {
        forbid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if !matching.is_empty() {
        if initial_events.is_none() {
            forbid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if matching != NOT_OLDER {
            errors.push(FieldError::not_supported("resourceVersionMatch", matching, &[NOT_OLDER]));
        }
        if !options.continue_token.is_empty() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.push(FieldError::forbidden("resourceVersionMatch", why));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

pub(crate) async fn watch(
    server: &Arc<Server>,
    asker: &str,
    target: &Target,
    options: &Options,
    view: View,
    shutdown: CancellationToken,
) -> Result<Reply, Status> {
    validate(options)?;
    let asked = options.revision()?;
    let filter = Filter::parse(&target.kind, options)?;
    let store = &server.store;
    read::wait_for(store, asked).await?;
    let prefix = object::prefix(&target.kind, target.namespace.as_deref());

    let (wanted, _) = initial_events(options);
    let from_state = wanted.unwrap_or(asked.unwrap_or(0) == 0);
    let start = match asked.filter(|asked| !from_state && *asked != 0) {
        Some(asked) => Revision(asked),
        None => store.revision(),
    };
    let (watch, failed) = match store.watch(prefix.clone(), start) {
        Ok(watch) => (Some(watch), None),
        Err(expired) => (None, Some(expired)),
    };
    let initial = from_state.then(|| Initial {
        asker: asker.to_owned(),
        prefix,
        page: Page { at: Some(start), after: None, limit: Some(PIECE_OBJECTS) },
        entries: Vec::new().into_iter(),
        tells_end: wanted == Some(true) && options.allow_bookmarks,
    });
    let seconds = options.timeout_seconds.filter(|seconds| *seconds > 0);
    let lifetime = Duration::from_secs(seconds.unwrap_or_else(|| rand::random_range(LONGEST)).min(LONGEST.end));
    let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARKS, BOOKMARKS);
    bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        server: server.clone(),
        kind: target.kind.clone(),
        view,
        filter,
        watch,
        initial,
        failed,
        bookmarks: options.allow_bookmarks.then_some(bookmarks),
        end: Instant::now() + lifetime,
        rest: None,
        shutdown,
    };
    let body = stream::unfold(feed, |mut feed| async {
        let piece = feed.next().await?;
        Some((Ok::<_, BodyError>(Frame::data(piece)), feed))
    });
    Ok(respond::stream(view.media.streamed(), StreamBody::new(body).boxed_unsync()))
}

struct Feed {
    server: Arc<Server>,
    kind: KindRef,
    view: View,
    filter: Filter,
    /// `None` once the stream has said its last.
    watch: Option<Watch>,
    /// Until the state has been told.
    initial: Option<Initial>,
    failed: Option<Expired>,
    bookmarks: Option<Interval>,
    end: Instant,
    /// Until when what happens is gathered, to be told in one piece.
    rest: Option<Instant>,
    shutdown: CancellationToken,
}

/// How far the telling of the state has come.
struct Initial {
    asker: String,
    prefix: Prefix,
    /// What to read next.
    page: Page,
    /// What was read and not told yet.
    entries: std::vec::IntoIter<(Key, Entry)>,
    /// Whether the client wants to hear where it ends.
    tells_end: bool,
}

impl Feed {
    /// The next piece of the stream; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(expired) = self.failed.take() {
            return Some(self.fail(&gone(&expired)));
        }
        while let Some(mut initial) = self.initial.take() {
            if initial.entries.len() == 0
                && let Err(status) = self.unless_over(self.read_on(&mut initial)).await?
            {
                return Some(self.fail(&status));
            }
            let _turn = self.server.admission.pieces.part(&initial.asker).await?;
            let (piece, more) = self.initial_piece(&mut initial);
            if more {
                self.initial = Some(initial);
            }
            if !piece.is_empty() {
                return Some(piece.into());
            }
        }
        loop {
            let watch = self.watch.as_mut()?;
            let batch = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                batch = rested(self.rest, watch) => batch,
                () = tick(&mut self.bookmarks) => {
                    match watch.poll() {
                        Ok(batch) if batch.events.is_empty() => return Some(self.bookmark(batch.revision, false)),
                        other => other,
                    }
                }
            };
            match batch {
                Err(expired) => return Some(self.fail(&gone(&expired))),
                Ok(mut batch) => {
                    let events = std::mem::take(&mut batch.events);
                    let looks = !self.filter.takes_all();
                    let events = self.unless_over(convert::events(&self.server, &self.kind, events, looks)).await?;
                    let events = match events {
                        Ok(events) => events,
                        Err(status) => return Some(self.fail(&status)),
                    };
                    let mut piece = Vec::new();
                    for event in &events {
                        self.push(event, &mut piece);
                    }
                    if !piece.is_empty() {
                        self.rest = breath(&batch).map(|breath| Instant::now() + breath);
                        return Some(piece.into());
                    }
                }
            }
        }
    }

    /// What work gives, if the watch does not end before.
    async fn unless_over<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.shutdown.cancelled() => None,
            () = tokio::time::sleep_until(self.end) => None,
        }
    }

    /// Reads the next objects of the state.
    async fn read_on(&self, initial: &mut Initial) -> Result<(), Status> {
        let list = self.server.store.list(&initial.prefix, &initial.page).map_err(|expired| gone(&expired))?;
        let mut entries = list.entries;
        convert::listed(&self.server, &self.kind, &mut entries).await?;
        initial.entries = entries.into_iter();
        Ok(())
    }

    /// Some of the state, as it was when the watch began, and whether there is more.
    fn initial_piece(&mut self, initial: &mut Initial) -> (Vec<u8>, bool) {
        let mut piece = Vec::new();
        let ended = initial.entries.len() == 0;
        while piece.len() < PIECE {
            let Some((key, entry)) = initial.entries.next() else { break };
            if self.filter.matches(&key, &entry.value) {
                let shown = show::one(&self.kind, &entry.value, self.view);
                self.tell("ADDED", &shown, &mut piece);
            }
            initial.page.after = Some(key);
        }
        if let Some(revision) = initial.page.at.filter(|_| ended && initial.tells_end) {
            piece.extend_from_slice(&self.bookmark(revision, true));
        }
        (piece, !ended)
    }

    fn bookmark(&mut self, revision: Revision, initial_events_end: bool) -> Bytes {
        let mut line = Vec::new();
        let object = show::bookmark(&self.kind, revision, initial_events_end, self.view);
        self.tell("BOOKMARK", &object, &mut line);
        line.into()
    }

    fn tell(&mut self, event: &str, object: &[u8], piece: &mut Vec<u8>) {
        show::push_event(self.view.media, event, object, piece);
        if let Form::Table(rows) = &mut self.view.form {
            rows.goes_on = true;
        }
    }

    fn fail(&mut self, status: &Status) -> Bytes {
        self.watch = None;
        let mut line = Vec::new();
        let (_, status) = encode::value(self.view.media, &status.to_json());
        show::push_event(self.view.media, "ERROR", &status, &mut line);
        line.into()
    }

    fn push(&mut self, event: &Arc<Event>, piece: &mut Vec<u8>) {
        let seen = event.memo(Seen::default);
        let matches = |entry: &Option<Entry>, facts: Option<&OnceLock<Facts>>| {
            entry.as_ref().is_some_and(|entry| match facts {
                Some(facts) => self.filter.matches_with(&event.key, &entry.value, facts.get_or_init(Facts::new)),
                None => self.filter.matches(&event.key, &entry.value),
            })
        };
        let is = matches(&event.new, seen.map(|seen| &seen.new_facts));
        let was = matches(&event.old, seen.map(|seen| &seen.old_facts));
        let (name, entry) = match (was, is) {
            (false, false) => return,
            (false, true) => ("ADDED", &event.new),
            (true, true) => ("MODIFIED", &event.new),
            (true, false) => ("DELETED", &event.old),
        };
        let Some(entry) = entry else { return };
        // Whole objects are in their final form already; only the revision of a deletion has to be written in, once.
        let restamp = || object::restamped(&entry.value, event.revision);
        let stored = match seen {
            _ if is => entry.value.clone(),
            Some(seen) => seen.deleted.get_or_init(restamp).clone(),
            None => restamp(),
        };
        let shown = || show::one(&self.kind, &stored, self.view);
        let shown = match seen {
            Some(seen) if self.view == IN_PROTOBUF => {
                let memo = if is { &seen.new_protobuf } else { &seen.deleted_protobuf };
                memo.get_or_init(shown).clone()
            }
            _ => shown(),
        };
        self.tell(name, &shown, piece);
    }
}

/// A revision that the history has no longer.
fn gone(expired: &Expired) -> Status {
    Status::expired(read::too_old(expired))
}

/// How long to gather after `batch` was told.
fn breath(batch: &Batch) -> Option<Duration> {
    let breath = BREATH.saturating_mul(u32::try_from(batch.watches).unwrap_or(u32::MAX)).min(LONGEST_BREATH);
    (!batch.more && breath >= SHORTEST_BREATH).then_some(breath)
}

async fn rested(rest: Option<Instant>, watch: &mut Watch) -> Result<Batch, Expired> {
    if let Some(rest) = rest {
        tokio::time::sleep_until(rest).await;
    }
    watch.next().await
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// What watches have made of one event so far. Small, since it lives as long as the event.
#[derive(Default)]
struct Seen {
    new_facts: OnceLock<Facts>,
    old_facts: OnceLock<Facts>,
    deleted: OnceLock<Bytes>,
    /// The whole objects, if anybody watches them in protobuf; shorter than what is stored.
    new_protobuf: OnceLock<Bytes>,
    deleted_protobuf: OnceLock<Bytes>,
}

/// What Go's typed clients ask for.
const IN_PROTOBUF: View = View { form: Form::Whole, media: Media::Protobuf };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_rest_the_longer_the_more_there_are() {
        let breath = |watches: usize, more: bool| {
            let batch = Batch { events: Vec::new(), revision: Revision::FIRST, more, watches };
            breath(&batch).map(|breath| breath.as_millis())
        };
        assert_eq!(breath(1, false), None, "who is alone hears of everything at once");
        assert_eq!(breath(20, false), None);
        assert_eq!(breath(100, false), Some(4));
        assert_eq!(breath(1_000, false), Some(40));
        assert_eq!(breath(1_000_000, false), Some(50));
        assert_eq!(breath(100, true), None, "who is behind catches up");
    }
}
