//! Containers' log files -> `GET /containerLogs/<namespace>/<pod>/<container>`, for the API server.
//!
//! `options` is what clients ask for, `reader` reads and follows the files; who may ask is `endpoint`'s. Following
//! waits for the file to change and for the container to end, and never polls. Source: the kubelet's `server.go`,
//! `PodLogOptions` in the API reference.

mod options;
mod reader;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::sync::watch;

use super::host::Record;
use super::start::log_path;
pub(super) use options::{Options, decoded};
use reader::Follow;
pub(super) use reader::{Reader, end_of};

/// A container, and its logs if it has any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// The latest start that has logs.
    pub(super) attempt: Option<u32>,
    /// Why there is no such start yet.
    pub(super) waiting: String,
    pub(super) running: bool,
    /// Its first process has a terminal.
    pub(super) tty: bool,
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

    pub(super) fn place(&self, namespace: &str, name: &str) -> Option<Place> {
        let pods = self.pods();
        let PodLogs { dir, uid, containers } = pods.get(&(namespace.to_owned(), name.to_owned()))?;
        Some(Place { dir: dir.clone(), uid: uid.clone(), containers: containers.borrow().clone() })
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

/// Where a pod is on this node.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) uid: String,
    containers: Containers,
}

impl Place {
    /// The start of the container that runs, if one does.
    pub(super) fn running(&self, container: &str) -> Option<u32> {
        self.containers.get(container).filter(|written| written.running).and_then(|written| written.attempt)
    }

    fn record(&self) -> Option<Record> {
        Record::read(&self.dir).ok()
    }

    /// Whether the container's first process has a terminal.
    pub(super) fn on_terminal(&self, container: &str) -> bool {
        self.containers.get(container).is_some_and(|written| written.tty)
    }

    /// The pod's own address, or its node's if it shares that.
    pub(super) fn address(&self, node: IpAddr) -> Option<IpAddr> {
        self.record().map(|record| record.address.map_or(node, IpAddr::V4))
    }
}

/// What a client is told instead of a log.
pub(super) type Refusal = (StatusCode, String);

/// Opens what is asked for, or says why there is nothing to read.
pub(super) fn open(
    logs: &Logs,
    namespace: &str,
    pod: &str,
    container: &str,
    options: Options,
) -> Result<Reader, Refusal> {
    let known = logs.pods().get(&(namespace.to_owned(), pod.to_owned())).cloned();
    let known = known.ok_or_else(|| (StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found on this node\n")))?;
    let named = format!("container \"{container}\" in pod \"{pod}\"");
    let refused = |reason: String| (StatusCode::BAD_REQUEST, reason);
    let written = known.containers.borrow().get(container).cloned();
    let written = written.ok_or_else(|| refused(format!("{named} is not available\n")))?;
    let missing = || {
        let which = if options.previous { "previous terminated " } else { "" };
        refused(format!("{which}{named} not found\n"))
    };
    let latest = written.attempt.ok_or_else(|| match (options.previous, written.waiting.as_str()) {
        (true, _) => missing(),
        (_, "ErrImagePull") => refused(format!("{named} is waiting to start: image can't be pulled\n")),
        (_, "ImagePullBackOff") => refused(format!("{named} is waiting to start: trying and failing to pull image\n")),
        (_, reason) => refused(format!("{named} is waiting to start: {reason}\n")),
    })?;
    let attempt = if options.previous { latest.checked_sub(1) } else { Some(latest) };
    let path = log_path(&known.dir, container, attempt.ok_or_else(missing)?);
    // Without a watch on the container there is nothing to wait for.
    let follow = (options.follow && !options.previous).then(|| Follow {
        container: container.to_owned(),
        attempt: latest,
        containers: known.containers.clone(),
    });
    Reader::open(path, options, follow).map_err(|_| missing())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::shim::rotated;

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
            written.send_replace(Self::containers(running));
            let lab = Self { dir, logs, written };
            lab.write(1, LOG);
            lab
        }

        fn containers(running: bool) -> Containers {
            let waiting = |reason: &str| Written { waiting: reason.to_owned(), ..Written::default() };
            let app = Written { attempt: Some(1), running, ..Written::default() };
            let all = [("app", app), ("new", waiting("PodInitializing")), ("far", waiting("ImagePullBackOff"))];
            all.map(|(name, written)| (name.to_owned(), written)).into()
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
    async fn a_last_line_without_an_end_is_a_line_without_an_end() {
        let lab = Lab::new(false);
        lab.write(1, "2026-01-01T00:00:04Z stdout P four\n");
        for (query, text) in [("", "one\ntwo\nthree\nfour"), ("tailLines=1", "four"), ("tailLines=2", "three\nfour")] {
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
        lab.written.send_replace(Lab::containers(false));
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
        for (container, why) in [
            ("new", "waiting to start: PodInitializing"),
            ("far", "waiting to start: trying and failing to pull image"),
            ("other", "not available"),
        ] {
            assert_eq!(of("web", container).unwrap().1, format!("container \"{container}\" in pod \"web\" is {why}\n"));
        }
    }
}
