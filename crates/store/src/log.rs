//! Batches of changes -> records in two files that are written from beginning to end in turns, and back.
//!
//! A record names the one before it, by its checksum, and the database names the last one that it holds ([`Mark`]). So
//! what follows that is found again, and nothing else is ever taken for it: not what a file held before, not the half
//! of a record, not one whose flush failed and whose place another took.
//!
//! Invariants: a record is on disk before the next one is begun, which begins on a page of its own, so that nothing
//! that was flushed is written again. Room is made beforehand, so that a flush is of the record and not of where it is,
//! too. Deliberately not here: when what is in a file is in the database, so that it may be written from its beginning
//! again.

use std::io;

use bytes::Bytes;
use redb::StorageBackend;

use crate::disk::Changed;
use crate::{Entry, Key, Revision};

/// No device writes less than this half-way.
const PAGE: usize = 4096;
/// A file that has to grow does so by this much.
const GROWTH: u64 = 1 << 20;
/// A file may be this many times as long as it should, while the database is behind.
const PATIENCE: u64 = 16;
/// The checksum, and then: the mark of the record before, bytes and changes that follow, and the revisions around them.
const HEAD: usize = 8 * 6;
const DELETED: u64 = u64::MAX;
/// What is kept of the memory in which records are made.
const BUFFER: usize = 256 << 10;

/// Names a record: its checksum. 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark(pub(crate) u64);

/// Where in the log something ends: at which revision, after which record.
pub(crate) type End = (Revision, Mark);

pub(crate) type LogFile = Box<dyn StorageBackend>;

pub(crate) struct Record {
    pub(crate) mark: Mark,
    before: Mark,
    from: Revision,
    pub(crate) to: Revision,
    pub(crate) changes: Vec<Changed>,
}

impl Record {
    fn follows(&self, mark: Mark, revision: Revision) -> bool {
        (self.before, self.from) == (mark, revision)
    }
}

pub(crate) struct Log {
    files: [LogFile; 2],
    /// How long a file should be.
    room: u64,
    active: usize,
    /// Where in the active file the next record goes.
    at: u64,
    last: Mark,
    /// Whether something was begun there that may be on disk, or not.
    spoiled: bool,
    buffer: Vec<u8>,
}

impl Log {
    /// Both files get their room. Where `last` is not known yet, [`Log::after`] finds it.
    pub(crate) fn open(files: [LogFile; 2], room: u64) -> io::Result<Self> {
        for file in &files {
            make_room(&**file, room)?;
        }
        Ok(Self { files, room, active: 0, at: 0, last: Mark::default(), spoiled: false, buffer: Vec::new() })
    }

    /// What follows the record that `mark` names and that ended at `revision`.
    ///
    /// # Errors
    /// Also when something is lost: a power cut leaves no more than the last record unreadable, so that there is none
    /// from later than where reading ends.
    pub(crate) fn after(&self, mut mark: Mark, mut revision: Revision) -> io::Result<Vec<Record>> {
        let mut found = Vec::new();
        let mut files = Vec::new();
        for file in &self.files {
            let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
            file.read(0, &mut bytes)?;
            files.push(bytes);
        }
        // Either file may be the one to begin with, and the other the one to go on with.
        for index in [0, 1, 0] {
            let mut rest = &files[index][..];
            while let Some((record, length)) = decode(rest).filter(|(record, _)| record.follows(mark, revision)) {
                (mark, revision) = (record.mark, record.to);
                found.push(record);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
        let pages = files.iter().flat_map(|bytes| (0..bytes.len()).step_by(PAGE).map(|at| &bytes[at..]));
        if let Some((later, _)) = pages.filter_map(decode).find(|(record, _)| record.from > revision) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "its log is damaged: what happened between revisions {} and {} cannot be read, though what came after \
                     can; put a backup in its place",
                    revision.0, later.from.0
                ),
            ));
        }
        Ok(found)
    }

    /// Begins anew, with all before `last` in the database.
    pub(crate) fn begin(&mut self, last: Mark) {
        (self.active, self.at, self.last) = (0, 0, last);
    }

    pub(crate) fn last(&self) -> Mark {
        self.last
    }

    /// Whether it is the other file's turn. It is not while there may be something in this one that must not be found
    /// as well as what would follow in the other.
    pub(crate) fn is_full(&self) -> bool {
        self.at >= self.room && !self.spoiled
    }

    /// Whether there may be something that nobody was told of, which the next record replaces.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Whether this file must not grow any more.
    pub(crate) fn is_overfull(&self) -> bool {
        self.at >= self.room * PATIENCE
    }

    /// Goes on in the other file, of which nothing is needed any more.
    pub(crate) fn turn(&mut self) -> io::Result<()> {
        let other = 1 - self.active;
        if self.files[other].len()? > self.room {
            self.files[other].set_len(self.room)?;
        }
        (self.active, self.at) = (other, 0);
        Ok(())
    }

    /// Makes `changes`, which take the store from revision `from` to `to`, durable.
    ///
    /// # Errors
    /// Then they are there after a crash, or they are not; but not once another record took their place.
    pub(crate) fn append(&mut self, from: Revision, to: Revision, changes: &[Changed]) -> io::Result<()> {
        let mark = encode(&mut self.buffer, self.last, (from, to), changes);
        let end = self.at + self.buffer.len() as u64;
        let file = &self.files[self.active];
        if file.len()? < end {
            file.set_len(end + GROWTH.min(self.room))?;
        }
        self.spoiled = true;
        file.write(self.at, &self.buffer)?;
        file.sync_data()?;
        (self.at, self.last, self.spoiled) = (end, mark, false);
        self.buffer.shrink_to(BUFFER);
        Ok(())
    }
}

