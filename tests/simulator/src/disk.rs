//! A simulated disk that keeps pending, completed and durable bytes apart, and can be made to fail or to lie.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

const PAGE: usize = 4096;
/// Bytes that are never torn.
pub const SECTOR: usize = 512;

/// Bytes of a device, zero where never written.
#[derive(Clone, Default)]
struct Image(BTreeMap<u64, Box<[u8; PAGE]>>);

impl Image {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let from = usize::try_from(at % PAGE as u64).unwrap();
            let len = (PAGE - from).min(bytes.len() - done);
            let part = &mut bytes[done..done + len];
            match self.0.get(&(at / PAGE as u64)) {
                Some(page) => part.copy_from_slice(&page[from..from + len]),
                None => part.fill(0),
            }
            done += len;
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let from = usize::try_from(at % PAGE as u64).unwrap();
            let len = (PAGE - from).min(bytes.len() - done);
            let page = self.0.entry(at / PAGE as u64).or_insert_with(|| Box::new([0; PAGE]));
            page[from..from + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
    }
}

fn pages(offset: u64, len: usize) -> std::ops::Range<u64> {
    offset / PAGE as u64..(offset + len as u64).div_ceil(PAGE as u64)
}

/// A disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    /// What a read sees.
    volatile: Image,
    /// What survives a power loss for sure.
    durable: Image,
    /// Completed and not synced, in order of completion.
    unsynced: Vec<(u64, Vec<u8>)>,
    /// Sectors that cannot be read until they are written again.
    unreadable: BTreeSet<u64>,
    /// Pages that a failed sync left as they may be: clean for the kernel, and perhaps not stored.
    forgotten: BTreeSet<u64>,
    /// Syncs succeed and do nothing.
    pub lies: bool,
}

impl SimDisk {
    /// Reads as a process on a running machine does.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.volatile.read(offset, bytes);
    }

    /// Reads what a power loss now would surely leave.
    pub fn read_durable(&self, offset: u64, bytes: &mut [u8]) {
        self.durable.read(offset, bytes);
    }

    /// Whether a read of this range meets a sector that cannot be read.
    pub fn is_readable(&self, offset: u64, len: usize) -> bool {
        let (first, end) = (offset / SECTOR as u64, (offset + len as u64).div_ceil(SECTOR as u64));
        self.unreadable.range(first..end).next().is_none()
    }

    /// Makes the sector at `offset` unreadable.
    pub fn spoil(&mut self, offset: u64) {
        self.unreadable.insert(offset / SECTOR as u64);
    }

    /// A write has completed.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.volatile.write(offset, bytes);
        self.unsynced.push((offset, bytes.to_vec()));
        if !self.unreadable.is_empty() {
            let end = (offset + bytes.len() as u64).div_ceil(SECTOR as u64);
            self.unreadable.retain(|sector| !(offset / SECTOR as u64..end).contains(sector));
        }
    }

    /// A write that failed, or was under way when its process died: any subset of its sectors arrived.
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

    /// A sync that was submitted when [`Self::completed`] was `covered` has succeeded. Returns which ranges became
    /// durable; as far as a reader can know, for a disk that lies.
    pub fn sync(&mut self, covered: usize) -> Vec<(u64, usize)> {
        let covered = covered.min(self.unsynced.len());
        let ranges = self.unsynced[..covered].iter().map(|(offset, bytes)| (*offset, bytes.len())).collect();
        if !self.lies {
            for (offset, bytes) in self.unsynced.drain(..covered) {
                self.durable.write(offset, &bytes);
            }
        }
        ranges
    }

    /// A sync has failed: the kernel calls the pages clean and forgets which of them were stored.
    pub fn fail_sync(&mut self, covered: usize, random: &mut Random) {
        let percent = random.below(101);
        for (offset, bytes) in self.unsynced.drain(..covered.min(self.unsynced.len())) {
            self.forgotten.extend(pages(offset, bytes.len()));
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.percent(percent) {
                    self.durable.write(offset + (index * SECTOR) as u64, sector);
                }
            }
        }
    }

    /// The power fails: of what is not synced an arbitrary subset of sectors stays.
    pub fn lose_power(&mut self, random: &mut Random) {
        let percent = if random.percent(30) { 0 } else { random.below(101) };
        let mut touched = std::mem::take(&mut self.forgotten);
        touched.extend(self.unsynced.iter().flat_map(|(offset, bytes)| pages(*offset, bytes.len())));
        for (offset, bytes) in self.unsynced.drain(..) {
            for (index, sector) in bytes.chunks(SECTOR).enumerate() {
                if random.percent(percent) {
                    self.durable.write(offset + (index * SECTOR) as u64, sector);
                }
            }
        }
        for page in touched {
            match self.durable.0.get(&page) {
                Some(bytes) => drop(self.volatile.0.insert(page, bytes.clone())),
                None => drop(self.volatile.0.remove(&page)),
            }
        }
    }

    /// `len` bytes that were written at `from` went to `to` instead.
    pub fn misdirect(&mut self, from: u64, to: u64, len: usize) {
        let mut bytes = vec![0; len];
        self.volatile.read(from, &mut bytes);
        let nothing = vec![0; len];
        for image in [&mut self.volatile, &mut self.durable] {
            image.write(from, &nothing);
            image.write(to, &bytes);
        }
    }

    /// One bit flips, in what is stored and in what is read.
    pub fn rot(&mut self, offset: u64) {
        let mut byte = [0];
        self.volatile.read(offset, &mut byte);
        byte[0] ^= 0x10;
        self.volatile.write(offset, &byte);
        self.durable.write(offset, &byte);
    }
}
