//! What is counted and timed in a pair.

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Stage {
    /// Memory for a request is asked for.
    Place,
    /// `Event::Write`.
    Write,
    /// `Event::Read`.
    Read,
    /// `Event::Zero`.
    Zero,
    /// `Event::Flush`.
    Flush,
    /// `Event::Frame`, with `place_frame`.
    Frame,
    /// `Event::FrameSent`.
    FrameSent,
    /// `Event::Message`.
    Message,
    /// `Event::JournalWritten`.
    JournalWritten,
    /// `Event::JournalSynced`.
    JournalSynced,
    /// `Event::DiskRead`.
    DiskRead,
    /// `Event::DiskWritten`.
    DiskWritten,
    /// `Event::DiskSynced`.
    DiskSynced,
    /// `Event::SuperblockWritten`.
    SuperblockWritten,
    /// `Event::TurnEnd`: frames close, entries are applied, acknowledgements leave.
    TurnEnd,
    /// `Event::Timeout`, and asking when it is due.
    Timeout,
    /// `Machine::poll_command`.
    Commands,
    /// Bytes that the driver copies where a kernel would: payloads, frames, disks.
    DriverCopies,
}

/// All stages, in their order.
pub const STAGES: [(Stage, &str); 18] = [
    (Stage::Place, "place (memory for a request)"),
    (Stage::Write, "Write (admission, payload CRC)"),
    (Stage::Read, "Read (overlay, gaps)"),
    (Stage::Zero, "Zero (admission)"),
    (Stage::Flush, "Flush"),
    (Stage::Frame, "Frame (decode, chain, payload CRCs)"),
    (Stage::FrameSent, "FrameSent"),
    (Stage::Message, "Message (acknowledgements)"),
    (Stage::JournalWritten, "JournalWritten"),
    (Stage::JournalSynced, "JournalSynced"),
    (Stage::DiskRead, "DiskRead"),
    (Stage::DiskWritten, "DiskWritten"),
    (Stage::DiskSynced, "DiskSynced"),
    (Stage::SuperblockWritten, "SuperblockWritten"),
    (Stage::TurnEnd, "TurnEnd (close, apply, send, answer)"),
    (Stage::Timeout, "Timeout, next_timeout"),
    (Stage::Commands, "poll_command"),
    (Stage::DriverCopies, "not the core: copies of the driver"),
];

/// Calls and nanoseconds of one stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// How often.
    pub calls: u64,
    /// How long together.
    pub ns: u64,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Requests answered.
    pub requests: u64,
    /// Events given to both machines.
    pub events: u64,
    /// Superblocks to write: at checkpoints.
    pub superblocks: u64,
    /// Messages in a box that the clock caused: pings, and marks on an idle link.
    pub timed_messages: u64,
    /// Allocations in turns that wrote a superblock or sent such a message.
    pub allocations_rare: u64,
    /// Allocations in all other turns: what requests cause.
    pub allocations: u64,
}

impl Tally {
    /// This and what another run came to.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    pub(super) fn since(self, before: Self) -> Self {
        self.zip(before, |a, b| a - b)
    }

    fn zip(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            requests: with(self.requests, other.requests),
            events: with(self.events, other.events),
            superblocks: with(self.superblocks, other.superblocks),
            timed_messages: with(self.timed_messages, other.timed_messages),
            allocations_rare: with(self.allocations_rare, other.allocations_rare),
            allocations: with(self.allocations, other.allocations),
        }
    }
}
