//! get and list.
//!
//! What is read is never older than asked for: reads come from memory that holds every committed write, so "the
//! freshest", "any" and "not older than" are the same, and a revision from the future is waited for.
//!
//! A list is a moment of the state, held by reference, and takes form as the client reads: what it costs at once, in
//! time and in memory, is a piece of it, however long it is. Each piece is a turn.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use portolan_kinds::{FieldError, Status};
use portolan_store::{Key, List, Page, Revision, Store};
use serde::{Deserialize, Serialize};

use crate::accept::View;
use crate::convert;
use crate::filter::Filter;
use crate::listing::{ListMeta, Listing, PIECE_OBJECTS, Pieces};
use crate::object;
use crate::options::Options;
use crate::respond::{self, Reply};
use crate::route::Target;
use crate::sending;
use crate::server::Server;
use crate::show;

/// How long a request waits for a revision that does not exist yet.
const FRESHNESS: Duration = Duration::from_secs(3);

/// # Errors
/// 504 when the revision is not there in time.
pub(crate) async fn wait_for(store: &Store, asked: Option<u64>) -> Result<(), Status> {
    let Some(asked) = asked else { return Ok(()) };
    match tokio::time::timeout(FRESHNESS, store.reached(Revision(asked))).await {
        Ok(()) => Ok(()),
        Err(_) => Err(Status::resource_version_too_large(asked, store.revision().0, 1)),
    }
}

/// The stored object that a target names.
pub(crate) fn stored(store: &Store, target: &Target) -> Result<(Key, portolan_store::Entry), Status> {
    let name = target.name.as_deref().unwrap_or_default();
    let key = object::key(&target.kind, target.namespace.as_deref().unwrap_or_default(), name);
    match store.get(&key).0 {
        Some(entry) => Ok((key, entry)),
        None => Err(Status::not_found(target.kind.group, target.kind.plural, name)),
    }
}

pub(crate) async fn get(server: &Server, target: &Target, options: &Options, view: View) -> Result<Reply, Status> {
    wait_for(&server.store, options.revision()?).await?;
    let (_, entry) = stored(&server.store, target)?;
    let found = convert::one(server, &target.kind, entry.value).await?;
    Ok(respond::bytes(200, view.media, show::one(&target.kind, &found, view)))
}

/// Where the next page begins. The form is ours alone; clients hand it back as it is.
#[derive(Deserialize, Serialize)]
struct Continue {
    /// 0 for the latest, of a list whose own is forgotten.
    revision: u64,
    after: (String, String),
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(Self::unknown)
    }

    fn unknown() -> Status {
        Status::bad_request("continue key is not valid: it was not given out by this server")
    }
}

fn validate(options: &Options) -> Result<(), Status> {
    let mut errors = Vec::new();
    let matching = options.resource_version_match.as_str();
    let mut forbid = |detail: &str| errors.push(FieldError::forbidden("resourceVersionMatch", detail));
    if !matching.is_empty() {
        if options.resource_version.is_empty() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !options.continue_token.is_empty() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if matching == "Exact" && options.resource_version == "0" {
            forbid("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            let supported = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::not_supported("resourceVersionMatch", matching, &supported));
        }
    }
    if options.send_initial_events.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

pub(crate) async fn list(
    server: &Arc<Server>,
    asker: &str,
    target: &Target,
    options: &Options,
    view: View,
    accept_encoding: &str,
) -> Result<Reply, Status> {
    let store = &server.store;
    validate(options)?;
    let asked = options.revision()?;
    // Of any state there is, upstream gives all that is in its cache.
    let limit = options.limit.filter(|_| options.resource_version != "0");
    let filter = Filter::parse(&target.kind, options)?;
    let mut page = Page { at: None, after: None, limit };
    if options.continue_token.is_empty() {
        wait_for(store, asked).await?;
        // With a limit, a revision has always meant just that one, unless there is one object to be had at most.
        let legacy = options.resource_version_match.is_empty() && options.limit.is_some() && !filter.is_of_one();
        if options.resource_version_match == "Exact" || legacy {
            page.at = asked.filter(|asked| *asked != 0).map(Revision);
        }
    } else {
        if asked.is_some_and(|asked| asked != 0) {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let Continue { revision, after: (namespace, name) } = Continue::decode(&options.continue_token)?;
        if Revision(revision) > store.revision() {
            return Err(Continue::unknown());
        }
        page.at = Some(Revision(revision)).filter(|revision| revision.0 != 0);
        page.after = Some(object::key(&target.kind, &namespace, &name));
    }
    let (entries, meta) = select(server, asker, target, &filter, page).await?;
    let mut listing = Listing::new(&target.kind, entries, &meta, view);
    let packed = respond::packs(listing.size(), accept_encoding);
    while listing.is_to_measure() {
        let _turn = server.admission.pieces.request(asker, 1).await?;
        listing.measure();
    }
    let turn = server.admission.pieces.request(asker, 1).await?;
    let first = listing.piece();
    drop(turn);
    if listing.is_over() {
        return Ok(respond::bytes(200, view.media, first));
    }
    let body = sending::body(server, asker, first, listing, packed)?;
    Ok(respond::pieces(view.media, body, packed))
}

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start \
    a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
    results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
    deleted between the time the first chunk was returned and now may show up in the list.";

type Entries = Vec<(Key, portolan_store::Entry)>;

/// The page of those objects that the filter wants.
pub(crate) async fn select(
    server: &Server,
    asker: &str,
    target: &Target,
    filter: &Filter,
    mut page: Page,
) -> Result<(Entries, ListMeta), Status> {
    let after = page.after.clone();
    let expired = |_| match &after {
        Some(key) => {
            let (namespace, name) = (key.namespace().to_owned(), key.name().to_owned());
            Status::expired(CONTINUE_EXPIRED).with_continue(Continue { revision: 0, after: (namespace, name) }.encode())
        }
        None => Status::expired("The resourceVersion for the provided list is too old."),
    };
    let prefix = object::prefix(&target.kind, target.namespace.as_deref());
    let limit = page.limit.unwrap_or(usize::MAX);
    if !filter.takes_all() {
        page.limit = None;
    }
    let List { mut entries, revision, mut remaining } = server.store.list(&prefix, &page).map_err(expired)?;
    let entries = if filter.takes_all() {
        convert::listed(server, &target.kind, &mut entries).await?;
        entries
    } else {
        let mut chosen = Vec::new();
        let mut all = entries.into_iter();
        while chosen.len() < limit && all.len() > 0 {
            let mut some: Entries = all.by_ref().take(PIECE_OBJECTS).collect();
            convert::listed(server, &target.kind, &mut some).await?;
            let _turn = server.admission.pieces.request(asker, 1).await?;
            chosen.extend(some.into_iter().filter(|(key, entry)| filter.matches(key, &entry.value)));
        }
        // Of the last step, what is beyond the limit belongs to the next page.
        remaining = all.len() + chosen.len().saturating_sub(limit);
        chosen.truncate(limit);
        chosen
    };
    let token = entries.last().filter(|_| remaining > 0).map(|(key, _)| {
        Continue { revision: revision.0, after: (key.namespace().to_owned(), key.name().to_owned()) }.encode()
    });
    let remaining = filter.takes_all().then_some(remaining);
    Ok((entries, ListMeta { revision, continue_token: token, remaining }))
}

pub(crate) fn too_old(expired: &portolan_store::Expired) -> String {
    format!("too old resource version: {} ({})", expired.requested, expired.oldest)
}
