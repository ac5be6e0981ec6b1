//! The ledger: what was written where, and what was acknowledged, kept outside of the volume. Each writer has slots
//! of its own; a slot holds the newest of the records written to it.

/// Bytes of a record, and of a slot.
pub(super) const RECORD_BYTES: usize = 4096;
/// Slots of one writer.
pub(super) const SLOTS: usize = 2048;
const MAGIC: &[u8; 8] = b"LEDGER01";
const HEAD_BYTES: usize = 32;

/// A record as it lies in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing was ever written there.
    Blank,
    /// This record, sound, in the slot where it belongs.
    Record(u64),
    /// Anything else.
    Corrupt,
}

/// What is known of one slot.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// The newest acknowledged record, 0 for none.
    acknowledged: u64,
    /// A newer one that was sent and neither acknowledged nor, so far, looked for; 0 for none.
    attempted: u64,
}

/// What one writer did.
#[derive(Debug)]
pub(super) struct Ledger {
    writer: u64,
    slots: Vec<Slot>,
    next: u64,
    acknowledged: u64,
    flushed: u64,
}

/// How a check went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Slots looked at.
    pub(super) checked: u64,
    /// Slots without a record that was acknowledged there.
    pub(super) lost: u64,
    /// Slots with something that is no record of theirs.
    pub(super) corrupt: u64,
}

impl Verdict {
    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            checked: self.checked + other.checked,
            lost: self.lost + other.lost,
            corrupt: self.corrupt + other.corrupt,
        }
    }
}

impl Ledger {
    pub(super) fn new(writer: u64) -> Self {
        Self { writer, slots: vec![Slot::default(); SLOTS], next: 1, acknowledged: 0, flushed: 0 }
    }

    /// The next record: its number and its slot. Most are appended round the slots; every eighth overwrites one of the
    /// slots just written, so that the order of writes to one place matters.
    pub(super) fn attempt(&mut self) -> (u64, usize) {
        let number = self.next;
        self.next += 1;
        let back = if number.is_multiple_of(8) { 64 + number / 8 % 64 } else { 0 };
        let slot = usize::try_from(number.saturating_sub(back) % SLOTS as u64).expect("below SLOTS");
        self.slots[slot].attempted = number;
        (number, slot)
    }

    /// The record `number`, sent to `slot`, was acknowledged.
    pub(super) fn acknowledge(&mut self, number: u64, slot: usize) {
        let slot = &mut self.slots[slot];
        slot.acknowledged = number;
        if slot.attempted <= number {
            slot.attempted = 0;
        }
        self.acknowledged += 1;
    }

    /// Everything acknowledged so far was flushed.
    pub(super) fn flush(&mut self) {
        self.flushed = self.acknowledged;
    }

    /// Records acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Of those, records whose flush was acknowledged too.
    pub(super) fn flushed(&self) -> u64 {
        self.flushed
    }

    /// First byte of a slot in the volume.
    pub(super) fn offset(&self, slot: usize) -> u64 {
        (self.writer * SLOTS as u64 + slot as u64) * RECORD_BYTES as u64
    }

    /// Compares a slot with what was found in it. A record that was sent but not acknowledged may be there or not;
    /// from now on it is known which.
    pub(super) fn check(&mut self, slot: usize, bytes: &[u8]) -> Verdict {
        let found = self.read(slot, bytes);
        let known = &mut self.slots[slot];
        let mut verdict = Verdict { checked: 1, ..Verdict::default() };
        match found {
            Found::Corrupt => verdict.corrupt = 1,
            Found::Blank if known.acknowledged > 0 => verdict.lost = 1,
            Found::Blank => {}
            Found::Record(number) if number == known.acknowledged => {}
            Found::Record(number) if number == known.attempted && number != 0 => known.acknowledged = number,
            Found::Record(number) if number < known.acknowledged => verdict.lost = 1,
            // A number that was never sent to this slot.
            Found::Record(_) => verdict.corrupt = 1,
        }
        known.attempted = 0;
        verdict
    }

