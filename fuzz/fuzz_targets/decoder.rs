#![no_main]

#[path = "../../crates/kinds/tests/properties/bodies.rs"]
mod bodies;
#[path = "../../crates/kinds/tests/properties/targets.rs"]
mod targets;

/// A field of a message, whose tag takes one byte.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    let mut length = bytes.len();
    while length > 0x7f {
        field.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    field.push(length as u8);
    field.extend_from_slice(bytes);
    field
}

// The first byte says what the rest is a message of: what names no kind is refused by that alone.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [chosen, message @ ..] = bytes else { return };
    let kinds = portolan_kinds::all();
    let kind = &kinds[usize::from(*chosen) % kinds.len()];
    let what = [field(1, kind.api_version().as_bytes()), field(2, kind.kind.as_bytes())].concat();
    let envelope = [b"k8s\0".to_vec(), field(1, &what), field(2, message)].concat();
    targets::decoder(&envelope);
});
