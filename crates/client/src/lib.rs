//! How every part reaches the Kubernetes API: one connection, caches kept fresh by watches, and the Service feed.
//!
//! Invariants: nothing is polled; a cache never goes backwards, and says it is synced only after a whole list; losing
//! the API server loses no cached object, and what went away meanwhile is noticed at the next list.
//!
//! Deliberately not here: anything about one kind of object, and any other way to learn about the cluster.

#![forbid(unsafe_code)]

mod backoff;
mod cache;
mod connect;
mod events;
mod feed;
mod pods;

pub use cache::{Cache, Change, Key};
pub use connect::{ConnectError, connect, connect_from};
pub use events::Recorder;
pub use feed::{Feed, FeedItem, Scope, service_feed};
pub use pods::{PodsSeen, pods_on};
