//! Everything a cluster is -> one file, and back.
//!
//! The file is gzip of lines of JSON: a head that says what it is and how much follows, the files that are not objects
//! (the cluster's authority among them, since without it no client trusts the cluster again), all objects as of one
//! revision, and a line that says that this is all. Invariants: a damaged or cut-off file is known as such before
//! anything is made of it; a restored cluster gives out no revision that anybody may have seen before.
//!
//! Deliberately not here: nodes' disks and images. Pods are made anew.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use portolan_store::{Entry, Key, Limits, List, OpenError, Page, Prefix, Revision, Store};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::listing::{PIECE, Pieces};

/// Counts up when what the lines mean changes.
const FORMAT: u64 = 1;
/// A line that is longer is none of ours: no object is larger than a body.
const LONGEST_LINE: u64 = 64 << 20;
/// What may have been given out between the backup and its restoring: with 10,000 changes a second, a day.
const REVISIONS_BETWEEN: u64 = 1_000_000_000;
/// Beside the store. What is in `pki/`, and what the cluster was made with.
const PKI: &str = "pki";
const TIES: &str = "cluster.json";

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("there is no cluster in {0}")]
    NoCluster(PathBuf),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("cannot use {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is no backup of a cluster: {1}")]
    Foreign(PathBuf, String),
    #[error("{0} was written in format {1} by another version of this program, which knows format {FORMAT}")]
    Format(PathBuf, u64),
    #[error("{0} is damaged: {1}; nothing was restored from it")]
    Damaged(PathBuf, String),
    #[error("{0} is not empty; restore into a new directory, or move this one away")]
    NotEmpty(PathBuf),
}

impl BackupError {
    /// Whether the cluster runs, so that it has to be asked itself.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_in_use())
    }
}

fn using(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    |source| BackupError::File { path: path.to_owned(), source }
}

#[derive(Deserialize, Serialize)]
struct Head {
    portolan: String,
    format: u64,
    revision: u64,
    files: usize,
    objects: usize,
}

#[derive(Deserialize, Serialize)]
struct Extra {
    file: String,
    content: String,
}

#[derive(Deserialize, Serialize)]
struct Object<'a> {
    key: &'a str,
    revision: u64,
    #[serde(borrow)]
    value: &'a RawValue,
}

#[derive(Deserialize, Serialize)]
struct End {
    end: bool,
}

const BACKUP: &str = "backup";

/// A backup on its way.
pub(crate) struct Backup {
    begin: Vec<u8>,
    entries: std::vec::IntoIter<(Key, Entry)>,
    over: bool,
}

impl Backup {
    /// Of a moment of `store`, with the files beside it.
    ///
    /// # Errors
    /// When these cannot be read.
    pub(crate) fn new(store: &Store, data_dir: &Path) -> Result<Self, BackupError> {
        let files = extras(data_dir)?;
        // Nothing of the past is asked for, so nothing can have expired.
        let List { entries, revision, .. } = store
            .list(&Prefix::everything(), &Page::default())
            .unwrap_or_else(|expired| List { entries: Vec::new(), revision: expired.oldest, remaining: 0 });
        let head = Head {
            portolan: BACKUP.into(),
            format: FORMAT,
            revision: revision.0,
            files: files.len(),
            objects: entries.len(),
        };
        let mut begin = Vec::new();
        push_line(&head, &mut begin);
        files.iter().for_each(|file| push_line(file, &mut begin));
        Ok(Self { begin, entries: entries.into_iter(), over: false })
    }
}

fn push_line(line: &impl Serialize, to: &mut Vec<u8>) {
    // Strings and numbers always become JSON.
    if serde_json::to_writer(&mut *to, line).is_ok() {
        to.push(b'\n');
    }
}

impl Pieces for Backup {
    fn piece(&mut self) -> Vec<u8> {
        let mut piece = std::mem::take(&mut self.begin);
        while piece.len() < PIECE {
            let Some((key, entry)) = self.entries.next() else {
                push_line(&End { end: true }, &mut piece);
                self.over = true;
                break;
            };
            if let Ok(value) = serde_json::from_slice(&entry.value) {
                push_line(&Object { key: key.as_str(), revision: entry.revision.0, value }, &mut piece);
            }
        }
        piece
    }

    fn is_over(&self) -> bool {
        self.over
    }
}

