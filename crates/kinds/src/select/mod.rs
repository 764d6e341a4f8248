//! `labelSelector` and `fieldSelector` -> filters over objects.
//!
//! Invariant: a selector is refused with 400 or understood; which object it takes depends on nothing else.
//! Deliberately not here: where the labels and fields of an object come from.

mod fields;
mod labels;

pub use fields::{FieldSelector, FieldTest};
pub use labels::{LabelSelector, Labels};
