//! A container's output -> a log file in the format that Kubernetes log readers know, rotated by size.
//!
//! A line is `<RFC 3339 time> stdout|stderr F|P <text>`; `P` marks a piece of a line longer than [`MAX_PIECE`], or
//! of one that never ended.
//! Invariant: a file ends with a whole line. Source: the CRI's logging design (kubelet `kuberuntime/logs`).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

const MAX_PIECE: usize = 16 << 10;
/// Two files of this size at most are kept: the one being written and the one before it.
const MAX_FILE: u64 = 10 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn word(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Where a full log file is moved to.
pub(crate) fn rotated(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

pub(super) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    /// The unfinished line of each stream.
    pending: [Vec<u8>; 2],
}

impl Log {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_FILE)
    }

    fn with_limit(path: &Path, limit: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit, pending: Default::default() })
    }

    /// Takes output in, and writes the lines that are now whole.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) -> io::Result<()> {
        let mut out = Vec::new();
        let pending = &mut self.pending[stream as usize];
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_slice();
        loop {
            match rest.iter().position(|byte| *byte == b'\n') {
                Some(end) if end <= MAX_PIECE => {
                    line(&mut out, stream, 'F', &rest[..end], now);
                    rest = &rest[end + 1..];
                }
                None if rest.len() <= MAX_PIECE => break,
                _ => {
                    line(&mut out, stream, 'P', &rest[..MAX_PIECE], now);
                    rest = &rest[MAX_PIECE..];
                }
            }
        }
        *pending = rest.to_vec();
        self.append(&out)
    }

    /// Writes what is left of a last line without an end, as a piece: whoever reads it sees that it has none.
    pub(super) fn finish(&mut self, now: Timestamp) -> io::Result<()> {
        let mut out = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let rest = std::mem::take(&mut self.pending[stream as usize]);
            if !rest.is_empty() {
                line(&mut out, stream, 'P', &rest, now);
            }
        }
        self.append(&out)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        if self.size > 0 && self.size + lines.len() as u64 > self.limit {
            std::fs::rename(&self.path, rotated(&self.path))?;
            self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(lines)?;
        self.size += lines.len() as u64;
        Ok(())
    }
}

fn line(out: &mut Vec<u8>, stream: Stream, tag: char, text: &[u8], now: Timestamp) {
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{now} {} {tag} ", stream.word());
    out.extend_from_slice(text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.000000006Z".parse().unwrap()
    }

    #[test]
    fn lines_are_whole_and_the_streams_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/0.log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, b"one\ntw", now()).unwrap();
        log.write(Stream::Stderr, b"oops\n", now()).unwrap();
        log.write(Stream::Stdout, b"o\n\nthree", now()).unwrap();
        log.finish(now()).unwrap();
        expect_test::expect![[r"
            2026-01-02T03:04:05.000000006Z stdout F one
            2026-01-02T03:04:05.000000006Z stderr F oops
            2026-01-02T03:04:05.000000006Z stdout F two
            2026-01-02T03:04:05.000000006Z stdout F 
            2026-01-02T03:04:05.000000006Z stdout P three
        "]]
        .assert_eq(&std::fs::read_to_string(path).unwrap());
    }

    #[test]
    fn a_long_line_is_cut_in_pieces_and_held_in_bounded_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::open(&path).unwrap();
        log.write(Stream::Stdout, &vec![b'x'; MAX_PIECE * 2 + 5], now()).unwrap();
        assert_eq!(log.pending[0].len(), 5);
        log.write(Stream::Stdout, b"\n", now()).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let tags: Vec<_> = text.lines().map(|line| line.split(' ').nth(2).unwrap().to_owned()).collect();
        assert_eq!(tags, ["P", "P", "F"]);
    }

    #[test]
    fn a_full_file_is_moved_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = Log::with_limit(&path, 200).unwrap();
        for number in 0..20 {
            log.write(Stream::Stdout, format!("{number}\n").as_bytes(), now()).unwrap();
        }
        let size = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert!(size(&path) <= 200 && size(&rotated(&path)) <= 200);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("F 19\n"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
