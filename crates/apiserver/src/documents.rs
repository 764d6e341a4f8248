//! The OpenAPI document of version 2, which is large and asked for by many clients as they start: made once, kept
//! compressed.
//!
//! Invariant: what is answered describes the kinds that are served now; it has a tag that changes with it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use portolan_kinds::openapi::{self, gnostic};
use portolan_kinds::{Catalog, Status};

use crate::respond::{self, Reply};

/// The document in one of its forms, compressed.
struct Document {
    media: &'static str,
    packed: Bytes,
    /// As in the header `ETag`.
    tag: String,
}

/// Both forms of the document, and the kinds that it is about, by the index of version 3.
struct Held {
    index: String,
    json: Arc<Document>,
    protobuf: Arc<Document>,
}

#[derive(Default)]
pub(crate) struct Documents(Mutex<Option<Held>>);

impl Document {
    fn new(media: &'static str, bytes: &[u8]) -> std::io::Result<Arc<Self>> {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes)?;
        let packed = encoder.finish()?.into();
        Ok(Arc::new(Self { media, packed, tag: format!("\"{:016X}\"", hasher.finish()) }))
    }

    fn unpacked(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        GzDecoder::new(&*self.packed).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

impl Documents {
    fn get(&self, catalog: &Catalog, protobuf: bool) -> std::io::Result<Arc<Document>> {
        let index = openapi::v3_index(catalog).to_string();
        // Who comes while it is made waits for it, rather than making it too.
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = match held.take().filter(|held| held.index == index) {
            Some(known) => held.insert(known),
            None => {
                let document = openapi::v2(catalog);
                let json = Document::new("application/json", document.to_string().as_bytes())?;
                let protobuf = Document::new(gnostic::MEDIA_TYPE, &gnostic::document(&document))?;
                held.insert(Held { index, json, protobuf })
            }
        };
        Ok(if protobuf { held.protobuf.clone() } else { held.json.clone() })
    }

    /// The answer for who accepts this, and knows a document of this tag.
    ///
    /// # Errors
    /// 500 for what cannot be compressed, which nothing is known to be.
    pub(crate) fn answer(
        &self,
        catalog: &Catalog,
        accept: &str,
        encodings: &str,
        known: &str,
    ) -> Result<Reply, Status> {
        let document = self.get(catalog, accept.contains("proto-openapi")).map_err(Status::internal)?;
        if known.split(',').any(|known| known.trim() == document.tag) {
            return Ok(respond::tagged(respond::unchanged(document.media), &document.tag));
        }
        let reply = if respond::packs(usize::MAX, encodings) {
            respond::packed(respond::typed(document.media, document.packed.clone()))
        } else {
            respond::typed(document.media, document.unpacked().map_err(Status::internal)?)
        };
        Ok(respond::tagged(reply, &document.tag))
    }
}
