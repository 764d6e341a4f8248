//! What a writer asks for: operations with what each expects to find.

use bytes::Bytes;

use crate::{Entry, Key, Revision};

/// What must be true of a key for a transaction to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    Present,
    At(Revision),
}

impl Expect {
    pub(crate) fn holds(self, found: Option<&Entry>) -> bool {
        match self {
            Self::Anything => true,
            Self::Absent => found.is_none(),
            Self::Present => found.is_some(),
            Self::At(revision) => found.is_some_and(|entry| entry.revision == revision),
        }
    }
}

/// A value, into which the store may write the decimal revision of the change that stores it.
#[derive(Clone, Debug)]
pub struct Document {
    pub bytes: Vec<u8>,
    /// Where in `bytes` the digits go.
    pub stamp_at: Option<usize>,
}

impl Document {
    pub(crate) fn stamped(&self, revision: Revision) -> Bytes {
        let Some((before, after)) = self.stamp_at.and_then(|at| self.bytes.split_at_checked(at)) else {
            return Bytes::copy_from_slice(&self.bytes);
        };
        let digits = revision.to_string();
        let mut whole = Vec::with_capacity(self.bytes.len() + digits.len());
        whole.extend_from_slice(before);
        whole.extend_from_slice(digits.as_bytes());
        whole.extend_from_slice(after);
        whole.into()
    }
}

impl From<Vec<u8>> for Document {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, stamp_at: None }
    }
}

#[derive(Clone, Debug)]
pub enum Op {
    Put {
        key: Key,
        expect: Expect,
        value: Document,
    },
    /// Deleting what is absent changes nothing, if `expect` allows it.
    Delete {
        key: Key,
        expect: Expect,
    },
    /// Changes nothing; the whole transaction depends on it.
    Check {
        key: Key,
        expect: Expect,
    },
}

impl Op {
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key,
        }
    }

    pub(crate) fn expect(&self) -> Expect {
        match self {
            Self::Put { expect, .. } | Self::Delete { expect, .. } | Self::Check { expect, .. } => *expect,
        }
    }
}

/// Operations on different keys that happen together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub ops: Vec<Op>,
}

impl From<Vec<Op>> for Transaction {
    fn from(ops: Vec<Op>) -> Self {
        Self { ops }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{key} is not as operation {op} of the transaction expects")]
    Conflict { op: usize, key: Key, found: Option<Entry> },
    #[error("cannot write to the store")]
    Disk(#[source] std::sync::Arc<crate::disk::DiskError>),
    #[error("the store is closed")]
    Closed,
}
