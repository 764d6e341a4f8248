//! The HTTP surface: each input is a request to a server that lives as long as the fuzzer.
#![no_main]

#[path = "../../crates/apiserver/tests/api/harness.rs"]
mod harness;
#[path = "../../crates/apiserver/tests/api/surface/mod.rs"]
mod surface;

use std::sync::{LazyLock, Mutex};

static SESSION: LazyLock<Mutex<(tokio::runtime::Runtime, surface::Session)>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let session = runtime.block_on(surface::Session::start());
    Mutex::new((runtime, session))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let (runtime, session) = &mut *SESSION.lock().unwrap();
    runtime.block_on(session.one(bytes));
});
