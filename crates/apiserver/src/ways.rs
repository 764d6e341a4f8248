//! Connections that are passed on as they come, in both directions: how many there may be, and how long.
//!
//! Invariant: each holds a [`Way`] for as long as it lasts, and ends when either side does, when nothing has passed for
//! [`IDLE`], or when the server ends.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use portolan_kinds::Status;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::respond::{BodyError, Reply};
use crate::server::Server;
use crate::user::User;

/// At one time, and of one user.
const WAYS: usize = 2048;
const WAYS_OF_ONE: usize = 512;
/// As long as upstream's streams may be idle.
const IDLE: Duration = Duration::from_secs(4 * 3600);
const CHUNK: usize = 32 << 10;
pub(crate) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");

/// Counts ways, by user.
#[derive(Clone, Default)]
pub(crate) struct Ways(Arc<Mutex<HashMap<String, usize>>>);

/// One of them; it is given back when this is dropped.
pub(crate) struct Way {
    ways: Ways,
    user: String,
}

impl Ways {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// # Errors
    /// 429 when there are too many.
    pub(crate) fn take(&self, user: &User) -> Result<Way, Status> {
        let mut counts = self.counts();
        let (all, own) = (counts.values().sum::<usize>(), counts.get(&user.name).copied().unwrap_or(0));
        if all >= WAYS || own >= WAYS_OF_ONE {
            let why = "too many connections to pods, services and nodes are open, please try again later";
            return Err(Status::too_many_requests(why, 1));
        }
        counts.insert(user.name.clone(), own + 1);
        Ok(Way { ways: self.clone(), user: user.name.clone() })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let mut counts = self.ways.counts();
        match counts.get_mut(&self.user) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(counts.remove(&self.user)),
        }
    }
}

/// Whether the request asks to speak something else than HTTP.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONNECTION).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
        && headers.contains_key(UPGRADE)
}

pub(crate) fn is_websocket(headers: &HeaderMap) -> bool {
    is_upgrade(headers) && headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers a client that asked for another protocol with what its backend answered; if that has changed protocols,
/// passes on what both say from then on.
pub(crate) fn join(
    server: &Server,
    client: OnUpgrade,
    backend: Response<Incoming>,
    way: Way,
    shutdown: CancellationToken,
) -> Reply {
    let (parts, body) = backend.into_parts();
    let mut answer = Response::from_parts(parts, ());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        for name in [CONNECTION, UPGRADE, TRANSFER_ENCODING] {
            answer.headers_mut().remove(name);
        }
        let body = body.map_err(|error| -> BodyError { Box::new(error) }).map_frame(move |frame| {
            let _ = &way;
            frame
        });
        return answer.map(|()| body.boxed_unsync());
    }
    let mut reply = Reply::new(crate::respond::full(""));
    *reply.status_mut() = answer.status();
    for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, STREAM_PROTOCOL] {
        if let Some(value) = answer.headers_mut().remove(&name) {
            reply.headers_mut().insert(name, value);
        }
    }
    let backend = hyper::upgrade::on(answer.map(|()| body));
    server.tasks.spawn(async move {
        let both = async { tokio::try_join!(client, backend) };
        let joined = tokio::select! {
            joined = both => joined,
            () = shutdown.cancelled() => return,
        };
        match joined {
            Ok((client, backend)) => relay(TokioIo::new(client), TokioIo::new(backend), &shutdown).await,
            Err(error) => tracing::debug!(%error, "a connection ended before it could change protocols"),
        }
        drop(way);
    });
    reply
}

async fn relay(
    client: impl AsyncRead + AsyncWrite,
    backend: impl AsyncRead + AsyncWrite,
    shutdown: &CancellationToken,
) {
    let clock = Clock { start: Instant::now(), last: AtomicU64::new(0) };
    let (from_client, to_client) = tokio::io::split(client);
    let (from_backend, to_backend) = tokio::io::split(backend);
    let ended = tokio::select! {
        ended = pass(from_client, to_backend, &clock) => ended,
        ended = pass(from_backend, to_client, &clock) => ended,
        () = clock.idle() => Ok(()),
        () = shutdown.cancelled() => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection that was passed on broke");
    }
}

/// When something last passed.
struct Clock {
    start: Instant,
    /// Milliseconds after the start.
    last: AtomicU64,
}

impl Clock {
    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    async fn idle(&self) {
        loop {
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + IDLE;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, clock: &Clock) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        clock.touch();
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
        clock.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_has_them_all() {
        let ways = Ways::new();
        let user = |name: &str| User { name: name.into(), ..User::anonymous() };
        let held: Vec<Way> = (0..WAYS_OF_ONE).map(|_| ways.take(&user("greedy")).unwrap()).collect();
        assert_eq!(ways.take(&user("greedy")).map(drop).unwrap_err().code(), 429);
        drop(ways.take(&user("modest")).unwrap());
        drop(held);
        assert!(ways.counts().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_passes_keeps_a_connection_and_idleness_ends_it() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut backend) = tokio::io::duplex(64);
        let relayed = tokio::task::spawn(async move { relay(near, far, &CancellationToken::new()).await });
        let mut buffer = [0; 2];
        for _ in 0..3 {
            tokio::time::sleep(IDLE - Duration::from_secs(60)).await;
            client.write_all(b"hi").await.unwrap();
            backend.read_exact(&mut buffer).await.unwrap();
        }
        let before = Instant::now();
        relayed.await.unwrap();
        assert!(before.elapsed() >= IDLE - Duration::from_secs(60));
        assert_eq!(client.read(&mut buffer).await.unwrap(), 0);
    }
}
