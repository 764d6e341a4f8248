//! A PNG and a size -> the picture in that size: the demo's backend, doing real work for each request.
//!
//! Invariants: a request's memory is bounded by [`MAX_BODY`] and [`MAX_SIDE`] before anything is decoded, and no more
//! than [`AT_ONCE`] pictures are worked on at a time; whatever is wrong with a picture is a 400 with the reason.
//!
//! Deliberately not here: other formats, keeping the aspect ratio, caching.

use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::Body;
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::imageops::FilterType;
use image::{ImageEncoder, ImageFormat, ImageReader, RgbImage};
use tokio::sync::Semaphore;

use super::server::{self, Answer, Pod, query_number};

const MAX_BODY: usize = 8 << 20;
/// Of the picture sent and of the one asked for, in pixels.
const MAX_SIDE: u32 = 4096;
const MAX_DECODED_BYTES: u64 = 80 << 20;
const AT_ONCE: usize = 2;

pub(super) async fn run(addresses: [SocketAddr; 2], drain: Duration) -> anyhow::Result<()> {
    let resizer = Arc::new(Resizer::new(Pod::here()));
    let pod = resizer.pod.clone();
    server::serve_until_stopped(&addresses, pod, drain, move |request, _peer| {
        let resizer = resizer.clone();
        async move { resizer.answer(request).await }
    })
    .await
}

struct Resizer {
    pod: Arc<Pod>,
    workers: Semaphore,
    /// What GET resizes.
    sample: Arc<RgbImage>,
}

impl Resizer {
    fn new(pod: Arc<Pod>) -> Self {
        Self { pod, workers: Semaphore::new(AT_ONCE), sample: Arc::new(sample(256, 192)) }
    }

