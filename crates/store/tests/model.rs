//! The store against a model of it: a map, and a log of what changed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::BTreeMap;

use portolan_store::{
    Document, Entry, Event, Expect, Expired, Key, Limits, Op, Page, Prefix, Revision, Store, Transaction, WriteError,
};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Write(Vec<(usize, Option<u8>, Guess)>),
    Reopen,
}

/// What the writer expects of a key, relative to what is there.
#[derive(Clone, Copy, Debug)]
enum Guess {
    Anything,
    Absent,
    Present,
    Right,
    Stale,
}

fn step() -> impl Strategy<Value = Step> {
    let guess = prop_oneof![
        4 => Just(Guess::Anything), 1 => Just(Guess::Absent), 1 => Just(Guess::Present),
        3 => Just(Guess::Right), 1 => Just(Guess::Stale)
    ];
    let op = (0_usize..6, proptest::option::weighted(0.7, any::<u8>()), guess);
    let ops = proptest::collection::vec(op, 1..4).prop_map(|mut ops| {
        ops.sort_by_key(|op| op.0);
        ops.dedup_by_key(|op| op.0);
        Step::Write(ops)
    });
    prop_oneof![12 => ops, 1 => Just(Step::Reopen)]
}

fn key(index: usize) -> Key {
    let (namespace, name) = [("n", "a"), ("n", "b"), ("n1", "a"), ("n1", "b"), ("n-1", "a"), ("", "a")][index];
    Key::new("", "things", namespace, name)
}

type Objects = BTreeMap<Key, Entry>;

#[derive(Default)]
struct Model {
    objects: Objects,
    /// The objects after each change, with the change.
    log: Vec<(Revision, Key, Option<Entry>, Objects)>,
}

fn expectation(guess: Guess, found: Option<&Entry>) -> Expect {
    match (guess, found) {
        (Guess::Anything, _) => Expect::Anything,
        (Guess::Absent, _) => Expect::Absent,
        (Guess::Present, _) => Expect::Present,
        (Guess::Right, Some(entry)) => Expect::At(entry.revision),
        (Guess::Right, None) => Expect::Absent,
        (Guess::Stale, _) => Expect::At(Revision(1)),
    }
}

async fn write(store: &Store, model: &mut Model, ops: &[(usize, Option<u8>, Guess)]) {
    let mut transaction = Transaction::default();
    let mut holds = true;
    for (index, value, guess) in ops {
        let key = key(*index);
        let found = model.objects.get(&key);
        let expect = expectation(*guess, found);
        holds &= match expect {
            Expect::Anything => true,
            Expect::Absent => found.is_none(),
            Expect::Present => found.is_some(),
            Expect::At(revision) => found.is_some_and(|found| found.revision == revision),
        };
        transaction.ops.push(match value {
            Some(value) => {
                let value =
                    Document { bytes: format!("{value}@").into_bytes(), stamp_at: Some(value.to_string().len() + 1) };
                Op::Put { key, expect, value }
            }
            None => Op::Delete { key, expect },
        });
    }
    let before = store.revision();
    let done = store.write(transaction).await;
    if !holds {
        assert!(matches!(done, Err(WriteError::Conflict { .. })));
        assert_eq!(store.revision(), before, "a refused transaction changed something");
        return;
    }
    let mut revision = before;
    for ((index, value, _), answer) in ops.iter().zip(done.unwrap()) {
        let key = key(*index);
        let old = model.objects.remove(&key);
        if value.is_none() && old.is_none() {
            assert_eq!(answer, None);
            continue;
        }
        revision = Revision(revision.0 + 1);
        let new = value.map(|value| Entry { value: format!("{value}@{revision}").into(), revision });
        assert_eq!(answer, new.clone().or(old));
        if let Some(new) = &new {
            model.objects.insert(key.clone(), new.clone());
        }
        model.log.push((revision, key, new, model.objects.clone()));
    }
    assert_eq!(store.revision(), revision);
}

fn listed(store: &Store, prefix: &Prefix, page: &Page) -> Result<Vec<(Key, Entry)>, Expired> {
    store.list(prefix, page).map(|list| list.entries)
}

fn under(objects: &Objects, prefix: &Prefix) -> Vec<(Key, Entry)> {
    objects.iter().filter(|(key, _)| prefix.contains(key)).map(|(key, entry)| (key.clone(), entry.clone())).collect()
}

