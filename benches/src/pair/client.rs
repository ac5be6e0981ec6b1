//! The client of a pair: what it asks, and what it checks in the answers.

use replicator_core::event::{Event, ZeroKind};
use replicator_core::units::{Buffer, RequestId, Span};

use super::tally::Stage;
use super::{BLOCK_BYTES, BLOCKS, DEPTH_MAX, Pair};
use crate::random::Random;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Random writes over the volume.
    Write,
    /// The same, and every eighth request is a flush.
    WriteFlush,
    /// Random trims over the volume.
    Trim,
    /// Writes to the first blocks, with the clock stopped: nothing is synced, so nothing is applied.
    WriteHeld {
        /// How many blocks.
        blocks: u64,
    },
    /// Random reads over the volume.
    Read,
    /// Reads of the first blocks, with the clock stopped.
    ReadHeld {
        /// How many blocks.
        blocks: u64,
    },
}

/// A request of the client: where it is a read, the block and where it goes.
type Request = Option<(u64, Buffer)>;

pub(super) struct Client {
    slots: Vec<Request>,
    pub(super) free: Vec<usize>,
    random: Random,
    payload: Vec<u8>,
    stamps: u64,
    /// The newest stamp written to each block.
    pub(super) expected: Vec<u64>,
}

impl Client {
    pub(super) fn new() -> Self {
        Self {
            slots: vec![None; DEPTH_MAX],
            free: (0..DEPTH_MAX).collect(),
            random: Random::new(1),
            payload: (0..BLOCK_BYTES).map(|at| (at * 31 % 251) as u8).collect(),
            stamps: 0,
            expected: vec![0; usize::try_from(BLOCKS).expect("fits in memory")],
        }
    }
}

impl Pair {
    /// Places a request at the Primary, if there is room.
    pub(super) fn issue(&mut self, job: Job) -> bool {
        let Some(slot) = self.client.free.last().copied() else { return false };
        let blocks = match job {
            Job::WriteHeld { blocks } | Job::ReadHeld { blocks } => blocks,
            _ => BLOCKS,
        };
        let block = self.client.random.below(blocks);
        let issued = match job {
            Job::WriteFlush if self.client.random.below(8) == 0 => {
                self.handle(0, Stage::Flush, Event::Flush { request: RequestId(slot as u64) });
                true
            }
            Job::Write | Job::WriteFlush | Job::WriteHeld { .. } => self.issue_write(slot, block),
            Job::Trim => self.issue_trim(slot, block),
            Job::Read | Job::ReadHeld { .. } => self.issue_read(slot, block),
        };
        if issued {
            let popped = self.client.free.pop();
            assert!(popped == Some(slot), "nothing is answered before its turn");
        }
        issued
    }

    fn issue_write(&mut self, slot: usize, block: u64) -> bool {
        let began = self.begin();
        let placed = self.nodes[0].machine.place_write(BLOCK_BYTES);
        self.end(0, Stage::Place, began);
        let Some(payload) = placed else { return false };
        self.fill(payload, block);
        let (request, offset) = (RequestId(slot as u64), block * BLOCK_BYTES as u64);
        self.handle(0, Stage::Write, Event::Write { request, offset, payload, fua: false });
        true
    }

    fn issue_trim(&mut self, slot: usize, block: u64) -> bool {
        let (request, offset, length) =
            (RequestId(slot as u64), block * BLOCK_BYTES as u64, BLOCK_BYTES as u64);
        self.client.expected[usize::try_from(block).expect("fits in memory")] = 0;
        self.handle(
            0,
            Stage::Zero,
            Event::Zero { request, offset, length, kind: ZeroKind::Trim, fua: false },
        );
        true
    }

    fn issue_read(&mut self, slot: usize, block: u64) -> bool {
        let began = self.begin();
        let taken = self.nodes[0].machine.take_buffer(BLOCK_BYTES);
        self.end(0, Stage::Place, began);
        let Some(buffer) = taken else { return false };
        let (request, offset) = (RequestId(slot as u64), block * BLOCK_BYTES as u64);
        let destination = Span { start: buffer.start(), len: BLOCK_BYTES };
        self.client.slots[slot] = Some((block, buffer));
        self.handle(0, Stage::Read, Event::Read { request, offset, destination });
        true
    }

    /// Puts a payload in the Primary's arena, as a receive would.
    fn fill(&mut self, span: Span, block: u64) {
        let began = self.begin();
        self.client.stamps += 1;
        self.client.payload[..8].copy_from_slice(&self.client.stamps.to_le_bytes());
        self.nodes[0].arena[span.range()].copy_from_slice(&self.client.payload);
        self.end(0, Stage::DriverCopies, began);
        self.client.expected[usize::try_from(block).expect("fits in memory")] = self.client.stamps;
    }

    /// The client has its answer; what it read is the newest write, since no write is under way beside reads.
    pub(super) fn answered(&mut self, request: RequestId) {
        let slot = usize::try_from(request.0).expect("a slot");
        self.client.free.push(slot);
        self.tally.requests += 1;
        if let Some((block, buffer)) = self.client.slots[slot].take() {
            let node = &mut self.nodes[0];
            let found = stamp_of(&node.arena[buffer.start()..buffer.start() + BLOCK_BYTES]);
            let expected = self.client.expected[usize::try_from(block).expect("fits in memory")];
            assert!(found == expected, "a read returns the newest write: {found} is not {expected}");
            node.machine.give_buffer(buffer);
        }
    }
}

/// The stamp that a block begins with.
pub(super) fn stamp_of(block: &[u8]) -> u64 {
    u64::from_le_bytes(*block.first_chunk().expect("a block has a stamp"))
}
