//! The history of each sector, apart from the code under test: which writes may still be read, and which may not.

use crate::random::Random;

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// No read takes longer than this, in nanoseconds.
const FORGET: u64 = 600_000_000_000;

/// When something ended that never did.
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Write {
    id: u64,
    began: u64,
    /// When it was answered, or when its session was over.
    ended: u64,
    /// From when on no read that begins may return it.
    gone: u64,
}

#[derive(Clone, Debug)]
struct SectorHistory {
    /// What a read may return.
    live: Vec<Write>,
    /// What a read may return after a loss of all volatile state.
    safe: Vec<Write>,
}

/// Per-sector histories of one volume.
pub struct Checker {
    sectors: Vec<SectorHistory>,
    next_id: u64,
    /// Answered writes that no answered flush covers yet: (sectors, id, began, ended).
    unflushed: Vec<(std::ops::Range<usize>, Write)>,
}

/// The bytes that write `id` puts into `sector`.
pub fn stamp(id: u64, sector: usize) -> [u8; SECTOR] {
    let mut bytes = [0u8; SECTOR];
    if id != 0 {
        let mut random = Random::new(id << 20 | sector as u64);
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.next().to_le_bytes());
        }
        bytes[..8].copy_from_slice(&id.to_le_bytes());
        bytes[8..16].copy_from_slice(&(sector as u64).to_le_bytes());
    }
    bytes
}

impl Checker {
    /// A volume of zeros.
    pub fn new(sectors: usize) -> Self {
        let zero = Write { id: 0, began: 0, ended: 0, gone: NEVER };
        let history = SectorHistory { live: vec![zero], safe: vec![zero] };
        Self { sectors: vec![history; sectors], next_id: 1, unflushed: Vec::new() }
    }

    /// A write (or a zeroing, if `zero`) of `range` begins; returns its id.
    pub fn begin(&mut self, range: std::ops::Range<usize>, now: u64) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        for sector in range {
            let write = Write { id, began: now, ended: NEVER, gone: NEVER };
            self.sectors[sector].live.push(write);
            self.sectors[sector].safe.push(write);
        }
        id
    }

    /// The write was answered: what ended before it began is gone.
    pub fn acknowledge(&mut self, range: std::ops::Range<usize>, id: u64, now: u64) {
        let mut began = 0;
        for sector in range.clone() {
            let history = &mut self.sectors[sector];
            let Some(write) = history.live.iter_mut().find(|write| write.id == id) else {
                panic!(
                    "write {id} was answered, but a read had shown that it will never be seen in sector {sector}"
                );
            };
            write.ended = now;
            began = write.began;
            for other in history.live.iter_mut().filter(|other| other.ended <= began && other.id != id) {
                other.gone = other.gone.min(now);
            }
            history.safe.iter_mut().filter(|write| write.id == id).for_each(|write| write.ended = now);
        }
        self.unflushed.push((range, Write { id, began, ended: now, gone: NEVER }));
    }

    /// A flush that began at `began` was answered: writes answered before it survive anything.
    pub fn flushed(&mut self, began: u64) {
        let (covered, rest) =
            std::mem::take(&mut self.unflushed).into_iter().partition(|(_, w)| w.ended < began);
        self.unflushed = rest;
        let covered: Vec<(std::ops::Range<usize>, Write)> = covered;
        for (range, write) in covered {
            for sector in range {
                self.sectors[sector].safe.retain(|other| other.ended > write.began || other.id == write.id);
            }
        }
    }

    /// Sessions of clients are over: what was not answered has taken effect by now, or never will.
    pub fn sessions_over(&mut self, now: u64) {
        for history in &mut self.sectors {
            for write in history.live.iter_mut().chain(&mut history.safe) {
                write.ended = write.ended.min(now);
            }
        }
    }

    /// All volatile state may be lost: what was not flushed may go either way.
    pub fn volatile_lost(&mut self, now: u64) {
        self.unflushed.clear();
        for history in &mut self.sectors {
            for write in &mut history.safe {
                write.ended = write.ended.min(now);
            }
            history.live = history.safe.clone();
        }
    }

    /// A read that began at `began` returned `bytes` for `sector` by `now`; zeros may be of a zeroing write.
    pub fn read(&mut self, sector: usize, bytes: &[u8], zeroes: &[u64], began: u64, now: u64, context: &str) {
        let history = &mut self.sectors[sector];
        let possible = |write: &&Write| write.gone > began;
        let value = |write: &Write| stamp(if zeroes.contains(&write.id) { 0 } else { write.id }, sector);
        let seen: Vec<u64> = history
            .live
            .iter()
            .filter(possible)
            .filter(|write| bytes == value(write))
            .map(|write| write.id)
            .collect();
        if seen.is_empty() {
            let id = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let at = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            let may: Vec<&Write> = history.live.iter().filter(possible).collect();
            panic!(
                "{context}: sector {sector} reads a value of write {id} (sector {at}); it may only be one of {may:?}"
            );
        }
        // What had ended before the read began and was not seen is overwritten, or never took effect. Several
        // zeroing writes cannot be told apart: all of them stay.
        for write in history.live.iter_mut().filter(|write| write.ended <= began && !seen.contains(&write.id))
        {
            write.gone = write.gone.min(now);
        }
        history.live.retain(|write| write.gone > now.saturating_sub(FORGET));
    }
}
