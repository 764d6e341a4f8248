//! A request's headers -> the protocol that both sides speak, and the answer that says so.
//!
//! Source: RFC 6455 §4.2; `k8s.io/streaming`: `httpstream.Handshake` and `wsstream`.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};

use super::Refusal;

const SPDY: &str = "SPDY/3.1";
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// RFC 6455 §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Spdy,
    WebSocket,
}

#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) transport: Transport,
    /// Empty if the client named none.
    pub(super) protocol: String,
    pub(super) answer: Response<()>,
}

/// The words of all headers of a name, which commas separate.
fn words<'a>(headers: &'a HeaderMap, name: &'a HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// Whether the connection is asked to speak `protocol` from now on.
pub(super) fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"))
        && words(headers, &UPGRADE).any(|word| word.eq_ignore_ascii_case(protocol))
}

/// The answer that changes the protocol.
pub(super) fn switch(protocol: &'static str) -> Response<()> {
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol));
    answer
}

/// Chooses the first protocol that the client names among those there are.
///
/// # Errors
/// When it names others only, or asks for no change of protocol.
pub(super) fn choose(headers: &HeaderMap, spdy: &[&str], websocket: &[&str]) -> Result<Chosen, Refusal> {
    let (transport, name, served) = if asks_for(headers, "websocket") {
        (Transport::WebSocket, &SEC_WEBSOCKET_PROTOCOL, websocket)
    } else if asks_for(headers, SPDY) {
        (Transport::Spdy, &STREAM_PROTOCOL, spdy)
    } else {
        let reason =
            format!("unable to upgrade: missing upgrade headers in request: {SPDY} or websocket is spoken here");
        return Err((StatusCode::BAD_REQUEST, reason));
    };
    let named: Vec<&str> = words(headers, name).collect();
    let protocol = match named.iter().find(|named| served.contains(named)) {
        Some(protocol) => (*protocol).to_owned(),
        None if named.is_empty() => String::new(),
        None => {
            let reason = format!(
                "unable to upgrade: unable to negotiate protocol: client supports {named:?}, server accepts {served:?}"
            );
            return Err((StatusCode::FORBIDDEN, reason));
        }
    };
    let mut answer = switch(if transport == Transport::Spdy { SPDY } else { "websocket" });
    if transport == Transport::WebSocket {
        let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
        let key = key.ok_or_else(|| (StatusCode::BAD_REQUEST, "a WebSocket request needs a key".to_owned()))?;
        if let Ok(value) = HeaderValue::from_str(&accept_key(key)) {
            answer.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, value);
        }
    }
    if let Some(value) = HeaderValue::from_str(&protocol).ok().filter(|value| !value.is_empty()) {
        answer.headers_mut().insert(name.clone(), value);
    }
    Ok(Chosen { transport, protocol, answer })
}

fn accept_key(key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes());
    BASE64_STANDARD.encode(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        let named = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        list.iter().map(named).collect()
    }

    #[test]
    fn the_clients_first_choice_that_is_served_is_taken() {
        let asked = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v9, v5, v4"),
        ]);
        let chosen = choose(&asked, &["v4"], &["v4", "v5"]).unwrap();
        assert_eq!((chosen.transport, chosen.protocol.as_str()), (Transport::WebSocket, "v5"));
        // The key and its answer of RFC 6455 §1.3.
        assert_eq!(chosen.answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(chosen.answer.headers()["sec-websocket-protocol"], "v5");
        assert_eq!(choose(&asked, &["v4"], &["v3"]).unwrap_err().0, StatusCode::FORBIDDEN);
    }

    #[test]
    fn spdy_names_its_protocols_in_headers_of_its_own() {
        let mut asked = headers(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]);
        assert_eq!(choose(&asked, &["v4"], &[]).unwrap().protocol, "");
        asked.append(&STREAM_PROTOCOL, HeaderValue::from_static("v9"));
        asked.append(&STREAM_PROTOCOL, HeaderValue::from_static("v4"));
        let chosen = choose(&asked, &["v4"], &[]).unwrap();
        assert_eq!((chosen.transport, chosen.protocol.as_str()), (Transport::Spdy, "v4"));
        assert_eq!(chosen.answer.headers()["x-stream-protocol-version"], "v4");
    }

    #[test]
    fn a_plain_request_is_refused() {
        assert_eq!(choose(&headers(&[("upgrade", "websocket")]), &[], &[]).unwrap_err().0, StatusCode::BAD_REQUEST);
    }
}
