#![no_main]

#[path = "../../crates/kinds/tests/properties/bodies.rs"]
mod bodies;
#[path = "../../crates/kinds/tests/properties/targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // What does not begin so is refused by that alone.
    targets::decoder(&[&b"k8s\0"[..], bytes].concat());
});
