//! The words of the control interface for checksums at rest and the scrub that looks at them.

use replicator_core::dirty::BLOCK_BYTES;
use replicator_core::status::{ScrubEnd, ScrubStatus, SumsStatus};
use serde::{Deserialize, Serialize};

use super::json::ResyncReport;

/// Checksums of blocks at rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumsReport {
    /// Bytes of them in memory.
    pub memory_bytes: u64,
    /// Bytes of them on the journal device.
    pub area_bytes: u64,
    /// Sectors of them, each for 126 blocks, that could not be believed since the process started.
    pub damaged_sectors: u64,
    /// When the last scrub ended that read everything, in milliseconds since 1970; none if there was none.
    pub scrubbed_ms: Option<u64>,
    /// Blocks that it read.
    pub scrubbed_blocks: u64,
    /// Those of them that were bad.
    pub scrubbed_bad_blocks: u64,
}

impl From<SumsStatus> for SumsReport {
    fn from(status: SumsStatus) -> Self {
        let last = status.last.unwrap_or_default();
        Self {
            memory_bytes: status.memory_bytes,
            area_bytes: status.area_bytes,
            damaged_sectors: status.damaged_sectors,
            scrubbed_ms: status.last.map(|last| last.ended_ms),
            scrubbed_blocks: last.blocks,
            scrubbed_bad_blocks: last.bad_blocks,
        }
    }
}

/// A scrub since the process started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// `reading`, `done`, `stopped` or `interrupted`.
    pub phase: String,
    /// How far it is.
    pub progress: ResyncReport,
    /// Seconds since it began, or that it took.
    pub seconds: u64,
    /// Bytes of blocks that could not be read, or did not match their checksum.
    pub bad_bytes: u64,
    /// Bytes of blocks of which nothing was known, and that count as right from now on.
    pub learnt_bytes: u64,
}

impl From<&ScrubStatus> for ScrubReport {
    fn from(scrub: &ScrubStatus) -> Self {
        let phase = match scrub.ended {
            None => "reading",
            Some(ScrubEnd::Done) => "done",
            Some(ScrubEnd::Stopped) => "stopped",
            Some(ScrubEnd::Interrupted) => "interrupted",
        };
        Self {
            phase: phase.to_owned(),
            progress: ResyncReport::from(scrub.progress),
            seconds: scrub.progress.elapsed_ms / 1000,
            bad_bytes: scrub.bad_blocks * BLOCK_BYTES,
            learnt_bytes: scrub.learnt_blocks * BLOCK_BYTES,
        }
    }
}

impl ScrubReport {
    /// Whether it has ended, however it did.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.phase != "reading"
    }
}
