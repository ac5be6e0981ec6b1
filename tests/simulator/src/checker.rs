//! What clients of one reign see: the history of each sector, which writes may still be read, and which may not. It
//! knows requests and answers only, and shares no code with what it checks.
//!
//! A sector is a register (linearizable, whatever its neighbours do). A read must return a write that had begun
//! before the read ended, and that no other write had surely replaced before the read began. Once a read has chosen
//! between two, the choice stands.

use std::ops::Range;

use crate::disk::SECTOR;
use crate::random::Random;
use crate::rule::broken;

/// What lies on a disk behind the end of its volume.
pub const STALE: u64 = (1 << 40) + 1;

/// When something ended that never did.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    id: u64,
    zero: bool,
    began: u64,
    /// When it was answered.
    ended: u64,
    /// From when on no read that begins may return it.
    gone: u64,
}

/// Per-sector histories of one reign.
pub struct Checker {
    sectors: Vec<Vec<Write>>,
}

/// The bytes that write `id` puts into `sector`.
pub fn stamp(id: u64, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0u8; SECTOR];
    if id != 0 {
        let mut random = Random::new(id << 20 | sector as u64);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.bits().to_le_bytes());
        }
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..16].copy_from_slice(&(sector as u64).to_le_bytes());
    }
    bytes
}

/// Which write these bytes of `sector` are of, 0 for zeros; `None` for a sector that is torn, or of another place.
pub fn sector_id(bytes: &[u8], sector: usize) -> Option<u64> {
    let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    (bytes == stamp(id, sector)).then_some(id)
}

impl Checker {
    /// A reign that begins with these writes in its sectors.
    pub fn new(image: &[u64]) -> Self {
        let first = |id: &u64| vec![Write { id: *id, zero: *id == 0, began: 0, ended: 0, gone: NEVER }];
        Self { sectors: image.iter().map(first).collect() }
    }

    /// The volume has grown by `range`: zeros.
    pub fn grown(&mut self, range: Range<usize>) {
        self.sectors[range].fill(vec![Write { id: 0, zero: true, began: 0, ended: 0, gone: NEVER }]);
    }

    /// Write `id` of `range` begins.
    pub fn begin(&mut self, range: Range<usize>, id: u64, zero: bool, now: u64) {
        for history in &mut self.sectors[range] {
            history.push(Write { id, zero, began: now, ended: NEVER, gone: NEVER });
        }
    }

    /// The write was answered: what ended before it began is gone, for reads that begin from now on. No read that is
    /// still open began before `horizon`.
    pub fn acknowledge(&mut self, range: Range<usize>, id: u64, now: u64, horizon: u64) {
        for sector in range {
            let history = &mut self.sectors[sector];
            let Some(write) = history.iter_mut().find(|write| write.id == id) else {
                broken(
                    "answered-then-gone",
                    format!(
                        "write {id} is answered; reads had shown that sector {sector} will never have it"
                    ),
                );
            };
            write.ended = now;
            let began = write.began;
            for other in history.iter_mut().filter(|other| other.ended <= began && other.id != id) {
                other.gone = other.gone.min(now);
            }
            history.retain(|write| write.gone > horizon);
        }
    }

    /// A read that began at `began` returned `bytes` for `sector` by `now`. Returns which write it showed, 0 if that
    /// is not certain.
    pub fn read(&mut self, sector: usize, bytes: &[u8], began: u64, now: u64) -> u64 {
        let history = &mut self.sectors[sector];
        let id = sector_id(bytes, sector);
        let shows = |write: &Write| match id {
            Some(0) => write.zero,
            Some(id) => write.id == id && !write.zero,
            None => false,
        };
        if !history.iter().any(|write| write.gone > began && shows(write)) {
            let may: Vec<&Write> = history.iter().filter(|write| write.gone > began).collect();
            let what = id.map_or("bytes that no write made".to_string(), |id| format!("write {id}"));
            broken("read-unexplained", format!("sector {sector} reads {what}; it may be one of {may:?}"));
        }
        // What had ended before the read began and was not seen is overwritten. Several zeroing writes cannot be told
        // apart: all of them stay.
        for write in history.iter_mut().filter(|write| write.ended <= began && !shows(write)) {
            write.gone = write.gone.min(now);
        }
        id.unwrap_or_default()
    }
}
