//! One body for both ways of doing I/O: whatever a machine asks for is done, and told once.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use holdfast_simulator::disk::SimDisk;
use holdfast_simulator::random;
use replicator_core::disk::superblock;

use super::*;
use crate::device::Device;
use crate::error::Purpose;
use crate::options::{DirectIo, RingOptions};
use crate::ring::Memory;

const BYTES: u64 = 4 << 20;

/// A storage with a list in place of the machine.
struct Rig {
    storage: Storage,
    ring: Ring<Op>,
    disk: std::fs::File,
    journal: std::fs::File,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(place: &std::path::Path, backend: Backend) -> Self {
        let dir = tempfile::tempdir_in(place).unwrap();
        let arena = Memory::new(4 << 20, true).unwrap();
        let mut ring = Ring::new(RingOptions::default(), arena, 8).unwrap();
        let mut unit = |name: &str, purpose| {
            let path = dir.path().join(name);
            let (mut device, _) = Device::open_or_create(&path, purpose).unwrap();
            device.reset(BYTES, false).unwrap();
            device.set_direct(DirectIo::Auto, 4096).unwrap();
            assert_eq!(device.backend(), backend);
            (
                Unit::new(ring.add_file(device.into_file()).unwrap(), backend),
                std::fs::File::open(path).unwrap(),
            )
        };
        let (disk_unit, disk) = unit("disk", Purpose::Disk);
        let (journal_unit, journal) = unit("journal", Purpose::Journal);
        let storage = Storage::new(&mut ring, disk_unit, journal_unit).unwrap();
        Self { storage, ring, disk, journal, _dir: dir }
    }

    /// Turns until `count` events have come, told as text.
    fn run(&mut self, count: usize) -> Vec<String> {
        let mut told = Vec::new();
        let mut completions = Vec::new();
        while told.len() < count {
            let wait = if self.storage.is_busy() { Duration::ZERO } else { Duration::from_secs(5) };
            self.ring.enter(Some(wait)).unwrap();
            self.storage.perform(&mut self.ring);
            self.ring.reap(&mut completions);
            for done in completions.drain(..) {
                let Op::Storage(key) = done.tag else { panic!("only storage works here") };
                told.extend(
                    self.storage.complete(&mut self.ring, key, done.result).map(|e| format!("{e:?}")),
                );
            }
            while let Some(event) = self.storage.next_event(&mut self.ring) {
                told.push(format!("{event:?}"));
            }
        }
        assert!(!self.storage.is_busy() && self.storage.works.len() == 0, "everything is told once");
        told
    }

    fn one(&mut self, done: Done, work: Work) -> String {
        self.storage.begin(&mut self.ring, done, Token(5), work);
        self.run(1).remove(0)
    }
}

fn read(offset: u64, span: Span) -> Work {
    Work::Read { offset, place: Place::Arena(span) }
}

fn write(offset: u64, span: Span) -> Work {
    Work::Write { offset, place: Place::Arena(span) }
}

fn span(start: usize, len: usize) -> Span {
    Span { start, len }
}

/// The tests run on a real file system and on one of memory.
fn on_both(body: impl Fn(Rig)) {
    body(Rig::new(&std::env::current_dir().unwrap(), Backend::Ring));
    body(Rig::new(std::path::Path::new("/dev/shm"), Backend::Inline));
}

#[test]
fn what_is_written_and_synced_is_read() {
    on_both(|mut rig| {
        rig.ring.arena_mut()[..65536].fill(9);
        let told = rig.one(Done::JournalWritten, write(4096, span(0, 65536)));
        assert_eq!(told, "JournalWritten { token: Token(5), result: Ok(()) }");
        assert_eq!(
            rig.one(Done::JournalSynced, Work::Sync),
            "JournalSynced { token: Token(5), result: Ok(()) }"
        );
        let mut bytes = vec![0; 65536];
        rig.journal.read_exact_at(&mut bytes, 4096).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 9));
        let told = rig.one(Done::JournalRead, read(0, span(1 << 20, 8192)));
        assert_eq!(told, "JournalRead { token: Token(5), result: Ok(()) }");
        assert_eq!(rig.ring.arena()[(1 << 20) + 4095..(1 << 20) + 4097], [0, 9]);
        assert!(rig.disk.metadata().unwrap().len() == BYTES);
    });
}

#[test]
fn the_end_of_a_device_is_an_error_and_not_a_short_read() {
    on_both(|mut rig| {
        let told = rig.one(Done::DiskRead, read(BYTES - 4096, span(0, 8192)));
        assert_eq!(told, format!("DiskRead {{ token: Token(5), result: Err(Errno({})) }}", libc::EIO));
    });
}

