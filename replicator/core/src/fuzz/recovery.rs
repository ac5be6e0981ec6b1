//! Recovery from journals that were damaged.

use alloc::vec;

use super::Choices;
use super::journal::Journal;
use super::rig::Rig;
use crate::disk::superblock::LogPoint;
use crate::event::AdminAction;
use crate::frame;
use crate::recovery::{RecoverError, Recovered, recover};
use crate::units::ReignId;

/// A journal of sound frames, damaged as the bytes say, and recovery from it. If the first byte is odd the damage
/// comes with sound checksums; then only the form of the result is judged.
///
/// # Panics
/// If recovery returns what is not this log up to some frame, or less than what was known durable.
pub fn fuzz_recovery(data: &[u8]) {
    let Some((style, rest)) = data.split_first() else { return };
    let mut choices = Choices(rest);
    let forge = style & 1 == 1;
    let mut journal = Journal::make(&mut choices);
    let touched = journal.damage(&mut choices, forge);
    let superblock = journal.superblock;
    let recovered = match recover(&superblock, false, 1, &mut journal.pages) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert!(!touched.is_empty(), "an undamaged journal is recovered: {error}");
            assert!(
                matches!(error, RecoverError::Rot { .. }),
                "the device gave all it was asked for: {error}"
            );
            return;
        }
    };
    check_chain(&journal, &recovered);
    if !forge {
        let head = recovered.log.head;
        assert!(journal.points.contains(&head), "the log ends behind one of its frames: {head:?}");
        assert!(
            !touched.is_empty() || journal.points.last() == Some(&head),
            "all of an undamaged log is found"
        );
        let known = journal.known_durable(&touched);
        assert!(recovered.log.last() >= known, "entry {known} was known durable and is not there");
    }
    if style & 2 == 2 {
        let mut rig = Rig::new(recovered, journal.pages);
        rig.settle();
        rig.admin(AdminAction::Promote { force: true, reign: ReignId(9) });
        rig.settle();
    }
}

/// Each frame of the log lies in the ring and continues the one before.
fn check_chain(journal: &Journal, recovered: &Recovered) {
    let log = &recovered.log;
    let mut before = journal.superblock.applied_through;
    for number in 0..log.next_number() {
        let frame = log.frame(number).expect("recovered frames are kept");
        let mut block = vec![0; frame.total_bytes as usize];
        journal.pages.read(journal.layout.device_offset(frame.ring_offset), &mut block);
        let header = frame::decode(&block).expect("a frame of the log is a frame");
        frame::check_payloads(&block, &header).expect("with sound payloads");
        assert!(header.chain_before == before.chain && header.first == before.position.sequence.next());
        assert!(frame.ring_offset >= before.ring_offset, "the ring is filled forwards");
        let position = if header.entries == 0 { before.position } else { header.last_position() };
        before = LogPoint { ring_offset: frame.ring_end(), position, chain: header.chain_after };
    }
    assert_eq!(
        (log.head.position, log.head.chain),
        (before.position, before.chain),
        "the head is behind the last"
    );
    assert!(log.durable() == log.last() && log.journaled() == log.last(), "what is found is durable");
    assert!(
        recovered.history.reigns().iter().all(|reign| reign.first <= log.last()),
        "no reign begins behind it"
    );
}
