//! A request's body -> JSON, within bounds of size and time.
//!
//! Invariants: no request makes the server hold more than [`LIMIT`] bytes of body, and all together hold no more than
//! the budget that [`Budget`] hands out. A body counts by what has arrived of it and not by what it promises, and small
//! ones count apart from large ones; so those who send slowly keep nobody else waiting.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use portolan_kinds::{Status, protobuf};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_saphyr::options::DuplicateKeyPolicy;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::lines::Lines;

/// As kube-apiserver's own.
pub(crate) const LIMIT: usize = 3 << 20;
/// A body must have arrived after this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// What nobody wants of a body is read away this long, so that a client that reads only after it has written gets its
/// answer.
const DRAIN: Duration = Duration::from_secs(5);
/// This much of a body is small: most are no larger.
const SMALL: usize = 16 << 10;
/// Bodies that arrive at one time, each with its first [`SMALL`] bytes.
const BODIES: usize = 4096;
/// What larger bodies hold beyond that, all together.
const LARGE_KIB: usize = 48 << 10;
/// In such steps they ask for it.
const STEP_KIB: u32 = 64;

/// What aliases in YAML may add, in values and ends of lists and objects: few lines can stand for any number.
const MOST_REPLAYED: usize = 10_000;

/// Memory for the bodies of all requests together.
pub(crate) struct Budget {
    bodies: Semaphore,
    large_kib: Semaphore,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self { bodies: Semaphore::new(BODIES), large_kib: Semaphore::new(LARGE_KIB) }
    }
}

/// What one body holds of the budget.
struct Share<'a> {
    budget: &'a Budget,
    bytes: usize,
    large: Option<SemaphorePermit<'a>>,
}

impl<'a> Share<'a> {
    fn new(budget: &'a Budget) -> Self {
        Self { budget, bytes: SMALL, large: None }
    }

    /// Waits until there is room for `bytes` in all.
    async fn grow_to(&mut self, bytes: usize) -> Result<(), AcquireError> {
        while self.bytes < bytes {
            let more = self.budget.large_kib.acquire_many(STEP_KIB).await?;
            self.bytes += 1024 * more.num_permits();
            match &mut self.large {
                Some(large) => large.merge(more),
                none => *none = Some(more),
            }
        }
        Ok(())
    }
}

/// A body until somebody takes it. Nobody may have to: many a request is answered by what comes before.
pub(crate) struct Unread {
    body: Option<Incoming>,
    /// Whether the client waits to be asked for it.
    is_held_back: bool,
}

impl Unread {
    pub(crate) fn new(parts: &Parts, body: Incoming) -> Self {
        let body = Some(body).filter(|body| !body.is_end_stream());
        Self { body, is_held_back: parts.headers.contains_key(EXPECT) }
    }

    /// The body, unless there is none or it was taken before.
    pub(crate) fn take(&mut self) -> Option<Incoming> {
        self.body.take()
    }

    /// Reads away what nobody took: a client that is cut off while it writes does not read the answer.
    pub(crate) async fn drain(self) {
        if let Some(mut body) = self.body.filter(|_| !self.is_held_back) {
            let deadline = Instant::now() + DRAIN;
            while let Ok(Some(Ok(_))) = timeout_at(deadline, body.frame()).await {}
        }
    }
}

/// The whole body. Of one that is too large the rest is left unread.
pub(crate) async fn read(parts: &Parts, unread: &mut Unread, budget: &Budget) -> Result<Bytes, Status> {
    let Some(mut body) = unread.take() else { return Ok(Bytes::new()) };
    let deadline = Instant::now() + PATIENCE;
    let declared = parts
        .headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .map_or(0, |length| length.parse().unwrap_or(usize::MAX));
    let mut collected = None;
    if declared <= LIMIT {
        let late = |_| Status::timeout("the request's body did not arrive in time", 0);
        let _one_of_many = timeout_at(deadline, budget.bodies.acquire()).await.map_err(late)?;
        let collecting = collect(&mut body, declared, Share::new(budget));
        collected = timeout_at(deadline, collecting).await.map_err(late)??;
        unread.is_held_back = false;
    }
    collected.ok_or_else(|| {
        unread.body = Some(body);
        Status::too_large(LIMIT)
    })
}

/// `None` if there is more than the limit.
async fn collect(body: &mut Incoming, expected: usize, mut share: Share<'_>) -> Result<Option<Bytes>, Status> {
    let mut bytes = Vec::with_capacity(expected);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::bad_request("unexpected EOF"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > LIMIT {
                return Ok(None);
            }
            share.grow_to(bytes.len() + data.len()).await.map_err(Status::internal)?;
            bytes.extend_from_slice(&data);
        }
    }
    Ok(Some(bytes.into()))
}

/// The media type of the body, in lower case and without its parameters.
pub(crate) fn media_type(parts: &Parts) -> String {
    let header = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// What stands more than once in a text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Repeated {
    /// What to warn of.
    pub(crate) lines: Vec<String>,
    in_yaml: bool,
}

impl Repeated {
    fn in_json(lines: Vec<String>) -> Self {
        Self { lines, in_yaml: false }
    }

    /// What is wrong with it, for who wants to know exactly. Of YAML it is all one mistake.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        if self.in_yaml && !self.lines.is_empty() {
            vec![format!("yaml: unmarshal errors:\n  {}", self.lines.join("\n  "))]
        } else {
            self.lines.clone()
        }
    }
}

