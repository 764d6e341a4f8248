//! Checkpoints <-> one redb file, and the files of the log beside it.
//!
//! Invariant: the database holds all that the log does up to the record that it names, and perhaps something of what
//! comes after: making the log's changes again gives the same. After a failed commit the file is opened afresh before
//! the next one, because redb refuses further work on a database whose I/O failed.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use crate::log::{End, LogFile, Mark};
use crate::moving::{self, Moving};
use crate::store::Shared;
use crate::{Entry, Key, Revision};

const OBJECTS: TableDefinition<'_, &str, (u64, &[u8])> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const REVISION: &str = "revision";
/// Names the last record of the log that is in here.
const MARK: &str = "mark";
const FORMAT: &str = "format";
/// Counts up when the meaning of the tables changes. Before the second there was no log.
const FORMAT_NOW: u64 = 2;
/// redb would keep up to a gigabyte; all objects are in memory already.
const CACHE_BYTES: usize = 4 << 20;
/// How redb's files begin. Source: redb's design document.
const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("another process has it open")]
    InUse,
    #[error("it was written by format {found} of this program, which knows format {FORMAT_NOW}")]
    Format { found: u64 },
    #[error(
        "it is empty: its content was lost; put a backup in its place, or remove it to begin anew without any object"
    )]
    Empty,
    #[error("it is no store: its first bytes are not those of a redb database")]
    Foreign,
    #[error("whoever writes the database has ended")]
    Ended,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Redb(Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for DiskError
where
    E: RedbError,
{
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

/// The error types of redb that convert into `redb::Error`; a marker, so that `From` above stays coherent.
pub(crate) trait RedbError {}
impl RedbError for redb::TransactionError {}
impl RedbError for redb::TableError {}
impl RedbError for redb::StorageError {}
impl RedbError for redb::CommitError {}
impl RedbError for redb::SetDurabilityError {}

/// Where the database's bytes are; tests put a failing device here.
pub(crate) trait Place: Send + 'static {
    fn open(&self) -> Result<Database, DiskError>;

    /// How many bytes it takes up.
    fn len(&self) -> io::Result<u64>;

    /// An empty database beside it, instead of any that was begun before.
    fn fresh(&self) -> Result<Database, DiskError>;

    /// Puts the one beside it in its place, durably: now or, after an error, perhaps; then [`Place::open`] finds out.
    fn adopt(&self) -> io::Result<()>;

    /// The files of the log, which are made if they do not exist.
    fn log(&self) -> Result<[LogFile; 2], DiskError>;
}

pub(crate) struct FilePlace(PathBuf);

/// The ending of a file that is not whole yet.
const UNNAMED: &str = "new";
/// The endings of the files of the log.
const LOGS: [&str; 2] = ["log0", "log1"];

impl FilePlace {
    fn sync_name(&self) -> io::Result<()> {
        File::open(self.0.parent().unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Makes the directory and a new store's file, durably, unless they exist. Since a file has its name only once it
    /// is whole, an empty one is known for a loss and not taken for a beginning.
    pub(crate) fn prepare(path: PathBuf) -> Result<Self, DiskError> {
        if !path.exists() {
            make(&path, &[], Revision::FIRST)?;
        }
        Ok(Self(path))
    }
}

/// Makes a store's file, with its directory, out of `objects` as of `revision`. It has its name only once it is whole.
pub(crate) fn make(path: &Path, objects: &[(Key, Entry)], revision: Revision) -> Result<(), DiskError> {
    /// As many objects a transaction, so that none holds a large store in memory again.
    const TOGETHER: usize = 1024;
    if path.exists() {
        return Err(io::Error::from(io::ErrorKind::AlreadyExists).into());
    }
    let directory = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    fs::create_dir_all(directory)?;
    let unnamed = unnamed(path)?;
    let database = Database::builder().create(&unnamed).map_err(opening)?;
    settle(&database)?;
    for some in objects.chunks(TOGETHER) {
        let some = some.iter().map(|(key, entry)| (key.clone(), Some(entry.clone()))).collect();
        put(&database, &some, (revision, Mark::default()), || {})?;
    }
    drop(database);
    // What another store left here must not be taken for what follows.
    LOGS.iter().try_for_each(|log| remove(&path.with_extension(log)))?;
    File::open(directory)?.sync_all()?;
    fs::rename(&unnamed, path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

/// Where a new file for `path` is made: empty, whatever was left from before.
fn unnamed(path: &Path) -> io::Result<PathBuf> {
    let unnamed = path.with_extension(UNNAMED);
    remove(&unnamed)?;
    private(&unnamed)?;
    Ok(unnamed)
}

/// A file that nobody else may read: there are Secrets in it. It is made, empty, if it does not exist.
fn private(file: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(file)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Place for FilePlace {
    fn open(&self) -> Result<Database, DiskError> {
        // redb itself would write to whatever it is given.
        let mut start = Vec::new();
        File::open(&self.0)?.take(MAGIC.len() as u64).read_to_end(&mut start)?;
        match &start[..] {
            [] => return Err(DiskError::Empty),
            MAGIC => {}
            _ => return Err(DiskError::Foreign),
        }
        // If another file was put in its place, nothing is written to it before that is certain.
        self.sync_name()?;
        Database::builder().set_cache_size(CACHE_BYTES).open(&self.0).map_err(opening)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(fs::metadata(&self.0)?.len())
    }

    fn fresh(&self) -> Result<Database, DiskError> {
        let unnamed = unnamed(&self.0)?;
        Database::builder().set_cache_size(CACHE_BYTES).create(unnamed).map_err(opening)
    }

    fn adopt(&self) -> io::Result<()> {
        fs::rename(self.0.with_extension(UNNAMED), &self.0)?;
        self.sync_name()
    }

    fn log(&self) -> Result<[LogFile; 2], DiskError> {
        let open = |ending: &str| -> Result<LogFile, DiskError> {
            let file = private(&self.0.with_extension(ending))?;
            Ok(Box::new(FileBackend::new(file).map_err(opening)?))
        };
        let [first, second] = LOGS;
        let files = [open(first)?, open(second)?];
        self.sync_name()?;
        Ok(files)
    }
}

pub(crate) fn opening(error: DatabaseError) -> DiskError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => DiskError::InUse,
        other => DiskError::Redb(Box::new(other.into())),
    }
}

/// One key's new content: `None` is deleted.
pub(crate) type Changed = (Key, Option<Entry>);

/// What the log has and the database may not have yet: each key's newest content, and where in the log that ends.
pub(crate) struct Checkpoint {
    pub(crate) changes: BTreeMap<Key, Option<Entry>>,
    pub(crate) end: End,
}

impl Checkpoint {
    /// Of nothing, so far.
    pub(crate) fn after(end: End) -> Self {
        Self { changes: BTreeMap::new(), end }
    }
}

pub(crate) struct Disk {
    place: Box<dyn Place>,
    database: Option<Database>,
    moving: Moving,
}

impl Disk {
    pub(crate) fn open(place: Box<dyn Place>) -> Result<Self, DiskError> {
        let mut disk = Self { place, database: None, moving: Moving::default() };
        disk.database()?;
        Ok(disk)
    }

    fn database(&mut self) -> Result<&Database, DiskError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                let database = self.place.open()?;
                settle(&database)?;
                database
            }
        };
        Ok(self.database.insert(database))
    }

    pub(crate) fn log(&self) -> Result<[LogFile; 2], DiskError> {
        self.place.log()
    }

    /// Everything that is in the database, and where in the log that ends.
    pub(crate) fn load(&mut self) -> Result<(BTreeMap<Key, Entry>, End), DiskError> {
        let transaction = self.database()?.begin_read()?;
        let mut objects = Vec::new();
        for row in transaction.open_table(OBJECTS)?.iter()? {
            let (key, value) = row?;
            let (revision, bytes) = value.value();
            let entry = Entry { value: Bytes::copy_from_slice(bytes), revision: Revision(revision) };
            objects.push((Key::from_stored(key.value()), entry));
        }
        let meta = transaction.open_table(META)?;
        let revision = meta.get(REVISION)?.map_or(Revision::FIRST, |revision| Revision(revision.value()));
        let mark = meta.get(MARK)?.map_or(Mark::default(), |mark| Mark(mark.value()));
        Ok((objects.into_iter().collect(), (revision, mark)))
    }

    /// Makes the database hold all that the log does up to the end of `checkpoint`. It may be kept again. `rest` is
    /// called now and then.
    pub(crate) fn keep(&mut self, checkpoint: &Checkpoint, rest: impl FnMut()) -> Result<(), DiskError> {
        let done = self.database().and_then(|database| put(database, &checkpoint.changes, checkpoint.end, rest));
        if done.is_err() {
            self.database = None;
        }
        done
    }

    /// To be called after a checkpoint that ended at `end`: gives room back that is no longer needed. What fails is
    /// left for another time.
    pub(crate) fn tidy(&mut self, end: End, shared: &Shared) {
        if !self.place.len().is_ok_and(|length| self.moving.is_worth_it(length, shared)) {
            return;
        }
        if let Ok(fresh) = moving::fill(&*self.place, end, shared) {
            // The old one closes itself with a last write, which goes to a file that has no name any more.
            self.database = self.place.adopt().is_ok().then_some(fresh);
        }
        self.moving.settled(&*self.place, shared);
    }
}

/// Makes `changes` in one durable transaction, after which the database ends at `end`, with a `rest` after every few.
pub(crate) fn put(
    database: &Database,
    changes: &BTreeMap<Key, Option<Entry>>,
    (revision, mark): End,
    mut rest: impl FnMut(),
) -> Result<(), DiskError> {
    const FEW: usize = 64;
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(REVISION, revision.0)?;
        meta.insert(MARK, mark.0)?;
        let mut objects = transaction.open_table(OBJECTS)?;
        for (index, (key, entry)) in changes.iter().enumerate() {
            match entry {
                Some(entry) => objects.insert(key.as_str(), (entry.revision.0, entry.value.as_ref()))?,
                None => objects.remove(key.as_str())?,
            };
            if index % FEW == FEW - 1 {
                rest();
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Makes the tables of a new file and checks the format of an old one.
pub(crate) fn settle(database: &Database) -> Result<(), DiskError> {
    let transaction = database.begin_write()?;
    let found = {
        let mut meta = transaction.open_table(META)?;
        transaction.open_table(OBJECTS)?;
        let found = meta.get(FORMAT)?.map(|format| format.value());
        if found.is_none_or(|found| found < FORMAT_NOW) {
            meta.insert(FORMAT, FORMAT_NOW)?;
        }
        found
    };
    match found {
        None | Some(..FORMAT_NOW) => transaction.commit()?,
        Some(FORMAT_NOW) => transaction.abort()?,
        Some(found) => return Err(DiskError::Format { found }),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, Store};

    fn meta(directory: &Path, change: impl FnOnce(&mut redb::Table<'_, &'static str, u64>)) {
        let database = Database::open(directory.join("store.redb")).unwrap();
        let transaction = database.begin_write().unwrap();
        change(&mut transaction.open_table(META).unwrap());
        transaction.commit().unwrap();
    }

    #[test]
    fn nobody_else_may_read_what_is_stored() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path(), Limits::default()).unwrap().close();
        FilePlace(directory.path().join("store.redb")).fresh().unwrap();
        let files: Vec<_> = fs::read_dir(directory.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(files.len(), 4);
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", file.path());
        }
    }

    #[test]
    fn a_store_from_before_the_log_is_taken_over_and_a_later_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::new("", "things", "", "a");
        let entry = Entry { value: Bytes::from_static(b"x"), revision: Revision(7) };
        Store::make(directory.path(), &[(key.clone(), entry.clone())], Revision(9)).unwrap();
        meta(directory.path(), |meta| {
            meta.insert(FORMAT, 1).unwrap();
            meta.remove(MARK).unwrap();
        });
        for _ in 0..2 {
            let store = Store::open(directory.path(), Limits::default()).unwrap();
            assert_eq!(store.get(&key), (Some(entry.clone()), Revision(9)));
            store.close();
        }
        meta(directory.path(), |meta| {
            assert_eq!(meta.get(FORMAT).unwrap().unwrap().value(), FORMAT_NOW);
            meta.insert(FORMAT, FORMAT_NOW + 1).unwrap();
        });
        let refused = Store::open(directory.path(), Limits::default()).err().unwrap();
        let source = std::error::Error::source(&refused).unwrap().to_string();
        assert!(source.starts_with("it was written by format 3 of this program"), "{source}");
    }
}
