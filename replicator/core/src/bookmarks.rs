//! Bookmarks: named points in a copy's past, each with the blocks that were written in place since. They say what an
//! incremental backup has to read. It knows nothing of journals or checkpoints (see `machine/bookmark.rs`), and does no
//! I/O: it makes and reads the table that is stored, drawn in `docs/formats.md`; the maps have images of their own.
//!
//! ```text
//! sequence:   bookmark ........... applied ....... head
//!             | in its map          | not in place yet: it will be noted when it is
//! ```
//!
//! The promise: a block that differs from what it held at the bookmark is in the map. More may be in it, never less.
//! Bits are set and never cleared; a bookmark ends by being deleted.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::bytes::{Reader, Short, Writer};
use crate::dirty::DirtyMap;
use crate::units::{Epoch, PAGE_BYTES, Position, Sequence};

/// Bookmarks that a copy may have.
pub const BOOKMARKS_MAX: usize = 4;
/// Bytes of the stored table.
pub const TABLE_BYTES: usize = PAGE_BYTES;
/// Bytes that a name may have.
pub const NAME_BYTES_MAX: usize = 32;
const MAGIC: u64 = u64::from_le_bytes(*b"HF-BKMRK");
const TABLE_VERSION: u16 = 1;
const ENTRIES_AT: usize = 64;
const ENTRY_BYTES: usize = 96;
const _: () = assert!(ENTRIES_AT + BOOKMARKS_MAX * ENTRY_BYTES <= TABLE_BYTES);

/// A bookmark's name: letters, digits, `-`, `_` and `.`, at most [`NAME_BYTES_MAX`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BookmarkName {
    bytes: [u8; NAME_BYTES_MAX],
    len: u8,
}

impl BookmarkName {
    /// The name, if it can be one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > NAME_BYTES_MAX || !text.bytes().all(is_sound) {
            return None;
        }
        let mut bytes = [0; NAME_BYTES_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Some(Self { bytes, len: u8::try_from(text.len()).expect("bounded") })
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).expect("a name is ASCII")
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let len = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        if bytes[len..].iter().any(|byte| *byte != 0) {
            return None;
        }
        Self::new(core::str::from_utf8(&bytes[..len]).ok()?)
    }
}

impl fmt::Display for BookmarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for BookmarkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a bookmark says that every block changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Everything {
    /// The process ended while blocks were written in place that are not in the log.
    Interrupted = 1,
    /// Its map was damaged on the journal device.
    Damaged = 2,
}

impl Everything {
    fn from_byte(byte: u8) -> Option<Option<Self>> {
        Some(match byte {
            0 => None,
            1 => Some(Self::Interrupted),
            2 => Some(Self::Damaged),
            _ => return None,
        })
    }
}

/// One bookmark.
#[derive(Clone, Debug)]
pub struct Bookmark {
    /// Its name.
    pub name: BookmarkName,
    /// What the disk surely held when it was made: nothing later counts as held.
    pub position: Position,
    /// When it was made, in milliseconds since 1970 by the clock here; 0 if not known.
    pub made_ms: u64,
    /// Why it says that every block changed, if it does.
    pub everything: Option<Everything>,
    /// Entries after this are noted. It is the position, or lower once the log began anew below it.
    after: Sequence,
    map: DirtyMap,
}

impl Bookmark {
    /// The blocks that changed.
    #[must_use]
    pub fn map(&self) -> &DirtyMap {
        &self.map
    }

    fn count_everything(&mut self, why: Everything) {
        self.map.set_all();
        self.everything = Some(why);
    }
}

/// What the stored table says of one bookmark, and how long the image of its map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    name: BookmarkName,
    position: Position,
    after: Sequence,
    made_ms: u64,
    everything: Option<Everything>,
    image_bytes: u64,
}

