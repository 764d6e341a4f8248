//! SPDY/3.1 frames <-> bytes. Pure.
//!
//! Invariant: whatever arrives, no more than a control frame is held ([`MAX_CONTROL`]), and no more of its headers than
//! [`MAX_HEADERS`] and [`MAX_HEADER_COUNT`]: data is given on as it comes, however long its frame says it is. Flow control
//! is not here because the clients there are (Kubernetes' own, through `spdystream`) know none: TCP's has to do.
//!
//! Source: SPDY protocol, drafts 3 and 3.1.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use hyper::body::Bytes;

use super::dictionary::dictionary;

const VERSION: u16 = 3;
const MAX_CONTROL: usize = 64 << 10;
/// Bytes of one stream's headers, unpacked.
const MAX_HEADERS: usize = 16 << 10;
const MAX_HEADER_COUNT: u32 = 64;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream was refused.
pub(super) const PROTOCOL_ERROR: u32 = 1;
pub(super) const REFUSED_STREAM: u32 = 3;
/// A stream has ended otherwise than it should.
pub(super) const CANCEL: u32 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// With the names in lower case.
    Open {
        stream: u32,
        last: bool,
        headers: BTreeMap<String, String>,
    },
    /// A piece of a data frame.
    Data {
        stream: u32,
        last: bool,
        bytes: Bytes,
    },
    Reset(u32),
    Ping(u32),
    GoAway,
    /// Nothing that asks for anything.
    Other,
}

/// What cannot be SPDY.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not SPDY/3.1: {0}")]
pub(super) struct Broken(&'static str);

pub(super) struct Decoder {
    buffer: Vec<u8>,
    /// Bytes of the buffer that were decoded.
    read: usize,
    /// Stream, whether it is the last, and bytes that are missing of a data frame.
    data: Option<(u32, bool, usize)>,
    inflate: Decompress,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), read: 0, data: None, inflate: Decompress::new(true) }
    }

    pub(super) fn take_in(&mut self, bytes: &[u8]) {
        // Once for all the frames in it, however small they are.
        self.buffer.drain(..std::mem::take(&mut self.read));
        self.buffer.extend_from_slice(bytes);
    }

    /// # Errors
    /// After one, nothing more can be understood.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Broken> {
        let unread = &self.buffer[self.read..];
        if let Some((stream, last, missing)) = self.data {
            let length = missing.min(unread.len());
            if length == 0 && missing > 0 {
                return Ok(None);
            }
            let bytes = Bytes::copy_from_slice(&unread[..length]);
            self.read += length;
            let whole = length == missing;
            self.data = (!whole).then_some((stream, last, missing - length));
            return Ok(Some(Frame::Data { stream, last: last && whole, bytes }));
        }
        let Some((head, rest)) = unread.split_first_chunk::<8>() else { return Ok(None) };
        let [first, second, third, fourth, flags, length @ ..] = *head;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if first & 0x80 == 0 {
            let stream = u32::from_be_bytes([first, second, third, fourth]);
            self.read += 8;
            self.data = Some((stream, flags & FIN != 0, length));
            return self.next();
        }
        if u16::from_be_bytes([first & 0x7f, second]) != VERSION {
            return Err(Broken("another version"));
        }
        if length > MAX_CONTROL {
            return Err(Broken("a control frame longer than any that is sent"));
        }
        let Some(body) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.read += 8 + length;
        self.control(u16::from_be_bytes([third, fourth]), flags, &body).map(Some)
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, Broken> {
        let word = |at: usize| {
            let word = body.get(at..at + 4).and_then(|word| word.try_into().ok()).map(u32::from_be_bytes);
            word.ok_or(Broken("a control frame that is too short"))
        };
        Ok(match kind {
            SYN_STREAM => {
                let stream = word(0)? & 0x7fff_ffff;
                let headers = self.headers(body.get(10..).ok_or(Broken("a control frame that is too short"))?)?;
                Frame::Open { stream, last: flags & FIN != 0, headers }
            }
            // They share one history of compression, so all are read, whoever wants them.
            SYN_REPLY | HEADERS => {
                self.headers(body.get(4..).ok_or(Broken("a control frame that is too short"))?)?;
                Frame::Other
            }
            RST_STREAM => Frame::Reset(word(0)? & 0x7fff_ffff),
            PING => Frame::Ping(word(0)?),
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        })
    }

    fn headers(&mut self, packed: &[u8]) -> Result<BTreeMap<String, String>, Broken> {
        let plain = self.inflate(packed)?;
        let Some((count, mut rest)) = plain.split_first_chunk::<4>() else { return Err(Broken("no headers")) };
        let mut word = || -> Option<&[u8]> {
            let (length, after) = rest.split_first_chunk::<4>()?;
            let (word, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
            rest = after;
            Some(word)
        };
        let count = u32::from_be_bytes(*count);
        if count > MAX_HEADER_COUNT {
            return Err(Broken("more headers than anybody sends"));
        }
        let mut headers = BTreeMap::new();
        for _ in 0..count {
            let (Some(name), Some(value)) = (word(), word()) else {
                return Err(Broken("headers that end too early"));
            };
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            headers.insert(text(name).to_ascii_lowercase(), text(value));
        }
        Ok(headers)
    }

    fn inflate(&mut self, packed: &[u8]) -> Result<Vec<u8>, Broken> {
        let nonsense = Broken("headers that cannot be unpacked");
        let mut plain = Vec::with_capacity(1024);
        let started = self.inflate.total_in();
        loop {
            let taken = usize::try_from(self.inflate.total_in() - started).unwrap_or(usize::MAX);
            let left = packed.get(taken..).unwrap_or_default();
            match self.inflate.decompress_vec(left, &mut plain, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(nonsense),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&dictionary()).map_err(|_| Broken("another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(nonsense),
            }
            if plain.len() < plain.capacity() {
                return Ok(plain);
            }
            if plain.len() >= MAX_HEADERS {
                return Err(Broken("more headers than anybody sends"));
            }
            plain.reserve(plain.len());
        }
    }
}

pub(super) struct Encoder {
    deflate: Compress,
}

impl Encoder {
    pub(super) fn new() -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        // Only a stream that has begun refuses one.
        let _ = deflate.set_dictionary(&dictionary());
        Self { deflate }
    }

    /// Takes a stream that was opened, with no headers.
    pub(super) fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        body.reserve(256);
        // Room for an empty block many times over, so that it is done at once; writing to memory cannot fail.
        let _ = self.deflate.compress_vec(&[0; 4], &mut body, FlushCompress::Sync);
        control(SYN_REPLY, &body)
    }
}

