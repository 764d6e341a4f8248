//! A durable, revisioned key-value store with watch: what the API server keeps its objects in.
//!
//! Invariants:
//! - a write is answered, and visible to readers and watches, only once it is on disk;
//! - every change has a revision of its own, above 0, greater than every revision anyone has ever been shown;
//! - the operations of one [`Transaction`] happen together or not at all;
//! - a watch sees each change to its keys once, in order, or is told that it fell behind ([`Expired`]);
//! - a slow watch costs the others nothing: it reads the shared, bounded history at its own pace.
//!
//! All objects are in memory too, as the very bytes that are on disk, so that reading never waits for the disk. Writes
//! go to a log first (`log`), which a flush of a few pages makes durable; what it has gathered goes to a database later
//! (`disk`), beside the writer (`keeper`).
//! Deliberately not here: what the values mean, and history across a restart (a watch from before it is `Expired`).

#![forbid(unsafe_code)]

mod disk;
#[cfg(test)]
mod failing_disk;
mod history;
mod keeper;
mod key;
mod log;
mod moving;
#[cfg(test)]
mod power_cut;
mod store;
mod transaction;
mod watch;
mod writer;

pub use history::{Event, Expired};
pub use key::{Key, Prefix};
pub use store::{Entry, Limits, List, OpenError, Page, Revision, Store};
pub use transaction::{Document, Expect, Op, Transaction, WriteError};
pub use watch::{Batch, Watch};
