//! What is too large for one piece -> a body that takes form as the client reads, a turn for each piece.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use portolan_kinds::Status;

use crate::listing::Pieces;
use crate::respond::{Body, BodyError};
use crate::server::Server;
use crate::turns::LargeList;

/// `first` and then the rest of `source`, compressed if it is `packed`.
///
/// # Errors
/// 429 when too many such of the asker's are on their way.
pub(crate) fn body(
    server: &Arc<Server>,
    asker: &str,
    first: Vec<u8>,
    source: impl Pieces + Send + 'static,
    packed: bool,
) -> Result<Body, Status> {
    let sending = Sending {
        server: server.clone(),
        asker: asker.to_owned(),
        source,
        next: Some(first),
        packer: Packer::new(packed),
        _held: server.admission.large_list(asker)?,
    };
    let pieces = stream::try_unfold(sending, |mut sending| async {
        let piece = sending.next().await?;
        Ok::<_, BodyError>(piece.map(|piece| (Frame::data(piece), sending)))
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}

struct Sending<P> {
    server: Arc<Server>,
    asker: String,
    source: P,
    /// Made, and not sent yet.
    next: Option<Vec<u8>>,
    packer: Packer,
    _held: LargeList,
}

impl<P: Pieces> Sending<P> {
    async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let _turn = match &self.next {
                None if self.source.is_over() => return Ok(None),
                None => self.server.admission.pieces.part(&self.asker).await,
                Some(_) => None,
            };
            let piece = self.next.take().unwrap_or_else(|| self.source.piece());
            let packed = self.packer.pack(piece, self.source.is_over())?;
            if !packed.is_empty() {
                return Ok(Some(packed));
            }
        }
    }
}

/// Pieces of an answer -> pieces of it as it goes over the wire.
enum Packer {
    Plain,
    Gzip(Box<GzEncoder<Vec<u8>>>),
}

impl Packer {
    fn new(gzip: bool) -> Self {
        if gzip { Self::Gzip(Box::new(GzEncoder::new(Vec::new(), Compression::fast()))) } else { Self::Plain }
    }

    /// What is ready after `piece`, which may be nothing yet; all of it if it was the `last`.
    ///
    /// # Errors
    /// None that a `Vec` makes.
    fn pack(&mut self, piece: Vec<u8>, last: bool) -> io::Result<Bytes> {
        let Self::Gzip(encoder) = self else { return Ok(piece.into()) };
        encoder.write_all(&piece)?;
        if last {
            encoder.try_finish()?;
        }
        Ok(std::mem::take(encoder.get_mut()).into())
    }
}
