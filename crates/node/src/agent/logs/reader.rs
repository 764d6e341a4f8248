//! A log's files, the rotated one first -> the lines that are wanted, and then what is written meanwhile.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use futures::Stream;
use hyper::body::Bytes;
use jiff::Timestamp;
use nix::sys::inotify::AddWatchFlags;
use tokio::sync::watch;

use super::{Containers, Options};
use crate::agent::inotify::Changes;
use crate::shim::rotated;

const CHUNK: usize = 64 << 10;
/// Enough of a log for its last words: several pieces of the longest that lines are written in.
const END: u64 = 64 << 10;

pub(super) struct Follow {
    pub(super) container: String,
    pub(super) attempt: u32,
    pub(super) containers: watch::Receiver<Containers>,
}

impl Follow {
    /// Returns once this start of the container has ended.
    async fn ended(&mut self) {
        let (container, attempt) = (self.container.clone(), self.attempt);
        let over =
            |all: &Containers| all.get(&container).is_none_or(|now| now.attempt != Some(attempt) || !now.running);
        // The pod's worker being gone means the same.
        let _ = self.containers.wait_for(over).await;
    }
}

pub(in crate::agent) struct Reader {
    path: PathBuf,
    files: Vec<BufReader<File>>,
    options: Options,
    /// Lines to leave out before those that are wanted.
    skip: u64,
    left: u64,
    follow: Option<(Follow, Changes)>,
    ending: bool,
}

impl Reader {
    pub(super) fn open(path: PathBuf, options: Options, follow: Option<Follow>) -> io::Result<Self> {
        // Before the files are opened, so that nothing written after is missed.
        let follow = follow.map(|follow| Ok::<_, io::Error>((follow, watch(&path)?))).transpose()?;
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
        let (mut lines, mut unfinished) = (0, false);
        let mut line = Vec::new();
        for file in &mut self.files {
            while file.read_until(b'\n', &mut line)? > 0 {
                if let Some(parsed) = Line::parse(&line).filter(|parsed| parsed.is_since(self.options.since)) {
                    lines += u64::from(parsed.whole);
                    unfinished = !parsed.whole;
                }
                line.clear();
            }
            file.seek(SeekFrom::Start(0))?;
        }
        Ok(lines + u64::from(unfinished))
    }

    /// All that is wanted, as it comes.
    pub(in crate::agent) fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        futures::stream::unfold(self, |mut reader| async move { Some((reader.next().await?, reader)) })
    }

    pub(super) async fn next(&mut self) -> Option<io::Result<Bytes>> {
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
                // Which file changed does not matter: all are looked at.
                changed = changes.next() => {
                    if let Err(error) = changed {
                        return Some(Err(error));
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

/// The last lines of a log as a container wrote them, and of these the last bytes.
pub(in crate::agent) fn end_of(path: &Path, lines: usize, bytes: usize) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(END)))?;
    let mut raw = Vec::new();
    file.take(END).read_to_end(&mut raw)?;
    let parsed: Vec<Line<'_>> = raw.split(|byte| *byte == b'\n').filter_map(Line::parse).collect();
    let ends = parsed.iter().enumerate().filter(|(_, line)| line.whole).map(|(at, _)| at + 1);
    let before: Vec<usize> = std::iter::once(0).chain(ends).collect();
    let first = before.len().checked_sub(lines + 1).map_or(0, |at| before[at]);
    let mut out = Vec::new();
    for line in &parsed[first..] {
        line.write(&mut out, false);
    }
    Ok(out.split_off(out.len().saturating_sub(bytes)))
}

/// Tells of writing to a log, and of its rotation.
fn watch(path: &Path) -> io::Result<Changes> {
    let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    Changes::of(path.parent().unwrap_or(path), flags)
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