/// The stored table, before the images of its maps are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Reads the table that the write `generation` made; `None` if these bytes are none, or another one.
    #[must_use]
    pub fn decode(bytes: &[u8], generation: u64) -> Option<Self> {
        let mut reader = Reader::new(bytes.get(..TABLE_BYTES)?);
        let header = read_header(&mut reader).ok()?;
        let is_it = header == (MAGIC, crc32fast::hash(&bytes[12..TABLE_BYTES]), TABLE_VERSION, generation);
        let count = usize::from(u16::from_le_bytes([bytes[14], bytes[15]]));
        if !is_it || count > BOOKMARKS_MAX {
            return None;
        }
        let rows = bytes[ENTRIES_AT..].chunks_exact(ENTRY_BYTES).take(count).map(decode_row);
        Some(Self { rows: rows.collect::<Option<_>>()? })
    }

    /// Bytes of the image of each map; 0 where nothing changed, and there is none.
    pub fn image_bytes(&self) -> impl Iterator<Item = u64> + '_ {
        self.rows.iter().map(|row| row.image_bytes)
    }
}

fn read_header(reader: &mut Reader<'_>) -> Result<(u64, u32, u16, u64), Short> {
    let (magic, crc, version) = (reader.u64()?, reader.u32()?, reader.u16()?);
    reader.skip(2)?;
    Ok((magic, crc, version, reader.u64()?))
}

fn decode_row(bytes: &[u8]) -> Option<Row> {
    let name = BookmarkName::decode(&bytes[..NAME_BYTES_MAX])?;
    let mut reader = Reader::new(&bytes[NAME_BYTES_MAX..]);
    let mut field = || reader.u64().ok();
    let position = Position { epoch: Epoch(field()?), sequence: Sequence(field()?) };
    let (after, made_ms, image_bytes) = (Sequence(field()?), field()?, field()?);
    let everything = Everything::from_byte(reader.u8().ok()?)?;
    Some(Row { name, position, after, made_ms, everything, image_bytes })
}

/// The bookmarks of a copy.
#[derive(Clone, Debug, Default)]
pub struct Bookmarks {
    list: Vec<Bookmark>,
    /// Something differs from what is stored: bits, or more than that.
    pub changed: bool,
}

impl Bookmarks {
    /// As they were stored. `images` are the images of the maps in order, `None` where one could not be read;
    /// `is_interrupted` says that blocks may have been written which no stored map knows of.
    #[must_use]
    pub fn restore(
        table: &Table,
        images: &[Option<Vec<u8>>],
        generation: u64,
        is_interrupted: bool,
        empty: &DirtyMap,
    ) -> Self {
        let restored = table.rows.iter().zip(images).map(|(row, image)| {
            let Row { name, position, after, made_ms, everything, .. } = *row;
            let map = empty.clone();
            let mut bookmark = Bookmark { name, position, made_ms, everything, after, map };
            let is_sound = match image {
                Some(image) => image.is_empty() || bookmark.map.decode(image, generation).is_ok(),
                None => false,
            };
            if !is_sound {
                bookmark.count_everything(Everything::Damaged);
            } else if is_interrupted && bookmark.everything.is_none() {
                bookmark.count_everything(Everything::Interrupted);
            }
            bookmark
        });
        Self { list: restored.collect(), changed: is_interrupted }
    }

