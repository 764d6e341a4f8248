//! What is answered -> HTTP responses.

use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, EXPIRES, HeaderValue, LOCATION, RETRY_AFTER, VARY, WARNING,
};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use portolan_kinds::Status;
use serde_json::{Value, json};

use crate::accept::Media;
use crate::encode;

pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type Reply = Response<Body>;

/// Answers at least this large are worth compressing, if the client takes it.
const GZIP_FROM: usize = 128 << 10;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

fn reply(code: u16, content_type: &'static str, body: Body) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// What is in that media type already.
pub(crate) fn bytes(code: u16, media: Media, bytes: impl Into<Bytes>) -> Reply {
    reply(code, media.as_str(), full(bytes))
}

/// An object that stands for itself: no kind's, or not stored.
pub(crate) fn object(code: u16, media: Media, object: &Value) -> Reply {
    let (media, encoded) = encode::value(media, object);
    bytes(code, media, encoded)
}

/// A document that is JSON to everybody.
pub(crate) fn value(code: u16, value: &Value) -> Reply {
    bytes(code, Media::Json, value.to_string())
}

pub(crate) fn typed(content_type: &'static str, bytes: impl Into<Bytes>) -> Reply {
    reply(200, content_type, full(bytes))
}

pub(crate) fn text(code: u16, text: String) -> Reply {
    reply(code, "text/plain; charset=utf-8", full(text))
}

pub(crate) fn stream(content_type: &'static str, body: Body) -> Reply {
    reply(200, content_type, body)
}

pub(crate) fn failure(media: Media, status: &Status) -> Reply {
    let mut response = object(status.code(), media, &status.to_json());
    // client-go waits this long before it tries again.
    if matches!(status.code(), 429 | 503) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// The Status that says that something was done, with what it was done to.
pub(crate) fn success(group: &str, plural: &str, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": plural, "uid": uid});
    if !group.is_empty() {
        details["group"] = group.into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Characters of all warnings together, and of each once that is not enough: clients refuse long heads.
const WARNINGS: usize = 4096;
const WARNING_EACH: usize = 256;
/// A header each, and clients take no more than a hundred of these.
const MOST_WARNINGS: usize = 64;

/// Adds the warnings that kubectl shows in yellow. Sources: RFC 7234 §5.5, KEP-1693.
pub(crate) fn warn(response: &mut Reply, warnings: &[String]) {
    let total: usize = warnings.iter().map(|warning| warning.chars().count()).sum();
    let longest = if total > WARNINGS { WARNING_EACH } else { WARNINGS };
    let mut left = WARNINGS;
    for warning in warnings.iter().take(MOST_WARNINGS) {
        let text: String = warning.chars().take(longest).collect();
        let Some(rest) = left.checked_sub(text.chars().count()) else { break };
        left = rest;
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(header) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(WARNING, header);
        }
    }
}

/// A document under the hash of its text, or 304 for who has that already.
pub(crate) fn unless_known(content_type: &'static str, text: String, known: &str) -> Reply {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let tag = format!("\"{:016X}\"", hasher.finish());
    let is_known = known.split(',').any(|known| known.trim() == tag);
    tagged(if is_known { unchanged(content_type) } else { typed(content_type, text) }, &tag)
}

/// 304 for who has the document already.
pub(crate) fn unchanged(content_type: &'static str) -> Reply {
    reply(StatusCode::NOT_MODIFIED.as_u16(), content_type, full(Bytes::new()))
}

/// The answer, under a tag that changes with it.
pub(crate) fn tagged(mut response: Reply, tag: &str) -> Reply {
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response.headers_mut().append(VARY, HeaderValue::from_static("Accept"));
    response
}

/// That the document is elsewhere by now.
pub(crate) fn moved(url: &str) -> Reply {
    let mut response = reply(StatusCode::MOVED_PERMANENTLY.as_u16(), "text/html; charset=utf-8", full(Bytes::new()));
    if let Ok(url) = HeaderValue::from_str(url) {
        response.headers_mut().insert(LOCATION, url);
    }
    response
}

/// What will never be different under the same URL.
pub(crate) fn keep_for_ever(response: &mut Reply) {
    let year = jiff::SignedDuration::from_hours(365 * 24);
    let then = jiff::Timestamp::now().saturating_add(year).unwrap_or(jiff::Timestamp::MAX);
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    if let Ok(date) = HeaderValue::from_str(&then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()) {
        headers.insert(EXPIRES, date);
    }
}

/// Whether an answer of about `size` bytes should be compressed for who sends this `Accept-Encoding`.
pub(crate) fn packs(size: usize, accept_encoding: &str) -> bool {
    let takes_gzip = accept_encoding.split(',').any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        parts.next() == Some("gzip") && parts.next() != Some("q=0")
    });
    size >= GZIP_FROM && takes_gzip
}

/// What comes piece by piece, and is compressed or not.
pub(crate) fn pieces(media: Media, body: Body, is_packed: bool) -> Reply {
    let response = stream(media.as_str(), body);
    if is_packed { packed(response) } else { response }
}

/// The answer, of which the body is compressed already.
pub(crate) fn packed(mut response: Reply) -> Reply {
    response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_never_make_a_head_too_long() {
        let lengths = |warnings: &[String]| -> Vec<usize> {
            let mut reply = value(200, &json!({}));
            warn(&mut reply, warnings);
            reply.headers().get_all(WARNING).iter().map(|header| header.as_bytes().len() - "299 - \"\"".len()).collect()
        };
        assert_eq!(lengths(&["x".repeat(4000)]), [4000]);
        assert_eq!(lengths(&["x".repeat(100_000), "y".into()]), [256, 1]);
        assert_eq!(lengths(&vec!["x".repeat(1000); 100]), [256; 16]);
        // Other letters than ASCII's pass, and what no header can carry is left out.
        assert_eq!(lengths(&["é".into(), "a\nb".into()]), [2]);
    }
}
