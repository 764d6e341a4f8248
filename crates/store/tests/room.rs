//! What a store takes up: on disk by what is stored and not by what ever was, in memory by its limits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::path::Path;
use std::time::{Duration, Instant};

use portolan_store::{Expect, Key, Limits, Op, Page, Prefix, Revision, Store, Transaction};

fn things() -> Prefix {
    Prefix::resource("", "things")
}

fn put(name: &str, size: usize) -> Op {
    Op::Put { key: Key::new("", "things", "", name), expect: Expect::Anything, value: vec![b'x'; size].into() }
}

fn delete(name: &str) -> Op {
    Op::Delete { key: Key::new("", "things", "", name), expect: Expect::Anything }
}

fn on_disk(directory: &Path) -> u64 {
    let files = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    // One that has just been put in another's place is not there any more.
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// A short log, so that the database is soon up to date.
fn open(directory: &Path) -> Store {
    Store::open(directory, Limits { log_file: 256 << 10, ..Limits::default() }).unwrap()
}

#[tokio::test]
async fn writing_one_object_again_and_again_does_not_fill_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    for round in 0..1_500_usize {
        store.write(vec![put("a", 500 + round % 3_000)].into()).await.unwrap();
    }
    assert!(on_disk(directory.path()) < 4 << 20, "{} bytes", on_disk(directory.path()));
}

/// The few objects that stay are spread over the whole file.
#[tokio::test]
async fn what_is_deleted_gives_its_room_back_bit_by_bit() {
    const OBJECTS: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let every: Vec<usize> = (0..OBJECTS).collect();
    for some in every.chunks(500) {
        let ops: Vec<Op> = some.iter().map(|index| put(&format!("k{index:05}"), 2_000)).collect();
        store.write(ops.into()).await.unwrap();
    }
    let full = on_disk(directory.path());
    assert!(full > 40_000_000, "{full} bytes");
    for some in every.chunks(500) {
        let ops: Vec<Op> =
            some.iter().filter(|index| *index % 100 > 0).map(|index| delete(&format!("k{index:05}"))).collect();
        store.write(ops.into()).await.unwrap();
    }
    let mut commits = 0;
    while on_disk(directory.path()) > full / 5 {
        assert!(commits < 2_000, "{} of {full} bytes after {commits} commits", on_disk(directory.path()));
        commits += 1;
        store.write(vec![put("lease", 100)].into()).await.unwrap();
    }
    let kept = store.list(&things(), &Page::default()).unwrap();
    assert_eq!(kept.entries.len(), OBJECTS / 100 + 1);
    store.close();
    let store = open(directory.path());
    assert_eq!(store.list(&things(), &Page::default()).unwrap(), kept, "moving changes nothing, revisions among it");
}

#[tokio::test]
async fn a_page_is_of_its_revision_until_history_forgets_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Limits::default()).unwrap();
    for name in ["a", "b", "c"] {
        store.write(vec![put(name, 10)].into()).await.unwrap();
    }
    let first = store.list(&things(), &Page { limit: Some(1), ..Page::default() }).unwrap();
    let before = Instant::now();
    store.write(vec![delete("b"), put("bb", 10)].into()).await.unwrap();
    let rest = Page { at: Some(first.revision), after: Some(first.entries[0].0.clone()), limit: None };
    store.forget(before);
    let names = |list: portolan_store::List| -> Vec<String> {
        list.entries.into_iter().map(|(key, _)| key.name().to_owned()).collect()
    };
    assert_eq!(names(store.list(&things(), &rest).unwrap()), ["b", "c"], "younger changes stay");
    let mut watch = store.watch(things(), first.revision).unwrap();
    store.forget(Instant::now() + Duration::from_secs(1));
    assert!(store.list(&things(), &rest).is_err());
    assert!(watch.poll().is_err(), "what it had not seen is forgotten");
    assert!(store.watch(things(), store.revision()).is_ok(), "who is up to date goes on");
}

#[tokio::test]
async fn the_histories_of_all_resources_together_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { all_history_bytes: 100_000, ..Limits::default() };
    let store = Store::open(directory.path(), limits).unwrap();
    let start = store.revision();
    let write = async |plural: &str, size: usize| {
        let key = Key::new("", plural, "", "a");
        let op = Op::Put { key, expect: Expect::Anything, value: vec![b'x'; size].into() };
        store.write(Transaction::from(vec![op])).await.unwrap();
    };
    write("quiet", 1_000).await;
    for round in 0..60 {
        write(&format!("loud{}", round % 6), 5_000).await;
    }
    let reaches = |plural: &str, from: Revision| store.watch(Prefix::resource("", plural), from).is_ok();
    assert!(reaches("quiet", start), "a small history is not the one that gives way");
    assert!((0..6).all(|loud| !reaches(&format!("loud{loud}"), start)));
    assert!(reaches("loud5", Revision(store.revision().0 - 1)));
}