    /// Makes the bytes of a record.
    pub(super) fn write(&self, number: u64, slot: usize, bytes: &mut [u8; RECORD_BYTES]) {
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.writer.to_le_bytes());
        bytes[16..24].copy_from_slice(&number.to_le_bytes());
        bytes[24..28].copy_from_slice(&u32::try_from(slot).expect("below SLOTS").to_le_bytes());
        // Every page differs in every word, so that a piece of another record cannot pass.
        let mut state = self.writer << 56 ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        for word in bytes[HEAD_BYTES..].as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = state.to_le_bytes();
        }
        let crc = checksum(bytes);
        bytes[28..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    }

    fn read(&self, slot: usize, bytes: &[u8]) -> Found {
        if bytes.iter().all(|byte| *byte == 0) {
            return Found::Blank;
        }
        let Some((word, _)) = bytes.get(16..).and_then(|rest| rest.split_first_chunk::<8>()) else {
            return Found::Corrupt;
        };
        let number = u64::from_le_bytes(*word);
        let mut expected = [0; RECORD_BYTES];
        self.write(number, slot, &mut expected);
        if bytes == expected { Found::Record(number) } else { Found::Corrupt }
    }
}

fn checksum(bytes: &[u8; RECORD_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..28]);
    hasher.update(&bytes[HEAD_BYTES..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ledger: &Ledger, number: u64, slot: usize) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        ledger.write(number, slot, &mut bytes);
        bytes
    }

    #[test]
    fn what_a_check_finds() {
        let mut ledger = Ledger::new(3);
        let (first, slot) = ledger.attempt();
        ledger.acknowledge(first, slot);
        let sound = record(&ledger, first, slot);
        let fine = Verdict { checked: 1, lost: 0, corrupt: 0 };
        assert_eq!(ledger.check(slot, &sound), fine);
        assert_eq!(ledger.check(slot, &[0; RECORD_BYTES]), Verdict { lost: 1, ..fine });
        let mut torn = sound;
        torn[4000] ^= 1;
        assert_eq!(ledger.check(slot, &torn), Verdict { corrupt: 1, ..fine });
        let elsewhere = record(&ledger, first, slot + 1);
        assert_eq!(ledger.check(slot, &elsewhere), Verdict { corrupt: 1, ..fine });
        let invented = record(&ledger, 99, slot);
        assert_eq!(ledger.check(slot, &invented), Verdict { corrupt: 1, ..fine });
    }

    #[test]
    fn an_unacknowledged_record_may_be_there_or_not_but_not_both() {
        let mut ledger = Ledger::new(0);
        let (number, slot) = ledger.attempt();
        let bytes = record(&ledger, number, slot);
        assert_eq!(ledger.check(slot, &bytes).lost, 0);
        // It was seen, so it must stay.
        assert_eq!(ledger.check(slot, &[0; RECORD_BYTES]).lost, 1);

        let (number, slot) = ledger.attempt();
        let bytes = record(&ledger, number, slot);
        assert_eq!(ledger.check(slot, &[0; RECORD_BYTES]).lost, 0);
        // It was not there, so it must not come back.
        assert_eq!(ledger.check(slot, &bytes).corrupt, 1);
    }

    #[test]
    fn an_older_record_is_a_loss() {
        let mut ledger = Ledger::new(0);
        let mut seen = std::collections::HashMap::new();
        for _ in 0..3 * SLOTS {
            let (number, slot) = ledger.attempt();
            ledger.acknowledge(number, slot);
            if let Some(older) = seen.insert(slot, number) {
                let bytes = record(&ledger, older, slot);
                assert_eq!(ledger.check(slot, &bytes).lost, 1);
            }
        }
        assert_eq!(ledger.acknowledged(), 3 * SLOTS as u64);
    }
}
