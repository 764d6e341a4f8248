//! What a part of Portolan counts -> the text that Prometheus scrapes.
//!
//! [`Page`] and [`Histogram`] are pure; [`write_process`] reads what the kernel says of this process. Deliberately not here:
//! what is counted, and under which names. That is for each part to know.

#![forbid(unsafe_code)]

mod page;
mod process;

pub use page::{Histogram, Labels, Page};
pub use process::write_process;

/// The type that a [`Page`] is sent as.
pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