    /// All of them, the oldest first.
    #[must_use]
    pub fn list(&self) -> &[Bookmark] {
        &self.list
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The one of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Bookmark> {
        self.list.iter().find(|bookmark| bookmark.name.as_str() == name)
    }

    /// Makes one at `position`: everything up to there is in place, and what comes later is noted.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn add(
        &mut self,
        name: BookmarkName,
        position: Position,
        made_ms: u64,
        empty: DirtyMap,
    ) -> Result<(), &'static str> {
        if self.find(name.as_str()).is_some() {
            return Err("there is a bookmark of that name: delete it first, or take another name");
        }
        if self.list.len() == BOOKMARKS_MAX {
            return Err(
                "there are as many bookmarks as a copy can have (4): delete one that no backup needs",
            );
        }
        let (everything, after) = (None, position.sequence);
        self.list.push(Bookmark { name, position, made_ms, everything, after, map: empty });
        self.changed = true;
        Ok(())
    }

    /// Ends one; says whether there was one of that name.
    pub fn delete(&mut self, name: &str) -> bool {
        let before = self.list.len();
        self.list.retain(|bookmark| bookmark.name.as_str() != name);
        let is_gone = self.list.len() < before;
        self.changed |= is_gone;
        is_gone
    }

    /// An entry of this range is in place.
    pub fn note(&mut self, sequence: Sequence, offset: u64, length: u64) {
        for bookmark in self.list.iter_mut().filter(|bookmark| sequence > bookmark.after) {
            bookmark.map.set_bytes(offset, length);
            self.changed = true;
        }
    }

    /// This range is about to be written in place, and no entry of the log says so.
    pub fn note_outside(&mut self, offset: u64, length: u64) {
        for bookmark in &mut self.list {
            bookmark.map.set_bytes(offset, length);
            self.changed = true;
        }
    }

    /// The volume has `volume_bytes` from now on, no fewer than before.
    pub fn grow(&mut self, volume_bytes: u64) {
        for bookmark in &mut self.list {
            bookmark.map.grow(volume_bytes);
            self.changed = true;
        }
    }

    /// The log begins anew behind `sequence`: numbers that it had given come again.
    pub fn restart(&mut self, sequence: Sequence) {
        for bookmark in &mut self.list {
            bookmark.after = bookmark.after.min(sequence);
            self.changed = true;
        }
    }

    /// The table and the images of the maps, an empty one where nothing changed, for the write `generation`.
    #[must_use]
    pub fn encode(&self, generation: u64) -> (Vec<u8>, Vec<Vec<u8>>) {
        let image = |bookmark: &Bookmark| {
            if bookmark.map.is_empty() { Vec::new() } else { bookmark.map.encode(generation) }
        };
        let images: Vec<Vec<u8>> = self.list.iter().map(image).collect();
        let mut bytes = alloc::vec![0; TABLE_BYTES];
        let count = u16::try_from(self.list.len()).expect("bounded");
        Writer::new(&mut bytes).u64(MAGIC).u32(0).u16(TABLE_VERSION).u16(count).u64(generation);
        let rows = bytes[ENTRIES_AT..].chunks_exact_mut(ENTRY_BYTES);
        for ((bookmark, image), row) in self.list.iter().zip(&images).zip(rows) {
            let Bookmark { name, position, made_ms, everything, after, .. } = bookmark;
            row[..NAME_BYTES_MAX].copy_from_slice(&name.bytes);
            let mut writer = Writer::new(&mut row[NAME_BYTES_MAX..]);
            writer.u64(position.epoch.0).u64(position.sequence.0).u64(after.0).u64(*made_ms);
            writer.u64(image.len() as u64).u8(everything.map_or(0, |why| why as u8));
        }
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        (bytes, images)
    }
}

/// A bookmark as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BookmarkStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub position: Position,
    /// When it was made, in milliseconds since 1970 by the clock here; 0 if not known.
    pub made_ms: u64,
    /// Blocks of 4 KiB written in place since.
    pub changed_blocks: u64,
    /// Why that is all of them, if that is not what was written.
    pub everything: Option<Everything>,
}