#[test]
fn ranges_are_zeroed_by_every_way_there_is() {
    for (cannot_zero_range, cannot_punch) in [(false, false), (true, false), (false, true), (true, true)] {
        for kind in [ZeroKind::Trim, ZeroKind::Zeroes] {
            on_both(|mut rig| {
                rig.ring.arena_mut()[..4 << 20].fill(9);
                rig.one(Done::DiskWritten, write(0, span(0, 4 << 20)));
                (rig.storage.disk.cannot_zero_range, rig.storage.disk.cannot_punch) =
                    (cannot_zero_range, cannot_punch);
                let (offset, length) = (4096, (3 << 20) + 4096);
                let told = rig.one(Done::DiskWritten, Work::Zero { offset, length, kind });
                assert_eq!(told, "DiskWritten { token: Token(5), result: Ok(()) }");
                let mut bytes = vec![0; usize::try_from(BYTES).unwrap()];
                rig.disk.read_exact_at(&mut bytes, 0).unwrap();
                let end = (4096 + length) as usize;
                assert!(bytes[4096..end].iter().all(|byte| *byte == 0));
                assert!(bytes[..4096].iter().chain(&bytes[end..]).all(|byte| *byte == 9));
                assert_eq!(rig.disk.metadata().unwrap().len(), BYTES, "zeroing never moves the end");
            });
        }
    }
}

#[test]
fn a_way_refused_twice_at_once_rules_out_only_itself() {
    let rig = Rig::new(std::path::Path::new("/dev/shm"), Backend::Inline);
    let mut unit = rig.storage.disk;
    let refused = Errno(libc::EOPNOTSUPP);
    assert_eq!(unit.zero_way(ZeroKind::Zeroes), ZeroWay::Range);
    assert!(unit.refuse_zero_way(ZeroWay::Range, refused) && unit.refuse_zero_way(ZeroWay::Range, refused));
    assert_eq!(unit.zero_way(ZeroKind::Zeroes), ZeroWay::Punch);
    assert!(!unit.refuse_zero_way(ZeroWay::Punch, Errno(libc::ENOSPC)), "a full disk is no missing ability");
    assert!(unit.refuse_zero_way(ZeroWay::Punch, refused));
    assert_eq!(unit.zero_way(ZeroKind::Trim), ZeroWay::Write);
    assert!(!unit.refuse_zero_way(ZeroWay::Write, refused));
}

#[test]
fn superblocks_are_written_in_order_to_both_copies() {
    on_both(|mut rig| {
        for sequence in 1..=3 {
            let superblock = Superblock { sequence, block_bytes: 512, ..Superblock::default() };
            rig.storage.begin_superblock(&mut rig.ring, Token(sequence), Box::new(superblock));
        }
        let told = rig.run(3);
        for (index, told) in told.iter().enumerate() {
            assert_eq!(*told, format!("SuperblockWritten {{ token: Token({}), result: Ok(()) }}", index + 1));
        }
        let copies = SUPERBLOCK_AT.map(|offset| {
            let mut bytes = [0; SUPERBLOCK_BYTES];
            rig.journal.read_exact_at(&mut bytes, offset).unwrap();
            bytes
        });
        let (found, needs_repair) = superblock::choose([&copies[0], &copies[1]]).unwrap();
        assert_eq!((found.sequence, needs_repair), (3, false));
    });
}

#[test]
fn much_at_once_is_all_done() {
    on_both(|mut rig| {
        for index in 0..512u64 {
            rig.ring.arena_mut()[index as usize * 4096..][..4096].fill(index as u8);
            let work = write(index * 4096, span(index as usize * 4096, 4096));
            rig.storage.begin(&mut rig.ring, Done::DiskWritten, Token(index), work);
        }
        rig.run(512);
        let mut bytes = vec![0; 2 << 20];
        rig.disk.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.chunks(4096).enumerate().all(|(index, page)| page.iter().all(|b| *b == index as u8)));
    });
}

/// What earns the simulated disk its trust: the same work, drawn from a seed, leaves and shows the same bytes there
/// and on real disks, after every step.
#[test]
fn the_simulated_disk_does_what_real_ones_do() {
    on_both(|mut rig| {
        let mut random = random::Random::new(2026);
        let mut model = SimDisk::default();
        for step in 0..300u64 {
            let len = 512 * (1 + random.index(64));
            let offset = 512 * random.below((BYTES - len as u64) / 512);
            match random.below(10) {
                0..=4 => {
                    let byte = u8::try_from(random.below(256)).unwrap();
                    rig.ring.arena_mut()[..len].fill(byte);
                    let told = rig.one(Done::DiskWritten, write(offset, span(0, len)));
                    assert!(told.ends_with("result: Ok(()) }"), "{told}");
                    model.write(offset, &vec![byte; len]);
                }
                5..=6 => {
                    let kind = if random.percent(50) { ZeroKind::Trim } else { ZeroKind::Zeroes };
                    rig.one(Done::DiskWritten, Work::Zero { offset, length: len as u64, kind });
                    model.write(offset, &vec![0; len]);
                }
                7 => {
                    rig.one(Done::DiskSynced, Work::Sync);
                    let covered = model.completed();
                    model.sync(covered);
                }
                _ => {
                    rig.one(Done::DiskRead, read(offset, span(1 << 20, len)));
                    let mut expected = vec![0; len];
                    model.read(offset, &mut expected);
                    assert!(rig.ring.arena()[1 << 20..][..len] == expected[..], "step {step}");
                }
            }
        }
        let (mut real, mut expected) = (vec![0; 4 << 20], vec![0; 4 << 20]);
        rig.disk.read_exact_at(&mut real, 0).unwrap();
        model.read(0, &mut expected);
        assert!(real == expected, "both end with the same bytes");
    });
}