fn extras(data_dir: &Path) -> Result<Vec<Extra>, BackupError> {
    let mut names = Vec::new();
    let pki = data_dir.join(PKI);
    for entry in fs::read_dir(&pki).map_err(using(&pki))? {
        let entry = entry.map_err(using(&pki))?;
        let name = entry.file_name().into_string().unwrap_or_default();
        // What begins with a dot is a draft.
        if entry.path().is_file() && !name.starts_with('.') {
            names.push(format!("{PKI}/{name}"));
        }
    }
    names.sort();
    if data_dir.join(TIES).exists() {
        names.push(TIES.to_owned());
    }
    let read = |file: String| {
        let path = data_dir.join(&file);
        let content = fs::read_to_string(&path).map_err(using(&path))?;
        Ok(Extra { file, content })
    };
    names.into_iter().map(read).collect()
}

/// Writes a backup of the cluster in `data_dir`, which must not be running.
///
/// # Errors
/// When there is none, somebody uses it, or `to` cannot be written.
pub fn write(data_dir: &Path, to: &mut impl Write) -> Result<(), BackupError> {
    if !Store::exists(data_dir) {
        return Err(BackupError::NoCluster(data_dir.to_owned()));
    }
    let store = Store::open(data_dir, Limits::default())?;
    let mut backup = Backup::new(&store, data_dir)?;
    let mut packed = GzEncoder::new(to, Compression::fast());
    let mut pack = || -> io::Result<()> {
        while !backup.is_over() {
            packed.write_all(&backup.piece())?;
        }
        packed.try_finish()
    };
    pack().map_err(|source| BackupError::File { path: "the backup".into(), source })?;
    store.close();
    Ok(())
}

/// What a backup says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub objects: usize,
    pub revision: u64,
}

struct Content {
    summary: Summary,
    files: Vec<Extra>,
    objects: Vec<(Key, Entry)>,
}

/// Reads a backup to its end.
///
/// # Errors
/// When it is none, or damaged, or of another format.
pub fn check(file: &Path) -> Result<Summary, BackupError> {
    read(file).map(|content| content.summary)
}

fn read(file: &Path) -> Result<Content, BackupError> {
    let foreign = |why: &str| BackupError::Foreign(file.to_owned(), why.to_owned());
    let damaged = |why: String| BackupError::Damaged(file.to_owned(), why);
    let mut lines = BufReader::new(GzDecoder::new(File::open(file).map_err(using(file))?));
    let mut line = Vec::new();
    let mut next = || -> Result<Vec<u8>, io::Error> {
        line.clear();
        (&mut lines).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        match line.pop() {
            Some(b'\n') => Ok(line.clone()),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends too early")),
        }
    };
    let head = next().map_err(|error| foreign(&error.to_string()))?;
    let head: Head = serde_json::from_slice(&head).map_err(|_| foreign("it does not begin as one"))?;
    if head.portolan != BACKUP {
        return Err(foreign("it does not begin as one"));
    }
    if head.format != FORMAT {
        return Err(BackupError::Format(file.to_owned(), head.format));
    }
    let mut next = || next().map_err(|error| damaged(error.to_string()));
    let parse_failed = |what: &str, number: usize| damaged(format!("{what} {number} cannot be read"));
    let mut files = Vec::new();
    for number in 0..head.files {
        let extra: Extra = serde_json::from_slice(&next()?).map_err(|_| parse_failed("file", number))?;
        let path = Path::new(&extra.file);
        let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if !plain {
            return Err(damaged(format!("it holds a file {:?}, which is none of a cluster's", extra.file)));
        }
        files.push(extra);
    }
    let mut objects = Vec::new();
    for number in 0..head.objects {
        let line = next()?;
        let object: Object<'_> = serde_json::from_slice(&line).map_err(|_| parse_failed("object", number))?;
        let key = Key::parse(object.key).ok_or_else(|| parse_failed("object", number))?;
        let value = object.value.get().to_owned().into();
        objects.push((key, Entry { value, revision: Revision(object.revision) }));
    }
    serde_json::from_slice::<End>(&next()?).map_err(|_| damaged("its end is missing".to_owned()))?;
    // Only at the end of it all is the checksum compared.
    let mut rest = [0];
    match lines.read(&mut rest) {
        Ok(0) => {}
        Ok(_) => return Err(damaged("something follows its end".to_owned())),
        Err(error) => return Err(damaged(error.to_string())),
    }
    Ok(Content { summary: Summary { objects: objects.len(), revision: head.revision }, files, objects })
}

