//! Whatever the moment of a kill -9, every acknowledged write is there afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use portolan_store::{Document, Expect, Key, Limits, Op, Page, Prefix, Store};

const DIRECTORY: &str = "PORTOLAN_STORE_CRASH_DIRECTORY";
const WRITERS: usize = 8;

fn key(writer: usize, side: &str) -> Key {
    Key::new("", "things", &format!("w{writer}"), side)
}

/// Run by the test below in a process of its own; by itself it does nothing.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let store = Store::open(Path::new(&directory), Limits::default()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            writers.spawn(write_forever(store.clone(), writer));
        }
        writers.join_all().await;
    });
}

/// Two keys of one value, always written together.
async fn write_forever(store: Store, writer: usize) {
    let (found, _) = store.get(&key(writer, "left"));
    let mut count: u64 = found.map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse().unwrap());
    loop {
        count += 1;
        let ops = ["left", "right"].map(|side| Op::Put {
            key: key(writer, side),
            expect: Expect::Anything,
            value: Document::from(count.to_string().into_bytes()),
        });
        let written = store.write(ops.to_vec().into()).await.unwrap();
        let revision = written[1].as_ref().unwrap().revision;
        let line = format!("ack {writer} {count} {revision}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn kill_9_loses_nothing_that_was_acknowledged() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = [0_u64; WRITERS];
    let mut last_revision = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acks = 0;
        for line in lines {
            let line = line.unwrap();
            let Some(ack) = line.strip_prefix("ack ") else { continue };
            let fields: Vec<u64> = ack.split(' ').map(|field| field.parse().unwrap()).collect();
            let writer = usize::try_from(fields[0]).unwrap();
            acknowledged[writer] = fields[1];
            assert!(fields[2] > last_revision || acks > 0, "revision {} was given out before", fields[2]);
            last_revision = last_revision.max(fields[2]);
            acks += 1;
            if acks == 40 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(acks >= 40, "the child died early");

        let store = Store::open(directory.path(), Limits::default()).unwrap();
        assert!(store.revision().0 >= last_revision);
        last_revision = store.revision().0;
        let list = store.list(&Prefix::resource("", "things"), &Page::default()).unwrap();
        assert_eq!(list.entries.len(), WRITERS * 2);
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let [left, right] = ["left", "right"].map(|side| store.get(&key(writer, side)).0.unwrap());
            assert_eq!(left.value, right.value, "a transaction was half applied");
            let stored: u64 = std::str::from_utf8(&left.value).unwrap().parse().unwrap();
            assert!(stored >= *acknowledged, "writer {writer} was told {acknowledged}, and {stored} is stored");
            assert!(right.revision <= store.revision());
        }
        store.close();
    }
}

#[test]
fn a_store_whose_content_was_lost_is_not_taken_for_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    drop(Store::open(directory.path(), Limits::default()).unwrap());
    let file = directory.path().join("store.redb");
    for (content, reason) in [(&b""[..], "it is empty"), (b"not a database", "it is no store")] {
        std::fs::write(&file, content).unwrap();
        let error = Store::open(directory.path(), Limits::default()).err().expect("a refusal");
        assert_eq!(error.to_string(), format!("cannot open the store {}", file.display()));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.starts_with(reason), "{source}");
        assert!(std::fs::read(&file).unwrap() == content, "it is left as it was");
    }
}

#[test]
fn a_second_opener_is_told_which_directory_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Limits::default()).unwrap();
    let error = Store::open(directory.path(), Limits::default()).err().unwrap();
    assert!(error.is_in_use());
    assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
    store.close();
    Store::open(directory.path(), Limits::default()).unwrap();
}