impl From<&Bookmark> for BookmarkStatus {
    fn from(bookmark: &Bookmark) -> Self {
        Self {
            name: bookmark.name.as_str().into(),
            position: bookmark.position,
            made_ms: bookmark.made_ms,
            changed_blocks: bookmark.map.dirty_blocks(),
            everything: bookmark.everything,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn empty() -> DirtyMap {
        DirtyMap::new(1 << 20, 4096)
    }

    fn at(sequence: u64) -> Position {
        Position { epoch: Epoch(3), sequence: Sequence(sequence) }
    }

    fn with(names: &[&str]) -> Bookmarks {
        let mut bookmarks = Bookmarks::default();
        for name in names {
            bookmarks.add(BookmarkName::new(name).unwrap(), at(10), 7, empty()).unwrap();
        }
        bookmarks
    }

    fn restored(bookmarks: &Bookmarks, is_interrupted: bool) -> Bookmarks {
        let (table, images) = bookmarks.encode(5);
        let table = Table::decode(&table, 5).unwrap();
        let lengths: Vec<u64> = images.iter().map(|image| image.len() as u64).collect();
        assert_eq!(table.image_bytes().collect::<Vec<_>>(), lengths);
        let images: Vec<_> = images.into_iter().map(Some).collect();
        Bookmarks::restore(&table, &images, 5, is_interrupted, &empty())
    }

    #[test]
    fn what_is_in_place_since_is_in_the_map_and_what_was_before_is_not() {
        let mut bookmarks = with(&["monday"]);
        bookmarks.note(Sequence(10), 0, 4096);
        bookmarks.note(Sequence(11), 8192, 1);
        bookmarks.note_outside(65 * 4096, 4096);
        let map = bookmarks.find("monday").unwrap().map();
        assert_eq!((map.word(0), map.word(1)), (0b100, 0b10));
        let again = restored(&bookmarks, false);
        let bookmark = again.find("monday").unwrap();
        assert_eq!((bookmark.map().word(0), bookmark.map().word(1)), (0b100, 0b10));
        assert_eq!((bookmark.position, bookmark.made_ms, bookmark.everything), (at(10), 7, None));
        assert!(!again.changed);
    }

    #[test]
    fn numbers_that_come_again_in_a_log_that_began_anew_are_noted() {
        let mut bookmarks = with(&["a"]);
        bookmarks.restart(Sequence(4));
        let mut bookmarks = restored(&bookmarks, false);
        bookmarks.note(Sequence(4), 0, 4096);
        bookmarks.note(Sequence(5), 4096, 4096);
        assert_eq!(bookmarks.find("a").unwrap().map().word(0), 0b10);
        assert_eq!(bookmarks.find("a").unwrap().position, at(10));
    }

    #[test]
    fn what_was_interrupted_or_damaged_counts_as_changed_in_full() {
        let again = restored(&with(&["a"]), true);
        let bookmark = again.find("a").unwrap();
        assert_eq!(
            (bookmark.everything, bookmark.map().dirty_blocks()),
            (Some(Everything::Interrupted), 256)
        );
        assert!(again.changed);
        let (table, _) = with(&["a", "b"]).encode(5);
        let table = Table::decode(&table, 5).unwrap();
        let images = [None, Some(Vec::new())];
        let again = Bookmarks::restore(&table, &images, 5, false, &empty());
        assert_eq!(again.list()[0].everything, Some(Everything::Damaged));
        assert_eq!(again.list()[0].map().dirty_blocks(), 256);
        assert!(again.list()[1].map().is_empty());
    }

    #[test]
    fn there_are_four_of_different_names() {
        let mut bookmarks = with(&["a", "b", "c"]);
        let name = |text| BookmarkName::new(text).unwrap();
        assert!(bookmarks.add(name("b"), at(12), 0, empty()).is_err());
        bookmarks.add(name("d"), at(12), 0, empty()).unwrap();
        assert!(bookmarks.add(name("e"), at(12), 0, empty()).is_err());
        assert!(bookmarks.delete("a") && !bookmarks.delete("a"));
        bookmarks.add(name("e"), at(12), 0, empty()).unwrap();
        for bad in ["", "a b", "a:b", "\u{e4}", "123456789012345678901234567890123"] {
            assert!(BookmarkName::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn another_write_s_table_is_not_taken() {
        let (mut bytes, _) = with(&["a"]).encode(5);
        assert!(Table::decode(&bytes, 4).is_none());
        bytes[70] ^= 1;
        assert!(Table::decode(&bytes, 5).is_none());
        assert!(Table::decode(&bytes[..4095], 5).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_table_or_none(mut bytes in prop::collection::vec(any::<u8>(), 4096..4097), count in 0u16..6) {
            Writer::new(&mut bytes).u64(MAGIC).u32(0).u16(TABLE_VERSION).u16(count).u64(5);
            let crc = crc32fast::hash(&bytes[12..]);
            bytes[8..12].copy_from_slice(&crc.to_le_bytes());
            if let Some(table) = Table::decode(&bytes, 5) {
                prop_assert!(table.rows.len() <= BOOKMARKS_MAX);
            }
        }
    }
}