/// Makes the data directory of a cluster out of a backup: whole, or not at all.
///
/// # Errors
/// When the backup cannot be used, or the directory exists and is not empty.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Summary, BackupError> {
    let content = read(file)?;
    match fs::read_dir(data_dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(BackupError::NotEmpty(data_dir.to_owned())),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(using(data_dir)(error)),
        _ => {}
    }
    let name = data_dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let draft = data_dir.with_file_name(format!(".{name}.restoring"));
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(using(&draft)(error)),
        _ => {}
    }
    let mut directory = fs::DirBuilder::new();
    directory.recursive(true).mode(0o700);
    directory.create(&draft).map_err(using(&draft))?;
    for Extra { file, content } in &content.files {
        let path = draft.join(file);
        if let Some(parent) = path.parent() {
            directory.create(parent).map_err(using(parent))?;
        }
        let write = || {
            let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()
        };
        write().map_err(using(&path))?;
    }
    Store::make(&draft, &content.objects, Revision(content.summary.revision + REVISIONS_BETWEEN))?;
    let place = || {
        fs::rename(&draft, data_dir)?;
        let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent)?.sync_all()
    };
    place().map_err(using(data_dir))?;
    Ok(content.summary)
}

#[cfg(test)]
mod tests {
    use portolan_store::{Expect, Op};

    use super::*;

    fn cluster(directory: &Path) -> Store {
        fs::create_dir_all(directory.join(PKI)).unwrap();
        fs::write(directory.join("pki/ca.crt"), "certificate\n").unwrap();
        fs::write(directory.join(TIES), "{}").unwrap();
        let store = Store::open(directory, Limits::default()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for index in 0..200 {
            let key = Key::new("", "things", "ns", &format!("t{index}"));
            let value = format!(r#"{{"metadata":{{"name":"t{index}"}},"data":"{}"}}"#, "x".repeat(index)).into_bytes();
            let put = Op::Put { key, expect: Expect::Absent, value: value.into() };
            runtime.block_on(store.write(vec![put].into())).unwrap();
        }
        store
    }

    #[test]
    fn what_was_backed_up_is_restored() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        let store = cluster(&data);
        let file = directory.path().join("backup");
        let in_use = write(&data, &mut Vec::new()).unwrap_err();
        assert!(in_use.is_in_use());
        let before = store.list(&Prefix::everything(), &Page::default()).unwrap();
        store.close();
        write(&data, &mut File::create(&file).unwrap()).unwrap();
        assert_eq!(check(&file).unwrap(), Summary { objects: 200, revision: before.revision.0 });

        let refused = restore(&file, &data).unwrap_err().to_string();
        assert!(refused.contains("is not empty"), "{refused}");
        let other = directory.path().join("other");
        restore(&file, &other).unwrap();
        let store = Store::open(&other, Limits::default()).unwrap();
        let after = store.list(&Prefix::everything(), &Page::default()).unwrap();
        assert_eq!(after.entries, before.entries);
        assert!(after.revision > before.revision, "nobody has seen it");
        assert!(store.watch(Prefix::everything(), before.revision).is_err(), "who watched the old cluster lists again");
        assert_eq!(fs::read_to_string(other.join("pki/ca.crt")).unwrap(), "certificate\n");
        assert!(!directory.path().join(".other.restoring").exists());
    }

    #[test]
    fn what_is_no_whole_backup_makes_no_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        cluster(&data).close();
        let mut whole = Vec::new();
        write(&data, &mut whole).unwrap();
        let packed = |text: &str| {
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(text.as_bytes()).unwrap();
            packed.finish().unwrap()
        };
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let mut checksum = whole.clone();
        let end = checksum.len() - 6;
        checksum[end] ^= 1;
        let escaping = "{\"portolan\":\"backup\",\"format\":1,\"revision\":1,\"files\":1,\"objects\":0}\n\
                        {\"file\":\"../x\",\"content\":\"\"}\n{\"end\":true}\n";
        let file = directory.path().join("file");
        let target = directory.path().join("target");
        for (content, message) in [
            (whole[..whole.len() / 2].to_vec(), "is damaged"),
            (whole[..whole.len() - 4].to_vec(), "is damaged"),
            (flipped, "is damaged"),
            (checksum, "is damaged"),
            (packed(escaping), "none of a cluster's"),
            (packed("{\"portolan\":\"backup\",\"format\":9,\"revision\":1,\"files\":0,\"objects\":0}\n"), "format 9"),
            (packed("{\"kind\":\"List\"}\n"), "is no backup"),
            (b"plain text".to_vec(), "is no backup"),
            (Vec::new(), "is no backup"),
        ] {
            fs::write(&file, content).unwrap();
            let error = restore(&file, &target).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert!(!target.exists());
        }
        let nothing = write(&directory.path().join("nowhere"), &mut Vec::new()).unwrap_err().to_string();
        assert!(nothing.starts_with("there is no cluster in "), "{nothing}");
        assert!(!directory.path().join("nowhere").exists());
    }
}