fn make_room(file: &dyn StorageBackend, room: u64) -> io::Result<()> {
    let length = file.len()?;
    if length >= room {
        return Ok(());
    }
    file.set_len(room)?;
    let zeros = vec![0; usize::try_from(room - length).map_err(io::Error::other)?];
    file.write(length, &zeros)?;
    file.sync_data()
}

fn encode(buffer: &mut Vec<u8>, last: Mark, (from, to): (Revision, Revision), changes: &[Changed]) -> Mark {
    let put = |buffer: &mut Vec<u8>, number: u64| buffer.extend_from_slice(&number.to_le_bytes());
    buffer.clear();
    buffer.resize(HEAD, 0);
    for (key, entry) in changes {
        put(buffer, key.as_str().len() as u64);
        put(buffer, entry.as_ref().map_or(DELETED, |entry| entry.value.len() as u64));
        put(buffer, entry.as_ref().map_or(0, |entry| entry.revision.0));
        buffer.extend_from_slice(key.as_str().as_bytes());
        buffer.extend_from_slice(entry.as_ref().map_or(&[], |entry| &entry.value));
    }
    let length = (buffer.len() - HEAD) as u64;
    let head = [last.0, length, changes.len() as u64, from.0, to.0];
    for (index, number) in head.into_iter().enumerate() {
        buffer[8 * (index + 1)..][..8].copy_from_slice(&number.to_le_bytes());
    }
    let mark = checksum(&buffer[8..]);
    buffer[..8].copy_from_slice(&mark.0.to_le_bytes());
    buffer.resize(buffer.len().next_multiple_of(PAGE), 0);
    mark
}

fn checksum(bytes: &[u8]) -> Mark {
    // Never 0, so that the room that was made is no record.
    Mark(u64::from(crc32fast::hash(bytes)) | 1 << 32)
}

