//! A request's body -> JSON, within bounds of size and time.
//!
//! Invariant: no request makes the server hold more than [`LIMIT`] bytes of body, and all together hold no more than the
//! budget that [`Budget`] hands out.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use portolan_kinds::{Status, protobuf};
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// As kube-apiserver's own.
pub(crate) const LIMIT: usize = 3 << 20;
/// A body must have arrived after this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// A body too large is read away this long, so that a client that reads only after it has written gets its answer.
const DRAIN: Duration = Duration::from_secs(5);
const BUDGET_KIB: usize = 48 << 10;

/// Memory for the bodies of all requests together.
pub(crate) struct Budget(Semaphore);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Semaphore::new(BUDGET_KIB))
    }
}

pub(crate) async fn read(parts: &Parts, body: Incoming, budget: &Budget) -> Result<Bytes, Status> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let deadline = Instant::now() + PATIENCE;
    let declared: Option<usize> = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .map(|length| length.parse().unwrap_or(usize::MAX));
    if declared.is_some_and(|length| length > LIMIT) {
        // A client that asked first has sent nothing yet.
        if !parts.headers.contains_key(EXPECT) {
            drain(body).await;
        }
        return Err(Status::too_large(LIMIT));
    }
    let kib = u32::try_from(declared.unwrap_or(LIMIT).div_ceil(1024)).unwrap_or(u32::MAX);
    let late = |_| Status::timeout("the request's body did not arrive in time", 0);
    let permit = timeout_at(deadline, budget.0.acquire_many(kib)).await.map_err(late)?;
    let collected = timeout_at(deadline, collect(body, declared.unwrap_or(0))).await.map_err(late)?;
    drop(permit);
    match collected? {
        Collected::Whole(bytes) => Ok(bytes),
        Collected::TooLarge(rest) => {
            drain(rest).await;
            Err(Status::too_large(LIMIT))
        }
    }
}

enum Collected {
    Whole(Bytes),
    TooLarge(Incoming),
}

async fn collect(mut body: Incoming, expected: usize) -> Result<Collected, Status> {
    let mut bytes = Vec::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::bad_request("unexpected EOF"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > LIMIT {
                return Ok(Collected::TooLarge(body));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Collected::Whole(bytes.into()))
}

async fn drain(mut body: Incoming) {
    let deadline = Instant::now() + DRAIN;
    while let Ok(Some(Ok(_))) = timeout_at(deadline, body.frame()).await {}
}

/// The media type of the body, without its parameters.
pub(crate) fn media_type(parts: &Parts) -> &str {
    let header = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim()
}

/// # Errors
/// 415 for other media types, 400 for what is not what it says it is.
pub(crate) fn decode(media_type: &str, bytes: &[u8]) -> Result<Value, Status> {
    match media_type {
        "" | "application/json" | "*/*" => json(bytes),
        "application/yaml" | "text/yaml" => yaml(bytes),
        protobuf::MEDIA_TYPE => protobuf::to_json(bytes),
        _ => Err(Status::unsupported_media_type(&["application/json", "application/yaml", protobuf::MEDIA_TYPE])),
    }
}

pub(crate) fn json(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| {
        let why = if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
        Status::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
    })
}

fn yaml(bytes: &[u8]) -> Result<Value, Status> {
    serde_saphyr::from_slice(bytes)
        .map_err(|error| Status::bad_request(format!("error parsing YAML: {}", first_line(&error.to_string()))))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(decode("application/json", b"{\"a\": 1}").unwrap(), json!({"a": 1}));
        assert_eq!(decode("application/yaml", b"a: 1\nb: [x, \"2\"]\n").unwrap(), json!({"a": 1, "b": ["x", "2"]}));
        for (media, body, code) in [
            ("application/json", "{\"a\": ", 400),
            ("application/json", "nonsense", 400),
            ("application/json", "", 400),
            ("application/yaml", "a: [", 400),
            ("application/vnd.kubernetes.protobuf", "k8s\0", 400),
            ("application/vnd.kubernetes.protobuf", "{}", 400),
            ("text/html", "{}", 415),
        ] {
            assert_eq!(decode(media, body.as_bytes()).map_err(|status| status.code()), Err(code), "{media} {body}");
        }
        let message = decode("application/json", b"{\"a\": ").unwrap_err();
        assert_eq!(message.message(), "couldn't get version/kind; json parse error: unexpected end of JSON input");
        let deep = "[".repeat(100_000);
        assert_eq!(decode("application/json", deep.as_bytes()).map_err(|status| status.code()), Err(400));
        assert_eq!(decode("application/yaml", deep.as_bytes()).map_err(|status| status.code()), Err(400));
    }
}
