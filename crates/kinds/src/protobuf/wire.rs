//! Protobuf messages, as they are written field by field.
//!
//! Invariant: what is written is in the order in which it was given. Source: the protobuf wire format.

/// A message being written.
#[derive(Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn key(&mut self, tag: u64, wire: u64) {
        self.number(tag << 3 | wire);
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    pub(crate) fn varint(&mut self, tag: u64, number: u64) {
        self.key(tag, 0);
        self.number(number);
    }

    pub(crate) fn float(&mut self, tag: u64, number: f64) {
        self.key(tag, 1);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    /// What announces a field of so many bytes, which are to follow.
    pub(crate) fn announce(&mut self, tag: u64, length: usize) {
        self.key(tag, 2);
        self.number(length as u64);
    }

    pub(crate) fn bytes(&mut self, tag: u64, bytes: &[u8]) {
        self.announce(tag, bytes.len());
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn message(&mut self, tag: u64, message: &Self) {
        self.bytes(tag, &message.0);
    }

    /// Nothing, if it is empty.
    pub(crate) fn text(&mut self, tag: u64, text: &str) {
        if !text.is_empty() {
            self.bytes(tag, text.as_bytes());
        }
    }
}
