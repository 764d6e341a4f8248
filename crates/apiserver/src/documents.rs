//! The OpenAPI documents, which are large and asked for by many clients as they start: each made once, kept compressed.
//!
//! Invariants: what is answered describes the kinds that are served now, under a tag that changes with it; who has it
//! already is told so before it is made. Making one takes up to a fifth of a second, and no thread that answers others.
//! Source: `handler` and `handler3` of kube-openapi.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, IF_NONE_MATCH};
use portolan_kinds::openapi::{self, Index, gnostic};
use portolan_kinds::{Catalog, Status};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::accept;
use crate::respond::{self, Reply};

const JSON: &str = "application/json";
/// The older name of [`gnostic::MEDIA_TYPE`].
const GNOSTIC: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A document in one of its forms.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    V2,
    V2Protobuf,
    /// By its path.
    V3(String),
}

impl Name {
    fn media(&self) -> &'static str {
        if *self == Self::V2Protobuf { gnostic::MEDIA_TYPE } else { JSON }
    }

    fn make(&self, catalog: &Catalog) -> Vec<u8> {
        match self {
            Self::V2 => openapi::v2(catalog).to_string().into_bytes(),
            Self::V2Protobuf => gnostic::document(&openapi::v2(catalog)),
            Self::V3(path) => openapi::v3(catalog, path).unwrap_or_default().to_string().into_bytes(),
        }
    }
}

/// What is or will be the document of this number, compressed.
struct Held {
    hash: u64,
    packed: Arc<OnceCell<Bytes>>,
}

#[derive(Default)]
pub(crate) struct Documents {
    own: OnceCell<Index>,
    held: Mutex<BTreeMap<Name, Held>>,
}

/// # Errors
/// 500 if it did not come to its end.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    spawn_blocking(work).await.map_err(Status::internal)
}

fn packed(bytes: &[u8]) -> std::io::Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish().map(Bytes::from)
}

fn unpacked(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

impl Documents {
    /// What there is now.
    ///
    /// # Errors
    /// 500 if it cannot be known.
    pub(crate) async fn index(&self, catalog: &Catalog) -> Result<Index, Status> {
        let own = self.own.get_or_try_init(|| apart(Index::own)).await?;
        Ok(own.with(catalog))
    }

    /// `/openapi/v2`.
    ///
    /// # Errors
    /// 406 for who takes neither JSON nor protobuf.
    pub(crate) async fn v2(&self, catalog: &Arc<Catalog>, headers: &HeaderMap) -> Result<Reply, Status> {
        let offered = [JSON, GNOSTIC, gnostic::MEDIA_TYPE];
        let media = accept::first(header(headers, ACCEPT), &offered)?;
        let name = if media == JSON { Name::V2 } else { Name::V2Protobuf };
        let hash = self.index(catalog).await?.whole();
        self.answer(catalog, name, hash, headers).await
    }

    /// `/openapi/v3/<path>`, for who was told its number by the index, or was not.
    ///
    /// # Errors
    /// 404 where there is none, 406 for who does not take JSON.
    pub(crate) async fn v3(
        &self,
        catalog: &Arc<Catalog>,
        path: String,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<Reply, Status> {
        let hash = self.index(catalog).await?.hash(&path).ok_or_else(Status::unknown_resource)?;
        accept::first(header(headers, ACCEPT), &[JSON])?;
        let mut told =
            form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "hash").map(|(_, hash)| hash);
        let told = told.next().filter(|told| !told.is_empty());
        if told.as_ref().is_some_and(|told| *told != format!("{hash:016X}")) {
            return Ok(respond::moved(&Index::url(&path, hash)));
        }
        let mut reply = self.answer(catalog, Name::V3(path), hash, headers).await?;
        if told.is_some() {
            respond::keep_for_ever(&mut reply);
        }
        Ok(reply)
    }

    async fn answer(
        &self,
        catalog: &Arc<Catalog>,
        name: Name,
        hash: u64,
        headers: &HeaderMap,
    ) -> Result<Reply, Status> {
        let media = name.media();
        let tag = format!("\"{hash:016X}\"");
        if header(headers, IF_NONE_MATCH).split(',').any(|known| known.trim() == tag) {
            return Ok(respond::tagged(respond::unchanged(media), &tag));
        }
        let document = self.document(catalog, name, hash).await?;
        let reply = if respond::packs(usize::MAX, header(headers, ACCEPT_ENCODING)) {
            respond::packed(respond::typed(media, document))
        } else {
            respond::typed(media, apart(move || unpacked(&document)).await?.map_err(Status::internal)?)
        };
        Ok(respond::tagged(reply, &tag))
    }

    /// Who comes while it is made waits for it, rather than making it too.
    async fn document(&self, catalog: &Arc<Catalog>, name: Name, hash: u64) -> Result<Bytes, Status> {
        let cell = {
            let mut all = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            match all.get(&name) {
                Some(held) if held.hash == hash => held.packed.clone(),
                _ => {
                    let packed = Arc::default();
                    // A group's last definition may have gone.
                    let serves = |name: &Name| match name {
                        Name::V3(path) => openapi::serves(catalog, path),
                        _ => true,
                    };
                    all.retain(|name, _| serves(name));
                    all.insert(name.clone(), Held { hash, packed: Arc::clone(&packed) });
                    packed
                }
            }
        };
        let make = || async {
            let catalog = catalog.clone();
            apart(move || packed(&name.make(&catalog))).await?.map_err(Status::internal)
        };
        cell.get_or_try_init(make).await.cloned()
    }
}