/// Every list and every watch from every revision that history can answer for.
fn check(store: &Store, model: &Model, opened: Revision) {
    let prefixes =
        [Prefix::resource("", "things"), Prefix::namespace("", "things", "n"), Prefix::namespace("", "things", "n1")];
    for prefix in &prefixes {
        assert_eq!(listed(store, prefix, &Page::default()).unwrap(), under(&model.objects, prefix));
        for (revision, _, _, objects) in &model.log {
            let page = Page { at: Some(*revision), ..Page::default() };
            if *revision < opened {
                assert!(listed(store, prefix, &page).is_err());
                assert!(store.watch(prefix.clone(), *revision).is_err());
                continue;
            }
            let expected = under(objects, prefix);
            assert_eq!(listed(store, prefix, &page).unwrap(), expected);
            assert_eq!(paged(store, prefix, *revision), expected);
            let batch = store.watch(prefix.clone(), *revision).unwrap().poll().unwrap();
            let seen: Vec<_> = batch.events.iter().map(|e| (e.revision, e.key.clone(), e.new.clone())).collect();
            let changes = model.log.iter().filter(|(at, key, ..)| at > revision && prefix.contains(key));
            let changes: Vec<_> = changes.map(|(at, key, new, _)| (*at, key.clone(), new.clone())).collect();
            assert_eq!(seen, changes);
            assert_eq!(batch.revision, store.revision());
        }
    }
}

fn paged(store: &Store, prefix: &Prefix, at: Revision) -> Vec<(Key, Entry)> {
    let mut page = Page { at: Some(at), after: None, limit: Some(2) };
    let mut all = Vec::new();
    loop {
        let list = store.list(prefix, &page).unwrap();
        assert!(list.entries.len() <= 2);
        all.extend(list.entries);
        if list.remaining == 0 {
            return all;
        }
        page.after = all.last().map(|(key, _)| key.clone());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_map_with_a_log(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path(), Limits::default()).unwrap();
        let mut model = Model::default();
        let mut opened = store.revision();
        for step in steps {
            match step {
                Step::Write(ops) => runtime.block_on(write(&store, &mut model, &ops)),
                Step::Reopen => {
                    let before = store.revision();
                    store.close();
                    store = Store::open(directory.path(), Limits::default()).unwrap();
                    opened = store.revision();
                    prop_assert_eq!(before, opened);
                }
            }
        }
        check(&store, &model, opened);
    }
}

fn put(name: &str, size: usize) -> Transaction {
    let key = Key::new("", "things", "", name);
    vec![Op::Put { key, expect: Expect::Anything, value: vec![b'x'; size].into() }].into()
}

#[tokio::test]
async fn a_watch_that_falls_behind_is_told_so_and_stalls_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { history_events: 10, ..Limits::default() };
    let store = Store::open(directory.path(), limits).unwrap();
    let things = Prefix::resource("", "things");
    let mut slow = store.watch(things.clone(), store.revision()).unwrap();
    let mut fast = store.watch(things.clone(), store.revision()).unwrap();
    let mut seen = 0;
    for round in 0..30 {
        store.write(put(&format!("k{round}"), 10)).await.unwrap();
        seen += fast.next().await.unwrap().events.len();
    }
    assert_eq!(seen, 30);
    assert!(slow.poll().is_err());
    assert!(store.watch(things, Revision(5)).is_err());
}

#[tokio::test]
async fn history_is_bounded_in_bytes_too_and_per_resource() {
    let directory = tempfile::tempdir().unwrap();
    let limits = Limits { history_bytes: 10_000, ..Limits::default() };
    let store = Store::open(directory.path(), limits).unwrap();
    let start = store.revision();
    for round in 0..5 {
        store.write(put(&format!("k{round}"), 4_000)).await.unwrap();
    }
    assert!(store.watch(Prefix::resource("", "things"), start).is_err());
    assert!(store.watch(Prefix::resource("", "others"), start).is_ok(), "a quiet resource keeps its history");
}

#[tokio::test]
async fn an_idle_watch_learns_how_far_it_is_up_to_date() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Limits::default()).unwrap();
    let mut idle = store.watch(Prefix::resource("", "others"), store.revision()).unwrap();
    store.write(put("a", 1)).await.unwrap();
    let batch = idle.poll().unwrap();
    assert!(batch.events.is_empty());
    assert_eq!(batch.revision, store.revision());
}

#[tokio::test]
async fn registering_during_a_storm_of_writes_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Limits::default()).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let store = store.clone();
        writers.spawn(async move {
            for round in 0..50 {
                store.write(put(&format!("k{writer}-{round}"), 20)).await.unwrap();
            }
        });
    }
    let things = Prefix::resource("", "things");
    let mut watchers = tokio::task::JoinSet::new();
    while !writers.is_empty() {
        let list = store.list(&things, &Page::default()).unwrap();
        let mut watch = store.watch(things.clone(), list.revision).unwrap();
        let mut known = list.entries.len();
        watchers.spawn(async move {
            while known < 200 {
                known += watch.next().await.unwrap().events.len();
            }
            known
        });
        writers.join_next().await;
    }
    while let Some(known) = watchers.join_next().await {
        assert_eq!(known.unwrap(), 200);
    }
}

#[tokio::test]
async fn a_memo_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), Limits::default()).unwrap();
    let mut watch = store.watch(Prefix::resource("", "things"), store.revision()).unwrap();
    store.write(put("a", 1)).await.unwrap();
    let batch = watch.next().await.unwrap();
    let event: &Event = &batch.events[0];
    assert_eq!(event.memo(|| 7_u32), Some(&7));
    assert_eq!(event.memo(|| 8_u32), Some(&7));
    assert_eq!(event.memo(|| "other"), None);
}
