//! Big-endian bytes: a bounded reader, and the header that has not arrived whole. Knows no message.

use alloc::vec::Vec;

/// Reads fields off the front of option data. Every step answers `None` when the bytes run out.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// A string with its length of 32 bits before it.
    pub(crate) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }

    /// What has not been read.
    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }
}

/// The first bytes of a header, kept until the rest arrives, so that the driver never has to.
pub(crate) struct Held {
    bytes: [u8; HELD_BYTES_MAX],
    count: usize,
}

/// The longest unit that is held: an extended request with the payload of a block status.
pub(crate) const HELD_BYTES_MAX: usize = 44;

impl Held {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; HELD_BYTES_MAX], count: 0 }
    }

    /// Takes from the front of `input` until `wanted` bytes are held, and says whether they are.
    pub(crate) fn fill(&mut self, input: &mut &[u8], wanted: usize) -> bool {
        assert!(wanted <= HELD_BYTES_MAX);
        let (taken, rest) = input.split_at(input.len().min(wanted.saturating_sub(self.count)));
        self.bytes[self.count..self.count + taken.len()].copy_from_slice(taken);
        self.count += taken.len();
        *input = rest;
        self.count >= wanted
    }

    /// What is held.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.count]
    }

    pub(crate) const fn clear(&mut self) {
        self.count = 0;
    }
}

/// The field at a fixed place of a header whose length has been checked.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// Appends the parts of a message one after another.
pub(crate) fn put(output: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        output.extend_from_slice(part);
    }
}

/// The longest prefix of a text that fits and does not cut a character.
pub(crate) fn clip(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1; // 0 is a boundary
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clip_keeps_whole_characters() {
        assert_eq!(clip("grün", 3), "gr");
        assert_eq!(clip("grün", 4), "grü");
        assert_eq!(clip("grün", 99), "grün");
        assert_eq!(clip("ü", 1), "");
    }

    #[test]
    fn a_reader_ends_with_its_bytes() {
        let mut reader = Reader::new(&[0, 0, 0, 2, b'a', b'b', 7]);
        assert_eq!(reader.string(), Some(&b"ab"[..]));
        assert_eq!(reader.u16(), None);
        assert!(!reader.is_empty());
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 1]).string(), None);
    }

    #[test]
    fn held_bytes_survive_any_slicing() {
        let mut held = Held::new();
        let mut input = &[1u8, 2][..];
        assert!(!held.fill(&mut input, 4));
        assert!(input.is_empty());
        let mut input = &[3u8, 4, 5][..];
        assert!(held.fill(&mut input, 4));
        assert_eq!((held.bytes(), input), (&[1u8, 2, 3, 4][..], &[5u8][..]));
        assert!(held.fill(&mut input, 4), "nothing more is taken");
        assert_eq!(input, [5]);
    }
}