/// Bytes of a data frame at most: so that none keeps others waiting.
pub(super) const MAX_DATA: usize = 32 << 10;

pub(super) fn data(stream: u32, last: bool, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(8 + bytes.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&head(u8::from(last), bytes.len()));
    frame.extend_from_slice(bytes);
    frame
}

pub(super) fn reset(stream: u32, why: u32) -> Vec<u8> {
    control(RST_STREAM, &[stream.to_be_bytes(), why.to_be_bytes()].concat())
}

pub(super) fn ping(number: u32) -> Vec<u8> {
    control(PING, &number.to_be_bytes())
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = (VERSION | 0x8000).to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&head(0, body.len()));
    frame.extend_from_slice(body);
    frame
}

/// Flags and length.
fn head(flags: u8, length: usize) -> [u8; 4] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [flags, a, b, c]
}

#[cfg(test)]
impl Encoder {
    /// Opens a stream, as clients do.
    pub(super) fn open(&mut self, stream: u32, last: bool, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for word in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&u32::try_from(word.len()).unwrap().to_be_bytes());
            plain.extend_from_slice(word.as_bytes());
        }
        let mut body = [stream.to_be_bytes().as_slice(), &[0; 6]].concat();
        body.reserve(plain.len() + 1024);
        self.deflate.compress_vec(&plain, &mut body, FlushCompress::Sync).unwrap();
        let mut frame = control(SYN_STREAM, &body);
        frame[4] = u8::from(last);
        frame
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(bytes: &[u8], step: usize) -> Result<Vec<Frame>, Broken> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        for piece in bytes.chunks(step) {
            decoder.take_in(piece);
            while let Some(frame) = decoder.next()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    }

    /// What Go's `spdystream` sends for streams 1 and 3 with `streamType: error` and `streamType: stdin`, then `hi` on
    /// 3 as its last, and a ping.
    const GOLDEN: &str = "800300010000002a0000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a5a54945f04000000ffff\
        800300010000001700000003000000000000c22e555c92929907000000ffff000000030100000268698003000600000004\
        00000001";

    #[test]
    fn what_clients_send_is_understood_however_it_is_cut() {
        let open = |stream, kind: &str| Frame::Open {
            stream,
            last: false,
            headers: BTreeMap::from([("streamtype".to_owned(), kind.to_owned())]),
        };
        let expected = [
            open(1, "error"),
            open(3, "stdin"),
            Frame::Data { stream: 3, last: true, bytes: "hi".into() },
            Frame::Ping(1),
        ];
        assert_eq!(decode(&bytes(GOLDEN), usize::MAX).unwrap(), expected);
        let frames = decode(&bytes(GOLDEN), 1).unwrap();
        assert_eq!(frames[..2], expected[..2]);
        assert_eq!(frames[2..4].iter().filter(|frame| matches!(frame, Frame::Data { last: true, .. })).count(), 1);
    }

    #[test]
    fn the_dictionary_is_the_one_that_everybody_has() {
        // The zlib header says by this checksum which dictionary is meant.
        let reply = Encoder::new().reply(1);
        assert_eq!(reply[12..18], [0x78, reply[13], 0xe3, 0xc6, 0xa7, 0xc2]);
        assert_eq!(decode(&reply, usize::MAX).unwrap(), [Frame::Other]);
    }

    #[test]
    fn frames_that_are_sent() {
        assert_eq!(data(5, true, b"ok"), bytes("00000005 01000002 6f6b"));
        assert_eq!(data(5, false, b""), bytes("00000005 00000000"));
        assert_eq!(reset(7, CANCEL), bytes("80030003 00000008 00000007 00000005"));
        assert_eq!(ping(2), bytes("80030006 00000004 00000002"));
        assert_eq!(decode(&reset(7, CANCEL), 3).unwrap(), [Frame::Reset(7)]);
    }

    #[test]
    fn hostile_bytes_are_refused_before_they_are_held() {
        for (hex, why) in [
            ("80040001 00000000", "another version"),
            ("80030001 00ffffff", "a control frame longer than any that is sent"),
            ("80030001 00000004 00000001", "a control frame that is too short"),
            ("80030006 00000000", "a control frame that is too short"),
            ("80030001 0000000e 00000001 00000000 0000 ffffffff", "headers that cannot be unpacked"),
        ] {
            assert_eq!(decode(&bytes(hex), usize::MAX).unwrap_err(), Broken(why), "{hex}");
        }
    }

    #[test]
    fn headers_that_unpack_to_much_are_refused() {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        let mut packed = Vec::with_capacity(64 << 10);
        deflate.compress_vec(&vec![0; 8 << 20], &mut packed, FlushCompress::Sync).unwrap();
        let body = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0], packed.as_slice()].concat();
        assert_eq!(
            decode(&control(SYN_STREAM, &body), usize::MAX).unwrap_err(),
            Broken("more headers than anybody sends")
        );
    }

    #[test]
    fn many_headers_are_refused() {
        let open = |count: u32| {
            let names: Vec<String> = (0..count).map(|number| number.to_string()).collect();
            let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
            decode(&Encoder::new().open(1, false, &headers), 7)
        };
        let frames = open(MAX_HEADER_COUNT).unwrap();
        assert!(matches!(&frames[..], [Frame::Open { headers, .. }] if headers.len() == 64));
        assert_eq!(open(MAX_HEADER_COUNT + 1).unwrap_err(), Broken("more headers than anybody sends"));
    }

    proptest! {
        #[test]
        fn nothing_panics_or_hoards(bytes in prop::collection::vec(any::<u8>(), 0..4096), step in 1usize..512) {
            let mut decoder = Decoder::new();
            for piece in bytes.chunks(step) {
                decoder.take_in(piece);
                while let Ok(Some(_)) = decoder.next() {}
                prop_assert!(decoder.buffer.len() <= MAX_CONTROL + 8 + step);
            }
        }
    }
}
