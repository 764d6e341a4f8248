//! Tests of random histories with power cuts and disk errors in between, against a model: a map, and what it may be
//! when nobody was told.
//!
//! The device keeps only what was flushed. Of what was written since, each sector lands or does not, whatever the order
//! it was written in, and the file has any of the lengths it was given. Files are small, so rounds turn the log over
//! and move what is stored into another file, too. `PORTOLAN_STORE_HISTORIES` says how many histories (a hundred by
//! itself); a failure prints the smallest history that has it, as far as the store's two threads do the same again.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;
use redb::{Database, StorageBackend};
use tokio::task::JoinSet;

use crate::disk::{DiskError, Place, opening};
use crate::log::LogFile;
use crate::{Document, Expect, Key, Limits, Op, Page, Prefix, Store, Transaction, WriteError};

const SECTOR: usize = 512;
const HISTORIES: &str = "PORTOLAN_STORE_HISTORIES";

#[derive(Debug)]
enum Unflushed {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Trouble {
    None,
    /// After so many writes and flushes nothing is answered any more; the last one lands in part.
    Cut {
        after: u64,
    },
    /// After so many, so many fail, and then the disk is well again.
    Errors {
        after: u64,
        count: u64,
    },
}

#[derive(Debug, Default)]
struct Content {
    flushed: Vec<u8>,
    /// As a reader sees it.
    now: Vec<u8>,
    unflushed: Vec<Unflushed>,
}

#[derive(Debug)]
struct Disk {
    /// The store's database and the one beside it, and the files of the log.
    files: [Content; 4],
    /// Which of them has the name.
    named: usize,
    trouble: Trouble,
    /// Writes and flushes so far.
    operations: u64,
}

/// A file of the disk.
#[derive(Clone, Debug)]
struct Device(Arc<Mutex<Disk>>, usize);

/// A few good bits from a seed; splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }
}

impl Disk {
    fn dead(&self) -> bool {
        matches!(self.trouble, Trouble::Cut { after } if self.operations > after)
    }

    /// Whether the operation that begins now fails.
    fn fails(&mut self) -> bool {
        self.operations += 1;
        match self.trouble {
            Trouble::None => false,
            Trouble::Cut { after } => self.operations > after,
            Trouble::Errors { after, count } => (after..after + count).contains(&(self.operations - 1)),
        }
    }

    /// What is found when the power is back.
    fn survive(&mut self, seed: u64) {
        for (file, turned) in self.files.iter_mut().zip([0, 17, 31, 47]) {
            file.survive(seed.rotate_left(turned));
        }
    }
}

impl Content {
    fn flush(&mut self) {
        self.unflushed.clear();
        self.flushed.clone_from(&self.now);
    }

    fn survive(&mut self, seed: u64) {
        let mut dice = Dice(seed);
        let mut lengths = vec![self.flushed.len()];
        lengths.extend(self.unflushed.iter().filter_map(|done| match done {
            Unflushed::Length(length) => Some(*length),
            Unflushed::Write(..) => None,
        }));
        let mut image = std::mem::take(&mut self.flushed);
        image.resize(lengths[dice.below(lengths.len())], 0);
        // Of some cuts almost nothing survives, of others almost everything.
        let share = [0, 1, 5, 9, 10][dice.below(5)];
        for done in std::mem::take(&mut self.unflushed) {
            let Unflushed::Write(offset, data) = done else { continue };
            let mut start = 0;
            while start < data.len() {
                let end = ((offset + start) / SECTOR * SECTOR + SECTOR - offset).min(data.len());
                if dice.below(10) < share && offset + end <= image.len() {
                    image[offset + start..offset + end].copy_from_slice(&data[start..end]);
                }
                start = end;
            }
        }
        self.now.clone_from(&image);
        self.flushed = image;
    }
}

fn gone() -> io::Error {
    io::Error::other("the disk does not answer")
}

