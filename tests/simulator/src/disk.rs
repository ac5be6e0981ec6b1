//! A simulated disk that keeps pending, completed and durable bytes apart.

use std::collections::BTreeMap;

use crate::random::Random;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

/// Bytes of a device, zero where never written.
#[derive(Clone, Default)]
struct Image(BTreeMap<u64, Box<[u8; PAGE]>>);

impl Image {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        for (at, byte) in
            (offset..).zip(bytes.chunks_mut(SECTOR)).map(|(n, b)| (offset + (n - offset) * SECTOR as u64, b))
        {
            match self.0.get(&(at / PAGE as u64)) {
                Some(page) => {
                    let from = usize::try_from(at % PAGE as u64).unwrap();
                    byte.copy_from_slice(&page[from..from + byte.len()]);
                }
                None => byte.fill(0),
            }
        }
    }

    fn write_sector(&mut self, offset: u64, bytes: &[u8]) {
        let page = self.0.entry(offset / PAGE as u64).or_insert_with(|| Box::new([0; PAGE]));
        let from = usize::try_from(offset % PAGE as u64).unwrap();
        page[from..from + bytes.len()].copy_from_slice(bytes);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            self.write_sector(offset + (index * SECTOR) as u64, sector);
        }
    }
}

/// A disk.
#[derive(Default)]
pub struct SimDisk {
    /// What a read sees.
    volatile: Image,
    /// What survives a power loss for sure.
    durable: Image,
    /// Completed and not synced, in order of completion.
    unsynced: Vec<(u64, Vec<u8>)>,
}

impl SimDisk {
    /// Reads as a process on a running machine does.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.volatile.read(offset, bytes);
    }

    /// A write has completed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.volatile.write(offset, bytes);
        self.unsynced.push((offset, bytes.to_vec()));
    }

    /// A write that was under way when its process died: any subset of its sectors arrived.
    pub fn tear(&mut self, offset: u64, bytes: &[u8], random: &mut Random) {
        let percent = random.below(101);
        for (index, sector) in bytes.chunks(SECTOR).enumerate() {
            if random.percent(percent) {
                self.write(offset + (index * SECTOR) as u64, sector);
            }
        }
    }

    /// Completed writes so far: what a sync submitted now covers.
    pub fn completed(&self) -> usize {
        self.unsynced.len()
    }

    /// A sync that was submitted when [`Self::completed`] was `covered` has succeeded.
    pub fn sync(&mut self, covered: usize) {
        for (offset, bytes) in self.unsynced.drain(..covered.min(self.unsynced.len())) {
            self.durable.write(offset, &bytes);
        }
    }

    /// The power fails: of what is not synced an arbitrary subset of sectors stays.
    pub fn lose_power(&mut self, random: &mut Random) {
        let percent = if random.percent(30) { 0 } else { random.below(101) };
        for (offset, bytes) in self.unsynced.drain(..) {
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.percent(percent) {
                    self.durable.write_sector(offset + (index * SECTOR) as u64, sector);
                }
            }
        }
        self.volatile = self.durable.clone();
    }

    /// One bit flips, in what is stored and in what is read.
    pub fn rot(&mut self, offset: u64) {
        let mut sector = [0; SECTOR];
        let start = offset / SECTOR as u64 * SECTOR as u64;
        self.volatile.read(start, &mut sector);
        sector[usize::try_from(offset - start).unwrap()] ^= 0x10;
        self.volatile.write(start, &sector);
        self.durable.write(start, &sector);
    }
}
