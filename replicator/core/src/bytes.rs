//! Little-endian reading and writing of fixed-size records. Readers are total: a read past the end is an error,
//! never a panic.

/// Reads fields one after the other.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
}

/// The record ended before the field did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short;

macro_rules! read {
    ($name:ident, $type:ty) => {
        /// The next field, little-endian.
        pub fn $name(&mut self) -> Result<$type, Short> {
            let (head, rest) = self.bytes.split_first_chunk().ok_or(Short)?;
            self.bytes = rest;
            Ok(<$type>::from_le_bytes(*head))
        }
    };
}

impl<'a> Reader<'a> {
    /// A reader of `bytes` from their start.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    read!(u8, u8);
    read!(u16, u16);
    read!(u32, u32);
    read!(u64, u64);
    read!(u128, u128);

    /// The next `N` bytes as they are.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(Short)?;
        self.bytes = rest;
        Ok(*head)
    }

    /// The next `count` bytes, whatever they are.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (head, rest) = self.bytes.split_at_checked(count).ok_or(Short)?;
        self.bytes = rest;
        Ok(head)
    }

    /// Passes over `count` bytes.
    pub fn skip(&mut self, count: usize) -> Result<(), Short> {
        self.bytes = self.bytes.get(count..).ok_or(Short)?;
        Ok(())
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes fields one after the other into a buffer that is known to be large enough.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

macro_rules! write {
    ($name:ident, $type:ty) => {
        /// Appends the field, little-endian.
        pub fn $name(&mut self, value: $type) -> &mut Self {
            self.raw(&value.to_le_bytes())
        }
    };
}

impl<'a> Writer<'a> {
    /// A writer into `bytes` from their start.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    write!(u8, u8);
    write!(u16, u16);
    write!(u32, u32);
    write!(u64, u64);
    write!(u128, u128);

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
        self
    }

    /// Appends `count` zero bytes.
    pub fn zeros(&mut self, count: usize) -> &mut Self {
        self.bytes[self.at..self.at + count].fill(0);
        self.at += count;
        self
    }

    /// Bytes written.
    #[must_use]
    pub fn written(&self) -> usize {
        self.at
    }
}