    async fn answer<B>(&self, request: Request<B>) -> Answer
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if let Some(answer) = self.pod.answer(&request) {
            return answer;
        }
        if request.uri().path() != "/resize" {
            return server::not_found(request.uri().path());
        }
        let size = match wanted_size(request.uri().query()) {
            Ok(size) => size,
            Err(reason) => return server::text(StatusCode::BAD_REQUEST, reason),
        };
        let sent = match *request.method() {
            Method::GET => None,
            Method::POST => match Limited::new(request.into_body(), MAX_BODY).collect().await {
                Ok(body) => Some(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    return server::text(
                        StatusCode::PAYLOAD_TOO_LARGE,
                        format!("the picture is larger than {MAX_BODY} bytes\n"),
                    );
                }
                Err(error) => {
                    return server::text(StatusCode::BAD_REQUEST, format!("cannot read the picture: {error}\n"));
                }
            },
            ref other => return server::method_not_allowed(other),
        };
        let Ok(_worker) = self.workers.acquire().await else {
            return server::text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n");
        };
        let sample = self.sample.clone();
        let work = tokio::task::spawn_blocking(move || match sent {
            Some(png) => encode(&shrink(&decode(&png)?, size)),
            None => encode(&shrink(&sample, size)),
        });
        match work.await {
            Ok(Ok(png)) => server::answer(StatusCode::OK, "image/png", png),
            Ok(Err(reason)) => server::text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
            Err(error) => server::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn wanted_size(query: Option<&str>) -> Result<(u32, u32), String> {
    let side = |name, default| match query_number(query, name, default)? {
        side @ 1..=MAX_SIDE => Ok(side),
        side => Err(format!("{name}={side}: must be 1 to {MAX_SIDE}\n")),
    };
    Ok((side("width", 64)?, side("height", 48)?))
}

fn decode(png: &[u8]) -> Result<RgbImage, String> {
    let mut reader = ImageReader::with_format(Cursor::new(png), ImageFormat::Png);
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    reader.decode().map(|picture| picture.into_rgb8()).map_err(|error| format!("not a PNG this backend takes: {error}"))
}

fn shrink(picture: &RgbImage, (width, height): (u32, u32)) -> RgbImage {
    image::imageops::resize(picture, width, height, FilterType::Triangle)
}

fn encode(picture: &RgbImage) -> Result<Vec<u8>, String> {
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, PngFilter::Up)
        .write_image(picture, picture.width(), picture.height(), image::ExtendedColorType::Rgb8)
        .map_err(|error| format!("cannot write the picture: {error}"))?;
    Ok(png)
}

/// A picture with gradients in it, so that resizing and compressing have something to do.
fn sample(width: u32, height: u32) -> RgbImage {
    let channel = |value: u32| u8::try_from(value % 256).unwrap_or(0);
    RgbImage::from_fn(width, height, |x, y| image::Rgb([channel(x), channel(y), channel((x * x + y * y) / 64)]))
}

/// The sample as a PNG, for clients that send one.
pub(super) fn sample_png(width: u32, height: u32) -> Result<Vec<u8>, String> {
    encode(&sample(width.clamp(1, MAX_SIDE), height.clamp(1, MAX_SIDE)))
}

/// Width and height by the PNG's own header; `None` when it is not a PNG.
pub(super) fn png_size(png: &[u8]) -> Option<(u32, u32)> {
    let rest = png.strip_prefix(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR")?;
    let (width, rest) = rest.split_first_chunk::<4>()?;
    let (height, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    async fn answer(method: Method, uri: &str, body: Vec<u8>) -> (StatusCode, Bytes) {
        let resizer = Resizer::new(Pod::new("backend-1".into()));
        let request = Request::builder().method(method).uri(uri).body(Full::new(Bytes::from(body))).unwrap();
        let answer = resizer.answer(request).await;
        (answer.status(), answer.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn resizes_the_picture_it_is_sent_and_its_own() {
        let (status, png) = answer(Method::POST, "/resize?width=20&height=10", sample_png(40, 30).unwrap()).await;
        assert_eq!((status, png_size(&png)), (StatusCode::OK, Some((20, 10))));
        let resized = decode(&png).unwrap();
        // The picture's own colours, not a blank of the right size: the blue of the far corner survives.
        assert!(resized.get_pixel(19, 9)[0] > 30 && resized.get_pixel(0, 9)[0] < 5, "{:?}", resized.get_pixel(19, 9));

        let (status, png) = answer(Method::GET, "/resize", Vec::new()).await;
        assert_eq!((status, png_size(&png)), (StatusCode::OK, Some((64, 48))));
    }

    #[tokio::test]
    async fn says_what_is_wrong_with_a_request() {
        let too_wide = {
            let mut png = sample_png(8, 8).unwrap();
            png[16..20].copy_from_slice(&100_000u32.to_be_bytes());
            png
        };
        let cases = [
            ("text", Method::POST, "/resize", b"hello".to_vec(), StatusCode::BAD_REQUEST, "not a PNG"),
            ("empty", Method::POST, "/resize", Vec::new(), StatusCode::BAD_REQUEST, "not a PNG"),
            ("huge header", Method::POST, "/resize", too_wide, StatusCode::BAD_REQUEST, "not a PNG"),
            ("huge body", Method::POST, "/resize", vec![0; MAX_BODY + 1], StatusCode::PAYLOAD_TOO_LARGE, "larger than"),
            ("zero", Method::GET, "/resize?width=0", Vec::new(), StatusCode::BAD_REQUEST, "width=0: must be 1 to 4096"),
            ("word", Method::GET, "/resize?height=x", Vec::new(), StatusCode::BAD_REQUEST, "not a whole number"),
            ("verb", Method::DELETE, "/resize", Vec::new(), StatusCode::METHOD_NOT_ALLOWED, "DELETE"),
            ("path", Method::GET, "/rotate", Vec::new(), StatusCode::NOT_FOUND, "/rotate"),
        ];
        for (case, method, uri, body, status, part) in cases {
            let (got, text) = answer(method, uri, body).await;
            let text = String::from_utf8_lossy(&text).into_owned();
            assert!(got == status && text.contains(part), "{case}: {got} {text}");
        }
    }
}