/// The record at the beginning of `bytes`, and how much room it takes up.
fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    let mut head = Reader(bytes);
    let [mark, before, length, count, from, to] = head.numbers()?;
    if mark >> 32 != 1 {
        return None;
    }
    let length = usize::try_from(length).ok()?;
    let body = head.take(length)?;
    if checksum(&bytes[8..HEAD + body.len()]) != Mark(mark) {
        return None;
    }
    let mut body = Reader(body);
    let mut changes = Vec::new();
    for _ in 0..count {
        let [key, value, revision] = body.numbers()?;
        let key = std::str::from_utf8(body.take(usize::try_from(key).ok()?)?).ok()?;
        let entry = if value == DELETED {
            None
        } else {
            let value = Bytes::copy_from_slice(body.take(usize::try_from(value).ok()?)?);
            Some(Entry { value, revision: Revision(revision) })
        };
        changes.push((Key::from_stored(key), entry));
    }
    let record = Record { mark: Mark(mark), before: Mark(before), from: Revision(from), to: Revision(to), changes };
    Some((record, (HEAD + length).next_multiple_of(PAGE)))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn numbers<const N: usize>(&mut self) -> Option<[u64; N]> {
        let mut numbers = [0; N];
        for number in &mut numbers {
            *number = u64::from_le_bytes(self.take(8)?.try_into().ok()?);
        }
        Some(numbers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use redb::backends::InMemoryBackend;

    use super::*;

    const ROOM: u64 = 16 << 10;

    fn log() -> Log {
        Log::open([Box::new(InMemoryBackend::new()), Box::new(InMemoryBackend::new())], ROOM).unwrap()
    }

    fn changes(revision: u64, length: usize) -> Vec<Changed> {
        let entry = Entry { value: vec![b'x'; length].into(), revision: Revision(revision) };
        vec![(Key::new("", "things", "n", "a"), Some(entry)), (Key::new("", "things", "n", "b"), None)]
    }

    /// Stores everything, and may say that it is not sure.
    #[derive(Debug)]
    struct Doubtful(InMemoryBackend, Arc<AtomicBool>);

    impl StorageBackend for Doubtful {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, length: u64) -> io::Result<()> {
            self.0.set_len(length)
        }
        fn sync_data(&self) -> io::Result<()> {
            if self.1.load(Relaxed) { Err(io::Error::other("it is not sure")) } else { Ok(()) }
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.0.write(offset, data)
        }
    }

    fn append(log: &mut Log, revision: u64, length: usize) {
        log.append(Revision(revision - 1), Revision(revision), &changes(revision, length)).unwrap();
    }

    fn found(log: &Log, mark: Mark, revision: u64) -> Vec<u64> {
        log.after(mark, Revision(revision)).unwrap().iter().map(|record| record.to.0).collect()
    }

    #[test]
    fn what_was_written_is_found_again_in_whichever_file() {
        let mut log = log();
        append(&mut log, 2, 100);
        append(&mut log, 3, 5000);
        let read = log.after(Mark::default(), Revision(1)).unwrap();
        assert_eq!(read[1].changes, changes(3, 5000));
        let first = read[0].mark;
        assert!(!log.is_full());
        append(&mut log, 4, 0);
        append(&mut log, 5, 3000);
        assert!(log.is_full() && !log.is_overfull());
        let end_of_first_file = log.last();
        log.turn().unwrap();
        append(&mut log, 6, 1);
        assert_eq!(found(&log, Mark::default(), 1), [2, 3, 4, 5, 6]);
        assert_eq!(found(&log, end_of_first_file, 5), [6]);
        assert!(log.after(first, Revision(2)).is_err(), "what is in the database is so up to the end of a file");
        log.turn().unwrap();
        append(&mut log, 7, 1);
        assert_eq!(found(&log, end_of_first_file, 5), [6, 7], "the first file goes on where the second ended");
        assert_eq!(found(&log, log.last(), 7), [0; 0], "what the first file held before is behind it");
    }

    #[test]
    fn of_two_that_follow_the_same_one_is_left() {
        let doubt = Arc::new(AtomicBool::new(false));
        let file = || Box::new(Doubtful(InMemoryBackend::new(), doubt.clone()));
        let mut log = Log::open([file(), file()], ROOM).unwrap();
        append(&mut log, 2, 9000);
        append(&mut log, 3, 9000);
        assert!(log.is_full());
        doubt.store(true, Relaxed);
        assert!(log.append(Revision(3), Revision(4), &changes(4, 9000)).is_err());
        assert_eq!(found(&log, Mark::default(), 1), [2, 3, 4], "all of it has arrived");
        assert!(!log.is_full(), "what went into the other file would be lost behind it");
        doubt.store(false, Relaxed);
        log.append(Revision(3), Revision(5), &changes(5, 10)).unwrap();
        assert_eq!(found(&log, Mark::default(), 1), [2, 3, 5]);
        assert!(log.is_full());
    }

    #[test]
    fn no_half_of_a_record_and_no_other_store_counts() {
        let mut log = log();
        append(&mut log, 2, 6000);
        assert_eq!(found(&log, Mark::default(), 2), [0; 0], "a store at another revision");
        assert_eq!(found(&log, Mark(7), 1), [0; 0]);
        for at in [0, 9, 17, 25, 33, 41, 49, 4095, 4096, 6000] {
            let mut byte = [0];
            log.files[0].read(at, &mut byte).unwrap();
            log.files[0].write(at, &[byte[0] ^ 1]).unwrap();
            assert_eq!(found(&log, Mark::default(), 1), [0; 0], "byte {at}");
            log.files[0].write(at, &byte).unwrap();
        }
        assert_eq!(found(&log, Mark::default(), 1), [2]);
        log.files[0].set_len(4096).unwrap();
        assert_eq!(found(&log, Mark::default(), 1), [0; 0]);
    }

    #[test]
    fn damage_in_the_middle_is_an_error_and_not_an_end() {
        let mut log = log();
        for revision in 2..=5 {
            append(&mut log, revision, 4500);
            if log.is_full() {
                log.turn().unwrap();
            }
        }
        assert_eq!(found(&log, Mark::default(), 1), [2, 3, 4, 5]);
        log.files[0].write(200, b"?").unwrap();
        let error = log.after(Mark::default(), Revision(1)).err().unwrap().to_string();
        assert!(error.contains("between revisions 1 and 2"), "{error}");
        log.files[0].write(200, b"x").unwrap();
        log.files[1].write(200, b"?").unwrap();
        assert!(log.after(Mark::default(), Revision(1)).is_err(), "though it is the other file's turn");
        log.files[1].write(8192 + 200, b"?").unwrap();
        assert_eq!(found(&log, Mark::default(), 1), [2, 3], "nothing is known to have come after");
    }

    #[test]
    fn a_file_that_had_to_grow_shrinks_when_its_turn_comes_again() {
        let mut log = log();
        append(&mut log, 2, 100_000);
        assert!(log.files[0].len().unwrap() > 100_000);
        assert_eq!(found(&log, Mark::default(), 1), [2]);
        log.turn().unwrap();
        log.turn().unwrap();
        assert_eq!(log.files[0].len().unwrap(), ROOM);
    }
}
