//! Containers' log files -> `GET /containerLogs/<namespace>/<pod>/<container>`, for the API server.
//!
//! HTTPS; a client must show a certificate that the cluster's CA signed. Following waits for the file to change and
//! for the container to end, and never polls. Source: the kubelet's `server.go`, `PodLogOptions` in the API reference.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use jiff::{SignedDuration, Timestamp};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::host::Host;
use super::start::log_path;
use super::{AgentConfig, Error, TlsIdentity};
use crate::shim::rotated;

const MAX_CONNECTIONS: usize = 256;
const CHUNK: usize = 64 << 10;

/// The latest start of a container that has logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) attempt: u32,
    pub(super) running: bool,
}

pub(super) type Containers = BTreeMap<String, Written>;

#[derive(Clone)]
struct PodLogs {
    dir: PathBuf,
    uid: String,
    containers: watch::Receiver<Containers>,
}

/// Which pods have logs, and where.
#[derive(Default)]
pub(super) struct Logs(Mutex<BTreeMap<(String, String), PodLogs>>);

impl Logs {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<(String, String), PodLogs>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, namespace: &str, name: &str, uid: &str, dir: PathBuf) -> watch::Sender<Containers> {
        let (sender, containers) = watch::channel(Containers::new());
        let logs = PodLogs { dir, uid: uid.to_owned(), containers };
        self.pods().insert((namespace.to_owned(), name.to_owned()), logs);
        sender
    }

    /// Forgets a pod, unless another of its name has come meanwhile.
    pub(super) fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let mut pods = self.pods();
        let key = (namespace.to_owned(), name.to_owned());
        if pods.get(&key).is_some_and(|logs| logs.uid == uid) {
            pods.remove(&key);
        }
    }
}

pub(super) struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl Server {
    pub(super) fn bind(config: &AgentConfig) -> Result<Self, Error> {
        let address = config.kubelet_listen;
        let failed = |source| Error::Listen { address, source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let tls = tls(&config.tls).map_err(|reason| Error::Tls { reason })?;
        Ok(Self { listener, tls: TlsAcceptor::from(Arc::new(tls)) })
    }

    pub(super) async fn serve(self, host: Arc<Host>) {
        let listener = match tokio::net::TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot serve container logs"),
        };
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    // Out of descriptors, or the client has gone already.
                    let Ok((stream, _)) = accepted else { continue };
                    let (tls, host) = (self.tls.clone(), host.clone());
                    connections.spawn(async move {
                        let Ok(stream) = tls.accept(stream).await else { return };
                        let service = hyper::service::service_fn(move |request| {
                            let host = host.clone();
                            async move { Ok::<_, std::convert::Infallible>(answer(&host.logs, &request)) }
                        });
                        let builder = auto::Builder::new(TokioExecutor::new());
                        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
                            tracing::debug!(%error, "a log reader's connection broke");
                        }
                    });
                }
            }
        }
    }
}

fn tls(identity: &TlsIdentity) -> Result<ServerConfig, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let certificates = |pem: &str| -> Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(|error| text(&error))
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&identity.client_ca)? {
        roots.add(certificate).map_err(|error| text(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).map_err(|error| text(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| text(&error))?
        .with_client_cert_verifier(verifier.map_err(|error| text(&error))?)
        .with_single_cert(certificates(&identity.certificate)?, key)
        .map_err(|error| text(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

type Stream = futures::stream::BoxStream<'static, io::Result<Frame<Bytes>>>;
type Body = Either<Full<Bytes>, StreamBody<Stream>>;

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text.into()))));
    *response.status_mut() = status;
    response
}

fn answer(logs: &Logs, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path();
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    if path == "/healthz" {
        return plain(StatusCode::OK, "ok");
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let ["containerLogs", namespace, pod, container] = parts[..] else {
        return plain(StatusCode::NOT_FOUND, format!("{path} is not served here\n"));
    };
    let opened = Options::parse(request.uri().query().unwrap_or_default(), Timestamp::now())
        .and_then(|options| open(logs, namespace, pod, container, options));
    match opened {
        Ok(reader) => {
            let lines = futures::stream::unfold(reader, |mut reader| async move {
                let chunk = reader.next().await?;
                Some((chunk.map(Frame::data), reader))
            });
            Response::new(Either::Right(StreamBody::new(lines.boxed())))
        }
        Err((status, reason)) => plain(status, reason),
    }
}

type Refusal = (StatusCode, String);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail: Option<u64>,
    since: Option<Timestamp>,
    limit: Option<u64>,
}