impl Device {
    fn new() -> Self {
        let disk = Disk { files: Default::default(), named: 0, trouble: Trouble::None, operations: 0 };
        Self(Arc::new(Mutex::new(disk)), 0)
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    /// Trouble that begins to count now.
    fn set(&self, trouble: Trouble) {
        let mut disk = self.disk();
        let from_now = disk.operations;
        disk.trouble = match trouble {
            Trouble::None => Trouble::None,
            Trouble::Cut { after } => Trouble::Cut { after: from_now + after },
            Trouble::Errors { after, count } => Trouble::Errors { after: from_now + after, count },
        };
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        let disk = self.disk();
        if disk.dead() { Err(gone()) } else { Ok(disk.files[self.1].now.len() as u64) }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.disk();
        if disk.dead() {
            return Err(gone());
        }
        let start = usize::try_from(offset).unwrap();
        out.copy_from_slice(disk.files[self.1].now.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.disk();
        let was_dead = disk.dead();
        let fails = disk.fails();
        let length = usize::try_from(length).unwrap();
        if !was_dead && (!fails || disk.dead()) {
            let file = &mut disk.files[self.1];
            file.now.resize(length, 0);
            file.unflushed.push(Unflushed::Length(length));
        }
        if fails { Err(gone()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        if disk.fails() {
            return Err(gone());
        }
        disk.files[self.1].flush();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        let was_dead = disk.dead();
        let fails = disk.fails();
        let start = usize::try_from(offset).unwrap();
        if !was_dead && (!fails || disk.dead()) {
            let file = &mut disk.files[self.1];
            file.now[start..start + data.len()].copy_from_slice(data);
            file.unflushed.push(Unflushed::Write(start, data.to_vec()));
        }
        if fails { Err(gone()) } else { Ok(()) }
    }
}

impl Place for Device {
    fn open(&self) -> Result<Database, DiskError> {
        let named = self.disk().named;
        Database::builder().create_with_backend(Self(self.0.clone(), named)).map_err(opening)
    }

    fn len(&self) -> io::Result<u64> {
        let named = self.disk().named;
        StorageBackend::len(&Self(self.0.clone(), named))
    }

    fn fresh(&self) -> Result<Database, DiskError> {
        let beside = 1 - self.disk().named;
        self.disk().files[beside] = Content::default();
        Database::builder().create_with_backend(Self(self.0.clone(), beside)).map_err(opening)
    }

    fn adopt(&self) -> io::Result<()> {
        let mut disk = self.disk();
        let was_dead = disk.dead();
        let fails = disk.fails();
        // One that fails may have happened, or not.
        if !was_dead && (!fails || disk.operations.is_multiple_of(2)) {
            disk.named = 1 - disk.named;
        }
        if fails { Err(gone()) } else { Ok(()) }
    }

    fn log(&self) -> Result<[LogFile; 2], DiskError> {
        Ok([2, 3].map(|index| -> LogFile { Box::new(Self(self.0.clone(), index)) }))
    }
}

/// One key's change: what is expected, and how long the new value is; `None` deletes.
#[derive(Clone, Debug)]
struct Change {
    key: usize,
    new_only: bool,
    length: Option<usize>,
}

#[derive(Clone, Debug)]
struct Round {
    /// Transactions of a group are sent together.
    groups: Vec<Vec<Vec<Change>>>,
    trouble: Trouble,
    seed: u64,
    /// The power goes after so many writes and flushes of closing, if it has not gone before.
    at_the_end: Option<u64>,
    /// The power goes again while the store opens, after so many writes and flushes.
    again: Option<u64>,
}

fn round() -> impl Strategy<Value = Round> {
    let length = prop_oneof![4 => 0_usize..200, 2 => 1000_usize..5000, 1 => 8000_usize..40_000];
    let change = (0_usize..10, proptest::bool::weighted(0.1), proptest::option::weighted(0.8, length))
        .prop_map(|(key, new_only, length)| Change { key, new_only, length });
    let transaction = proptest::collection::vec(change, 1..4).prop_map(|mut changes| {
        changes.sort_by_key(|change| change.key);
        changes.dedup_by_key(|change| change.key);
        changes
    });
    let groups = proptest::collection::vec(proptest::collection::vec(transaction, 1..5), 1..6);
    let trouble = prop_oneof![
        1 => Just(Trouble::None),
        6 => (0_u64..70).prop_map(|after| Trouble::Cut { after }),
        2 => (0_u64..40, 1_u64..12).prop_map(|(after, count)| Trouble::Errors { after, count }),
    ];
    let rarely = || proptest::option::weighted(0.2, 0_u64..12);
    (groups, trouble, any::<u64>(), proptest::option::weighted(0.5, 0_u64..12), rarely())
        .prop_map(|(groups, trouble, seed, at_the_end, again)| Round { groups, trouble, seed, at_the_end, again })
}

fn key(index: usize) -> Key {
    Key::new("", "things", "", &format!("k{index}"))
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    objects: BTreeMap<Key, Vec<u8>>,
    revision: u64,
}

impl State {
    fn of(store: &Store) -> Self {
        let list = store.list(&Prefix::resource("", "things"), &Page::default()).unwrap();
        let objects = list.entries.into_iter().map(|(key, entry)| (key, entry.value.to_vec())).collect();
        Self { objects, revision: list.revision.0 }
    }

    fn allows(&self, transaction: &Transaction) -> bool {
        let absent = |op: &&Op| op.expect() == Expect::Absent;
        transaction.ops.iter().filter(absent).all(|op| !self.objects.contains_key(op.key()))
    }

    fn apply(&self, transaction: &Transaction) -> Self {
        let mut after = self.clone();
        for op in &transaction.ops {
            let changed = match op {
                Op::Put { key, value, .. } => {
                    after.objects.insert(key.clone(), value.bytes.clone());
                    true
                }
                Op::Delete { key, .. } => after.objects.remove(key).is_some(),
                Op::Check { .. } => false,
            };
            after.revision += u64::from(changed);
        }
        after
    }
}

/// What the store may hold, as far as its answers tell.
struct Known(Vec<State>);

impl Known {
    fn learn(&mut self, transaction: &Transaction, answer: Result<(), WriteError>, cut: bool) {
        match answer {
            Ok(()) => {
                self.0.retain(|state| state.allows(transaction));
                self.0.iter_mut().for_each(|state| *state = state.apply(transaction));
            }
            Err(WriteError::Conflict { .. }) => self.0.retain(|state| !state.allows(transaction)),
            Err(_) => {
                // After a power cut nothing later can have happened without all that is before it.
                let from = if cut { self.0.len().saturating_sub(1) } else { 0 };
                let may: Vec<_> = self.0[from..].iter().filter(|state| state.allows(transaction)).collect();
                let may: Vec<_> = may.into_iter().map(|state| state.apply(transaction)).collect();
                self.0.extend(may);
            }
        }
        assert!(!self.0.is_empty(), "no history explains the answers");
    }

    fn settle(&mut self, found: State) {
        assert!(self.0.contains(&found), "found {found:?}, which is none of {:?}", self.0);
        self.0 = vec![found];
    }
}

struct Bench {
    device: Device,
    known: Known,
    /// Makes each value one of a kind.
    written: u64,
    /// Whether the last power cut came before the end of its round.
    was_cut: bool,
}

impl Bench {
    fn new() -> Self {
        let device = Device::new();
        let bench = Self {
            device,
            known: Known(vec![State { objects: BTreeMap::new(), revision: 1 }]),
            written: 0,
            was_cut: false,
        };
        bench.open().unwrap().close();
        bench
    }

    fn open(&self) -> Result<Store, DiskError> {
        // So small that each round has the log turn over, and moves the database.
        let limits = Limits { small_file: 0, log_file: 16 << 10, ..Limits::default() };
        Store::open_place(Box::new(self.device.clone()), limits)
    }

    fn transaction(&mut self, changes: &[Change]) -> Transaction {
        let mut op = |change: &Change| {
            let expect = if change.new_only { Expect::Absent } else { Expect::Anything };
            let key = key(change.key);
            let Some(length) = change.length else { return Op::Delete { key, expect } };
            self.written += 1;
            let mut value = self.written.to_string().into_bytes();
            value.resize(value.len().max(length), b'.');
            Op::Put { key, expect, value: Document::from(value) }
        };
        changes.iter().map(&mut op).collect::<Vec<_>>().into()
    }

    async fn send(&mut self, store: &Store, group: &[Vec<Change>], cut: bool) {
        let transactions: Vec<_> = group.iter().map(|changes| self.transaction(changes)).collect();
        let mut sent = JoinSet::new();
        // On a runtime of one thread they enter the store's queue in this order.
        for (index, transaction) in transactions.iter().cloned().enumerate() {
            let store = store.clone();
            sent.spawn(async move { (index, store.write(transaction).await.map(drop)) });
        }
        let mut answers = sent.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        for (transaction, (_, answer)) in transactions.iter().zip(answers) {
            self.known.learn(transaction, answer, cut);
        }
    }

    async fn run(&mut self, round: &Round) {
        let store = self.open().unwrap();
        self.known.settle(State::of(&store));
        self.device.set(round.trouble);
        let cut = matches!(round.trouble, Trouble::Cut { .. });
        for group in &round.groups {
            self.send(&store, group, cut).await;
        }
        if !cut {
            self.device.set(Trouble::None);
            // What became of the last batch is found out by the next.
            self.send(&store, &[vec![Change { key: 0, new_only: false, length: Some(10) }]], false).await;
            self.known.settle(State::of(&store));
            if let Some(after) = round.at_the_end {
                self.device.set(Trouble::Cut { after });
            }
        }
        store.close();
        drop(store);
        if cut || round.at_the_end.is_some() {
            self.power_on(round);
        }
        let store = self.open().unwrap();
        self.known.settle(State::of(&store));
        store.close();
    }

    fn power_on(&mut self, round: &Round) {
        self.was_cut = self.device.disk().dead();
        self.device.set(Trouble::None);
        if self.was_cut {
            self.device.disk().survive(round.seed);
        }
        if let Some(after) = round.again {
            self.device.set(Trouble::Cut { after });
            if let Ok(store) = self.open() {
                store.close();
            }
            let was_cut = self.device.disk().dead();
            self.device.set(Trouble::None);
            if was_cut {
                self.device.disk().survive(!round.seed);
            }
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn histories() -> u32 {
    std::env::var(HISTORIES).map_or(100, |count| count.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_power_cut_loses_what_was_acknowledged(rounds in proptest::collection::vec(round(), 1..6)) {
        let mut bench = Bench::new();
        let runtime = runtime();
        for round in &rounds {
            runtime.block_on(bench.run(round));
        }
    }
}

/// One history, and the power cut at each of its writes and flushes.
#[test]
fn the_power_may_go_at_any_moment() {
    let change = |key, length| Change { key, new_only: false, length };
    let groups = vec![
        vec![vec![change(0, Some(10)), change(1, Some(3000))], vec![change(2, Some(20_000))]],
        vec![vec![change(1, None), change(3, Some(100))], vec![change(0, Some(11)), change(2, Some(5))]],
        vec![vec![change(2, Some(60_000))]],
    ];
    let runtime = runtime();
    for after in 0.. {
        let mut bench = Bench::new();
        for seed in 0..2 {
            bench = Bench::new();
            let round = Round {
                groups: groups.clone(),
                trouble: Trouble::Cut { after },
                seed: after * 2 + seed,
                at_the_end: None,
                again: None,
            };
            runtime.block_on(bench.run(&round));
        }
        if !bench.was_cut {
            assert_eq!(bench.known.0[0].revision, 9, "the whole history");
            assert!(after > 20, "{after} writes and flushes are too few to be the history");
            return;
        }
    }
}
