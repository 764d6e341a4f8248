//! What a backend answered -> the same, and if it is a page, with its links leading through the proxy.
//!
//! Invariant: no more than [`MAX_PAGE`] bytes of a page are held, plain or unpacked; a larger one is passed on as it is.
//! Pages are packed by gzip or not at all: what else they may be packed by, nobody here unpacks. Source: `proxy.Transport`
//! of Kubernetes.

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use futures::{StreamExt, stream};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::response::Parts;
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Body as _, Frame};
use portolan_kinds::Status;

use super::html;
use super::rewrite::Links;
use crate::accept::Media;
use crate::respond::{self, Body, BodyError, Reply};

/// Bytes of a page whose links are rewritten.
const MAX_PAGE: usize = 2 << 20;

pub(super) async fn led(mut parts: Parts, mut body: Body, links: &Links) -> Reply {
    if !is_page(&parts.headers) {
        return Response::from_parts(parts, body);
    }
    // It will be another, also where only the head was asked for.
    parts.headers.remove(CONTENT_LENGTH);
    if body.is_end_stream() {
        return Response::from_parts(parts, body);
    }
    let page = match collect(&mut body).await {
        Ok((page, true)) => page,
        Ok((beginning, false)) => {
            let beginning = stream::once(async move { Ok::<_, BodyError>(Frame::data(Bytes::from(beginning))) });
            let whole = StreamBody::new(beginning.chain(BodyStream::new(body)));
            return Response::from_parts(parts, whole.boxed_unsync());
        }
        Err(why) => {
            let status = Status::unavailable(format!("error trying to reach service: {why}"));
            return respond::failure(Media::Json, &status);
        }
    };
    let rewritten = |page: &[u8]| html::rewritten(page, |link| links.rewritten(link));
    let page = match parts.headers.contains_key(CONTENT_ENCODING) {
        // What says to be packed and is not stays as it is.
        true => unpacked(&page).map(|plain| rewritten(&plain)).and_then(|plain| packed(&plain)).unwrap_or(page),
        false => rewritten(&page),
    };
    Response::from_parts(parts, respond::full(page))
}

/// Whether it is a page whose links are to be rewritten: one that can be read, and of a size that can be held.
fn is_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let fits = text(CONTENT_LENGTH).parse::<usize>().map_or(true, |length| (1..=MAX_PAGE).contains(&length));
    text(CONTENT_TYPE).split(';').next().unwrap_or_default().trim() == "text/html"
        && matches!(text(CONTENT_ENCODING), "" | "gzip")
        && fits
}

/// The page, or as much of it as may be held, and whether that is all.
async fn collect(body: &mut Body) -> Result<(Vec<u8>, bool), BodyError> {
    let mut page = Vec::new();
    while let Some(frame) = body.frame().await {
        page.extend_from_slice(&frame?.into_data().unwrap_or_default());
        if page.len() > MAX_PAGE {
            return Ok((page, false));
        }
    }
    Ok((page, true))
}

fn unpacked(page: &[u8]) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    MultiGzDecoder::new(page).take(MAX_PAGE as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > MAX_PAGE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(plain) }
}

fn packed(page: &[u8]) -> io::Result<Vec<u8>> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
    packer.write_all(page)?;
    packer.finish()
}
