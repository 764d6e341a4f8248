//! Tests of what the store does when its disk fails: a device in memory that can be told to.

use std::io;
use std::sync::{Arc, Mutex};

use redb::{Database, StorageBackend};

use crate::disk::{DiskError, Place, opening};
use crate::{Document, Expect, Key, Limits, Op, Prefix, Revision, Store, Transaction, WriteError};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    /// No write succeeds: the disk is full.
    Full,
    /// The bytes arrive, but the flush reports an error.
    FlushLies,
}

#[derive(Clone, Debug)]
struct Device(Arc<Mutex<(Vec<u8>, Mood)>>);

fn full() -> io::Error {
    io::Error::from(io::ErrorKind::StorageFull)
}

impl Device {
    fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new((bytes, Mood::Well))))
    }

    fn set(&self, mood: Mood) {
        self.0.lock().unwrap().1 = mood;
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().0.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let device = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(device.0.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut device = self.0.lock().unwrap();
        if device.1 == Mood::Full {
            return Err(full());
        }
        device.0.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.lock().unwrap().1 == Mood::Well { Ok(()) } else { Err(full()) }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut device = self.0.lock().unwrap();
        if device.1 == Mood::Full {
            return Err(full());
        }
        let start = usize::try_from(offset).unwrap();
        device.0[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl Place for Device {
    fn open(&self) -> Result<Database, DiskError> {
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
}

fn put(name: &str, value: &str) -> Transaction {
    let value = Document::from(value.as_bytes().to_vec());
    vec![Op::Put { key: key(name), expect: Expect::Anything, value }].into()
}

fn key(name: &str) -> Key {
    Key::new("", "things", "", name)
}

fn open(device: &Device) -> Result<Store, DiskError> {
    Store::open_place(Box::new(device.clone()), Limits::default())
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
    let bytes = device.0.lock().unwrap().0.clone();
    for keep in [bytes.len() / 2, 4096, 100] {
        assert!(open(&Device::new(bytes[..keep].to_vec())).is_err(), "{keep} bytes kept");
    }
}
