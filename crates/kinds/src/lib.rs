//! Everything the API server knows about each kind of object: JSON values in; checked, defaulted, validated, printed
//! and patched values out.
//!
//! Invariants: pure (time and randomness come in as arguments), never panics on any input, and equal input gives
//! equal output. One table of fields (`schema`) serves decoding, strategic merge, server-side apply and OpenAPI alike.
//!
//! Deliberately not here: storage, HTTP, allocation of addresses and ports, and who may do what.

#![forbid(unsafe_code)]

pub mod apply;
mod catalog;
mod cel;
mod complete;
pub mod custom;
mod decode;
mod defaults;
mod event;
mod fields;
mod kind;
mod look;
pub mod names;
pub mod openapi;
pub mod patch;
mod prepare;
pub mod protobuf;
mod qos;
mod quantity;
mod question;
mod schema;
pub mod select;
mod service;
mod status;
mod table;
mod url;
mod validate;
mod version;
mod warn;

pub use catalog::{Catalog, all, find};
pub use cel::parse_duration;
pub use decode::{check, json_name};
pub use event::convert_event;
pub use fields::UnsupportedField;
pub use kind::{Column, FieldValidation, Kind, KindRef, Scale, Subresource};
pub use question::{QUESTIONS, Question};
pub use status::{FieldError, FieldErrorKind, Status};
pub use version::Version;
