//! What is desired of Services -> the table `portolan`, in both families.
//!
//! | module | |
//! |---|---|
//! | `entries` | what an element can be, in words |
//! | `row` | a frontend's forwarding -> entries, pure |
//! | `sessions` | frontends that remember together -> a number for them, pure |
//! | `seats` | backends that are remembered -> a number for each, pure |
//! | `state` | what is realized; a change -> the smallest operations, pure |
//! | `reconcile` | the upper half: batches, refusals, what is found after a restart or a mishap |
//! | `maps` | the table's maps and sets, as data |
//! | `networks` | networks of sources, as keys of a hash table |
//! | `layout` | the table's chains and rules, as data |
//! | `expressions` | rules, spelled for one family |
//! | `wire` | entries <-> bytes |
//! | `kernel`, `writer` | the lower half: transactions |
//! | `clients` | how many clients are remembered |

mod clients;
pub mod entries;
mod expressions;
mod kernel;
mod layout;
mod maps;
mod networks;
mod reconcile;
mod row;
pub(crate) mod seats;
mod sessions;
pub mod state;
mod wire;
mod writer;

pub(crate) use kernel::{KernelRuleset, remove_everything};
pub(crate) use maps::{TABLE, nf_family};
pub(crate) use reconcile::Reconciler;
