//! Tests of what the store does when its disk fails: a device in memory that can be told to.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use redb::{Database, StorageBackend};

use crate::disk::{DiskError, Place, opening};
use crate::log::LogFile;
use crate::{Document, Expect, Key, Limits, Op, Prefix, Revision, Store, Transaction, WriteError};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// No write succeeds: the disk is full.
    Full,
    /// Only the log has its room.
    FullForDatabase,
    /// The bytes arrive, but the flush reports an error.
    FlushLies,
}

/// The database and the files of the log, how the disk is, and how often the database was opened.
type Disk = ([Vec<u8>; 3], Mood, usize);

/// One of the files.
#[derive(Clone, Debug)]
struct Device(Arc<Mutex<Disk>>, usize);

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Device {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(([bytes, Vec::new(), Vec::new()], Mood::Well, 0))), 0)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn set(&self, mood: Mood) {
        self.disk().1 = mood;
    }

    fn is_full(&self) -> bool {
        match self.disk().1 {
            Mood::Full => true,
            Mood::FullForDatabase => self.1 == 0,
            Mood::Well | Mood::FlushLies => false,
        }
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().0[self.1].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(disk.0[self.1].get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_full() {
            return Err(full());
        }
        self.disk().0[self.1].resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.is_full() || self.disk().1 == Mood::FlushLies { Err(full()) } else { Ok(()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.is_full() {
            return Err(full());
        }
        let start = usize::try_from(offset).unwrap();
        self.disk().0[self.1][start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Place for Device {
    fn open(&self) -> Result<Database, DiskError> {
        self.disk().2 += 1;
        Database::builder().create_with_backend(self.clone()).map_err(opening)
    }

    fn len(&self) -> io::Result<u64> {
        StorageBackend::len(self)
    }

    fn fresh(&self) -> Result<Database, DiskError> {
        Err(full().into())
    }

    fn adopt(&self) -> io::Result<()> {
        Err(full())
    }

    fn log(&self) -> Result<[LogFile; 2], DiskError> {
        Ok([1, 2].map(|index| -> LogFile { Box::new(Self(self.0.clone(), index)) }))
    }
}

fn put(name: &str, value: &str) -> Transaction {
    let value = Document::from(value.as_bytes().to_vec());
    vec![Op::Put { key: key(name), expect: Expect::Anything, value }].into()
}

fn key(name: &str) -> Key {
    Key::new("", "things", "", name)
}

fn open(device: &Device) -> Result<Store, DiskError> {
    let limits = Limits { log_file: 64 << 10, ..Limits::default() };
    Store::open_place(Box::new(device.clone()), limits)
}

fn names(store: &Store) -> Vec<String> {
    let list = store.list(&Prefix::resource("", "things"), &crate::Page::default()).unwrap();
    list.entries.iter().map(|(key, _)| key.name().to_owned()).collect()
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_nothing_else() {
    let device = Device::new(Vec::new());
    let store = open(&device).unwrap();
    store.write(put("a", "1")).await.unwrap();
    device.set(Mood::Full);
    for _ in 0..2 {
        assert!(matches!(store.write(put("b", "2")).await, Err(WriteError::Disk(_))));
    }
    assert_eq!(names(&store), ["a"]);
    device.set(Mood::Well);
    store.write(put("c", "3")).await.unwrap();
    assert_eq!(names(&store), ["a", "c"]);
    store.close();
    assert_eq!(names(&open(&device).unwrap()), ["a", "c"]);
}

/// Who writes does not wait for the database before the log is far longer than it should be; and nothing is lost.
#[tokio::test]
async fn a_database_that_cannot_be_written_is_made_up_for_by_the_log() {
    let device = Device::new(Vec::new());
    let store = open(&device).unwrap();
    device.set(Mood::FullForDatabase);
    let mut written = 0;
    while store.write(put("a", &format!("{written}{}", "x".repeat(4000)))).await.is_ok() {
        written += 1;
        assert!(written < 10_000, "the log has no bound");
    }
    assert!(written > 100, "{written} writes do not fill the log");
    let tries = device.disk().2;
    assert!((2..written / 10).contains(&tries), "the database was tried {tries} times during {written} writes");
    device.set(Mood::Well);
    let deadline = Instant::now() + Duration::from_secs(30);
    while store.write(put("b", "2")).await.is_err() {
        assert!(Instant::now() < deadline, "writes are still refused");
    }
    assert_eq!(names(&store), ["a", "b"]);
    device.set(Mood::FullForDatabase);
    store.close();
    device.set(Mood::Well);
    let store = open(&device).unwrap();
    assert_eq!(names(&store), ["a", "b"], "what was only in the log is found there");
    let last = store.get(&key("a")).0.unwrap().value;
    assert!(last.starts_with(format!("{}x", written - 1).as_bytes()));
}

/// Readers, watches and the disk agree whatever became of the batch whose flush failed.
#[tokio::test]
async fn a_commit_of_unknown_fate_ends_up_as_it_is_on_disk() {
    let device = Device::new(Vec::new());
    let store = open(&device).unwrap();
    store.write(put("a", "1")).await.unwrap();
    device.set(Mood::FlushLies);
    assert!(matches!(store.write(put("b", "2")).await, Err(WriteError::Disk(_))));
    device.set(Mood::Well);
    let mut watch = store.watch(Prefix::resource("", "things"), Revision::FIRST).unwrap();
    store.write(put("c", "3")).await.unwrap();
    let seen: Vec<_> = watch.poll().unwrap().events.iter().map(|event| event.key.name().to_owned()).collect();
    let before = names(&store);
    assert_eq!(seen, before);
    store.close();
    assert_eq!(names(&open(&device).unwrap()), before);
}

/// Who was told that there is nothing to delete does not find it after a crash.
#[tokio::test]
async fn an_answer_holds_whatever_became_of_the_batch_before() {
    let device = Device::new(Vec::new());
    let store = open(&device).unwrap();
    store.write(put("a", "1")).await.unwrap();
    device.set(Mood::FlushLies);
    assert!(matches!(store.write(put("b", "2")).await, Err(WriteError::Disk(_))));
    let delete = || Transaction::from(vec![Op::Delete { key: key("b"), expect: Expect::Anything }]);
    assert!(matches!(store.write(delete()).await, Err(WriteError::Disk(_))), "nobody can know yet");
    device.set(Mood::Well);
    assert!(store.write(delete()).await.unwrap()[0].is_none());
    store.close();
    assert_eq!(names(&open(&device).unwrap()), ["a"]);
}

#[tokio::test]
async fn a_file_of_nonsense_is_an_error() {
    for bytes in [vec![7_u8; 64 << 10], b"not a database".to_vec()] {
        assert!(open(&Device::new(bytes)).is_err());
    }
}

#[tokio::test]
async fn a_truncated_file_is_an_error() {
    let device = Device::new(Vec::new());
    let store = open(&device).unwrap();
    for round in 0..50 {
        store.write(put(&format!("k{round}"), &"x".repeat(4000))).await.unwrap();
    }
    store.close();
    let bytes = device.disk().0[0].clone();
    for keep in [bytes.len() / 2, 4096, 100] {
        assert!(open(&Device::new(bytes[..keep].to_vec())).is_err(), "{keep} bytes kept");
    }
}