/// An object, and what about its text is to be warned of.
///
/// # Errors
/// 415 for other media types, 400 for what is not what it says it is, or no object.
pub(crate) fn object(media_type: &str, bytes: &[u8]) -> Result<(Value, Repeated), Status> {
    let (value, repeated) = match media_type {
        "" | "application/json" | "*/*" => json(bytes).map(|(value, repeated)| (value, Repeated::in_json(repeated)))?,
        "application/yaml" | "text/yaml" => yaml(bytes)?,
        _ => (decode(media_type, bytes)?, Repeated::default()),
    };
    if value.is_object() { Ok((value, repeated)) } else { Err(Status::bad_request("the body must be an object")) }
}

/// # Errors
/// 415 for other media types, 400 for what is not what it says it is.
pub(crate) fn decode(media_type: &str, bytes: &[u8]) -> Result<Value, Status> {
    match media_type {
        "" | "application/json" | "*/*" => json(bytes).map(|(value, _)| value),
        "application/yaml" | "text/yaml" => yaml(bytes).map(|(value, _)| value),
        protobuf::MEDIA_TYPE => protobuf::to_json(bytes),
        _ => Err(Status::unsupported_media_type(&["application/json", "application/yaml", protobuf::MEDIA_TYPE])),
    }
}

/// A value, and which of its fields stand there more than once.
///
/// # Errors
/// 400 for what is no JSON.
pub(crate) fn json(bytes: &[u8]) -> Result<(Value, Vec<String>), Status> {
    crate::json::parse(bytes).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> Status {
    let why = if error.is_eof() { "unexpected end of JSON input".to_owned() } else { error.to_string() };
    Status::bad_request(format!("couldn't get version/kind; json parse error: {why}"))
}

/// A value, and which of its fields stand there more than once.
///
/// # Errors
/// 400 for what is no YAML.
pub(crate) fn yaml(bytes: &[u8]) -> Result<(Value, Repeated), Status> {
    // All JSON is YAML, and most clients send it.
    let (value, repeated) = match crate::json::parse(bytes) {
        Ok(parsed) => parsed,
        Err(_) => {
            let crate::json::Parsed(value, repeated) = read_yaml(bytes)?;
            (value, repeated)
        }
    };
    let lines = if repeated.is_empty() { Vec::new() } else { read_yaml::<Lines>(bytes)?.0 };
    Ok((value, Repeated { lines, in_yaml: true }))
}

fn read_yaml<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Status> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MOST_REPLAYED },
    };
    serde_saphyr::from_slice_with_options(bytes, options)
        .map_err(|error| Status::bad_request(format!("error parsing YAML: {}", first_line(&error.to_string()))))
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn bodies_count_by_what_has_arrived() {
        let budget = Budget::new();
        let mut small: Vec<Share<'_>> = (0..BODIES).map(|_| Share::new(&budget)).collect();
        for share in &mut small {
            share.grow_to(SMALL).await.unwrap();
        }
        let mut large: Vec<Share<'_>> = Vec::new();
        while budget.large_kib.available_permits() > 0 {
            large.push(Share::new(&budget));
            large.last_mut().unwrap().grow_to(LIMIT).await.unwrap();
        }
        assert_eq!(large.len(), (LARGE_KIB << 10).div_ceil(LIMIT));
        let mut late = Share::new(&budget);
        late.grow_to(SMALL).await.unwrap();
        assert!(late.grow_to(SMALL + 1).now_or_never().is_none(), "more than the budget was given out");
        large.pop();
        late.grow_to(SMALL + 1).await.unwrap();
    }

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
        let twice = "a:\n  b: 1\n  c: {d: 2, d: 3}\n  \"b\":\n    e: [x]\na: 4\n";
        let (value, repeated) = object("application/yaml", twice.as_bytes()).unwrap();
        assert_eq!(value, json!({"a": 4}));
        let lines =
            [(3, "d"), (5, "b"), (6, "a")].map(|(line, key)| format!("line {line}: key \"{key}\" already set in map"));
        assert_eq!(repeated.mistakes(), [format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))]);
        let in_json = b"{\"a\": 1, \"a\": 2}";
        assert_eq!(object("", in_json).unwrap().1.mistakes(), ["duplicate field \"a\""]);
        assert_eq!(object("application/yaml", in_json).unwrap().1.lines, ["line 1: key \"a\" already set in map"]);
        let deep = "[".repeat(100_000);
        assert_eq!(decode("application/json", deep.as_bytes()).map_err(|status| status.code()), Err(400));
        assert_eq!(decode("application/yaml", deep.as_bytes()).map_err(|status| status.code()), Err(400));
        assert_eq!(decode("application/yaml", b"a: &a [1]\nb: *a\n").unwrap(), json!({"a": [1], "b": [1]}));
        let bomb = (1..9).fold("v0: &v0 [x, x]\n".to_owned(), |bomb, at| {
            format!("{bomb}v{at}: &v{at} [{}]\n", vec![format!("*v{}", at - 1); 9].join(", "))
        });
        assert_eq!(decode("application/yaml", bomb.as_bytes()).map_err(|status| status.code()), Err(400));
    }
}