impl Options {
    fn parse(query: &str, now: Timestamp) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let value = decoded(value);
            let bad = || (StatusCode::BAD_REQUEST, format!("{key}: {value:?} is not what it takes"));
            let number = || value.parse::<u64>().map_err(|_| bad());
            let flag = || value.parse::<bool>().or_else(|_| number().map(|number| number != 0));
            match key {
                "follow" => options.follow = flag()?,
                "previous" => options.previous = flag()?,
                "timestamps" => options.timestamps = flag()?,
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit = Some(number()?),
                "sinceSeconds" => {
                    let ago = SignedDuration::from_secs(value.parse().map_err(|_| bad())?);
                    options.since = Some(now.checked_sub(ago).map_err(|_| bad())?);
                }
                "sinceTime" => options.since = Some(value.parse().map_err(|_| bad())?),
                // `container` and what later versions add.
                _ => {}
            }
        }
        Ok(options)
    }
}

/// A query value without its `%` escapes.
fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [byte, tail @ ..] = rest {
        let escaped = tail.get(..2).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        let (value, after) = match (byte, escaped) {
            (b'%', Some(escaped)) => (escaped, &tail[2..]),
            _ => (*byte, tail),
        };
        bytes.push(value);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn open(logs: &Logs, namespace: &str, pod: &str, container: &str, options: Options) -> Result<Reader, Refusal> {
    let known = logs.pods().get(&(namespace.to_owned(), pod.to_owned())).cloned();
    let known = known.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found on this node\n")))?;
    let written = known.containers.borrow().get(container).copied().ok_or_else(|| {
        let reason = format!("container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating\n");
        (StatusCode::BAD_REQUEST, reason)
    })?;
    let missing = || {
        let which = if options.previous { "previous terminated " } else { "" };
        (StatusCode::BAD_REQUEST, format!("{which}container \"{container}\" in pod \"{pod}\" not found\n"))
    };
    let attempt = if options.previous { written.attempt.checked_sub(1) } else { Some(written.attempt) };
    let path = log_path(&known.dir, container, attempt.ok_or_else(missing)?);
    // Without a watch on the container there is nothing to wait for.
    let follow = (options.follow && !options.previous).then(|| Follow {
        container: container.to_owned(),
        attempt: written.attempt,
        containers: known.containers.clone(),
    });
    Reader::open(path, options, follow).map_err(|_| missing())
}

struct Follow {
    container: String,
    attempt: u32,
    containers: watch::Receiver<Containers>,
}

impl Follow {
    /// Returns once this start of the container has ended.
    async fn ended(&mut self) {
        let (container, attempt) = (self.container.clone(), self.attempt);
        let over = |all: &Containers| all.get(&container).is_none_or(|now| now.attempt != attempt || !now.running);
        // The pod's worker being gone means the same.
        let _ = self.containers.wait_for(over).await;
    }
}

struct Reader {
    path: PathBuf,
    files: Vec<BufReader<File>>,
    options: Options,
    /// Lines to leave out before those that are wanted.
    skip: u64,
    left: u64,
    follow: Option<(Follow, AsyncFd<Changes>)>,
    ending: bool,
}

impl Reader {
    fn open(path: PathBuf, options: Options, follow: Option<Follow>) -> io::Result<Self> {
        // Before the files are opened, so that nothing written after is missed.
        let follow = follow.map(|follow| Ok::<_, io::Error>((follow, watch_directory(&path)?))).transpose()?;
        let mut files: Vec<_> = File::open(rotated(&path)).into_iter().map(BufReader::new).collect();
        files.push(BufReader::new(File::open(&path)?));
        let mut reader =
            Self { path, files, options, skip: 0, left: options.limit.unwrap_or(u64::MAX), follow, ending: false };
        if let Some(tail) = options.tail {
            reader.skip = reader.count()?.saturating_sub(tail);
        }
        Ok(reader)
    }

    /// Lines there are now, of those that are not too old.
    fn count(&mut self) -> io::Result<u64> {
        let mut lines = 0;
        let mut line = Vec::new();
        for file in &mut self.files {
            while file.read_until(b'\n', &mut line)? > 0 {
                lines += u64::from(
                    Line::parse(&line).is_some_and(|parsed| parsed.whole && parsed.is_since(self.options.since)),
                );
                line.clear();
            }
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(lines)
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.left == 0 {
                return None;
            }
            match self.read() {
                Ok(bytes) if !bytes.is_empty() => return Some(Ok(bytes)),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
            }
            if self.was_rotated() {
                match File::open(&self.path) {
                    Ok(file) => self.files.push(BufReader::new(file)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            }
            let (follow, changes) = self.follow.as_mut()?;
            if self.ending {
                return None;
            }
            tokio::select! {
                () = follow.ended() => self.ending = true,
                ready = changes.readable() => {
                    // Which file changed does not matter: all are looked at.
                    if let Ok(mut ready) = ready {
                        let _ = ready.get_inner().0.read_events();
                        ready.clear_ready();
                    }
                }
            }
        }
    }

    fn was_rotated(&self) -> bool {
        let open = self.files.last().and_then(|file| file.get_ref().metadata().ok());
        let there = std::fs::metadata(&self.path).ok();
        matches!((open, there), (Some(open), Some(there)) if open.ino() != there.ino())
    }

    /// The wanted part of what can be read now, a chunk at most.
    fn read(&mut self) -> io::Result<Bytes> {
        let mut out = Vec::new();
        let mut line = Vec::new();
        while out.len() < CHUNK {
            let several = self.files.len() > 1;
            let Some(file) = self.files.first_mut() else { break };
            line.clear();
            // The shim writes whole lines at once, so a line is never seen in part.
            if file.read_until(b'\n', &mut line)? == 0 {
                if !several {
                    break;
                }
                self.files.remove(0);
                continue;
            }
            let Some(parsed) = Line::parse(&line).filter(|parsed| parsed.is_since(self.options.since)) else {
                continue;
            };
            if self.skip > 0 {
                self.skip -= u64::from(parsed.whole);
                continue;
            }
            parsed.write(&mut out, self.options.timestamps);
        }
        out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= out.len() as u64;
        Ok(out.into())
    }
}

/// What tells of changes to a log's directory.
struct Changes(Inotify);

impl AsRawFd for Changes {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

#[allow(unsafe_code, reason = "tokio asks for a promise that the descriptor stays the same")]
fn watch_directory(path: &Path) -> io::Result<AsyncFd<Changes>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(path.parent().unwrap_or(path), flags)?;
    // SAFETY: `Changes` owns its descriptor and gives out no other while it lives.
    let registered = unsafe { AsyncFd::register_with_interest(Changes(inotify), Interest::READABLE) };
    Ok(registered?)
}

/// A line as the shim writes it.
struct Line<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let _stream = parts.next()?;
        Some(Self { time, whole: parts.next()? == b"F", text: parts.next()? })
    }

    fn is_since(&self, since: Option<Timestamp>) -> bool {
        since.is_none_or(|since| self.time.parse::<Timestamp>().is_ok_and(|time| time >= since))
    }

    fn write(&self, out: &mut Vec<u8>, timestamps: bool) {
        if timestamps {
            out.extend_from_slice(self.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(self.text);
        if self.whole {
            out.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n2026-01-01T00:00:02Z stderr F two\n\
                       2026-01-01T00:00:03Z stdout P thr\n2026-01-01T00:00:03Z stdout F ee\n";

    struct Lab {
        dir: tempfile::TempDir,
        logs: Logs,
        written: watch::Sender<Containers>,
    }

    impl Lab {
        fn new(running: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let logs = Logs::default();
            let written = logs.add("shop", "web", "u1", dir.path().to_owned());
            written.send_replace(Containers::from([("app".to_owned(), Written { attempt: 1, running })]));
            let lab = Self { dir, logs, written };
            lab.write(1, LOG);
            lab
        }

        fn path(&self, attempt: u32) -> PathBuf {
            log_path(self.dir.path(), "app", attempt)
        }

        fn write(&self, attempt: u32, text: &str) {
            use std::io::Write;
            std::fs::create_dir_all(self.path(attempt).parent().unwrap()).unwrap();
            let mut file = File::options().create(true).append(true).open(self.path(attempt)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn open(&self, query: &str) -> Result<Reader, Refusal> {
            let options = Options::parse(query, "2026-01-01T00:00:04Z".parse().unwrap())?;
            open(&self.logs, "shop", "web", "app", options)
        }

        async fn read(&self, query: &str) -> String {
            let mut reader = self.open(query).unwrap();
            let mut text = String::new();
            while let Some(chunk) = reader.next().await {
                text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
            }
            text
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_is_what_is_given() {
        let lab = Lab::new(false);
        lab.write(0, "2026-01-01T00:00:00Z stdout F before\n");
        for (query, text) in [
            ("", "one\ntwo\nthree\n"),
            ("follow=true", "one\ntwo\nthree\n"),
            ("tailLines=1", "three\n"),
            ("tailLines=0", ""),
            ("tailLines=9", "one\ntwo\nthree\n"),
            ("sinceSeconds=2", "two\nthree\n"),
            ("sinceTime=2026-01-01T00%3A00%3A03Z", "three\n"),
            ("sinceSeconds=2&tailLines=1", "three\n"),
            ("limitBytes=5", "one\nt"),
            ("previous=true", "before\n"),
            ("timestamps=true&tailLines=2&limitBytes=25", "2026-01-01T00:00:02Z two\n"),
        ] {
            assert_eq!(lab.read(query).await, text, "{query}");
        }
    }

    #[tokio::test]
    async fn a_rotated_file_is_read_first() {
        let lab = Lab::new(false);
        std::fs::rename(lab.path(1), rotated(&lab.path(1))).unwrap();
        lab.write(1, "2026-01-01T00:00:09Z stdout F four\n");
        assert_eq!(lab.read("").await, "one\ntwo\nthree\nfour\n");
        assert_eq!(lab.read("tailLines=2").await, "three\nfour\n");
    }

    #[tokio::test]
    async fn following_sees_new_lines_rotation_and_the_end() {
        let lab = Lab::new(true);
        let mut reader = lab.open("follow=true&tailLines=0").unwrap();
        lab.write(1, "2026-01-01T00:00:05Z stdout F four\n");
        assert_eq!(reader.next().await.unwrap().unwrap(), "four\n");
        std::fs::rename(lab.path(1), rotated(&lab.path(1))).unwrap();
        lab.write(1, "2026-01-01T00:00:06Z stdout F five\n");
        assert_eq!(reader.next().await.unwrap().unwrap(), "five\n");
        lab.write(1, "2026-01-01T00:00:07Z stdout F last\n");
        lab.written.send_replace(Containers::from([("app".to_owned(), Written { attempt: 1, running: false })]));
        assert_eq!(reader.next().await.unwrap().unwrap(), "last\n");
        assert!(reader.next().await.is_none());
    }

    #[test]
    fn nonsense_is_refused() {
        let lab = Lab::new(false);
        let reason = |result: Result<Reader, Refusal>| result.err().map(|(status, text)| (status.as_u16(), text));
        assert_eq!(reason(lab.open("tailLines=-1")).unwrap().0, 400);
        assert_eq!(reason(lab.open("sinceTime=yesterday")).unwrap().0, 400);
        let previous = reason(lab.open("previous=true")).unwrap();
        assert_eq!(previous, (400, "previous terminated container \"app\" in pod \"web\" not found\n".to_owned()));
        let of = |pod: &str, container: &str| reason(open(&lab.logs, "shop", pod, container, Options::default()));
        assert_eq!(of("gone", "app").unwrap().0, 404);
        assert!(of("web", "other").unwrap().1.contains("is waiting to start"));
    }
}
