//! Whatever a client sends, every kind handles it. The inputs are the same in each run; `PROPTEST_CASES=n` draws n
//! others, and `fuzz/` runs the same functions for longer.

#![allow(clippy::unwrap_used, reason = "a test")]

mod bodies;
mod targets;

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs `target` on `usual` inputs, unless the environment says how many. Of these, one in `rare` must come to
/// something.
fn run(usual: u32, rare: u32, input: impl Strategy<Value = Vec<u8>>, target: fn(&[u8]) -> bool) {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases: u32 = asked.unwrap_or(usual);
    let worth = Cell::new(0);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    // The same ones every time, unless somebody is looking for new ones.
    let mut runner = match asked {
        Some(_) => TestRunner::new(config),
        None => TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha)),
    };
    runner
        .run(&input, |bytes| {
            worth.set(worth.get() + u32::from(target(&bytes)));
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    assert!(worth.get() >= cases / rare, "only {} of {cases} inputs came to anything", worth.get());
}

fn choices() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..800)
}

#[test]
fn every_body_is_handled() {
    run(4000, 6, choices(), targets::bodies);
}

#[test]
fn every_object_is_the_same_after_protobuf() {
    run(4000, 6, choices(), targets::encoder);
}

#[test]
fn every_patch_is_carried_out_or_refused() {
    run(2000, 6, choices(), targets::patches);
}

#[test]
fn every_configuration_is_applied_or_refused() {
    run(3000, 12, choices(), targets::applies);
}

#[test]
fn every_selector_is_understood_or_refused() {
    run(5000, 4, choices(), targets::selectors);
}

/// What kubectl 1.32 sends for a Service.
const SERVICE: &[u8] =
    b"k8s\0\n\x0d\n\x02v1\x12\x07Service\x12j\n\x1f\n\x03web\x12\0\x1a\0\"\0*\x002\x008\0B\0Z\n\n\x03app\x12\
    \x03web\x12C\n\x1d\n\x0780-8080\x12\x03TCP\x18P\"\x07\x08\0\x10\x90?\x1a\0(\x80\xeb\x01\x12\n\n\x03\
    app\x12\x03web\x1a\0\"\x08NodePort:\0B\0R\0Z\0`\0h\0\x1a\x02\n\0\x1a\0\"\0";

#[test]
fn every_protobuf_body_is_decoded_or_refused() {
    assert!(targets::decoder(SERVICE));
    // Damage of any kind: some bytes are others, a part is missing or stands there twice.
    let edit = (any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), 0..4_u8);
    let damaged = proptest::collection::vec(edit, 0..6).prop_map(|edits| {
        let mut body = SERVICE.to_vec();
        for (at, length, byte, how) in edits {
            let at = at.index(body.len());
            let end = at + length.index(body.len() - at);
            match how {
                0 => body[at] = byte,
                1 => body[at] = body[at].wrapping_add(byte & 3).wrapping_sub(1),
                2 if end - at < body.len() => drop(body.drain(at..end)),
                _ => body.splice(end..end, body[at..end].to_vec()).for_each(drop),
            }
            body.truncate(4096);
        }
        body
    });
    run(5000, 20, damaged, targets::decoder);
}
