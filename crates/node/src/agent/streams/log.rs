//! A log for who asks for a WebSocket, as browsers do: what is read is what the messages hold, without channels.
//!
//! Source: `k8s.io/streaming` `wsstream`, its Reader.

use futures::StreamExt;
use http::HeaderMap;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::negotiate::choose;
use super::{Agreed, Refusal, websocket};
use crate::agent::logs::Reader;

const PROTOCOLS: [&str; 2] = ["binary.k8s.io", "base64.binary.k8s.io"];

pub(in crate::agent) fn log(reader: Reader, headers: &HeaderMap, upgrade: OnUpgrade) -> Result<Agreed, Refusal> {
    let chosen = choose(headers, &[], &PROTOCOLS)?;
    let base64 = chosen.protocol.starts_with("base64.");
    let session = async move {
        let Ok(upgraded) = upgrade.await else { return };
        let chunks = reader.chunks().filter_map(async |chunk| chunk.ok());
        websocket::messages(TokioIo::new(upgraded), base64, chunks.boxed()).await;
    };
    Ok((chosen.answer, Box::pin(session)))
}
